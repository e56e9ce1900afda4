"""What is to be served: its form, its model, what it asks of an engine. Known without torch."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hunyuan_train.errors import ConfigError
from hunyuan_train.families.registry import family_of, parse_shape
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.families.tables import modules_of_kind, to_released
from hunyuan_train.families.tensors import FUSED, Kind
from hunyuan_train.json_file import read_json_object
from hunyuan_train.model.safetensors_header import read_header
from hunyuan_train.serve.errors import ServeError
from hunyuan_train.serve.folder import ADAPTER, find_model_folder, is_adapter

GGUF = ".gguf"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
# Adapters of routed experts, as PEFT stacks them, and as `convert_adapter` writes them for SGLang.
STACKED_EXPERTS = re.compile(r"\.experts(?P<wrapper>\.base_layer)?\.lora_[AB]\.")
SINGLE_EXPERT = re.compile(r"\.experts\.\d+\.(?P<projection>\w+)\.lora_[AB]\.")
SERVED_HEAD = 128  # elements of an attention head that every engine has kernels for


@dataclass(frozen=True, kw_only=True, slots=True)
class Artefact:
    """A model folder, an adapter folder or a GGUF file."""

    path: Path  # as it was given
    model: Path  # folder of the model, or of the adapter's base; of a GGUF file, the file
    shape: ModelShape | None  # None of a GGUF file
    weight_bytes: int
    features: frozenset[str]  # in the words of `known_pairs.py`
    lora_rank: int = 0
    model_dtype: str = ""  # of the weights on disk: float32, bfloat16, or "compressed"

    @property
    def is_adapter(self) -> bool:
        """Whether it stands on a base model."""
        return "adapter" in self.features


def read_artefact(path: Path, *, base: Path | None) -> Artefact:
    """Look at what is to be served.

    Raises:
        ServeError: neither a model, nor an adapter, nor a GGUF file, or the base is missing.
        ConfigError: a config.json that does not say a model of ours.
    """
    if path.suffix == GGUF:
        if not path.is_file():
            raise ServeError(f"{path} is not there; give a GGUF file or a model folder")
        return Artefact(
            path=path,
            model=path,
            shape=None,
            weight_bytes=path.stat().st_size,
            features=frozenset({"gguf"}),
        )
    model = find_model_folder(path, base=base)
    config = _read_config(model)
    plain = {name: value for name, value in config.items() if name != "quantization_config"}
    shape = parse_shape(plain, source=str(model / "config.json"))
    features = _model_features(model, config, shape)
    lora_rank = 0
    if is_adapter(path):
        settings = read_json_object(path / ADAPTER)
        features |= _adapter_features(settings, shape)
        found = find_experts(path / ADAPTER_WEIGHTS)
        if "single experts" not in found and "adapter on experts" in features:
            found.add("stacked experts")
        features |= found
        lora_rank = _read_rank(settings)
    return Artefact(
        path=path,
        model=model,
        shape=shape,
        weight_bytes=sum(one.stat().st_size for one in model.glob("*.safetensors")),
        features=frozenset(features),
        lora_rank=lora_rank,
        model_dtype=_read_dtype(config),
    )


def _read_config(model: Path) -> dict[str, Any]:
    path = model / "config.json"
    try:
        return read_json_object(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); export the model again") from error


def _read_dtype(config: dict[str, Any]) -> str:
    if config.get("quantization_config"):
        return "compressed"
    return str(config.get("dtype") or config.get("torch_dtype") or "bfloat16")


def _model_features(model: Path, config: dict[str, Any], shape: ModelShape) -> set[str]:
    features = {shape.family, "experts" if shape.num_experts else "dense"}
    if config.get("quantization_config"):
        features.add("compressed")
    if shape.head_dim != SERVED_HEAD:
        features.add("unusual head")
    if shape.head_dim * shape.num_attention_heads != shape.hidden_size:
        features.add("heads of another width")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if rope.get("rope_type", rope.get("type")) == "dynamic":
        features.add("dynamic rope")
    if not (model / "tokenizer.json").exists():
        features.add("remote code")
    return features


def _adapter_features(settings: dict[str, Any], shape: ModelShape) -> set[str]:
    """What an adapter_config.json adapts, by the kinds of the model's tensors."""
    features = {"adapter"}
    if settings.get("use_dora"):
        features.add("DoRA")
    family = family_of(shape)
    named = [
        *_as_list(settings.get("target_modules")),
        *_as_list(settings.get("target_parameters")),
    ]
    released = [to_released(family, f".{one}.").strip(".") for one in named]
    for kind in (Kind.EXPERT, Kind.SHARED_EXPERT, Kind.ROUTER):
        modules = modules_of_kind(shape, kind)
        if any(_is_within(one, module) for one in released for module in modules):
            features.add(f"adapter on {kind}s")
    return features


def find_experts(weights: Path) -> set[str]:
    """What the names in an adapter's file say of routed experts; nothing where it has none on them.

    Raises:
        ServeError: the file is damaged.
    """
    if not weights.exists():  # a folder that only describes an adapter, or PEFT's older format
        return set()
    try:
        names = list(read_header(weights))
    except (OSError, ValueError) as error:
        raise ServeError(f"{weights} cannot be read ({error}); export it again") from error
    single = {one["projection"] for one in map(SINGLE_EXPERT.search, names) if one}
    stacked = {one["wrapper"] for one in map(STACKED_EXPERTS.search, names) if one}
    if not single and not stacked:
        return set()
    features = {"adapter on experts", "single experts" if single else "stacked experts"}
    # PEFT wraps experts once for each fused parameter: gate and up together, and down.
    num_projections = sum(len(parts) for parts in FUSED.values())
    is_whole = len(single) == num_projections if single else len(stacked) == len(FUSED)
    return features if is_whole else features | {"some projections of experts"}


def _is_within(target: str, module: str) -> bool:
    """Whether a target of PEFT names a module, or a parameter of it."""
    return f".{module}.".endswith(f".{target}.") or f".{target}.".find(f".{module}.") >= 0


def _as_list(value: object) -> list[str]:
    """A field that PEFT writes as a list, or as a pattern."""
    if isinstance(value, str):
        return [value]
    return [str(one) for one in value] if isinstance(value, list) else []


def _read_rank(settings: dict[str, Any]) -> int:
    ranks = [settings.get("r"), *(settings.get("rank_pattern") or {}).values()]
    return max((one for one in ranks if isinstance(one, int)), default=0)
