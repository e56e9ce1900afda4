"""What the user sees of many hosts, and what is kept of each rank."""

from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.text import Text

from hunyuan_train.launcher.hosts import Host
from hunyuan_train.launcher.jobs import RANK_MARK
from hunyuan_train.launcher.node import Job


class HostOutput:
    """Shows the lines of all hosts with their origin, and keeps those of each rank in a file."""

    def __init__(self, console: Console, log_folder: Path) -> None:
        self.console = console
        self.log_folder = log_folder
        self.files: dict[str, TextIO] = {}

    def of(self, job: Job) -> Callable[[str], None]:
        """What takes the lines of one host."""
        host = job.host
        return lambda line: self.show(host, line)

    def show(self, host: Host, line: str) -> None:
        """Take one line of a host."""
        rank, text = split_mark(line)
        origin = f"{host.address} rank {rank}" if rank else host.address
        self.console.print(Text.assemble((f"{origin}| ", "dim"), text), soft_wrap=True)
        name = f"rank{rank}.screen.txt" if rank else f"host-{host.address}.txt"
        if name not in self.files:
            self.files[name] = (self.log_folder / name).open("a", encoding="utf-8")
        self.files[name].write(f"{text}\n")
        self.files[name].flush()

    def close(self) -> None:
        """Close the files."""
        for file in self.files.values():
            file.close()
        self.files.clear()


def split_mark(line: str) -> tuple[str, str]:
    """The rank that a line is marked with, empty where it has none, and the line itself."""
    if not line.startswith(RANK_MARK):
        return "", line
    rank, _, text = line[1:].partition(RANK_MARK)
    return rank, text
