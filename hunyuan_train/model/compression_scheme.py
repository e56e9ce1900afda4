"""How the weights of a model folder are compressed, in the words of compressed-tensors.

`quantization_config` of a config.json is written and read here, without torch, and so are the
names and shapes of the tensors that stand for a compressed weight. Servers (vLLM, SGLang) and
Transformers read the same fields.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from hunyuan_train.errors import ConfigError
from hunyuan_train.families.tensors import Kind, StoredTensor

CONFIG = "quantization_config"
METHOD = "compressed-tensors"
FORMATS = {"channel": "float-quantized", "block": "float-quantized", "group": "pack-quantized"}
BLOCK = 128  # rows and columns that share a scale, in block-wise FP8; activations in such groups
NIBBLES = 8  # four-bit codes in a word of 32 bits
# Projections of a layer. Routers, norms, embeddings and the output layer stay as they are.
COMPRESSED_KINDS = (Kind.ATTENTION, Kind.MLP, Kind.SHARED_EXPERT, Kind.EXPERT)
SCALE, PACKED, SHAPE = "_scale", "_packed", "_shape"  # behind the name of a weight

Layout = tuple[str, tuple[int, ...]]  # dtype by its name in safetensors, shape


@dataclass(frozen=True, slots=True)
class Scheme:
    """How every compressed weight of a folder is stored."""

    # channel: FP8 (e4m3), a scale for each output; block: FP8, a scale for each 128 x 128;
    # group: 4-bit whole numbers, a scale for each `group_size` inputs of an output.
    strategy: Literal["channel", "block", "group"]
    group_size: int = 0

    @property
    def rounds_activations(self) -> bool:
        """Whether servers compute in FP8, and so round what goes into a projection."""
        return self.strategy != "group"

    def stored(self, tensor: StoredTensor, scale_dtype: str) -> dict[str, Layout]:
        """The tensors that stand for one weight, in the order in which they are written."""
        rows, columns = tensor.shape
        if self.strategy == "channel":
            scales: tuple[int, ...] = (rows, 1)
        elif self.strategy == "block":
            scales = (-(-rows // BLOCK), -(-columns // BLOCK))
        else:
            return {
                tensor.name + PACKED: ("I32", (rows, columns // NIBBLES)),
                tensor.name + SCALE: (scale_dtype, (rows, columns // self.group_size)),
                tensor.name + SHAPE: ("I64", (2,)),
            }
        return {
            tensor.name: ("F8_E4M3", tensor.shape),
            tensor.name + SCALE: (scale_dtype, scales),
        }


def is_compressed(tensor: StoredTensor) -> bool:
    """Whether a weight is compressed, by what it is for."""
    return tensor.kind in COMPRESSED_KINDS and len(tensor.shape) == 2


def describe_scheme(scheme: Scheme, ignored: Sequence[str]) -> dict[str, Any]:
    """The `quantization_config` of a folder.

    Args:
        scheme: of its compressed weights.
        ignored: linear modules that are not compressed.
    """
    bits, kind = (4, "int") if scheme.strategy == "group" else (8, "float")
    common = {"symmetric": True, "num_bits": bits, "type": kind}
    weights: dict[str, Any] = {**common, "strategy": scheme.strategy, "dynamic": False}
    activations: dict[str, Any] | None = None
    if scheme.strategy == "group":
        weights |= {"group_size": scheme.group_size, "actorder": "static"}
    elif scheme.strategy == "block":
        weights["block_structure"] = [BLOCK, BLOCK]
        activations = {**common, "strategy": "group", "group_size": BLOCK, "dynamic": True}
    else:
        activations = {**common, "strategy": "token", "dynamic": True}
    form = FORMATS[scheme.strategy]
    group = {
        "targets": ["Linear"],
        "weights": weights,
        "input_activations": activations,
        "output_activations": None,
        "format": form,
    }
    return {
        "quant_method": METHOD,
        "quantization_status": "compressed",
        "format": form,
        "config_groups": {"group_0": group},
        "ignore": list(ignored),
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }


def read_scheme(config: Mapping[str, Any], source: str) -> Scheme | None:
    """The scheme that a config.json states; None where its weights are not compressed.

    Raises:
        ConfigError: a form that is not read here.
    """
    stated = config.get(CONFIG)
    if stated is None:
        return None
    try:
        [group] = stated["config_groups"].values()
        weights = group["weights"]
        strategy = weights["strategy"]
        size = weights.get("group_size") or 0
        kind = (stated["quant_method"], weights["type"], weights["num_bits"], weights["symmetric"])
        bits = ("int", 4, True) if strategy == "group" else ("float", 8, True)
        is_known = strategy in FORMATS and kind == (METHOD, *bits)
        if strategy == "block":
            is_known = is_known and weights["block_structure"] == [BLOCK, BLOCK]
        if not is_known or type(size) is not int or (strategy == "group" and size < NIBBLES):
            raise ValueError(f"{strategy} weights of {kind}")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{source} has a {CONFIG} that is not read here ({error}); what is read is what "
            "`hunyuan-train quantize` writes: compressed-tensors' FP8 by channel or by blocks of "
            f"{BLOCK} x {BLOCK}, and symmetric 4-bit groups"
        ) from error
    return Scheme(strategy, size if strategy == "group" else 0)
