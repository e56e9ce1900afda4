"""A model folder whose weights are compressed, read as if they were not.

It answers the question of every `WeightSource`, so what computes with a model need not know how
its weights are stored.
"""

from pathlib import Path

import torch
from torch import Tensor

from hunyuan_train.errors import ConfigError
from hunyuan_train.families.registry import parse_shape
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.families.tensors import StoredTensor
from hunyuan_train.json_file import read_json_object
from hunyuan_train.model.base_folder import locate_compressed
from hunyuan_train.model.compressed_values import decode
from hunyuan_train.model.compression_scheme import (
    BLOCK,
    CONFIG,
    PACKED,
    SCALE,
    SHAPE,
    Scheme,
    read_scheme,
)
from hunyuan_train.model.released_files import DTYPES as PLAIN_DTYPES
from hunyuan_train.model.safetensors_files import DTYPES, read_range
from hunyuan_train.model.safetensors_header import TensorLocation, largest
from hunyuan_train.model.weights import SafetensorsFolder, WeightSource, is_finite


class CompressedFolder:
    """The weights of a compressed folder: dequantised, and those of experts as codes, too."""

    def __init__(self, locations: dict[str, TensorLocation], scheme: Scheme) -> None:
        self.locations = locations
        self.scheme = scheme
        ending, weight = (".scales", ".weight") if scheme.packing else (SCALE, "")
        scales = (name for name in locations if name.endswith(ending))
        self.compressed = frozenset(name.removesuffix(ending) + weight for name in scales)

    @classmethod
    def open(cls, folder: Path, shape: ModelShape, scheme: Scheme) -> "CompressedFolder":
        """Read the headers and check that they hold exactly the tensors of the model.

        Raises:
            ConfigError: naming a tensor that is missing, unknown or of another form.
        """
        return cls(locate_compressed(folder, shape, scheme), scheme)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights that are not compressed: that of the largest of them."""
        plain = {
            name: one
            for name, one in self.locations.items()
            if one.dtype in PLAIN_DTYPES and not name.endswith((SCALE, ".scales"))
        }
        return DTYPES[largest(plain).dtype]

    def read(self, tensor: StoredTensor, start: int, stop: int) -> Tensor:
        """Return elements [start, stop) of the flattened weight: [stop - start], dequantised.

        Raises:
            ConfigError: the file ends early, or holds NaN or infinity there.
        """
        if tensor.name not in self.compressed:
            values = self._read(tensor.name, start, stop)
        else:
            columns = tensor.shape[1]
            first, last = start // columns, -(-stop // columns)
            if self.scheme.strategy == "block":
                first -= first % BLOCK
            rows = self.read_rows(tensor, first, last).flatten()
            values = rows[start - first * columns : stop - first * columns]
        if not is_finite(values):
            raise ConfigError(f"{tensor.name} holds NaN or infinity; quantize again")
        return values

    def read_rows(self, tensor: StoredTensor, first: int, last: int) -> Tensor:
        """Rows [first, last) of a compressed weight, dequantised; `first` begins a block."""
        codes, scales = self.read_codes(tensor, first, last)
        return decode(codes, scales, self.scheme)

    def read_codes(self, tensor: StoredTensor, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Codes and scales of rows [first, last) of a compressed weight.

        Raises:
            ConfigError: another shape is stored than the tensor has.
        """
        name = tensor.name
        if self.scheme.packing:
            codes, scales = self._read_gptq(tensor)
            return codes[first:last], scales[first:last]
        if self.scheme.strategy == "tensor":
            return self._read_matrix(name, first, last), self._read(name + SCALE, 0, 1).view(1, 1)
        if self.scheme.strategy == "group":
            if self._read(name + SHAPE, 0, 2).tolist() != list(tensor.shape):
                raise ConfigError(f"{name}{SHAPE} is not {list(tensor.shape)}; quantize again")
            name += PACKED
        codes = self._read_matrix(name, first, last)
        height = BLOCK if self.scheme.strategy == "block" else 1
        return codes, self._read_matrix(tensor.name + SCALE, first // height, -(-last // height))

    def read_experts(self, tensor: StoredTensor) -> tuple[Tensor, Tensor]:
        """Codes and scales of one projection of one expert, as they are stored.

        Raises:
            ConfigError: a scale is not finite, or see `read_codes`.
        """
        codes, scales = self.read_codes(tensor, 0, tensor.shape[0])
        if not is_finite(scales.flatten()):
            raise ConfigError(f"the scales of {tensor.name} hold NaN or infinity; quantize again")
        return codes, scales

    def _read_gptq(self, tensor: StoredTensor) -> tuple[Tensor, Tensor]:
        """Codes and scales of a whole weight in GPTQ's own files, which hold them transposed.

        Raises:
            ConfigError: its groups have zero points of their own, or members all over a row.
        """
        columns, size = tensor.shape[1], self.scheme.group_size
        names = list(self.scheme.stored(tensor, ""))
        parts = [self._read_matrix(name, 0, self.locations[name].shape[0]) for name in names[:3]]
        zero = 0x77777777 if self.scheme.packing == "gptq" else -0x77777778  # eight times 7, or 8
        if bool((parts[1] != zero).any()):
            raise ConfigError(
                f"{names[1]} has other zero points than 8: asymmetric GPTQ is not read here; give "
                "a folder that was quantised with sym true"
            )
        groups = self._read(names[3], 0, columns)
        if not torch.equal(groups, torch.arange(columns, dtype=groups.dtype) // size):
            raise ConfigError(
                f"{names[3]} lays the inputs of groups all over a row (act-order), which is not "
                "read here; give a folder that was quantised with desc_act false"
            )
        return parts[0].T.contiguous(), parts[2].T.contiguous()

    def _read_matrix(self, name: str, first: int, last: int) -> Tensor:
        columns = self.locations[name].shape[1]
        return self._read(name, first * columns, last * columns).view(-1, columns)

    def _read(self, name: str, start: int, stop: int) -> Tensor:
        try:
            return read_range(self.locations[name], start, stop)
        except ValueError as error:
            raise ConfigError(
                f"{self.locations[name].file}, {name}: {error}; quantize again"
            ) from error


def open_model(folder: Path) -> tuple[ModelShape, WeightSource, Scheme | None]:
    """A model folder's shape and weights, and how these are compressed, if they are.

    Raises:
        ConfigError: no model folder, or one that does not fit its config.json.
    """
    path = folder / "config.json"
    try:
        config = read_json_object(path)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{folder} is no model folder: its config.json cannot be read ({error})"
        ) from error
    scheme = read_scheme(config, str(path))
    plain = {name: value for name, value in config.items() if name != CONFIG}
    shape = parse_shape(plain, source=str(path))
    if scheme is None:
        return shape, SafetensorsFolder.open(folder, shape), None
    return shape, CompressedFolder.open(folder, shape, scheme), scheme


def load_parameter(parameter: Tensor, tensors: list[StoredTensor], source: WeightSource) -> None:
    """Fill a parameter, whatever its dtype and device, with the weights that it lays end to end."""
    position = 0
    with torch.no_grad():
        for tensor in tensors:
            values = source.read(tensor, 0, tensor.numel)
            parameter.view(-1)[position : position + tensor.numel] = values.to(parameter.device)
            position += tensor.numel
