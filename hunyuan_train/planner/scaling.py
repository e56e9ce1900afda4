"""What crosses from machine to machine as machines are added, and when the network decides.

Every machine keeps its GPUs, and every GPU its rows, so that the work of a GPU stays the same.
Tokens go to experts inside a machine, as the rules demand; what crosses are the weights and
gradients of experts, which as many ranks keep in parts as there are machines, and those of all
else, which all ranks do.
"""

from dataclasses import dataclass, replace

from hunyuan_train.config.resolved_run import ResolvedRun
from hunyuan_train.planner.crossing import crossing_weights
from hunyuan_train.planner.machine import BANDWIDTH_SHARE, Hardware
from hunyuan_train.planner.speed import USUAL_SKEW, exchange_seconds, plan_speed, plan_traffic

NODE_COUNTS = (2, 4, 8, 16, 32, 64, 128)


@dataclass(frozen=True, slots=True)
class Crossing:
    """Bytes that one GPU sends to other machines in an optimizer step."""

    heads: int  # for tokens, where ranks of several machines share a row
    experts: int  # weights and gradients of routed experts, which as many ranks keep as machines
    rest: int  # of all other parameters, which all ranks keep in parts

    @property
    def total(self) -> int:
        """All of them."""
        return self.heads + self.experts + self.rest


@dataclass(frozen=True, slots=True)
class Scaled:
    """A run on some number of machines."""

    num_nodes: int
    crossing: Crossing
    network_seconds: float  # in which a GPU's link carries that
    seconds: float  # an optimizer step
    free_seconds: float  # the same, if nothing crossed
    num_ranks: int
    tokens: int  # of all ranks

    @property
    def tokens_per_gpu(self) -> float:
        """Tokens a second of one GPU."""
        return self.tokens / self.seconds / self.num_ranks

    @property
    def is_bound_by_network(self) -> bool:
        """Whether a step takes longer for what crosses."""
        return self.seconds > self.free_seconds


def plan_scaling(run: ResolvedRun, hardware: Hardware) -> list[Scaled]:
    """The same run on 2 to 128 machines like the one planned for."""
    slots = run.ranks_per_node
    return [scale(replace(run, slots=(slots,) * num), hardware) for num in NODE_COUNTS]


def scale(run: ResolvedRun, hardware: Hardware) -> Scaled:
    """Predict an optimizer step on as many machines as a run has."""
    gpu, crossing, speed = hardware.gpu, plan_crossing(run), plan_speed(run, hardware)
    traffic = speed.traffic
    inside = (traffic.gathers + traffic.reduction) / (gpu.node_bandwidth * BANDWIDTH_SHARE)
    exchanges = exchange_seconds(
        run,
        hardware,
        imbalance=USUAL_SKEW,
        token_bandwidth=gpu.node_bandwidth,
        head_bandwidth=gpu.node_bandwidth,
    )
    free = replace(speed, weight_seconds=inside, token_seconds=exchanges)
    return Scaled(
        num_nodes=run.num_nodes,
        crossing=crossing,
        network_seconds=crossing.total / (gpu.network_bandwidth * BANDWIDTH_SHARE),
        seconds=speed.seconds,
        free_seconds=free.seconds,
        num_ranks=run.num_ranks,
        tokens=speed.tokens,
    )


def plan_crossing(run: ResolvedRun) -> Crossing:
    """Bytes that one GPU sends to other machines in an optimizer step."""
    traffic, (experts, rest) = plan_traffic(run), crossing_weights(run)
    heads = int(traffic.heads * share_outside(run, run.sequence_size))
    return Crossing(heads, experts, rest)


def share_outside(run: ResolvedRun, group_size: int) -> float:
    """Which share of a group's other ranks is on other machines than a rank."""
    inside = min(group_size, run.ranks_per_node)
    return (group_size - inside) / (group_size - 1) if group_size > 1 else 0.0


def first_bound_by_network(scaled: list[Scaled]) -> int | None:
    """From how many machines on a step takes longer for what crosses; None: on none of them."""
    return next((one.num_nodes for one in scaled if one.is_bound_by_network), None)
