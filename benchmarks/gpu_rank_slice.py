"""One GPU of eight: what a rank holds and computes under expert parallelism, lean optimizer.

    torchrun --standalone -m benchmarks.gpu_rank_slice [--layers 16] [--report]

A rank of 8 keeps 8 of the 64 experts, and receives as many token slots as it sends: with balanced
routing 4096 tokens x 8 slots, 4096 for each of its experts. This is the released model at its true
widths with those 8 experts, of which every token takes all 8: the same products of the same sizes,
under the same engine, optimizer and step. What differs: the two all-to-alls of a layer move nothing
(their local permutations remain); the router has 8 columns instead of 64 (0.1 % of the work); and
what eight ranks would share lies whole on this one (attention, shared experts, embedding), so that
fewer than 32 layers may fit; time is per layer, so a fit of fewer layers is as telling.
"""

import argparse
import platform
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date
from importlib.metadata import version

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.phases import OPTIMIZER, PhaseClock, watch_phases
from benchmarks.results import add_report_flag, show
from hunyuan_train.config.deepspeed_file import choose_file
from hunyuan_train.config.resolve import resolve
from hunyuan_train.config.resolved_run import Machine, ResolvedRun
from hunyuan_train.config.schema import RunConfig
from hunyuan_train.config.settings import with_settings
from hunyuan_train.data.batches.loader import Batch
from hunyuan_train.families.hunyuan_v1_moe import A13B
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.families.tables import count_parameters
from hunyuan_train.families.tensors import StoredTensor
from hunyuan_train.objectives.sft import SFT
from hunyuan_train.parallel.assemble import assemble_engine
from hunyuan_train.parallel.engine import peak_memory_gib, start_process_group
from hunyuan_train.planner.machine import GPUS
from hunyuan_train.planner.memory import plan_memory
from hunyuan_train.trainer.step import train_step

NUM_RANKS = 8
LEARNING_RATE = 1e-5
WARM_UP_STEPS = 3
CONTEXT_BYTES = 1_500_000_000  # the driver's, which torch does not see
TILE = 2**22  # random weights are one tile over and over: the numbers do not matter, their bits do


@dataclass(frozen=True, slots=True)
class TiledWeights:
    """Weights that cost no time to draw; a `WeightSource`."""

    tile: Tensor  # [TILE], bfloat16

    def read(self, tensor: StoredTensor, start: int, stop: int) -> Tensor:
        """Elements [start, stop): ones for norms, the tile repeated else."""
        if len(tensor.shape) == 1:
            return torch.ones(stop - start, dtype=torch.bfloat16)
        first = start % TILE
        repeated = self.tile.repeat(-(-(first + stop - start) // TILE))
        return repeated[first : first + stop - start]


@dataclass(frozen=True, slots=True)
class Measured:
    """What came out."""

    step_seconds: float  # median, one optimizer step
    optimizer_seconds: float
    phase_seconds: dict[str, float]  # of one step that was watched, which costs it a little
    resting_bytes: int  # between two steps
    peak_bytes: int
    reserved_bytes: int  # by torch's allocator, at most


def slice_shape(num_layers: int, *, is_small: bool) -> ModelShape:
    """What one of eight ranks computes with; small widths for a machine without a GPU."""
    num_local = A13B.num_experts // NUM_RANKS
    shape = replace(
        A13B, num_hidden_layers=num_layers, num_experts=num_local, moe_topk=A13B.moe_topk
    )
    if not is_small:
        return shape
    return replace(
        shape,
        vocab_size=1024,
        hidden_size=128,
        intermediate_size=96,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=16,
        pad_token_id=None,
        eos_token_id=None,
        eod_token_id=None,
    )


def slice_run(num_tokens: int, shape: ModelShape, **settings) -> ResolvedRun:
    """The run: one process with the expert-parallel layer and the lean optimizer."""
    usual = {
        "model_name_or_path": "a13b",
        "max_seq_length": num_tokens,
        "bf16": True,
        "optimizer": "lean",
        "learning_rate": LEARNING_RATE,
        "num_processes": 1,
        "expert_parallel_size": 1,
        "deepspeed": choose_file(is_split=True, is_offloaded=False),
    }
    machine = Machine(num_gpus=int(torch.cuda.is_available()), num_cores=1)
    config = with_settings(RunConfig(), **usual | settings)
    # By no rule: a slice may stand for ranks that are not there.
    return resolve(config, shape=shape, machine=machine, known=())


def planned_peak(run: ResolvedRun) -> int:
    """The plan's peak of torch's allocator for this very run, its experts alike busy, in bytes."""
    memory = plan_memory(run, imbalance=1.0)
    return memory.allocated_peak if run.is_on_gpu else memory.process_peak


def most_layers(num_tokens: int, **settings) -> int:
    """As many layers as the plan says fit the GPU, which nothing has been put on yet."""
    free, _ = torch.cuda.mem_get_info()
    room = 0.94 * free - CONTEXT_BYTES  # blocks that torch rounds up, kernels loaded later
    fitting = [
        layers
        for layers in range(1, A13B.num_hidden_layers + 1)
        if planned_peak(slice_run(num_tokens, slice_shape(layers, is_small=False), **settings))
        <= room
    ]
    if not fitting:
        raise SystemExit(f"one layer needs more than the {free / 1e9:.0f} GB that are free")
    return fitting[-1]


def start_slice(run: ResolvedRun):
    """The engine, built as a run builds it, on weights out of nowhere."""
    start_process_group(timeout_minutes=10)
    generator = torch.Generator().manual_seed(0)
    tile = torch.randn(TILE, generator=generator).mul(A13B.initializer_range).bfloat16()
    engine = assemble_engine(run, TiledWeights(tile))
    engine.train()
    return engine


def make_batch(num_tokens: int, vocab_size: int, seed: int) -> Batch:
    """One row, one document: the most work for attention."""
    tokens = np.random.default_rng(seed).integers(0, vocab_size, num_tokens + 1)
    return Batch(
        input_ids=tokens[:-1].astype(np.int64),
        position_ids=np.arange(num_tokens),
        labels=tokens[1:].astype(np.int64),
        loss_weights=np.ones(num_tokens, dtype=np.float32),
        spans=np.ones(num_tokens, dtype=np.uint8),
        modes=np.zeros(1, dtype=np.uint8),
        cu_seqlens=np.array([0, num_tokens], dtype=np.int32),
        sample_ids=np.zeros(1, dtype=np.int64),
    )


def measure(engine, batches: list[Batch], num_steps: int) -> Measured:
    """Time steps, then one more with marks in it."""
    clock = PhaseClock()
    watch_phases(engine.module, clock)
    update, updates = engine.step, []

    def timed_update() -> None:
        clock.mark("enter", OPTIMIZER)
        started = now()
        update()
        updates.append(now() - started)
        clock.mark("leave", OPTIMIZER)

    engine.step = timed_update
    steps = []
    for _ in range(WARM_UP_STEPS + num_steps):
        started = now()
        train_step(engine, SFT, batches, learning_rate=LEARNING_RATE)
        steps.append(now() - started)
    peak, resting = peak_bytes(), held_bytes()
    clock.is_on = True
    clock.mark("start", "")
    train_step(engine, SFT, batches, learning_rate=LEARNING_RATE)
    clock.mark("end", "")
    return Measured(
        step_seconds=float(np.median(steps[WARM_UP_STEPS:])),
        optimizer_seconds=float(np.median(updates[WARM_UP_STEPS:])),
        phase_seconds=clock.seconds(),
        resting_bytes=resting,
        peak_bytes=peak,
        reserved_bytes=torch.cuda.max_memory_reserved() if torch.cuda.is_available() else 0,
    )


def now() -> float:
    """The time when the GPU has done all that it was told."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def held_bytes() -> int:
    """What torch holds on the GPU; nothing is known of a CPU."""
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else 0


def peak_bytes() -> int:
    """The most it, or this process on a CPU, has held."""
    return int(peak_memory_gib() * 2**30)


def model_flops(shape: ModelShape, num_tokens: int, *, row: int = 0) -> float:
    """Operations that one micro-step must do, without what is recomputed.

    The tokens are those of a row, or this rank's of a longer row that ranks share.

    6 for each token and active weight (2 forward, 4 backward; the embedding is counted once, as the
    output layer), and the products of attention, of which causality leaves half.
    """
    width = shape.num_attention_heads * shape.head_dim
    attention = 12 * shape.num_hidden_layers * width * (row or num_tokens) / 2
    return num_tokens * (6 * count_parameters(shape).active + attention)


def peak_flops() -> tuple[str, float]:
    """The GPU's name, and its bfloat16 rate by data sheet; infinity where it is not known."""
    if not torch.cuda.is_available():
        return f"CPU, {torch.get_num_threads()} threads", float("inf")
    name = torch.cuda.get_device_name()
    known = [gpu.bf16_flops for key, gpu in GPUS.items() if key in name.lower()]
    return name, known[0] if known else float("inf")


@dataclass(frozen=True, slots=True)
class Work:
    """What a step did, for the report."""

    title: str
    module: str  # of the benchmark
    num_tokens: int  # of a step
    flops: float  # of a step, without what is recomputed
    note: str  # on the sizes, and what is stood in for


def report(run: ResolvedRun, measured: Measured, work: Work) -> Iterator[str]:
    """Markdown, line by line."""
    shape = run.shape
    name, peak = peak_flops()
    num_tokens, flops = work.num_tokens, work.flops
    seconds = measured.step_seconds
    passes = seconds - measured.optimizer_seconds
    share = A13B.num_hidden_layers / shape.num_hidden_layers
    planned = planned_peak(run)
    command = " ".join([f"torchrun --standalone -m {work.module}", *sys.argv[1:]])
    yield f"## {work.title}: {date.today()}\n"
    yield (
        f"`{command}` on {name}, Python {platform.python_version()}, torch {version('torch')}, "
        f"deepspeed {version('deepspeed')}. {shape.num_hidden_layers} of 32 layers, "
        f"{shape.num_experts} local experts, {work.note}\n"
    )
    yield "| | |"
    yield "|---|---:|"
    yield f"| step | {seconds:.3f} s |"
    yield f"| optimizer | {measured.optimizer_seconds:.3f} s |"
    yield f"| tokens/s | {num_tokens / seconds:,.0f} |"
    yield f"| tokens/s x layers / 32 | {num_tokens / seconds / share:,.0f} |"
    yield f"| TFLOP/s, whole step | {flops / seconds / 1e12:,.2f} |"
    yield f"| TFLOP/s, forward and backward | {flops / passes / 1e12:,.2f} |"
    if torch.cuda.is_available():
        yield f"| MFU, whole step | {flops / seconds / peak:.1%} |"
        yield f"| MFU, forward and backward | {flops / passes / peak:.1%} |"
        yield f"| held between steps | {measured.resting_bytes / 2**30:.2f} GiB |"
        free, total = torch.cuda.mem_get_info()
        yield f"| reserved by the allocator | {measured.reserved_bytes / 2**30:.2f} GiB |"
        yield f"| taken of the GPU in all | {(total - free) / 2**30:.2f} GiB |"
    yield f"| peak | {measured.peak_bytes / 2**30:.2f} GiB |"
    yield f"| planned peak | {planned / 2**30:.2f} GiB |"
    yield f"| peak / planned | {measured.peak_bytes / planned:.3f} |\n"
    total = sum(measured.phase_seconds.values())
    yield "| part, with its backward pass and recomputation | s | share |"
    yield "|---|---:|---:|"
    for phase, spent in sorted(measured.phase_seconds.items(), key=lambda pair: -pair[1]):
        yield f"| {phase} | {spent:.4f} | {spent / total:.1%} |"
    yield ""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layers", type=int, help="default: as many as fit, by the plan")
    parser.add_argument("--tokens", type=int, default=4096, help="of one row")
    parser.add_argument("--steps", type=int, default=10, help=f"timed, after {WARM_UP_STEPS} more")
    parser.add_argument("--accumulation", type=int, default=1, help="micro-steps in a step")
    parser.add_argument("--small", action="store_true", help="tiny widths, for a CPU")
    parser.add_argument("--deepspeed", help="another file than ds_configs/zero3_ep.json")
    add_report_flag(parser)
    arguments = parser.parse_args()
    if not dist.is_torchelastic_launched():
        parser.error("start it with `torchrun --standalone -m benchmarks.gpu_rank_slice`")
    if not (arguments.small or torch.cuda.is_available()):
        parser.error("there is no GPU for the true widths; add --small to see that it works")
    settings = {"gradient_accumulation_steps": arguments.accumulation}
    if arguments.deepspeed:
        settings["deepspeed"] = arguments.deepspeed
    num_layers = arguments.layers or (
        2 if arguments.small else most_layers(arguments.tokens, **settings)
    )
    shape = slice_shape(num_layers, is_small=arguments.small)
    print(f"{num_layers} layers, {count_parameters(shape).total / 1e9:.2f} G parameters: starting")
    run = slice_run(arguments.tokens, shape, **settings)
    engine = start_slice(run)
    batches = [
        make_batch(arguments.tokens, shape.vocab_size, seed)
        for seed in range(arguments.accumulation)
    ]
    measured = measure(engine, batches, arguments.steps)
    dist.destroy_process_group()
    work = Work(
        title="One GPU of eight",
        module="benchmarks.gpu_rank_slice",
        num_tokens=arguments.accumulation * arguments.tokens,
        flops=arguments.accumulation * model_flops(shape, arguments.tokens),
        note=f"{arguments.tokens:,} tokens, {arguments.accumulation} micro-steps a step; "
        "all-to-alls stood in for by their local permutations.",
    )
    text = "\n".join(report(run, measured, work))
    show(text, is_kept=arguments.report)


if __name__ == "__main__":
    main()
