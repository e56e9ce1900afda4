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

from hunyuan_train.config.errors import ConfigError
from hunyuan_train.config.schema import ModelConfig
from hunyuan_train.data.tokenizer import Tokenizer
from hunyuan_train.model.layout import StoredTensor, released_tensors
from hunyuan_train.model.presets import PRESETS, fit_vocabulary, resolve_shape
from hunyuan_train.model.safetensors_files import TensorLocation, read_header, read_range
from hunyuan_train.model.shape import ModelShape


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
            ConfigError: no weight files, a damaged header, or tensors missing, unknown, misshapen.
        """
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise ConfigError(
                f"{folder} holds no .safetensors weights; download them again (weights in .bin "
                "form are converted with transformers' save_pretrained)"
            )
        locations: dict[str, TensorLocation] = {}
        for file in files:
            try:
                locations.update(read_header(file))
            except ValueError as error:
                raise ConfigError(f"{file} cannot be used: {error}; download it again") from error
        _unfuse_experts(locations, shape)
        _check_complete(locations, shape, folder)
        return cls(locations)

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
        resolve_shape(name),
        vocab_size=tokenizer.vocab_size,
        pad_id=tokenizer.pad_id,
        eos_id=tokenizer.eos_id,
    )
    if name in PRESETS:
        return shape, SeededWeights(seed, shape.initializer_range)
    return shape, SafetensorsFolder.open(Path(name), shape)


def _unfuse_experts(locations: dict[str, TensorLocation], shape: ModelShape) -> None:
    """Give the experts inside fused 3-D tensors the names they have when stored singly."""
    width = shape.intermediate_size
    parts = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
    for name in list(locations):
        layer, _, kind = name.rpartition(".mlp.experts.")
        if kind not in parts:
            continue
        fused = locations.pop(name)
        num_experts, rows, columns = fused.shape
        part_rows = width if kind == "gate_up_proj" else rows
        part_bytes = part_rows * columns * fused.dtype.itemsize
        names = [
            f"{layer}.mlp.experts.{expert}.{part}.weight"
            for expert in range(num_experts)
            for part in parts[kind]
        ]
        for position, part_name in enumerate(names):
            locations[part_name] = TensorLocation(
                fused.file,
                fused.byte_offset + position * part_bytes,
                fused.dtype,
                (part_rows, columns),
            )


def _check_complete(locations: dict[str, TensorLocation], shape: ModelShape, folder: Path) -> None:
    expected = released_tensors(shape)
    if shape.tie_word_embeddings:
        # Some writers store the tied output weights a second time; the embedding is read.
        locations.pop("lm_head.weight", None)
    missing = sorted(expected.keys() - locations.keys())
    unknown = sorted(locations.keys() - expected.keys())
    misshapen = sorted(
        f"{name} in {locations[name].file.name} is {list(locations[name].shape)}, "
        f"config.json makes it {list(expected[name].shape)}"
        for name in expected.keys() & locations.keys()
        if locations[name].shape != expected[name].shape
    )
    unknown = [f"{name} in {locations[name].file.name}" for name in unknown]
    problems = [
        f"{len(names)} {what} ({'; '.join(names[:3])}{' ...' if len(names) > 3 else ''})"
        for what, names in (("missing", missing), ("unknown", unknown), ("misshapen", misshapen))
        if names
    ]
    if problems:
        raise ConfigError(
            f"the weights in {folder} do not fit its config.json: tensors {', '.join(problems)}; "
            "download the model again"
        )
