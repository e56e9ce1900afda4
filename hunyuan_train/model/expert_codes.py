"""Codes and scales of frozen experts: a base has them, or they are made of weights when read."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from hunyuan_train.families.shape import ModelShape
from hunyuan_train.families.tensors import Kind, StoredTensor
from hunyuan_train.model.compressed_values import decode, encode
from hunyuan_train.model.compressed_weights import CompressedFolder
from hunyuan_train.model.compression_scheme import Scheme
from hunyuan_train.model.expert_formats import scheme_of
from hunyuan_train.model.weights import WeightSource, WithNewRows

CPU = torch.device("cpu")


class ExpertCodes(Protocol):
    """Anything that can hand out whole experts' weights as codes and scales."""

    @property
    def scheme(self) -> Scheme:
        """How they are compressed."""
        ...

    def read_experts(self, tensor: StoredTensor) -> tuple[Tensor, Tensor]:
        """Codes and scales of one projection of one expert, as `compressed_values.decode` takes.

        Args:
            tensor: of the routed experts, [rows, columns].

        Returns:
            codes: [rows, columns] of FP8, or [rows, columns / 8] words or [rows, columns / 2] bytes
                of four-bit codes.
            scales: [rows or blocks of rows, scales of a row], float.
        """
        ...


@dataclass(frozen=True, slots=True)
class QuantisedOnReading:
    """Codes that are made of a base's weights as they are read, one projection of one expert."""

    source: WeightSource
    scheme: Scheme
    dtype: torch.dtype  # of training: wider weights are rounded to it first, as they would be there
    device: torch.device = CPU  # on which codes are made; the bits are the same ones

    def read_experts(self, tensor: StoredTensor) -> tuple[Tensor, Tensor]:
        """Codes and scales of one projection of one expert."""
        weight = self.source.read(tensor, 0, tensor.numel).view(tensor.shape)
        weight = weight.to(self.device)
        if weight.dtype.itemsize > self.dtype.itemsize:
            weight = weight.to(self.dtype)
        return encode(weight, self.scheme)


@dataclass(frozen=True, slots=True)
class ComputedBase:
    """A base as it computes: its routed experts are what their codes mean."""

    source: WeightSource
    codes: ExpertCodes

    def read(self, tensor: StoredTensor, start: int, stop: int) -> Tensor:
        """Return elements [start, stop) of the flattened tensor: [stop - start], on CPU."""
        if tensor.kind is not Kind.EXPERT:
            return self.source.read(tensor, start, stop)
        codes, scales = self.codes.read_experts(tensor)
        return decode(codes, scales, self.codes.scheme).flatten()[start:stop].cpu()


def find_codes(
    expert_weights: str,
    shape: ModelShape,
    source: WeightSource,
    dtype: torch.dtype,
    *,
    device: torch.device = CPU,
) -> ExpertCodes | None:
    """Where the codes of quantised experts come from; None where experts are kept as they are.

    Args:
        expert_weights: how they are kept (--expert_weights).
        shape: of the model.
        source: of the base.
        dtype: of training.
        device: on which codes are made.
    """
    base = source.base if isinstance(source, WithNewRows) else source
    if expert_weights == "base":
        assert isinstance(base, CompressedFolder), "the rules let no other base through"
        return base
    scheme = scheme_of(expert_weights, shape)
    return QuantisedOnReading(source, scheme, dtype, device) if scheme else None


def as_computed(
    expert_weights: str, shape: ModelShape, source: WeightSource, dtype: torch.dtype
) -> WeightSource:
    """The base as a run computes with it, in which its adapters are checked."""
    codes = find_codes(expert_weights, shape, source, dtype)
    return ComputedBase(source, codes) if codes else source
