"""The script of --print-slurm under a real Slurm on two hosts."""

import os
import shutil
import subprocess
import sys
import time

import pytest

from tests.conftest import REPOSITORY
from tests.launcher.training import RUN, STEPS, losses

CONF = """\
ClusterName=test
SlurmctldHost=hosta({first})
AuthType=auth/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
NodeName=hosta NodeAddr={first} CPUs=1 State=UNKNOWN
NodeName=hostb NodeAddr={second} CPUs=1 State=UNKNOWN
PartitionName=all Nodes=hosta,hostb Default=YES MaxTime=INFINITE State=UP
"""
START_MUNGE = """
set -e
mkdir -p /run/munge && mount -t tmpfs -o mode=755 none /run/munge
mount -t tmpfs none /var/log/munge && mount -t tmpfs none /var/lib/munge
munged --force --key-file=$1/munge.key
"""


class Slurm:
    """slurmctld and munged on the first host, slurmd and munged on both."""

    def __init__(self, network, folder) -> None:
        self.network, self.folder = network, folder
        (folder / "state").mkdir(parents=True)
        (folder / "munge.key").write_bytes(os.urandom(128))
        (folder / "munge.key").chmod(0o400)
        conf = CONF.format(folder=folder, first=network.address(0), second=network.address(1))
        (folder / "slurm.conf").write_text(conf)
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}

    def start(self) -> None:
        for host in (0, 1):
            done = self.network.run(host, "bash", "-c", START_MUNGE, "_", str(self.folder))
            assert done.returncode == 0, done.stderr
        self.run("slurmctld")
        self.run("slurmd")
        self.run("slurmd", host=1)
        deadline = time.monotonic() + 30
        while "idle" not in self.run("sinfo", "--noheader", "--format=%T %D") or not self.is_up():
            assert time.monotonic() < deadline, (self.folder / "slurmctld.log").read_text()
            time.sleep(0.3)

    def is_up(self) -> bool:
        return self.run("sinfo", "--noheader", "--states=idle", "--format=%D").strip() == "2"

    def run(self, *words: str, host: int = 0) -> str:
        done = subprocess.run(
            self.network.command(host, words),
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    def state(self, job: str) -> str:
        words = self.run("scontrol", "show", "job", job).split()
        return next(word for word in words if word.startswith("JobState=")).partition("=")[2]


@pytest.fixture(scope="module")
def slurm(network, tmp_path_factory):
    if shutil.which("slurmctld") is None or shutil.which("munged") is None:
        pytest.skip("Slurm is missing: apt-get install slurmctld slurmd slurm-client munge")
    made = Slurm(network, tmp_path_factory.mktemp("slurm"))
    made.start()
    yield made
    network.clear()


def write_script(network, tmp_path, *flags: str):
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "train.py"), *flags, "--print_slurm"],
        env={**os.environ, "NODE_IP_LIST": "hosta:1,hostb:1"},
        capture_output=True,
        text=True,
        check=True,
    )
    script = tmp_path / "job.sh"
    script.write_text(done.stdout)
    return script


def wait_for(condition, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.5)


@pytest.mark.slow
def test_a_job_trains_like_any_other_and_is_requeued_before_its_time_is_over(
    slurm,
    network,
    tmp_path,
    undisturbed,
):
    folder = tmp_path / "run"
    script = write_script(network, tmp_path, *RUN, "--output_dir", str(folder))
    job = slurm.run("sbatch", "--parsable", str(script)).strip()
    output = tmp_path / f"run-{job}.txt"
    wait_for(lambda: output.exists() and "step 5/" in output.read_text(), 200)
    slurm.run("scancel", "--batch", "--signal=USR1", job)
    wait_for(lambda: f"step {STEPS}/" in output.read_text(), 300)
    wait_for(lambda: slurm.state(job) == "COMPLETED", 100)
    assert "resumed from" in output.read_text()
    assert losses(folder) == losses(undisturbed)


@pytest.mark.slow
def test_a_failing_rank_ends_the_job_on_all_hosts(slurm, network, tmp_path):
    script = write_script(network, tmp_path, *RUN, "--output_dir", str(tmp_path / "run"))
    job = slurm.run("sbatch", "--parsable", str(script)).strip()
    output = tmp_path / f"run-{job}.txt"
    wait_for(lambda: output.exists() and "step 3/" in output.read_text(), 200)
    ranks = [one for one, line in network.processes(1).items() if "train.py" in line]
    os.kill(max(ranks), 9)
    wait_for(lambda: slurm.state(job) == "FAILED", 60)
    wait_for(
        lambda: (
            not any(
                "train.py" in line for host in (0, 1) for line in network.processes(host).values()
            )
        ),
        30,
    )
