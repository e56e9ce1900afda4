"""What a run's numbers mean, in words: the first thing on its page.

Each judge looks at one thing and returns findings. The limits are those at which an engineer would
say "look at this"; the text always gives the numbers, so that the reader can disagree.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Literal

import numpy as np

from hunyuan_train.checkpoint.folder import checkpoint_step, list_checkpoints
from hunyuan_train.model.expert_formats import MOST_DIVERGENCE
from hunyuan_train.plain_text import count_of
from hunyuan_train.report.record import RunRecord
from hunyuan_train.report.state import RunState
from hunyuan_train.shipped import render_command

Kind = Literal["good", "note", "warn", "bad"]

OVERFIT_RISE = 0.02  # of held-out loss above its best, beyond the noise of one evaluation
NO_CHANGE = 0.005  # a held-out loss that moved less has not moved
MEMORY_NEAR = 0.92  # of what there is
PLAN_OFF = 0.15  # memory beyond the plan by more is worth a word
HOST_NEAR = 0.9
SLOW_SHARE = 0.6  # of the speed that was planned
DRIFT_LIMIT = 0.5  # of the router guardian, where settings do not tell it


@dataclass(frozen=True, slots=True)
class Finding:
    """One sentence or two, and how it should be taken."""

    kind: Kind
    about: str  # a word for the eye
    text: str
    command: str = ""  # that does what the text advises


def judge(run: RunRecord, state: RunState) -> list[Finding]:
    """The verdict on a run as far as it has come, the most important first."""
    judges: tuple[Callable[[RunRecord, RunState], list[Finding]], ...] = (
        judge_end,
        judge_held_out_loss,
        judge_experts,
        judge_bad_steps,
        judge_routing,
        judge_memory,
        judge_saving,
        judge_speed,
    )
    return [finding for one in judges for finding in one(run, state)]


def judge_end(run: RunRecord, state: RunState) -> list[Finding]:
    """Whether it has come to its end."""
    of_total = f" of {state.total_steps:,}" if state.total_steps else ""
    step = f"step {state.step:,}{of_total}" if state.step is not None else "its first step"
    if state.phase == "failed":
        words = state.why or "the log says why"
        return [Finding("bad", "end", f"It failed after {step}: {words}")]
    if state.phase == "lost":
        return [Finding("bad", "end", f"It reached {step}, and {state.why}.")]
    if state.phase == "stopped":
        text = f"It was stopped after {step}. To resume it:"
        return [Finding("warn", "end", text, _render_resume(run))]
    if state.phase == "unknown" and state.why:
        return [
            Finding("warn", "end", f"It reached {step}. {state.why[:1].upper()}{state.why[1:]}.")
        ]
    return []


def _render_resume(run: RunRecord) -> str:
    """The command that goes on with this run, also where its folder was renamed or copied."""
    written = run.settings.get("output_dir")
    is_here = written is None or Path(written).resolve() == run.folder.resolve()
    return render_command(
        *("train", "--config", run.folder / "config.yaml"),
        *(() if is_here else ("--output_dir", run.folder)),
        *("--resume_from_checkpoint", "auto"),
    )


def judge_held_out_loss(run: RunRecord, state: RunState) -> list[Finding]:
    """Whether it learns what the training data does not hold, and where it was best."""
    steps, losses = run.metrics.columns.series("eval_loss")
    is_known = np.isfinite(losses)
    steps, losses = steps[is_known], losses[is_known]
    if not len(losses):
        if state.is_going_on and run.settings.get("eval_steps"):
            return [Finding("note", "held-out loss", "There has been no evaluation yet.")]
        if run.settings.get("eval_data_file") or run.settings.get("eval_fraction"):
            when = run.settings.get("eval_steps") or "0, so only at the end"
            text = (
                "There is held-out data, but the run has reached no evaluation, so it is unknown "
                f"whether the model learns or memorises (eval_steps is {when})."
            )
            return [Finding("note", "held-out loss", text)]
        text = (
            "There is no held-out data, so it is unknown whether the model learns or memorises. "
            "Give --eval_data_file, or --eval_fraction 0.05."
        )
        return [Finding("warn", "held-out loss", text)]
    best = int(losses.argmin())
    first, lowest, last = float(losses[0]), float(losses[best]), float(losses[-1])
    if len(losses) == 1:
        text = f"It is {last:.4f} at step {steps[0]:,}. One evaluation shows no trend."
        return [Finding("note", "held-out loss", text)]
    if best < len(losses) - 1 and last > lowest * (1 + OVERFIT_RISE):
        return [_describe_overfitting(run, state, int(steps[best]), lowest, last)]
    change = lowest / first - 1 if first else 0.0
    where = f"from {first:.4f} at step {steps[0]:,} to {lowest:.4f} at step {steps[best]:,}"
    if change > -NO_CHANGE:
        text = f"It has not improved: {where}. Raise --learning_rate, or look at the data."
        return [Finding("warn", "held-out loss", text)]
    tail = "" if best == len(losses) - 1 else f". It is now {last:.4f}, a difference within noise"
    more = ""
    if best == len(losses) - 1 and not state.is_going_on and -change < 0.5:
        recent = float(losses[-2]) / lowest - 1
        more = " It was still falling at the end: more epochs may help." if recent > 0.01 else ""
    return [Finding("good", "held-out loss", f"It improved by {-change:.1%}, {where}{tail}.{more}")]


def judge_experts(run: RunRecord, _: RunState) -> list[Finding]:
    """What frozen experts in fewer bits cost, where that was measured before the first step."""
    measured = [row["experts"] for row in run.starts.rows if row.get("experts")]
    if not measured:
        return []
    form, numbers = measured[-1]["expert_weights"], measured[-1]["held_out"]["all"]
    divergence = float(numbers["kl_divergence"])
    text = (
        f"Its frozen experts are kept in {form}. Before the first step, perplexity on held-out "
        f"dialogues was {numbers['perplexity_after']:.4f}, and {numbers['perplexity_before']:.4f} "
        f"with the original weights (KL {divergence:.4f} per token)."
    )
    if divergence <= MOST_DIVERGENCE:
        return [Finding("note", "experts", text)]
    return [
        Finding("warn", "experts", f"{text} That is a lot: use a more accurate --expert_weights.")
    ]


def _describe_overfitting(
    run: RunRecord, state: RunState, best: int, lowest: float, last: float
) -> Finding:
    """Held-out loss has risen since its best: with which step to take."""
    steps, losses = run.metrics.columns.series("loss")
    since = losses[(steps >= best) & np.isfinite(losses)]
    falls = len(since) > 1 and since[-1] < since[0]
    beside = f", while training loss fell to {since[-1]:.4f}: it is overfitting" if falls else ""
    text = f"It was best at step {best:,} ({lowest:.4f}) and has risen to {last:.4f} since{beside}."
    if not state.is_going_on:
        text += " Next time: fewer epochs, a lower --learning_rate, or --save_best."
    where, command = _name_checkpoint(run, best)
    return Finding("warn", "held-out loss", f"{text} {where}", command)


def _name_checkpoint(run: RunRecord, step: int) -> tuple[str, str]:
    """How to get the model of a step, or the saved one that is nearest: in words, and a command."""
    checkpoints = list_checkpoints(run.folder)
    if not checkpoints:
        return f"No checkpoint is left of step {step:,}.", ""
    nearest = min(checkpoints, key=lambda one: abs(checkpoint_step(one) - step))
    is_it = checkpoint_step(nearest) == step
    command = render_command("export", nearest, run.folder / "best")
    where = "Export that step:" if is_it else f"The nearest saved one is {nearest.name}. Export it:"
    return where, command


def judge_bad_steps(run: RunRecord, _: RunState) -> list[Finding]:
    """Steps that were left out, or should have been."""
    rows = run.quarantine.rows
    if not rows:
        text = "None was skipped: no loss or gradient was abnormal."
        return [] if run.last_step is None else [Finding("good", "bad steps", text)]
    skipped = sum(bool(row.get("is_skipped")) for row in rows)
    some = ", ".join(f"{row['step']:,}" for row in rows[:5]) + (" ..." if len(rows) > 5 else "")
    text = (
        f"{count_of(len(rows), 'step')} had an abnormal loss or gradient ({some}), and {skipped} "
        "of them were skipped. Look at their samples, which quarantine.jsonl names."
    )
    return [Finding("warn", "bad steps", text)]


def judge_routing(run: RunRecord, _: RunState) -> list[Finding]:
    """Whether the experts share the work as in the base model."""
    columns = run.metrics.columns
    drift, dead = run.last("router_drift"), run.last("dead_experts")
    entropy, base = run.last("router_entropy"), columns.series("router_entropy")[1]
    if entropy is None or not isfinite(entropy):
        return []
    alarms = [text for text in run.log.warnings if "routing diverged from the base" in text]
    has_drift = drift is not None and isfinite(drift)
    limit = run.settings.get("router_drift_limit") or DRIFT_LIMIT
    parts = [f"entropy of the load {entropy:.2f} of 1"]
    if len(base) > 1 and isfinite(base[0]):
        parts[0] += f" ({base[0]:.2f} at first)"
    if dead is not None and isfinite(dead):
        parts.append(
            f"{count_of(int(dead), 'expert')} with nearly no tokens, summed over all layers"
        )
    if has_drift:
        parts.append(f"drift from the base model {drift:.3f} (limit {limit:g})")
    numbers = ", ".join(parts)
    if alarms:
        text = (
            f"It has diverged from the base model's: {numbers}. Lower --learning_rate, freeze the "
            "routers with --freeze_router, or set --router_guardian freeze_router."
        )
        return [Finding("bad", "routing", text)]
    if has_drift and drift is not None and drift > limit / 2:
        return [
            Finding("warn", "routing", f"It drifts, and is beyond half of the limit: {numbers}.")
        ]
    dead_series = columns.series("dead_experts")[1]
    if len(dead_series) and dead_series[-1] > dead_series[0] >= 0:
        text = f"No alarm, but more experts than at first get nearly no tokens: {numbers}."
        return [Finding("note", "routing", text)]
    if dead:
        text = f"No alarm, and no more experts than at first get nearly no tokens: {numbers}."
        return [Finding("note", "routing", text)]
    return [Finding("good", "routing", f"It is healthy: {numbers}.")]


def judge_memory(run: RunRecord, state: RunState) -> list[Finding]:
    """Whether the next longer batch would end the run."""
    peak, planned = find_peak(run, "memory_gib"), run.plan.get("memory_gib")
    if peak is None:
        return []
    held = max(peak, find_peak(run, "gpu_memory_reserved_gib") or 0.0) if state.is_on_gpu else peak
    total = run.plan.get("gpu_memory_gib") if state.is_on_gpu else None
    against = f", {peak / planned - 1:+.0%} beside the plan's {planned:.3g}" if planned else ""
    room = f" of {total:.0f}" if total else ""
    text = f"The fullest process peaked at {peak:.3g} GiB{room}{against}"
    host = find_peak(run, "host_memory_used")
    if total and held > MEMORY_NEAR * total:
        more = (
            f", and torch holds {held:.1f} of the GPU's {total:.0f}: near the limit. Lower "
            "--per_device_train_batch_size or --max_seq_length, or set --activation_offload."
        )
        return [Finding("warn", "memory", text + more)]
    if host is not None and host > HOST_NEAR:
        more = f", and {host:.0%} of the machine's memory is in use: near its limit."
        return [Finding("warn", "memory", text + more)]
    if planned and peak > planned * (1 + PLAN_OFF):
        return [Finding("warn", "memory", text + ": more than the plan.")]
    return [Finding("good", "memory", f"{text}: there is room.")]


def find_peak(run: RunRecord, name: str) -> float | None:
    """The largest value of a number so far; None where it has none."""
    values = run.metrics.columns.series(name)[1]
    values = values[np.isfinite(values)]
    return float(values.max()) if len(values) else None


def judge_saving(run: RunRecord, _: RunState) -> list[Finding]:
    """Whether what was trained is safe."""
    failures = run.last("checkpoint_failures")
    if not failures or not isfinite(failures):
        return []
    saved = run.last("checkpoint_step")
    last = f"the last saved one is of step {saved:,.0f}" if saved else "none was saved"
    text = (
        f"{count_of(int(failures), 'checkpoint')} could not be written, and {last}. Check the disk."
    )
    return [Finding("bad", "checkpoints", text)]


def judge_speed(run: RunRecord, _: RunState) -> list[Finding]:
    """Whether it is as fast as was planned."""
    planned = run.plan.get("tokens_per_second")
    speeds = run.metrics.columns.series("tokens_per_second")[1]
    speeds = speeds[np.isfinite(speeds)]
    if not planned or not len(speeds):
        return []
    measured = float(np.median(speeds))
    text = f"{measured:,.0f} tokens a second, {measured / planned:.0%} of the plan"
    if measured > SLOW_SHARE * planned:
        return [Finding("good", "speed", f"{text}.")]
    parts = {
        name: columns_mean(run, f"seconds_{name}")
        for name in ("data", "communication", "optimizer")
    }
    slowest = max(parts, key=lambda name: parts[name])
    more = f". Beside forward and backward, {slowest} takes most ({parts[slowest]:.2f} s per step)."
    return [Finding("warn", "speed", text + more)]


def columns_mean(run: RunRecord, name: str) -> float:
    """The mean of a number; 0 where it has none."""
    values = run.metrics.columns.series(name)[1]
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else 0.0
