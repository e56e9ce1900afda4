"""Asks all hosts at once what they are like, within a few seconds whatever their state."""

import asyncio
import json
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hunyuan_train.config.launch_schema import LaunchConfig
from hunyuan_train.launcher.cluster.cluster import Cluster
from hunyuan_train.launcher.cluster.hosts import Host
from hunyuan_train.launcher.cluster.ssh import CONNECT_SECONDS, Trouble, explain, ssh_command

SURVEY_SECONDS = 4.5  # the verdict is promised within five
NUM_PINGS = 6  # of which the quickest tells the clocks' difference: to 0.1 ms on an idle network
EXIT_NO_COMMAND = (126, 127)
PROBE = Path(__file__).parents[1] / "host" / "probe.py"
RUN_PROBE = (
    "import sys\nexec(compile(sys.stdin.read(int(sys.stdin.readline())), 'probe.py', 'exec'))"
)
MAX_LINE_BYTES = 2**24


@dataclass(kw_only=True, slots=True)
class Report:
    """What one host answered; `trouble` instead of `found` where it did not."""

    host: Host
    found: dict[str, Any] = field(default_factory=dict)
    trouble: Trouble | None = None
    clock_ahead: float = 0.0  # seconds by which its clock is ahead of ours
    meets_chief: str = ""  # why it cannot connect to the port at which ranks meet; empty: it can


class Visit:
    """A probe at work on one host."""

    def __init__(self, host: Host, cluster: Cluster, launch: LaunchConfig) -> None:
        self.report = Report(host=host)
        self.launch = launch
        command = [sys.executable, "-I", "-u", "-c", RUN_PROBE]
        is_local = host == cluster.local
        self.command = command if is_local else ssh_command(host, launch, command)
        self.process: asyncio.subprocess.Process | None = None

    async def look_around(self, request: dict[str, Any]) -> None:
        """Start the probe, and take its report and the time of its clock."""
        source = PROBE.read_text(encoding="ascii")
        self.process = await asyncio.create_subprocess_exec(
            *self.command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
            limit=MAX_LINE_BYTES,
        )
        answer = await self._ask(f"{len(source)}\n{source}{json.dumps(request)}")
        if answer is None:
            await self._say_why()
            return
        self.report.found = answer
        await self._compare_clocks()

    async def _ask(self, text: str) -> dict[str, Any] | None:
        """The probe's answer to a line; None where it is gone."""
        assert self.process
        assert self.process.stdin
        assert self.process.stdout
        with suppress(ConnectionError):
            self.process.stdin.write(f"{text}\n".encode())
            await self.process.stdin.drain()
        while line := await self.process.stdout.readline():
            if line.startswith(b"{"):  # a talkative login shell may come first
                return dict(json.loads(line))
        return None

    async def _say_why(self) -> None:
        assert self.process
        assert self.process.stderr
        words = (await self.process.stderr.read()).decode(errors="replace")
        exit_code = await self.process.wait()
        host = self.report.host
        if exit_code in EXIT_NO_COMMAND:
            self.report.trouble = Trouble(
                "python",
                f"no {sys.executable} there",
                "install the same environment at the same path (in a checkout, `bash train.sh "
                "--help` does), or share the folder",
            )
        elif exit_code == 255:
            self.report.trouble = explain(words, host, self.launch)
        else:
            last = (words.strip().splitlines() or ["nothing"])[-1]
            self.report.trouble = Trouble(
                "python", f"the probe said {last}", f"fix {sys.executable} on {host.address}"
            )

    async def _compare_clocks(self) -> None:
        shortest = float("inf")
        for _ in range(NUM_PINGS):
            sent = time.time()
            answer = await self._ask("ping")
            now = time.time()
            if answer and now - sent < shortest:
                shortest = now - sent
                self.report.clock_ahead = answer["time"] - (sent + now) / 2

    async def try_port(self, order: str) -> str:
        """Listen at a port of this host or connect to one; returns why that fails, or nothing."""
        answer = await self._ask(order)
        return answer["error"] if answer else "the host hung up"

    async def end(self) -> None:
        """Hang up, and leave nothing behind."""
        if self.process and self.process.returncode is None:
            with suppress(ProcessLookupError):
                self.process.kill()
            await self.process.wait()


async def survey(
    cluster: Cluster, launch: LaunchConfig, request: dict[str, Any], *, chief_address: str
) -> list[Report]:
    """Visit all hosts at once.

    Args:
        cluster: whom to visit.
        launch: how to reach them, and the port to try; a free one of the first host by default.
        request: for the probe.
        chief_address: where the others look for the first host.
    """
    visits = [Visit(host, cluster, launch) for host in cluster.hosts]
    deadline = time.monotonic() + SURVEY_SECONDS
    try:
        await _within(deadline, [visit.look_around(request) for visit in visits])
        for visit in visits:
            if not visit.report.found and not visit.report.trouble:
                visit.report.trouble = describe_silence(visit.report.host)
        await _within(deadline + 1, [_meet(visits, launch, chief_address)])
    finally:
        await asyncio.gather(*(visit.end() for visit in visits))
    return [visit.report for visit in visits]


async def _within(deadline: float, work: Sequence[Any]) -> None:
    """Wait for several things until a point in time, and give up what is not done then."""
    tasks = [asyncio.ensure_future(one) for one in work]
    await asyncio.wait(tasks, timeout=max(0.1, deadline - time.monotonic()))
    for task in tasks:
        task.cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(result, Exception):
            raise result


async def _meet(visits: Sequence[Visit], launch: LaunchConfig, address: str) -> None:
    """Let every host connect to the port at which their ranks are to meet."""
    chief, *others = visits
    if not chief.report.found:
        return
    port = launch.master_port or chief.report.found["free_port"]
    chief.report.meets_chief = await chief.try_port(f"listen {port}")
    if chief.report.meets_chief:
        return
    reached = [visit for visit in others if visit.report.found]
    for visit in reached:
        visit.report.meets_chief = "no answer"  # unless one comes in time
    order = f"connect {address} {port}"
    answers = await asyncio.gather(*(visit.try_port(order) for visit in reached))
    for visit, answer in zip(reached, answers, strict=True):
        visit.report.meets_chief = answer


def describe_silence(host: Host) -> Trouble:
    """What is said of a host that neither answered nor refused."""
    return Trouble(
        "ssh",
        f"no answer within {SURVEY_SECONDS:g} s (ssh itself gives up after {CONNECT_SECONDS} s)",
        f"see whether `ssh {host.address} true` answers; the host may be overloaded",
    )
