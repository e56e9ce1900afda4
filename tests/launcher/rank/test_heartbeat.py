"""What a rank leaves for its agent, and that leaving it never costs the run."""

import time

import pytest

from hunyuan_train.launcher.rank import heartbeat as signs_module
from hunyuan_train.launcher.rank.heartbeat import Heartbeat, Progress, announce_rank, read_progress


@pytest.fixture
def heartbeat(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "3")
    return Heartbeat(tmp_path)


def test_each_report_is_told_at_once(heartbeat, tmp_path):
    heartbeat.report(0, "loading")
    assert read_progress(tmp_path) == {3: Progress(0, "loading", 1)}
    heartbeat.report(7, "training")
    assert read_progress(tmp_path) == {3: Progress(7, "training", 2)}


def test_parts_of_work_are_told_now_and_then_however_many_there_are(
    heartbeat, tmp_path, monkeypatch
):
    monkeypatch.setattr(signs_module, "TELL_SECONDS", 0.2)
    heartbeat.report(7, "exporting")
    began = time.monotonic()
    while time.monotonic() - began < 1:
        heartbeat.moved_on()
    (progress,) = read_progress(tmp_path).values()
    assert (progress.step, progress.doing) == (7, "exporting")
    assert 2 <= progress.num_moves <= 6


def test_a_full_disk_is_said_and_ends_nothing(heartbeat, monkeypatch, caplog):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(signs_module, "_write_whole", fail)
    heartbeat.report(1, "training")
    assert "No space left on device" in caplog.text


def test_without_a_guard_nothing_is_left(monkeypatch):
    monkeypatch.delenv("HUNYUAN_TRAIN_NODE_FOLDER", raising=False)
    monkeypatch.delenv("RANK", raising=False)
    announced = announce_rank()
    announced.report(1, "training")
    assert announced.progress == Progress(1, "training", 1)
