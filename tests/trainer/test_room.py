"""What is not to be lost is tried again until it is written, or nobody waits any longer."""

import logging
import signal
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import pytest

from hunyuan_train.config.schema import RunConfig
from hunyuan_train.config.settings import with_settings
from hunyuan_train.trainer import room
from hunyuan_train.trainer.interrupt import StopRequest
from hunyuan_train.trainer.loop import Trainer, wait_at_end
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


def test_whoever_asks_for_the_end_waits_for_one_more_try() -> None:
    asked = patience(minutes=60, is_asked=True)
    assert write_at_last(tries(["full", "still full"]), "it", asked) == "still full"
    assert write_at_last(tries(["full", None]), "it", asked) is None


def a_trainer(*, stop_timeout_seconds: float, wait_for_room_minutes: float) -> Trainer:
    config = with_settings(
        RunConfig(),
        stop_timeout_seconds=stop_timeout_seconds,
        wait_for_room_minutes=wait_for_room_minutes,
    )
    saver = SimpleNamespace(seconds_of_last=5.0)
    engine = SimpleNamespace(device="cpu")
    return SimpleNamespace(config=config, engine=engine, checkpointer=saver)  # type: ignore[return-value]


def stopped(*, seconds_ago: float) -> StopRequest:
    now = time.monotonic()
    return StopRequest(now, 0.0, received=signal.SIGTERM, received_at=now - seconds_ago)


@pytest.mark.parametrize(
    ("seconds_ago", "stop_timeout", "room_minutes", "minutes", "setting"),
    [
        (0, 600, 60, 9.5, "stop_timeout_seconds"),  # two tries of 15 s in reserve
        (300, 600, 60, 4.5, "stop_timeout_seconds"),
        (0, 600, 5, 5, "wait_for_room_minutes"),
        (0, 0, 60, 0, "stop_timeout_seconds"),
    ],
)
def test_a_stopped_run_promises_no_longer_wait_than_its_agent_allows(
    seconds_ago: float, stop_timeout: float, room_minutes: float, minutes: float, setting: str
) -> None:
    trainer = a_trainer(stop_timeout_seconds=stop_timeout, wait_for_room_minutes=room_minutes)
    found = wait_at_end(trainer, stopped(seconds_ago=seconds_ago))
    assert found.minutes == pytest.approx(minutes, abs=0.02)
    assert found.setting == setting


def test_tries_that_take_long_end_with_the_time_of_the_stop() -> None:
    trainer = a_trainer(stop_timeout_seconds=600, wait_for_room_minutes=60)
    request = stopped(seconds_ago=0)
    found = wait_at_end(trainer, request)
    assert not found.is_asked_to_end()
    request.received_at -= 580
    assert found.is_asked_to_end()


def test_a_run_that_nobody_stopped_waits_as_it_was_told_until_somebody_does() -> None:
    trainer = a_trainer(stop_timeout_seconds=600, wait_for_room_minutes=60)
    request = StopRequest(time.monotonic(), 0.0)
    found = wait_at_end(trainer, request)
    assert (found.minutes, found.setting) == (60, "wait_for_room_minutes")
    assert not found.is_asked_to_end()
    request.received = signal.SIGINT
    assert found.is_asked_to_end()


def test_what_is_waited_for_is_said_and_not_too_often(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    write_at_last(lambda: "no space left", "the checkpoint of step 7", patience(minutes=60))
    assert len(caplog.records) == 6
    assert "NOT SAVED: the checkpoint of step 7: no space left" in caplog.text
    assert "waits for 60 minutes (--wait_for_room_minutes)" in caplog.text
    assert "waits for 10 minutes" in caplog.text
