"""The plan against reality: what a token more on a rank takes at the fullest moment, within 5 %."""

import gc
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.gpu_rank_slice import make_batch
from hunyuan_train.data.batches.loader import cut_batch
from hunyuan_train.families.hunyuan_v1_moe import TINY
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.model.loss import token_losses
from hunyuan_train.model.weights import SeededWeights
from hunyuan_train.parallel.assemble import assemble_engine
from hunyuan_train.parallel.engine import start_process_group
from hunyuan_train.planner.component import MOMENTS, total_of
from hunyuan_train.planner.memory import plan_memory
from tests.planner.held import resolved
from tests.planner.live import LiveBytes
from tests.ranks import run_ranks

# In the proportions of the released model, eight experts for a token as there.
SHAPE = replace(
    TINY,
    vocab_size=512,
    hidden_size=256,
    intermediate_size=192,
    num_attention_heads=16,
    num_key_value_heads=4,
    head_dim=16,
    num_hidden_layers=2,
    moe_topk=8,
)
# Of shorter rows the fullest moment depends on what the engine has gathered ahead, up to 0.5 MB.
LENGTHS = (2048, 4096)
SIZE = 2
CHUNKS = (1, 4, 8)
TOLERANCE = 0.05


def flags(num_chunks: int, length: int) -> list[str]:
    return [
        *("--bf16", "true", "--gradient_checkpointing", "true"),
        *("--sequence_parallel_size", str(SIZE), "--moe_chunks", str(num_chunks)),
        *("--max_seq_length", str(length)),
    ]


def measure_peaks(shape: ModelShape) -> dict[int, list[int]]:
    """Most bytes alive in forward and backward of a row of each length, by number of chunks."""
    start_process_group(timeout_minutes=2)
    peaks = {}
    for num_chunks in CHUNKS:
        run = resolved(flags(num_chunks, max(LENGTHS)), shape, SIZE)
        engine = assemble_engine(run, SeededWeights(1, shape.initializer_range))
        engine.train()
        for layer in engine.module.model.layers:
            gate = layer.mlp.router.gate
            gate.forward = partial(deal_out_evenly, gate.forward, shape.moe_topk)
        run_row(engine, shape, 64)  # what is made once
        peaks[num_chunks] = [run_row(engine, shape, length) for length in LENGTHS]
        engine.destroy()
    return peaks


def deal_out_evenly(project: Callable[[Tensor], Tensor], top_k: int, hidden: Tensor) -> Tensor:
    """Router logits by which each token takes the experts behind those of the token before."""
    logits = project(hidden)
    num_tokens, num_experts = logits.shape
    first = torch.arange(num_tokens) * top_k
    places = (torch.arange(num_experts) - first[:, None]) % num_experts
    return 0.01 * logits - places  # far apart, and yet no probability underflows


def run_row(engine, shape: ModelShape, length: int) -> int:
    batch = cut_batch(make_batch(length, shape.vocab_size, seed=length), dist.get_rank(), SIZE)
    gc.collect()
    with LiveBytes() as live:
        engine.backward(token_losses(engine, batch).sum())
    engine.step()
    return live.peak


def planned_peaks(num_chunks: int) -> list[int]:
    """The same by the plan, which knows of moments before and after, too."""
    peaks = []
    for length in LENGTHS:
        run = resolved(flags(num_chunks, length), SHAPE, SIZE)
        lines = plan_memory(run, imbalance=1.0).device
        moments = [phases for name, phases in MOMENTS.items() if "a layer's" in name]
        peaks.append(max(total_of(lines, *phases) for phases in moments))
    return peaks


def slope(peaks: list[int]) -> float:
    """Bytes for one more token of a rank."""
    return (peaks[1] - peaks[0]) / ((LENGTHS[1] - LENGTHS[0]) / SIZE)


@pytest.mark.slow
def test_a_token_takes_what_the_plan_says_with_any_number_of_chunks() -> None:
    ranks = run_ranks(measure_peaks, SIZE, SHAPE)
    for rank in ranks:
        for num_chunks in CHUNKS:
            planned = slope(planned_peaks(num_chunks))
            assert planned == pytest.approx(slope(rank[num_chunks]), rel=TOLERANCE), num_chunks
        assert slope(rank[8]) < 0.35 * slope(rank[1])
