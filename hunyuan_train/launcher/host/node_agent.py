"""What stands on every node between the launcher and the ranks, and leaves no process behind.

    python -m hunyuan_train.launcher.host.node_agent

Lines on stdin come from the launcher: first a `Spec`, then orders, and `ping` at least once per
lease. Lines on stdout are events for it, JSON each; what the ranks print goes to stderr. When stdin
ends or stays silent for longer than the lease, the launcher is gone or cut off, and everything here
is ended. Only processes below this one are ever touched, so that other runs on the node never are.
"""

import fcntl
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from hunyuan_train.launcher.exit_codes import HOST_LOST, KILLED, SUCCESS, TERMINATED, USER_ERROR
from hunyuan_train.launcher.host.supervise import adopt_orphans, die_with_parent, kill_descendants
from hunyuan_train.launcher.rank.heartbeat import (
    FOLDER_VARIABLE,
    ask_where_ranks_stand,
    read_process_ids,
    read_progress,
    read_statuses,
)
from hunyuan_train.screen import outlive_the_screen
from hunyuan_train.whole_file import open_lock

POLL_SECONDS = 0.1
ANSWER_SECONDS = 2.0  # for ranks to say where they stand
GRACE_SECONDS = 3.0  # for the main thread to end everything, once the launcher is gone
FOLDER_PREFIX = "hunyuan_train_"
LOCK = "agent.lock"  # in its folder, held for as long as it lives
FOLDER = "{folder}"  # in a command: the folder of this node
CAUSE = "cause.json"  # where the agent leaves which rank failed first
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Spec:
    """What a node agent is to do."""

    commands: list[list[str]]  # one after the other, until one fails
    environment: dict[str, str]  # on top of the node's own
    files: dict[str, str]  # written into the node's folder first
    working_folder: str  # where the commands start, as in the launcher
    lease_seconds: float
    stop_seconds: float  # for ranks to end by themselves after a stop


class NodeAgent:
    """The state of one node's part of a run."""

    def __init__(self, spec: Spec, folder: Path) -> None:
        self.spec = spec
        self.folder = folder
        self.orders: queue.SimpleQueue[list[str]] = queue.SimpleQueue()
        self.process: subprocess.Popen[bytes] | None = None
        self.kill_at: float | None = None  # the end of a stop's grace time
        self.is_lost = False  # the launcher is gone
        self.told_progress: dict[int, Any] = {}

    def run(self) -> int:
        """Run the commands and return the exit code of the last, telling the launcher all along."""
        if not Path(self.spec.working_folder).is_dir():
            print(  # noqa: T201 for the launcher, which shows the last lines of a node
                f"error: the folder {self.spec.working_folder}, from which the run is started, is "
                "missing on this host; start from one that all hosts have",
                file=sys.stderr,
            )
            tell("ended", exit_code=USER_ERROR, failure=None, was_told_to=False)
            return USER_ERROR
        exit_code = SUCCESS
        for number, command in enumerate(self.spec.commands, start=1):
            exit_code = self._run_command(command)
            if exit_code == SUCCESS and self.is_stopping and number < len(self.spec.commands):
                exit_code = TERMINATED  # what was to come never ran
            if exit_code != SUCCESS:
                break
        if self.is_lost:
            return HOST_LOST
        cause = self.folder / CAUSE
        failure = json.loads(cause.read_text(encoding="utf-8")) if cause.exists() else None
        tell("ended", exit_code=exit_code, failure=failure, was_told_to=self.is_stopping)
        return exit_code

    @property
    def is_stopping(self) -> bool:
        """Whether nothing new is to start."""
        return self.kill_at is not None

    def _run_command(self, command: list[str]) -> int:
        words = [word.replace(FOLDER, str(self.folder)) for word in command]
        environment = {**os.environ, **self.spec.environment, FOLDER_VARIABLE: str(self.folder)}
        self.process = subprocess.Popen(
            words,
            env=environment,
            cwd=self.spec.working_folder,
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
        try:
            while (exit_code := self.process.poll()) is None and not self._is_overdue():
                self._obey()
                self._tell_progress()
        finally:
            kill_descendants()  # it also collects the command, whose own exit code is then unknown
            self.process.wait()
        if exit_code is None:
            return KILLED
        return exit_code if exit_code >= 0 else 128 - exit_code

    def _is_overdue(self) -> bool:
        return self.kill_at is not None and time.monotonic() >= self.kill_at

    def _obey(self) -> None:
        """Wait a moment for an order, and carry it out."""
        try:
            name, *words = self.orders.get(timeout=POLL_SECONDS)
        except queue.Empty:
            return
        if name == "ping":
            tell("pong", number=int(words[0]), time=time.time())
        elif name == "stop":
            self._stop()
        elif name == "ask":
            ask_where_ranks_stand(self.folder)
            time.sleep(ANSWER_SECONDS)
            tell("statuses", ranks=[asdict(one) for one in read_statuses(self.folder)])
        else:  # kill, or the launcher is gone
            self.is_lost = name == "lost"
            self.kill_at = time.monotonic()

    def _stop(self) -> None:
        """Ask the ranks to save and end; what starts them where none has come that far."""
        if self.is_stopping or self.process is None:
            return
        self.kill_at = time.monotonic() + self.spec.stop_seconds
        ranks = list(read_process_ids(self.folder).values())
        for process_id in ranks or [self.process.pid]:
            with suppress(ProcessLookupError):
                os.kill(process_id, signal.SIGTERM)

    def _tell_progress(self) -> None:
        progress = {rank: asdict(one) for rank, one in read_progress(self.folder).items()}
        if progress != self.told_progress:
            self.told_progress = progress
            tell("progress", ranks=progress)

    def listen(self) -> None:
        """Take orders from stdin until it ends or is silent for too long (a thread of its own)."""
        lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=_read_lines, args=(lines,), daemon=True).start()
        while True:
            try:
                line = lines.get(timeout=self.spec.lease_seconds)
            except queue.Empty:
                line = ""
            if not line:
                self.orders.put(["lost"])
                # The main thread may be stuck in writing to a launcher that reads no more.
                time.sleep(GRACE_SECONDS)
                kill_descendants()
                os._exit(HOST_LOST)
            self.orders.put(line.split())


def _read_lines(lines: "queue.SimpleQueue[str]") -> None:
    """Pass stdin on, line by line; an empty text is its end."""
    for line in sys.stdin:
        lines.put(line)
    lines.put("")


def tell(event: str, **content: object) -> None:
    """Send an event to the launcher; where it is gone, stdin says so too."""
    with suppress(OSError):
        sys.stdout.write(json.dumps({"event": event, **content}) + "\n")
        sys.stdout.flush()


def remove_left_folders() -> None:
    """Remove the folders of agents that were killed; those that live hold a lock in theirs."""
    for folder in Path(tempfile.gettempdir()).glob(f"{FOLDER_PREFIX}*"):
        with suppress(OSError):  # another user's, a link, or gone by now
            if folder.lstat().st_uid != os.getuid() or not (folder / LOCK).exists():
                continue
            with open_lock(folder / LOCK) as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _folder_of_node(files: dict[str, str]) -> Iterator[Path]:
    remove_left_folders()
    folder = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX))
    lock = open_lock(folder / LOCK)
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.close()


def _heed_signals(agent: NodeAgent) -> None:
    """A first signal asks the ranks to save and end; a second one ends them."""

    def stop(number: int, _: FrameType | None) -> None:
        if number == signal.SIGHUP and agent.is_stopping:
            return  # it comes along with another, or twice, where a terminal or a session is closed
        agent.orders.put(["kill" if agent.is_stopping else "stop"])

    for number in STOP_SIGNALS:
        signal.signal(number, stop)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)


def main() -> int:
    """Supervise one node's part of a run."""
    if os.getpid() != os.getsid(0):
        with suppress(PermissionError):
            os.setsid()
    adopt_orphans()
    line = sys.stdin.readline()
    if not line:
        return KILLED
    spec = Spec(**json.loads(line))
    tell("started", time=time.time())
    with _folder_of_node(spec.files) as folder:
        agent = NodeAgent(spec, folder)
        _heed_signals(agent)
        threading.Thread(target=agent.listen, daemon=True).start()
        exit_code = agent.run()
    # The thread that reads stdin may hold its lock for as long as the launcher lives.
    with suppress(OSError):  # the launcher was killed before us
        sys.stdout.flush()
    os._exit(exit_code)


if __name__ == "__main__":
    outlive_the_screen(is_rank=True)
    main()
