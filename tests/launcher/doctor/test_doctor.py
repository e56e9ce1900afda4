"""Each fault of a host is found before a run starts: within five seconds, with the host's name.

`docs/faults.md` keeps what these print with `-s`.
"""

import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import tiktoken

from hunyuan_train.launcher.host.extension import extensions_folder
from tests.conftest import REPOSITORY
from tests.launcher.network import PORT, environment_of
from tests.released import write_released

SITE_PACKAGES = Path(tiktoken.__file__).parents[1]
SECONDS = 5.0
SLACK = 10.0  # Python's own start on a machine that does other things, too


def start(network, *arguments, timeout=100, cwd=REPOSITORY, **variables):
    environment = environment_of(network, **{"NODES": "3", **variables})
    there = ["env", "-C", str(cwd), f"PYTHONPATH={REPOSITORY}"]
    command = network.command(0, [*there, sys.executable, *arguments])
    began = time.monotonic()
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )
    return result, time.monotonic() - began


def doctor(network, *arguments, **settings):
    return start(network, "-m", "hunyuan_train", "doctor", *arguments, **settings)


@pytest.fixture
def flags(tmp_path, repository):
    return ["--recipe", "tiny", "--output_dir", str(tmp_path / "run")]


def assert_refused(network, flags, *words, host=1, check, **variables):
    """A run is refused with the check and the host; so says the doctor, and names no other host."""
    script = str(REPOSITORY / "train.py")
    result, seconds = start(network, script, *flags, **variables)
    assert result.returncode == 2, result.stderr
    assert seconds < SECONDS + SLACK
    lines = [line for line in result.stderr.splitlines() if line.startswith("failed: ")]
    assert lines, result.stderr
    assert all(f"host {network.address(host)}: " in line for line in lines), lines
    line = next((line for line in lines if f": {check}: " in line), None)
    assert line, lines
    sys.stdout.write(f"| {check} | {seconds:.1f} s | `{line}` |\n")
    assert "fix: " in result.stderr
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr
    return result


@contextmanager
def mounted(network, host, *words):
    target = words[-1]
    done = network.run(host, "mount", *words)
    assert done.returncode == 0, done.stderr
    try:
        yield
    finally:
        network.run(host, "umount", target)


@pytest.fixture
def upper(tmp_path):
    """A folder to lay over a host's site-packages; what is in it changes that host only."""
    for name in ("upper", "work"):
        (tmp_path / name).mkdir()
    return tmp_path / "upper"


def overlay(upper: Path) -> list[str]:
    layers = f"lowerdir={SITE_PACKAGES},upperdir={upper},workdir={upper.with_name('work')}"
    return ["-t", "overlay", "-o", layers, "overlay", str(SITE_PACKAGES)]


def test_fit_hosts_are_said_to_be_so_in_time(network, flags):
    result, seconds = doctor(network, *flags)
    assert result.returncode == 0, result.stdout + result.stderr
    assert seconds < SECONDS + SLACK
    for check in ("ssh", "packages", "code", "files", "clock", "way to rank 0", "/dev/shm"):
        line = next(line for line in result.stdout.splitlines() if line.startswith(f"{check} "))
        assert line.split()[-3:] == ["ok"] * 3


def test_nothing_secret_is_shown(network, flags):
    result, _ = doctor(network, *flags, WANDB_API_KEY="s3cret")
    assert "s3cret" not in result.stdout + result.stderr


def test_a_wrong_port(network, flags):
    hosts = f"{network.address(0)}:1,{network.address(1)}:1"
    settings = {"NODE_IP_LIST": hosts, "NODES": "2", "SSH_PORT": "36006"}
    assert_refused(network, flags, "Connection refused", check="ssh port", **settings)


def test_a_wrong_key(network, flags, tmp_path):
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "id")], check=True
    )
    text = (network.root / "ssh_config").read_text()
    config = tmp_path / "ssh_config"
    wrong = f"Host {network.address(1)}\n  IdentityFile {tmp_path}/id\n  IdentitiesOnly yes\n"
    right = text.replace("Host *", f"Host * !{network.address(1)}", 1)
    both = text.replace(f"  IdentityFile {network.root}/id\n", "")
    config.write_text(wrong + right + both)
    words = ("Permission denied", "ssh-copy-id -p 36005")
    assert_refused(network, flags, *words, check="ssh key", SSH_CONFIG=str(config))


def test_an_unknown_host_key_and_that_trust_fixes_it(network, flags, tmp_path):
    known = tmp_path / "known_hosts"
    lines = (network.root / "known_hosts").read_text().splitlines(keepends=True)
    known.write_text("".join(line for line in lines if network.address(1) not in line))
    config = tmp_path / "ssh_config"
    text = (network.root / "ssh_config").read_text()
    config.write_text(text.replace(str(network.root / "known_hosts"), str(known)))
    settings = {"SSH_CONFIG": str(config)}
    assert_refused(network, flags, "doctor --trust", check="host key", **settings)
    result, _ = doctor(network, "--trust", *flags, **settings)
    assert result.returncode == 0, result.stdout
    key = network.root / network.names[1] / "hostkey.pub"
    listing = subprocess.run(["ssh-keygen", "-lf", str(key)], capture_output=True, text=True)
    assert f"{network.address(1)}: ssh-ed25519 {listing.stdout.split()[1]} (now trusted)" in (
        result.stdout
    )
    assert network.address(1) in known.read_text()


def test_a_changed_host_key_is_not_trusted(network, flags, tmp_path):
    known = tmp_path / "known_hosts"
    other = (network.root / network.names[2] / "hostkey.pub").read_text().split()[:2]
    text = (network.root / "known_hosts").read_text().splitlines()
    changed = [line for line in text if network.address(1) not in line]
    changed.append(f"[{network.address(1)}]:{PORT} {' '.join(other)}")
    known.write_text("\n".join([*changed, ""]))
    config = tmp_path / "ssh_config"
    text = (network.root / "ssh_config").read_text()
    config.write_text(text.replace(str(network.root / "known_hosts"), str(known)))
    before = known.read_text()
    result, _ = doctor(network, "--trust", *flags, SSH_CONFIG=str(config))
    assert result.returncode == 1
    assert "ssh-keygen -R" in result.stdout
    assert known.read_text() == before


@pytest.mark.parametrize("fault", ["cut", "silence"])
def test_a_host_that_does_not_answer(network, flags, fault):
    getattr(network, fault)(1)
    try:
        assert_refused(network, flags, check="ssh")
    finally:
        network.heal(1)


def test_another_package_version(network, flags, upper):
    (folder,) = SITE_PACKAGES.glob("tiktoken-*.dist-info")
    text = (folder / "METADATA").read_text()
    version = next(line for line in text.splitlines() if line.startswith("Version: "))
    (upper / folder.name).mkdir()
    (upper / folder.name / "METADATA").write_text(text.replace(version, "Version: 0.0.1", 1))
    with mounted(network, 1, *overlay(upper)):
        words = ("tiktoken 0.0.1", "-m pip install tiktoken==")
        assert_refused(network, flags, *words, check="packages")


def test_a_wrong_clock(network, flags, upper):
    late = "import time; time.time = (lambda right: lambda: right() + 3600)(time.time)\n"
    (upper / "late.pth").write_text(late)
    with mounted(network, 1, *overlay(upper)):
        assert_refused(
            network, flags, "00.0 s; wanted: within 5 s of", "chronyc makestep", check="clock"
        )


def test_other_data(network, flags, tmp_path, repository):
    data = repository / "data/practice_train.jsonl"
    other = tmp_path / "other.jsonl"
    other.write_bytes(data.read_bytes()[:-200])
    with mounted(network, 1, "--bind", str(other), str(data)):
        assert_refused(network, flags, str(data), "--sync", check="files")


def test_a_model_of_which_something_is_missing(network, flags, tmp_path):
    model = tmp_path / "model"
    tokenizer = str(REPOSITORY / "data/tokenizer_tiny")
    write_released(model)
    flags = [*flags, "--model_name_or_path", str(model), "--tokenizer_name_or_path", tokenizer]
    result, _ = doctor(network, *flags)
    assert result.returncode == 0, result.stdout
    first, second, _ = sorted(model.glob("*.safetensors"))
    cut = tmp_path / "cut"
    cut.write_bytes(second.read_bytes()[:-1])
    with mounted(network, 1, "--bind", str(cut), str(second)):
        result, _ = doctor(network, *flags)
    assert f"host {network.address(1)}: model: {second.name} ends early" in result.stdout
    first.unlink()
    result, _ = doctor(network, *flags)
    for host in range(3):
        assert f"host {network.address(host)}: model: {first.name} is missing" in result.stdout
    assert result.returncode == 1


def test_a_missing_working_folder_is_made_where_that_is_asked_for(network, flags, tmp_path):
    folder = tmp_path / "mine/it's here"
    folder.mkdir(parents=True)
    with mounted(network, 1, "-t", "tmpfs", "none", str(folder.parent)):
        refused, _ = doctor(network, *flags, cwd=folder)
        assert f"host {network.address(1)}: working folder: no {folder}" in refused.stdout
        fixed, _ = doctor(network, "--fix", *flags, cwd=folder)
        assert network.run(1, "test", "-d", str(folder)).returncode == 0
    assert (refused.returncode, fixed.returncode) == (1, 0), fixed.stdout


def test_missing_code(network, flags, repository):
    with mounted(network, 1, "-t", "tmpfs", "none", str(repository / "hunyuan_train")):
        assert_refused(network, flags, check="code")


def test_a_missing_interpreter(network, flags):
    folder = str(Path(sys.executable).parent)
    with mounted(network, 1, "-t", "tmpfs", "none", folder):
        assert_refused(network, flags, sys.executable, check="python")


def test_a_port_that_is_taken(network, flags):
    listen = "import socket, time; s = socket.create_server(('', 29555)); print(); time.sleep(99)"
    listener = subprocess.Popen(
        network.command(0, [sys.executable, "-u", "-c", listen]), stdout=subprocess.PIPE
    )
    listener.stdout.readline()
    try:
        assert_refused(
            network, flags, "taken by", "(process ", host=0, check="ports", MASTER_PORT="29555"
        )
    finally:
        network.clear()
        listener.wait()


def test_a_full_disk(network, flags):
    output_dir = str(network.small_disk / "run")
    arguments = [*flags[:2], "--output_dir", output_dir]
    script = str(REPOSITORY / "train.py")
    result, seconds = start(network, script, *arguments)
    assert result.returncode == 2
    assert seconds < SECONDS + SLACK
    for host in range(3):
        assert f"host {network.address(host)}: disk: 0.00 GiB free" in result.stderr
    sys.stdout.write(f"| disk full | {seconds:.1f} s |\n")


def test_an_output_folder_that_is_not_shared(network, tmp_path):
    flags = ["--recipe", "tiny", "--output_dir", str(tmp_path / "own/run")]
    (tmp_path / "own").mkdir()
    with mounted(network, 1, "-t", "tmpfs", "-o", "size=2g", "none", str(tmp_path / "own")):
        assert_refused(network, flags, "on a shared disk", check="output folder")


def test_small_shared_memory(network, flags):
    network.run(1, "mount", "-o", "remount,size=16m", "/dev/shm")
    try:
        assert_refused(network, flags, "mount -o remount,size=", check="/dev/shm")
    finally:
        network.run(1, "mount", "-o", "remount,size=2g", "/dev/shm")


def test_a_stale_lock_is_warned_of_and_fixed(network, flags, tmp_path):
    settings = {"TORCH_EXTENSIONS_DIR": str(tmp_path / "extensions")}
    lock = extensions_folder(settings) / "deepspeed_shm_comm/lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    os.utime(lock, (0, 0))
    result, _ = doctor(network, *flags, **settings)
    assert result.returncode == 0
    assert f"fix: rm -f {lock}" in result.stdout
    result, _ = doctor(network, "--fix", *flags, **settings)
    assert not lock.exists()
    assert "warning" not in result.stdout


def test_a_shell_is_never_reached_by_what_the_list_says(network, flags, tmp_path):
    mark = tmp_path / "mark"
    for entry in (
        f"$(touch {mark})",
        f"`touch {mark}`",
        f"10.0.0.1;touch {mark}",
        "-oProxyCommand=x",
    ):
        script = str(REPOSITORY / "train.sh")
        environment = environment_of(network, NODE_IP_LIST=f"{entry}:1,{network.address(1)}:1")
        result = subprocess.run(
            network.command(0, ["bash", script, *flags]),
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert result.returncode == 2, result.stderr
        assert repr(f"{entry}:1") in result.stderr
    assert not mark.exists()


@pytest.mark.slow
def test_a_slow_cable_is_measured(network, flags):
    result, seconds = doctor(network, "--bandwidth", *flags)
    assert result.returncode == 0, result.stdout
    assert seconds < 60 + SLACK
    network.slow(1, "20mbit")
    try:
        result, seconds = doctor(network, "--bandwidth", *flags)
    finally:
        network.full_speed(1)
    assert result.returncode == 1
    assert seconds < 60 + SLACK
    slow = [line for line in result.stdout.splitlines() if line.startswith("failed: ")]
    sys.stdout.write(f"| slow cable | {seconds:.0f} s | `{slow[0]}` |\n")
    assert [line.partition(": bandwidth: ")[0] for line in slow] == [
        f"failed: host {network.address(1)}"
    ]
