"""The training loop: steps, and what is due after each of them."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import deepspeed
import torch.distributed as dist
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from hunyuan_train.config.schema import TrainConfig
from hunyuan_train.data.loader import Batch, BatchPlan, Position
from hunyuan_train.log import console
from hunyuan_train.model.router import imbalance
from hunyuan_train.parallel.engine import max_over_ranks, peak_memory_gib
from hunyuan_train.trainer.evaluate import evaluate
from hunyuan_train.trainer.metrics import MetricsLog, Numbers
from hunyuan_train.trainer.schedule import count_steps, learning_rate_at
from hunyuan_train.trainer.step import NonFiniteLossError, RouterTerms, StepResult, train_step

logger = logging.getLogger(__name__)

STEPS_BEFORE_MEMORY = 3  # by then everything that is allocated once has been


@dataclass(frozen=True, slots=True)
class TrainerState:
    """Where a run stands between two steps; a checkpoint holds exactly this beside the tensors."""

    step: int = 0  # optimizer steps done
    position: Position = field(default_factory=Position)  # where the next step starts in the data
    tokens_seen: int = 0


@dataclass(frozen=True, slots=True)
class Trainer:
    """The parts a run is made of; `train` moves them."""

    engine: deepspeed.DeepSpeedEngine
    routers: RouterTerms
    batches: BatchPlan
    eval_batches: list[Batch]
    config: TrainConfig
    metrics: MetricsLog | None  # rank 0 only
    planned_memory_gib: float  # of the fullest process, as peak_memory_gib counts

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return count_steps(self.config, steps_per_epoch=self.batches.steps_per_epoch)


def train(
    trainer: Trainer, state: TrainerState, save: Callable[[TrainerState], None]
) -> TrainerState:
    """Run optimizer steps from `state` to the end, logging, evaluating and saving when due."""
    config = trainer.config
    trainer.engine.train()
    measured_at = state.step + STEPS_BEFORE_MEMORY
    with progress_bar(trainer, state) as show:
        while state.step < trainer.total_steps:
            started = time.perf_counter()
            state, result, learning_rate = advance(trainer, state)
            seconds = time.perf_counter() - started
            is_last = state.step == trainer.total_steps
            numbers = step_numbers(trainer, state, result, learning_rate, seconds)
            if trainer.eval_batches and is_due(state.step, config.eval_steps, is_last):
                numbers["eval_loss"] = evaluate(trainer.engine, trainer.eval_batches)
            if is_due(state.step, config.logging_steps, is_last) or "eval_loss" in numbers:
                numbers |= measure_ranks(trainer)
                log_numbers(trainer, numbers, state.step)
            show(state.step, numbers)
            if state.step == measured_at:
                compare_memory(trainer)
            if is_due(state.step, config.save_steps, is_last):
                save(state)
    return state


def advance(trainer: Trainer, state: TrainerState) -> tuple[TrainerState, StepResult, float]:
    """Do one optimizer step.

    Raises:
        NonFiniteLossError: naming the samples of this rank's batch.
    """
    micro_batches, next_position = trainer.batches.step_batches(state.position)
    learning_rate = learning_rate_at(
        state.step, total_steps=trainer.total_steps, config=trainer.config
    )
    try:
        result = train_step(
            trainer.engine, micro_batches, learning_rate=learning_rate, routers=trainer.routers
        )
    except NonFiniteLossError as error:
        origins = trainer.batches.origins(micro_batches)
        raise NonFiniteLossError(
            f"{error} at step {state.step + 1}; this rank's samples: {', '.join(origins)}. The "
            "last checkpoint is intact: lower the learning rate, or remove the samples, and resume"
        ) from error
    done = TrainerState(state.step + 1, next_position, state.tokens_seen + result.num_tokens)
    return done, result, learning_rate


def compare_memory(trainer: Trainer) -> None:
    """Log the memory that the plan predicted beside what the fullest process has held."""
    (measured,) = max_over_ranks([peak_memory_gib()], trainer.engine.device)
    planned = trainer.planned_memory_gib
    logger.info(
        "memory after %d steps: %.2f GiB at the peak of a process, %.2f planned (%+.0f %%)",
        STEPS_BEFORE_MEMORY,
        measured,
        planned,
        100 * (measured / planned - 1),
    )


def is_due(step: int, interval: int, is_last: bool) -> bool:
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
        "router_loss": result.router_loss,
        "learning_rate": learning_rate,
        "grad_norm": result.grad_norm,
        "tokens_per_second": result.num_tokens / seconds,
        "label_tokens": result.num_label_tokens,
        "tokens_seen": state.tokens_seen,
        "epoch": state.step / trainer.batches.steps_per_epoch,
        "step_seconds": seconds,
    }


def measure_ranks(trainer: Trainer) -> Numbers:
    """What a logged step reports of all ranks together; every rank takes part."""
    load_LE = trainer.routers.watch.take_load()
    dist.all_reduce(load_LE)
    return {"expert_imbalance": imbalance(load_LE), "memory_gib": peak_memory_gib()}


def log_numbers(trainer: Trainer, numbers: Numbers, step: int) -> None:
    """One line for people, one object for programs."""
    logger.info(
        "step %d/%d  loss %.4f  lr %.2e  grad norm %.3f  %.0f tokens/s  %.1f GiB  imbalance %.2f%s",
        step,
        trainer.total_steps,
        numbers["loss"],
        numbers["learning_rate"],
        numbers["grad_norm"],
        numbers["tokens_per_second"],
        numbers["memory_gib"],
        numbers["expert_imbalance"],
        f"  eval loss {numbers['eval_loss']:.4f}" if "eval_loss" in numbers else "",
    )
    if trainer.metrics:
        trainer.metrics.log(numbers, step)


@contextmanager
def progress_bar(trainer: Trainer, state: TrainerState) -> Iterator[Callable[[int, Numbers], None]]:
    """Show steps, loss, learning rate, speed and time left on rank 0's terminal."""
    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[numbers]}"),
        TimeRemainingColumn(),
    )
    is_shown = trainer.metrics is not None and console.is_terminal
    with Progress(*columns, console=console, disable=not is_shown) as progress:
        task = progress.add_task(
            "", total=trainer.total_steps, completed=state.step, numbers="starting"
        )

        def show(step: int, numbers: Numbers) -> None:
            text = (
                f"loss {numbers['loss']:.3f}  lr {numbers['learning_rate']:.1e}  "
                f"{numbers['tokens_per_second']:,.0f} tokens/s"
            )
            progress.update(task, completed=step, numbers=text)

        yield show
