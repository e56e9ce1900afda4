"""What ends a job ends it on every host in time, says where, and leaves no process behind.

Hosts, sshd, ssh and agents are real; what runs under them are small programs, so that a case takes
seconds. `test_faults.py` does the same to real training.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from tests.launcher.network import PORT, Network, wait_until_empty

HOST_TIMEOUT = 4.0
MEETING = 5.0
# Two processes below the command, one of them in a session of its own, as torchrun's ranks are.
BUSY = """
import subprocess, sys, time
subprocess.Popen(["sleep", "1000"], start_new_session=True)
print("busy", sys.argv[1], flush=True)
time.sleep(1000)
"""


class FanOut:
    """A launcher on the first host, with what it has said."""

    def __init__(
        self, network: Network, code: str, folder, hosts=(0, 1), address=None, **launch
    ) -> None:
        self.network, self.hosts = network, hosts
        address = address or network.address
        settings = {
            "hosts": [address(host) for host in hosts],
            "code": code,
            "ssh_config": str(network.root / "ssh_config"),
            "log_folder": str(folder),
            "meeting_seconds": MEETING,
            "launch": {"ssh_port": PORT, "host_timeout_seconds": HOST_TIMEOUT, **launch},
        }
        command = [sys.executable, "-m", "tests.launcher.fan_out", json.dumps(settings)]
        self.process = subprocess.Popen(
            network.command(0, command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "SECRET": "s3cret"},
        )
        self.lines: list[str] = []

    def wait_for(self, text: str, times: int = 1) -> None:
        while times:
            line = self.process.stdout.readline()
            assert line, "".join(self.lines)
            self.lines.append(line)
            times -= text in line

    def wait_until_busy(self) -> None:
        self.wait_for("busy", times=len(self.hosts))

    def outcome(self, timeout: float = 40) -> dict:
        """How it ended, once nothing of it is left on any host that can be looked at."""
        out, _ = self.process.communicate(timeout=timeout)
        self.lines += out.splitlines(keepends=True)
        return json.loads(self.lines[-1])

    def find(self, host: int, words: str) -> int:
        """The process on a host whose command line holds some words."""
        found = [one for one, line in self.network.processes(host).items() if words in line]
        assert found, self.network.processes(host)
        return min(found)

    def launcher(self) -> int:
        return self.find(0, "tests.launcher.fan_out")


@pytest.fixture
def fan_out(network, tmp_path):
    started = []

    def start(code=BUSY, **settings):
        started.append(FanOut(network, code, tmp_path, **settings))
        return started[-1]

    # A test that waits in vain for a line gets its end instead.
    clearing = threading.Timer(60, network.clear)
    clearing.start()
    yield start
    clearing.cancel()
    network.clear()
    for one in started:
        one.process.send_signal(signal.SIGCONT)  # nsenter stops with what it runs
        one.process.wait(timeout=10)


def test_all_hosts_end_well_and_their_lines_say_where_they_come_from(fan_out, network, tmp_path):
    job = fan_out("import sys; print('hello from', sys.argv[1])", hosts=(0, 1, 2))
    assert job.outcome()["reason"] == "done"
    assert job.process.returncode == 0
    for host in range(3):
        assert f"{network.address(host)}| hello from {host}\n" in job.lines
        log = tmp_path / f"host-{network.address(host)}.txt"
        assert log.read_text() == f"hello from {host}\n"
    wait_until_empty(network, 0, 1, 2)


@pytest.mark.parametrize("kind", ["names", "IPv6"])
def test_hosts_may_be_names_and_ipv6_addresses(fan_out, network, kind):
    address = network.address_6 if kind == "IPv6" else network.names.__getitem__
    job = fan_out("print('hello')", address=address)
    assert job.outcome()["reason"] == "done", job.lines
    assert f"{address(1)}| hello\n" in job.lines


def test_the_environment_arrives_and_is_on_no_command_line(fan_out, network):
    code = (
        "import os, glob\n"
        "lines = [open(f, 'rb').read() for f in glob.glob('/proc/[0-9]*/cmdline')]\n"
        "secret = os.environ['SECRET']\n"
        "print('arrived', len(secret), any(secret.encode() in one for one in lines))"
    )
    job = fan_out(code)
    assert job.outcome()["reason"] == "done"
    assert sum("arrived 6 False" in line for line in job.lines) == 2


def test_a_failed_process_ends_all_hosts_and_its_words_come_last(fan_out, network):
    code = BUSY.replace("time.sleep(1000)\n", "") + (
        "if sys.argv[1] == '1': sys.exit('no luck here')\ntime.sleep(1000)\n"
    )
    job = fan_out(code)
    began = time.monotonic()
    outcome = job.outcome()
    assert time.monotonic() - began < 15
    assert outcome["reason"] == "failed"
    assert outcome["exit_code"] == 1
    assert network.address(1) in outcome["words"]
    assert "no luck here" in outcome["words"]
    wait_until_empty(network, 0, 1)


def test_a_killed_process_ends_all_hosts_and_leaves_no_orphan(fan_out, network):
    job = fan_out()
    job.wait_until_busy()
    os.kill(job.find(1, " -c "), signal.SIGKILL)
    outcome = job.outcome()
    assert outcome["exit_code"] == 137
    assert network.address(1) in outcome["words"]
    wait_until_empty(network, 0, 1)


def test_a_killed_agent_ends_all_hosts(fan_out, network):
    job = fan_out("import time; print('busy'); time.sleep(1000)")
    job.wait_until_busy()
    os.kill(job.find(1, "hunyuan_train.launcher.host.node_agent"), signal.SIGKILL)
    outcome = job.outcome()
    assert outcome["exit_code"] == 74
    assert f"host {network.address(1)} does not answer any more" in outcome["words"]
    wait_until_empty(network, 0, 1)


def test_a_killed_ssh_ends_all_hosts(fan_out, network):
    job = fan_out()
    job.wait_until_busy()
    os.kill(job.find(0, f"-- {network.address(1)}"), signal.SIGKILL)
    assert network.address(1) in job.outcome()["words"]
    wait_until_empty(network, 0, 1)


# To all others a silent switch is a cut cable; what it does to training is in test_faults.py.
@pytest.mark.parametrize("fault", ["crash", "cut"])
def test_a_lost_host_ends_the_others_and_itself_in_time(fan_out, network, fault):
    job = fan_out(hosts=(0, 1, 2))
    job.wait_until_busy()
    try:
        began = time.monotonic()
        getattr(network, fault)(2)
        outcome = job.outcome()
        assert HOST_TIMEOUT - 1 < time.monotonic() - began < HOST_TIMEOUT + 12
        assert outcome["reason"] == "lost"
        assert outcome["exit_code"] == 74
        assert f"host {network.address(2)} does not answer any more" in outcome["words"]
        # The lost one lives, but knows that nobody waits for it.
        wait_until_empty(network, 0, 1, 2)
    finally:
        if fault == "crash":
            network.boot(2)
        network.heal(2)


def test_a_short_silence_is_survived(fan_out, network):
    job = fan_out("import time; print('busy'); time.sleep(4)")
    job.wait_until_busy()
    network.silence(1)
    time.sleep(HOST_TIMEOUT / 3)
    network.heal(1)
    assert job.outcome()["reason"] == "done"


def test_a_terminal_that_is_held_does_not_end_the_run(fan_out, network, tmp_path):
    code = (
        "import time\nprint('busy')\nfor number in range(60):\n    print(number, 9999 * 'x')\n"
        "    time.sleep(0.1)\nprint('done')\n"
    )
    job = fan_out(code)
    job.wait_until_busy()
    time.sleep(1.5 * HOST_TIMEOUT)  # nobody reads: a pipe takes 64 KiB
    assert job.process.poll() is None
    assert job.outcome()["reason"] == "done"
    for host in (0, 1):
        assert "done\n" in (tmp_path / f"host-{network.address(host)}.txt").read_text()


def test_ctrl_c_ends_everything_and_a_second_one_at_once(fan_out, network):
    deaf = BUSY.replace("time.sleep(1000)", "").replace(
        "import subprocess", "import signal, subprocess"
    ) + ("signal.signal(signal.SIGTERM, lambda *_: print('asked'))\nwhile True: time.sleep(1)\n")
    job = fan_out(deaf)
    job.wait_until_busy()
    os.kill(job.launcher(), signal.SIGINT)
    job.wait_for("asked", times=2)
    began = time.monotonic()
    os.kill(job.launcher(), signal.SIGINT)
    outcome = job.outcome()
    assert time.monotonic() - began < 10
    assert outcome["reason"] == "stopped"
    assert job.process.returncode == 130
    wait_until_empty(network, 0, 1)


def test_what_does_not_stop_is_killed_after_its_time(fan_out, network):
    deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); print('busy'); time.sleep(1000)"
    job = fan_out(deaf, stop_timeout_seconds=2)
    job.wait_until_busy()
    os.kill(job.launcher(), signal.SIGTERM)
    assert job.outcome()["exit_code"] == 143
    wait_until_empty(network, 0, 1)


def test_all_that_saved_after_sigterm_say_resume(fan_out, network):
    saving = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(75)); print('busy')\n"
    job = fan_out(saving + "time.sleep(1000)")
    job.wait_until_busy()
    os.kill(job.launcher(), signal.SIGTERM)
    assert job.outcome()["exit_code"] == 75


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_hosts_do_not_outlive_their_launcher(fan_out, network, number):
    job = fan_out()
    job.wait_until_busy()
    launcher = job.launcher()
    os.kill(launcher, number)
    began = time.monotonic()
    while any("sleep 1000" in line for host in (0, 1) for line in network.processes(host).values()):
        assert time.monotonic() - began < HOST_TIMEOUT + 12
        time.sleep(0.1)
    os.kill(launcher, signal.SIGKILL) if number == signal.SIGSTOP else None
    wait_until_empty(network, 0, 1)


def test_stopping_one_job_leaves_another_on_the_same_hosts_alone(fan_out, network):
    other = fan_out("import time; print('busy'); time.sleep(6); print('went on')")
    other.wait_until_busy()
    others = set(network.processes(1))
    job = fan_out()
    job.wait_until_busy()
    launcher = min(
        one
        for one, line in network.processes(0).items()
        if "tests.launcher.fan_out" in line and "sleep(6)" not in line
    )
    os.kill(launcher, signal.SIGINT)
    assert job.outcome()["exit_code"] == 130
    assert others <= set(network.processes(1))
    assert other.outcome()["reason"] == "done"
    assert sum("went on" in line for line in other.lines) == 2


def test_a_missing_folder_is_said_with_the_host(fan_out, network):
    network.run(1, "mount", "-t", "tmpfs", "none", os.getcwd())
    try:
        outcome = fan_out().outcome()
        assert network.address(1) in outcome["words"]
        assert outcome["exit_code"] != 0
    finally:
        network.run(1, "umount", os.getcwd())


HANG = """
import os, sys, time
os.environ["RANK"] = sys.argv[1]
from hunyuan_train.launcher.rank.heartbeat import announce_rank
heartbeat = announce_rank()
def the_place_where_it_hangs():
    time.sleep(1000)
"""


def test_a_run_that_does_not_move_on_is_ended_with_the_stacks_of_all(fan_out, network, tmp_path):
    code = """
from tests.launcher.nccl_recorder import Recorder
recorder = Recorder({"0": [0, 1]})
for _ in range(40):  # the CPU is far ahead of the GPU, which has come to the seventh
    recorder.begin("0", "all_reduce", [3])
recorder.complete(6)
heartbeat.read_recorders = lambda: [recorder.dump_json()]
for step in range(3):
    heartbeat.report(step, "training")
    time.sleep(0.3)
print("busy")
the_place_where_it_hangs()
"""
    job = fan_out(HANG + code, hang_timeout_seconds=2)
    job.wait_until_busy()
    os.kill(job.find(1, " -c "), signal.SIGSTOP)
    outcome = job.outcome()
    assert outcome["reason"] == "hung"
    assert outcome["step"] == 2
    assert f"rank 1 on {network.address(1)} is stopped, training" in outcome["words"]
    (file,) = tmp_path.glob("hang-*.txt")
    text = file.read_text()
    assert "the_place_where_it_hangs" in text
    oldest = "oldest collective not completed: nccl:all_reduce [[3]], number 7 of group 0"
    assert oldest in text
    assert "33 more begun since" in text
    assert "no stacks: the process does not answer" in text
    wait_until_empty(network, 0, 1)


def test_a_hang_outside_of_training_is_ended_in_time_too(fan_out, network, tmp_path):
    code = """
heartbeat.report(0, "loading")
for _ in range(30):
    time.sleep(0.1)
    heartbeat.moved_on()
print("busy")
the_place_where_it_hangs()
"""
    job = fan_out(HANG + code, hang_timeout_seconds=2)
    job.wait_until_busy()
    began = time.monotonic()
    outcome = job.outcome()
    assert 1 < time.monotonic() - began < 14
    assert "nothing moved on while loading for 2 s" in outcome["words"]
    (file,) = tmp_path.glob("hang-*.txt")
    assert file.read_text().count("the_place_where_it_hangs") == 2
    wait_until_empty(network, 0, 1)


def test_a_start_that_gets_no_further_is_ended_and_its_host_named(fan_out, network, tmp_path):
    code = "import sys; sys.argv[1] == '1' and __import__('time').sleep(1000)\n"
    job = fan_out(f"{code}{HANG}the_place_where_it_hangs()", hang_timeout_seconds=2)
    outcome = job.outcome()
    assert f"the start got no further for {MEETING:g} s" in outcome["words"]
    assert f"0 of 1 ranks on {network.address(1)} say where they stand" in outcome["words"]
    (file,) = tmp_path.glob("hang-*.txt")
    assert "the_place_where_it_hangs" in file.read_text()
    wait_until_empty(network, 0, 1)
