"""Codes and scales of frozen experts: a base has them, or they are made of weights when read."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from hunyuan_train.config.schema import ModelConfig
from hunyuan_train.families.registry import family_of
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.families.tables import stored_tensors
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
        """Codes and scales of one projection of one expert, as `compressed_values.decode` takes."""
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
    config: ModelConfig,
    shape: ModelShape,
    source: WeightSource,
    dtype: torch.dtype,
    *,
    device: torch.device = CPU,
) -> ExpertCodes | None:
    """Where the codes of quantised experts come from; None where experts are kept as they are.

    Args:
        config: says how they are kept.
        shape: of the model.
        source: of the base.
        dtype: of training.
        device: on which codes are made.
    """
    base = source.base if isinstance(source, WithNewRows) else source
    if config.expert_weights == "base":
        assert isinstance(base, CompressedFolder), "the rules let no other base through"
        return base
    scheme = scheme_of(config.expert_weights, shape)
    return QuantisedOnReading(source, scheme, dtype, device) if scheme else None


def as_computed(
    config: ModelConfig, shape: ModelShape, source: WeightSource, dtype: torch.dtype
) -> WeightSource:
    """The base as a run computes with it, in which its adapters are checked."""
    codes = find_codes(config, shape, source, dtype)
    return ComputedBase(source, codes) if codes else source


@torch.no_grad()
def round_experts(model: nn.Module, shape: ModelShape, expert_weights: str) -> None:
    """Round a plain model's routed experts, in place, to what a run with that form computes with.

    Args:
        model: of Transformers, with its weights.
        shape: of the model.
        expert_weights: one of the forms that are made while loading.
    """
    scheme = scheme_of(expert_weights, shape)
    assert scheme is not None, "this form has codes"
    for name, parameter in model.named_parameters():
        parts = stored_tensors(family_of(shape), name, tuple(parameter.shape))
        flat = parameter.view(-1).split([tensor.numel for tensor in parts])
        for tensor, values in zip(parts, flat, strict=True):
            if tensor.kind is Kind.EXPERT:
                weight = values.view(tensor.shape)
                weight.copy_(decode(*encode(weight, scheme), scheme))
