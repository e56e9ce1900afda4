"""What the tests of every part share."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling, Scheduling

from hunyuan_train.launcher.host.extension import extensions_folder
from hunyuan_train.launcher.host.probe import free_port
from hunyuan_train.launcher.machine import count_gpus

# Before torch is imported anywhere: ranks would fight over the cores, and sums of several threads
# come out in another order each time; the engine's extension belongs to this environment.
# Its ninja comes first, as in the launcher: another one would compile everything again.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
os.environ["TORCH_EXTENSIONS_DIR"] = str(extensions_folder(os.environ))
if count_gpus() == 0:
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

# A home of their own, so that tests leave no tokenized data in the user's. What others keep for all
# their users (packages, fonts, environments of clients) stays where it is.
for variable, place in (
    ("XDG_CACHE_HOME", ".cache"),
    ("HUNYUAN_CLIENTS", ".cache/hunyuan_train/clients"),
    ("PYENV_ROOT", ".pyenv"),
):
    os.environ.setdefault(variable, str(Path.home() / place))
IS_FIRST = "PYTEST_XDIST_WORKER" not in os.environ
if IS_FIRST:
    os.environ["HOME"] = tempfile.mkdtemp(prefix="hunyuan-tests-home-")

if "PYTEST_XDIST_WORKER" in os.environ:  # which ignores Ctrl-C, and so would all that tests start
    signal.signal(signal.SIGINT, signal.default_int_handler)

# On a busy machine an example may take any time, and is no less right for it.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")

LAUNCHER = "tests/launcher/"  # tests of hosts: they wait for processes and keep to time limits
NICENESS = 10  # of all others, so that what is waited for answers in its time

SSHD = "/usr/sbin/sshd"
REPOSITORY = Path(__file__).resolve().parents[1]

Finished = subprocess.CompletedProcess[str]


class ByFile(LoadScopeScheduling):
    """Deals out files to test processes; tests of hosts come first, one after the other in one."""

    def _split_scope(self, nodeid: str) -> str:
        return LAUNCHER if nodeid.startswith(LAUNCHER) else nodeid.partition("::")[0]


def pytest_unconfigure() -> None:
    """Remove the home of the tests."""
    if IS_FIRST:
        shutil.rmtree(os.environ["HOME"], ignore_errors=True)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Scheduling:
    """xdist's own `loadgroup` does nothing with pytest 9.2, whose node ids are no strings."""
    return ByFile(config, log)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Let the processes that compute give way, where there are two."""
    is_beside_others = "PYTEST_XDIST_WORKER" in os.environ
    if is_beside_others and not item.nodeid.startswith(LAUNCHER) and os.nice(0) < NICENESS:
        os.nice(NICENESS)


@pytest.fixture
def repository() -> Path:
    """The root of this repository."""
    return REPOSITORY


def start_train(*arguments: str, cwd: Path, timeout: float = 600) -> Finished:
    """Run `train.py` from another folder, as a user would, and return what it said."""
    command = [sys.executable, str(REPOSITORY / "train.py"), *arguments]
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=timeout, check=False
    )


@pytest.fixture
def make_disk(tmp_path: Path) -> Iterator[Callable[[float], Path]]:
    """Makes a disk of so many megabytes; skips where that is not allowed."""
    disk = tmp_path / "disk"

    def make(megabytes: float) -> Path:
        disk.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={int(megabytes * 1024)}k", "none", disk]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("mounting a tmpfs is not permitted here")
        return disk

    yield make
    subprocess.run(["umount", "-l", disk], capture_output=True, check=False)


@pytest.fixture
def run_train(tmp_path: Path) -> Callable[..., Finished]:
    """`start_train` from the test's own folder."""
    return partial(start_train, cwd=tmp_path)


@pytest.fixture
def loopback_ssh(tmp_path: Path) -> Iterator[list[str]]:
    """An ssh command to this machine."""
    if os.geteuid() or shutil.which("ssh") is None or not Path(SSHD).exists():
        pytest.skip("sshd on loopback needs root and apt-get install openssh-server")
    for name in ("id", "hostkey"):
        make = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name)]
        subprocess.run(make, check=True)
    port = free_port()
    Path("/run/sshd").mkdir(exist_ok=True)
    settings = {
        "HostKey": tmp_path / "hostkey",
        "AuthorizedKeysFile": tmp_path / "id.pub",
        "ListenAddress": f"127.0.0.1:{port}",
        "PidFile": "none",
        "StrictModes": "no",
        "UsePAM": "no",
    }
    config = tmp_path / "sshd_config"
    config.write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
    server = subprocess.Popen([SSHD, "-D", "-e", "-f", str(config)], stderr=subprocess.DEVNULL)
    options = ["-F", "/dev/null", "-i", str(tmp_path / "id"), "-p", str(port)]
    hosts = ["-o", "StrictHostKeyChecking=no", "-o", f"UserKnownHostsFile={tmp_path / 'known'}"]
    command = ["ssh", *options, *hosts, "-o", "BatchMode=yes", "root@127.0.0.1"]
    deadline = time.monotonic() + 10
    while (test := subprocess.run([*command, "true"], capture_output=True, check=False)).returncode:
        if time.monotonic() > deadline:
            server.terminate()
            pytest.skip(f"sshd on loopback lets nobody in: {test.stderr.decode()}")
        time.sleep(0.2)
    yield command
    server.terminate()
    server.wait()
