"""What follows from a family's table of tensors, for any family: names, parameters, counts."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod
from types import MappingProxyType

from hunyuan_train.families.family import Family
from hunyuan_train.families.registry import family_of
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.families.tensors import (
    CARRIED,
    EXPERT,
    FUSED,
    KIND_ORDER,
    Kind,
    StoredTensor,
    expert_tensors,
)

LAYERS = "model.layers."


@dataclass(frozen=True, slots=True)
class ModelParameter:
    """A parameter of Transformers' model."""

    name: str
    shape: tuple[int, ...]  # [experts, rows, columns] for routed experts
    kind: Kind

    @property
    def layer(self) -> int | None:
        """Its layer; None outside of all."""
        return int(self.name.split(".")[2]) if self.name.startswith(LAYERS) else None

    @property
    def name_in_layer(self) -> str:
        """Its name without the layer's."""
        return _without_layer(self.name)

    @property
    def numel(self) -> int:
        """Number of elements."""
        return prod(self.shape)


def to_released(family: Family, name: str) -> str:
    """The released name of what Transformers, the engine or PEFT calls otherwise."""
    for released, other in (*family.in_transformers, *family.in_engine):
        name = name.replace(other, released)
    return name.replace(".base_layer.", ".")


def in_transformers(family: Family, released: str) -> str:
    """What Transformers calls something that has a released name."""
    return _rename(released, family.in_transformers)


def in_engine(family: Family, released: str) -> str:
    """What the engine calls it where its expert-parallel layer stands in."""
    return _rename(released, family.in_engine)


def _rename(released: str, renames: tuple[tuple[str, str], ...]) -> str:
    name = f".{released}."  # as in the middle of a parameter's name
    for one, other in renames:
        name = name.replace(one, other)
    return name.strip(".")


def from_transformers(family: Family, name: str) -> str:
    """The released name of a tensor in a file that Transformers' names were written to."""
    for released, other in family.in_transformers:
        name = name.replace(other, released)
    return name


def stored_tensors(
    family: Family, name: str, shape: tuple[int, ...], *, first_expert: int = 0
) -> list[StoredTensor]:
    """List the released tensors that a parameter lays end to end.

    Args:
        family: of the model.
        name: the parameter's name in Transformers' model or in the engine's.
        shape: its full shape, [experts, rows, columns] for routed experts.
        first_expert: global index of its first expert; above 0 only under expert parallelism.
    """
    experts = expert_tensors(name, shape, first_expert=first_expert)
    if experts is not None:
        return experts
    return [StoredTensor(to_released(family, name), tuple(shape))]


@lru_cache(maxsize=4)
def released_tensors(shape: ModelShape) -> Mapping[str, StoredTensor]:
    """Every tensor of a released checkpoint, by name, in the order of its files."""
    found: list[tuple[tuple[int, int, int], StoredTensor]] = []
    for row in family_of(shape).table(shape):
        is_expert = EXPERT in row.name
        layer = int(row.name.split(".")[2]) if row.name.startswith(LAYERS) else -1
        for expert in range(shape.num_experts if is_expert else 1):
            tensor = replace(row, name=row.name.replace(EXPERT, str(expert)))
            position = (layer, KIND_ORDER[row.kind], expert)
            found.append((position, tensor))
    found.sort(key=lambda one: one[0])  # stable: rows of one kind stay in the table's order
    return MappingProxyType({tensor.name: tensor for _, tensor in found})


@lru_cache(maxsize=16)
def model_parameters(shape: ModelShape) -> tuple[ModelParameter, ...]:
    """Every parameter of Transformers' model, in its order: experts of a layer are fused."""
    family = family_of(shape)
    found: dict[str, ModelParameter] = {}
    for row in family.table(shape):
        if row.kind not in CARRIED:
            name, size = _fuse(row, shape) if EXPERT in row.name else (row.name, row.shape)
            name = in_transformers(family, name)
            found[name] = ModelParameter(name, size, row.kind)
    return tuple(found.values())


def _fuse(row: StoredTensor, shape: ModelShape) -> tuple[str, tuple[int, ...]]:
    """Name and shape of the 3-D tensor that holds a projection of all experts of a layer."""
    module, _, part = row.name.removesuffix(".weight").rpartition(f".{EXPERT}.")
    fused = next(name for name, parts in FUSED.items() if part in parts)
    rows, columns = row.shape
    return f"{module}.{fused}", (shape.num_experts, len(FUSED[fused]) * rows, columns)


def fused_shapes(shape: ModelShape) -> dict[str, tuple[int, ...]]:
    """The 3-D tensors of files that store the experts of a layer together, by name."""
    return dict(_fuse(row, shape) for row in family_of(shape).table(shape) if EXPERT in row.name)


@dataclass(frozen=True, slots=True)
class Counts:
    """Parameters of a model; tied embeddings count once."""

    routed: int  # in routed experts
    dense: int  # all others: these act on every token
    active: int  # that act on one token

    @property
    def total(self) -> int:
        """All parameters."""
        return self.routed + self.dense


@lru_cache(maxsize=16)
def count_parameters(shape: ModelShape) -> Counts:
    """Add the table up."""
    parameters = model_parameters(shape)
    routed = sum(one.numel for one in parameters if one.kind is Kind.EXPERT)
    dense = sum(one.numel for one in parameters) - routed
    acting = routed // shape.num_experts * shape.moe_topk if routed else 0
    return Counts(routed=routed, dense=dense, active=dense + acting)


@lru_cache(maxsize=128)
def count_kind(shape: ModelShape, kind: Kind) -> int:
    """Parameters of a kind, in all layers; 0 where a model has none."""
    return sum(one.numel for one in model_parameters(shape) if one.kind is kind)


@lru_cache(maxsize=4096)
def kind_of(family: Family, name: str) -> Kind:
    """What a parameter is for, by its name in Transformers' model, in the engine's, or adapted."""
    released = to_released(family, name).partition(".lora_")[0]
    kinds = _kinds_of_modules(family)
    module = _without_layer(released.removesuffix(".weight").removesuffix(".bias"))
    while module not in kinds:  # parameters of experts lie below the module of all
        module, found, _ = module.rpartition(".")
        if not found:
            return Kind.EXTRA
    return kinds[module]


@lru_cache
def _kinds_of_modules(family: Family) -> dict[str, Kind]:
    """The kind of each module that has parameters, by its name without the layer's."""
    shape = next(iter(family.presets.values()))
    kinds: dict[str, Kind] = {}
    for row in family.table(shape):
        if row.kind is Kind.EXTRA:
            continue  # its names are those of other layers
        module = row.name.partition(f".{EXPERT}")[0].removesuffix(".weight").removesuffix(".bias")
        kinds[_without_layer(module)] = row.kind
    kinds["lm_head"] = Kind.HEAD  # tied or not
    return kinds


def _without_layer(name: str) -> str:
    return name.split(".", 3)[3] if name.startswith(LAYERS) else name


def layer_rows(shape: ModelShape, name_in_layer: str) -> list[StoredTensor]:
    """The tensors of all layers that have this released name there."""
    return _rows_by_name(shape)[name_in_layer]


@lru_cache(maxsize=16)
def _rows_by_name(shape: ModelShape) -> dict[str, list[StoredTensor]]:
    found: dict[str, list[StoredTensor]] = {}
    for row in family_of(shape).table(shape):
        if row.kind is not Kind.EXTRA:
            found.setdefault(_without_layer(row.name), []).append(row)
    return found


def modules_of_kind(shape: ModelShape, kind: Kind) -> list[str]:
    """Released names, without the layer's, of the modules of a kind; [] where a model has none."""
    return [name for name, found in _kinds_of_modules(family_of(shape)).items() if found is kind]
