"""Computes rows of a released tensor as an adapter changes them."""

from math import prod

import torch
from torch import Tensor

from hunyuan_train.export.lora_deltas import Change
from hunyuan_train.model.safetensors_files import read_range
from hunyuan_train.model.safetensors_header import TensorLocation


class ChangeReader:
    """Computes changed rows. Keeps the last matrices B, which the experts of a layer share."""

    NUM_KEPT = 2  # gate and up projections share one, down projections have another

    def __init__(self) -> None:
        self.kept: dict[TensorLocation, Tensor] = {}

    def apply(self, change: Change, weights: Tensor, first_row: int) -> Tensor:
        """Change some rows of a tensor.

        Args:
            change: of the whole tensor.
            weights: [rows, in].
            first_row: of these rows within the tensor.

        Returns:
            [rows, in] in the dtype of the weights; summed in float32 and rounded once.
        """
        num_rows, columns = weights.shape
        start = change.expert * change.rank * columns
        matrix_a = read_range(change.matrix_a, start, start + change.rank * columns)
        row = change.first_row + first_row
        matrix_b = self._read_b(change)[change.expert, row : row + num_rows]
        changed = torch.addmm(
            weights.float(),
            matrix_b.float(),
            matrix_a.view(-1, columns).float(),
            alpha=change.scaling,
        )
        if change.magnitude:
            lengths = read_range(change.magnitude, row, row + num_rows).float()
            changed *= (lengths / changed.norm(dim=1))[:, None]
        return changed.to(weights.dtype)

    def _read_b(self, change: Change) -> Tensor:
        """The matrix B by expert: [experts, out, rank]."""
        if change.matrix_b not in self.kept:
            if len(self.kept) == self.NUM_KEPT:
                del self.kept[next(iter(self.kept))]
            values = read_range(change.matrix_b, 0, prod(change.matrix_b.shape))
            by_expert = values.view(-1, change.rank, change.num_experts).permute(2, 0, 1)
            self.kept[change.matrix_b] = by_expert.contiguous()
        return self.kept[change.matrix_b]
