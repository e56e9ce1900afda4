"""What a model family is to the rest of the package: data and small functions.

A family is a module of this folder that makes one `Family`, from its config.json to its adapters.
Everything else asks for tensors by kind. `registry.py` lists the families; what follows from a
family's table for any of them is in `tables.py`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from hunyuan_train.families.shape import ModelShape
from hunyuan_train.families.tensors import Kind, StoredTensor

Table = Callable[[ModelShape], list[StoredTensor]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Router:
    """How a layer chooses experts, and where the router's projection lies in its MoE block."""

    module: str  # of the block; gives (logits, weights, experts)
    projection: str  # the linear layer in it; "" where it has the weight itself
    scores: Literal["softmax", "sigmoid"]
    is_normalised: bool  # the chosen scores sum to 1


@dataclass(frozen=True, kw_only=True, slots=True)
class MoeBlock:
    """A block of routed experts, as Transformers names its parts."""

    block: str  # module of a layer
    router: Router
    experts_class: str  # beside the model's class; it is built without memory, see parallel/
    shared_expert: str  # module of the block; "" where there is none
    num_experts_field: str  # of config.json
    top_k_field: str


@dataclass(frozen=True, slots=True)
class Parsers:
    """What a server calls its parsers of what a model writes; "" where it has none."""

    reasoning: str = ""
    tools: str = ""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)  # one object each, found by name
class Family:
    """One architecture."""

    name: str  # Transformers' model type
    model_types: tuple[str, ...]  # that config.json may state
    parse: Callable[[Mapping[str, Any], str], ModelShape]  # config.json and its name, for errors
    native_config: Callable[[ModelShape], dict[str, Any]]  # fields for Transformers' config class
    served_config: Callable[[ModelShape], dict[str, Any]]  # what servers ask for besides
    # Every tensor in the order of Transformers' model, under its released name. Routed experts
    # stand once for all, with {expert} in the name and one expert's shape.
    table: Table
    presets: Mapping[str, ModelShape]
    parsers: Mapping[str, Parsers]  # by the engine's name; engines that are not named have none
    moe: MoeBlock | None = None
    # Files from which llama.cpp's converter takes the vocabulary of this family; none: llama.cpp
    # does not have the architecture.
    gguf_vocabularies: tuple[str, ...] = ()
    # Parts of names that others spell otherwise: released, other.
    in_transformers: tuple[tuple[str, str], ...] = ()
    in_engine: tuple[tuple[str, str], ...] = ()
    carries_config: bool = False  # an export has the base's config.json, field by field
    # Kinds whose adapters PEFT must be told of by parameter: it sends their module names elsewhere.
    peft_by_parameter: tuple[Kind, ...] = ()
