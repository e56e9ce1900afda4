import socket

import pytest

from hunyuan_train.config.load import load_config
from hunyuan_train.errors import ConfigError
from hunyuan_train.launcher.cluster.cluster import find_cluster, own_addresses, with_environment
from hunyuan_train.launcher.cluster.hosts import Host


def cluster(*flags, **variables):
    config = with_environment(load_config(list(flags)), variables)
    return find_cluster(config, variables, default_slots=2)


def test_without_a_list_it_is_this_machine_alone():
    alone = cluster()
    assert alone.is_alone
    assert alone.slots == (2,)


def test_a_list_without_this_machine_is_reached_from_outside(monkeypatch):
    monkeypatch.setattr(
        "hunyuan_train.launcher.cluster.cluster.own_addresses", lambda: {"10.9.9.9"}
    )
    found = cluster(NODE_IP_LIST="10.0.0.1:8,10.0.0.2:4", CHIEF_IP="10.0.0.2")
    assert found.hosts == (Host("10.0.0.2", 4), Host("10.0.0.1", 8))
    assert found.local is None
    assert not found.is_alone


def test_the_entry_with_an_address_of_this_machine_is_local(monkeypatch):
    monkeypatch.setattr(
        "hunyuan_train.launcher.cluster.cluster.own_addresses", lambda: {"10.0.0.2"}
    )
    found = cluster(NODE_IP_LIST="10.0.0.1:8,10.0.0.2:4")
    assert found.local == Host("10.0.0.2", 4)
    assert cluster(NODE_IP_LIST="10.0.0.2:4").is_alone


def test_own_addresses_hold_those_that_are_routed_from_here():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("10.255.255.1", 9))
        except OSError:
            pytest.skip("this machine has no route out")
        assert probe.getsockname()[0] in own_addresses()


def test_local_ip_says_which_host_this_is():
    assert cluster(NODE_IP_LIST="a:1,b:1", LOCAL_IP="b").local == Host("b", 1)
    with pytest.raises(ConfigError, match="LOCAL_IP is c, which is none of the hosts"):
        cluster(NODE_IP_LIST="a:1,b:1", LOCAL_IP="c")


def test_flags_win_over_variables():
    config = with_environment(
        load_config(["--node_ip_list", "a:1", "--ssh_port", "22"]),
        {"NODE_IP_LIST": "b:1", "HOSTFILE": "c", "SSH_PORT": "36005", "SSH_USER": "me"},
    )
    assert config.launch.node_ip_list == "a:1"
    assert config.launch.hostfile is None
    assert config.launch.ssh_port == 22
    assert config.launch.ssh_user == "me"


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"SSH_PORT": "22;id"}, "SSH_PORT is '22;id'; it takes a whole number"),
        ({"MASTER_PORT": "70000"}, "master_port is 70000; set it to a number from 1 to 65535"),
        ({"NODE_IP_LIST": "a:1", "HOSTFILE": "b"}, "both name the hosts"),
        ({"LAUNCHER": "slurm"}, "LAUNCHER is 'slurm'; it takes ssh, torchrun or deepspeed"),
        ({"HOST_GPU_NUM": "many"}, "HOST_GPU_NUM is 'many'; it takes a whole number"),
    ],
)
def test_variables_that_make_no_sense_are_refused(variables, message):
    with pytest.raises(ConfigError, match=message):
        cluster(**variables)


def test_a_lost_host_leaves_a_smaller_cluster():
    whole = cluster(NODE_IP_LIST="a:1,b:2,c:3", LOCAL_IP="a")
    assert whole.without([Host("b", 2)]).slots == (1, 3)
    assert whole.without([Host("a", 1)]).local is None
