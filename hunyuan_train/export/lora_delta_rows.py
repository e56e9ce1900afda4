"""Computes rows of a released tensor as an adapter changes them."""

from math import prod

import torch
from torch import Tensor

from hunyuan_train.export.lora_deltas import Change
from hunyuan_train.model.safetensors_files import read_range
from hunyuan_train.model.safetensors_header import TensorLocation


class ChangeReader:
    """Computes changed rows, block after block of a tensor.

    Keeps the last matrix A, which these blocks share, and the last matrices B, which the experts of
    a layer share.
    """

    NUM_KEPT = 2  # gate and up projections share one, down projections have another

    def __init__(self) -> None:
        self.kept: dict[TensorLocation, Tensor] = {}
        self.last_a: tuple[TensorLocation, int, Tensor] | None = None  # and its expert

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
        matrix_a = self._read_a(change, columns)
        row = change.first_row + first_row
        matrix_b = self._read_b(change)[change.expert, row : row + num_rows]
        changed = weights.to(torch.float32, copy=True)
        changed.addmm_(matrix_b.float(), matrix_a, alpha=change.scaling)
        if change.magnitude:
            lengths = read_range(change.magnitude, row, row + num_rows).float()
            changed *= (lengths / changed.norm(dim=1))[:, None]
        return changed.to(weights.dtype)

    def _read_a(self, change: Change, columns: int) -> Tensor:
        """The matrix A of the change's expert: [rank, in], float32."""
        key = (change.matrix_a, change.expert)
        if self.last_a is None or self.last_a[:2] != key:
            start = change.expert * change.rank * columns
            values = read_range(change.matrix_a, start, start + change.rank * columns)
            self.last_a = (*key, values.view(-1, columns).float())
        return self.last_a[2]

    def _read_b(self, change: Change) -> Tensor:
        """The matrix B by expert: [experts, out, rank]."""
        if change.matrix_b not in self.kept:
            if len(self.kept) == self.NUM_KEPT:
                del self.kept[next(iter(self.kept))]
            values = read_range(change.matrix_b, 0, prod(change.matrix_b.shape))
            by_expert = values.view(-1, change.rank, change.num_experts).permute(2, 0, 1)
            self.kept[change.matrix_b] = by_expert.contiguous()
        return self.kept[change.matrix_b]
