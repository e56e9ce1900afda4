"""The machines that a plan is made for, where they are not the one at hand."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from hunyuan_train.config.declare import check_bounds, free_setting
from hunyuan_train.config.values import parse_value

MATMUL_SHARE = 0.6  # of a GPU's peak: grouped and plain products of this model's sizes on an H100
MOST_GB = 10**6


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedMachines:
    """Flags of `plan`, and of `train --dry_run`."""

    gpus: int = free_setting(8, "GPUs of each machine", low=1, high=1024)
    nodes: int = free_setting(1, "machines", low=1, high=10**4)
    gpu: str = free_setting(
        "h100", "GPU whose speed and memory to assume: a100, a800, h20, h100 and others"
    )
    gpu_memory: float | None = free_setting(
        None, "GB of each GPU (default: that of --gpu)", low=0.001, high=MOST_GB
    )
    host_memory: float = free_setting(
        0.0, "GB of host memory of each machine (0: no limit)", low=0, high=MOST_GB
    )
    disk: float = free_setting(0.0, "GB of free disk for the run (0: no limit)", low=0, high=10**9)
    matmul_share: float = free_setting(
        MATMUL_SHARE, "share of the GPU's peak that matrix products reach", low=0.01, high=1
    )

    def __post_init__(self) -> None:
        check_bounds(self)


HELP = {field.name: str(field.metadata["help"]) for field in fields(PlannedMachines)}


def parse_machines(values: Mapping[str, Any]) -> PlannedMachines:
    """The machines that flags describe; what none says is the default.

    Raises:
        ConfigError: a value that no machine has.
    """
    types = {field.name: field.type for field in fields(PlannedMachines)}
    parsed = {name: parse_value(name, types[name], value) for name, value in values.items()}
    return PlannedMachines(**parsed)
