"""Packed documents get what each gets alone, in the model's output and in its gradients."""

from dataclasses import replace

import pytest
import torch
from transformers import HunYuanMoEV1ForCausalLM

from hunyuan_train.config.errors import ConfigError
from hunyuan_train.config.schema import ModelConfig
from hunyuan_train.model.attention import PER_DOCUMENT, choose_attention
from hunyuan_train.model.build import build_model
from hunyuan_train.model.layout import stored_tensors
from hunyuan_train.model.presets import TINY
from hunyuan_train.model.shape import parse_shape
from hunyuan_train.model.weights import SeededWeights
from tests.released import published_config

SHAPE = replace(TINY, vocab_size=256, num_hidden_layers=2, rope_alpha=1000.0)
LENGTHS = (7, 1, 19, 12)


def filled_model(attention: str, dropout: float = 0.0) -> HunYuanMoEV1ForCausalLM:
    model = build_model(SHAPE, attention=attention, attention_dropout=dropout)
    source = SeededWeights(seed=3, standard_deviation=0.1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            tensors = stored_tensors(name, tuple(parameter.shape))
            values = torch.cat([source.read(tensor, 0, tensor.numel) for tensor in tensors])
            parameter.copy_(values.view(parameter.shape))
    return model


def packed_logits(model: HunYuanMoEV1ForCausalLM, documents: list[torch.Tensor]) -> torch.Tensor:
    lengths = [len(document) for document in documents]
    return model(
        input_ids=torch.cat(documents)[None],
        position_ids=torch.cat([torch.arange(length) for length in lengths])[None],
        document_lengths=lengths,
        use_cache=False,
    ).logits[0]


def random_documents() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 256, (length,), generator=generator) for length in LENGTHS]


def test_packed_documents_equal_each_document_alone() -> None:
    documents = random_documents()
    packed, plain = filled_model(PER_DOCUMENT), filled_model("eager")
    alone = torch.cat([plain(input_ids=document[None]).logits[0] for document in documents])
    together = packed_logits(packed, documents)
    assert (together - alone).abs().max() < 2e-5
    together.square().mean().backward()
    alone.square().mean().backward()
    for (name, ours), theirs in zip(packed.named_parameters(), plain.parameters(), strict=True):
        assert torch.allclose(ours.grad, theirs.grad, atol=1e-5), name


def test_a_changed_document_moves_no_other() -> None:
    model = filled_model(PER_DOCUMENT)
    documents = random_documents()
    before = packed_logits(model, documents).split(LENGTHS)
    documents[2] = (documents[2] + 1) % 256
    after = packed_logits(model, documents).split(LENGTHS)
    assert not torch.allclose(before[2], after[2], atol=1e-3)
    for index in (0, 1, 3):
        # Not 0: the experts' grouped products sum in another order when group sizes change.
        assert (before[index] - after[index]).abs().max() < 1e-5, index


def test_attention_drops_nothing_in_training_unless_asked() -> None:
    assert ModelConfig().attention_dropout == 0.0
    published = parse_shape(published_config(SHAPE) | {"attention_dropout": 0.1}, source="it")
    assert published == SHAPE  # the file's own dropout is not taken over
    documents = random_documents()
    model = filled_model(PER_DOCUMENT).train()
    assert torch.equal(packed_logits(model, documents), packed_logits(model, documents))
    model = filled_model(PER_DOCUMENT, dropout=0.1).train()
    assert not torch.equal(packed_logits(model, documents), packed_logits(model, documents))
    assert torch.equal(packed_logits(model.eval(), documents), packed_logits(model, documents))


def test_flash_attention_demanded_without_a_gpu_is_refused() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ConfigError, match="use_flash_attn is true, which needs a GPU"):
        choose_attention(True, is_bf16=True)
    assert choose_attention("auto", is_bf16=True) == PER_DOCUMENT
