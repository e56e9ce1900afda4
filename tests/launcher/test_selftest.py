"""`selftest` over the hosts of a run, as a user starts it on one of them."""

import json
import subprocess
import sys

import pytest

from tests.launcher.network import environment_of, wait_until_empty


def selftest(network, *arguments):
    nodes = ",".join(f"{network.address(host)}:1" for host in (0, 1))
    return subprocess.run(
        network.command(0, [sys.executable, "-m", "hunyuan_train", "selftest", *arguments]),
        env=environment_of(network, NODE_IP_LIST=nodes),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.mark.slow
def test_ranks_on_all_hosts_train_as_one_plain_process(network):
    try:
        finished = selftest(network, "--only", "experts split, SGD", "--json")
        wait_until_empty(network, 0, 1)
    finally:
        network.clear()
    assert finished.returncode == 0, finished.stderr
    [verdict] = json.loads(finished.stdout)
    assert verdict["processes"] == 2
    assert 0 < verdict["errors"]["gradients"] < verdict["tolerance"]["gradients"]


def test_a_number_of_processes_is_refused_beside_hosts(network):
    finished = selftest(network, "--processes", "2")
    assert finished.returncode == 2
    assert "on several hosts all of their slots take part" in " ".join(finished.stderr.split())
