"""Which hosts a run takes: from its settings and from the variables that job scripts set."""

import fcntl
import socket
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hunyuan_train.config.launch_schema import LaunchConfig
from hunyuan_train.config.schema import RunConfig
from hunyuan_train.config.settings import FIELDS
from hunyuan_train.config.values import parse_value
from hunyuan_train.errors import ConfigError
from hunyuan_train.launcher.cluster.hosts import (
    Host,
    check_count,
    chief_first,
    is_loopback,
    parse_address,
    parse_node_list,
    read_hostfile,
    with_slots,
)

# A setting that no flag and no file gives is taken from the variable of this name.
VARIABLES = {
    name: name.upper()
    for name in (
        *("node_ip_list", "hostfile", "local_ip", "chief_ip", "ssh_port", "ssh_user", "ssh_config"),
        *("master_port", "launcher"),
    )
}
HOST_LISTS = ("node_ip_list", "hostfile")  # a flag for one wins over a variable for the other
SIOCGIFADDR = 0x8915
IFREQ_BYTES = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """The hosts of a run, that of rank 0 first, all with their slots."""

    hosts: tuple[Host, ...]
    local: Host | None  # the one that this machine is, which is reached without ssh

    @property
    def is_alone(self) -> bool:
        """Whether the run needs this machine and no other."""
        return self.hosts == (self.local,)

    @property
    def slots(self) -> tuple[int, ...]:
        """Processes on each host."""
        return tuple(host.slots or 1 for host in self.hosts)

    def without(self, lost: Sequence[Host]) -> "Cluster":
        """The cluster that is left when some hosts are gone."""
        hosts = tuple(host for host in self.hosts if host not in lost)
        return Cluster(hosts=hosts, local=self.local if self.local in hosts else None)


def with_environment(config: RunConfig, environment: Mapping[str, str]) -> RunConfig:
    """The config with its unset launch settings from the environment.

    Raises:
        ConfigError: a variable whose text its setting does not take.
    """
    values: dict[str, Any] = {}
    given, defaults = asdict(config.launch), asdict(LaunchConfig())
    for name, variable in VARIABLES.items():
        text = environment.get(variable, "").strip()
        if text and given[name] == defaults[name]:
            values[name] = parse_value(variable, FIELDS[name].type, text)
    if config.launch.node_ip_list or config.launch.hostfile:
        values = {name: value for name, value in values.items() if name not in HOST_LISTS}
    slots = environment.get("HOST_GPU_NUM", "").strip()
    parallel = config.parallel
    if slots and parallel.num_processes == "auto":
        num_processes = parse_value("HOST_GPU_NUM", int, slots)
        parallel = replace(parallel, num_processes=num_processes)
    return replace(config, launch=replace(config.launch, **values), parallel=parallel)


def find_cluster(
    config: RunConfig, environment: Mapping[str, str], *, default_slots: int
) -> Cluster:
    """The hosts that a config names; this machine alone where it names none.

    Args:
        config: with the environment's settings.
        environment: for NODES and HOST_GPU_NUM, which only confirm what the list says.
        default_slots: processes on a host that names no number.

    Raises:
        ConfigError: an entry that is no host, or two settings that contradict each other.
    """
    launch = config.launch
    hosts: tuple[Host, ...] = ()
    if launch.node_ip_list is not None:
        hosts = parse_node_list(launch.node_ip_list)
    elif launch.hostfile is not None:
        hosts = read_hostfile(Path(launch.hostfile))
    check_count(hosts, environment)
    if not hosts:
        alone = Host("127.0.0.1", default_slots)
        return Cluster(hosts=(alone,), local=alone)
    hosts = chief_first(hosts, launch.chief_ip)
    local = find_local(hosts, launch.local_ip)
    open_hosts = [host for host in hosts if host.slots is None]
    if local is None and open_hosts and config.parallel.num_processes == "auto":
        raise ConfigError(
            f"NODE_IP_LIST names no slots for {open_hosts[0]}, and this machine is none of the "
            f"hosts, so it cannot tell how many they have: write {open_hosts[0]}:8, or set "
            "HOST_GPU_NUM"
        )
    hosts = with_slots(hosts, default_slots)
    return Cluster(hosts=hosts, local=with_slots([local], default_slots)[0] if local else None)


def find_local(hosts: Sequence[Host], local_ip: str | None) -> Host | None:
    """The host that this machine is; None where the run starts from a machine beside them.

    Raises:
        ConfigError: LOCAL_IP is none of the hosts.
    """
    if local_ip is not None:
        address = parse_address(local_ip, f"LOCAL_IP, {local_ip!r},")
        for host in hosts:
            if host.address == address:
                return host
        raise ConfigError(
            f"LOCAL_IP is {local_ip}, which is none of the hosts ({', '.join(map(str, hosts))}); "
            "leave it out to start from a machine beside them"
        )
    own = own_addresses()
    for host in hosts:
        if is_loopback(host.address) or own & addresses_of(host.address):
            return host
    return None


def addresses_of(name: str) -> set[str]:
    """The IP addresses of a name, without those that mean everyone; empty where it has none."""
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return set()
    addresses = {str(address[0]) for _, _, _, _, address in found}
    # Debian gives a machine's own name the address 127.0.1.1.
    own_name = {"127.0.1.1"} if name == socket.gethostname() else set()
    return {one for one in addresses if not is_loopback(one)} | (addresses & own_name)


def own_addresses() -> set[str]:
    """Every address at which this machine itself answers, but the loopback ones."""
    addresses = {"127.0.1.1"}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for _, name in socket.if_nameindex():
            request = struct.pack(f"{IFREQ_BYTES}s", name.encode()[:15])
            try:
                reply = fcntl.ioctl(control.fileno(), SIOCGIFADDR, request)
            except OSError:
                continue  # an interface without an IPv4 address
            addresses.add(socket.inet_ntoa(reply[20:24]))
    return addresses | _own_ipv6_addresses()


def _own_ipv6_addresses() -> set[str]:
    table = Path("/proc/net/if_inet6")
    if not table.exists():
        return set()
    packed = (bytes.fromhex(line.split()[0]) for line in table.read_text().splitlines())
    return {socket.inet_ntop(socket.AF_INET6, address) for address in packed}
