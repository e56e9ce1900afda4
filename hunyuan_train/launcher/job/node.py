"""One node of a running job, as the launcher sees it: the process of its agent, and its words."""

import asyncio
import json
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from hunyuan_train.launcher.cluster.hosts import Host
from hunyuan_train.launcher.host.node_agent import Spec
from hunyuan_train.launcher.rank.heartbeat import Progress, RankStatus, read_status

MAX_LINE_BYTES = 16 * 2**20  # the stacks of a node's ranks are one line
TAIL_LINES = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A node's part of a run: how its agent is started, and what it is told to do."""

    host: Host
    command: Sequence[str]
    spec: Spec
    environment: Mapping[str, str] | None = None  # of the command here; default: our own


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """The rank of a node that failed first there."""

    rank: int
    exit_code: int
    words: str
    time: float  # by the clock of the launcher


@dataclass
class Node:
    """The state of one node; changed by its own tasks only."""

    job: Job
    show_output: Callable[[str], None] | None  # None: its stderr is our own
    process: asyncio.subprocess.Process | None = None
    has_started: bool = False
    heard_at: float = field(default_factory=time.monotonic)
    clock_ahead: float = 0.0  # seconds by which the node's clock is ahead of ours
    progress: dict[int, Progress] = field(default_factory=dict)
    statuses: list[RankStatus] = field(default_factory=list)
    exit_code: int | None = None
    failure: Failure | None = None
    was_told_to_end: bool = False
    is_over: bool = False
    is_silent: bool = False  # it was not waited for in the end
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=TAIL_LINES))
    sent_at: dict[int, float] = field(default_factory=dict)
    shortest_echo: float = float("inf")

    @property
    def host(self) -> Host:
        """The host it runs on."""
        return self.job.host

    async def run(self) -> None:
        """Start the agent, hand it its spec, and listen until it ends."""
        self.process = await asyncio.create_subprocess_exec(
            *self.job.command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE if self.show_output else None,
            start_new_session=True,  # Ctrl-C is for the launcher, which asks the ranks to save
            limit=MAX_LINE_BYTES,
            env=self.job.environment,
        )
        self.send(json.dumps(asdict(self.job.spec)))
        await asyncio.gather(self._read_events(), self._read_output())
        code = await self.process.wait()
        if self.exit_code is None:
            self.exit_code = code if code >= 0 else 128 - code
        self.is_over = True

    def send(self, line: str) -> None:
        """Give the agent an order; one that is gone needs none."""
        if self.process and self.process.stdin and not self.process.stdin.is_closing():
            with suppress(OSError, RuntimeError):
                self.process.stdin.write(f"{line}\n".encode())

    def ping(self, number: int) -> None:
        """Keep the agent's lease alive, and ask for its time."""
        self.sent_at = {number: time.time()}
        self.send(f"ping {number}")

    async def abandon(self) -> None:
        """Stop waiting for an agent that does not answer; it ends by itself when its lease ends."""
        if self.process and self.process.returncode is None:
            self.process.kill()
            await self.process.wait()  # or asyncio complains of its end when the loop is closed

    async def _read_events(self) -> None:
        assert self.process
        assert self.process.stdout
        while line := await self.process.stdout.readline():
            self.heard_at = time.monotonic()
            try:
                event = json.loads(line)
                self._take(event.pop("event"), event)
            except (ValueError, KeyError, AttributeError):
                self.tail.append(line.decode(errors="replace").rstrip())  # a talkative login shell

    def _take(self, name: str, event: dict[str, Any]) -> None:
        if name == "started":
            self.has_started = True
        elif name == "pong":
            self._compare_clocks(event["number"], event["time"])
        elif name == "progress":
            self.progress = {int(rank): Progress(**one) for rank, one in event["ranks"].items()}
        elif name == "statuses":
            self.statuses = [read_status(one) for one in event["ranks"]]
        elif name == "ended":
            self.exit_code = event["exit_code"]
            self.was_told_to_end = event["was_told_to"]
            if event["failure"]:
                self.failure = Failure(**event["failure"])

    def _compare_clocks(self, number: int, their_time: float) -> None:
        """The quickest answer says best by how much the clocks differ."""
        now = time.time()
        sent = self.sent_at.get(number)
        if sent is not None and now - sent < self.shortest_echo:
            self.shortest_echo = now - sent
            self.clock_ahead = their_time - (now + sent) / 2

    async def _read_output(self) -> None:
        if self.show_output is None or self.process is None or self.process.stderr is None:
            return
        while line := await read_line(self.process.stderr):
            text = line.decode(errors="replace").rstrip("\r\n")
            self.tail.append(text)
            self.show_output(text)


async def read_line(stream: asyncio.StreamReader) -> bytes:
    """The next line, empty at the end; what is longer than the limit gives way to a word on it."""
    try:
        return await stream.readline()
    except ValueError:  # asyncio has dropped what it had of the line
        return b"(a line of more than %d MiB is left out)\n" % (MAX_LINE_BYTES >> 20)
