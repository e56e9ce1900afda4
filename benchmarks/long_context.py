"""Rows that ranks share: tokens a second and memory as rows grow; and one GPU's part of 256K.

    python -m benchmarks.long_context [--lengths 1024,2048,4096,8192] [--report]
    torchrun --standalone -m benchmarks.long_context --slice [--tokens 32768] [--report]

The first compares two processes on the CPU that have rows of their own with two that share each
row (Ulysses), experts split over both in each case, and with experts in chunks. Time is of the
wall, the best of three steps; memory is that of the tensors a step makes, at its fullest moment in
the fuller process. Ratios are to rows of their own of the same length.

The second is what one of eight GPUs computes of a row of eight times the tokens: the true widths,
its share of the heads over the whole row, its experts' share of the tokens (gpu_rank_slice.py). The
all-to-alls move nothing and only reorder what is there.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass, replace
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from benchmarks.gpu_rank_slice import (
    Work,
    make_batch,
    measure,
    model_flops,
    most_layers,
    report,
    slice_run,
    slice_shape,
    start_slice,
)
from benchmarks.results import add_report_flag, show
from hunyuan_train.config.deepspeed_file import read_deepspeed_file
from hunyuan_train.config.load import build_config
from hunyuan_train.config.resolve import resolve
from hunyuan_train.config.resolved_run import Machine
from hunyuan_train.config.rules.listing import SETTINGS_ALONE
from hunyuan_train.data.batches.loader import cut_batch
from hunyuan_train.families.hunyuan_v1_moe import TINY
from hunyuan_train.families.tables import count_parameters
from hunyuan_train.model.weights import SeededWeights
from hunyuan_train.objectives.sft import SFT
from hunyuan_train.parallel import sequence
from hunyuan_train.parallel.assemble import assemble_engine
from hunyuan_train.parallel.engine import start_process_group
from hunyuan_train.selftest.local_ranks import run_ranks
from hunyuan_train.trainer.step import train_step
from tests.planner.live import LiveBytes

NUM_PROCESSES, NUM_STEPS = 2, 3
TIMEOUT_SECONDS = 3600.0
SLICE_RANKS, SLICE_CHUNKS, SLICE_STEPS = 8, 8, 5

# Widths in the proportions of the released model, every eighth of its experts at work as there.
SHAPE = replace(
    TINY,
    hidden_size=256,
    intermediate_size=192,
    num_hidden_layers=2,
    num_attention_heads=16,
    num_key_value_heads=4,
    num_experts=32,
)


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one step, of the slower and fuller process."""

    tokens_per_second: float  # of both
    peak: int  # bytes


def measure_rank(settings: dict[str, object], length: int) -> tuple[float, int]:
    """Seconds and bytes of a step on this rank."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    start_process_group(timeout_minutes=60)
    machine = Machine(num_gpus=0, num_cores=NUM_PROCESSES)
    config = build_config({"num_processes": NUM_PROCESSES, "max_seq_length": length, **settings})
    run = resolve(config, shape=SHAPE, machine=machine, known=SETTINGS_ALONE)
    engine = assemble_engine(run, SeededWeights(0, SHAPE.initializer_range))
    engine.train()
    size, rank = run.sequence_size, dist.get_rank()
    row = make_batch(length, SHAPE.vocab_size, seed=rank // size)
    batch = cut_batch(row, rank % size, size)
    seconds = []
    for _ in range(1 + NUM_STEPS):
        dist.barrier()
        began = time.perf_counter()
        train_step(engine, SFT, [batch], learning_rate=1e-4)
        seconds.append(time.perf_counter() - began)
    with LiveBytes() as live:
        train_step(engine, SFT, [batch], learning_rate=1e-4)
    return min(seconds[1:]), live.peak


def measure_cost(settings: dict[str, object], length: int) -> Cost:
    """Both ranks, each a process of its own."""
    ranks = run_ranks(
        measure_rank,
        NUM_PROCESSES,
        *(settings, length),
        preload=["tests.preload"],
        timeout_seconds=TIMEOUT_SECONDS,
    )
    seconds, peak = (max(one) for one in zip(*ranks, strict=True))
    size = int(str(settings.get("sequence_parallel_size", 1)))
    return Cost(NUM_PROCESSES // size * length / seconds, peak)


def compare_lengths(lengths: list[int], folder: str) -> list[str]:
    """A table of all ways and lengths, as Markdown."""
    path = Path(folder) / "zero3_ep.json"
    content = read_deepspeed_file("ds_configs/zero3_ep.json")
    # The shipped buckets have 0.8 GB in float32, whatever the size of the model.
    content["zero_optimization"] |= {"reduce_bucket_size": 10**7}
    path.write_text(json.dumps(content))
    ways: dict[str, dict[str, object]] = {
        "rows of its own": {},
        "rows shared by two": {"sequence_parallel_size": 2},
        "the same, experts in 8 chunks": {"sequence_parallel_size": 2, "moe_chunks": 8},
    }
    lines = [
        "| tokens of a row | each process has | tokens/s | of it | memory of a step | of it |",
        "|---:|---|---:|---:|---:|---:|",
    ]
    for length in lengths:
        costs: list[Cost] = []
        for name, way in ways.items():
            began = time.monotonic()
            settings = {"deepspeed": str(path), "expert_parallel_size": 2, **way}
            costs.append(measure_cost(settings, length))
            print(f"{length}, {name}: {time.monotonic() - began:.0f} s", file=sys.stderr)
            cost, first = costs[-1], costs[0]
            lines.append(
                f"| {length:,} | {name} | {cost.tokens_per_second:,.0f} | "
                f"{cost.tokens_per_second / first.tokens_per_second:.2f} | "
                f"{cost.peak / 1e6:,.0f} MB | {cost.peak / first.peak:.2f} |"
            )
    return lines


def describe_lengths(lengths: list[int]) -> str:
    """The section of figures."""
    with tempfile.TemporaryDirectory() as folder:
        table = compare_lengths(lengths, folder)
    heading = [
        f"## Rows that ranks share: {date.today()}",
        "",
        f"`{' '.join(['python -m benchmarks.long_context', *sys.argv[1:]])}` on "
        f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, shared and noisy, torch "
        f"{version('torch')}, float32, {NUM_PROCESSES} processes of one thread, experts split over "
        f"them. {count_parameters(SHAPE).total / 1e6:.0f} M parameters, one document a row.",
        "",
    ]
    return "\n".join([*heading, *table, ""])


def stand_in(rows: Tensor, group: object, sent: list[int], received: list[int]) -> Tensor:
    """What an all-to-all of equal parts leaves, had every rank the same rows: as many."""
    assert sum(sent) == sum(received)
    return rows.contiguous()


def share_with_nobody(attention: str) -> None:
    """Let attention see the row of eight ranks, all of them this one."""
    sequence.exchange = stand_in
    plain = ALL_ATTENTION_FUNCTIONS[attention]
    group = dist.group.WORLD
    AttentionInterface.register(attention, sequence.SequenceParallelAttention(plain, group))


def run_slice(num_tokens: int, num_layers: int | None, *, is_small: bool) -> str:
    """Train steps of one of eight ranks, and report them."""
    row = SLICE_RANKS * num_tokens
    # As config/recipes/long.yaml has it.
    settings = {"activation_offload": True, "moe_chunks": SLICE_CHUNKS}
    shared = settings | {"sequence_parallel_size": SLICE_RANKS}
    num_layers = num_layers or (2 if is_small else most_layers(row, **shared))
    shape = slice_shape(num_layers, is_small=is_small)
    print(f"{num_layers} layers, {count_parameters(shape).total / 1e9:.2f} G parameters: starting")
    engine = start_slice(slice_run(row, shape, **settings))
    share_with_nobody(engine.module.config._attn_implementation)
    batch = cut_batch(make_batch(row, shape.vocab_size, seed=0), 0, SLICE_RANKS)
    measured = measure(engine, [batch], SLICE_STEPS)
    dist.destroy_process_group()
    work = Work(
        title="One GPU of eight that share a row",
        module="benchmarks.long_context",
        num_tokens=num_tokens,
        flops=model_flops(shape, num_tokens, row=row),
        note=f"{num_tokens:,} of {row:,} tokens, experts in {SLICE_CHUNKS} chunks, layers' inputs "
        "in host memory; all-to-alls stood in for by their local permutations.",
    )
    return "\n".join(report(slice_run(row, shape, **shared), measured, work))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--lengths", default="1024,2048,4096,8192", help="tokens of rows, on CPU")
    parser.add_argument("--slice", action="store_true", help="one GPU's part instead")
    parser.add_argument("--tokens", type=int, default=32768, help="of the part")
    parser.add_argument("--layers", type=int, help="of the part; default: as many as fit")
    parser.add_argument("--small", action="store_true", help="tiny widths of it, for a CPU")
    add_report_flag(parser)
    arguments = parser.parse_args()
    if not arguments.slice:
        lengths = [int(length) for length in arguments.lengths.split(",")]
        show(describe_lengths(lengths), is_kept=arguments.report)
        return
    if not dist.is_torchelastic_launched():
        parser.error("start it with `torchrun --standalone -m benchmarks.long_context --slice`")
    if not (arguments.small or torch.cuda.is_available()):
        parser.error("there is no GPU for the true widths; add --small to see that it works")
    text = run_slice(arguments.tokens, arguments.layers, is_small=arguments.small)
    show(text, is_kept=arguments.report)


if __name__ == "__main__":
    main()
