"""Files of a run that is going on are read by their offset, and long curves in buckets."""

import json
import time
from pathlib import Path

import numpy as np
import pytest

from hunyuan_train.report import metric_table
from hunyuan_train.report.buckets import make_buckets
from hunyuan_train.report.content import describe_curves
from hunyuan_train.report.log_file import LogFile
from hunyuan_train.report.metric_table import MetricTable
from hunyuan_train.report.page import describe_overview
from hunyuan_train.report.record import RunRecord
from hunyuan_train.report.watched import WatchedRuns
from tests.report.runs import write_lines


def lines(first: int, last: int) -> list[dict]:
    return [{"step": step, "loss": 1 / step} for step in range(first, last + 1)]


def append(path: Path, rows: list[dict], more: str = "") -> None:
    with path.open("a") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows) + more)


def losses(table: MetricTable) -> dict[int, float]:
    table.read_all()
    steps, values = table.columns.series("loss")
    return dict(zip(steps.tolist(), values.tolist(), strict=True))


def test_only_what_is_new_is_read_and_a_half_written_line_waits(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    table = MetricTable(tmp_path)
    assert losses(table) == {}
    append(path, lines(1, 3), '{"step": 4, "lo')
    assert list(losses(table)) == [1, 2, 3]
    offset = table.file.offset
    append(path, [], 'ss": 0.25}\n')
    append(path, [{"step": 5, "eval_loss": 2.0}])
    assert list(losses(table)) == [1, 2, 3, 4]
    assert table.file.offset > offset
    assert table.columns.last("eval_loss") == 2.0


@pytest.mark.parametrize("kept", [0, 2, 4])
def test_a_resumed_run_that_has_dropped_lines_is_read_anew(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "metrics.jsonl"
    table = MetricTable(tmp_path)
    append(path, lines(1, 5))
    losses(table)
    whole = path.read_text().splitlines(keepends=True)
    path.write_text("".join(whole[:kept]))
    append(path, [{"step": step, "loss": 9.0} for step in range(kept + 1, 9)])
    found = losses(table)
    assert list(found) == list(range(1, 9))
    assert found[8] == 9.0
    assert found[kept + 1] == 9.0


def test_an_amended_last_line_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append(path, lines(1, 3))
    table = MetricTable(tmp_path)
    losses(table)
    write_lines(path, [*lines(1, 2), {"step": 3, "loss": 1 / 3, "checkpoint_step": 3}])
    losses(table)
    assert table.columns.last("checkpoint_step") == 3
    assert table.columns.num_rows == 3


def test_damaged_lines_are_left_out_and_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append(path, lines(1, 2), '{"step": 3, "loss": "low"}\n{"step": 3}, {"step": 3}\n')
    append(path, lines(4, 5))
    table = MetricTable(tmp_path)
    assert list(losses(table)) == [1, 2, 4, 5]
    assert [fault.partition("(")[0].split(", ")[-2] for fault in table.faults] == [
        "line 3",
        "line 4",
    ]


def test_a_long_file_is_sampled_first_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metric_table, "SAMPLED_ABOVE_BYTES", 1000)
    monkeypatch.setattr(metric_table, "NUM_SAMPLED", 50)
    append(tmp_path / "metrics.jsonl", lines(1, 40_000))
    run = RunRecord(tmp_path)
    run.read_on()
    sample = run.metrics.sample
    assert sample is not None
    assert 20 < sample.num_rows <= 3001
    steps, values = run.metrics.columns.series("loss")
    assert np.all(np.diff(steps) > 0)
    assert steps[-1] == 40_000
    assert values == pytest.approx(1 / steps)
    assert run.metrics.share_read < 0.9
    while run.read_on():
        pass
    assert run.metrics.sample is None
    assert run.metrics.columns.num_rows == 40_000


def test_a_bucket_keeps_mean_and_extremes(tmp_path: Path) -> None:
    steps, values = np.arange(10_000), np.ones(10_000)
    values[7777] = 50.0
    values[100:200] = np.inf
    curve = make_buckets(steps, values, most=100)
    assert curve.lines_each == 100
    assert len(curve.steps) == 100
    assert curve.steps[-1] == 9999
    assert np.isnan(curve.mean[1])
    assert curve.high[77] == 50.0
    assert curve.low[77] == 1.0
    assert curve.mean[77] == pytest.approx(1.49)
    near = make_buckets(steps, values, first=7000, last=7100, most=200)
    assert near.lines_each == 1
    assert (near.steps[0], near.steps[-1]) == (6999, 7101)  # lines reach the edges
    assert near.to_json().keys() == {"steps", "mean", "lines_each"}
    assert make_buckets(steps[:0], values[:0], most=5).to_json()["steps"] == []


def test_warnings_are_counted_and_the_tail_is_short(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    text = "".join(
        f"2026-03-02 10:00:{number % 60:02d},000 {level} hunyuan_train.x: text {kind}\n"
        for number in range(2000)
        for level, kind in (("INFO", number), ("WARNING", "twice"))
    )
    (tmp_path / "log" / "rank0.txt").write_text(text)
    log = LogFile(tmp_path)
    while log.read_on():
        pass
    [warning] = log.warnings.values()
    assert (warning.text, warning.count) == ("text twice", 2000)
    tail = log.tail()
    assert tail[-1].endswith("text twice")
    assert all(line.startswith("2026") for line in tail)
    assert len("\n".join(tail)) < 2**15


@pytest.mark.slow
def test_a_run_of_a_million_lines_opens_in_two_seconds(tmp_path: Path) -> None:
    rest = json.dumps({f"seconds_{number}": 0.123456789 for number in range(20)})[1:]
    with (tmp_path / "metrics.jsonl").open("w") as file:
        for start in range(0, 10**6, 1000):
            steps = range(start + 1, start + 1001)
            file.write("".join(f'{{"step": {step}, "loss": {1 / step}, {rest}\n' for step in steps))
    began = time.perf_counter()
    runs = WatchedRuns([tmp_path]).current()
    overview = describe_overview(runs, time.time())
    curves = describe_curves(runs[tmp_path.name], most=500)
    assert time.perf_counter() - began < 2
    assert overview["runs"][0]["read"]["is_sample"]
    assert overview["runs"][0]["state"]["step"] == 10**6
    assert len(curves["loss"]["steps"]) > 300
