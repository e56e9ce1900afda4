"""Turns what the hosts answered into verdicts: what was found, what is wanted, what fixes it."""

import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from hunyuan_train.launcher.cluster.hosts import Host
from hunyuan_train.launcher.doctor.survey import Report
from hunyuan_train.launcher.host.gpu_faults import find_faults
from hunyuan_train.launcher.host.triton import TRITON_REMEDY
from hunyuan_train.shipped import CODE_FOLDER

Verdict = Literal["ok", "warning", "failed"]

MAX_CLOCK_SECONDS = 5.0  # logs and checkpoints of several hosts are compared by their times
MIN_OPEN_FILES = 4096
MIN_SHM_BYTES = 2**30  # NCCL and gloo share memory there between the ranks of a host
MIN_TEMPORARY_BYTES = 2**28
MIN_OUTPUT_BYTES = 2**30
MIN_MEMORY_BYTES_PER_RANK = 2**30
FAULT_SECONDS = 24 * 3600.0  # an Xid that is older may have been seen to
BUSY_GPU_SHARE = 0.05  # of its memory: a desktop takes less, another run more
UNLIMITED = -1
MAX_NAMED = 3  # files of a model, in one line


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One check on one host."""

    host: Host
    check: str
    verdict: Verdict = "ok"
    found: str = ""
    wanted: str = ""
    remedy: str = ""  # a command where there is one
    fix: tuple[str, ...] = ()  # a safe command that `--fix` runs there


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """What the run needs of every host."""

    uses_gpus: bool
    needs_compiler: bool
    builds_kernels: bool  # AutoEP's, by Triton
    has_token: bool  # whether the output folder could be marked, to see if all hosts share it
    master_port: int | None
    working_folder: str
    output_folder: str


def check_hosts(reports: Sequence[Report], wanted: Wanted) -> list[Finding]:
    """Every verdict, host by host."""
    reached = [report for report in reports if report.found]
    findings = [_reach(report) for report in reports]
    for report in reached:
        findings += [
            replace(finding, host=report.host)
            for check in CHECKS
            for finding in check(report.found, reached[0], report, wanted)
        ]
    return findings


def _reach(report: Report) -> Finding:
    trouble = report.trouble
    if trouble is None:
        return Finding(host=report.host, check="ssh")
    return Finding(
        host=report.host,
        check=trouble.check,
        verdict="failed",
        found=trouble.found,
        wanted="the same Python at the same path"
        if trouble.check == "python"
        else "passwordless SSH",
        remedy=trouble.remedy,
    )


# Each check sees: what was found, the first host that answered (others must be like it), the whole
# report, and what is wanted. The host is filled in by the caller.
Found = dict[str, Any]
Check = Callable[[Found, Report, Report, Wanted], Iterator[Finding]]
NOBODY = Host("-")


def verdict(
    check: str,
    is_good: bool,
    *,
    found: object = "",
    wanted: object = "",
    remedy: str = "",
    bad: Verdict = "failed",
    fix: tuple[str, ...] = (),
) -> Finding:
    """A finding whose host is not filled in yet."""
    return Finding(
        host=NOBODY,
        check=check,
        verdict="ok" if is_good else bad,
        found=str(found),
        wanted=str(wanted),
        remedy="" if is_good else remedy,
        fix=() if is_good else fix,
    )


def check_python(found: Found, first: Report, _: Report, __: Wanted) -> Iterator[Finding]:
    """The same interpreter everywhere."""
    wanted = first.found["python"]
    yield verdict(
        "python",
        found["python"] == wanted,
        found=found["python"],
        wanted=f"{wanted}, as on {first.host.address}",
        remedy=f"make the environment of {sys.executable} anew with Python {wanted}",
    )


def check_packages(found: Found, first: Report, _: Report, __: Wanted) -> Iterator[Finding]:
    """The same packages everywhere."""
    wanted, installed = first.found["packages"], found["packages"]
    differing = [name for name in wanted if installed[name] != wanted[name]]
    pins = [f"{name}=={wanted[name]}" for name in differing if wanted[name]]
    yield verdict(
        "packages",
        not differing,
        found=", ".join(f"{name} {installed[name] or 'missing'}" for name in differing),
        wanted=", ".join(f"{name} {wanted[name] or 'missing'}" for name in differing),
        remedy=shlex.join([sys.executable, "-m", "pip", "install", *pins]),
    )


def check_code(found: Found, first: Report, _: Report, __: Wanted) -> Iterator[Finding]:
    """The same code everywhere."""
    yield verdict(
        "code",
        found["code"] == first.found["code"],
        found=found["code"] or f"nothing in {CODE_FOLDER}",
        wanted=f"{first.found['code']}, as on {first.host.address}",
        remedy="start with --sync, which copies it, or share the folder",
    )


def check_paths(found: Found, first: Report, _: Report, __: Wanted) -> Iterator[Finding]:
    """The same data and model files everywhere."""
    for path, wanted in first.found["paths"].items():
        here = found["paths"][path]
        content = f"{wanted['size']:,} bytes, {wanted['hash']}, as on {first.host.address}"
        yield verdict(
            "files",
            here["exists"] and here["hash"] == wanted["hash"],
            found=f"{path}: {here['size']:,} bytes, {here['hash']}"
            if here["exists"]
            else f"{path} is missing",
            wanted=content if wanted["exists"] else "what the run names",
            remedy="start with --sync, which copies it, or share the folder",
        )


def check_model(found: Found, _: Report, __: Report, ___: Wanted) -> Iterator[Finding]:
    """A model of which nothing is missing."""
    faults = found["model_faults"]
    yield verdict(
        "model",
        not faults,
        found="; ".join(faults[:MAX_NAMED]) + ("; …" if len(faults) > MAX_NAMED else ""),
        wanted="all files that its index names, each whole",
        remedy="`hf download` into the same folder gets what is missing; or start with --sync from "
        "a host on which it is whole",
    )


def check_folders(found: Found, first: Report, _: Report, wanted: Wanted) -> Iterator[Finding]:
    """The folder the run starts from, and an output folder that all hosts share."""
    yield verdict(
        "working folder",
        found["working_folder"],
        found=f"no {wanted.working_folder}",
        wanted="the folder from which the run is started",
        remedy="start from a folder that all hosts have, or make it there: doctor --fix",
        fix=("mkdir", "-p", "--", wanted.working_folder),
    )
    if wanted.has_token:
        yield verdict(
            "output folder",
            found["sees_token"],
            found=f"{wanted.output_folder} is another folder here",
            wanted="one that all hosts share: a checkpoint is written by all of them together",
            remedy="give an --output_dir on a shared disk",
        )


def check_gpus(found: Found, first: Report, report: Report, wanted: Wanted) -> Iterator[Finding]:
    """Enough GPUs, of one kind, with nothing else on them."""
    if not wanted.uses_gpus:
        return
    gpus, slots = found["gpus"], report.host.slots or 1
    yield verdict(
        "gpus",
        len(gpus) >= slots,
        found=found["gpu_error"] or f"{len(gpus)} GPUs",
        wanted=f"{slots}, by the slots of the host",
        remedy="nvidia-smi -L; lower its slots, or fix its driver",
    )
    if not gpus:
        return
    busy = [f"GPU {n}: {gpu['used_mib']} MiB used" for n, gpu in enumerate(gpus) if is_busy(gpu)]
    yield verdict(
        "gpus free",
        not busy,
        found=", ".join(busy),
        wanted="no other program on the GPUs",
        remedy="nvidia-smi --query-compute-apps=pid,name,used_memory --format=csv",
    )
    kinds = sorted({gpu["name"] for gpu in gpus})
    yield verdict(
        "gpu model",
        kinds == sorted({gpu["name"] for gpu in first.found["gpus"]}),
        found=", ".join(kinds),
        wanted=f"those of {first.host.address}",
        remedy="the slowest GPU sets the pace of all",
        bad="warning",
    )
    yield verdict(
        "driver",
        found["driver"] == first.found["driver"],
        found=found["driver"],
        wanted=f"{first.found['driver']}, as on {first.host.address}",
        remedy="install the same NVIDIA driver",
        bad="warning",
    )


def check_gpu_faults(found: Found, _: Report, __: Report, wanted: Wanted) -> Iterator[Finding]:
    """GPUs of which the driver reports no error, and all that AutoEP's kernels are built with."""
    if not wanted.uses_gpus:
        return
    faults = [
        one for one in find_faults(found, within_seconds=FAULT_SECONDS) if not one.is_of_program
    ]
    named = dict.fromkeys(f"{one.address}: {one.words}" for one in faults)
    yield verdict(
        "gpu errors",
        not faults,
        found="; ".join([*named][:MAX_NAMED]) + ("; …" if len(named) > MAX_NAMED else ""),
        wanted="no Xid in the last 24 hours, and no uncorrectable memory error",
        remedy="; ".join(dict.fromkeys(one.remedy for one in faults)),
        bad="warning",
    )
    yield verdict(
        "kernel's log",
        found["kernel_log_is_read"],
        found="it cannot be read, so that errors of GPUs (Xid) stay unseen",
        wanted="dmesg or journalctl -k, for this user",
        remedy="sysctl kernel.dmesg_restrict=0, or join the group systemd-journal",
        bad="warning",
    )
    yield verdict(
        "kernels of experts",
        not (wanted.builds_kernels and found["triton_lacks"]),
        found=f"no {' and no '.join(found['triton_lacks'])}",
        wanted="what Triton builds AutoEP's kernels with, in every layer",
        remedy=TRITON_REMEDY,
    )


def is_busy(gpu: dict[str, Any]) -> bool:
    """Whether another program uses a GPU."""
    return bool(gpu["used_mib"] > BUSY_GPU_SHARE * max(1, gpu["mib"]))


def check_network(found: Found, first: Report, report: Report, wanted: Wanted) -> Iterator[Finding]:
    """An interface with the host's address, the same InfiniBand ports, and a way to rank 0."""
    names = ", ".join(
        f"{name} {' '.join(found['interfaces'][name])}" for name in found["interfaces"]
    )
    yield verdict(
        "interface",
        bool(choose_interface(report)),
        found=names or "none is up",
        wanted="one that is up and has the address of the list",
        remedy="name the hosts by the addresses of the network that they share",
    )
    inactive = [port for port, state in found["infiniband"].items() if "ACTIVE" not in state]
    yield verdict(
        "infiniband",
        not inactive and len(found["infiniband"]) == len(first.found["infiniband"]),
        found=", ".join(f"{one} {found['infiniband'][one]}" for one in inactive)
        or f"{len(found['infiniband'])} ports",
        wanted=f"{len(first.found['infiniband'])} active ports, as on {first.host.address}",
        remedy="ibstat; leave the dead ports out with NCCL_IB_HCA",
        bad="warning",
    )
    port = f"port {wanted.master_port}" if wanted.master_port else "a free port"
    taken = found["ports"].get(str(wanted.master_port), "") if report is first else ""
    yield verdict(
        "ports",
        not taken,
        found=f"port {wanted.master_port} is taken by {taken}",
        wanted="a port that nobody listens on",
        remedy="end that program, or give another --master_port",
    )
    if not taken:
        yield verdict(
            "way to rank 0",
            not report.meets_chief,
            found=report.meets_chief,
            wanted=f"a connection to {port} of {first.host.address}",
            remedy="open the ports between the hosts in the firewall",
        )


def choose_interface(report: Report) -> str:
    """The interface by which the others reach a host; empty where that cannot be told."""
    interfaces = report.found["interfaces"]
    for address in (report.host.address, report.found["reached_at"]):
        for name, addresses in interfaces.items():
            if address in addresses:
                return str(name)
    return str(next(iter(interfaces))) if len(interfaces) == 1 else ""


def check_clock(_: Found, first: Report, report: Report, __: Wanted) -> Iterator[Finding]:
    """Clocks that agree."""
    ahead = report.clock_ahead - first.clock_ahead
    yield verdict(
        "clock",
        abs(ahead) <= MAX_CLOCK_SECONDS,
        found=f"{ahead:+.1f} s",
        wanted=f"within {MAX_CLOCK_SECONDS:g} s of {first.host.address}",
        remedy="chronyc makestep, or timedatectl set-ntp true",
    )


def check_room(found: Found, _: Report, report: Report, wanted: Wanted) -> Iterator[Finding]:
    """Memory, disks and shared memory with room in them."""
    slots = report.host.slots or 1
    rooms = {
        "memory": (found["memory"], slots * MIN_MEMORY_BYTES_PER_RANK, "free -h"),
        "disk": (found["disk"]["free"], MIN_OUTPUT_BYTES, f"df -h {found['disk']['folder']}"),
        "temporary disk": (
            found["temporary_disk"]["free"],
            MIN_TEMPORARY_BYTES,
            f"df -h {found['temporary_disk']['folder']}; set TMPDIR to another disk",
        ),
        "/dev/shm": (found["shm"]["free"], MIN_SHM_BYTES, "mount -o remount,size=64g /dev/shm"),
    }
    for check, (free, needed, remedy) in rooms.items():
        yield verdict(
            check,
            free >= needed,
            found=f"{free / 2**30:.2f} GiB free",
            wanted=f"{needed / 2**30:.2f} GiB",
            remedy=remedy,
        )
    yield verdict(
        "output folder writable",
        found["disk"]["writable"],
        found=f"{found['disk']['folder']} cannot be written",
        wanted="a folder that can be",
        remedy="give another --output_dir",
    )


def check_limits(found: Found, first: Report, report: Report, wanted: Wanted) -> Iterator[Finding]:
    """Limits of the shell that sshd starts."""
    soft, hard = found["open_files"]
    yield verdict(
        "open files",
        soft >= MIN_OPEN_FILES or hard >= MIN_OPEN_FILES or hard == UNLIMITED,
        found=f"{soft}, at most {hard}",
        wanted=f"{MIN_OPEN_FILES}",
        remedy="add `* hard nofile 1048576` to /etc/security/limits.conf and log in again",
    )
    needs_pinning = bool(found["infiniband"])
    yield verdict(
        "memlock",
        not needs_pinning or found["memlock"] == UNLIMITED,
        found=f"{found['memlock']} bytes",
        wanted="unlimited, for InfiniBand",
        remedy="add `* - memlock unlimited` to /etc/security/limits.conf and log in again",
    )
    slots = report.host.slots or 1
    yield verdict(
        "cores",
        found["cores"] >= slots or wanted.uses_gpus,
        found=f"{found['cores']} cores",
        wanted=f"{slots}, one for each process",
        remedy="lower its slots",
    )


def check_leftovers(found: Found, _: Report, __: Report, wanted: Wanted) -> Iterator[Finding]:
    """What earlier runs may have left."""
    locks = found["stale_locks"]
    yield verdict(
        "compilations",
        not locks,
        found=f"{', '.join(locks)} of a compilation that was killed",
        wanted="no such lock: a start would wait for it",
        remedy=f"rm -f {shlex.join(locks)}",
        bad="warning",
        fix=("rm", "-f", "--", *locks),
    )
    yield verdict(
        "compiler",
        found["tools"]["g++"] or not wanted.needs_compiler,
        wanted="g++, to compile DeepSpeed's extensions",
        found="no g++",
        remedy="apt-get install g++",
    )
    yield verdict(
        "other runs",
        not found["other_runs"],
        found=f"{found['other_runs']} other runs on this host",
        wanted="none, unless you mean to share it",
        remedy="ps -ef | grep hunyuan_train",
        bad="warning",
    )


CHECKS: tuple[Check, ...] = (
    check_python,
    check_packages,
    check_code,
    check_paths,
    check_model,
    check_folders,
    check_gpus,
    check_gpu_faults,
    check_network,
    check_clock,
    check_room,
    check_limits,
    check_leftovers,
)
