"""Chosen steps are traced on every rank, with a table that sums up the collectives."""

import gzip
import json
from pathlib import Path

import pytest

from hunyuan_train.config.rules.logs import profiled_steps
from hunyuan_train.errors import ConfigError
from hunyuan_train.objectives.sft import SFT
from hunyuan_train.trainer.profiler import StepProfiler
from hunyuan_train.trainer.step import train_step
from tests.batches import global_batch
from tests.engines import my_share, small_engine
from tests.ranks import run_ranks


def train_profiled(folder: Path) -> None:
    engine = small_engine(stage=3, expert_size=2)
    profiler = StepProfiler(2, 3, folder)
    for step in range(1, 5):
        with profiler.step(step):
            train_step(engine, SFT, my_share(global_batch(step, 2)), learning_rate=1e-3)


def test_the_trace_and_the_table_of_each_rank_are_written(tmp_path: Path) -> None:
    run_ranks(train_profiled, 2, tmp_path)
    for rank in range(2):
        with gzip.open(tmp_path / "profile" / f"rank{rank}.json.gz", "rt") as file:
            names = {event.get("name") for event in json.load(file)["traceEvents"]}
        assert "aten::mm" in names
        text = (tmp_path / "profile" / f"rank{rank}.txt").read_text()
        head = text.splitlines()[0]
        assert head.startswith("steps 2 to 3: ")
        assert float(head.split(" s of it")[0].rsplit(" ", 1)[1]) > 0
        assert "aten::" in text


@pytest.mark.parametrize(("text", "steps"), [(None, None), ("3", (3, 3)), ("10-12", (10, 12))])
def test_steps_are_named_singly_or_in_a_row(text: str | None, steps: tuple | None) -> None:
    assert profiled_steps(text) == steps


@pytest.mark.parametrize("text", ["0", "5-3", "a", "1-2-3", ""])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="such as 10-12"):
        profiled_steps(text)
