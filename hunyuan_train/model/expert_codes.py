"""Codes and scales of frozen experts: a base has them, or they are made of weights when read."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from hunyuan_train.errors import ConfigError
from hunyuan_train.families.tensors import StoredTensor
from hunyuan_train.model.compressed_values import encode
from hunyuan_train.model.compression_scheme import Scheme
from hunyuan_train.model.weights import WeightSource


class ExpertCodes(Protocol):
    """Anything that can hand out whole experts' weights as codes and scales."""

    @property
    def scheme(self) -> Scheme:
        """How they are compressed."""
        ...

    def read_experts(self, tensor: StoredTensor) -> tuple[Tensor, Tensor]:
        """Codes and scales of one projection of one expert, as `compressed_values.decode` takes."""
        ...


@dataclass(frozen=True, slots=True)
class QuantisedOnReading:
    """Codes that are made of a base's weights as they are read, one projection of one expert."""

    source: WeightSource
    scheme: Scheme
    dtype: torch.dtype  # of training: wider weights are rounded to it first, as they would be there

    def read_experts(self, tensor: StoredTensor) -> tuple[Tensor, Tensor]:
        """Codes and scales of one projection of one expert.

        Raises:
            ConfigError: a weight is so large that its scale is infinite.
        """
        weight = self.source.read(tensor, 0, tensor.numel).view(tensor.shape)
        if weight.dtype.itemsize > self.dtype.itemsize:
            weight = weight.to(self.dtype)
        codes, scales = encode(weight, self.scheme)
        if not bool(scales.isfinite().all()):
            raise ConfigError(
                f"{tensor.name} holds NaN or infinity, or weights too large to be quantised; "
                "download the model again, or train with --expert_weights bf16"
            )
        return codes, scales
