"""The loss: cross entropy of each label, with no logits of a whole sequence in memory.

At the released size, 4096 tokens have 2.1 GB of float32 logits, and as much again of their
gradient. The output layer here is told the labels and computes their losses itself, in chunks of
tokens forward and of words backward (`label_losses.py`; `benchmarks/step.py` compares). It does so
inside of its own module, where ZeRO-3 gathers the weight, which embeddings may share.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from deepspeed import DeepSpeedEngine
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from hunyuan_train.data.batches.loader import Batch
from hunyuan_train.model.chunks import tokens_per_chunk
from hunyuan_train.model.label_losses import label_losses
from hunyuan_train.one_copy import copy_together


class LossHead(nn.Linear):
    """An output layer: logits, as ever; or, while it has labels, their losses instead.

    Made from a model's `lm_head` by `install`.
    """

    labels: Tensor | None

    @classmethod
    def install(cls, linear: nn.Linear) -> None:
        """Turn a layer into this class, in place."""
        linear.__class__ = cls
        linear.__dict__["labels"] = None

    @contextmanager
    def fused_cross_entropy(self, labels: Tensor) -> Iterator[None]:
        """Compute losses in the forward pass inside this context.

        Args:
            labels: [labels], int64, one for each hidden state that will come in; none negative.
        """
        self.labels = labels
        try:
            yield
        finally:
            self.labels = None

    def forward(self, hidden_states: Tensor) -> Tensor:
        """From [1, tokens, hidden] to logits [1, tokens, vocabulary] or losses [1, labels].

        Losses are float32, whatever the dtype of what comes in.
        """
        if self.labels is None:
            return functional.linear(hidden_states, self.weight)
        chunk = tokens_per_chunk(len(self.labels))
        return label_losses(hidden_states[0], self.weight, self.labels, chunk)[None]


@dataclass(frozen=True, slots=True, eq=False)
class RowOnDevice:
    """What a forward pass reads of a batch, on the device of the model."""

    input_ids: Tensor  # [tokens], int64
    position_ids: Tensor  # [tokens], int64
    positions: Tensor  # [labels], int64: which tokens have a label
    labels: Tensor  # [labels], int64: theirs
    bounds: Tensor  # [samples + 1], int32: `cu_seqlens`
    beside: tuple[Tensor, ...]  # what else was sent with it


def send_row(batch: Batch, device: torch.device, *beside: npt.NDArray[Any]) -> RowOnDevice:
    """Copy a batch, and what else belongs to it, to the device at once."""
    positions = np.flatnonzero(batch.labels >= 0)
    arrays: tuple[npt.NDArray[Any], ...] = (
        batch.input_ids,
        batch.position_ids,
        positions,
        batch.labels[positions],
        batch.cu_seqlens,
        *beside,
    )
    ids, position_ids, where, labels, bounds, *others = copy_together(arrays, device)
    return RowOnDevice(ids, position_ids, where, labels, bounds, tuple(others))


def token_losses(
    model: PreTrainedModel | DeepSpeedEngine, batch: Batch, row: RowOnDevice | None = None
) -> Tensor:
    """Loss of each token of a packed row, unweighted: [tokens], float32, 0 where there is no label.

    Its negative is the log-probability of the label. Only positions with a label go through the
    output layer. Ranks that share a row call it together, each with its part. The documents' bounds
    are those of the whole row, because attention sees all of it (`parallel/sequence.py`).

    Args:
        model: with a `LossHead`, as `build_model` gives it or in the engine.
        batch: this rank's.
        row: the batch on the model's device, where it is there already.
    """
    row = row or send_row(batch, model.device)
    lengths = np.diff(batch.cu_seqlens).tolist()
    with model.lm_head.fused_cross_entropy(row.labels):
        output = model(
            input_ids=row.input_ids[None],
            position_ids=row.position_ids[None],
            logits_to_keep=row.positions,
            cu_seq_lens_q=row.bounds,
            cu_seq_lens_k=row.bounds,
            max_length_q=max(lengths),
            max_length_k=max(lengths),
            document_lengths=lengths,
            part_lengths=batch.part_lengths,
            use_cache=False,
        )
    no_losses = torch.zeros(len(batch.labels), dtype=torch.float32, device=row.labels.device)
    return no_losses.index_put((row.positions,), output.logits[0])
