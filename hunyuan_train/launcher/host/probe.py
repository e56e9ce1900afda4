"""Looks around on one host. It travels there as text, so it knows the standard library only.

The launcher sends a request as one line of JSON, gets one line back, and may then ask for the time,
or for a connection between two hosts:

    ping            ->  {"time": 1700000000.0}
    listen PORT          ->  {"error": ""}      keeps the port until the end
    connect ADDRESS PORT ->  {"error": ""}
"""

import fcntl
import glob
import hashlib
import importlib.metadata
import json
import os
import re
import resource
import shutil
import socket
import struct
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Mapping
from typing import Any

SAMPLE_BYTES = 2**20  # of files too large to be read whole: so much at both ends and in the middle
NVIDIA_SMI_SECONDS = 3  # without persistence mode the driver takes seconds to wake up
FAULTS_SECONDS = 2
MAX_XIDS = 50  # the last of them; a GPU in trouble writes thousands
MEMORY_ERRORS = ("nvidia-smi", "-q", "-d", "ECC,ROW_REMAPPER")
# Both begin a line by the seconds since boot, in brackets.
KERNEL_LOGS = (
    ("dmesg",),
    ("journalctl", "-k", "-b", "-o", "short-monotonic", "--no-pager", "-q"),
)
NO_FAULTS = {"uptime": 0.0, "gpu_memory_errors": "", "kernel_log_is_read": True, "xids": []}
OLD_SECONDS = 600  # a lock that no process here has open may be one of another host's
CONNECT_SECONDS = 2
SIOCGIFADDR = 0x8915
CODE = ("hunyuan_train/**/*.py", "hunyuan_train/**/*.yaml")
TOP_LEVEL_CODE = ("train.py", "train.sh", "ds_configs/*")  # of a checkout, or copied into a wheel


def look_around(request: dict[str, Any]) -> dict[str, Any]:
    """Everything that can be known of this host within a few seconds.

    Args:
        request: what the run needs: `code_folder`, `top_level`, `packages`, `paths`, `ports`,
            `working_folder`, `output_folder`, `token`, `extensions_folder`, `model` (a folder, or
            empty).
    """
    report = {
        "hostname": socket.gethostname(),
        "python": sys.version.split()[0],
        "packages": {name: read_version(name) for name in request["packages"]},
        "code": hash_code(request["code_folder"], request["top_level"]),
        "paths": {path: describe_path(path) for path in request["paths"]},
        "model_faults": find_faults(request["model"]) if request["model"] else [],
        "working_folder": os.path.isdir(request["working_folder"]),
        "sees_token": os.path.exists(request["token"]),
        "cores": len(os.sched_getaffinity(0)),
        "memory": read_memory(),
        "total_memory": host_memory(),
        "disk": read_disk(request["output_folder"]),
        "temporary_disk": read_disk(tempfile.gettempdir()),
        "shm": read_disk("/dev/shm"),
        "open_files": resource.getrlimit(resource.RLIMIT_NOFILE),
        "memlock": resource.getrlimit(resource.RLIMIT_MEMLOCK)[0],
        "interfaces": read_interfaces(),
        "infiniband": read_infiniband(),
        "ports": {str(port): find_listener(port) for port in request["ports"]},
        "free_port": free_port(),
        "reached_at": os.environ.get("SSH_CONNECTION", "   ").split(" ")[2],
        "stale_locks": find_stale_locks(request["extensions_folder"]),
        "tools": {name: bool(shutil.which(name)) for name in ("g++", "rsync", "pdsh")},
        "triton_lacks": list_what_triton_lacks(os.environ),
        "other_runs": count_other_runs(),
    }
    report.update(read_gpus())
    report.update(read_gpu_faults() if report["gpus"] or report["gpu_error"] else NO_FAULTS)
    return report


def read_version(package: str) -> str:
    """The installed version; empty where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def hash_code(code_folder: str, top_level: str) -> str:
    """A hash of all that decides what a run computes; empty where there is no code."""
    digest, count = hashlib.sha256(), 0
    patterns = [(code_folder, one) for one in CODE] + [(top_level, one) for one in TOP_LEVEL_CODE]
    for folder, pattern in patterns:
        for path in sorted(glob.glob(os.path.join(folder, pattern), recursive=True)):
            if os.path.isfile(path):
                count += 1
                digest.update(os.path.relpath(path, folder).encode() + b"\0")
                with open(path, "rb") as file:
                    digest.update(hashlib.sha256(file.read()).digest())
    return digest.hexdigest()[:16] if count else ""


def describe_path(path: str) -> dict[str, Any]:
    """Whether a file or folder is there, and a hash of its content: of large files, of samples."""
    if os.path.isfile(path):
        return {"exists": True, "size": os.path.getsize(path), "hash": hash_sampled([path])}
    if not os.path.isdir(path):
        return {"exists": False, "size": 0, "hash": ""}
    files = sorted(
        entry.path for entry in os.scandir(path) if entry.is_file() and entry.name[0] != "."
    )
    size = sum(os.path.getsize(file) for file in files)
    return {"exists": True, "size": size, "hash": hash_sampled(files)}


def hash_sampled(files: list[str]) -> str:
    """A hash over names, sizes and samples of files."""
    digest = hashlib.sha256()
    for path in files:
        size = os.path.getsize(path)
        digest.update(f"{os.path.basename(path)}\0{size}\0".encode())
        with open(path, "rb") as file:
            for start in sorted({0, max(0, size // 2), max(0, size - SAMPLE_BYTES)}):
                file.seek(start)
                digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()[:16]


def find_faults(folder: str) -> list[str]:
    """What a model folder lacks: files that its index names, or the ends of files."""
    if not os.path.isdir(folder):
        return [f"{folder} is no folder"]
    names = set(glob.glob("*.safetensors", root_dir=folder))
    faults = [] if names else ["no .safetensors file"]
    try:
        with open(os.path.join(folder, "model.safetensors.index.json"), "rb") as file:
            names |= set(json.load(file)["weight_map"].values())
    except FileNotFoundError:
        pass  # a model in one file has no index
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError):
        faults.append("model.safetensors.index.json is damaged")
    for name in [*sorted(names), "config.json"]:
        path = os.path.join(folder, name)
        if not os.path.isfile(path):
            faults.append(f"{name} is missing")
        elif name.endswith(".safetensors") and not is_whole(path):
            faults.append(f"{name} ends early")
    return faults


def is_whole(path: str) -> bool:
    """Whether a safetensors file is as long as its header says."""
    with open(path, "rb") as file:
        length = file.read(8)
        size = int.from_bytes(length, "little")
        try:
            header = json.loads(file.read(size)) if size < os.path.getsize(path) else {}
            ends = [one["data_offsets"][1] for name, one in header.items() if name[0] != "_"]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
            return False
    return bool(ends) and os.path.getsize(path) == 8 + size + max(ends)


def host_memory(cgroup: str = "/sys/fs/cgroup") -> int:
    """Bytes of this machine's memory, or those that its container may use."""
    limit = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    # Version 2 and version 1 of control groups; "max" and 2^63 say that there is no limit.
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            with open(os.path.join(cgroup, name)) as file:
                text = file.read().strip()
        except OSError:
            continue
        if text.isdigit():
            limit = min(limit, int(text))
    return limit


def read_memory() -> int:
    """Bytes of memory that are free for programs."""
    with open("/proc/meminfo") as file:
        found = dict(line.split(":", 1) for line in file)
    return int(found["MemAvailable"].split()[0]) * 1024


def read_disk(folder: str) -> dict[str, Any]:
    """Bytes free and in all where a folder is or would be made, and whether it can be written."""
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder) or "."
    usage = shutil.disk_usage(folder)
    return {
        "free": usage.free,
        "total": usage.total,
        "writable": os.access(folder, os.W_OK),
        "folder": folder,
    }


def read_interfaces() -> dict[str, list[str]]:
    """Network interfaces that are up, but for the loopback: their addresses by name."""
    found: dict[str, list[str]] = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for _, name in socket.if_nameindex():
            if name == "lo" or not is_up(name):
                continue
            try:
                reply = fcntl.ioctl(control, SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                found.setdefault(name, []).append(socket.inet_ntoa(reply[20:24]))
            except OSError:
                continue
    try:
        with open("/proc/net/if_inet6") as file:
            for line in file:
                address, _, _, scope, _, name = line.split()
                if name != "lo" and scope == "00" and is_up(name):
                    packed = bytes.fromhex(address)
                    found.setdefault(name, []).append(socket.inet_ntop(socket.AF_INET6, packed))
    except OSError:
        pass
    return found


def is_up(interface: str) -> bool:
    """Whether a cable is plugged in; virtual interfaces say "unknown"."""
    try:
        with open(f"/sys/class/net/{interface}/operstate") as file:
            return file.read().strip() in ("up", "unknown")
    except OSError:
        return True


def read_infiniband() -> dict[str, str]:
    """InfiniBand and RoCE ports with their states, such as "4: ACTIVE"."""
    found = {}
    for path in glob.glob("/sys/class/infiniband/*/ports/*/state"):
        with open(path) as file:
            parts = path.split("/")
            found[f"{parts[4]}:{parts[6]}"] = file.read().strip()
    return found


def read_gpus() -> dict[str, Any]:
    """GPUs with their memory and who uses them, and the driver's version."""
    query = "index,name,memory.used,memory.total,driver_version"
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits"]
    try:
        listing = subprocess.run(
            command, capture_output=True, text=True, timeout=NVIDIA_SMI_SECONDS, check=True
        ).stdout
    except FileNotFoundError:
        return {"gpus": [], "driver": "", "gpu_error": ""}
    except (subprocess.SubprocessError, OSError) as error:
        return {"gpus": [], "driver": "", "gpu_error": f"nvidia-smi: {error}"}
    rows = [[word.strip() for word in line.split(",")] for line in listing.splitlines()]
    gpus = [
        {"name": row[1], "used_mib": to_number(row[2]), "mib": to_number(row[3])} for row in rows
    ]
    return {"gpus": gpus, "driver": rows[0][4] if rows else "", "gpu_error": ""}


def read_gpu_faults() -> dict[str, Any]:
    """What the driver and the kernel's log say of errors of GPUs, as text, and the time since boot.

    `gpu_faults.py` reads it. Either may be empty: not everybody may read the kernel's log.
    """
    with open("/proc/uptime") as file:
        uptime = float(file.read().split()[0])
    lines = next(filter(None, map(run_quietly, KERNEL_LOGS)), "").splitlines()
    return {
        "uptime": uptime,
        "gpu_memory_errors": run_quietly(MEMORY_ERRORS),
        "kernel_log_is_read": bool(lines),
        "xids": [line for line in lines if "Xid (PCI:" in line][-MAX_XIDS:],
    }


def run_quietly(command: tuple[str, ...]) -> str:
    """What a command prints; empty where it fails, is missing or takes too long."""
    try:
        return subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=FAULTS_SECONDS,
            check=True,
        ).stdout.decode(errors="replace")
    except (subprocess.SubprocessError, OSError):
        return ""


def list_what_triton_lacks(environment: Mapping[str, str]) -> list[str]:
    """What Triton needs to build the start of each kernel, and does not find: compiler, headers."""
    given = environment.get("CC")
    compilers = [given] if given else ["gcc", "clang"]
    lacking = (
        [] if any(map(shutil.which, compilers)) else [f"C compiler ({' or '.join(compilers)})"]
    )
    header = os.path.join(sysconfig.get_path("include"), "Python.h")
    return lacking if os.path.isfile(header) else [*lacking, f"headers of Python ({header})"]


def to_number(text: str) -> int:
    """A number of nvidia-smi's, which may say [N/A]."""
    return int(text) if text.isdigit() else 0


def find_listener(port: int) -> str:
    """Who listens on a TCP port: empty where nobody does."""
    for family, address in ((socket.AF_INET6, "::"), (socket.AF_INET, "")):
        try:
            with socket.socket(family, socket.SOCK_STREAM) as listener:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind((address, port))
                return ""
        except OSError:
            continue
    return name_owner(port) or "another program"


def name_owner(port: int) -> str:
    """The process that listens on a TCP port, where we may know."""
    inodes: set[str] = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            with open(table) as file:
                rows = [line.split() for line in file][1:]
        except OSError:
            continue
        inodes |= {row[9] for row in rows if row[3] == "0A" and int(row[1][-4:], 16) == port}
    for link in glob.glob("/proc/[0-9]*/fd/*"):
        try:
            match = re.fullmatch(r"socket:\[(\d+)\]", os.readlink(link))
        except OSError:
            continue
        if match and match[1] in inodes:
            process_id = link.split("/")[2]
            return f"{read_command(process_id)[:60]} (process {process_id})"
    return ""


def read_command(process_id: str) -> str:
    """The command line of a process."""
    try:
        with open(f"/proc/{process_id}/cmdline") as file:
            return file.read().replace("\0", " ").strip()
    except OSError:
        return ""


def free_port() -> int:
    """A TCP port that nobody listens on at this moment."""
    with socket.socket() as listener:
        listener.bind(("", 0))
        return int(listener.getsockname()[1])


def find_stale_locks(folder: str) -> list[str]:
    """Locks that a killed compilation left, for which every later start would wait for ever."""
    found = glob.glob(os.path.join(folder, "*", "lock"))
    return [path for path in found if is_left_behind(path)]


def is_left_behind(lock: str) -> bool:
    """Whether a lock is old, and no process here has it open."""
    found = identify_file(lock)
    if found is None or find_holder(found) is not None:
        return False
    return time.time() - os.path.getmtime(lock) > OLD_SECONDS


def identify_file(path: str | os.PathLike[str]) -> tuple[int, int] | None:
    """The device and the number of a file; None where there is none."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def find_holder(file: tuple[int, int]) -> int | None:
    """The process that has a file open, as torch has its lock's until it removes it.

    Args:
        file: its device and number.
    """
    for descriptor in glob.iglob("/proc/[0-9]*/fd/*"):
        try:
            status = os.stat(descriptor)
        except OSError:
            continue  # it has just been closed, or belongs to another user
        if (status.st_dev, status.st_ino) == file:
            return int(descriptor.split("/")[2])
    return None


def count_other_runs() -> int:
    """Node agents of other runs on this host."""
    processes = [name for name in os.listdir("/proc") if name.isdigit()]
    return sum("hunyuan_train.launcher.host.node_agent" in read_command(one) for one in processes)


def answer(words: list[str], kept: list[socket.socket]) -> dict[str, Any]:
    """Answer one line of the launcher's."""
    if words[0] == "ping":
        return {"time": time.time()}
    try:
        if words[0] == "listen":
            kept.append(listen_everywhere(int(words[1])))
        else:
            socket.create_connection((words[1], int(words[2])), CONNECT_SECONDS).close()
    except OSError as error:
        return {"error": str(error)}
    return {"error": ""}


def listen_everywhere(port: int) -> socket.socket:
    """Take connections at every address of this host, as torch's store does."""
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))


def main() -> None:
    """Talk to the launcher until it hangs up."""
    kept: list[socket.socket] = []
    print(json.dumps(look_around(json.loads(sys.stdin.readline()))), flush=True)
    while line := sys.stdin.readline():
        print(json.dumps(answer(line.split(), kept)), flush=True)


if __name__ == "__main__":
    main()
