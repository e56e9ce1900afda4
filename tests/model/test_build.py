"""Freezing by name."""

from hunyuan_train.config.schema import ModelConfig
from hunyuan_train.families.tables import model_parameters
from hunyuan_train.model.build import freeze_parameters
from tests.batches import SHAPE, plain_model


def trained_names(**settings: object) -> set[str]:
    model = plain_model()
    freeze_parameters(model, ModelConfig(**settings))
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_patterns_freeze_what_they_match_and_nothing_else() -> None:
    everything = trained_names()
    left = trained_names(freeze="*.mlp.experts.*, model.embed_tokens.weight")
    assert everything - left == {
        name for name in everything if ".experts." in name or "embed_tokens" in name
    }
    assert len(everything - left) == 2 * SHAPE.num_hidden_layers + 1


def test_router_and_attention_switches() -> None:
    assert not any(".gate." in name for name in trained_names(freeze_router=True))
    assert all(".self_attn." in name for name in trained_names(train_attention_params_only=True))


def test_names_known_without_torch_are_those_of_the_model() -> None:
    known = {one.name: one.shape for one in model_parameters(SHAPE)}
    assert known == {name: tuple(one.shape) for name, one in plain_model().named_parameters()}
    assert list(known) == [name for name, _ in plain_model().named_parameters()]
