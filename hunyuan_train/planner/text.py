"""The plan in words, for people and as JSON."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from math import floor
from typing import Any

from hunyuan_train.config.resolved_run import ResolvedRun
from hunyuan_train.config.schema import LoraConfig
from hunyuan_train.families.tables import count_parameters
from hunyuan_train.planner.component import (
    Component,
    Phase,
    fullest_moment,
    gibibytes,
    gigabytes,
    lines_at,
)
from hunyuan_train.planner.estimate import Estimate, Shortage
from hunyuan_train.planner.exchanges import can_be_skewed
from hunyuan_train.planner.machine import BANDWIDTH_SHARE
from hunyuan_train.planner.memory import SKEWED
from hunyuan_train.planner.scaling import first_bound_by_network, plan_scaling
from hunyuan_train.planner.search import Nearest
from hunyuan_train.planner.speed import TOLD_SKEWS, USUAL_SKEW, Speed, plan_speed

WIDTH = 26
NUM_ITEMS = 5  # of computing, by name
STATES = ("weights", "gradients", "optimizer")


def describe_estimate(estimate: Estimate) -> Iterator[str]:
    """The whole plan, line by line."""
    yield from describe_run(estimate)
    place = "GPU" if estimate.run.is_on_gpu else "process (its arrays lie in host memory)"
    moment = fullest_moment(estimate.memory.device)
    title = f"memory of each {place}; the fullest moment of a step is {moment}"
    yield from describe_lines(title, lines_at(estimate.memory.device, moment))
    yield total_line("at the fullest moment", estimate.memory.device_peak)
    yield total_line("of it, states", state_bytes(estimate.memory.device))
    yield from describe_skew(estimate)
    yield from describe_lines("host memory of each process", estimate.memory.host)
    yield total_line("host memory of a machine", estimate.host_per_node)
    yield from describe_disk(estimate)
    if estimate.run.is_on_gpu:
        yield from describe_speed(estimate)
        yield from describe_scaling(estimate)


def describe_run(estimate: Estimate) -> Iterator[str]:
    """What is planned, on what."""
    run, shape = estimate.run, estimate.run.shape
    train, lora = run.config.train, run.config.lora
    device = "GPUs" if run.is_on_gpu else "processes"
    recomputed = {True: "on", False: "off", "selective": "selective"}[train.gradient_checkpointing]
    yield (
        f"{run.config.model.model_name_or_path}: {count_parameters(shape).total:,} parameters, "
        f"{count_parameters(shape).active:,} active"
    )
    yield (
        f"{describe_adapters(lora) if lora.use_lora else 'full fine-tuning'}, optimizer "
        f"{run.optimizer.title}, rows of {run.config.data.max_seq_length:,} "
        f"tokens, {train.per_device_train_batch_size} at a time, gradient checkpointing "
        f"{recomputed}"
    )
    yield (
        f"{run.num_ranks} {device} on {run.num_nodes} machine(s), ZeRO stage {run.stage}, "
        f"{describe_split(run)}"
    )


def describe_adapters(lora: LoraConfig) -> str:
    """The rank of adapters, what they are scaled by, and where they are."""
    divisor = "sqrt(rank)" if lora.use_rslora else "rank"
    return (
        f"LoRA of rank {lora.lora_rank} and alpha {lora.alpha:g} (scale {lora.scaling:g} = alpha / "
        f"{divisor}) on {lora.lora_target_modules}"
    )


def describe_split(run: ResolvedRun) -> str:
    """How experts and rows are divided."""
    experts = f"experts split over {run.expert_size}" if run.shape.num_experts else "no experts"
    sharing = f", each row shared by {run.sequence_size}" if run.sequence_size > 1 else ""
    return experts + sharing


def describe_lines(title: str, lines: Iterable[Component]) -> Iterator[str]:
    """A table of components."""
    yield ""
    yield title
    for line in lines:
        when = "" if line.phase is Phase.ALWAYS else f" [{line.phase.value}]"
        yield f"  {line.name:<{WIDTH}}{gigabytes(line.num_bytes):>12}  {line.source}{when}"


def state_bytes(lines: Iterable[Component]) -> int:
    """Weights, gradients and optimizer, the part that no shorter row makes smaller."""
    return sum(line.num_bytes for line in lines if line.name in STATES)


def total_line(name: str, num_bytes: int) -> str:
    """The last line of a table."""
    return f"  {name:<{WIDTH}}{gigabytes(num_bytes):>12}  = {gibibytes(num_bytes)}"


def describe_skew(estimate: Estimate) -> Iterator[str]:
    """What a balanced step takes beside the skewed one above, and which skew is too much."""
    if not can_be_skewed(estimate.run):
        return
    yield total_line("were experts balanced", estimate.balanced.device_peak)
    most = estimate.most_skew
    if most is None:
        return
    if most == 0:
        words = "does not fit, however balanced its experts are"
    elif most >= estimate.run.expert_size:
        words = "fits even where one rank gets all tokens"
    else:
        words = f"fits up to a skew of {floor(most * 10) / 10:.1f}, and not from there on"
    yield f"  a step {words} (the plan is for {SKEWED:g}; real runs have 2.6 to 3, and 5 at worst)"


def describe_disk(estimate: Estimate) -> Iterator[str]:
    """What the run writes."""
    disk = estimate.disk
    yield ""
    yield "disk"
    yield f"  {'checkpoint':<{WIDTH}}{gigabytes(disk.checkpoint):>12}  {disk.num_kept} at a time"
    yield f"  {'export':<{WIDTH}}{gigabytes(disk.export):>12}"
    yield f"  {'in all':<{WIDTH}}{gigabytes(disk.total):>12}"


def describe_speed(estimate: Estimate) -> Iterator[str]:
    """What a step moves and takes, and what that rests on."""
    speed, hardware = estimate.speed, estimate.hardware
    traffic, gpu = speed.traffic, hardware.gpu
    sent = {
        "tokens to experts": traffic.tokens,
        "heads for tokens": traffic.heads,
        "weights gathered": traffic.gathers,
        "gradients reduced": traffic.reduction,
        "to and from the host": traffic.inputs + traffic.host,
    }
    yield ""
    yield "sent by each GPU in an optimizer step"
    for name, num_bytes in sent.items():
        yield f"  {name:<{WIDTH}}{gigabytes(num_bytes):>12}"
    yield ""
    yield f"time of an optimizer step of {speed.tokens:,} tokens, on {gpu.name}"
    for name, seconds in {
        "computing": speed.compute_seconds,
        "exchanging tokens": speed.token_seconds,
        "layers' inputs": speed.input_seconds,
        "weights and gradients": speed.weight_seconds,
        "update": speed.update_seconds,
        "in all": speed.seconds,
    }.items():
        yield f"  {name:<{WIDTH}}{seconds:>10.2f} s"
    yield f"  of computing: {describe_items(speed)}"
    yield f"  {speed.tokens_per_second:,.0f} tokens/s, {speed.tokens_per_gpu:,.0f} a GPU"
    yield from describe_speeds(estimate)
    yield (
        f"  assumed: {hardware.matmul_share:.0%} of {gpu.bf16_flops / 1e12:,.0f} TFLOP/s, "
        f"{BANDWIDTH_SHARE:.0%} of {gpu.memory_bandwidth / 1e12:.2f} TB/s memory, "
        f"{gpu.node_bandwidth / 1e9:,.0f} GB/s in the machine and "
        f"{gpu.network_bandwidth / 1e9:,.0f} GB/s between machines ({gpu.source})"
    )


def describe_scaling(estimate: Estimate) -> Iterator[str]:
    """What crosses between machines as they are added, and from how many on that decides."""
    scaled = plan_scaling(estimate.run, estimate.hardware)
    yield ""
    yield "sent by each GPU to other machines in an optimizer step, as machines are added"
    yield (
        f"  {'machines':>8}{'heads':>12}{'experts':>12}{'the rest':>12}{'on the network':>18}"
        f"{'a step':>10}{'tokens/s a GPU':>17}"
    )
    for one in scaled:
        sent = (one.crossing.heads, one.crossing.experts, one.crossing.rest)
        yield (
            f"  {one.num_nodes:>8}{''.join(f'{gigabytes(size):>12}' for size in sent)}"
            f"{one.network_seconds:>16.2f} s{one.seconds:>8.2f} s{one.tokens_per_gpu:>17,.0f}"
        )
    bound = first_bound_by_network(scaled)
    if bound is None:
        yield f"  the network stays hidden behind computing, up to {scaled[-1].num_nodes} machines"
    else:
        yield (
            f"  from {bound} machines on, a step waits for the network: more tokens at a time "
            "(per_device_train_batch_size, max_seq_length) hide more of it"
        )


def seconds_by_item(speed: Speed) -> dict[str, float]:
    """What is computed in a step, by item, all passes together."""
    found: defaultdict[str, float] = defaultdict(float)
    for (_, item), seconds in speed.items.items():
        found[item.value] += seconds
    return dict(found)


def describe_items(speed: Speed) -> str:
    """What is computed, the longest first."""
    items = Counter(seconds_by_item(speed))
    listed = [f"{name} {seconds:.2f} s" for name, seconds in items.most_common(NUM_ITEMS)]
    rest = sum(items.values()) - sum(seconds for _, seconds in items.most_common(NUM_ITEMS))
    return ", ".join([*listed, f"all else {rest:.2f} s"])


def describe_speeds(estimate: Estimate) -> Iterator[str]:
    """The speed at other skews of experts than the usual one."""
    if not can_be_skewed(estimate.run):
        return
    told = ", ".join(
        f"{plan_speed(estimate.run, estimate.hardware, imbalance=skew).tokens_per_gpu:,.0f} at "
        f"{skew:g}"
        for skew in TOLD_SKEWS
    )
    yield (
        f"  that is where the busiest rank gets {USUAL_SKEW:g} times an equal share of rows, which "
        f"all wait for; {told}"
    )


def describe_shortage(shortage: Shortage) -> str:
    """The arithmetic of a refusal, in one sentence."""
    large = sorted(shortage.parts, key=lambda part: -part.num_bytes)
    listed = " + ".join(
        f"{part.name} {gigabytes(part.num_bytes)}" for part in large if part.num_bytes
    )
    states = state_bytes(shortage.parts)
    fixed = f", {gibibytes(states, digits=0)} of it for weights, gradients and optimizer"
    return (
        f"{shortage.what} would need {gigabytes(shortage.needed)} "
        f"({gibibytes(shortage.needed)}{fixed if states else ''}) and has "
        f"{gigabytes(shortage.available)}: {listed}"
    )


def describe_nearest(nearest: Nearest | None, asked: Estimate) -> str:
    """The remedy, in one sentence.

    Args:
        nearest: the plan that fits, where one is known.
        asked: the plan that does not.
    """
    of_disk = [one for one in asked.shortages if one.is_of_disk]
    room = [
        f"make room for {gigabytes(one.needed)}, or give an output_dir elsewhere" for one in of_disk
    ]
    if asked.lacks_disk_alone:
        fewer = [f"or save less by {' '.join(nearest.flags)}"] if nearest else []
        return ", ".join(room + fewer)
    if nearest is None:
        other = "no plan near it fits: use a smaller model, or more and larger machines"
        return "; ".join([other, *room])
    peak = nearest.estimate.memory.device_peak
    is_on_gpu = nearest.estimate.run.is_on_gpu
    device = f"{gigabytes(peak)} = {gibibytes(peak)} a GPU, " if is_on_gpu else ""
    return (
        f"the nearest plan that fits: {' '.join(nearest.flags)} "
        f"({device}{gigabytes(nearest.estimate.host_per_node)} of host memory a machine)"
    )


def as_json(estimate: Estimate, nearest: Nearest | None) -> dict[str, Any]:
    """The plan for programs; bytes and seconds."""
    content: dict[str, Any] = {
        "fits": estimate.fits,
        "shortages": [describe_shortage(one) for one in estimate.shortages],
        "device": {line.name: line.num_bytes for line in estimate.memory.device},
        "device_peak": estimate.memory.device_peak,
        "skew": SKEWED,
        "device_peak_balanced": estimate.balanced.device_peak,
        "most_skew": estimate.most_skew,
        "host": {line.name: line.num_bytes for line in estimate.memory.host},
        "host_per_machine": estimate.host_per_node,
        "disk": {
            "checkpoint": estimate.disk.checkpoint,
            "checkpoints": estimate.disk.num_kept,
            "export": estimate.disk.export,
        },
        "nearest": nearest.flags if nearest else None,
    }
    if estimate.run.is_on_gpu:
        speed = estimate.speed
        traffic = speed.traffic
        content["sent_per_step"] = {
            "tokens": traffic.tokens,
            "heads": traffic.heads,
            "weights": traffic.gathers,
            "gradients": traffic.reduction,
            "host": traffic.inputs + traffic.host,
        }
        content["across_machines"] = [
            {
                "machines": one.num_nodes,
                "heads": one.crossing.heads,
                "experts": one.crossing.experts,
                "rest": one.crossing.rest,
                "network_seconds": one.network_seconds,
                "step_seconds": one.seconds,
                "waits_for_network": one.is_bound_by_network,
            }
            for one in plan_scaling(estimate.run, estimate.hardware)
        ]
        content["step_seconds"] = speed.seconds
        content["seconds_by_item"] = seconds_by_item(speed)
        content["tokens_per_second"] = speed.tokens_per_second
    return content
