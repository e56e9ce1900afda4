"""The tensors of a model by kind, and flat ranges of them, whatever its family.

A released checkpoint stores one tensor per expert and projection. Transformers' class holds all
experts of a layer in one parameter, and the engine's expert-parallel layer holds the local ones in
three (w1 gate, w2 down, w3 up). In each case the parameter's elements, row after row, are whole
released tensors laid end to end. That one fact is what loading, checkpoints and export rest on:
any flat range of any parameter maps to flat ranges of released tensors, with no arithmetic but
offsets.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from math import prod


class Kind(StrEnum):
    """What a tensor is for. All that is not one family's own asks for a kind, never for a name."""

    # In the order in which a released folder lists the tensors of a layer.
    EMBEDDING = "embedding"
    NORM = "norm"  # of hidden states
    HEAD = "head"
    ROUTER = "router"
    ROUTER_BIAS = "router bias"
    ATTENTION = "attention"  # projections and their biases
    HEAD_NORM = "head norm"  # of queries and keys, head by head
    MLP = "mlp"  # of a dense layer
    SHARED_EXPERT = "shared expert"
    EXPERT = "expert"
    EXTRA = "extra"  # carried through, neither trained nor computed with


# Beside the parameters of a model: never trained, they pass from a base into its exports.
CARRIED = (Kind.ROUTER_BIAS, Kind.EXTRA)
VOCABULARY = (Kind.EMBEDDING, Kind.HEAD)  # a row for each token
KIND_ORDER = {kind: position for position, kind in enumerate(Kind)}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of the released layout."""

    name: str
    shape: tuple[int, ...]
    kind: Kind = field(default=Kind.EXTRA, compare=False)  # known where a family's table made it
    is_float32: bool = field(default=False, compare=False)  # in files, whatever the others are

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


def pieces_of_range(tensors: list[StoredTensor], start: int, stop: int) -> Iterator[Piece]:
    """Cut the flat range [start, stop) of a parameter into parts of released tensors."""
    position = 0
    for tensor in tensors:
        first, last = max(start, position), min(stop, position + tensor.numel)
        if first < last:
            yield Piece(tensor, first - position, last - position, first - start)
        position += tensor.numel


# Experts: one layout for every family, because Transformers fuses and AutoEP splits all alike.
EXPERT = "{expert}"  # in a name of a family's table: the number of a routed expert
EXPERT_PARAMETER = re.compile(r"(?P<experts>.*\.experts)\.(?P<part>\w+)")
FUSED = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}  # Transformers'
# What one expert's share of a parameter consists of; adapters of experts are stored as they are.
PARTS_OF_EXPERT = FUSED | {
    "w1": ("gate_proj",),
    "w2": ("down_proj",),
    "w3": ("up_proj",),
    "gate_up_lora_A": ("gate_up_lora_A",),
    "gate_up_lora_B": ("gate_up_lora_B",),
    "down_lora_A": ("down_lora_A",),
    "down_lora_B": ("down_lora_B",),
}


def expert_tensors(
    name: str, shape: tuple[int, ...], *, first_expert: int = 0
) -> list[StoredTensor] | None:
    """List the released tensors that a parameter of routed experts lays end to end.

    Args:
        name: of a parameter.
        shape: [experts, rows, columns].
        first_expert: global index of its first expert.

    Returns:
        None for a parameter of anything else.
    """
    match = EXPERT_PARAMETER.fullmatch(name)
    if match is None or match["part"] not in PARTS_OF_EXPERT or len(shape) != 3:
        return None
    parts = PARTS_OF_EXPERT[match["part"]]
    size = (shape[1] // len(parts), shape[2])
    return [
        StoredTensor(f"{match['experts']}.{first_expert + local}.{part}.weight", size, Kind.EXPERT)
        for local in range(shape[0])
        for part in parts
    ]
