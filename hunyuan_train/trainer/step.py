"""One optimizer step: micro-batches in, updated weights and a handful of numbers out."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from math import isfinite

import deepspeed
import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from hunyuan_train.data.batches.loader import Batch
from hunyuan_train.model.router import RouterWatch, balance_loss, z_loss
from hunyuan_train.objectives.loss_groups import (
    GROUPS,
    WHOLE,
    group_masks,
    group_means,
    group_weights,
)
from hunyuan_train.parallel.engine import sum_over_ranks
from hunyuan_train.parallel.optimizer import set_learning_rate
from hunyuan_train.parallel.routers import refresh_routers
from hunyuan_train.parallel.zero import dropping_gradients
from hunyuan_train.trainer.clock import StepClock
from hunyuan_train.trainer.errors import TrainingError


class NonFiniteLossError(TrainingError):
    """Loss or gradients became NaN or infinite, and the run is not to go on by itself."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with a step."""

    reason: str
    is_withheld: bool  # whether the weights were left as they are


@dataclass(frozen=True, slots=True)
class BatchLosses:
    """What the forward passes of one optimizer step gave, over all ranks."""

    loss: float  # mean over the label tokens of the global batch, by weight
    loss_by_group: dict[str, float]  # the same by mode and span, of those that have labels
    router_loss: float  # load balance and z-loss, by their coefficients
    num_label_tokens: int


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one optimizer step did, over all ranks."""

    loss: float
    loss_by_group: dict[str, float]
    router_loss: float
    num_label_tokens: int
    grad_norm: float  # global norm before clipping; not finite where the engine dropped gradients
    fault: Fault | None = None


def judge_finite(loss: float) -> Fault | None:
    """Withhold the update of a loss that is no number."""
    return None if isfinite(loss) else Fault(f"the loss is {loss}", is_withheld=True)


def update_at_once() -> None:
    """Nothing to wait for before an update."""


@dataclass(slots=True)
class RouterTerms:
    """What the routers add to the loss; the guardian may raise the coefficient."""

    watch: RouterWatch
    top_k: int
    balance_coefficient: float = 0.0
    z_coefficient: float = 0.0

    def loss(self) -> Tensor:
        """This rank's part of the terms, of the forward pass recorded last: a float32 scalar.

        Every rank takes part, because load is a matter of all tokens.
        """
        if not (self.balance_coefficient or self.z_coefficient):
            return self.watch.counts_LE.new_zeros((), dtype=torch.float32)
        counts_LE = self.watch.counts_LE.clone()
        if dist.is_initialized():
            dist.all_reduce(counts_LE)
        num_tokens = int(counts_LE[0].sum()) / self.top_k
        logits = self.watch.layer_logits()
        balance = balance_loss(logits, counts_LE, num_tokens)
        return self.balance_coefficient * balance + self.z_coefficient * z_loss(logits, num_tokens)


def forward_losses(engine: deepspeed.DeepSpeedEngine, batch: Batch) -> Tensor:
    """Weighted loss of each token of a batch: [tokens], float32, 0 where there is no label.

    Only positions with a label go through the output layer. Ranks that share a row call it
    together, each with its part; the documents' bounds are those of the whole row, because
    attention sees all of it (`parallel/sequence.py`).
    """
    device = engine.device
    bounds = torch.from_numpy(batch.cu_seqlens).to(device)
    lengths = np.diff(batch.cu_seqlens).tolist()
    positions = torch.from_numpy(np.flatnonzero(batch.labels >= 0)).to(device)
    with engine.lm_head.given(torch.from_numpy(batch.labels).to(device)[positions]):
        output = engine(
            input_ids=torch.from_numpy(batch.input_ids).to(device)[None],
            position_ids=torch.from_numpy(batch.position_ids).to(device)[None],
            logits_to_keep=positions,
            cu_seq_lens_q=bounds,
            cu_seq_lens_k=bounds,
            max_length_q=max(lengths),
            max_length_k=max(lengths),
            document_lengths=lengths,
            part_lengths=batch.part_lengths,
            use_cache=False,
        )
    weights = torch.from_numpy(batch.loss_weights).to(device)
    label_losses = output.logits[0] * weights[positions]
    return torch.zeros_like(weights).index_put((positions,), label_losses)


def train_step(
    engine: deepspeed.DeepSpeedEngine,
    micro_batches: list[Batch],
    *,
    learning_rate: float,
    routers: RouterTerms | None = None,
    judge: Callable[[float], Fault | None] = judge_finite,
    wait_before_update: Callable[[], None] = update_at_once,
    clock: StepClock | None = None,
) -> StepResult:
    """Accumulate gradients over the micro-batches and update the weights once.

    Args:
        engine: between two steps.
        micro_batches: of this rank.
        learning_rate: of this step.
        routers: what they add to the loss.
        judge: finds fault with the loss of all ranks, on every rank alike.
        wait_before_update: returns when weights and states may change.
        clock: told what takes how long.
    """
    clock = clock or StepClock()
    losses = accumulate_gradients(engine, micro_batches, routers=routers, clock=clock)
    fault = judge(losses.loss + losses.router_loss)
    wait_before_update()
    is_withheld = fault is not None and fault.is_withheld
    with clock.part("optimizer"):
        grad_norm = update_weights(engine, learning_rate, is_withheld=is_withheld)
    if not fault and not isfinite(grad_norm):
        fault = Fault(f"the gradient norm is {grad_norm}", is_withheld=True)
    return StepResult(**asdict(losses), grad_norm=grad_norm, fault=fault)


def accumulate_gradients(
    engine: deepspeed.DeepSpeedEngine,
    micro_batches: list[Batch],
    *,
    routers: RouterTerms | None = None,
    clock: StepClock | None = None,
) -> BatchLosses:
    """Forward and backward over the micro-batches of one optimizer step.

    The loss is normalised by the label tokens of the whole global batch, all ranks and micro-steps:
    `local sum / global count * ranks`, because the engine averages gradients over ranks. So its
    gradient does not depend on how samples are dealt out.
    """
    num_labels, *weights = sum_over_ranks(
        [
            float(sum(int((batch.labels >= 0).sum()) for batch in micro_batches)),
            *group_weights(micro_batches).tolist(),
        ],
        engine.device,
    )
    clock = clock or StepClock()
    weight = max(weights[0], 1e-12)
    sums = torch.zeros(1 + len(GROUPS), dtype=torch.float64, device=engine.device)
    for index, batch in enumerate(micro_batches):
        engine.set_gradient_accumulation_boundary(index == len(micro_batches) - 1)
        with clock.part("forward"), routers.watch.recording() if routers else nullcontext():
            losses = forward_losses(engine, batch)
        token_loss = losses.sum() / weight
        router_term = routers.loss() / len(micro_batches) if routers else token_loss.new_zeros(())
        masks = torch.from_numpy(group_masks(batch)).to(engine.device)
        sums += torch.cat([router_term.detach()[None], masks @ losses.detach()])
        with clock.part("backward"):
            engine.backward((token_loss + router_term) * engine.world_size, scale_wrt_gas=False)
    router_loss, *sums_by_group = sum_over_ranks(sums.tolist(), engine.device)
    by_group = group_means(sums_by_group, weights)
    loss = by_group.pop(WHOLE)
    return BatchLosses(
        loss=loss,
        loss_by_group=by_group,
        router_loss=router_loss,
        num_label_tokens=int(num_labels),
    )


def update_weights(
    engine: deepspeed.DeepSpeedEngine, learning_rate: float, *, is_withheld: bool
) -> float:
    """Let the engine clip and apply the gradients, or drop them; returns their norm.

    Gradients whose norm is not finite the engine drops by itself, on all ranks.
    """
    set_learning_rate(engine.optimizer, learning_rate)
    with dropping_gradients() if is_withheld else nullcontext():
        engine.step()
    grad_norm = float(engine.get_global_grad_norm())
    if isfinite(grad_norm) and not is_withheld:
        refresh_routers(engine)
    return grad_norm
