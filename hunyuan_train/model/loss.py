"""The loss: cross entropy of each label, with no logits of a whole sequence in memory.

At the released size, 4096 tokens have 2.1 GB of float32 logits, and as much again of their
gradient. The output layer here is told the labels and computes their losses itself, in chunks of
tokens forward and of words backward (DeepSpeed's function; `benchmarks/step.py` compares). It does
so inside of its own module, where ZeRO-3 gathers the weight, which embeddings may share.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from deepspeed import DeepSpeedEngine
from deepspeed.sequence.linear_cross_entropy import vocab_parallel_linear_cross_entropy
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from hunyuan_train.data.batches.loader import Batch
from hunyuan_train.model.chunks import tokens_per_chunk


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
        return vocab_parallel_linear_cross_entropy(
            hidden_states,
            self.weight,
            self.labels[None],
            reduction="none",
            chunk_size=tokens_per_chunk(len(self.labels)),
        )


def token_losses(model: PreTrainedModel | DeepSpeedEngine, batch: Batch) -> Tensor:
    """Loss of each token of a packed row, unweighted: [tokens], float32, 0 where there is no label.

    Its negative is the log-probability of the label. Only positions with a label go through the
    output layer. Ranks that share a row call it together, each with its part. The documents' bounds
    are those of the whole row, because attention sees all of it (`parallel/sequence.py`).

    Args:
        model: with a `LossHead`, as `build_model` gives it or in the engine.
        batch: this rank's.
    """
    device = model.device
    bounds = torch.from_numpy(batch.cu_seqlens).to(device)
    lengths = np.diff(batch.cu_seqlens).tolist()
    positions = torch.from_numpy(np.flatnonzero(batch.labels >= 0)).to(device)
    with model.lm_head.fused_cross_entropy(torch.from_numpy(batch.labels).to(device)[positions]):
        output = model(
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
    no_losses = torch.zeros(len(batch.labels), dtype=torch.float32, device=device)
    return no_losses.index_put((positions,), output.logits[0])
