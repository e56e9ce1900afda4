"""The weight files of a downloaded model: which there are, and that they hold exactly its tensors.

Only headers are read, without torch, so a damaged download is named in a moment, before any process
starts. That values are finite is seen when they are read (`weights.py`). A folder is believed
nothing: it may have been made to make us read other files, or for ever.
"""

from dataclasses import replace
from pathlib import Path

from hunyuan_train.errors import ConfigError
from hunyuan_train.families.config_fields import Fields
from hunyuan_train.families.registry import family_of
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.families.tables import (
    from_transformers,
    fused_shapes,
    kind_of,
    released_tensors,
)
from hunyuan_train.families.tensors import Kind, expert_tensors
from hunyuan_train.json_file import read_json_object
from hunyuan_train.model.safetensors_header import TensorLocation, read_header
from hunyuan_train.plain_text import make_plain_name

INDEX = "model.safetensors.index.json"
SUFFIX = ".safetensors"
GENERATION_CONFIG = "generation_config.json"
EXPORT_MANIFEST = "export_manifest.json"  # beside the weights of an adapter or model that we wrote
SAMPLING = ("temperature", "top_p", "top_k", "repetition_penalty")  # of a generation_config.json
DTYPES = ("F64", "F32", "F16", "BF16")  # of weights that are not quantised
NUM_NAMED = 3  # in an error, of each kind


def locate_weights(folder: Path, shape: ModelShape) -> dict[str, TensorLocation]:
    """Find every released tensor of a model, whichever layout its experts are stored in.

    Raises:
        ConfigError: no weight files or not all of them, a damaged one, or tensors that are missing,
            unknown, misshapen, quantised, or stored twice; or a damaged generation_config.json.
    """
    check_generation_config(folder, shape)
    whole = released_tensors(replace(shape, leaves_out_mtp=False))
    most = len(whole) + 1  # and tied output weights
    stored: dict[str, TensorLocation] = {}
    for file in weight_files(folder):
        found = _read_file(file)
        _refuse(folder, twice=[f"{name} in {file.name}" for name in found.keys() & stored.keys()])
        stored |= found
        if len(stored) > most:
            break  # some are unknown, whatever the other files hold
    listed = _read_weight_map(folder / INDEX) if (folder / INDEX).exists() else {}
    if shape.tie_word_embeddings:
        # Some writers store the tied output weights a second time; the embedding is read.
        family = family_of(shape)
        stored = {n: one for n, one in stored.items() if kind_of(family, n) is not Kind.HEAD}
        listed = {n: file for n, file in listed.items() if kind_of(family, n) is not Kind.HEAD}
    located = _unfuse_experts(_as_released(stored, shape, folder), shape, folder)
    left_out = whole.keys() - released_tensors(shape).keys()
    located = {name: one for name, one in located.items() if name not in left_out}
    _check_complete(located, shape, folder)
    _check_index(folder / INDEX, listed, stored)
    return located


def weight_files(folder: Path) -> list[Path]:
    """The files that the index lists, or all of them where there is no index.

    Raises:
        ConfigError: none, or some of those listed are not there.
    """
    files = sorted(folder.glob(f"*{SUFFIX}"))
    if not files:
        found = "only weights in .bin form" if any(folder.glob("*.bin")) else "no weights"
        raise ConfigError(
            f"model_name_or_path is {folder}, which holds {found} and not a single .safetensors "
            "file; download the model with its weights (.bin files are converted with "
            "transformers' save_pretrained)"
        )
    index = folder / INDEX
    if not index.exists():
        return files
    listed = sorted(set(_read_weight_map(index).values()))
    missing = [file for file in listed if not (folder / file).exists()]
    if missing or not listed:
        raise ConfigError(
            f"model_name_or_path is {folder}, where {len(missing)} of {len(listed)} weight files "
            f"are missing ({_some(missing)}); download them"
        )
    return [folder / file for file in listed]


def _check_index(index: Path, listed: dict[str, str], stored: dict[str, TensorLocation]) -> None:
    """Refuse an index that other readers would follow to tensors that are not there.

    Raises:
        ConfigError: it differs from the headers of the files.
    """
    held = {name: one.file.name for name, one in stored.items()}
    wrong = [f"{name} in {file}" for name, file in listed.items() if held.get(name) != file]
    wrong += [f"not {name} in {held[name]}" for name in held if listed and name not in listed]
    if wrong:
        raise ConfigError(
            f"{index} and the headers of the weight files differ: it lists {_some(wrong)}; "
            "download the model again"
        )


def _read_weight_map(index: Path) -> dict[str, str]:
    """The file of each tensor, as an index lists them.

    Raises:
        ConfigError: it is damaged, or names a file outside its folder.
    """
    try:
        weight_map = read_json_object(index)["weight_map"]
        listed = set(weight_map.values())
        outside = [name for name in listed if Path(name).name != name or "\\" in name]
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"{index} is not an index of weights ({error}); {say_renewal(index.parent)}"
        ) from error
    wrong = outside or [name for name in listed if not name.endswith(SUFFIX)]
    if wrong:
        raise ConfigError(
            f"{index} lists {_some(wrong)}; it may list {SUFFIX} files of its own folder only, by "
            "their names: download the model again"
        )
    return weight_map


def check_generation_config(folder: Path, shape: ModelShape) -> None:
    """Check what an export would complete and a server would read.

    Raises:
        ConfigError: it is damaged, or holds what no server could use.
    """
    path = folder / GENERATION_CONFIG
    if not path.exists():
        return
    try:
        values = read_json_object(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be used ({error}); {say_renewal(folder)}") from error
    stops = values.get("eos_token_id")
    fields = Fields(values, str(path))
    for name in ("pad_token_id", "bos_token_id"):
        fields.token_id(name, vocab_size=shape.vocab_size)
    for stop in stops if isinstance(stops, list) else [stops]:
        Fields({"eos_token_id": stop}, str(path)).token_id(
            "eos_token_id", vocab_size=shape.vocab_size
        )
    for name in SAMPLING:
        if fields.is_given(name):
            fields.number(name, default=1.0, least=-1.0)


def _read_file(file: Path) -> dict[str, TensorLocation]:
    try:
        return read_header(file)
    except OSError as error:
        renewal = say_renewal(file.parent)
        raise ConfigError(f"{file} cannot be read ({error.strerror}); {renewal}") from error
    except ValueError as error:
        raise ConfigError(f"{file} cannot be used: {error}; {say_renewal(file.parent)}") from error


def say_renewal(folder: Path) -> str:
    """The remedy for damaged files of a model, by where the folder comes from."""
    is_export = (folder / EXPORT_MANIFEST).is_file()
    return "export it again" if is_export else "download it again"


def _check_complete(located: dict[str, TensorLocation], shape: ModelShape, folder: Path) -> None:
    """Refuse anything but the released tensors, each in its shape and not quantised."""
    tensors = released_tensors(shape)
    expected = {name: tensor.shape for name, tensor in tensors.items()}
    missing = [name for name in expected if name not in located]
    mtp = f"model.layers.{shape.num_hidden_layers}."  # Transformers leaves these out when it saves
    if missing and all(name.startswith(mtp) for name in missing):
        raise ConfigError(
            f"{folder} has num_nextn_predict_layers {shape.num_mtp_layers} in its config.json and "
            f"lacks {len(missing)} tensors of the layer for multi-token prediction "
            f"({_some(missing)}); download them, or train without that layer: --carry_mtp false"
        )
    _refuse(
        folder,
        missing=sorted(missing),
        unknown=[
            f"{name} in {one.file.name}" for name, one in located.items() if name not in expected
        ],
        misshapen=_find_misshapen(located, expected),
        quantised=[
            f"{name} in {one.file.name} is {one.dtype}"
            for name, one in located.items()
            if name in expected and one.dtype not in DTYPES
        ],
    )


def _find_misshapen(
    located: dict[str, TensorLocation], shapes: dict[str, tuple[int, ...]]
) -> list[str]:
    return [
        f"{name} in {one.file.name} is {list(one.shape)}, config.json makes it {list(shapes[name])}"
        for name, one in located.items()
        if name in shapes and one.shape != shapes[name]
    ]


def _refuse(folder: Path, **problems: list[str]) -> None:
    """Name the tensors with problems, by kind.

    Raises:
        ConfigError: there are any.
    """
    said = [f"{len(names)} {kind} ({_some(names)})" for kind, names in problems.items() if names]
    if said:
        raise ConfigError(
            f"the weights in {folder} do not fit its config.json: tensors {', '.join(said)}; "
            "download the model again, not quantised"
        )


def _as_released(
    stored: dict[str, TensorLocation], shape: ModelShape, folder: Path
) -> dict[str, TensorLocation]:
    """Give the tensors that Transformers' names were written to those that they are released by."""
    family = family_of(shape)
    located: dict[str, TensorLocation] = {}
    for name, one in stored.items():
        released = from_transformers(family, name)
        _refuse(folder, twice=[released] if released in located else [])
        located[released] = one
    return located


def _unfuse_experts(
    stored: dict[str, TensorLocation], shape: ModelShape, folder: Path
) -> dict[str, TensorLocation]:
    """Give the experts inside fused 3-D tensors the names they have when stored singly."""
    fused = fused_shapes(replace(shape, leaves_out_mtp=False))
    _refuse(folder, misshapen=_find_misshapen(stored, fused))
    located = {name: one for name, one in stored.items() if name not in fused}
    for name in stored.keys() & fused.keys():
        whole, byte_offset = stored[name], stored[name].byte_offset
        for tensor in expert_tensors(name, whole.shape) or ():
            _refuse(folder, twice=[tensor.name] if tensor.name in located else [])
            one = TensorLocation(whole.file, byte_offset, whole.dtype, tensor.shape)
            located[tensor.name] = one
            byte_offset += one.num_bytes
    return located


def _some(names: list[str]) -> str:
    ordered = [make_plain_name(name) for name in sorted(names)]
    return "; ".join(ordered[:NUM_NAMED]) + (" ..." if len(ordered) > NUM_NAMED else "")
