import ipaddress
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hunyuan_train.errors import ConfigError
from hunyuan_train.launcher.cluster.hosts import (
    MAX_SLOTS,
    Host,
    check_count,
    chief_first,
    parse_node_list,
    read_hostfile,
    with_slots,
)

SAFE = re.compile(r"[A-Za-z0-9_:][A-Za-z0-9_.:-]*")
MALFORMED = [
    "",
    ",",
    "10.0.0.1:8,",
    ",10.0.0.1:8",
    "10.0.0.1:8,,10.0.0.2:8",
    "10.0.0.1:0",
    "10.0.0.1:-1",
    "10.0.0.1:+8",
    "10.0.0.1:08",
    "10.0.0.1:8.0",
    "10.0.0.1:8:8",
    "10.0.0.1:",
    "10.0.0.1:eight",
    "10.0.0.1:1025",
    "10.0.0.1:99999999999999999999",
    "10.0.0.1:٨",
    "10.0.0:8",
    "10.0.0.256:8",
    "10.0.0.01:8",
    "1234:8",
    "0.0.0.0:8",
    "255.255.255.255:8",
    "224.0.0.1:8",
    ":8",
    "fd00::1:8",
    "[fd00::1:8",
    "fd00::1]:8",
    "[]:8",
    "[10.0.0.1.2]:8",
    "[fd00::1]8",
    "[::]:8",
    "[fe80::1%eth0]:8",
    "[fd00::zz]:8",
    "root@10.0.0.1:8",
    "-oProxyCommand=id:8",
    "gpu-:8",
    "gpu..a:8",
    ".gpu:8",
    "g" * 64 + ":8",
    "a." * 127 + "a:8",
    "gpu a:8",
    "gpu;id:8",
    "gpu|id:8",
    "gpu&id:8",
    "$(id):8",
    "`id`:8",
    "$HOME:8",
    "*:8",
    "gpu>x:8",
    "gpu'x:8",
    'gpu"x:8',
    "gpu\\x:8",
    "gpu\nid:8",
    "gpu\x00:8",
    "10.0.0.1 slots=8",
    "http://10.0.0.1:8",
    "10.0.0.1/24:8",
    "gpü:8",
]


def test_addresses_names_and_unequal_slots_are_read():
    hosts = parse_node_list("10.0.0.1:8, GPU-b.Example.org:4,[FD00:0::2]:16,[2001:DB8::7],c_1")
    assert hosts == (
        Host("10.0.0.1", 8),
        Host("gpu-b.example.org", 4),
        Host("fd00::2", 16),
        Host("2001:db8::7", None),
        Host("c_1", None),
    )
    assert str(hosts[2]) == "[fd00::2]:16"
    assert [host.slots for host in with_slots(hosts, 2)] == [8, 4, 16, 2, 2]
    assert parse_node_list("[::1]:8") == (Host("::1", 8),)


@pytest.mark.parametrize("text", MALFORMED)
def test_nonsense_is_refused_with_the_entry(text):
    entries = [entry.strip() for entry in text.split(",")]
    with pytest.raises(ConfigError) as caught:
        parse_node_list(text)
    assert any(repr(entry) in str(caught.value) for entry in entries)
    assert "NODE_IP_LIST" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("10.0.0.1:8,gpu-a,10.0.0.1:4", r"entry 3 .*'10.0.0.1:4', is the host of entry 1 again"),
        ("gpu-a,GPU-A.:8", "entry 2 .* is the host of entry 1 again"),
        ("[fd00::1]:8,[fd00:0:0::1]:8", "entry 2 .* again"),
        ("127.0.0.1:8,10.0.0.2:8", "entry 1 .*means every host itself"),
        ("10.0.0.2:8,localhost:8", "entry 2 .*means every host itself"),
        ("root@10.0.0.1:8", "--ssh_user"),
        ("10.0.0.1:36005", "has '36005' slots; .*--ssh_port"),
    ],
)
def test_the_message_says_what_is_wrong(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_node_list(text)


@settings(deadline=None)  # a busy machine is no fault
@given(st.text(max_size=40))
def test_whatever_passes_is_harmless_to_a_shell_and_to_ssh(text):
    try:
        hosts = parse_node_list(text)
    except ConfigError:
        return
    for host in hosts:
        assert SAFE.fullmatch(host.address)
        assert host.slots is None or 1 <= host.slots <= MAX_SLOTS


names = st.from_regex(r"[a-z]([a-z0-9-]{0,10}[a-z0-9])?(\.[a-z]{1,8}){0,3}", fullmatch=True)
ordinary = st.tuples(st.integers(1, 223), *[st.integers(0, 255)] * 2, st.integers(1, 254)).map(
    lambda parts: ".".join(map(str, parts))
)
unique_local = st.integers(1, 2**64).map(
    lambda low: str(ipaddress.IPv6Address((0xFD << 120) + low))
)
hosts_with_slots = st.lists(
    st.builds(Host, names | ordinary | unique_local, st.integers(1, MAX_SLOTS)),
    min_size=1,
    max_size=20,
    unique_by=lambda host: host.address,
).filter(
    lambda hosts: (
        not any(host.address.startswith("127.") or host.address == "localhost" for host in hosts)
    )
)


@settings(deadline=None)
@given(hosts=hosts_with_slots)
def test_a_list_that_is_written_reads_back(hosts):
    assert parse_node_list(",".join(map(str, hosts))) == tuple(hosts)


@settings(deadline=None)
@given(hosts=hosts_with_slots)
def test_a_hostfile_that_is_written_reads_back(hosts, tmp_path_factory):
    path = tmp_path_factory.mktemp("hosts") / "file"
    lines = [f"  {host.address}\tslots={host.slots} # one" for host in hosts]
    path.write_text("# all\n\n" + "\r\n".join(lines))
    assert read_hostfile(path) == tuple(hosts)


@pytest.mark.parametrize(
    "line",
    [
        "10.0.0.1 slots=",
        "10.0.0.1 slots=0",
        "10.0.0.1 slots=8 max_slots=8",
        "10.0.0.1 slots = 8",
        "10.0.0.1 8",
        "10.0.0.1:8 slots=8",
        "slots=8",
        "10.0.0.1, slots=8",
        "10.0.0.1 slots=8;id",
        "$(id) slots=8",
        "-oProxyCommand=id slots=8",
        "user@10.0.0.1 slots=8",
    ],
)
def test_a_line_that_is_no_host_is_refused_with_its_number(tmp_path, line):
    path = tmp_path / "hostfile"
    path.write_text(f"10.0.0.9 slots=8\n# comment\n{line}\n")
    with pytest.raises(ConfigError, match=re.escape(f"{path}:3, {line!r},")):
        read_hostfile(path)


@pytest.mark.parametrize("content", [b"", b"# nothing\n", b"\xff\xfe\x00"])
def test_a_file_without_hosts_is_refused(tmp_path, content):
    path = tmp_path / "hostfile"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="hostfile is"):
        read_hostfile(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_hostfile(tmp_path)


def test_the_examples_can_be_read():
    folder = Path(__file__).resolve().parents[3] / "hostfiles"
    assert [host.slots for host in read_hostfile(folder / "two_machines")] == [8, 8]
    assert [host.slots for host in read_hostfile(folder / "shared_machine")] == [8, 4]


def test_the_chief_holds_rank_0():
    hosts = parse_node_list("10.0.0.1:8,10.0.0.2:4,10.0.0.3:8")
    assert chief_first(hosts, None) == hosts
    assert chief_first(hosts, "10.0.0.3") == (hosts[2], hosts[0], hosts[1])
    with pytest.raises(ConfigError, match=r"CHIEF_IP is 10.0.0.9, which is none of the hosts"):
        chief_first(hosts, "10.0.0.9")


@pytest.mark.parametrize(
    ("text", "variables", "message"),
    [
        ("10.0.0.1:8", {"NODES": "2"}, "NODES is 2, but the list names 1"),
        (None, {"NODES": "2"}, "NODES is 2, but no list says which"),
        ("10.0.0.1:8,10.0.0.2:4", {"HOST_GPU_NUM": "8"}, r"HOST_GPU_NUM is 8, .* 10.0.0.2:4"),
        (None, {"HOST_GPU_NUM": "8;id"}, "HOST_GPU_NUM has '8;id' slots"),
        (None, {"NODES": "1", "HOST_GPU_NUM": "8"}, None),
        ("10.0.0.1,10.0.0.2:8", {"NODES": "2", "HOST_GPU_NUM": "8"}, None),
    ],
)
def test_variables_that_contradict_the_list_are_refused(text, variables, message):
    hosts = parse_node_list(text) if text else ()
    if message is None:
        check_count(hosts, variables)
        return
    with pytest.raises(ConfigError, match=message):
        check_count(hosts, variables)
