"""What the user sees of many hosts, and what is kept of each rank."""

import queue
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.text import Text

from hunyuan_train.json_screen import as_object
from hunyuan_train.launcher.cluster.hosts import Host
from hunyuan_train.launcher.host.ranks import RANK_MARK
from hunyuan_train.launcher.job.node import Job
from hunyuan_train.plain_text import make_plain

CLOSE_SECONDS = 10.0


class HostOutput:
    """Shows the lines of all hosts with their origin, and keeps those of each rank in a file.

    By a thread of its own: a terminal that is held (Ctrl-S) or a disk that stalls must not keep the
    launcher from its pings, or the hosts would take it for dead.
    """

    def __init__(self, console: Console, log_folder: Path, *, is_json: bool = False) -> None:
        self.console = console
        self.is_json = is_json  # a line is an object, which gets its host and rank
        self.log_folder = log_folder
        self.files: dict[str, TextIO] = {}
        self.lines: queue.SimpleQueue[tuple[Host, str] | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._show_all, daemon=True)
        self.thread.start()

    def of(self, job: Job) -> Callable[[str], None]:
        """What takes the lines of one host."""
        host = job.host
        return lambda line: self.lines.put((host, line))

    def close(self) -> None:
        """Show what is left, unless that is held up, and close the files."""
        self.lines.put(None)
        self.thread.join(CLOSE_SECONDS)

    def _show_all(self) -> None:
        while entry := self.lines.get():
            self._show(*entry)
        for file in self.files.values():
            with suppress(OSError):
                file.close()

    def _show(self, host: Host, line: str) -> None:
        rank, text = split_mark(line)
        with suppress(OSError):  # a full disk keeps nothing, and must not keep lines from the user
            self._keep(f"rank{rank}.screen.txt" if rank else f"host-{host.address}.txt", text)
        if self.is_json:
            fields = {"host": host.address} | ({"rank": int(rank)} if rank else {})
            sys.stderr.write(f"{as_object(text, **fields)}\n" if text.strip() else "")
            return
        origin = f"{host.address} rank {rank}" if rank else host.address
        self.console.print(Text.assemble((f"{origin}| ", "dim"), text), soft_wrap=True)

    def _keep(self, name: str, text: str) -> None:
        if name not in self.files:
            self.files[name] = (self.log_folder / name).open("a", encoding="utf-8")
        self.files[name].write(f"{make_plain(text)}\n")
        self.files[name].flush()


def split_mark(line: str) -> tuple[str, str]:
    """The rank that a line is marked with, empty where it has none, and the line itself."""
    if not line.startswith(RANK_MARK):
        return "", line
    rank, _, text = line[1:].partition(RANK_MARK)
    return rank, text
