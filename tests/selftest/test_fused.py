"""Fused settings in the selftest: equal by the kernels themselves, and red with a fault in each."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.clients.environments import client_python

pytestmark = pytest.mark.slow
MOVED = ("loss", "gradients", "weights")


@pytest.fixture(scope="module")
def verdicts() -> list[dict[str, Any]]:
    """Of all cases and faults, on two ranks, by Triton's interpreter."""
    ask = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    packages = subprocess.run(
        [client_python("triton"), "-c", ask], stdout=subprocess.PIPE, text=True, check=True
    )
    done = subprocess.run(
        [sys.executable, "-m", "tests.selftest.fused_in_triton"],
        stdout=subprocess.PIPE,
        env={**os.environ, "TRITON_INTERPRET": "1", "TRITON_PACKAGES": packages.stdout.strip()},
        text=True,
        timeout=3000,
        check=True,
    )
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def test_every_fused_setting_equals_plain_training(verdicts: list[dict[str, Any]]) -> None:
    sound = {one["case"]: one for one in verdicts if not one["fault"]}
    assert sound.keys() == {"combine_impl", "gate_up_impl", "use_liger_kernel", "async_split_plan"}
    for name, verdict in sound.items():
        assert not verdict["wrong"], (name, verdict["multiples"], verdict["failure"])


def test_a_fault_in_each_is_found(verdicts: list[dict[str, Any]]) -> None:
    faulty = [one for one in verdicts if one["fault"]]
    assert {one["case"] for one in faulty} == {one["case"] for one in verdicts}
    for verdict in faulty:
        if verdict["case"] == "async_split_plan":  # rows that nobody sent end the exchange
            assert verdict["wrong"], verdict
            continue
        assert not verdict["failure"], verdict["failure"]
        assert all(verdict["multiples"][name] > 10 for name in MOVED), verdict
