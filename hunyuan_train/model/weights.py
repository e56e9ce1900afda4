"""Where weights come from: a folder of safetensors, or a seed.

A source answers one question, "elements [start, stop) of released tensor NAME", so that a process
reads the bytes it owns and no others. Splitting is not its business.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from hunyuan_train.config.schema import ModelConfig
from hunyuan_train.errors import ConfigError
from hunyuan_train.families.grammar.tokenizer import Tokenizer
from hunyuan_train.families.registry import PRESETS, fit_vocabulary, resolve_shape
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.families.tensors import StoredTensor
from hunyuan_train.model.released_files import locate_weights
from hunyuan_train.model.safetensors_files import DTYPES, read_range
from hunyuan_train.model.safetensors_header import TensorLocation, largest


class WeightSource(Protocol):
    """Anything that can hand out flat ranges of released tensors."""

    def read(self, tensor: StoredTensor, start: int, stop: int) -> Tensor:
        """Return elements [start, stop) of the flattened tensor: [stop - start], on CPU."""
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
                f"{location.file}, {tensor.name}: {error}; download it again"
            ) from error
        if not is_finite(values):
            raise ConfigError(
                f"{location.file} holds NaN or infinity in {tensor.name}; download it again"
            )
        return values


def is_finite(values: Tensor) -> bool:
    """Whether no element is NaN or infinite; six times as fast as asking each of them."""
    return not len(values) or bool(torch.stack(values.aminmax()).isfinite().all())


def find_model(
    config: ModelConfig, tokenizer: Tokenizer, *, seed: int
) -> tuple[ModelShape, WeightSource]:
    """A model's shape and where its weights come from: a folder, or the seed for presets.

    Raises:
        ConfigError: no such model, or one that does not fit its config.json or the tokenizer.
    """
    name = config.model_name_or_path
    shape = fit_vocabulary(
        name,
        resolve_shape(name, carry_mtp=config.carry_mtp),
        vocab_size=tokenizer.vocab_size,
        pad_id=tokenizer.pad_id,
        eos_id=tokenizer.eos_id,
    )
    if name in PRESETS:
        return shape, SeededWeights(seed, shape.initializer_range)
    return shape, SafetensorsFolder.open(Path(name), shape)
