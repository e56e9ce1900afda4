"""What a training step costs beside plain Transformers, and the loss beside the plain one.

    python -m benchmarks.step [--tokens 4096] [--loss_tokens 1024] [--document_tokens 512 4096]
        [--report]

Each row is a process of its own. Time is processor time of one thread, the best of three steps, so
that other load on the machine disturbs it little; memory is the peak of a step beside what the
process held before the model was built. Ratios are to the row that says 1.00. Ways to recompute
differ by less than that, and so take turns in one process.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from benchmarks.results import add_report_flag, show
from hunyuan_train.config.deepspeed_file import read_deepspeed_file
from hunyuan_train.config.load import build_config
from hunyuan_train.config.resolve import resolve
from hunyuan_train.config.resolved_run import Machine
from hunyuan_train.config.rules.listing import SETTINGS_ALONE
from hunyuan_train.data.batches.loader import Batch
from hunyuan_train.families.hunyuan_v1_moe import TINY
from hunyuan_train.families.tables import count_parameters
from hunyuan_train.model.activations import recompute_layers
from hunyuan_train.model.attention import PER_DOCUMENT
from hunyuan_train.model.build import build_model
from hunyuan_train.model.loss import LossHead
from hunyuan_train.model.weights import SeededWeights
from hunyuan_train.objectives.router_losses import watch_and_weigh
from hunyuan_train.objectives.sft import SFT
from hunyuan_train.parallel.assemble import assemble_engine
from hunyuan_train.parallel.engine import start_process_group
from hunyuan_train.selftest.local_ranks import run_ranks
from hunyuan_train.selftest.reference import plain_model
from hunyuan_train.trainer.step import train_step
from tests.batches import make_batch
from tests.measured import watch_memory

NUM_STEPS = 3
TIMEOUT_SECONDS = 1800.0
DOCUMENTS = 4

# Widths in the proportions of the released model, every eighth of its experts at work as there.
SHAPE = replace(
    TINY,
    vocab_size=8192,
    hidden_size=512,
    intermediate_size=384,
    num_hidden_layers=2,
    num_attention_heads=16,
    num_key_value_heads=4,
    head_dim=32,
    num_experts=32,
    moe_topk=4,
)
VOCABULARY, HEAD_HIDDEN = 128167, 512
RECOMPUTED = {"nothing": False, "selectively": "selective", "in full": True}
NUM_TURNS = 7


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one step."""

    seconds: float  # of the processor
    peak: int  # bytes
    loss: float


def measure_steps(prepare: Callable[[], Callable[[], float]]) -> Cost:
    """Build, and take some steps."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    with watch_memory() as memory:
        step = prepare()
        seconds, losses = [], []
        for _ in range(NUM_STEPS):
            began = time.process_time()
            losses.append(step())
            seconds.append(time.process_time() - began)
    return Cost(min(seconds), memory.rise, losses[0])


def measure_row(name: str, prepare: Callable[[], Callable[[], float]]) -> tuple[str, Cost]:
    """Measure in a process of its own."""
    began = time.monotonic()
    [cost] = run_ranks(
        measure_steps, 1, prepare, preload=["tests.preload"], timeout_seconds=TIMEOUT_SECONDS
    )
    print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr)
    return name, cost


def make_row(num_tokens: int) -> Batch:
    """One packed row of documents of equal length."""
    return make_batch(np.random.default_rng(0), [num_tokens // DOCUMENTS] * DOCUMENTS)


def prepare_plain(experts: str, *, is_checkpointed: bool, num_tokens: int) -> Callable[[], float]:
    """Transformers' model, its own loss and torch's AdamW."""
    source = SeededWeights(0, SHAPE.initializer_range)
    model = plain_model(SHAPE, source, attention="sdpa", experts=experts).train()
    if is_checkpointed:
        model._set_gradient_checkpointing(
            enable=True, gradient_checkpointing_func=partial(checkpoint, use_reentrant=False)
        )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    batch = make_row(num_tokens)
    ids, positions = (
        torch.from_numpy(part)[None] for part in (batch.input_ids, batch.position_ids)
    )
    labels = torch.from_numpy(batch.labels)[None]

    def step() -> float:
        # Transformers tells documents apart by positions that start again at 0.
        loss = model(input_ids=ids, position_ids=positions, labels=labels, shift_labels=labels).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def prepare_ours(settings: dict[str, object], *, num_tokens: int) -> Callable[[], float]:
    """The step of a run, with one process."""
    start_process_group(timeout_minutes=2)
    flags = {"num_processes": 1, "bf16": False, "optimizer": "adamw", **settings}
    machine = Machine(num_gpus=0, num_cores=1)
    run = resolve(build_config(flags), shape=SHAPE, machine=machine, known=SETTINGS_ALONE)
    engine = assemble_engine(run, SeededWeights(0, SHAPE.initializer_range))
    engine.train()
    routers, batch = watch_and_weigh(engine, SHAPE, run.config.model), make_row(num_tokens)
    return lambda: train_step(engine, SFT, [batch], learning_rate=1e-4, routers=routers).loss


def measure_training(num_tokens: int, folder: str) -> list[tuple[str, Cost]]:
    """Plain Transformers and ours, each in a process of its own."""
    settings = Path(folder) / "zero3_ep.json"
    content = read_deepspeed_file("ds_configs/zero3_ep.json")
    # The shipped buckets have 0.8 GB in float32, whatever the size of the model.
    content["zero_optimization"] |= {"reduce_bucket_size": 10**7}
    settings.write_text(json.dumps(content))
    split = {"deepspeed": str(settings), "expert_parallel_size": 1}
    plain = partial(prepare_plain, is_checkpointed=False, num_tokens=num_tokens)
    rows = {
        "plain Transformers, grouped_mm experts": partial(plain, "grouped_mm"),
        "the same, gradient checkpointing": partial(plain, "grouped_mm", is_checkpointed=True),
        "plain Transformers, eager experts": partial(plain, "eager"),
    }
    for name, mode in RECOMPUTED.items():
        flags = {**split, "gradient_checkpointing": mode}
        rows[f"ours, recomputed {name}"] = partial(prepare_ours, flags, num_tokens=num_tokens)
    return [measure_row(name, prepare) for name, prepare in rows.items()]


def prepare_loss(kind: str, *, num_tokens: int, label_share: float) -> Callable[[], float]:
    """Forward and backward of the output layer and the loss."""
    head = nn.Linear(HEAD_HIDDEN, VOCABULARY, bias=False)
    hidden = torch.randn(num_tokens, HEAD_HIDDEN, requires_grad=True)
    labels = torch.randint(0, VOCABULARY, (num_tokens,))
    labels[: round((1 - label_share) * num_tokens)] = -100
    LossHead.install(head)

    def plain(hidden: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(head(hidden).float(), labels, reduction="sum")

    def step() -> float:
        if kind == "plain":
            loss = plain(hidden, labels)
        elif kind == "checkpointed":
            parts = zip(hidden.split(256), labels.split(256), strict=True)
            losses = [checkpoint(plain, *part, use_reentrant=False) for part in parts]
            loss = torch.stack(losses).sum()
        else:
            positions = (labels >= 0).nonzero().flatten()
            with head.fused_cross_entropy(labels[positions]):
                loss = head(hidden[positions][None]).sum()
        loss.backward()
        head.weight.grad = hidden.grad = None
        return loss.item()

    return step


def measure_losses(num_tokens: int) -> list[tuple[str, Cost]]:
    """The plain loss, chunks under torch's checkpoint, and ours."""
    rows = {
        "plain": ("plain", 1.0),
        "chunks of 256 tokens, checkpointed": ("checkpointed", 1.0),
        "ours": ("ours", 1.0),
        "ours, a third of the tokens with labels": ("ours", 1 / 3),
    }
    costs = []
    for name, (kind, share) in rows.items():
        prepare = partial(prepare_loss, kind, num_tokens=num_tokens, label_share=share)
        costs.append(measure_row(name, prepare))
    return costs


def measure_turns(num_tokens: int) -> dict[str, float]:
    """Processor seconds of forward and backward through all layers, on one document."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    models = {}
    for name, mode in RECOMPUTED.items():
        torch.manual_seed(0)
        model = build_model(SHAPE, attention=PER_DOCUMENT, attention_dropout=0.0).train()
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=SHAPE.initializer_range)
        if mode:
            recompute_layers(model, is_selective=mode == "selective", is_offloaded=False)
        models[name] = model.model  # without the output layer
    ids = torch.arange(num_tokens)[None]
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for name in [*models] * (NUM_TURNS + 1):
        began = time.process_time()
        output = models[name](
            input_ids=ids, position_ids=ids, document_lengths=[num_tokens], use_cache=False
        )
        output.last_hidden_state.square().mean().backward()
        seconds[name].append(time.process_time() - began)
    return {name: median(turns[1:]) for name, turns in seconds.items()}


def recomputation_table(lengths: list[int]) -> list[str]:
    """A row for each way, a column for each length."""
    columns = [
        run_ranks(
            measure_turns, 1, length, preload=["tests.preload"], timeout_seconds=TIMEOUT_SECONDS
        )[0]
        for length in lengths
    ]
    heads = " | ".join(f"{length:,} tokens | time" for length in lengths)
    lines = [f"| recomputed | {heads} |", "|---" + "|---:|---:" * len(lengths) + "|"]
    for name in RECOMPUTED:
        cells = [f"{one[name]:.2f} s | {one[name] / one['in full']:.2f}" for one in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return [*lines, ""]


def table(heading: str, costs: list[tuple[str, Cost]], num_tokens: int) -> list[str]:
    """Rows as Markdown; the first is the measure."""
    first = costs[0][1]
    lines = [f"| {heading} | tokens/s | time | memory | of it | loss |", "|---" + "|---:" * 5 + "|"]
    for name, cost in costs:
        lines.append(
            f"| {name} | {num_tokens / cost.seconds:,.0f} | {cost.seconds / first.seconds:.2f} | "
            f"{cost.peak / 1e9:.2f} GB | {cost.peak / first.peak:.2f} | {cost.loss:,.5f} |"
        )
    return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokens", type=int, default=4096, help="of a step")
    parser.add_argument("--loss_tokens", type=int, default=1024, help="of the loss alone")
    parser.add_argument(
        "--document_tokens", type=int, nargs="+", default=[512, 4096], help="of recomputation"
    )
    add_report_flag(parser)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        steps = measure_training(arguments.tokens, folder)
    lines = [
        f"## Step and loss: {date.today()}",
        "",
        f"`{' '.join(['python -m benchmarks.step', *sys.argv[1:]])}` on {platform.machine()}, "
        f"{len(os.sched_getaffinity(0))} cores, shared and noisy, torch {version('torch')}, "
        f"float32, one thread. {count_parameters(SHAPE).total / 1e6:.0f} M parameters, a row of "
        f"{arguments.tokens} tokens in {DOCUMENTS} documents. In float32 the engine keeps a second "
        "copy of weights and gradients, which plain training does not.",
        "",
        *table("step", steps, arguments.tokens),
        f"Output layer and loss alone, {VOCABULARY:,} words, hidden size {HEAD_HIDDEN}, "
        f"{arguments.loss_tokens} tokens:",
        "",
        *table("loss", measure_losses(arguments.loss_tokens), arguments.loss_tokens),
        f"Forward and backward through the layers alone, one document, median of {NUM_TURNS} "
        "turns:",
        "",
        *recomputation_table(arguments.document_tokens),
    ]
    text = "\n".join(lines)
    show(text, is_kept=arguments.report)


if __name__ == "__main__":
    main()
