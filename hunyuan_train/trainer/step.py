"""One optimizer step: micro-batches in, updated weights and a handful of numbers out."""

from dataclasses import dataclass
from math import isfinite

import deepspeed
import numpy as np
import torch
from torch import Tensor

from hunyuan_train.data.loader import Batch
from hunyuan_train.model.loss import weighted_token_losses
from hunyuan_train.parallel.engine import sum_over_ranks


class NonFiniteLossError(RuntimeError):
    """The loss became NaN or infinite; the weights of this step are not to be trusted."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one optimizer step did, over all ranks."""

    loss: float  # mean over the label tokens of the global batch, by weight
    grad_norm: float  # global norm before clipping
    num_tokens: int
    num_label_tokens: int


def forward_losses(engine: deepspeed.DeepSpeedEngine, batch: Batch) -> Tensor:
    """Weighted loss of each token of a batch: [tokens], float32, 0 where there is no label."""
    device = engine.device
    bounds = torch.from_numpy(batch.cu_seqlens).to(device)
    longest = int(np.diff(batch.cu_seqlens).max())
    output = engine(
        input_ids=torch.from_numpy(batch.input_ids).to(device)[None],
        position_ids=torch.from_numpy(batch.position_ids).to(device)[None],
        cu_seq_lens_q=bounds,
        cu_seq_lens_k=bounds,
        max_length_q=longest,
        max_length_k=longest,
        use_cache=False,
    )
    labels = torch.from_numpy(batch.labels).to(device)
    return weighted_token_losses(
        output.logits[0], labels, torch.from_numpy(batch.loss_weights).to(device)
    )


def train_step(
    engine: deepspeed.DeepSpeedEngine, micro_batches: list[Batch], *, learning_rate: float
) -> StepResult:
    """Accumulate gradients over the micro-batches and update the weights once.

    The loss is normalised by the label tokens of the whole global batch, all ranks and micro-steps:
    `local sum / global count * ranks`, because the engine averages gradients over ranks. So its
    gradient does not depend on how samples are dealt out.

    Raises:
        NonFiniteLossError: on every rank alike, before the update.
    """
    num_tokens, num_labels, weight = sum_over_ranks(
        [
            float(sum(len(batch.input_ids) for batch in micro_batches)),
            float(sum(int((batch.labels >= 0).sum()) for batch in micro_batches)),
            float(sum(float(batch.loss_weights.sum()) for batch in micro_batches)),
        ],
        engine.device,
    )
    scale = engine.world_size / max(weight, 1e-12)
    loss_sum = torch.zeros((), dtype=torch.float64, device=engine.device)
    for index, batch in enumerate(micro_batches):
        engine.set_gradient_accumulation_boundary(index == len(micro_batches) - 1)
        batch_loss = forward_losses(engine, batch).sum()
        loss_sum += batch_loss.detach()
        engine.backward(batch_loss * scale, scale_wrt_gas=False)
    [loss] = sum_over_ranks([float(loss_sum)], engine.device)
    loss /= max(weight, 1e-12)
    if not isfinite(loss):
        raise NonFiniteLossError(f"the loss is {loss}")
    for group in engine.optimizer.param_groups:
        group["lr"] = learning_rate
    engine.step()
    return StepResult(loss, float(engine.get_global_grad_norm()), int(num_tokens), int(num_labels))
