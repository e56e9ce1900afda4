"""Which released tensors a parameter consists of.

The released checkpoint stores one tensor per expert and projection. Transformers' class holds all
experts of a layer in one parameter, and the engine's expert-parallel layer holds the local ones in
three (w1 gate, w2 down, w3 up). In each case the parameter's elements, row after row, are whole
released tensors laid end to end. That one fact is what loading, checkpoints and export rest on:
any flat range of any parameter maps to flat ranges of released tensors, with no arithmetic but
offsets.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from hunyuan_train.model.shape import ModelShape


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of the released layout."""

    name: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Number of elements."""
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class Piece:
    """The part of one released tensor that lies in a flat range of a parameter."""

    tensor: StoredTensor
    start: int  # first element, within the released tensor
    stop: int
    offset: int  # where it lands, counted from the start of the range


# Names the engine's expert-parallel layer gives to what the released layout calls otherwise.
RENAMED_BY_ENGINE = (
    (".mlp.router.gate.", ".mlp.gate.wg."),
    (".mlp.shared_experts.", ".mlp.shared_mlp."),
)
EXPERT_PARAMETER = re.compile(r"(?P<layer>.*\.mlp\.experts)\.(?P<kind>\w+)")
# What one expert's share of a parameter consists of; adapters of experts are stored as they are.
PROJECTIONS = {
    "gate_up_proj": ("gate_proj", "up_proj"),
    "down_proj": ("down_proj",),
    "w1": ("gate_proj",),
    "w2": ("down_proj",),
    "w3": ("up_proj",),
    "gate_up_lora_A": ("gate_up_lora_A",),
    "gate_up_lora_B": ("gate_up_lora_B",),
    "down_lora_A": ("down_lora_A",),
    "down_lora_B": ("down_lora_B",),
}


def stored_tensors(
    name: str, shape: tuple[int, ...], *, first_expert: int = 0
) -> list[StoredTensor]:
    """List the released tensors that a parameter lays end to end.

    Args:
        name: the parameter's name in Transformers' model or in the engine's.
        shape: its full shape, [experts, rows, columns] for routed experts.
        first_expert: global index of its first expert; above 0 only under expert parallelism.
    """
    expert = EXPERT_PARAMETER.fullmatch(name)
    if expert is None:
        for engine_name, released_name in RENAMED_BY_ENGINE:
            name = name.replace(engine_name, released_name)
        return [StoredTensor(name.replace(".base_layer.", "."), tuple(shape))]
    projections = PROJECTIONS[expert["kind"]]
    rows = shape[1] // len(projections)
    return [
        StoredTensor(
            f"{expert['layer']}.{first_expert + local}.{projection}.weight", (rows, shape[2])
        )
        for local in range(shape[0])
        for projection in projections
    ]


def pieces_of_range(tensors: list[StoredTensor], start: int, stop: int) -> Iterator[Piece]:
    """Cut the flat range [start, stop) of a parameter into parts of released tensors."""
    position = 0
    for tensor in tensors:
        first, last = max(start, position), min(stop, position + tensor.numel)
        if first < last:
            yield Piece(tensor, first - position, last - position, first - start)
        position += tensor.numel


def released_tensors(shape: ModelShape) -> dict[str, StoredTensor]:
    """Every tensor of a released checkpoint, by name; tied output weights are not stored."""
    hidden, width = shape.hidden_size, shape.intermediate_size
    query = shape.num_attention_heads * shape.head_dim
    key_value = shape.num_key_value_heads * shape.head_dim
    mlp = {"gate_proj": (width, hidden), "up_proj": (width, hidden), "down_proj": (hidden, width)}
    attention = {
        "q_proj": (query, hidden),
        "k_proj": (key_value, hidden),
        "v_proj": (key_value, hidden),
        "o_proj": (hidden, query),
        "query_layernorm": (shape.head_dim,),
        "key_layernorm": (shape.head_dim,),
    }
    found = {
        "model.embed_tokens.weight": (shape.vocab_size, hidden),
        "model.norm.weight": (hidden,),
    }
    if not shape.tie_word_embeddings:
        found["lm_head.weight"] = (shape.vocab_size, hidden)
    for layer in range(shape.num_hidden_layers):
        prefix = f"model.layers.{layer}"
        found[f"{prefix}.input_layernorm.weight"] = (hidden,)
        found[f"{prefix}.post_attention_layernorm.weight"] = (hidden,)
        found[f"{prefix}.mlp.gate.wg.weight"] = (shape.num_experts, hidden)
        for name, size in attention.items():
            found[f"{prefix}.self_attn.{name}.weight"] = size
            if shape.attention_bias and name.endswith("_proj"):
                found[f"{prefix}.self_attn.{name}.bias"] = size[:1]
        owners = ["shared_mlp", *(f"experts.{expert}" for expert in range(shape.num_experts))]
        for owner in owners:
            for name, size in mlp.items():
                found[f"{prefix}.mlp.{owner}.{name}.weight"] = size
    return {name: StoredTensor(name, size) for name, size in found.items()}
