"""What people see of long work: nothing at first, then a bar or lines, then what it took."""

import io
import logging

import pytest
from rich.console import Console

from hunyuan_train import progress
from hunyuan_train.progress import show_progress

GIGABYTE = 10**9


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """A terminal that is read afterwards."""
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100)
    monkeypatch.setattr(progress, "console", console)
    return screen


def work() -> None:
    with show_progress("loading weights", 4 * GIGABYTE) as advance:
        for _ in range(3):
            advance(GIGABYTE)


def test_work_of_a_moment_shows_nothing(
    screen: io.StringIO, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        work()
    assert screen.getvalue() == caplog.text == ""


def test_a_terminal_gets_a_bar_with_bytes_done_of_all(
    screen: io.StringIO, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "QUIET_SECONDS", -1.0)
    with caplog.at_level(logging.INFO):
        work()
    assert "loading weights" in screen.getvalue()
    assert "3.0/4.0 GB" in screen.getvalue()
    assert "loading weights: 3.0 GB in 0 s" in caplog.text


def test_elsewhere_lines_tell_it(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "console", Console(file=io.StringIO()))
    monkeypatch.setattr(progress, "QUIET_SECONDS", -1.0)
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", -1.0)
    with caplog.at_level(logging.INFO):
        work()
    assert caplog.messages == [
        "loading weights: 1.0 of 4.0 GB",
        "loading weights: 2.0 of 4.0 GB",
        "loading weights: 3.0 of 4.0 GB",
        "loading weights: 3.0 GB in 0 s",
    ]
