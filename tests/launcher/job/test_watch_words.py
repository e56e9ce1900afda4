"""What a watch says, and what it takes for insisting."""

import signal
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from hunyuan_train.config.launch_schema import LaunchConfig
from hunyuan_train.launcher.cluster.hosts import Host
from hunyuan_train.launcher.exit_codes import NO_ROOM, NOT_COPIED
from hunyuan_train.launcher.host import node_agent
from hunyuan_train.launcher.host.node_agent import NodeAgent, Spec
from hunyuan_train.launcher.job import watch
from hunyuan_train.launcher.job.node import Job, Node
from hunyuan_train.launcher.job.watch import Watch, show_standings


class Order:
    """A node and a console in one, which note what comes first."""

    is_terminal = False

    def __enter__(self) -> None:
        """As a console, for lines in one write."""

    def __exit__(self, *_: object) -> None:
        """As a console."""

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
    class Screen(StringIO):
        def write(self, text: str) -> int:
            written.append(text)
            return len(text)

    written: list[str] = []
    watch.print_on_new_line(Console(force_terminal=True, width=80, file=Screen()), "stopping")
    assert written == ["\r\x1b[2Kstopping\n"], "in one write, or a bar comes in between"


def a_spec(*commands: list[str], folder: Path) -> Spec:
    return Spec(
        commands=list(commands),
        environment={},
        files={},
        working_folder=str(folder),
        lease_seconds=20.0,
        stop_seconds=20.0,
    )


@pytest.mark.parametrize(
    ("number", "codes", "reason", "exit_code"),
    [
        (signal.SIGTERM, (0, 0), "done", 0),  # it came while the export was read back
        (signal.SIGINT, (0, 0), "done", 0),
        (signal.SIGTERM, (0, 143), "stopped", 143),
        (signal.SIGINT, (0, None), "stopped", 130),
        (signal.SIGTERM, (75, 75), "stopped", 75),
        (signal.SIGINT, (75, 75), "stopped", 130),
        (signal.SIGTERM, (NO_ROOM, NO_ROOM), "failed", NO_ROOM),
        (signal.SIGINT, (NOT_COPIED, NOT_COPIED), "failed", NOT_COPIED),
    ],
)
def test_a_signal_does_not_change_how_a_run_had_ended(
    tmp_path: Path, number: int, codes: tuple[int | None, ...], reason: str, exit_code: int
) -> None:
    watched = Watch([], LaunchConfig(), lambda _: None)
    for place, code in enumerate(codes):
        job = Job(host=Host(f"host-{place}", 1), command=[], spec=a_spec(folder=tmp_path))
        node = Node(job, None)
        node.exit_code, node.is_over, node.has_started = code, code is not None, True
        watched.nodes.append(node)
    watched._note_signal(number)
    outcome = watched._judge(None)
    assert (outcome.reason, outcome.exit_code) == (reason, exit_code)


def test_a_host_that_was_stopped_before_its_last_command_does_not_call_it_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []
    monkeypatch.setattr(node_agent, "tell", lambda _, exit_code, **__: told.append(exit_code))
    agent = NodeAgent(a_spec(["prepare"], ["train"], folder=tmp_path), tmp_path)

    def run_command(command: list[str]) -> int:
        assert command == ["prepare"]
        agent.kill_at = 1.0  # a stop that it had no time to heed
        return 0

    monkeypatch.setattr(agent, "_run_command", run_command)
    assert agent.run() == 143
    assert told == [143]
