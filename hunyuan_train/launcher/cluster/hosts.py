"""Reads which hosts a run takes and how many processes each of them gets.

An address that passed here holds letters, digits, dots, dashes, underscores and colons only, and
does not begin with a dash: neither a shell nor ssh can take it for anything but an address.
"""

import ipaddress
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hunyuan_train.errors import ConfigError

MAX_SLOTS = 1024
FORM = "write ADDRESS:SLOTS, such as 10.0.0.1:8, gpu-a.example.org:8 or [fd00::1]:8"
ENTRY = re.compile(r"(?P<address>\[[^\[\]]*\]|[^:\[\]]*)(?::(?P<slots>.*))?", re.DOTALL)
LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
SLOTS = re.compile(r"[1-9][0-9]{0,3}")
MAX_NAME_LENGTH = 253


@dataclass(frozen=True, slots=True)
class Host:
    """One host of a run: its address as ssh takes it, and how many processes run there."""

    address: str
    slots: int | None = None  # None: as many as every host gets that names no number

    @property
    def in_brackets(self) -> str:
        """The address as it stands before a colon: [fd00::1] for IPv6."""
        return f"[{self.address}]" if ":" in self.address else self.address

    def __str__(self) -> str:
        return self.in_brackets if self.slots is None else f"{self.in_brackets}:{self.slots}"


def parse_node_list(text: str, *, source: str = "NODE_IP_LIST") -> tuple[Host, ...]:
    """The hosts of a list like "10.0.0.1:8,[fd00::2]:8,gpu-c".

    Raises:
        ConfigError: naming the first entry that is no host, or that repeats one.
    """
    entries = [entry.strip() for entry in text.split(",")]
    hosts = []
    for number, entry in enumerate(entries, 1):
        where = f"entry {number} of {source}, {entry!r},"
        match = ENTRY.fullmatch(entry)
        if match is None:
            raise ConfigError(f"{where} is no host; {FORM}")
        address = parse_address(match["address"], where)
        hosts.append(Host(address, parse_slots(match["slots"], where)))
    return check_hosts_differ(hosts, source)


def read_hostfile(path: Path) -> tuple[Host, ...]:
    """The hosts of a file with one `ADDRESS slots=N` a line and comments behind #.

    Raises:
        ConfigError: naming the line that is no host, or that repeats one.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"hostfile is {path}, which cannot be read as text ({error}); give a file like those "
            "in hostfiles/"
        ) from error
    hosts = [_parse_line(words, where) for words, where in _lines_of_hosts(text, path)]
    if not hosts:
        raise ConfigError(f"hostfile is {path}, which names no host; add lines like `ip slots=8`")
    return check_hosts_differ(hosts, str(path))


def _lines_of_hosts(text: str, path: Path) -> Iterator[tuple[list[str], str]]:
    """The words of each line that is more than a comment, and how to name it."""
    for number, line in enumerate(text.split("\n"), 1):
        if words := line.partition("#")[0].split():
            yield words, f"{path}:{number}, {line.strip()!r},"


def _parse_line(words: Sequence[str], where: str) -> Host:
    settings = words[1:]
    if len(settings) > 1 or not all(word.startswith("slots=") for word in settings):
        raise ConfigError(f"{where} is no host; write `ADDRESS slots=8`, and comments behind #")
    slots = settings[0].removeprefix("slots=") if settings else None
    return Host(parse_address(words[0], where), parse_slots(slots, where))


def parse_address(text: str, where: str) -> str:
    """An IP address in its shortest form, or a host name; IPv6 may stand in brackets.

    Raises:
        ConfigError: beginning with `where`.
    """
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if not bare:
        raise ConfigError(f"{where} has no address; {FORM}")
    if ":" in bare or bare != text:
        return _parse_ip(bare, where)
    labels = bare.removesuffix(".").split(".")
    if len(bare) > MAX_NAME_LENGTH or not all(LABEL.fullmatch(label) for label in labels):
        raise ConfigError(
            f"{where} is neither an IP address nor a host name (letters, digits, dots and dashes "
            f"inside); {FORM}"
            + ("; the user is a setting of its own, --ssh_user" if "@" in bare else "")
        )
    if labels[-1].isdigit():  # no host name ends in a number, so this means an address
        return _parse_ip(bare, where)
    return bare.removesuffix(".").lower()


def _parse_ip(text: str, where: str) -> str:
    try:
        address = ipaddress.ip_address(text)
    except ValueError as error:
        raise ConfigError(f"{where} has no valid IP address ({error}); {FORM}") from error
    is_broadcast = isinstance(address, ipaddress.IPv4Address) and address.is_reserved
    if address.is_unspecified or address.is_multicast or is_broadcast:
        raise ConfigError(f"{where} is an address that no host has; {FORM}")
    if isinstance(address, ipaddress.IPv6Address) and (address.is_link_local or address.scope_id):
        raise ConfigError(
            f"{where} is a link-local address, which means another host on each; give its global "
            "or its IPv4 address"
        )
    return str(address)


def parse_slots(text: str | None, where: str) -> int | None:
    """A number of processes, or None where none is given.

    Raises:
        ConfigError: beginning with `where`.
    """
    if text is None:
        return None
    if not SLOTS.fullmatch(text) or int(text) > MAX_SLOTS:
        raise ConfigError(
            f"{where} has {text!r} slots; give a whole number from 1 to {MAX_SLOTS} behind the "
            "colon, one process per GPU (the port of ssh is --ssh_port)"
        )
    return int(text)


def check_hosts_differ(hosts: Sequence[Host], source: str) -> tuple[Host, ...]:
    """Refuse a host that is named twice, and one that others would take for themselves.

    Raises:
        ConfigError: naming it.
    """
    seen: dict[str, int] = {}
    for number, host in enumerate(hosts, 1):
        if host.address in seen:
            raise ConfigError(
                f"entry {number} of {source}, {str(host)!r}, is the host of entry "
                f"{seen[host.address]} again; name each host once, with all its slots"
            )
        seen[host.address] = number
        if len(hosts) > 1 and is_loopback(host.address):
            raise ConfigError(
                f"entry {number} of {source}, {str(host)!r}, means every host itself; give the "
                "address by which the others reach it"
            )
    return tuple(hosts)


def is_loopback(address: str) -> bool:
    """Whether an address means whoever uses it."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def with_slots(hosts: Sequence[Host], default: int) -> tuple[Host, ...]:
    """The same hosts, each with its number of processes."""
    return tuple(replace(host, slots=host.slots or default) for host in hosts)


def chief_first(hosts: Sequence[Host], chief: str | None) -> tuple[Host, ...]:
    """The hosts with the one that holds rank 0 in front.

    Raises:
        ConfigError: the chief is none of them.
    """
    if chief is None:
        return tuple(hosts)
    address = parse_address(chief, f"CHIEF_IP, {chief!r},")
    first = [host for host in hosts if host.address == address]
    if not first:
        raise ConfigError(
            f"CHIEF_IP is {chief}, which is none of the hosts ({', '.join(map(str, hosts))}); "
            "name one of them, or leave it out for the first"
        )
    return (*first, *(host for host in hosts if host.address != address))


def check_count(hosts: Sequence[Host], environment: Mapping[str, str]) -> None:
    """Refuse NODES and HOST_GPU_NUM that contradict the list.

    Raises:
        ConfigError: naming the variable and the entry.
    """
    nodes = environment.get("NODES", "")
    if nodes and nodes != str(len(hosts) or 1):
        listed = f"the list names {len(hosts)}" if hosts else "no list says which"
        raise ConfigError(
            f"NODES is {nodes}, but {listed}; give NODE_IP_LIST one entry for each, or leave NODES "
            "out"
        )
    slots = environment.get("HOST_GPU_NUM", "")
    if slots:
        parse_slots(slots, "HOST_GPU_NUM")
    for host in hosts:
        if slots and host.slots not in (None, int(slots)):
            raise ConfigError(
                f"HOST_GPU_NUM is {slots}, but NODE_IP_LIST says {host}; leave one of them out"
            )
