"""Starts the agents of all nodes and watches them until the last has ended.

One process that fails, one host that falls silent or one run that does not move on ends everything
everywhere, within stated times: a failed process at once, a silent host after
`host_timeout_seconds`, a hang after `hang_timeout_seconds`, whatever the ranks are at.
"""

import asyncio
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.control import Control
from rich.segment import ControlType

from hunyuan_train.config.launch_schema import LaunchConfig
from hunyuan_train.launcher.exit_codes import NO_ROOM, NOT_COPIED, RESUME, SUCCESS
from hunyuan_train.launcher.host.node_agent import remove_left_folders
from hunyuan_train.launcher.job.hang import describe_hang, write_standings
from hunyuan_train.launcher.job.node import Job, Node
from hunyuan_train.launcher.job.outcome import Outcome, conclude, last_step
from hunyuan_train.launcher.job.status import StatusFile
from hunyuan_train.launcher.rank.heartbeat import HEEDING, STARTING

POLL_SECONDS = 0.2
START_SECONDS = 30.0  # for ssh to connect and Python to start
# For extensions to be compiled, libraries to be imported and ranks to meet, of which nothing is
# heard meanwhile: at least so long before it counts as a hang.
RENDEZVOUS_SECONDS = 600.0
SETTLE_SECONDS = 2.0  # for other nodes to notice a failure, and to say which of them had it first
KILL_SECONDS = 8.0  # for an agent to end its part
ANSWER_SECONDS = 6.0  # for ranks to say where they stand
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
ENDED_ALL_THE_SAME = (SUCCESS, NO_ROOM, NOT_COPIED)


class Watch:
    """The state of one try of a run."""

    def __init__(
        self,
        jobs: Sequence[Job],
        launch: LaunchConfig,
        show_output: Callable[[Job], Callable[[str], None] | None],
        status: StatusFile | None = None,
    ) -> None:
        self.launch = launch
        self.status = status
        self.nodes = [Node(job, show_output(job)) for job in jobs]
        self.signals: list[int] = []  # those received
        self.stopped_at = 0.0
        self.num_pings = 0
        self.pinged_at = 0.0
        self.moved_at = time.monotonic()  # when a rank last got on
        self.progress: object = None

    async def run(self, console: Console, log_folder: Path | None) -> Outcome:
        """Start every node, watch them, and end them all."""
        tasks = [asyncio.create_task(node.run()) for node in self.nodes]
        hang: Outcome | None = None
        with self._heeding_signals():
            while hang is None and not self._is_ending(tasks):
                self._ping()
                if self.status:
                    self.status.tell(self.nodes)
                if self.signals and not self.stopped_at:
                    self._stop(console)
                if self._is_hung():
                    hang = await self._describe_hang(console, log_folder)
                await asyncio.sleep(POLL_SECONDS)
            if hang is None and len(self.signals) < 2:
                await self._wait(tasks, SETTLE_SECONDS)
            await self._end(tasks)
        outcome = self._judge(hang)
        if self.status:
            self.status.end(self.nodes, outcome)
        return outcome

    def _judge(self, hang: Outcome | None) -> Outcome:
        # A signal that came when all was done, or when a run had ended without something it should
        # leave, changes nothing about that.
        tells_all = all(node.exit_code in ENDED_ALL_THE_SAME for node in self.nodes)
        if tells_all or not self.signals:
            return hang or conclude(self.nodes, launch=self.launch)
        # Ctrl-C is always that; whoever sends SIGTERM starts a run again that says "resume".
        has_saved = all(node.exit_code == RESUME for node in self.nodes)
        number = self.signals[0]
        exit_code = RESUME if has_saved and number != signal.SIGINT else 128 + number
        return Outcome(reason="stopped", exit_code=exit_code, step=last_step(self.nodes))

    @contextmanager
    def _heeding_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        # What is ignored stays ignored: `nohup` means to outlive the terminal.
        heeded = [number for number in STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        for number in heeded:
            loop.add_signal_handler(number, self._note_signal, int(number))
        try:
            yield
        finally:
            for number in heeded:
                loop.remove_signal_handler(number)

    def _note_signal(self, number: int) -> None:
        # A terminal that closes says so more than once: the shell passes on what the kernel sends.
        if number != signal.SIGHUP or not self.signals:
            self.signals.append(number)

    def _is_ending(self, tasks: Sequence[asyncio.Task[None]]) -> bool:
        """Whether nothing is left to wait for."""
        if all(task.done() for task in tasks) or len(self.signals) > 1:
            return True
        grace = self.launch.stop_timeout_seconds + KILL_SECONDS
        if self.stopped_at and time.monotonic() > self.stopped_at + grace:
            return True
        has_failed = any(node.is_over and node.exit_code for node in self.nodes)
        return (has_failed and not self.stopped_at) or any(map(self._is_silent, self.nodes))

    def _is_silent(self, node: Node) -> bool:
        limit = self.launch.host_timeout_seconds
        if not node.has_started:
            limit = max(limit, START_SECONDS)
        return not node.is_over and time.monotonic() - node.heard_at > limit

    def _ping(self) -> None:
        if time.monotonic() < self.pinged_at + self.launch.host_timeout_seconds / 10:
            return
        self.pinged_at = time.monotonic()
        self.num_pings += 1
        for node in self.nodes:
            node.ping(self.num_pings)

    def _stop(self, console: Console) -> None:
        self.stopped_at = time.monotonic()
        for node in self.nodes:
            node.send("stop")
        print_on_new_line(
            console,
            "stopping after this step, to save; once more stops at once"
            if all(map(_heeds_a_stop, self.nodes))
            else "stopping at once: no step is under way, so nothing needs saving",
        )

    def _is_hung(self) -> bool:
        progress = [dict(node.progress) for node in self.nodes]
        if progress != self.progress:
            self.progress, self.moved_at = progress, time.monotonic()
        return time.monotonic() - self.moved_at > self._hang_seconds()

    def _hang_seconds(self) -> float:
        """How long nothing may move on, at this stage of the run."""
        have_met = any(
            one.doing != STARTING for node in self.nodes for one in node.progress.values()
        )
        limit = self.launch.hang_timeout_seconds
        return limit if have_met else max(limit, RENDEZVOUS_SECONDS)

    async def _describe_hang(self, console: Console, log_folder: Path | None) -> Outcome:
        """Ask every rank where it stands, and keep the answers."""
        for node in self.nodes:
            node.send("ask")
        deadline = time.monotonic() + ANSWER_SECONDS
        while time.monotonic() < deadline and not all(node.statuses for node in self.nodes):
            await asyncio.sleep(POLL_SECONDS)
        show_standings(write_standings(self.nodes), console, log_folder)
        return describe_hang(self.nodes, self._hang_seconds())

    async def _wait(self, tasks: Sequence[asyncio.Task[None]], seconds: float) -> None:
        """Wait for the nodes that still answer."""
        pairs = zip(self.nodes, tasks, strict=True)
        answering = [task for node, task in pairs if not self._is_silent(node)]
        if answering:
            await asyncio.wait(answering, timeout=seconds)

    async def _end(self, tasks: Sequence[asyncio.Task[None]]) -> None:
        """End what still runs; a node that does not answer ends itself when its lease is over."""
        for node in self.nodes:
            node.send("kill")
        await self._wait(tasks, KILL_SECONDS)
        for node, task in zip(self.nodes, tasks, strict=True):
            if not task.done():
                node.is_silent = True
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(node.abandon() for node in self.nodes))


def show_standings(text: str, console: Console, log_folder: Path | None) -> None:
    """Keep where every rank stood in a file and name it, or show the text where that fails."""
    if log_folder:
        file = log_folder / f"hang-{time.strftime('%Y%m%d-%H%M%S')}.txt"
        try:
            file.write_text(text, encoding="utf-8")
        except OSError as error:
            text = f"{file} cannot be written: {error.strerror}\n{text}"
        else:
            text = f"the stacks of all ranks are in {file}"
    print_on_new_line(console, text)


def print_on_new_line(console: Console, text: str) -> None:
    """Print in the place of what stands in a terminal's line: rank 0, say, may have a bar there.

    In one write: between two, the other process would draw its bar before our text.
    """
    with console:
        if console.is_terminal:
            console.control(Control(ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2)))
        console.print(text, soft_wrap=True)


def _heeds_a_stop(node: Node) -> bool:
    """Whether its ranks are in the loop of steps; before and after it, a stop ends them."""
    return bool(node.progress) and all(one.doing in HEEDING for one in node.progress.values())


def run_jobs(
    jobs: Sequence[Job],
    launch: LaunchConfig,
    *,
    console: Console,
    show_output: Callable[[Job], Callable[[str], None] | None],
    log_folder: Path | None = None,
) -> Outcome:
    """Run the jobs of all nodes to their end.

    Args:
        show_output: makes what takes the lines that a node's ranks print; None lets them share our
            own stderr.
        log_folder: of the run, for its status and the stacks of a hang.
    """
    num_processes = sum(job.host.slots or 1 for job in jobs)
    status = StatusFile(log_folder.parent, num_processes) if log_folder else None
    watch = Watch(jobs, launch, show_output, status)
    try:
        return asyncio.run(watch.run(console, log_folder))
    finally:
        remove_left_folders()  # an agent here may have been killed
