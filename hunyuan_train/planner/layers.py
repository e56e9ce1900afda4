"""The modules of a model as the engine's hooks meet them, with the weights that it gathers."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hunyuan_train.families.shape import ModelShape
from hunyuan_train.families.tables import ModelParameter, model_parameters
from hunyuan_train.families.tensors import Kind
from hunyuan_train.planner.parameters import Parameter


@dataclass(frozen=True, eq=False, slots=True)
class Weight:
    """A parameter of one layer that is gathered where it is used."""

    numel: int  # whole; of split experts, of this rank's
    num_partitions: int
    is_trained: bool

    @property
    def buffered(self) -> int:
        """Elements that are gathered; what no other rank has a part of is used where it lies."""
        return self.numel if self.num_partitions > 1 else 0


@dataclass(frozen=True, eq=False, slots=True)
class Module:
    """A module with hooks."""

    weights: tuple[Weight, ...] = ()
    children: tuple["Module", ...] = ()
    is_layer: bool = False
    is_saved: bool = False  # autograd saves the memory of its weights, and not the parameters
    has_gradient: bool = True  # of its output
    num_runs: int = 1  # of its children, one after the other

    @property
    def numel(self) -> int:
        """Elements of its own weights."""
        return sum(one.numel for one in self.weights)


@dataclass(frozen=True, slots=True)
class Layer:
    """A decoder layer, and the modules in it that one looks for."""

    module: Module
    core: Module  # routed experts, or the dense MLP
    norm: Module  # before that


@dataclass(frozen=True, slots=True)
class Model:
    """The whole model, and the modules that one looks for."""

    root: Module
    head: Module
    layers: tuple[Layer, ...]


def build_model(
    shape: ModelShape,
    parameters: Sequence[Parameter],
    *,
    persistent: int,
    num_chunks: int,
    is_shared_first: bool,
) -> Model:
    """The modules of a model.

    Args:
        shape: of the model.
        parameters: all of them, as this rank sees them.
        persistent: elements up to which a parameter stays gathered.
        num_chunks: in which a layer's experts run.
        is_shared_first: whether shared experts run before the routed ones, and not behind them.
    """
    named: defaultdict[str, list[Parameter]] = defaultdict(list)
    for one in parameters:
        if one.numel > persistent:
            named[name_in_layer(one)].append(one)
    rows: defaultdict[int, list[ModelParameter]] = defaultdict(list)
    outside = {Kind.EMBEDDING: (), Kind.HEAD: ()} | {
        one.kind: make_weights(named[one.name]) for one in parameters if not one.in_layers
    }
    for row in model_parameters(shape):
        if row.layer is not None:
            rows[row.layer].append(row)
    layers = tuple(
        build_layer(rows[index], named, num_chunks, is_shared_first=is_shared_first)
        for index in sorted(rows)
    )
    head = Module(outside[Kind.HEAD] or outside[Kind.EMBEDDING])
    rope, norm = Module(has_gradient=False), Module()
    inside = (one.module for one in layers)
    body = Module(children=(Module(outside[Kind.EMBEDDING]), rope, *inside, norm))
    return Model(Module(children=(body, head)), head, layers)


def name_in_layer(parameter: Parameter) -> str:
    """Its name without the layer's; adapters have no other."""
    name = parameter.name
    if parameter.in_layers and name.startswith("model.layers."):
        return name.split(".", 3)[3]
    return name


def make_weights(parameters: Sequence[Parameter]) -> tuple[Weight, ...]:
    """Those of one layer."""
    return tuple(Weight(one.numel, one.num_partitions, one.is_trained) for one in parameters)


def build_layer(
    rows: Sequence[ModelParameter],
    named: Mapping[str, Sequence[Parameter]],
    num_chunks: int,
    *,
    is_shared_first: bool,
) -> Layer:
    """A decoder layer."""

    def linear(row: ModelParameter) -> Module:
        """A linear layer, or with an adapter that one, dropout and two matrices."""
        module = row.name_in_layer.removesuffix(".weight")
        weights = make_weights(named.get(row.name_in_layer, ()))
        adapters = [named.get(f"{module}.{part}", ()) for part in ("lora_A", "lora_B")]
        if not any(adapters):
            return Module(weights)
        first, second = map(make_weights, adapters)
        # The adapter's layer looks at its first matrix, which the engine takes for a use of it.
        return Module(first, children=(Module(weights), Module(), Module(first), Module(second)))

    def members(kind: Kind) -> list[Module]:
        return [linear(one) for one in rows if one.kind is kind]

    def mlp(kind: Kind) -> list[Module]:
        """An MLP, if there is one: gate, activation, up and down."""
        inside = members(kind)
        return [Module(children=(inside[0], Module(), *inside[1:]))] if inside else []

    *projections, output = members(Kind.ATTENTION)
    norms = [Module() for one in rows if one.kind is Kind.HEAD_NORM]
    attention = Module(children=(*projections, *norms, output))
    if any(one.kind is Kind.ROUTER for one in rows):
        core = build_experts(rows, named)
        router = Module(children=tuple(members(Kind.ROUTER)))
        shared = mlp(Kind.SHARED_EXPERT)
        inside = (router, *shared, core) if is_shared_first else (router, core, *shared)
        block = Module(children=inside, num_runs=num_chunks)
    else:
        block = core = mlp(Kind.MLP)[0]
    norm = Module()
    return Layer(Module(children=(Module(), attention, norm, block), is_layer=True), core, norm)


def build_experts(
    rows: Sequence[ModelParameter], named: Mapping[str, Sequence[Parameter]]
) -> Module:
    """The routed experts of a layer, with their adapters."""
    names = [one.name_in_layer for one in rows if one.kind is Kind.EXPERT]
    own = [one for name in names for one in named.get(name, ())]
    adapters = [
        one
        for name, members in named.items()
        for one in members
        if one.kind is Kind.EXPERT and name not in names
    ]
    return Module(make_weights([*own, *adapters]), is_saved=True)
