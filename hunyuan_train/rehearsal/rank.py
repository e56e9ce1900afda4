"""The rehearsed rank: builds the run on pretended devices, drives it, and says what it saw."""

import gc
import importlib
import resource
import time
import traceback
from collections import Counter
from collections.abc import Callable
from typing import Any

from torch._subclasses.fake_tensor import FakeTensorMode

from hunyuan_train.config.resolved_run import ResolvedRun
from hunyuan_train.planner.activations import possible_skew
from hunyuan_train.rehearsal.allocator import find_least, replay
from hunyuan_train.rehearsal.devices import pretend_devices, pretend_ranks
from hunyuan_train.rehearsal.ledger import Ledger
from hunyuan_train.rehearsal.lines import line_of_traceback
from hunyuan_train.rehearsal.watch import Watch

KEPT_LINES = 40  # of a peak, the largest
LEAK_BYTES = 2**20  # that a step may leave behind without a word
WRONG_DEVICE = ("two different devices", "different devices", "Expected all tensors to be on")


def rehearse_rank(
    run: ResolvedRun,
    *,
    skew: float,
    gpu_memory: int,
    parts: frozenset[str],
    micro_steps: int,
    hook: str,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Drive the run; what is wrong with it is in the answer, as `errors`.

    Args:
        run: resolved for machines with GPUs.
        skew: rows that this rank's experts get over an equal share.
        gpu_memory: bytes of a GPU.
        parts: besides steps: "save", "evaluation", "generation".
        micro_steps: of the step that is counted.
        hook: a module that is imported when all is ready.
        say: told what is done now.
    """
    watch = Watch()
    watch.is_16_bit = run.is_bf16
    pretend_devices(watch, num_gpus=run.ranks_per_node, total_memory=gpu_memory)
    pretend_ranks(run.num_ranks, run.ranks_per_node)
    if hook:
        importlib.import_module(hook)
    seen: dict[str, Any] = {
        "micro_steps": micro_steps,
        "errors": [],
        "seconds": {},
        "after_steps": [],
    }
    with FakeTensorMode(allow_non_fake_inputs=True), watch:
        try:
            drive(run, watch, skew, parts, seen, say)
        except Exception as error:  # noqa: BLE001  whatever it is, the report says it
            seen["errors"].append(describe_error(error))
    described = describe(watch)
    return {
        **seen,
        **described,
        "host_memory": peak_host_memory(),
        "cpu_seconds": time.process_time(),
    }


def drive(
    run: ResolvedRun,
    watch: Watch,
    skew: float,
    parts: frozenset[str],
    seen: dict[str, Any],
    say: Callable[[str], None],
) -> None:
    """Build the engine, take two steps, and do what a run does beside."""
    from hunyuan_train.rehearsal import script, stand_ins

    whole = run.config.train.gradient_checkpointing is False
    shares = stand_ins.Skew(possible_skew(run, skew), is_varied=not whole)
    stand_ins.stand_in_for_kernels(watch)
    stand_ins.stand_in_for_gating(watch)
    stand_ins.stand_in_for_fused(watch)
    stand_ins.stand_in_for_ranks(watch, shares)
    stand_ins.stand_in_for_updates(watch)
    stand_ins.stand_in_for_decoding(watch)
    stand_ins.stand_in_for_answers(watch)

    def timed(name: str, work: Callable[[], Any]) -> Any:
        say(name)
        started = time.monotonic()
        result = work()
        seen["seconds"][name] = time.monotonic() - started
        return result

    rehearsal = timed("building the engine", lambda: script.build(run, watch, shares, say))
    seen["build"] = phase_record(watch.device, "start")
    timed("first step", lambda: rehearsal.step(1))
    note_rest(watch, seen)
    watch.forget_counts()
    seen["num_layers"] = len(shares.layers)
    timed("second step, which is counted", lambda: rehearsal.step(seen["micro_steps"]))
    note_rest(watch, seen)
    seen["step"] = describe_step(watch)
    seen["leaks"] = find_leaks(seen)
    if "save" in parts:
        seen["checkpoint_bytes"] = timed("saving", lambda: script.save(rehearsal))
        timed("resuming", lambda: script.resume(rehearsal))
    if "evaluation" in parts:
        timed("evaluation", lambda: script.hold_out(rehearsal))
    if "generation" in parts:
        timed("generation", lambda: script.generate(rehearsal))
    if parts:
        timed("a step after all that", lambda: rehearsal.step(1))


def note_rest(watch: Watch, seen: dict[str, Any]) -> None:
    """Take down what a step leaves: bytes, and the lines that they were asked for by."""
    gc.collect()
    seen["after_steps"].append(
        {
            "bytes": watch.device.live,
            "by_purpose": dict(+watch.device.by_purpose),
            "by_line": dict(watch.device.lines()),
        }
    )


def find_leaks(seen: dict[str, Any]) -> dict[str, int]:
    """Lines that hold more after the second step than after the first, and how much."""
    first, second = seen["after_steps"][-2:]
    more = Counter(second["by_line"])
    more.subtract(first["by_line"])
    if second["bytes"] - first["bytes"] <= LEAK_BYTES:
        return {}
    return {line: size for line, size in more.most_common() if size > LEAK_BYTES}


def describe_error(error: Exception) -> dict[str, str]:
    """What went wrong, where, and whether it is a tensor on the wrong device."""
    words = " ".join(str(error).split())
    is_device = any(part in words for part in WRONG_DEVICE)
    return {
        "kind": "device" if is_device else type(error).__name__,
        "line": line_of_traceback(error.__traceback__),
        "words": words[:600],
        "traceback": "".join(traceback.format_exception(error))[-6000:],
    }


def describe_step(watch: Watch) -> dict[str, Any]:
    """The counts of one step."""
    phases = ("forward", "backward", "optimizer")
    return {
        "peaks": {phase: phase_record(watch.device, phase) for phase in phases},
        "host_peaks": {phase: phase_record(watch.host, phase) for phase in phases},
        "waits": as_rows(watch.waits, ("phase", "kind", "line")),
        "kernels": as_rows(watch.kernels, ("phase", "operator")),
        "work": describe_work(watch),
        "work_lines": as_rows(watch.tally.lines, ("phase", "item", "line")),
        "collectives": [
            {"phase": phase, "name": name, "group": group, "calls": number, "bytes": sent}
            for (phase, name, group), number in watch.calls.most_common()
            for sent in [watch.sent[phase, name, group]]
        ],
    }


def describe_work(watch: Watch) -> list[dict[str, Any]]:
    """What the GPU did, by pass and item."""
    return [
        {
            "pass": phase,
            "item": item.value,
            "kernels": done.kernels,
            "bytes": done.num_bytes,
            "flops": done.flops,
        }
        for (phase, item), done in watch.tally.work.items()
    ]


def phase_record(ledger: Ledger, phase: str) -> dict[str, Any]:
    """The fullest moment of a phase."""
    peak = ledger.peaks[phase]
    lines = (+peak.by_line).most_common(KEPT_LINES)
    return {
        "bytes": peak.num_bytes,
        "by_purpose": dict((+peak.by_purpose).most_common()),
        "by_line": dict(lines),
    }


def as_rows(counter: Counter[Any], names: tuple[str, ...]) -> list[dict[str, Any]]:
    """A counter as rows, the most frequent first."""
    return [
        {**dict(zip(names, key, strict=True)), "count": count}
        for key, count in counter.most_common()
    ]


def describe(watch: Watch) -> dict[str, Any]:
    """What the whole rehearsal gave: memory, stand-ins, products in float32."""
    allocators = {
        name: replay(watch.device.events, is_expandable=is_expandable)
        for name, is_expandable in (("default", False), ("expandable", True))
    }
    allocated = allocators["default"].peak_allocated
    least = {
        name: find_least(
            watch.device.events,
            is_expandable=one.is_expandable,
            low=allocated,
            high=one.peak_reserved,
        )
        for name, one in allocators.items()
    }
    return {
        "allocated_peak": allocated,
        "least_memory": least,
        "reserved_peaks": {name: one.peak_reserved for name, one in allocators.items()},
        "peaks": {phase: phase_record(watch.device, phase) for phase in list(watch.device.peaks)},
        "host_peak": max((one.num_bytes for one in watch.host.peaks.values()), default=0),
        "stood_in": dict(watch.stood_in.most_common()),
        "float32_products": dict(watch.float32_products.most_common()),
        "num_requests": len(watch.device.events),
    }


def peak_host_memory() -> int:
    """Most host memory that this process took, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
