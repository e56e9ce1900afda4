"""An agent on this machine, told what to do by hand."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hunyuan_train.launcher.host import node_agent
from tests.launcher.host.test_supervise import has_ended

# A process in a session of its own, as torchrun's ranks are; both are named.
BUSY = (
    "import os, subprocess, sys, time\n"
    "orphan = subprocess.Popen(['sleep', '1000'], start_new_session=True)\n"
    "print(os.getpid(), orphan.pid, file=sys.stderr, flush=True)\n"
    "time.sleep(1000)\n"
)


@pytest.fixture
def agent(repository, tmp_path):
    started = []

    def start(*codes, lease=30.0, stop=30.0, working_folder=tmp_path, **environment):
        process = subprocess.Popen(
            [sys.executable, "-m", "hunyuan_train.launcher.host.node_agent"],
            cwd=repository,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        spec = {
            "commands": [[sys.executable, "-c", code, "{folder}"] for code in codes],
            "environment": environment,
            "files": {"note": "read me"},
            "working_folder": str(working_folder),
            "lease_seconds": lease,
            "stop_seconds": stop,
        }
        order(process, json.dumps(spec))
        started.append(process)
        return process

    yield start
    for process in started:  # a killed one could not clear up
        process.stdin.close()
        process.wait(timeout=20)
        process.stdout.close()
        process.stderr.close()


def order(process, line):
    process.stdin.write(f"{line}\n")
    process.stdin.flush()


def busy_processes(process):
    return [int(word) for word in process.stderr.readline().split()]


def events(process):
    """All that it tells until its end, by name."""
    return {event.pop("event"): event for event in map(json.loads, process.stdout)}


def test_commands_run_one_after_the_other_in_a_folder_of_their_own(agent, tmp_path):
    first = "import sys; open('mark', 'w').write(open(sys.argv[1] + '/note').read())"
    second = (
        "import os, sys\n"
        "print(os.environ['WORD'], open('mark').read(), sys.argv[1], file=sys.stderr)"
    )
    process = agent(first, second, WORD="hello")
    told = events(process)
    assert told["ended"] == {"exit_code": 0, "failure": None, "was_told_to": False}
    *words, folder = process.stderr.read().split()
    assert words == ["hello", "read", "me"]
    assert not Path(folder).exists()
    assert process.wait() == 0


def test_after_a_failed_command_nothing_starts(agent, tmp_path):
    process = agent("raise SystemExit(7)", "open('mark', 'w')")
    assert events(process)["ended"]["exit_code"] == 7
    assert not (tmp_path / "mark").exists()


def test_it_answers_a_ping_with_its_time(agent):
    process = agent(BUSY)
    busy_processes(process)
    order(process, "ping 5")
    for line in process.stdout:
        event = json.loads(line)
        if event["event"] == "pong":
            break
    assert event["number"] == 5
    assert abs(event["time"] - time.time()) < 5


@pytest.mark.parametrize("how", ["end of stdin", "silence"])
def test_without_its_launcher_it_ends_everything(agent, how):
    process = agent(BUSY, lease=1.0 if how == "silence" else 30.0)
    processes = busy_processes(process)
    if how == "end of stdin":
        process.stdin.close()
    assert process.wait(timeout=20) == 74
    assert all(has_ended(one) for one in processes)


@pytest.mark.parametrize("how", ["kill", "stop", signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_it_ends_everything_when_it_is_told_to(agent, how):
    process = agent(BUSY)
    processes = busy_processes(process)
    order(process, how) if isinstance(how, str) else process.send_signal(how)
    assert events(process)["ended"]["exit_code"] in (137, 143)
    assert all(has_ended(one) for one in processes)


def test_ranks_get_their_time_to_save(agent):
    saving = (
        "import os, signal, sys, time\n"
        "open(sys.argv[1] + '/0.pid', 'w').write(str(os.getpid()))\n"
        "signal.signal(15, lambda *_: (time.sleep(1), sys.exit(75)))\n"
        "print('ready', file=sys.stderr, flush=True)\n"
        "while True: time.sleep(0.1)\n"
    )
    process = agent(saving)
    assert process.stderr.readline() == "ready\n"
    order(process, "stop")
    assert events(process)["ended"]["exit_code"] == 75


def test_only_its_own_processes_are_touched(agent):
    bystander = subprocess.Popen(["sleep", "1000"])
    try:
        process = agent(BUSY)
        busy_processes(process)
        order(process, "kill")
        process.wait(timeout=20)
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_a_killed_agent_takes_its_command_along(agent):
    process = agent("import os, sys, time; print(os.getpid(), file=sys.stderr); time.sleep(1000)")
    (child,) = busy_processes(process)
    os.kill(process.pid, signal.SIGKILL)
    assert has_ended(child)


def test_a_missing_working_folder_is_said(agent, tmp_path):
    process = agent(BUSY, working_folder=tmp_path / "nowhere")
    assert events(process)["ended"]["exit_code"] == 2
    assert f"{tmp_path}/nowhere, from which the run is started, is missing" in process.stderr.read()


def test_the_folder_of_a_killed_agent_goes_and_that_of_a_living_one_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(node_agent.tempfile, "gettempdir", lambda: str(tmp_path))
    for name in ("killed", "living", "beginning"):
        (tmp_path / f"hunyuan_train_{name}" / "output").mkdir(parents=True)
    for name in ("killed", "living"):
        (tmp_path / f"hunyuan_train_{name}" / node_agent.LOCK).touch()
    victim = tmp_path / "victim"
    (victim / "precious").mkdir(parents=True)
    (victim / node_agent.LOCK).touch()
    (tmp_path / "hunyuan_train_link").symlink_to(victim)
    with (tmp_path / "hunyuan_train_living" / node_agent.LOCK).open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        node_agent.remove_left_folders()
        left = {folder.name.removeprefix("hunyuan_train_") for folder in tmp_path.iterdir()}
    assert left == {"living", "beginning", "link", "victim"}
    assert (victim / "precious").exists()
