"""Stand-ins for kernels against what they stand for, where that runs on a CPU: shapes, dtypes."""

import pytest
import torch
from deepspeed.module_inject.auto_ep_layer import combine_from_routed
from deepspeed.moe import ep_kernels
from deepspeed.ops.triton_ops.swiglu_triton import _swiglu_eager
from torch import Tensor

from hunyuan_train.model.compressed_values import encode
from hunyuan_train.model.compression_scheme import Scheme
from hunyuan_train.parallel import quantised_experts
from hunyuan_train.parallel.quantised_experts import CompressedWeights
from hunyuan_train.rehearsal import stand_ins
from hunyuan_train.rehearsal.stand_ins import Skew, Swiglu, WeightedRestore, spread
from hunyuan_train.rehearsal.watch import Watch


def form(tensor: Tensor | None) -> tuple | None:
    return None if tensor is None else (tuple(tensor.shape), tensor.dtype, tensor.device)


def leaf(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.ones(*shape, dtype=dtype).requires_grad_()


def ignore(*_: Tensor) -> None:
    """A kernel that nobody counts."""


def test_swiglu_makes_and_gives_back_what_the_real_one_does():
    forms = []
    for function in (_swiglu_eager, lambda gate, up: Swiglu.apply(gate, up, ignore)):
        gate, up = leaf(6, 4), leaf(6, 4)
        result = function(gate, up)
        result.backward(torch.ones_like(result))
        forms.append([form(one) for one in (result, gate.grad, up.grad)])
    assert forms[0] == forms[1]


def test_the_weighted_sum_makes_and_gives_back_what_the_plain_one_does():
    tokens, top_k, hidden = 5, 2, 8
    forms = []

    def plain(rows: Tensor, scores: Tensor) -> Tensor:
        return combine_from_routed(
            rows,
            top_scores=scores,
            token_indices_sorted=torch.arange(tokens * top_k),
            top_k=top_k,
            score_apply="post",
            combine_impl="weighted_sum",
            shape=(1, tokens, hidden),
        )

    def stand_in(rows: Tensor, scores: Tensor) -> Tensor:
        inverse = torch.arange(tokens * top_k, dtype=torch.int32)
        return WeightedRestore.apply(rows, scores, inverse, top_k, ignore).view(1, tokens, hidden)

    for function in (plain, stand_in):
        rows, scores = leaf(tokens * top_k, hidden), leaf(tokens, top_k, dtype=torch.float32)
        result = function(rows, scores)
        result.backward(torch.ones_like(result))
        forms.append([form(one) for one in (result, rows.grad, scores.grad)])
    assert forms[0] == forms[1]


def test_rows_to_experts_have_the_shape_that_the_cpu_gives(monkeypatch):
    counts = torch.tensor([3, 0, 7], dtype=torch.int32)
    indices, _, _ = ep_kernels.generate_permute_indices(counts, 3, 1, 40, 8, use_cpu=True)
    for name in ("permute_rows_supported", "gather_rows", "fill_indices_wrapper"):
        monkeypatch.setattr(ep_kernels, name, getattr(ep_kernels, name))  # to be put back
    for module, name in (
        (stand_ins.swiglu_triton, "swiglu"),
        (stand_ins.swiglu_triton, "swiglu_packed"),
        (stand_ins.autoep_fused_token_ops, "is_available"),
        (stand_ins.autoep_fused_token_ops, "assert_supported"),
        (stand_ins.autoep_fused_token_ops, "fused_weighted_restore"),
    ):
        monkeypatch.setattr(module, name, getattr(module, name))
    watch = Watch()
    stand_ins.stand_in_for_kernels(watch)
    made_up, _, _ = ep_kernels.generate_permute_indices(counts, 3, 1, 40, 8)
    assert form(made_up) == form(indices)
    rows = torch.ones(10, 4)
    padded = torch.vstack((rows, rows.new_zeros(4)))  # what a CPU gathers from
    assert form(ep_kernels.gather_rows(rows, indices)) == form(padded[indices])
    assert watch.stood_in == {
        "Triton: order of rows (fill_indices)": 1,
        "Triton: rows to experts (gather_rows)": 1,
    }


@pytest.mark.parametrize("scheme", [Scheme("nf4", 64), Scheme("group", 32), Scheme("block")])
def test_experts_are_decoded_to_the_shape_that_torch_gives(scheme, monkeypatch):
    weights = CompressedWeights((2, 256, 384), scheme)
    for expert in range(2):
        weights.put(expert, *encode(torch.ones(256, 384), scheme), torch.device("cpu"))

    def forms() -> list[tuple | None]:
        pieces = weights.rows(0, 128, torch.bfloat16), weights.columns(128, 384, torch.bfloat16)
        return [form(one) for one in pieces]

    plain = forms()
    monkeypatch.setattr(quantised_experts, "compile_or_warn", quantised_experts.compile_or_warn)
    watch = Watch()
    stand_ins.stand_in_for_decoding(watch)
    quantised_experts.compile_or_warn([weights], torch.bfloat16)
    assert forms() == plain
    assert watch.stood_in == {"Triton: experts' weights from codes": 2}


def test_rows_come_by_the_skew_and_never_more_than_all():
    assert spread(10, 4) == [2, 3, 2, 3]
    layers = [torch.nn.Identity() for _ in range(4)]
    skew = Skew(3.0, is_varied=True)
    skew.layers = {id(layer): index for index, layer in enumerate(layers)}
    received = []
    for layer in layers:
        skew.enter(layer, torch.empty(1, 100, 16), top_k=8)
        received.append(skew.received())
    assert received[0] == received[-1] == 2400  # the first and the last get the whole skew
    assert all(0.6 * 2400 <= one < 2400 for one in received[1:-1])
    assert len(set(received)) == 3
    skew.is_varied = False
    assert skew.received() == 2400
