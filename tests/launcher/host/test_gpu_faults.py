"""What NVIDIA's driver writes of errors is named, with the remedy; lines are as it writes them."""

import json
import os

import pytest

from hunyuan_train.errors import ConfigError
from hunyuan_train.launcher.host import probe, triton
from hunyuan_train.launcher.host.gpu_faults import describe_faults, find_faults, read_sections
from hunyuan_train.launcher.host.node_agent import CAUSE
from hunyuan_train.launcher.host.ranks import leave_cause
from tests.config.resolved import EIGHT_GPUS, resolve_flags

LOST = (
    "[499000.250000] NVRM: Xid (PCI:0000:65:00): 79, pid='<unknown>', name=<unknown>, GPU has "
    "fallen off the bus."
)
USER_PROGRAM = "[499000.1] NVRM: Xid (PCI:0000:65:00): 31, pid=7194, name=python3, Ch 00000008"
# Of an H100 by driver 570; the test adds a second GPU, and errors.
HEALTHY_MEMORY = """
==============NVSMI LOG==============

Timestamp                                 : Sat Nov 28 10:00:00 2026
Driver Version                            : 570.86.15
CUDA Version                              : 12.8

Attached GPUs                             : 1
GPU 00000000:1B:00.0
    ECC Mode
        Current                           : Enabled
        Pending                           : Enabled
    ECC Errors
        Volatile
            SRAM Correctable              : 0
            SRAM Uncorrectable Parity     : 0
            SRAM Uncorrectable SEC-DED    : 0
            DRAM Correctable              : 7
            DRAM Uncorrectable            : 0
        Aggregate
            SRAM Correctable              : 0
            SRAM Uncorrectable Parity     : 0
            SRAM Uncorrectable SEC-DED    : 0
            DRAM Correctable              : 9
            DRAM Uncorrectable            : 5
            SRAM Threshold Exceeded       : N/A
        Aggregate Uncorrectable SRAM Sources
            SRAM L2                       : 0
            SRAM SM                       : 0
            SRAM Microcontroller          : 0
            SRAM PCIE                     : 0
            SRAM Other                    : 0
    Remapped Rows
        Correctable Error                 : 0
        Uncorrectable Error               : 1
        Pending                           : No
        Remapping Failure Occurred        : N/A
        Bank Remap Availability Histogram
            Max                           : 2560 bank(s)
            High                          : 0 bank(s)
            None                          : 0 bank(s)
"""
ONE_GPU = HEALTHY_MEMORY[HEALTHY_MEMORY.index("GPU 0000") :]
# What the driver writes, and what is said of it.
LINES = [
    (LOST, "GPU 0000:65:00: Xid 79, it has fallen off the bus (GPU has fallen off the bus.)"),
    (
        "[499000.5] NVRM: Xid (PCI:0000:01:00): 94, pid=7194, Contained: CE User Channel (0x9). "
        "RST: No, D-RST: No",
        "Xid 94, an uncorrectable error of its memory, which hit one program alone (Contained: CE",
    ),
    (
        "[499000.5] NVRM: Xid (PCI:0000:01:00 GPU-I:05): 95, pid=7194, Uncontained: LTC TAG (0x2)",
        "GPU 0000:01:00: Xid 95, an uncorrectable error of its memory, which may have hit all",
    ),
    (
        "[499000.5] NVRM: Xid (PCI:0000:9d:00): 119, pid=45, name=nvidia-smi, Timeout after 6s of "
        "waiting for RPC response from GPU6 GSP! Expected function 76 (GSP_RM_CONTROL)",
        "Xid 119, its system processor (GSP) does not answer (Timeout after 6s of waiting",
    ),
    (
        "[499000.5] NVRM: Xid (PCI:0000:01:00): 32, Channel ID 00000009 intr 00800000",
        "Xid 32, a damaged stream of commands (Channel ID 00000009",
    ),
    (
        "[499000.5] NVRM: Xid (PCI:0000:01:00): 999, pid=1, name=x, Something new",
        "Xid 999, Something new: reset it",
    ),
    (
        "[499000.5] nvidia-nvswitch0: SXid (PCI:0000:c1:00.0): 20034, Fatal, Link 30 LTSSM Fault "
        "Up",
        "GPU 0000:c1:00.0: SXid 20034 of an NVSwitch (Fatal, Link 30 LTSSM Fault Up)",
    ),
    (
        "[499000.500000] node7 kernel: NVRM: Xid (PCI:0000:01:00): 74, pid='<unknown>', "
        "name=<unknown>, NVLink: fatal error detected on link 6(0x10000, 0x0)",
        "Xid 74, an error of NVLink (NVLink: fatal error detected on link 6",
    ),
]


def host(*xids, memory=HEALTHY_MEMORY):
    return {"uptime": 500_000.0, "xids": list(xids), "gpu_memory_errors": memory}


@pytest.mark.parametrize(("line", "words"), LINES)
def test_each_form_of_the_kernels_line_is_named(line, words):
    assert words in describe_faults(find_faults(host(line), within_seconds=3600))


def test_an_xid_before_the_run_is_not_told_and_a_repeated_one_once():
    assert find_faults(host(LOST), within_seconds=900) == []
    assert len(find_faults(host(LOST, LOST), within_seconds=1100)) == 1


def test_an_error_of_a_program_is_told_from_one_of_the_gpu():
    (fault,) = find_faults(host(USER_PROGRAM), within_seconds=1100)
    assert fault.is_of_program
    assert "by a program on it" in fault.remedy


def test_errors_that_were_corrected_or_are_from_before_the_last_reset_are_none():
    assert find_faults(host(), within_seconds=1) == []
    ((address, values),) = read_sections(HEALTHY_MEMORY)
    assert address == "00000000:1b:00.0"
    assert values["ECC Errors", "Aggregate", "DRAM Uncorrectable"] == "5"
    assert values["Remapped Rows", "Bank Remap Availability Histogram", "Max"] == "2560 bank(s)"


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("DRAM Uncorrectable            : 0", "DRAM Uncorrectable            : 3", "3 uncorrectab"),
        ("Parity     : 0", "Parity     : 2", "2 uncorrectable errors of its memory (ECC)"),
        (
            "Pending                           : No",
            "Pending                           : Yes",
            "wait",
        ),
        ("Failure Occurred        : N/A", "Failure Occurred        : Yes", "could not be replaced"),
    ],
)
def test_memory_that_failed_is_told_of_the_gpu_that_has_it(before, after, words):
    second = ONE_GPU.replace("1B:00", "C3:00").replace(before, after, 1)
    (fault,) = find_faults(host(memory=HEALTHY_MEMORY + second), within_seconds=1)
    assert words in fault.words
    assert fault.address == "00000000:c3:00.0"


def test_a_card_without_such_counts_has_no_faults():
    assert find_faults(host(memory=HEALTHY_MEMORY.replace(": 0", ": N/A")), within_seconds=1) == []


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Puts programs in front of PATH that print a text."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def make(name, text, exit_code=0):
        (folder / f"{name}.txt").write_text(text)
        program = folder / name
        program.write_text(f"#!/bin/sh\ncat {folder}/{name}.txt\nexit {exit_code}\n")
        program.chmod(0o755)

    return make


def now(line):
    """A kernel's line of this moment."""
    return f"[{float(open('/proc/uptime').read().split()[0]):.6f}]{line.partition(']')[2]}\n"


@pytest.mark.parametrize(
    ("exit_code", "is_told"), [(1, True), (-6, True), (2, False)], ids=["crash", "abort", "user"]
)
def test_a_crash_is_told_with_what_the_driver_says_of_its_gpus(
    programs, tmp_path, exit_code, is_told
):
    programs("nvidia-smi", HEALTHY_MEMORY)
    programs(
        "dmesg",
        "[    0.000000] Linux version 6.8\n"
        + LOST.replace("499000", "     1")
        + "\n"
        + now(USER_PROGRAM),
    )
    (tmp_path / "1.failure").write_text("rank 1 failed:\nRuntimeError: CUDA error")
    leave_cause({1: exit_code}, tmp_path, seconds=60)
    words = json.loads((tmp_path / CAUSE).read_text())["words"]
    assert ("Xid 31, a page fault (Ch 00000008): by a program on it" in words) == is_told
    assert "Xid 79" not in words  # it is from before the start


def test_where_dmesg_is_forbidden_the_journal_is_asked(programs):
    programs("nvidia-smi", HEALTHY_MEMORY)
    programs("dmesg", "", exit_code=1)
    programs("journalctl", now(LINES[-1][0]))
    found = probe.read_gpu_faults()
    assert found["kernel_log_is_read"]
    (fault,) = find_faults(found, within_seconds=60)
    assert "Xid 74" in fault.words
    programs("journalctl", "", exit_code=1)
    assert not probe.read_gpu_faults()["kernel_log_is_read"]


def test_experts_on_gpus_need_a_compiler_and_the_headers_of_this_python(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(probe.sysconfig, "get_path", lambda _: str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    flags = "--num_processes 2 --expert_parallel_size 2"
    on_gpus = resolve_flags(flags, EIGHT_GPUS)
    with pytest.raises(ConfigError, match="no C compiler") as caught:
        triton.check_triton(on_gpus)
    assert f"no headers of Python ({tmp_path}/Python.h)" in str(caught.value)
    assert "apt-get install gcc python3-dev" in str(caught.value)
    triton.check_triton(resolve_flags(flags))
    triton.check_triton(resolve_flags("--num_processes 2 --expert_parallel_size 1", EIGHT_GPUS))
    (tmp_path / "Python.h").touch()
    (tmp_path / "mycc").touch(mode=0o755)
    monkeypatch.setenv("CC", "mycc")
    triton.check_triton(on_gpus)
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(ConfigError, match="no-such-compiler"):
        triton.check_triton(on_gpus)
