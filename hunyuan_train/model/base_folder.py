"""The model that a run starts from, whose weights may be compressed: its shape and its files.

No torch is needed: the launcher looks at both before a process starts.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from hunyuan_train.errors import ConfigError
from hunyuan_train.families.registry import PRESETS, parse_shape, resolve_shape
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.families.tables import released_tensors
from hunyuan_train.families.tensors import StoredTensor
from hunyuan_train.json_file import read_json_object
from hunyuan_train.model.compression_scheme import CONFIG, Scheme, is_compressed, read_scheme
from hunyuan_train.model.released_files import locate_weights, weight_files
from hunyuan_train.model.safetensors_header import TensorLocation, read_header

# Static scales of activations and of keys and values, which servers use and training does not.
UNREAD = (".input_scale", ".output_scale", ".k_scale", ".v_scale", ".q_scale")
SAMPLED_BYTES = 2**16  # of each file of a model


def resolve_base(model_name_or_path: str, *, carry_mtp: bool = True) -> ModelShape:
    """The shape of the model that is trained, with the form in which its base is stored.

    Args:
        model_name_or_path: the setting.
        carry_mtp: the setting of this name.

    Raises:
        ConfigError: see `resolve_shape` and `read_scheme`.
    """
    path = Path(model_name_or_path, "config.json")
    if model_name_or_path in PRESETS or not path.is_file():
        return resolve_shape(model_name_or_path, carry_mtp=carry_mtp)
    try:
        config = read_json_object(path)
    except (OSError, ValueError):
        return resolve_shape(model_name_or_path, carry_mtp=carry_mtp)  # which says what is wrong
    scheme = read_scheme(config, str(path))
    if scheme is None:
        return resolve_shape(model_name_or_path, carry_mtp=carry_mtp)
    plain = {name: value for name, value in config.items() if name != CONFIG}
    shape = parse_shape(plain, source=str(path))
    return replace(shape, leaves_out_mtp=not carry_mtp, stored_as=scheme.title)


def identify_weights(model_name_or_path: str) -> str:
    """Tell one released model from another of the same shape by a sample of each file."""
    if model_name_or_path in PRESETS:
        return model_name_or_path
    digest = hashlib.sha256()
    for path in sorted(Path(model_name_or_path).glob("*.safetensors")):
        size = path.stat().st_size
        with path.open("rb") as file:
            file.seek(size // 2)
            digest.update(f"{path.name} {size} ".encode() + file.read(SAMPLED_BYTES))
    return f"files {digest.hexdigest()[:12]}"


def locate_base(folder: Path, shape: ModelShape) -> dict[str, TensorLocation]:
    """Find every tensor of the model that is trained, compressed or not.

    Raises:
        ConfigError: see `locate_weights` and `locate_compressed`.
    """
    if shape.stored_as:
        return locate_compressed(folder, shape, Scheme.titled(shape.stored_as))
    return locate_weights(folder, shape)


def locate_compressed(folder: Path, shape: ModelShape, scheme: Scheme) -> dict[str, TensorLocation]:
    """Find every tensor of a compressed folder, and check that they are those of the model.

    Raises:
        ConfigError: naming a tensor that is missing, unknown or of another form.
    """
    found: dict[str, TensorLocation] = {}
    for file in weight_files(folder):
        try:
            found |= read_header(file)
        except (OSError, ValueError) as error:
            raise ConfigError(f"{file} cannot be read: {error}; quantize again") from error
    found = {name: one for name, one in found.items() if not name.endswith(UNREAD)}
    expected: dict[str, tuple[int, ...]] = {}
    for tensor in released_tensors(shape).values():
        expected |= dict(_expected(tensor, scheme, found))
    wrong = [f"{name} is missing" for name in sorted(expected.keys() - found.keys())]
    wrong += [f"{name} is unknown" for name in sorted(found.keys() - expected.keys())]
    wrong = wrong or [
        f"{name} is {list(found[name].shape)} and not {list(size)}"
        for name, size in sorted(expected.items())
        if not _has_shape(found[name], size)
    ]
    if wrong:
        raise ConfigError(
            f"the weights in {folder} do not fit its config.json, which says {scheme.title}: "
            f"{wrong[0]}, the first of {len(wrong)} such tensors; quantize again, "
            "or download it again"
        )
    return found


def _expected(
    tensor: StoredTensor, scheme: Scheme, found: dict[str, TensorLocation]
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of what stands for a weight: itself, where a folder leaves it as it was.

    Raises:
        ConfigError: its inputs are no whole groups.
    """
    plain = found.get(tensor.name)
    if not is_compressed(tensor) or (plain is not None and plain.dtype not in ("F8_E4M3", "U8")):
        yield tensor.name, tensor.shape
        return
    if scheme.group_size and tensor.shape[1] % scheme.group_size:
        raise ConfigError(
            f"the {CONFIG} of the base says groups of {scheme.group_size}, which do not divide the "
            f"{tensor.shape[1]} inputs of {tensor.name}; give a folder that was quantised in "
            "groups which divide all widths"
        )
    for name, (_, size) in scheme.stored(tensor, "").items():
        yield name, size


def _has_shape(location: TensorLocation, size: tuple[int, ...]) -> bool:
    """Whether a tensor has a shape; one number may be stored without dimensions, or in one."""
    is_one = all(length == 1 for length in (*size, *location.shape))
    return location.shape == size or is_one
