"""Metrics go on where a resumed run does, in the file and in the tracker."""

import json
import time
from collections.abc import Callable
from contextlib import suppress
from math import inf, nan
from pathlib import Path

import pytest

from hunyuan_train.json_lines import JsonLines, NoLines
from hunyuan_train.trainer.metrics import MetricsLog, open_metrics


def read_untimed(folder: Path) -> list[dict]:
    """The lines without the time at which each was written."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all(abs(line.pop("time") - time.time()) < 60 for line in lines)
    return lines


def test_steps_that_are_done_again_are_logged_once(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, JsonLines(tmp_path / "metrics.jsonl"), [])
    for step in (1, 2, 3, 4):
        log.log({"loss": float(step)}, step)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')  # cut off by a kill
    log.forget_after(2)
    log.log({"loss": 9.0}, 3)
    assert read_untimed(tmp_path) == [
        {"step": 1, "loss": 1.0},
        {"step": 2, "loss": 2.0},
        {"step": 3, "loss": 9.0},
    ]
    assert list(tmp_path.iterdir()) == [tmp_path / "metrics.jsonl"]


def test_a_full_disk_ends_nothing_and_loses_no_line(
    make_disk: Callable[[float], Path], caplog: pytest.LogCaptureFixture
) -> None:
    disk = make_disk(0.1)
    log = JsonLines(disk / "metrics.jsonl")
    log.append({"step": 1})
    with suppress(OSError):
        (disk / "other").write_bytes(bytes(10**6))
    for step in range(2, 1000):  # fill the file's own last block, too
        log.append({"step": step, "loss": 1 / 3})
    assert caplog.text.count("metrics.jsonl cannot be written: No space left on device") == 1
    written = (disk / "metrics.jsonl").read_text()
    assert written.endswith("}\n"), "no line is written in half"
    assert len(written.splitlines()) < 999
    log.forget_after(998)
    (disk / "other").unlink()
    log.append({"step": 999, "loss": 0.5})
    lines = [json.loads(line) for line in (disk / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 1000))


def test_what_is_known_late_joins_the_line_of_its_step(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, JsonLines(tmp_path / "metrics.jsonl"), [])
    log.amend({"checkpoint_step": 1}, 1)  # there is no line yet
    log.log({"loss": 2.0}, 2)
    log.amend({"checkpoint_step": 1}, 1)  # that step was not logged
    log.log({"loss": 3.0}, 4)
    log.amend({"checkpoint_step": 4}, 4)
    assert read_untimed(tmp_path) == [
        {"step": 2, "loss": 2.0},
        {"step": 4, "loss": 3.0, "checkpoint_step": 4},
    ]


def test_what_json_lacks_is_null(tmp_path: Path) -> None:
    MetricsLog(tmp_path, JsonLines(tmp_path / "metrics.jsonl"), []).log(
        {"loss": nan, "grad_norm": inf, "a": 1}, 1
    )
    assert read_untimed(tmp_path) == [{"step": 1, "loss": None, "grad_norm": None, "a": 1}]


def test_a_file_that_is_not_there_has_nothing_to_forget(tmp_path: Path) -> None:
    JsonLines(tmp_path / "none.jsonl").forget_after(3)
    assert not list(tmp_path.iterdir())


def test_a_rank_without_a_file_leaves_nothing(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, NoLines(), [])
    log.log({"loss": 2.0}, 1)
    log.amend({"checkpoint_step": 1}, 1)
    log.show_load([[0.5, 0.5]], 1)
    log.alert("routers", "diverged")
    log.forget_after(0)
    log.finish()
    assert log.notes() == {}
    assert not list(tmp_path.iterdir())


def test_lines_are_read_as_they_were_written_but_for_one_cut_off(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "lines.jsonl")
    assert lines.read() == NoLines().read() == []
    entries = [{"step": 1, "samples": ["a:1"]}, {"step": 2, "loss": 1 / 3}]
    for entry in entries:
        lines.append(entry)
    with lines.path.open("a") as file:
        file.write('{"step": 3, "lo')
    assert lines.read() == entries


def test_a_resumed_run_goes_on_with_the_same_wandb_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    notes: dict[str, str] = {}
    known = []
    for first_step in (1, 3):  # the second process starts before the first one's last step
        metrics = open_metrics(
            tmp_path, NoLines(), report_to="wandb", run_name="run", settings={"a": 1}, notes=notes
        )
        for step in (first_step, first_step + 1, first_step + 2):
            metrics.log({"loss": 1.0}, step)
        notes = metrics.notes()
        metrics.finish()
        known.append(notes["wandb_run_id"])
    assert known[0] == known[1]
    folders = list((tmp_path / "wandb").glob("offline-run-*"))
    assert folders
    # wandb numbers a second folder of the same second: offline-run-TIME-ID-1.
    assert all(f"-{known[0]}" in folder.name for folder in folders)
    assert open_metrics(
        tmp_path, NoLines(), report_to="none", run_name="run", settings={}, notes={}
    ).notes() == {}  # fmt: skip


def test_lines_that_a_power_loss_has_damaged_end_no_run(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    damaged = b'\0\0\0\n{"step": "x"}\n[]\n\xff\n' + b"[" * 10**5 + b"\n"
    path.write_bytes(b'{"step": 1}\n' + damaged + b'{"step": 2}\n{"step": 3}\n')
    lines = JsonLines(path)
    lines.forget_after(2)
    assert lines.read() == [{"step": 1}, {"step": 2}]
    lines.amend({"step": 2, "loss": 1.0})
    assert lines.read() == [{"step": 1}, {"step": 2, "loss": 1.0}]
    assert damaged in path.read_bytes()  # what nobody understands is nobody's to delete
