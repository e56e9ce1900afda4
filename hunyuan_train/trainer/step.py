"""One optimizer step: micro-batches in, updated weights and a handful of numbers out."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from math import isfinite

import deepspeed
import numpy as np
import torch

from hunyuan_train.data.batches.loader import Batch
from hunyuan_train.objectives.objective import SMALLEST_WEIGHT, Objective
from hunyuan_train.objectives.router_losses import RouterTerms
from hunyuan_train.one_copy import copy_together
from hunyuan_train.parallel.engine import sum_in_place
from hunyuan_train.parallel.gradient_norm import give_norm, squared_norm
from hunyuan_train.parallel.optimizer import set_learning_rate
from hunyuan_train.parallel.routers import refresh_routers
from hunyuan_train.parallel.zero import dropping_gradients
from hunyuan_train.trainer.clock import StepClock
from hunyuan_train.trainer.errors import TrainingError


class NonFiniteLossError(TrainingError):
    """Loss or gradients became NaN or infinite, and the run is not to go on by itself."""


@dataclass(frozen=True, slots=True)
class Anomaly:
    """What is wrong with a step."""

    reason: str
    is_skipped: bool  # whether the weights were left as they are


@dataclass(frozen=True, slots=True)
class BatchLosses:
    """What the forward passes of one optimizer step gave, over all ranks."""

    loss: float  # the objective's mean over the global batch
    by_group: dict[str, float]  # its other means, of the groups that weigh something
    router_loss: float  # load balance and z-loss, by their coefficients
    num_label_tokens: int


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one optimizer step did, over all ranks."""

    loss: float
    by_group: dict[str, float]
    router_loss: float
    num_label_tokens: int
    grad_norm: float  # global norm before clipping; not finite where the engine dropped gradients
    anomaly: Anomaly | None = None


def check_finite(loss: float) -> Anomaly | None:
    """Skip the update when the loss is not finite."""
    return None if isfinite(loss) else Anomaly(f"the loss is {loss}", is_skipped=True)


def update_at_once() -> None:
    """Nothing to wait for before an update."""


def train_step(
    engine: deepspeed.DeepSpeedEngine,
    objective: Objective,
    micro_batches: list[Batch],
    *,
    learning_rate: float,
    routers: RouterTerms | None = None,
    find_anomaly: Callable[[float], Anomaly | None] = check_finite,
    wait_before_update: Callable[[], None] = update_at_once,
    clock: StepClock | None = None,
) -> StepResult:
    """Accumulate gradients over the micro-batches and update the weights once.

    Args:
        engine: between two steps.
        objective: what is minimised.
        micro_batches: of this rank.
        learning_rate: of this step.
        routers: what they add to the loss.
        find_anomaly: what is wrong with the loss of all ranks; the same on every rank.
        wait_before_update: returns when weights and states may change.
        clock: told what takes how long.
    """
    clock = clock or StepClock()
    losses = accumulate_gradients(engine, objective, micro_batches, routers=routers, clock=clock)
    anomaly = find_anomaly(losses.loss + losses.router_loss)
    wait_before_update()
    is_skipped = anomaly is not None and anomaly.is_skipped
    with clock.part("optimizer"):
        grad_norm = update_weights(engine, learning_rate, is_skipped=is_skipped)
    if not anomaly and not isfinite(grad_norm):
        anomaly = Anomaly(f"the gradient norm is {grad_norm}", is_skipped=True)
    return StepResult(**asdict(losses), grad_norm=grad_norm, anomaly=anomaly)


def accumulate_gradients(
    engine: deepspeed.DeepSpeedEngine,
    objective: Objective,
    micro_batches: list[Batch],
    *,
    routers: RouterTerms | None = None,
    clock: StepClock | None = None,
) -> BatchLosses:
    """Forward and backward over the micro-batches of one optimizer step.

    The loss is normalised by the weight of the whole global batch, all ranks and micro-steps:
    `local sum / global weight * ranks`, because the engine averages gradients over ranks. So its
    gradient does not depend on how samples are dealt out.
    """
    micro_batches = objective.prepare(engine, micro_batches)
    device = engine.device
    num_labels = float(sum(int((batch.labels >= 0).sum()) for batch in micro_batches))
    of_rank = np.array([num_labels, *objective.weigh(micro_batches)], dtype=np.float64)
    weights = sum_in_place(copy_together([of_rank], device)[0])
    clock = clock or StepClock()
    # Stays on the device: the CPU has no need of it before the losses.
    weight = weights[1].clamp(min=SMALLEST_WEIGHT).float()
    total = torch.zeros(len(weights), dtype=torch.float64, device=device)
    for index, batch in enumerate(micro_batches):
        engine.set_gradient_accumulation_boundary(index == len(micro_batches) - 1)
        with clock.part("forward"), routers.watch.recording() if routers else nullcontext():
            found = objective.forward(engine, batch)
        loss = found.loss / weight
        router_term = routers.loss() / len(micro_batches) if routers else loss.new_zeros(())
        total += torch.cat([router_term.detach()[None], found.by_group])
        with clock.part("backward"):
            engine.backward((loss + router_term) * engine.world_size, scale_wrt_gas=False)
    # All that the CPU reads of a step, at once: it waits here until the GPU is done.
    sums = sum_in_place(torch.cat([total, squared_norm(engine)]))
    numbers = torch.cat([weights, sums]).tolist()
    num_labels, *weights_by_group = numbers[: len(weights)]
    router_loss, *sums_by_group = numbers[len(weights) : len(weights) + len(total)]
    give_norm(engine, numbers[len(weights) + len(total) :])
    means = objective.means(sums_by_group, weights_by_group)
    return BatchLosses(
        loss=means.pop(objective.groups[0]),
        by_group=means,
        router_loss=router_loss,
        num_label_tokens=int(num_labels),
    )


def update_weights(
    engine: deepspeed.DeepSpeedEngine, learning_rate: float, *, is_skipped: bool
) -> float:
    """Let the engine clip and apply the gradients, or drop them; returns their norm.

    Gradients whose norm is not finite the engine drops by itself, on all ranks.
    """
    set_learning_rate(engine.optimizer, learning_rate)
    with dropping_gradients() if is_skipped else nullcontext():
        engine.step()
    grad_norm = float(engine.get_global_grad_norm())
    if isfinite(grad_norm) and not is_skipped:
        refresh_routers(engine)
    return grad_norm
