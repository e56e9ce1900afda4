"""What a rehearsal saw, in words, for people and for programs; beside the plan's figures."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hunyuan_train.config.resolved_run import ResolvedRun
from hunyuan_train.planner.component import MOMENTS, fullest_moment, gigabytes, lines_at
from hunyuan_train.planner.gathered import NAMES
from hunyuan_train.planner.machine import Hardware
from hunyuan_train.planner.memory import Memory
from hunyuan_train.planner.speed import item_seconds
from hunyuan_train.planner.work import Item, Pass, Work, micro_step_work
from hunyuan_train.rehearsal.question import DOCUMENTS

GIB = 2**30
WIDTH = 30
NUM_LINES = 14
# What both know apart: name, the plan's lines, the rehearsal's purposes.
ROWS = (
    ("weights", ("weights", "small weights kept whole"), ("weights", "small weights kept whole")),
    ("gradients", ("gradients",), ("gradients",)),
    ("optimizer", ("optimizer",), ("optimizer",)),
    ("engine buckets", ("engine buckets",), ("engine buckets",)),
    ("gathered weights", tuple(NAMES.values()), ("gathered weights",)),
    (
        "gradients in flight",
        ("gradients in flight", "gradients of chunks"),
        ("gradients in flight",),
    ),
    (
        "activations",
        (
            *("activations", "first layer's activations", "a layer's experts, forward"),
            "final norm and labels",
        ),
        ("activations",),
    ),
    ("logits and loss", ("logits and loss",), ("logits and loss",)),
    (
        "a layer: again, and gradients",
        (
            *("recomputed layer", "layer in its second run", "dispatch buffers"),
            *("gradients of a layer", "dequantised experts", "layer and gradient within"),
            "layer and gradient of norm",
        ),
        ("recomputed layer", "dispatch buffers"),
    ),
    ("update", ("update",), ("update",)),
)
PHASES = ("forward", "backward", "optimizer")
OF_PHASES = {  # moments of the plan in each of the rehearsal's phases
    "forward": ("the forward pass", "the loss"),
    "backward": tuple(name for name in MOMENTS if "layer" in name),
    "optimizer": ("the update",),
}
UNSEEN = (
    "values: every branch that depends on one is taken as a stand-in says",
    "workspaces of cuBLAS, temporaries inside of kernels, the memory of NCCL and of the driver",
    "the files of a checkpoint, their reading and writing, and copies made by other threads",
    "other ranks: this is rank 0, and another may hold up to one row of alignment more or less",
)


def describe_rehearsal(
    seen: Mapping[str, Any], plan: Memory, run: ResolvedRun, skew: float
) -> Iterator[str]:
    """The whole report, line by line."""
    name, layers = run.config.model.model_name_or_path, run.shape.num_hidden_layers
    yield (
        f"rehearsed {name}, {layers} layers, as rank 0 of {run.num_ranks}, "
        f"{run.num_tokens:,} tokens a micro-step, its experts getting {skew:g} times an equal share"
    )
    yield from describe_faults(seen)
    if "step" not in seen:
        return
    yield from describe_memory(seen, plan)
    yield from describe_lines(seen)
    yield from describe_reserved(seen)
    yield from describe_collectives(seen["step"]["collectives"])
    yield from describe_waits(seen)
    yield from describe_kernels(seen["step"]["kernels"])
    yield from describe_times(seen, run, skew)
    yield from describe_products(seen["float32_products"])
    yield from describe_unseen(seen["stood_in"])
    took = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in seen["seconds"].items())
    yield ""
    yield (
        f"took: {took}; {seen['cpu_seconds']:.0f} s of one core and "
        f"{gigabytes(seen['host_memory'])} of host memory"
    )


def describe_faults(seen: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong, first of all."""
    for error in seen["errors"]:
        yield ""
        if error["kind"] == "device":
            yield f"error: a tensor on the wrong device at {error['line']}: {error['words']}"
        else:
            yield f"error: {error['kind']} at {error['line']}: {error['words']}"
    for line, num_bytes in seen.get("leaks", {}).items():
        yield ""
        yield (
            f"error: a step leaves {gigabytes(num_bytes)} behind that the step before did not, "
            f"asked for at {line}"
        )


def fullest(peaks: Mapping[str, Any]) -> str:
    """The phase of a step in which most is held."""
    return max(PHASES, key=lambda phase: int(peaks[phase]["bytes"]))


def memory_rows(
    seen: Mapping[str, Any], plan: Memory, phase: str
) -> Iterator[tuple[str, int, int]]:
    """Name, planned and rehearsed bytes of each purpose, at the fullest moment of a phase."""
    left = Counter(seen["step"]["peaks"][phase]["by_purpose"])
    there = lines_at(plan.device, fullest_moment(plan.device, OF_PHASES[phase]))
    for name, lines, purposes in ROWS:
        planned = sum(line.num_bytes for line in there if line.name in lines)
        found = sum(left.pop(purpose, 0) for purpose in purposes)
        if planned or found:
            yield name, planned, found
    rest = sum(left.values())
    if rest:
        yield "other", 0, rest


def describe_memory(seen: Mapping[str, Any], plan: Memory) -> Iterator[str]:
    """Bytes by purpose, beside the plan's."""
    peaks = seen["step"]["peaks"]
    phase = fullest(peaks)
    yield ""
    yield f"allocated at the fullest moment of a step ({phase}), GiB"
    yield f"  {'':<{WIDTH}}{'plan':>9}{'rehearsed':>11}"
    for name, planned, found in memory_rows(seen, plan, phase):
        yield f"  {name:<{WIDTH}}{planned / GIB:>9.2f}{found / GIB:>11.2f}"
    planned, found = plan.allocated_peak, seen["allocated_peak"]
    yield f"  {'in all':<{WIDTH}}{planned / GIB:>9.2f}{found / GIB:>11.2f}"
    yield f"  the plan is {planned / found - 1:+.1%} of what was rehearsed"
    others = ", ".join(
        f"{name} {peak['bytes'] / GIB:.2f}"
        for name, peak in {"building": seen["build"], **peaks, **other_phases(seen)}.items()
    )
    yield f"  peaks: {others}"
    if seen["host_peak"] > GIB:
        yield f"  in host memory: {seen['host_peak'] / GIB:.2f}"


def other_phases(seen: Mapping[str, Any]) -> dict[str, Any]:
    """Peaks of what a run does beside steps."""
    names = ("save", "resume", "evaluation", "generation")
    return {name: seen["peaks"][name] for name in names if name in seen["peaks"]}


def describe_lines(seen: Mapping[str, Any]) -> Iterator[str]:
    """The lines of code that hold most at the fullest moment."""
    phase = fullest(seen["step"]["peaks"])
    yield ""
    yield "by the line of code that asked for it, MiB"
    for line, size in list(seen["step"]["peaks"][phase]["by_line"].items())[:NUM_LINES]:
        yield f"  {size / 2**20:>9,.0f}  {line}"


def describe_reserved(seen: Mapping[str, Any]) -> Iterator[str]:
    """What torch's allocator would reserve."""
    peaks, allocated = seen["reserved_peaks"], seen["allocated_peak"]
    yield ""
    yield f"reserved by a model of torch's allocator ({seen['num_requests']:,} requests), GiB"
    for name, key in (("expandable segments", "expandable"), ("without", "default")):
        holes = (peaks[key] - allocated) / GIB
        least = seen["least_memory"][key] / GIB
        yield (
            f"  {name:<{WIDTH}}{peaks[key] / GIB:>9.2f}  {holes:.2f} more than allocated; it "
            f"survives with {least:.2f}, by giving unused memory back to the driver"
        )


def describe_collectives(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Collectives of the counted step."""
    calls: Counter[tuple[str, str]] = Counter()
    sent: Counter[tuple[str, str]] = Counter()
    for row in rows:
        calls[row["name"], row["group"]] += row["calls"]
        sent[row["name"], row["group"]] += row["bytes"]
    yield ""
    yield "collectives of an optimizer step"
    for (name, group), num_bytes in sent.most_common():
        number = calls[name, group]
        yield f"  {number:>6,} {name.strip('_'):<24}{gigabytes(num_bytes):>12}  {group}"


def describe_waits(seen: Mapping[str, Any]) -> Iterator[str]:
    """Where the CPU waits, per micro-step, and per layer where each has its own."""
    rows, micro_steps = seen["step"]["waits"], seen["micro_steps"]
    layers = max(1, seen["num_layers"])
    yield ""
    total = sum(row["count"] for row in rows)
    yield f"waits of the CPU for the GPU: {total:,} in a step of {micro_steps} micro-step(s)"
    for row in rows:
        count, times = row["count"], ""
        if row["phase"] in ("forward", "backward"):
            each = count / micro_steps
            times = f"{each:g} a micro-step"
            if layers > 1 and each >= layers:
                times += f", {each / layers:.2g} a layer"
        yield f"  {count:>6,} {row['phase']:<10}{row['kind']} at {row['line']}" + (
            f" ({times})" if times else ""
        )


def describe_kernels(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Operators that start a kernel, by phase."""
    yield ""
    yield "kernels of an optimizer step (operators that compute)"
    for phase in PHASES:
        mine = [row for row in rows if row["phase"] == phase]
        most = ", ".join(
            f"{row['operator'].removeprefix('aten.')} {row['count']:,}" for row in mine[:6]
        )
        yield f"  {phase:<10}{sum(row['count'] for row in mine):>8,}  {most}"


def counted_work(seen: Mapping[str, Any]) -> dict[tuple[str, Item], Work]:
    """What was counted of a step, by pass and item."""
    return {
        (row["pass"], Item(row["item"])): Work(row["kernels"], row["bytes"], row["flops"])
        for row in seen["step"]["work"]
    }


def time_rows(
    seen: Mapping[str, Any], run: ResolvedRun, skew: float
) -> Iterator[tuple[str, float, float]]:
    """Item, planned and counted milliseconds of a micro-step, by the speed model for an H100.

    Attention depends on documents: those of the rehearsal are shorter than the plan's, a whole row.
    """
    hardware, steps = Hardware(), seen["micro_steps"]
    planned: defaultdict[Item, float] = defaultdict(float)
    counted: defaultdict[Item, float] = defaultdict(float)
    for (_, item), work in micro_step_work(run, imbalance=skew).items():
        planned[item] += item_seconds(item, work, hardware)
    for (name, item), work in counted_work(seen).items():
        if name in [one.value for one in Pass]:
            counted[item] += item_seconds(item, work, hardware) / steps
    for item in sorted({*planned, *counted}, key=lambda one: -planned[one]):
        yield item.value, 1000 * planned[item], 1000 * counted[item]


def describe_times(seen: Mapping[str, Any], run: ResolvedRun, skew: float) -> Iterator[str]:
    """How long the counted work of a micro-step takes by the planner's model, beside the plan."""
    rows = list(time_rows(seen, run, skew))
    yield ""
    yield "computing of a micro-step on an H100, by the speed model of `plan`, ms"
    yield f"  {'':<{WIDTH}}{'plan':>9}{'counted':>11}"
    for name, planned, counted in rows:
        yield f"  {name:<{WIDTH}}{planned:>9.1f}{counted:>11.1f}"
    yield (
        f"  {'in all':<{WIDTH}}{sum(row[1] for row in rows):>9.1f}"
        f"{sum(row[2] for row in rows):>11.1f}"
    )
    yield (
        f"  the plan takes a row for one document in attention; here it has {DOCUMENTS} of a length"
    )


def describe_products(products: Mapping[str, int]) -> Iterator[str]:
    """Matrix products in float32, of a run in bfloat16."""
    if products:
        yield ""
        yield "matrix products in float32 (GFLOP of the whole rehearsal); routers are meant to be"
        for line, operations in products.items():
            yield f"  {operations / 1e9:>9,.0f}  {line}"


def describe_unseen(stood_in: Mapping[str, int]) -> Iterator[str]:
    """What stands for something else here, and how often; and what is not looked at."""
    yield ""
    yield "stood in for, and how often"
    for what, number in stood_in.items():
        yield f"  {number:>9,}  {what}"
    yield "not seen"
    for what in UNSEEN:
        yield f"  {what}"


def as_json(seen: Mapping[str, Any], plan: Memory, run: ResolvedRun, skew: float) -> dict[str, Any]:
    """All that was seen, with the plan beside."""
    content = {
        **seen,
        "skew": skew,
        "num_ranks": run.num_ranks,
        "planned_allocated_peak": plan.allocated_peak,
        "plan": {line.name: line.num_bytes for line in plan.device},
        "not_seen": list(UNSEEN),
    }
    if "step" in seen:
        phase = fullest(seen["step"]["peaks"])
        content["memory"] = {
            name: {"plan": planned, "rehearsed": found}
            for name, planned, found in memory_rows(seen, plan, phase)
        }
    return content
