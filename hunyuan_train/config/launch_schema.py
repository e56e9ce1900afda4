"""What spreads a run over processes and hosts: settings, none of which changes a step."""

from dataclasses import dataclass
from typing import Literal

from hunyuan_train.config.declare import Auto, check_bounds, free_setting
from hunyuan_train.errors import ConfigError

MOST_PROCESSES = 4096  # on a host
MOST_SECONDS = 10**7  # of any wait: four months, within what clocks and libraries count
MOST_MINUTES = 10**5
# Set by our launcher for rank 0: the descriptor of a socket that listens where all ranks meet.
LISTENER = "HUNYUAN_TRAIN_LISTENER"


@dataclass(frozen=True, kw_only=True, slots=True)
class ParallelConfig:
    """How processes divide the model."""

    num_processes: int | Auto = free_setting(
        "auto",
        "processes on each machine (auto: one per GPU, or two on CPUs)",
        low=1,
        high=MOST_PROCESSES,
    )
    expert_parallel_size: int | Auto = free_setting(
        "auto",
        "processes that share one full set of routed experts (auto: the largest number that "
        "divides both the processes and the experts)",
        low=1,
        high=MOST_PROCESSES,
    )
    sequence_parallel_size: int = free_setting(
        1,
        "context parallelism (Ulysses): processes that share each row, each with an equal part "
        "of its tokens. It must divide the number of processes and of the model's attention heads",
        low=1,
        high=MOST_PROCESSES,
    )
    deepspeed: str = free_setting(
        "auto",
        "a DeepSpeed JSON file (auto: one of ds_configs/, by expert_parallel_size and optimizer)",
        form="path",
    )
    force_plan: bool = free_setting(
        False, "start even if the plan says that memory or disk is not enough"
    )
    timeout_minutes: float = free_setting(
        30.0,
        "a collective operation that waits longer than this ends the run",
        low=0.1,
        high=MOST_MINUTES,
    )

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class LaunchConfig:
    """The hosts of a run, how they are reached, and what happens when one fails."""

    node_ip_list: str | None = free_setting(
        None,
        "hosts of the run with their processes, such as 10.0.0.1:8,10.0.0.2:8 (default: this "
        "machine)",
        form="list",
    )
    hostfile: str | None = free_setting(
        None, "the same as a file with one `ADDRESS slots=8` per line. See hostfiles/", form="path"
    )
    local_ip: str | None = free_setting(
        None,
        "which of the hosts this machine is (default: the one with an address of this machine)",
    )
    chief_ip: str | None = free_setting(None, "the host of rank 0 (default: the first of the list)")
    ssh_port: int | None = free_setting(
        None,
        "port of sshd on the hosts (default: from ssh's own configuration)",
        low=1,
        high=65535,
    )
    ssh_user: str | None = free_setting(
        None, "user on the hosts (default: from ssh's configuration)"
    )
    ssh_config: str | None = free_setting(
        None, "a configuration file for ssh (default: ~/.ssh/config)", form="path"
    )
    master_port: int | None = free_setting(
        None,
        "port of rank 0 for the rendezvous of all ranks (default: a free one)",
        low=1,
        high=65535,
    )
    launcher: Literal["ssh", "torchrun", "deepspeed"] = free_setting(
        "ssh",
        "ssh: our own launcher, with monitoring and restarts. It uses ssh if there are several "
        "hosts. torchrun: its former name. deepspeed: DeepSpeed's launcher with pdsh, without "
        "monitoring and restarts",
    )
    sync: bool = free_setting(
        False, "copy code, data and model to the hosts with rsync before the start"
    )
    hub: Literal["huggingface", "modelscope"] = free_setting(
        "huggingface", "where a model that is named OWNER/NAME is downloaded from"
    )
    download_dir: str | None = free_setting(
        None,
        "folder for models and data sets that are named on a hub. With several hosts it must be "
        "on a shared disk, unless you use --sync (default: ~/.cache/hunyuan_train/hub)",
        form="path",
    )
    numa_binding: Literal["node", "off"] = free_setting(
        "node",
        "node: bind each process to the CPU cores next to its GPU, unless it is bound already. "
        "off: bind none",
    )
    max_restarts: int = free_setting(
        0,
        "restarts from the newest checkpoint after a failure. Each newer checkpoint allows as "
        "many again",
        low=0,
        high=10**6,
    )
    min_hosts: int | None = free_setting(
        None,
        "continue with this many hosts if the others do not come back (default: all are needed)",
        low=1,
        high=10**5,
    )
    wait_for_hosts_seconds: float = free_setting(
        600.0, "how long a restart waits for hosts to come back", low=0, high=MOST_SECONDS
    )
    host_timeout_seconds: float = free_setting(
        20.0,
        "a host that does not answer for longer counts as lost, and ends its own processes",
        low=2,
        high=MOST_SECONDS,
    )
    hang_timeout_seconds: float = free_setting(
        1800.0,
        "end a run that makes no progress for this long (no step, no batch of an evaluation, no "
        "part of a file), with the stacks of all ranks. The start has at least 600 s",
        low=1,
        high=MOST_SECONDS,
    )
    stop_timeout_seconds: float = free_setting(
        600.0,
        "how long ranks may take to finish their step and save after a stop",
        low=0,
        high=MOST_SECONDS,
    )

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.node_ip_list and self.hostfile:
            raise ConfigError(
                f"node_ip_list is {self.node_ip_list} and hostfile {self.hostfile}; both name the "
                "hosts, so give one of them"
            )
