"""What is not to be lost is tried again until it is written, or nobody waits any longer."""

import logging
from collections.abc import Callable, Sequence

import pytest

from hunyuan_train.trainer import room
from hunyuan_train.trainer.room import Patience, write_at_last


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_pause", lambda: None)


def tries(outcomes: Sequence[str | None]) -> Callable[[], str | None]:
    return iter(outcomes).__next__


def patience(minutes: float, is_asked: bool = False) -> Patience:
    return Patience(minutes=minutes, is_asked_to_end=lambda: is_asked)


@pytest.mark.parametrize("num_faults", [0, 1, 5, 6])
def test_it_is_written_once_there_is_room(num_faults: int) -> None:
    attempt = tries([*["full"] * num_faults, None])
    assert write_at_last(attempt, "it", patience(minutes=1)) is None


def test_the_last_fault_is_told_when_nobody_waits_any_longer() -> None:
    assert write_at_last(tries(["full", *"abcdef"]), "it", patience(minutes=1)) == "f"
    assert write_at_last(tries(["full"]), "it", patience(minutes=0)) == "full"


def test_whoever_asks_for_the_end_waits_no_longer() -> None:
    assert write_at_last(tries(["full"]), "it", patience(minutes=60, is_asked=True)) == "full"


def test_what_is_waited_for_is_said_and_not_too_often(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    write_at_last(lambda: "no space left", "the checkpoint of step 7", patience(minutes=60))
    assert len(caplog.records) == 6
    assert "NOT SAVED: the checkpoint of step 7: no space left" in caplog.text
    assert "waits for 60 minutes (--wait_for_room_minutes)" in caplog.text
    assert "waits for 10 minutes" in caplog.text
