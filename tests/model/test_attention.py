"""Packed documents get what each gets alone, in the model's output and in its gradients."""

from dataclasses import replace

import pytest
import torch
from transformers import HunYuanMoEV1ForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from hunyuan_train.config.schema import ModelConfig
from hunyuan_train.errors import ConfigError
from hunyuan_train.families.hunyuan_v1_moe import HUNYUAN_V1_MOE, TINY
from hunyuan_train.families.registry import parse_shape
from hunyuan_train.families.tables import stored_tensors
from hunyuan_train.model import attention
from hunyuan_train.model.attention import (
    FLASH_2,
    FLASH_3,
    PER_DOCUMENT,
    VARIABLE_LENGTH,
    choose_attention,
    describe_attention,
    installed_flash_attention,
)
from hunyuan_train.model.build import build_model
from hunyuan_train.model.weights import SeededWeights
from tests.kernels import stand_in_for_kernels
from tests.released import published_config

SHAPE = replace(TINY, vocab_size=256, num_hidden_layers=2, rope_theta=1e7)
LENGTHS = (7, 1, 19, 12)


def filled_model(name: str, dropout: float = 0.0) -> HunYuanMoEV1ForCausalLM:
    model = build_model(SHAPE, attention=name, attention_dropout=dropout)
    source = SeededWeights(seed=3, standard_deviation=0.1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            tensors = stored_tensors(HUNYUAN_V1_MOE, name, tuple(parameter.shape))
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
    published = published_config(SHAPE)
    assert published.pop("attention_dropout") == 0.1
    without = parse_shape(published, source="it")  # the file's own dropout is not taken over
    assert parse_shape(published | {"attention_dropout": 0.1}, source="it") == without
    documents = random_documents()
    model = filled_model(PER_DOCUMENT).train()
    assert torch.equal(packed_logits(model, documents), packed_logits(model, documents))
    model = filled_model(PER_DOCUMENT, dropout=0.1).train()
    assert not torch.equal(packed_logits(model, documents), packed_logits(model, documents))
    assert torch.equal(packed_logits(model.eval(), documents), packed_logits(model, documents))


def on_gpu(name: str) -> object:
    return pytest.param(name, "cuda", torch.bfloat16, marks=pytest.mark.gpu)


BACKENDS = [
    *((name, "cpu", torch.float32) for name in (PER_DOCUMENT, VARIABLE_LENGTH, FLASH_2, FLASH_3)),
    *(on_gpu(name) for name in (PER_DOCUMENT, VARIABLE_LENGTH, FLASH_2, FLASH_3)),
]


def run_attention(
    name: str, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> torch.Tensor:
    bounds = torch.tensor([0, *LENGTHS]).cumsum(0).to(query.device, torch.int32)
    layer = build_model(SHAPE, attention=name, attention_dropout=0.0).model.layers[0].self_attn
    longest = max(LENGTHS)
    output, _ = ALL_ATTENTION_FUNCTIONS[name](
        *(layer, query, key, value, None),
        scaling=0.25,
        dropout=0.0,
        cu_seq_lens_q=bounds,
        cu_seq_lens_k=bounds,
        max_length_q=longest,
        max_length_k=longest,
        document_lengths=list(LENGTHS),
    )
    return output


def random_heads(device: str, dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    heads = (SHAPE.num_attention_heads, SHAPE.num_key_value_heads, SHAPE.num_key_value_heads)
    return [
        torch.randn(1, count, sum(LENGTHS), SHAPE.head_dim, generator=generator)
        .to(device, dtype)
        .requires_grad_()
        for count in heads
    ]


@pytest.mark.parametrize(("name", "device", "dtype"), BACKENDS)
def test_every_backend_gives_masked_attention(
    name: str, device: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare_kernel(name, device, monkeypatch)
    heads = random_heads(device, dtype)
    documents = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
    mask = (documents[:, None] == documents[None, :]).tril().to(device)
    plain = torch.nn.functional.scaled_dot_product_attention(
        *(part.float() for part in heads), attn_mask=mask, scale=0.25, enable_gqa=True
    ).transpose(1, 2)
    packed = run_attention(name, *heads)
    weights = torch.linspace(-1, 1, plain.numel(), device=device).view(plain.shape)
    expected = [plain, *torch.autograd.grad((plain * weights).sum(), heads)]
    found = [packed, *torch.autograd.grad((packed.float() * weights).sum(), heads)]
    tolerance = 1e-6 if dtype == torch.float32 else 2e-2
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.float() - theirs.float()).abs().max() <= tolerance * theirs.abs().max()


@pytest.mark.parametrize(("name", "device", "dtype"), BACKENDS)
def test_in_every_backend_a_changed_document_moves_no_other(
    name: str, device: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare_kernel(name, device, monkeypatch)
    heads = random_heads(device, dtype)
    before = run_attention(name, *heads).split(LENGTHS, dim=1)
    with torch.no_grad():
        for part in heads:
            part.split(LENGTHS, dim=2)[2].add_(1.0)
    after = run_attention(name, *heads).split(LENGTHS, dim=1)
    assert not torch.equal(before[2], after[2])
    for index in (0, 1, 3):
        assert torch.equal(before[index], after[index]), index


def prepare_kernel(name: str, device: str, patch: pytest.MonkeyPatch) -> None:
    """On a CPU, plain code stands in for the kernels of GPUs, which show themselves on a GPU."""
    if device == "cpu":
        stand_in_for_kernels(patch)
    elif name in (FLASH_2, FLASH_3) and name not in installed_flash_attention():
        pytest.skip(f"{name} is not installed")


@pytest.mark.parametrize(
    ("packages", "options", "expected"),
    [
        ([FLASH_3, FLASH_2], {}, FLASH_3),
        ([FLASH_2], {}, FLASH_2),
        ([], {}, VARIABLE_LENGTH),
        ([FLASH_2], {"use_flash_attn": False}, VARIABLE_LENGTH),
        ([FLASH_3, FLASH_2], {"dropout": 0.1}, FLASH_2),
        ([FLASH_3], {"dropout": 0.1}, PER_DOCUMENT),
        ([FLASH_3, FLASH_2], {"is_bf16": False}, PER_DOCUMENT),
    ],
)
def test_the_fastest_backend_of_a_gpu_is_taken(
    monkeypatch: pytest.MonkeyPatch, packages: list[str], options: dict[str, bool], expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(attention, "installed_flash_attention", lambda: packages)
    assert choose_attention(**{"use_flash_attn": "auto", "is_bf16": True, **options}) == expected
    assert describe_attention(expected)


def test_flash_attention_demanded_without_a_gpu_is_refused() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ConfigError, match="use_flash_attn is true, which needs a GPU"):
        choose_attention(True, is_bf16=True)
    assert choose_attention("auto", is_bf16=True) == PER_DOCUMENT
