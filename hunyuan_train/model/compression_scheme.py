"""How the weights of a model folder are compressed, in the words of compressed-tensors.

`quantization_config` of a config.json is written and read here, without torch, and so are the
names and shapes of the tensors that stand for a compressed weight. Servers (vLLM, SGLang) and
Transformers read the same fields.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

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

Strategy = Literal["tensor", "channel", "block", "group", "nf4"]
Packing = Literal["", "gptq", "gptq_v2"]
Layout = tuple[str, tuple[int, ...]]  # dtype by its name in safetensors, shape


@dataclass(frozen=True, slots=True)
class Scheme:
    """How every compressed weight of a folder is stored."""

    # tensor: FP8 (e4m3), one scale; channel: FP8, a scale for each output; block: FP8, a scale for
    # each 128 x 128; group: 4-bit whole numbers, a scale for each `group_size` inputs of an output;
    # nf4: NormalFloat of 4 bits (arXiv 2305.14314), a float32 scale for each `group_size` inputs.
    strategy: Strategy
    group_size: int = 0
    # Of groups: "" as compressed-tensors lays them out; gptq, as GPTQ's own files do, whose zero
    # points are stored one too small; gptq_v2, the same with zero points as they are.
    packing: Packing = ""

    @property
    def title(self) -> str:
        """In a word, as a model's shape says in which form its base is stored."""
        size = f":{self.group_size}" if self.group_size else ""
        return f"{self.packing or self.strategy}{size}"

    @classmethod
    def titled(cls, title: str) -> "Scheme":
        """The scheme of a title."""
        word, _, size = title.partition(":")
        if word in get_args(Packing):
            return cls("group", int(size), cast(Packing, word))
        return cls(cast(Strategy, word), int(size or 0))

    @property
    def rounds_activations(self) -> bool:
        """Whether servers compute in FP8, and so round what goes into a projection."""
        return not self.is_4bit

    @property
    def is_4bit(self) -> bool:
        """Whether a byte holds two codes."""
        return self.strategy in ("group", "nf4")

    @property
    def block_rows(self) -> int:
        """Rows that share a scale; 0: all of them."""
        return {"tensor": 0, "block": BLOCK}.get(self.strategy, 1)

    @property
    def block_columns(self) -> int:
        """Columns that share a scale; 0: all of them."""
        return BLOCK if self.strategy == "block" else self.group_size

    def scales_shape(self, rows: int, columns: int) -> tuple[int, int]:
        """Rows and columns of the scales of a weight."""
        high, wide = self.block_rows or rows, self.block_columns or columns
        return -(-rows // high), -(-columns // wide)

    def num_bytes(self, rows: int, columns: int, *, scale_bytes: int) -> int:
        """Bytes of a weight's codes and scales.

        Args:
            rows: of the weight.
            columns: of it.
            scale_bytes: of a scale, where the scheme does not fix them.
        """
        codes = rows * columns // 2 if self.is_4bit else rows * columns
        high, wide = self.scales_shape(rows, columns)
        return codes + high * wide * (4 if self.strategy == "nf4" else scale_bytes)

    def stored(self, tensor: StoredTensor, scale_dtype: str) -> dict[str, Layout]:
        """The tensors that stand for one weight, in the order in which they are written."""
        rows, columns = tensor.shape
        scales = self.scales_shape(rows, columns)
        if self.packing:
            module, groups = tensor.name.removesuffix(".weight"), scales[1]
            return {
                f"{module}.qweight": ("I32", (columns // NIBBLES, rows)),
                f"{module}.qzeros": ("I32", (groups, rows // NIBBLES)),
                f"{module}.scales": (scale_dtype, (groups, rows)),
                f"{module}.g_idx": ("I32", (columns,)),
            }
        if self.strategy == "group":
            return {
                tensor.name + PACKED: ("I32", (rows, columns // NIBBLES)),
                tensor.name + SCALE: (scale_dtype, scales),
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
        if stated["quant_method"] == "fp8":
            return _read_fp8(stated)
        if stated["quant_method"] == "gptq":
            return _read_gptq(stated, source)
        if stated["quant_method"] != METHOD:
            raise ValueError(f"quant_method {stated['quant_method']}")
        [group] = stated["config_groups"].values()
        weights = group["weights"]
        strategy = weights["strategy"]
        size = weights.get("group_size") or 0
        kind = (stated["quant_method"], weights["type"], weights["num_bits"], weights["symmetric"])
        bits = ("int", 4, True) if strategy == "group" else ("float", 8, True)
        is_known = strategy in ("tensor", *FORMATS) and kind == (METHOD, *bits)
        if strategy == "block":
            is_known = is_known and weights["block_structure"] == [BLOCK, BLOCK]
        if not is_known or type(size) is not int or (strategy == "group" and size < NIBBLES):
            raise ValueError(f"{strategy} weights of {kind}")
    except ConfigError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{source} has a {CONFIG} that is not read here ({error}); what is read is "
            "compressed-tensors' FP8 by tensor, by channel or by blocks of "
            f"{BLOCK} x {BLOCK} and symmetric 4-bit groups, as `hunyuan-train quantize` writes "
            "them, quant_method fp8 by tensor, and symmetric GPTQ of 4 bits without act-order"
        ) from error
    return Scheme(strategy, size if strategy == "group" else 0)


def _read_fp8(stated: Mapping[str, Any]) -> Scheme:
    """FP8 of one scale for each tensor, beside which an `input_scale` may lie."""
    if stated.get("weight_block_size"):
        raise ValueError(f"quant_method fp8 with blocks of {stated['weight_block_size']}")
    return Scheme("tensor")


def _read_gptq(stated: Mapping[str, Any], source: str) -> Scheme:
    """Symmetric GPTQ of 4 bits.

    Raises:
        ConfigError: it was made with act-order, whose groups have members all over a row.
        ValueError: of another kind.
    """
    if stated.get("desc_act"):
        raise ConfigError(
            f"{source} has desc_act true: GPTQ with act-order lays the inputs of a group all over "
            "a row, which the layer of experts does not gather; give a folder that was quantised "
            "with desc_act false, or train on the model in bfloat16 with --expert_weights int4"
        )
    size, form = stated["group_size"], stated.get("checkpoint_format", "gptq")
    kind = (stated["bits"], stated.get("sym", True), form)
    if kind not in ((4, True, "gptq"), (4, True, "gptq_v2")):
        raise ValueError(f"gptq with bits, sym and checkpoint_format {kind}")
    if type(size) is not int or size < NIBBLES or size % NIBBLES:
        raise ValueError(f"gptq with group_size {size}, and no multiple of {NIBBLES}")
    return Scheme("group", size, packing=form)
