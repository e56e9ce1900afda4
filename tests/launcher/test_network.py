"""The hosts of tests are removed, however the tests end."""

import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import REPOSITORY
from tests.launcher.network import why_impossible

HOSTS = """
import sys, time
from pathlib import Path
from tests.launcher.network import Network
network = Network(Path(sys.argv[1]), num_hosts=1)
network.up()
print("up", flush=True)
time.sleep(1000)
"""


def traces(process_id: int, disk: str) -> list[str]:
    """What is left of the hosts that a process made."""
    listing = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True)
    with open("/proc/mounts") as mounts:
        disks = [line for line in mounts if disk in line]
    return disks + [one for one in listing.stdout.split() if one.startswith(f"ht{process_id}-")]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_hosts_do_not_outlive_tests_that_are_killed(tmp_path, number):
    if reason := why_impossible():
        pytest.skip(reason)
    command = [sys.executable, "-c", HOSTS, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) as process:
        assert process.stdout.readline() == "up\n"
        assert len(traces(process.pid, str(tmp_path))) == 3  # a disk, a host and the switch
        process.send_signal(number)
    deadline = time.monotonic() + 10
    while left := traces(process.pid, str(tmp_path)):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)
