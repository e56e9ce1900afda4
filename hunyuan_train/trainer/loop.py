"""The training loop: steps, and what is due after each of them."""

import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

import deepspeed
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from hunyuan_train.config.checkpoint_schema import CheckpointConfig
from hunyuan_train.config.run_files import QUARANTINE
from hunyuan_train.config.schema import RunConfig
from hunyuan_train.data.batches.loader import Batch, BatchSampler, StepContent
from hunyuan_train.evaluation.answers import ask_nothing
from hunyuan_train.evaluation.losses import evaluate, name_losses
from hunyuan_train.evaluation.pair_table import PairTable
from hunyuan_train.json_lines import Lines, Numbers, as_json_numbers
from hunyuan_train.json_screen import NUMBERS
from hunyuan_train.log import SHARED, console
from hunyuan_train.objectives.objective import Objective
from hunyuan_train.objectives.router_losses import RouterTerms
from hunyuan_train.parallel.collective_timers import timing_collectives
from hunyuan_train.parallel.engine import max_over_ranks, peak_memory_gib
from hunyuan_train.parallel.optimizer import share_of_weights_moved
from hunyuan_train.trainer.anomalies import MAX_ROLLBACKS, find_anomaly, quarantine, remember
from hunyuan_train.trainer.best_metric import check_best_metric, has_stalled, note_evaluation
from hunyuan_train.trainer.clock import StepClock
from hunyuan_train.trainer.describe import describe_evaluation, describe_step
from hunyuan_train.trainer.interrupt import (
    StopRequest,
    agree_that_signalled,
    agree_to_stop,
    heeding_signals,
    seconds_until_killed,
)
from hunyuan_train.trainer.memory_estimate import RunEstimate
from hunyuan_train.trainer.metrics import Logs
from hunyuan_train.trainer.profiler import profile_nothing
from hunyuan_train.trainer.room import TRY_SECONDS, Patience, write_at_last
from hunyuan_train.trainer.router_monitor import NoRouters, RouterMonitor
from hunyuan_train.trainer.schedule import count_steps, learning_rate_at
from hunyuan_train.trainer.state import TrainerState, add_counts
from hunyuan_train.trainer.step import NonFiniteLossError, StepResult, train_step
from hunyuan_train.trainer.throughput import Throughput, measure_memory

logger = logging.getLogger(__name__)

STEPS_BEFORE_MEMORY = 3  # by then everything that is allocated once has been


class Checkpointer(Protocol):
    """Saves checkpoints beside training. Every rank calls all of these at the same steps."""

    seconds_of_last: float  # that the last save took

    def save(self, state: TrainerState) -> None:
        """Begin to save where the run stands."""
        ...

    def wait_before_update(self) -> None:
        """Wait until weights and states may change."""
        ...

    def report(self) -> bool:
        """Say how a save went that has ended; False if it failed."""
        ...

    def has_saved(self, step: int) -> bool:
        """Whether a step's checkpoint is on disk, once any that is being written has ended."""
        ...

    def save_at_once(self, state: TrainerState) -> str | None:
        """Save where the run stands, and wait for it; what went wrong, the same on every rank."""
        ...

    def roll_back(self) -> TrainerState | None:
        """Restore the newest good checkpoint; None where there is none."""
        ...

    def numbers(self) -> Numbers:
        """What is logged of the saves so far."""
        ...


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """How the loop came to an end."""

    is_complete: bool  # False: it stopped on request, to be resumed
    is_saved: bool  # whether the last checkpoint was written
    step: int
    is_signalled: bool = False  # whoever asked for the end waits for nothing that can be left out


@dataclass(frozen=True, slots=True)
class Trainer:
    """The parts a run is made of; `train` moves them."""

    engine: deepspeed.DeepSpeedEngine
    objective: Objective
    routers: RouterTerms
    batches: BatchSampler
    eval_batches: list[Batch]
    config: RunConfig
    logs: Logs
    checkpointer: Checkpointer
    estimate: RunEstimate
    num_restarts: int  # how often the run was started again; rank 0 knows
    report_progress: Callable[[int, str], None]  # steps done, and what comes now
    router_monitor: RouterMonitor | NoRouters
    throughput: Throughput
    answer: Callable[[int], Numbers] = ask_nothing  # held-out questions, after so many steps
    pair_table: PairTable = field(default_factory=PairTable)
    profile: Callable[[int], AbstractContextManager[None]] = profile_nothing  # a step
    clock: StepClock = field(default_factory=StepClock)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return count_steps(self.config.train, steps_per_epoch=self.batches.steps_per_epoch)


def train(trainer: Trainer, state: TrainerState, *, started: float) -> TrainingResult:
    """Run optimizer steps from `state` on, logging, evaluating and saving when due.

    Args:
        trainer: its parts.
        state: where the run stands.
        started: time.monotonic() of the run's start, for max_hours.

    Raises:
        ConfigError: no evaluation gives the loss that metric_for_best_model names.
        NonFiniteLossError: naming the samples of the batch.
        RouterCollapseError: routers collapsed, and the run is to stop then.
    """
    check_best_metric(trainer.config.evaluation, trainer.objective, trainer.eval_batches)
    config, checkpointer = trainer.config, trainer.checkpointer
    trainer.engine.train()
    first_step = saved_step = state.step
    seconds = 0.0
    measured_at = state.step + STEPS_BEFORE_MEMORY
    with (
        heeding_signals(started, config.train.max_hours) as request,
        progress_bar(trainer, state) as show,
    ):
        trainer.report_progress(state.step, "training")  # from here on a stop is heeded
        while state.step < trainer.total_steps and not has_stalled(config.evaluation, state):
            if agree_to_stop(
                request, seconds + checkpointer.seconds_of_last, trainer.engine.device
            ):
                break
            began = time.perf_counter()
            state, numbers = advance(trainer, state)
            seconds = time.perf_counter() - began
            show(state.step, numbers)
            if state.step == measured_at:
                compare_memory(trainer)
            trainer.report_progress(state.step, "training")
            checkpointer.report()
            if state.health.num_bad_in_a_row >= config.train.max_bad_steps:
                state = roll_back(trainer, state)
                saved_step = state.step
            if wants_save(config.checkpoints, state, saved_step):
                trainer.logs.flush()
                checkpointer.save(state)
                saved_step = state.step
        trainer.report_progress(state.step, "saving")
        is_complete = state.step >= trainer.total_steps or has_stalled(config.evaluation, state)
        is_saved = saved_step == first_step == state.step or save_last(trainer, state, request)
        is_signalled = agree_that_signalled(request, trainer.engine.device)
    # The last save ends after its step.
    trainer.logs.metrics.amend(checkpointer.numbers(), state.step)
    log_end(trainer, state, is_complete=is_complete)
    return TrainingResult(is_complete, is_saved, state.step, is_signalled)


def save_last(trainer: Trainer, state: TrainerState, request: StopRequest) -> bool:
    """Save where the run ends, waiting for room if need be; False if it could not be done."""
    step, saver = state.step, trainer.checkpointer

    def attempt() -> str | None:
        trainer.logs.flush()  # they may have been waiting for room, too
        return None if saver.has_saved(step) else saver.save_at_once(state)

    fault = write_at_last(attempt, f"the checkpoint of step {step}", wait_at_end(trainer, request))
    if fault:
        logger.error("NOT SAVED: the checkpoint of step %d: %s", step, fault, extra=SHARED)
    return fault is None


def wait_at_end(trainer: Trainer, request: StopRequest) -> Patience:
    """How long the last save waits for room: after a signal as long as agents let ranks live."""
    device, minutes = trainer.engine.device, trainer.config.checkpoints.wait_for_room_minutes
    if not agree_that_signalled(request, device):
        return Patience(
            minutes=minutes, is_asked_to_end=lambda: agree_that_signalled(request, device)
        )

    def seconds_left() -> float:
        return seconds_until_killed(
            request,
            device,
            grace_seconds=trainer.config.launch.stop_timeout_seconds,
            reserve_seconds=2 * (TRY_SECONDS + trainer.checkpointer.seconds_of_last),
        )

    minutes_left = max(0.0, seconds_left() / 60)
    if minutes <= minutes_left:
        return Patience(minutes=minutes, is_asked_to_end=lambda: False)
    return Patience(
        minutes=minutes_left,
        is_asked_to_end=lambda: seconds_left() <= 0,
        setting="stop_timeout_seconds",
    )


def log_end(trainer: Trainer, state: TrainerState, *, is_complete: bool) -> None:
    """Say why a run ends before its last step, if it does."""
    evaluation = trainer.config.evaluation
    if has_stalled(evaluation, state):
        logger.info(
            "ending early: in %d evaluations %s was no better than %.4g at step %s",
            *(state.num_worse, evaluation.metric_for_best_model, state.best_value, state.best_step),
        )
    if not is_complete:
        logger.info("stopped after step %d of %d", state.step, trainer.total_steps)


def advance(trainer: Trainer, state: TrainerState) -> tuple[TrainerState, Numbers]:
    """Do one optimizer step, evaluate and log where that is due."""
    began = time.perf_counter()
    learning_rate = learning_rate_at(
        state.step, total_steps=trainer.total_steps, config=trainer.config.optimizer
    )
    content = trainer.batches.step_content(state.position)
    state, result = do_step(trainer, state, learning_rate, content)
    trainer.router_monitor.check(state.step)
    seconds = time.perf_counter() - began
    config, is_last = trainer.config, state.step == trainer.total_steps
    numbers = step_numbers(trainer, state, result, learning_rate, seconds)
    numbers |= trainer.throughput.measure(content, seconds) | trainer.clock.take()
    if trainer.eval_batches and is_due(state.step, config.evaluation.eval_steps, is_last):
        trainer.report_progress(state.step, "evaluating")
        numbers |= evaluate_all(trainer, state.step)
        state = note_evaluation(config.evaluation, state, numbers)
    if is_last or "eval_loss" in numbers:
        trainer.router_monitor.keep_load(state.step)
    is_logged = is_due(state.step, config.logs.logging_steps, is_last)
    if is_logged or "eval_loss" in numbers or result.anomaly:
        numbers |= measure_ranks(trainer, state)
        log_numbers(trainer, numbers, state.step)
    return state, numbers


def do_step(
    trainer: Trainer, state: TrainerState, learning_rate: float, content: StepContent
) -> tuple[TrainerState, StepResult]:
    """Train on the next batch, or find it bad.

    Raises:
        NonFiniteLossError: it is, and the run is not to go on by itself.
    """
    with trainer.clock.part("data"):
        micro_batches, next_position = trainer.batches.step_batches(state.position)
    if trainer.config.logs.record_batches:
        record_batches(trainer.logs.batches, micro_batches, state.step + 1)
    with (
        trainer.profile(state.step + 1),
        timing_collectives(partial(trainer.clock.part, "communication")),
    ):
        result = train_step(
            trainer.engine,
            trainer.objective,
            micro_batches,
            learning_rate=learning_rate,
            routers=trainer.routers,
            find_anomaly=partial(
                find_anomaly,
                health=state.health,
                config=trainer.config.train,
                least_spike=trainer.objective.least_spike,
            ),
            wait_before_update=trainer.checkpointer.wait_before_update,
            clock=trainer.clock,
        )
    if result.anomaly:
        samples = quarantine(trainer.logs.quarantine, trainer.batches, micro_batches, result, state)
        if result.anomaly.is_skipped and trainer.config.train.bad_steps != "act":
            raise NonFiniteLossError(
                f"{result.anomaly.reason} at step {state.step + 1}; its samples: "
                f"{', '.join(samples)}. The last checkpoint is intact: resume with "
                "--bad_steps act, which leaves such batches out, or with a lower --learning_rate "
                "and --ignore_settings_change"
            )
    following = replace(
        state,
        step=state.step + 1,
        position=next_position,
        tokens_seen=state.tokens_seen + content.num_tokens,
        samples_seen=add_counts(state.samples_seen, content.samples_by_source),
        tokens_by_source=add_counts(state.tokens_by_source, content.tokens_by_source),
        health=remember(state.health, result),
    )
    return following, result


def roll_back(trainer: Trainer, state: TrainerState) -> TrainerState:
    """Return to the last good checkpoint, and go on from there behind the bad batches.

    Raises:
        NonFiniteLossError: that has not helped before, or there is no checkpoint.
    """
    num_bad, num_rollbacks = state.health.num_bad_in_a_row, state.health.num_rollbacks
    restored = trainer.checkpointer.roll_back() if num_rollbacks < MAX_ROLLBACKS else None
    if restored is None:
        raise NonFiniteLossError(
            f"{num_bad} bad steps in a row up to step {state.step}, and "
            + (
                f"{num_rollbacks} rollbacks did not help"
                if num_rollbacks
                else "no checkpoint to return to"
            )
            + f"; lower the learning rate, or look at the samples in {QUARANTINE}"
        )
    trainer.logs.forget_after(restored.step)
    trainer.router_monitor.roll_back_to(restored.step)
    health = replace(restored.health, num_bad_in_a_row=0, num_rollbacks=num_rollbacks + 1)
    return replace(restored, position=state.position, health=health)


def evaluate_all(trainer: Trainer, step: int) -> Numbers:
    """Losses and perplexities of the held-out data, and what the model answers to it."""
    pairs = trainer.pair_table
    losses = evaluate(trainer.engine, trainer.objective, trainer.eval_batches, pairs.see)
    pairs.write(step)
    return name_losses(losses, has_perplexity=trainer.objective.has_perplexity) | trainer.answer(
        step
    )


def wants_save(config: CheckpointConfig, state: TrainerState, saved_step: int) -> bool:
    """Whether a checkpoint is due; it waits for the end of bad steps, so as to be a good one."""
    is_best = config.save_best and state.best_step == state.step
    every = config.save_steps
    is_overdue = every > 0 and state.step // every > saved_step // every
    return (is_overdue or is_best) and not state.health.num_bad_in_a_row


def record_batches(log: Lines, micro_batches: Sequence[Batch], step: int) -> None:
    """Note what this rank trains on, so that two runs can be compared."""
    digest = hashlib.sha256()
    for batch in micro_batches:
        for part in (batch.input_ids, batch.labels, batch.loss_weights, batch.cu_seqlens):
            digest.update(part.tobytes())
    samples = [int(one) for batch in micro_batches for one in batch.sample_ids]
    log.append({"step": step, "sha256": digest.hexdigest(), "samples": samples})


def compare_memory(trainer: Trainer) -> None:
    """Log the memory that the plan predicted beside what the fullest process has held."""
    (measured,) = max_over_ranks([peak_memory_gib()], trainer.engine.device)
    planned = trainer.estimate.memory_gib
    logger.info(
        "memory after %d steps: %.2f GiB at the peak of a process, %.2f planned (%+.0f %%)",
        STEPS_BEFORE_MEMORY,
        measured,
        planned,
        100 * (measured / planned - 1),
    )


def is_due(step: int, interval: float, is_last: bool) -> bool:
    """Whether something that happens every `interval` steps (0: only at the end) happens now."""
    return is_last or (interval > 0 and step % interval == 0)


def step_numbers(
    trainer: Trainer,
    state: TrainerState,
    result: StepResult,
    learning_rate: float,
    seconds: float,
) -> Numbers:
    """What one step reports, in the names of metrics.jsonl and the trackers."""
    return {
        "loss": result.loss,
        **result.by_group,
        "router_loss": result.router_loss,
        "learning_rate": learning_rate,
        "grad_norm": result.grad_norm,
        "label_tokens": result.num_label_tokens,
        "tokens_seen": state.tokens_seen,
        **{f"samples_seen_{name}": number for name, number in state.samples_seen.items()},
        **{f"tokens_seen_{name}": number for name, number in state.tokens_by_source.items()},
        "epoch": state.step / trainer.batches.steps_per_epoch,
        "restarts": trainer.num_restarts,
        "step_seconds": seconds,
    }


def measure_ranks(trainer: Trainer, state: TrainerState) -> Numbers:
    """What a logged step reports of all ranks together; every rank takes part."""
    numbers = trainer.router_monitor.measure(state.step) | measure_memory(trainer.engine.device)
    numbers |= trainer.checkpointer.numbers()
    moved = share_of_weights_moved(trainer.engine)
    return numbers if moved is None else numbers | {"weights_moved": moved}


def log_numbers(trainer: Trainer, numbers: Numbers, step: int) -> None:
    """One line for people, a second one for an evaluation, one object for programs."""
    told = {NUMBERS: {"step": step, **as_json_numbers(numbers)}}  # a screen of JSON has them all
    logger.info("%s", describe_step(numbers, step, trainer.total_steps), extra=told)
    if "eval_loss" in numbers:
        logger.info("step %d  %s", step, describe_evaluation(numbers))
    trainer.logs.metrics.log(numbers, step)


@contextmanager
def progress_bar(trainer: Trainer, state: TrainerState) -> Iterator[Callable[[int, Numbers], None]]:
    """Show steps, loss, learning rate, speed and time left on rank 0's terminal."""
    columns = (
        TextColumn("training"),
        BarColumn(bar_width=20),  # all fits 100 columns
        MofNCompleteColumn(),
        TextColumn("{task.fields[numbers]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(
            "", total=trainer.total_steps, completed=state.step, numbers="starting"
        )

        def show(step: int, numbers: Numbers) -> None:
            text = (
                f"loss {numbers['loss']:.3f}  lr {numbers['learning_rate']:.1e}  "
                f"{numbers['tokens_per_second']:,.0f} tok/s"
            )
            progress.update(task, completed=step, numbers=text)

        yield show
