"""What is made of a host's answer: each check by what it finds, with what is wanted and a remedy.

The answers are this machine's own, changed in one place; GPUs and InfiniBand are made up.
"""

import copy
import os
import sys

import pytest

from hunyuan_train.launcher.cluster.hosts import Host
from hunyuan_train.launcher.doctor.checks import Wanted, check_hosts
from hunyuan_train.launcher.doctor.survey import Report
from hunyuan_train.launcher.host.probe import look_around
from tests.launcher.host.test_gpu_faults import HEALTHY_MEMORY, LOST, USER_PROGRAM

A, B = Host("10.0.0.1", 2), Host("10.0.0.2", 2)
GPU = {"name": "NVIDIA H100 80GB HBM3", "used_mib": 4, "mib": 81559}
GIB = 2**30
MANY = 10**6
HEALTHY = {
    "gpus": [GPU, GPU],
    "driver": "570.86.15",
    "gpu_error": "",
    "packages": {"torch": "2.13.0", "nvidia-nccl-cu13": "2.28.9"},
    "infiniband": {"mlx5_0:1": "4: ACTIVE", "mlx5_1:1": "4: ACTIVE"},
    "memlock": -1,
    "open_files": [1024, MANY],
    "memory": 64 * GIB,
    "disk": {"free": 64 * GIB, "total": 99 * GIB, "writable": True, "folder": "/runs"},
    "temporary_disk": {"free": 64 * GIB, "total": 99 * GIB, "writable": True, "folder": "/tmp"},
    "shm": {"free": 64 * GIB, "total": 99 * GIB, "writable": True, "folder": "/dev/shm"},
    "other_runs": 0,
    "triton_lacks": [],
    "uptime": 500_000.0,
    "gpu_memory_errors": HEALTHY_MEMORY,
    "kernel_log_is_read": True,
    "xids": ["[ 12.5] NVRM: Xid (PCI:0000:1b:00): 79, pid=1, GPU has fallen off the bus."],
}
WANTED = Wanted(
    uses_gpus=True,
    needs_compiler=True,
    builds_kernels=True,
    has_token=True,
    master_port=29500,
    working_folder="/work",
    output_folder="/runs",
)


@pytest.fixture
def reports(repository, tmp_path):
    token = tmp_path / "token"
    token.touch()
    request = {
        "code_folder": str(repository),
        "top_level": str(repository),
        "packages": [],
        "paths": [],
        "ports": [29500],
        "model": "",
        "working_folder": os.getcwd(),
        "output_folder": str(tmp_path),
        "token": str(token),
        "extensions_folder": str(tmp_path),
    }
    found = look_around(request) | HEALTHY | {"ports": {"29500": ""}}
    made = [Report(host=host, found=copy.deepcopy(found)) for host in (A, B)]
    for report in made:
        report.found["interfaces"] = {"eth0": [report.host.address]}
        report.found["tools"]["g++"] = True
    return made


def test_healthy_hosts_have_a_verdict_for_every_check(reports):
    findings = check_hosts(reports, WANTED)
    assert [one for one in findings if one.verdict != "ok"] == []
    for host in (A, B):
        checks = [one.check for one in findings if one.host == host]
        assert set(checks) >= {
            *("ssh", "python", "packages", "code", "model", "working folder", "output folder"),
            *("gpus", "gpus free", "gpu model", "driver", "interface", "infiniband", "ports"),
            *("way to rank 0", "clock", "memory", "disk", "temporary disk", "/dev/shm"),
            *("output folder writable", "open files", "memlock", "compiler", "compilations"),
            *("gpu errors", "kernel's log", "kernels of experts"),
        }


@pytest.mark.parametrize(
    ("change", "check", "verdict", "found", "wanted"),
    [
        ({"gpus": [GPU]}, "gpus", "failed", "1 GPUs", "2, by the slots"),
        (
            {"gpus": [], "gpu_error": "nvidia-smi: timed out"},
            *("gpus", "failed", "nvidia-smi: timed out", "2, by the slots"),
        ),
        (
            {"gpus": [GPU, GPU | {"used_mib": 70000}]},
            *("gpus free", "failed", "GPU 1: 70000 MiB used", "no other program"),
        ),
        ({"gpus": [GPU | {"name": "A100"}] * 2}, "gpu model", "warning", "A100", "10.0.0.1"),
        ({"driver": "535.1"}, "driver", "warning", "535.1", "570.86.15, as on 10.0.0.1"),
        (
            {"packages": {"torch": "2.13.0", "nvidia-nccl-cu13": "2.27.3"}},
            *("packages", "failed", "nvidia-nccl-cu13 2.27.3", "nvidia-nccl-cu13 2.28.9"),
        ),
        ({"python": "3.11.1"}, "python", "failed", "3.11.1", "as on 10.0.0.1"),
        ({"interfaces": {}}, "interface", "failed", "none is up", "one that is up"),
        (
            {"infiniband": {"mlx5_0:1": "4: ACTIVE", "mlx5_1:1": "1: DOWN"}},
            *("infiniband", "warning", "mlx5_1:1 1: DOWN", "2 active ports"),
        ),
        ({"infiniband": {}}, "infiniband", "warning", "0 ports", "2 active ports"),
        ({"memlock": 65536}, "memlock", "failed", "65536 bytes", "unlimited"),
        ({"open_files": [1024, 1024]}, "open files", "failed", "1024, at most 1024", "4096"),
        ({"memory": GIB}, "memory", "failed", "1.00 GiB free", "2.00 GiB"),
        ({"model_faults": ["a", "b", "c", "d"]}, "model", "failed", "a; b; c; …", "all files"),
        (
            {"disk": HEALTHY["disk"] | {"writable": False}},
            *("output folder writable", "failed", "/runs cannot be written", "can be"),
        ),
        ({"tools": {"g++": False}}, "compiler", "failed", "no g++", "g++"),
        (
            {"xids": [USER_PROGRAM, LOST, LOST]},
            *("gpu errors", "warning", "0000:65:00: Xid 79, it has fallen off the bus", "no Xid"),
        ),
        (
            {"gpu_memory_errors": HEALTHY_MEMORY.replace(": No", ": Yes", 1)},
            *("gpu errors", "warning", "wait to be replaced (remapped)", "no uncorrectable"),
        ),
        ({"kernel_log_is_read": False}, "kernel's log", "warning", "cannot be read", "dmesg"),
        (
            {"triton_lacks": ["C compiler (gcc or clang)", "headers of Python (/x/Python.h)"]},
            *("kernels of experts", "failed"),
            *("no C compiler (gcc or clang) and no headers of Python", "Triton"),
        ),
        ({"other_runs": 2}, "other runs", "warning", "2 other runs", "none"),
    ],
)
def test_one_thing_that_is_wrong_is_the_only_finding(
    reports, change, check, verdict, found, wanted
):
    reports[1].found |= change
    (finding,) = [one for one in check_hosts(reports, WANTED) if one.verdict != "ok"]
    assert (finding.host, finding.check, finding.verdict) == (B, check, verdict)
    assert found in finding.found
    assert wanted in finding.wanted
    assert finding.remedy


def test_a_clock_is_compared_with_that_of_the_first_host(reports):
    for report in reports:
        report.clock_ahead = 100.0
    assert all(one.verdict == "ok" for one in check_hosts(reports, WANTED))
    reports[1].clock_ahead = 94.0
    (finding,) = [one for one in check_hosts(reports, WANTED) if one.verdict != "ok"]
    assert (finding.check, finding.found) == ("clock", "-6.0 s")


def test_the_remedy_of_a_package_is_a_command(reports):
    reports[1].found["packages"] = {"torch": "2.12.0", "nvidia-nccl-cu13": "2.28.9"}
    (finding,) = [one for one in check_hosts(reports, WANTED) if one.verdict != "ok"]
    assert finding.remedy == f"{sys.executable} -m pip install torch==2.13.0"
