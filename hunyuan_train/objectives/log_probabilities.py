"""Log-probabilities of answers: sums over a document's labels, out of the output layer's chunks.

Shape letters:  S documents of a row · T tokens of this rank
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import deepspeed
import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor

from hunyuan_train.data.batches.loader import Batch
from hunyuan_train.model.loss import token_losses
from hunyuan_train.parallel.adapters import adapters_off
from hunyuan_train.progress import tell_progress


def answer_logps(
    engine: deepspeed.DeepSpeedEngine, batch: Batch, group: dist.ProcessGroup | None
) -> Tensor:
    """Log-probability of each document's labels, by their weights: [S], float64.

    Where ranks share a row, all of them get the sums of the whole row, and each one's gradient goes
    through its own tokens: together that is the gradient of the sums.

    Args:
        engine: whose model judges.
        batch: of this rank.
        group: ranks that share its rows, or None.
    """
    weights_T = torch.from_numpy(batch.loss_weights).to(engine.device)
    logps_T = -(token_losses(engine, batch) * weights_T).double()
    owners_T = torch.from_numpy(document_numbers(batch)).to(engine.device)
    sums_S = logps_T.new_zeros(len(batch.modes)).index_add(0, owners_T, logps_T)
    if group is None:
        return sums_S
    whole_S = sums_S.detach().clone()
    dist.all_reduce(whole_S, group=group)
    return sums_S + (whole_S - sums_S.detach())


def answer_lengths(batch: Batch, device: torch.device, group: dist.ProcessGroup | None) -> Tensor:
    """Label tokens of each document of the row: [S], float64."""
    lengths_S = np.zeros(len(batch.modes))
    np.add.at(lengths_S, document_numbers(batch), batch.labels >= 0)
    lengths = torch.from_numpy(lengths_S).to(device)
    if group is not None:
        dist.all_reduce(lengths, group=group)
    return lengths


def document_numbers(batch: Batch) -> npt.NDArray[np.int64]:
    """Which document of the row each token of this rank is of: [T]."""
    of_row = np.repeat(np.arange(len(batch.modes)), np.diff(batch.cu_seqlens))
    return of_row[batch.first_token : batch.first_token + len(batch.input_ids)]


@contextmanager
def judging(engine: deepspeed.DeepSpeedEngine) -> Iterator[None]:
    """Run forward passes without gradients and without dropout, whatever came before."""
    was_training = engine.training
    engine.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        engine.train(was_training)


def judge(
    engine: deepspeed.DeepSpeedEngine,
    batches: Sequence[Batch],
    group: dist.ProcessGroup | None,
) -> list[npt.NDArray[np.float64]]:
    """Log-probabilities of the answers of each batch, [S]; every rank brings as many batches."""
    found = []
    with judging(engine):
        for batch in batches:
            found.append(answer_logps(engine, batch, group).cpu().numpy())
            tell_progress()
    return found


def add_reference(
    engine: deepspeed.DeepSpeedEngine,
    batches: Sequence[Batch],
    group: dist.ProcessGroup | None,
) -> list[Batch]:
    """The batches with what the model says of them with its adapters off."""
    with adapters_off(engine.module):
        logps = judge(engine, batches, group)
    return [replace(batch, reference_logps=one) for batch, one in zip(batches, logps, strict=True)]
