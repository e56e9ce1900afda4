"""Where weights come from: a folder of safetensors, or a seed.

A source answers one question, "elements [start, stop) of released tensor NAME", so that a process
reads the bytes it owns and no others. Splitting is not its business.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from hunyuan_train.errors import ConfigError
from hunyuan_train.families.grammar.new_tokens import plain_encoding
from hunyuan_train.families.grammar.tokenizer import Tokenizer
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.families.tables import released_tensors
from hunyuan_train.families.tensors import VOCABULARY, StoredTensor
from hunyuan_train.model.released_files import locate_weights, say_renewal
from hunyuan_train.model.safetensors_files import DTYPES, read_range
from hunyuan_train.model.safetensors_header import TensorLocation, largest


class WeightSource(Protocol):
    """Anything that can hand out flat ranges of released tensors."""

    def read(self, tensor: StoredTensor, start: int, stop: int) -> Tensor:
        """Return elements [start, stop) of the flattened tensor: [stop - start], on CPU."""
        ...


class LocatedSource(WeightSource, Protocol):
    """A source that reads tensors where they lie on disk."""

    locations: dict[str, TensorLocation]

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights, but for those that are quantised."""
        ...


@dataclass(frozen=True, slots=True)
class SeededWeights:
    """Random weights that depend on the seed and the tensor's name only, never on the split."""

    seed: int
    standard_deviation: float

    def read(self, tensor: StoredTensor, start: int, stop: int) -> Tensor:
        """Return elements [start, stop): ones for norms, normal(0, standard_deviation) else."""
        if len(tensor.shape) == 1:
            return torch.ones(stop - start)
        digest = hashlib.sha256(f"{self.seed}:{tensor.name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
        values = torch.randn(tensor.numel, generator=generator) * self.standard_deviation
        return values[start:stop]


class SafetensorsFolder:
    """A downloaded model: one or several .safetensors files, experts stored singly or fused."""

    def __init__(self, locations: dict[str, TensorLocation]) -> None:
        self.locations = locations

    @classmethod
    def open(cls, folder: Path, shape: ModelShape) -> "SafetensorsFolder":
        """Read the headers and check that they hold exactly the tensors of the model.

        Raises:
            ConfigError: see `locate_weights`.
        """
        return cls(locate_weights(folder, shape))

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights: that of the largest tensor, because routers may be wider."""
        return DTYPES[largest(self.locations).dtype]

    def read(self, tensor: StoredTensor, start: int, stop: int) -> Tensor:
        """Return elements [start, stop) of the flattened tensor, in the stored dtype.

        Raises:
            ConfigError: the file ends early or holds NaN or infinity there.
        """
        location = self.locations[tensor.name]
        try:
            values = read_range(location, start, stop)
        except ValueError as error:
            raise ConfigError(
                f"{location.file}, {tensor.name}: {error}; {say_renewal(location.file.parent)}"
            ) from error
        if not is_finite(values):
            raise ConfigError(
                f"{location.file} holds NaN or infinity in {tensor.name}; "
                f"{say_renewal(location.file.parent)}"
            )
        return values


def is_finite(values: Tensor) -> bool:
    """Whether no element is NaN or infinite; six times as fast as asking each of them."""
    return not len(values) or bool(torch.stack(values.aminmax()).isfinite().all())


@dataclass(frozen=True, slots=True)
class WithNewRows:
    """A base whose embedding and head have further rows: those of the tokens that a run adds."""

    base: LocatedSource
    first: int  # of the new rows
    matrices: Mapping[str, StoredTensor]  # embedding and head as the base has them, by name
    rows: Mapping[str, Tensor]  # [new tokens, hidden], float32, of each

    def read(self, tensor: StoredTensor, start: int, stop: int) -> Tensor:
        """Return elements [start, stop) of the flattened tensor: [stop - start], on CPU."""
        if tensor.name not in self.rows:
            return self.base.read(tensor, start, stop)
        before, rows = self.matrices[tensor.name], self.rows[tensor.name].flatten()
        edge = self.first * before.shape[1]
        end = edge + len(rows)
        parts = [
            self.base.read(before, max(low, start), min(high, stop))
            for low, high in ((0, edge), (end, before.numel))
            if max(low, start) < min(high, stop)
        ]
        if max(edge, start) < min(end, stop):
            dtype = DTYPES[self.base.locations[tensor.name].dtype]
            new = rows[max(edge, start) - edge : min(end, stop) - edge].to(dtype)
            parts.insert(1 if start < edge else 0, new)
        return torch.cat(parts)


def add_rows(source: LocatedSource, base: ModelShape, tokenizer: Tokenizer) -> WithNewRows:
    """The base with a row for each token that a run adds: the mean of those it was made of so far.

    Args:
        source: of the base.
        base: its shape.
        tokenizer: with the new tokens, the last ones of its vocabulary.
    """
    before = replace(tokenizer, encoding=plain_encoding(tokenizer))
    words = tokenizer.special_tokens[-tokenizer.num_added :]
    spelled = [before.encode(word) for word in words]
    matrices = {name: one for name, one in released_tensors(base).items() if one.kind in VOCABULARY}
    rows = {}
    for name, matrix in matrices.items():
        width = matrix.shape[1]
        rows[name] = torch.stack(
            [
                torch.stack(
                    [source.read(matrix, one * width, (one + 1) * width).float() for one in ids]
                ).mean(0)
                for ids in spelled
            ]
        )
    return WithNewRows(source, tokenizer.vocab_size - tokenizer.num_added, matrices, rows)


def downloaded_part(source: WeightSource) -> SafetensorsFolder | None:
    """The folder that a source reads from; None where a seed gives the weights."""
    base = source.base if isinstance(source, WithNewRows) else source
    return base if isinstance(base, SafetensorsFolder) else None
