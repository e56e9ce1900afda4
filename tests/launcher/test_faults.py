"""Real training on several hosts: what breaks it, when that is noticed, and how it goes on.

`docs/faults.md` is the table of what these print with `-s`.
"""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hunyuan_train.launcher.host.probe import free_port
from tests.conftest import REPOSITORY
from tests.launcher.network import environment_of, wait_until_empty
from tests.launcher.training import RUN, SETTINGS, STEPS, Training, losses

LIMIT_SECONDS = 30  # from a fault to the end of the run everywhere
HANG_SECONDS = 15


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All that the last checkpoint holds, of both ranks."""
    last = folder / f"checkpoints/step-{STEPS:06d}"
    return {
        f"{file.stem} {name}": tensor
        for file in sorted(last.glob("rank-*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def assert_same_run(folder: Path, other: Path) -> None:
    ours, theirs = tensors(folder), tensors(other)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert losses(folder) == losses(other)


def tell(fault: str, seconds: float, training: Training, words: str) -> None:
    """One row of the table, for whoever reads along."""
    message = next(line for line in training.lines if words in line).strip()
    sys.stdout.write(f"| {fault} | {seconds:.0f} s | `{message[:230]}` |\n")


def test_many_hosts_train_as_one_machine_does_and_a_killed_rank_costs_nothing(
    network, training, undisturbed, tmp_path
):
    alone = tmp_path / "alone"
    done = subprocess.run(
        ["bash", str(REPOSITORY / "train.sh"), *RUN],
        env={**os.environ, "NUM_PROCESSES": "2", "OUTPUT_DIR": str(alone)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert losses(undisturbed) == losses(alone)
    run = training(*RUN, "--max_restarts", "1")
    run.wait_for(r"step 5/")
    os.kill(run.rank(1), signal.SIGKILL)
    began = time.monotonic()
    run.wait_for("rank 1 was killed")
    tell("worker killed", time.monotonic() - began, run, "rank 1 was killed")
    assert time.monotonic() - began < LIMIT_SECONDS
    run.wait_for("restart 1 of 1 from step-000004")
    assert run.end() == 0, run.text()
    assert_same_run(run.folder, undisturbed)
    wait_until_empty(network, 0, 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "name"),
    [("crash", "host crashed"), ("cut", "cable cut"), ("silence", "switch silent")],
)
def test_a_lost_host_is_waited_for_and_the_run_goes_on_bit_for_bit(
    network, training, undisturbed, fault, name
):
    run = training(*RUN, "--max_restarts", "1")
    run.wait_for(r"step 5/")
    began = time.monotonic()
    getattr(network, fault)(1)
    try:
        run.wait_for(f"error: host {network.address(1)} ")
        seconds = time.monotonic() - began
        tell(name, seconds, run, f"error: host {network.address(1)} ")
        assert seconds < LIMIT_SECONDS
        run.wait_for("waiting for hosts")
        wait_until_empty(network, 1, timeout=LIMIT_SECONDS)
    finally:
        if fault == "crash":
            network.boot(1)
        network.heal(1)
    assert run.end() == 0, run.text()
    assert "restart 1 of 1 from step-000004" in run.text()
    assert_same_run(run.folder, undisturbed)
    wait_until_empty(network, 0, 1)


@pytest.mark.slow
def test_a_run_goes_on_with_fewer_hosts_where_that_is_allowed(network, training):
    flags = ("--max_restarts", "1", "--min_hosts", "1", "--wait_for_hosts_seconds", "1")
    run = training(*RUN, *flags, hosts=(0, 1, 2))
    run.wait_for(r"step 5/")
    network.crash(2)
    try:
        run.wait_for(f"going on without {network.address(2)}, on 2 hosts")
        assert run.end() == 0, run.text()
    finally:
        network.boot(2)
    assert len(list((run.folder / f"checkpoints/step-{STEPS:06d}").glob("rank-*"))) == 2
    assert losses(run.folder)[-1] < losses(run.folder)[0]


@pytest.mark.slow
def test_a_hang_is_ended_with_the_rank_at_fault_and_the_stacks_of_all(network, training):
    run = training(*RUN, "--hang_timeout_seconds", str(HANG_SECONDS))
    run.wait_for(r"step 5/")
    os.kill(run.rank(1), signal.SIGSTOP)
    began = time.monotonic()
    assert run.end() == 1
    seconds = time.monotonic() - began
    tell(f"hang (SIGSTOP), limit {HANG_SECONDS} s", seconds, run, "no step ended for")
    assert seconds < HANG_SECONDS + 15
    assert f"rank 1 on {network.address(1)} is stopped" in run.text()
    (file,) = (run.folder / "log").glob("hang-*.txt")
    text = file.read_text()
    assert re.search(r"rank 0 on .*\noldest collective not completed: gloo:\w+ ", text)
    assert re.search(r"trainer/loop.py\", line \d+ in train\b", text)  # in a step, or between two
    wait_until_empty(network, 0, 1)


@pytest.mark.slow
def test_the_same_step_failing_twice_is_not_tried_again(network, training):
    run = training(*RUN, "--max_restarts", "5")
    for _ in range(2):
        run.wait_for(r"step 5/")
        os.kill(run.rank(1), signal.SIGKILL)
    assert run.end() == 137
    assert re.search(r"not restarted: the run failed twice after step (5|6)", run.text())
    assert "restart 2" not in run.text()


@pytest.mark.slow
def test_the_users_stop_saves_and_is_not_restarted(network, training, undisturbed):
    run = training(*RUN, "--max_restarts", "5")
    run.wait_for(r"step 5/")
    os.kill(run.find(0, "train.py --output_dir"), signal.SIGINT)
    assert run.end() == 130
    assert "restart" not in run.text()
    wait_until_empty(network, 0, 1)
    resumed = training(*RUN, "--resume_from_checkpoint", "auto")
    assert resumed.end() == 0, resumed.text()
    assert_same_run(run.folder, undisturbed)


@pytest.mark.slow
def test_two_runs_on_the_same_hosts_do_not_touch_each_other(network, training, undisturbed):
    other = training(*RUN, folder="other")
    other.wait_for(r"step 1/")
    run = training(*RUN)
    run.wait_for(r"step 1/")
    launchers = [
        one
        for one, line in network.processes(0).items()
        if "train.py --output_dir" in line and f"{run.folder} " in line
    ]
    os.kill(max(launchers), signal.SIGINT)
    assert run.end() == 130
    assert other.end() == 0, other.text()
    assert_same_run(other.folder, undisturbed)


@pytest.mark.slow
def test_a_failing_rank_has_its_traceback_shown_with_the_host(network, training, tmp_path):
    broken = (REPOSITORY / "hunyuan_train/trainer/step.py").read_text()
    broken = broken.replace("    refresh_routers(engine)\n", "    raise ValueError('a bug')\n")
    file = tmp_path / "step.py"
    file.write_text(broken)
    target = REPOSITORY / "hunyuan_train/trainer/step.py"
    run = training(*RUN)
    run.wait_for("hosts are fit")
    network.run(1, "mount", "--bind", str(file), str(target))
    try:
        assert run.end() == 1
    finally:
        network.run(1, "umount", str(target))
    assert f"host {network.address(1)}: rank 1 failed:" in run.text()
    assert run.lines[-1].strip() == "ValueError: a bug"


def train_by_hand(folder: Path, *flags: str, num_hosts: int) -> list[float]:
    """The losses of the commands of --print_torchrun for so many hosts, all started here."""
    here = {name: value for name, value in os.environ.items() if name != "HOST_GPU_NUM"}
    nodes = ",".join(f"host{number}:1" for number in range(num_hosts))
    printed = subprocess.run(
        [sys.executable, "train.py", *flags, "--output_dir", str(folder), "--print_torchrun"],
        env={**here, "NODE_IP_LIST": nodes, "MASTER_PORT": str(free_port())},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    commands = printed.stdout.replace("--master_addr=host0", "--master_addr=127.0.0.1")
    started = [
        subprocess.Popen(["bash", "-c", line], stderr=subprocess.DEVNULL)
        for line in commands.splitlines()
        if not line.startswith("#")
    ]
    assert [process.wait() for process in started] == [0] * num_hosts
    return losses(folder)


@pytest.mark.slow
def test_three_hosts_and_two_unequal_ones_beside_their_launcher_train_as_one_machine(
    network, training, tmp_path
):
    flags = (*SETTINGS, "--max_steps", "4")
    equal = training(*flags, folder="equal", hosts=(0, 1, 2))
    assert equal.end() == 0, equal.text()
    assert losses(equal.folder) == train_by_hand(tmp_path / "by_hand", *flags, num_hosts=3)
    command = ["bash", str(REPOSITORY / "train.sh"), *flags]
    nodes = f"{network.address(0)}:2,{network.address(1)}:1"
    folder = tmp_path / "unequal"
    unequal = subprocess.run(
        network.command(2, command),
        env=environment_of(network, NODE_IP_LIST=nodes, OUTPUT_DIR=str(folder)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert unequal.returncode == 0, unequal.stderr
    assert "3 on 2 hosts (2 + 1)" in unequal.stderr
    assert losses(folder) == losses(equal.folder)
