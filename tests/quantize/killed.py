"""The command, killed ten times on its way: what lies under OUT's name is whole, or nothing is."""

import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil

from tests.kill_moments import kill_at_work

NUM_KILLS = 10
SECONDS_TO_END = 5.0  # of the tools that a killed command leaves behind


def kill_ten_times(
    command: list[str], output: Path, open_output: Callable[[Path], object], env: Mapping[str, str]
) -> None:
    """Kill the command at ten moments between its first file and its end; then let it finish.

    Args:
        command: that writes `output`, with --overwrite.
        output: the folder.
        open_output: raises where the folder cannot be read.
        env: of the command.
    """
    unfinished = output.with_name(output.name + ".incomplete")
    with start(command, unfinished, env) as process:
        began = time.monotonic()
        assert process.wait() == 0
        seconds = time.monotonic() - began

    for kill in range(NUM_KILLS):
        was_there = kill % 2 == 0

        def begin(was_there: bool = was_there) -> "subprocess.Popen[bytes]":
            if not was_there:
                shutil.rmtree(output, ignore_errors=True)
            return start(command, unfinished, env)

        kill_at_work(begin, kill * seconds / NUM_KILLS)
        check_nothing_goes_on(output)
        if output.exists():
            check_whole(output)
            open_output(output)
        else:
            assert not was_there or unfinished.exists()  # killed between two renames
    subprocess.run(command, check=True, env=env)
    check_whole(output)
    open_output(output)
    assert not unfinished.exists()


def start(
    command: list[str], unfinished: Path, env: Mapping[str, str]
) -> "subprocess.Popen[bytes]":
    """The command, once it has begun to write."""
    shutil.rmtree(unfinished, ignore_errors=True)
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env
    )
    while not unfinished.exists() and process.poll() is None:
        time.sleep(0.01)
    return process


def check_whole(folder: Path) -> None:
    """Every file of a folder is the one that was summed, and none is not."""
    check = subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=folder, check=False)
    assert check.returncode == 0
    summed = {line.split("  ")[1] for line in (folder / "SHA256SUMS").read_text().splitlines()}
    assert summed | {"SHA256SUMS"} == {path.name for path in folder.iterdir()}


def check_nothing_goes_on(output: Path) -> None:
    """No tool of a killed command still writes below the output's name."""
    deadline = time.monotonic() + SECONDS_TO_END
    while left := [
        one.info["cmdline"]
        for one in psutil.process_iter(["cmdline"])
        if any(word.startswith(f"{output}.incomplete") for word in one.info["cmdline"] or [])
    ]:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
