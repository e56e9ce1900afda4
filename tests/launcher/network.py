"""Hosts with an address, a process table and an sshd of their own, on one machine.

Each is a set of Linux namespaces; the cables end in a bridge in a namespace of its own, so nothing
of the machine's own network is touched. They share the machine's files. Needs root and the packages
iproute2 and openssh-server.

A process of its own removes the hosts, also where the tests are killed:
`python -m tests.launcher.network DISK NAMESPACE...` waits for a line on stdin, or its end.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.conftest import REPOSITORY

INIT = Path(__file__).with_name("host_init.sh")
SSHD = "/usr/sbin/sshd"
PORT = 36005
NETWORK, NETWORK_6 = "10.91.7", "fd91:7:"
SSHD_CONFIG = """\
HostKey {folder}/hostkey
PidFile none
AuthorizedKeysFile {root}/id.pub
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
UseDNS no
PrintMotd no
MaxStartups 200
"""
SSH_CONFIG = """\
Host *
  User root
  IdentityFile {root}/id
  IdentitiesOnly yes
  UserKnownHostsFile {root}/known_hosts
  GlobalKnownHostsFile /dev/null
  StrictHostKeyChecking yes
"""


def why_impossible() -> str:
    """Why hosts cannot be made here; empty where they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    for program in ("ip", "unshare", "nsenter", "ssh", "ssh-keygen", SSHD):
        if shutil.which(program) is None:
            return f"{program} is missing: apt-get install iproute2 openssh-server"
    test = [
        "unshare",
        "--net",
        "--pid",
        "--fork",
        "--mount",
        "--uts",
        "--ipc",
        "--mount-proc",
        "true",
    ]
    if subprocess.run(test, capture_output=True, check=False).returncode:
        return "this machine does not permit namespaces"
    return ""


@dataclass
class Network:
    """Running hosts, numbered from 0."""

    root: Path
    num_hosts: int
    names: list[str] = field(default_factory=list)
    inits: dict[int, int] = field(default_factory=dict)  # the pid 1 of each host, seen from here
    remover: subprocess.Popen[str] | None = None

    @property
    def switch(self) -> str:
        """The namespace in which the cables end."""
        return f"ht{os.getpid()}-switch"

    @property
    def small_disk(self) -> Path:
        """A folder with room for 4 MiB, which all hosts share."""
        return self.root / "small_disk"

    def namespace(self, host: int) -> str:
        """The network namespace of a host."""
        return f"ht{os.getpid()}-{self.names[host]}"

    def address(self, host: int) -> str:
        """A host's address."""
        return f"{NETWORK}.{11 + host}"

    def address_6(self, host: int) -> str:
        """A host's IPv6 address."""
        return f"{NETWORK_6}:{11 + host}"

    def node_list(self, slots: int = 1) -> str:
        """All hosts in the form of NODE_IP_LIST."""
        return ",".join(f"{self.address(host)}:{slots}" for host in range(self.num_hosts))

    def up(self) -> None:
        """Make everything."""
        self.names = [f"host{letter}" for letter in "abcdefgh"[: self.num_hosts]]
        self.remover = self._start_remover()
        self._write_files()
        self.small_disk.mkdir()
        mount("-t", "tmpfs", "-o", "size=4m", "none", str(self.small_disk))
        ip("netns", "add", self.switch)
        ip("-n", self.switch, "link", "add", "br0", "type", "bridge")
        ip("-n", self.switch, "link", "set", "br0", "up")
        for host in range(self.num_hosts):
            name = self.namespace(host)
            ip("netns", "add", name)
            peer = ("type", "veth", "peer", "name", "eth0", "netns", name)
            ip("-n", self.switch, "link", "add", f"p{host}", *peer)
            ip("-n", self.switch, "link", "set", f"p{host}", "master", "br0", "up")
            ip("-n", name, "addr", "add", f"{self.address(host)}/24", "dev", "eth0")
            ip("-n", name, "addr", "add", f"{self.address_6(host)}/64", "dev", "eth0", "nodad")
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", "eth0", "up")
            self._start(host)
        for host in range(self.num_hosts):
            self._wait_for_sshd(host)

    def down(self) -> None:
        """Have everything removed, and wait for it."""
        if self.remover:
            self.remover.communicate("now\n")

    def command(self, host: int, words: Sequence[str]) -> list[str]:
        """A command line that runs words inside a host."""
        target = str(self.inits[host])
        return [
            "nsenter",
            "-t",
            target,
            "-n",
            "-m",
            "-p",
            "-u",
            "-i",
            f"--wd={os.getcwd()}",
            *words,
        ]

    def run(self, host: int, *words: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Run something inside a host to its end."""
        command = self.command(host, words)
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)

    def processes(self, host: int) -> dict[int, str]:
        """What runs in a host, but for its own pid 1 and sshd: command lines by process id here."""
        listing = subprocess.run(
            ["ip", "netns", "pids", self.namespace(host)], capture_output=True, text=True
        )
        found = {}
        for process_id in map(int, listing.stdout.split()):
            try:
                words = Path(f"/proc/{process_id}/cmdline").read_bytes().split(b"\0")
                state = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0]
            except (FileNotFoundError, ProcessLookupError):
                continue
            line = b" ".join(words).decode().strip()
            is_ours = line.startswith(("sshd", SSHD, "sleep 3600", "nsenter")) or INIT.name in line
            if not is_ours and state != "Z":
                found[process_id] = line
        return found

    def clear(self) -> None:
        """Kill whatever still runs in the hosts."""
        for host in range(self.num_hosts):
            for process_id in self.processes(host):
                kill(process_id)

    def cut(self, host: int) -> None:
        """Pull the cable: the host sees it."""
        ip("-n", self.switch, "link", "set", f"p{host}", "down")

    def silence(self, host: int) -> None:
        """Let the switch drop everything: nobody sees it."""
        ip("-n", self.switch, "link", "set", f"p{host}", "nomaster")

    def heal(self, host: int) -> None:
        """Plug the cable in again."""
        ip("-n", self.switch, "link", "set", f"p{host}", "master", "br0", "up")

    def crash(self, host: int) -> None:
        """Power loss: nothing is sent any more, then every process is gone."""
        self.cut(host)
        kill(self.inits[host])

    def boot(self, host: int) -> None:
        """Power is back."""
        deadline = time.monotonic() + 10
        while self.processes(host) and time.monotonic() < deadline:
            time.sleep(0.1)
        self._start(host)
        self.heal(host)
        self._wait_for_sshd(host)

    def slow(self, host: int, rate: str) -> None:
        """Limit a cable in both directions, such as to 5mbit."""
        limit = ("root", "tbf", "rate", rate, "burst", "64k", "latency", "200ms")
        ip("netns", "exec", self.namespace(host), "tc", "qdisc", "add", "dev", "eth0", *limit)
        ip("netns", "exec", self.switch, "tc", "qdisc", "add", "dev", f"p{host}", *limit)

    def full_speed(self, host: int) -> None:
        """Take the limit away."""
        for name, device in ((self.namespace(host), "eth0"), (self.switch, f"p{host}")):
            ip("netns", "exec", name, "tc", "qdisc", "del", "dev", device, "root")

    def _start_remover(self) -> "subprocess.Popen[str]":
        names = [*map(self.namespace, range(self.num_hosts)), self.switch]
        return subprocess.Popen(
            [sys.executable, "-m", "tests.launcher.network", str(self.small_disk), *names],
            stdin=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
            start_new_session=True,  # Ctrl-C is for the tests
        )

    def _write_files(self) -> None:
        root = self.root
        root.mkdir(parents=True, exist_ok=True)
        make_key(root / "id")
        lines = [f"{self.address(host)} {name}" for host, name in enumerate(self.names)]
        (root / "hosts").write_text("\n".join(["127.0.0.1 localhost", *lines, ""]))
        known = []
        for host, name in enumerate(self.names):
            folder = root / name
            folder.mkdir()
            make_key(folder / "hostkey")
            (folder / "sshd_config").write_text(SSHD_CONFIG.format(folder=folder, root=root))
            key = " ".join((folder / "hostkey.pub").read_text().split()[:2])
            addresses = (self.address(host), self.address_6(host), name)
            names = ",".join(f"[{address}]:{PORT}" for address in addresses)
            known.append(f"{names} {key}\n")
        (root / "known_hosts").write_text("".join(known))
        (root / "ssh_config").write_text(SSH_CONFIG.format(root=root))
        shadow = Path("/etc/shadow").read_text()
        if any(line.startswith("root:!") for line in shadow.splitlines()):
            (root / "shadow").touch(mode=0o600)  # sshd without PAM refuses a locked root
            (root / "shadow").write_text(shadow.replace("root:!", "root:*", 1))

    def _start(self, host: int) -> None:
        spaces = ("--pid", "--fork", "--kill-child", "--mount", "--uts", "--ipc", "--mount-proc")
        net = f"--net=/run/netns/{self.namespace(host)}"
        folder = self.root / self.names[host]
        with (folder / "log").open("a") as log:
            process = subprocess.Popen(
                ["nsenter", net, "unshare", *spaces, "bash", str(INIT), str(folder), str(PORT)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        deadline = time.monotonic() + 10
        while not (child := children.read_text().split()):
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        self.inits[host] = int(child[0])

    def _wait_for_sshd(self, host: int) -> None:
        deadline = time.monotonic() + 20
        test = ["bash", "-c", f"</dev/tcp/{self.address(host)}/{PORT}"]
        while subprocess.run(self.command(host, test), capture_output=True).returncode:
            assert time.monotonic() < deadline, (self.root / self.names[host] / "log").read_text()
            time.sleep(0.05)


def wait_until_empty(network: Network, *hosts: int, timeout: float = 15) -> float:
    """Seconds until nothing runs on the hosts any more."""
    began = time.monotonic()
    while any(network.processes(host) for host in hosts):
        left = {host: network.processes(host) for host in hosts}
        assert time.monotonic() - began < timeout, left
        time.sleep(0.1)
    return time.monotonic() - began


def environment_of(network: Network, **variables: str) -> Mapping[str, str]:
    """What a user would set for a run on all hosts."""
    return {
        **os.environ,
        "NODE_IP_LIST": network.node_list(),
        "SSH_PORT": str(PORT),
        "SSH_CONFIG": str(network.root / "ssh_config"),
        **variables,
    }


def ip(*words: str) -> None:
    """Run iproute2's ip."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"


def mount(*words: str) -> None:
    """Mount something on this machine, for all hosts that start afterwards."""
    subprocess.run(["mount", *words], check=True)


def make_key(path: Path) -> None:
    """A throw-away key."""
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", str(path)], check=True
    )


def kill(process_id: int) -> None:
    """Kill a process of ours that may be gone."""
    try:
        os.kill(process_id, signal.SIGKILL)
    except ProcessLookupError:
        return


def remove(disk: str, namespaces: Sequence[str]) -> None:
    """Kill all that runs in namespaces, and remove them and a disk."""
    for name in namespaces:
        for _ in range(20):
            listing = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True)
            for process_id in listing.stdout.split():
                kill(int(process_id))
            if not listing.stdout.split():
                break
            time.sleep(0.05)
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    subprocess.run(["umount", disk], capture_output=True, check=False)


if __name__ == "__main__":
    sys.stdin.readline()  # or its end: the tests are gone
    remove(sys.argv[1], sys.argv[2:])
