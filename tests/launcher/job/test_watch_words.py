"""What a watch says, and what it takes for insisting."""

import signal
from pathlib import Path

import pytest
from rich.console import Console

from hunyuan_train.config.launch_schema import LaunchConfig
from hunyuan_train.launcher.job import watch
from hunyuan_train.launcher.job.watch import Watch, show_standings


class Order:
    """A node and a console in one, which note what comes first."""

    is_terminal = False

    def __init__(self) -> None:
        self.noted: list[str] = []
        self.progress: dict[int, object] = {}

    def send(self, order: str) -> None:
        self.noted.append(order)

    def print(self, *_: object, **__: object) -> None:
        self.noted.append("said")
        raise OSError("the terminal is gone")


def test_ranks_are_asked_to_save_before_anything_is_said() -> None:
    both = Order()
    watched = Watch([], LaunchConfig(), lambda _: None)
    watched.nodes = [both]  # type: ignore[list-item]
    with pytest.raises(OSError, match="gone"):
        watched._stop(both)  # type: ignore[arg-type]
    assert both.noted == ["stop", "said"]


@pytest.mark.parametrize(
    ("sent", "heeded"),
    [
        ([signal.SIGHUP, signal.SIGHUP, signal.SIGHUP], 1),  # a shell passes on the kernel's
        ([signal.SIGTERM, signal.SIGHUP], 1),  # as systemd ends a session
        ([signal.SIGHUP, signal.SIGTERM], 2),
        ([signal.SIGINT, signal.SIGINT], 2),
    ],
)
def test_a_terminal_that_closes_is_no_insisting(sent: list[int], heeded: int) -> None:
    watched = Watch([], LaunchConfig(), lambda _: None)
    for number in sent:
        watched._note_signal(number)
    assert len(watched.signals) == heeded


def test_the_stacks_of_a_hang_are_shown_where_they_cannot_be_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show_standings("rank 0 stands here", Console(width=200), tmp_path / "missing")
    said = capsys.readouterr().out
    assert "No such file or directory" in said
    assert "rank 0 stands here" in said
    show_standings("rank 0 stands here", Console(width=200), tmp_path)
    [file] = tmp_path.glob("hang-*.txt")
    assert file.read_text() == "rank 0 stands here"
    assert str(file) in capsys.readouterr().out


def test_words_begin_a_line_of_their_own_on_a_terminal() -> None:
    console = Console(force_terminal=True, width=80, record=True)
    with console.capture() as captured:
        watch.start_line(console)
        console.print("stopping")
    assert captured.get() == "\r\x1b[2Kstopping\n"
