"""What the launcher knows of a run, kept in its folder for whoever looks at it from outside.

Each try with its beginning, end and outcome, and each host with its last heartbeat. The file is for
people: a run goes on where it cannot be written.
"""

import json
import os
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hunyuan_train.config.run_files import STATUS
from hunyuan_train.json_file import read_json_object
from hunyuan_train.launcher.job.node import Node
from hunyuan_train.launcher.job.outcome import Outcome

TELL_SECONDS = 1.0  # between two lines about the same work
LAST_SECONDS = 3.0  # for the last one to be written; a disk may hang
RUNNING = "running"  # the outcome of a try that has not ended


@dataclass(frozen=True, slots=True)
class HostStatus:
    """One host of the present try."""

    name: str
    heard_at: float  # its last heartbeat, by the launcher's clock: seconds since 1970
    num_ranks: int
    step: int | None  # of its rank that is least far; None before ranks have said so
    doing: str  # what that rank does
    is_over: bool


@dataclass(frozen=True, slots=True)
class TryStatus:
    """One try of the run: the launcher starts another one after some failures."""

    started: float  # seconds since 1970
    num_processes: int
    ended: float | None = None
    outcome: str = RUNNING  # done, stopped, failed, ...
    exit_code: int | None = None
    words: str = ""  # why, for people


@dataclass(frozen=True, slots=True)
class RunStatus:
    """The file's content."""

    updated: float  # seconds since 1970
    launcher: str  # its host
    tries: list[TryStatus] = field(default_factory=list)
    hosts: list[HostStatus] = field(default_factory=list)


class StatusFile:
    """Writes the status of one try, after those of earlier ones.

    In a thread of its own: a disk that hangs must not keep the launcher from its hosts.
    """

    def __init__(self, folder: Path, num_processes: int) -> None:
        self.path = folder / STATUS
        earlier = read_status_file(folder)
        self.earlier = [end_of(one) for one in earlier.tries] if earlier else []
        self.current = TryStatus(time.time(), num_processes)
        self.told_at = 0.0
        self._text: str | None = None
        self._is_last = False  # of the text; both are guarded by the condition
        self._wakes = threading.Condition()
        self._thread = threading.Thread(target=self._write_all, daemon=True, name="status")
        self._thread.start()

    def tell(self, nodes: Sequence[Node]) -> None:
        """Note where the hosts are; called as often as one likes."""
        if time.monotonic() - self.told_at >= TELL_SECONDS:
            self.told_at = time.monotonic()
            self._hand_over(nodes)

    def end(self, nodes: Sequence[Node], outcome: Outcome) -> None:
        """Note how the try ended."""
        started, number = self.current.started, self.current.num_processes
        self.current = TryStatus(
            started, number, time.time(), outcome.reason, outcome.exit_code, outcome.words
        )
        self._hand_over(nodes, is_last=True)
        self._thread.join(LAST_SECONDS)

    def _hand_over(self, nodes: Sequence[Node], is_last: bool = False) -> None:
        status = RunStatus(
            updated=time.time(),
            launcher=socket.gethostname(),
            tries=[*self.earlier, self.current],
            hosts=[describe_node(node) for node in nodes],
        )
        with self._wakes:
            self._text, self._is_last = json.dumps(asdict(status)), is_last
            self._wakes.notify()

    def _write_all(self) -> None:
        while True:
            with self._wakes:
                while self._text is None:
                    self._wakes.wait()
                text, self._text = self._text, None
                is_last = self._is_last
            with suppress(OSError):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                new = self.path.with_suffix(".new")
                new.unlink(missing_ok=True)  # or a link there would be followed
                new.write_text(text, encoding="utf-8")
                os.replace(new, self.path)
            if is_last:
                return


def describe_node(node: Node) -> HostStatus:
    """One host, as the launcher sees it now."""
    ranks = node.progress.values()
    last = min(ranks, key=lambda one: one.step, default=None)
    return HostStatus(
        name=node.host.address,
        heard_at=time.time() - (time.monotonic() - node.heard_at),
        num_ranks=node.host.slots or 1,
        step=last.step if last else None,
        doing=last.doing if last else "starting",
        is_over=node.is_over,
    )


def end_of(one: TryStatus) -> TryStatus:
    """An earlier try; one whose launcher was killed has an end that nobody noted."""
    if one.outcome != RUNNING:
        return one
    return TryStatus(one.started, one.num_processes, one.ended, "killed", None, "")


def read_status_file(folder: Path) -> RunStatus | None:
    """The status in a run's folder; None where there is none, or none that can be read."""
    try:
        content: dict[str, Any] = read_json_object(folder / STATUS)
        return RunStatus(
            updated=float(content["updated"]),
            launcher=str(content["launcher"]),
            tries=[TryStatus(**one) for one in content["tries"]],
            hosts=[HostStatus(**one) for one in content["hosts"]],
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
