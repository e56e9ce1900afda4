"""A root directory of which everything may be changed: this machine's, with changes kept in memory.

So the steps of a Dockerfile, and the command of a pod, are run as they are written, with Debian in
the place of their base image. Needs root.
"""

import os
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

MOUNT = """
set -eu
mount -t tmpfs -o size={gigabytes}g none {disk}
mkdir {disk}/upper {disk}/work {disk}/root
mount -t overlay overlay -o lowerdir=/,upperdir={disk}/upper,workdir={disk}/work {disk}/root
for folder in dev sys; do mount --rbind "/$folder" {disk}/root/$folder; done
mount -t proc proc {disk}/root/proc
mount -t tmpfs none {disk}/root/tmp
chmod 1777 {disk}/root/tmp
"""
# By which package clients here reach their registries, as docker hands its proxy settings to RUN.
REGISTRIES = ("PIP_", "SSL_", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy")


def why_impossible() -> str:
    """Why there is none here; empty where there is."""
    if os.geteuid() != 0:
        return "mounting needs root"
    disk = "/tmp"
    test = f"mount -t tmpfs none {disk} && mkdir {disk}/u {disk}/w {disk}/m && "
    test += f"mount -t overlay o -o lowerdir=/,upperdir={disk}/u,workdir={disk}/w {disk}/m"
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", test], capture_output=True, check=False
    )
    return done.stderr.decode() if done.returncode else ""


def registry_settings() -> dict[str, str]:
    """What package clients need of our environment."""
    return {name: value for name, value in os.environ.items() if name.startswith(REGISTRIES)}


@dataclass
class DisposableRoot:
    """Lines of a script that runs in it; nothing is run before `run`."""

    disk: Path  # an empty folder
    script: str

    @classmethod
    def at(cls, disk: Path, *, gigabytes: int = 8) -> "DisposableRoot":
        disk.mkdir()
        return cls(disk, MOUNT.format(disk=disk, gigabytes=gigabytes))

    def place(self, path: str) -> str:
        """A path of it as the script sees it."""
        return f"{self.disk}/root/{path.lstrip('/')}"

    def bind(self, source: Path, target: str) -> None:
        """Show a file or folder of this machine at another place."""
        make = "touch" if source.is_file() else "mkdir -p"
        self.script += f"{make} {self.place(target)}\nmount --bind {source} {self.place(target)}\n"

    def unbind(self, target: str) -> None:
        self.script += f"umount {self.place(target)}\n"

    def command(
        self,
        words: Sequence[str],
        *,
        environment: Mapping[str, str],
        folder: str,
        user: str = "0:0",
    ) -> str:
        """A line that runs a command in it, with this environment and no more."""
        variables = [f"{name}={value}" for name, value in environment.items()]
        enter = ["chroot", f"--userspec={user}", f"{self.disk}/root", "env", "-i", *variables]
        there = ["sh", "-c", f'cd {shlex.quote(folder)} && exec "$@"', "sh", *words]
        return shlex.join([*enter, *there])

    def add(self, line: str) -> None:
        self.script += f"{line}\n"

    def run(self, *unshared: str, timeout: float = 1800) -> subprocess.CompletedProcess[str]:
        """Run the script in namespaces of its own; all that it mounted goes with them."""
        return subprocess.run(
            ["unshare", "--mount", "--pid", "--fork", *unshared, "bash", "-c", self.script],
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
        )
