"""How a step and a start grow, counted and not timed: operators, bytes, operations, what is sent.

    python -m benchmarks.growth [--report]

Small models train on gloo with more and more tokens, experts, layers and ranks, and data sets get
more and more records. Counts are the same on every machine, however busy. Each curve has a model:
it may be constant or linear, and less is welcome. One that bends upward ends in exit code 1.
"""

import argparse
import platform
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.results import add_report_flag, show
from hunyuan_train.config.schema import DataConfig
from hunyuan_train.data.batches.loader import BatchSampler, DataShard, Position
from hunyuan_train.data.compiled.cache import prepare_dataset
from hunyuan_train.families.grammar.find import load_tokenizer
from hunyuan_train.objectives.sft import SFT
from hunyuan_train.shipped import TINY_TOKENIZER
from hunyuan_train.trainer.step import train_step
from tests.batches import SHAPE, make_batch
from tests.engines import end_engines, small_engine
from tests.ranks import run_each

TOLERANCE = 0.05  # of a value: buckets fill in steps, and shares of tokens are not quite even
SLACK = 2  # one bucket of gradients more is one reduction and one gather more
DOCUMENT = 32  # tokens

Counts = dict[str, int]  # by what is counted


@dataclass(frozen=True, kw_only=True)
class Size:
    """A model, its step and its ranks."""

    num_documents: int = 4
    num_experts: int = 8
    num_layers: int = 2
    num_ranks: int = 2

    @property
    def expert_size(self) -> int:
        """Ranks that share a set of experts: two, so that more ranks keep the same experts."""
        return min(2, self.num_ranks)


class CountingMode(TorchDispatchMode):
    """Counts every operator, the bytes that it makes, and what collectives are given."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, operator: Any, types: Any, arguments: Any = (), options: Any = None
    ) -> Any:
        result = operator(*arguments, **(options or {}))
        if operator.namespace == "c10d":
            self.counts["collectives"] += 1
            self.counts["bytes sent or received"] += sum(map(bytes_of, arguments[:2])) // 2
        elif not operator.is_view:
            self.counts["operators"] += 1
            self.counts["bytes made"] += bytes_of(result)
        return result


def bytes_of(value: Any) -> int:
    """Bytes of the tensors among values."""
    if isinstance(value, (list, tuple)):
        return sum(map(bytes_of, value))
    return value.numel() * value.element_size() if isinstance(value, Tensor) else 0


def count_step(size: Size) -> Counts:
    """What a rank does in its second step; called by every rank, of which those without work wait.

    Returns:
        the most of any rank.
    """
    torch.set_num_threads(1)
    shape = replace(SHAPE, num_experts=size.num_experts, num_hidden_layers=size.num_layers)
    engine = small_engine(stage=3, expert_size=size.expert_size, shape=shape)
    batch = make_batch(np.random.default_rng(0), [DOCUMENT] * size.num_documents)
    train_step(engine, SFT, [batch], learning_rate=1e-3)
    with CountingMode() as counting, FlopCounterMode(display=False) as flops:
        train_step(engine, SFT, [batch], learning_rate=1e-3)
    counts = {**counting.counts, "operations of products": flops.get_total_flops()}
    ranks: list[Counts] = [{}] * dist.get_world_size()
    dist.all_gather_object(ranks, counts)
    end_engines()
    return {name: max(one.get(name, 0) for one in ranks) for name in counts}


def count_records(num_records: int, folder: Path) -> Counts:
    """Calls of functions that tokenizing records, starting and a step take."""
    path = folder / f"{num_records}.jsonl"
    path.write_text(
        "".join(
            f'{{"messages": [{{"role": "user", "content": "/no_think question {number}"}}, '
            f'{{"role": "assistant", "content": "<think>\\n\\n</think>\\n<answer>\\n{number}\\n'
            '</answer>"}]}\n'
            for number in range(num_records)
        )
    )
    config = DataConfig(
        train_data_file=str(path),
        cache_dir=str(folder / f"{num_records}"),
        max_seq_length=64,
        preprocessing_num_workers=1,
    )
    tokenizer = load_tokenizer(TINY_TOKENIZER)
    counts: Counts = {}
    with counting_calls(counts, "calls to tokenize"):
        dataset = prepare_dataset(config, tokenizer)
    for packing, rows in ((True, "packed"), (False, "single")):

        def start(packing: bool = packing) -> BatchSampler:
            shard = DataShard(rows=4, num_ranks=2, rank=0)
            return BatchSampler(dataset, shard, accumulation_steps=1, seed=1, packing=packing)

        start()
        with counting_calls(counts, f"calls to start again, {rows} rows"):
            sampler = start()
        sampler.step_batches(Position())
        with counting_calls(counts, f"calls of a step, {rows} rows"):
            sampler.step_content(Position(0, 8))
            sampler.step_batches(Position(0, 8))
    return counts


@contextmanager
def counting_calls(counts: Counts, name: str) -> Any:
    """Count the calls of functions, Python's and C's, that are made inside."""
    number = 0

    def note(frame: Any, event: str, argument: Any) -> None:
        nonlocal number
        number += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        yield
    finally:
        sys.setprofile(None)
    counts[name] = number


@dataclass(frozen=True)
class Curve:
    """How one count grows."""

    grown: str  # what is made larger
    counted: str
    sizes: Sequence[int]
    values: Sequence[int]
    model: str = "linear"

    @property
    def expected(self) -> list[tuple[int, float]]:
        """Values, and what the line through the two before says of each, or, of a constant, one.

        A line that falls counts as level: what falls less and less bends upward, and nobody minds.
        """
        points = list(zip(self.sizes, self.values, strict=True))
        if self.model == "constant":
            return [(after, before) for (_, before), (_, after) in pairwise(points)]
        slopes = [max(0.0, (y - v) / (x - u)) for (u, v), (x, y) in pairwise(points)]
        return [
            (found, y + slope * (size - x))
            for (x, y), (size, found), slope in zip(points[1:], points[2:], slopes, strict=False)
        ]

    @property
    def bend(self) -> float:
        """By which share a value exceeds what is expected, at most."""
        return max(found / max(line, 1) - 1 if found else 0.0 for found, line in self.expected)

    @property
    def is_bent(self) -> bool:
        """Whether it grows faster than its model."""
        return any(found > line * (1 + TOLERANCE) + SLACK for found, line in self.expected)


def make_curves(
    grown: str, sizes: Sequence[int], counts: Sequence[Counts], constant: Sequence[str] = ()
) -> list[Curve]:
    """A curve for everything that was counted."""
    return [
        Curve(
            grown,
            name,
            sizes,
            [one[name] for one in counts],
            "constant" if name in constant else "linear",
        )
        for name in counts[0]
    ]


def grow_steps(
    tokens: Sequence[int], experts: Sequence[int], layers: Sequence[int], ranks: Sequence[int]
) -> list[Curve]:
    """Steps with more of one thing; `tokens` are documents of some tokens each."""
    curves = []
    for grown, field, numbers in (
        (f"documents of {DOCUMENT} tokens", "num_documents", tokens),
        ("experts", "num_experts", experts),
        ("layers", "num_layers", layers),
    ):
        if numbers:
            cases = [(Size(**{field: number}),) for number in numbers]
            counts = [ranks_counts[0] for ranks_counts in run_each(count_step, 2, cases)]
            curves += make_curves(grown, numbers, counts)
    if ranks:
        counts = [run_each(count_step, one, [(Size(num_ranks=one),)])[0][0] for one in ranks]
        # A rank alone sends nothing, so what two send is where the curve begins.
        curves += make_curves("ranks", ranks, counts)
    return curves


def grow_records(numbers: Sequence[int]) -> list[Curve]:
    """Data sets of more records."""
    with tempfile.TemporaryDirectory() as name:
        count_records(64, Path(name))  # what is made once in a process counts for none of them
        counts = [count_records(number, Path(name)) for number in numbers]
    constant = [name for name in counts[0] if "of a step" in name]
    return make_curves("records", numbers, counts, constant)


def describe(curves: Sequence[Curve]) -> list[str]:
    """The curves as Markdown, those of one thing in a table."""
    lines: list[str] = []
    grown = ""
    for curve in curves:
        if curve.grown != grown:
            grown = curve.grown
            sizes = " | ".join(f"{size:,}" for size in curve.sizes)
            lines += ["", f"| {grown} | {sizes} | model | above its line by at most |"]
            lines += [f"|---|{'---:|' * len(curve.sizes)}---|---:|"]
        values = " | ".join(f"{value:,}" for value in curve.values)
        verdict = " **bends upward**" if curve.is_bent else ""
        lines += [f"| {curve.counted} | {values} | {curve.model} | {curve.bend:+.1%}{verdict} |"]
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_report_flag(parser)
    arguments = parser.parse_args()
    curves = grow_steps((4, 8, 16, 32), (8, 16, 32, 64), (1, 2, 4, 8), (1, 2, 4, 8))
    curves += grow_records((500, 1000, 2000, 4000))
    lines = [
        f"## Growth: {date.today()}",
        "",
        f"`{' '.join(['python -m benchmarks.growth', *sys.argv[1:]])}` on {platform.machine()}, "
        f"torch {torch.__version__}: counts of one rank and step, ZeRO-3, experts over 2 of 2 "
        "ranks unless ranks are what grows. A value may lie above the line through the two "
        f"before by {TOLERANCE:.0%} and {SLACK}.",
        *describe(curves),
        "",
    ]
    show("\n".join(lines), is_kept=arguments.report)
    return int(any(curve.is_bent for curve in curves))


if __name__ == "__main__":
    sys.exit(main())
