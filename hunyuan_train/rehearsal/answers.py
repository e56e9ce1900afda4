"""What operators say whose result depends on values, of which fake tensors have none.

A branch or a shape then follows from what is said here. Each answer is counted.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten

SELECTED_PART = 8  # an eighth of a mask's elements is taken to be true
READ = "values that the CPU reads: 1, or false"
COMPARED = "comparisons: equal, or false"
SELECTED = "positions in masks: an eighth of their elements"
COUNTED = "numbers of each value: as many as asked for"
DISTINCT = "values that occur: each once"


def answer(
    operator: Any, name: str, arguments: Any, options: dict[str, Any], note: Callable[[str], None]
) -> Any:
    """The result of an operator; NotImplemented: torch knows its shape.

    Args:
        operator: of the dispatcher.
        name: of it, without its namespace.
        arguments: its own.
        options: by name.
        note: counts an answer.
    """
    if operator is aten._local_scalar_dense.default:
        note(READ)
        dtype = arguments[0].dtype
        return False if dtype == torch.bool else 1.0 if dtype.is_floating_point else 1
    if name in ("is_nonzero", "equal", "allclose"):
        note(COMPARED)
        return name != "is_nonzero"
    if name in RESULTS:
        what, make = RESULTS[name]
        note(what)
        return make(arguments, options)
    if name == "index" and is_mask(arguments[1][0]) and arguments[1][0].dim() == 1:
        note(SELECTED)
        source, mask = arguments[0], arguments[1][0]
        return source.new_empty((part_of(mask), *source.shape[1:]))
    return NotImplemented


def positions(arguments: Any, _: dict[str, Any]) -> Tensor:
    """`nonzero`: [selected, dims], int64."""
    source: Tensor = arguments[0]
    return source.new_empty((part_of(source), source.dim()), dtype=torch.int64)


def selected(arguments: Any, _: dict[str, Any]) -> Tensor:
    """`masked_select`: [selected]."""
    source: Tensor = arguments[0]
    return source.new_empty((part_of(arguments[1]),))


def numbers(arguments: Any, options: dict[str, Any]) -> Tensor:
    """`bincount`: as many bins as its caller counts on, [bins], int64 or as its weights."""
    source, *others = arguments
    weights = options.get("weights", others[0] if others else None)
    least = options.get("minlength", others[1] if len(others) > 1 else 0)
    dtype = torch.int64 if weights is None else weights.dtype
    bins: Tensor = source.new_empty((max(1, least),), dtype=dtype)
    return bins


def distinct(arguments: Any, _: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """`unique`, of all elements: values, where each of them went, and how often each occurs."""
    source: Tensor = arguments[0]
    values = torch.empty_like(source.flatten())
    places = torch.empty_like(source, dtype=torch.int64)
    return values, places, torch.empty_like(values, dtype=torch.int64)


def distinct_slices(arguments: Any, _: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """`unique` along a dim: the same of its slices."""
    source, dim = arguments[0], arguments[1]
    places = source.new_empty((source.shape[dim],), dtype=torch.int64)
    return torch.empty_like(source), places, torch.empty_like(places)


RESULTS: dict[str, tuple[str, Callable[[Any, dict[str, Any]], Any]]] = {
    "nonzero": (SELECTED, positions),
    "masked_select": (SELECTED, selected),
    "bincount": (COUNTED, numbers),
    "_unique2": (DISTINCT, distinct),
    "unique_consecutive": (DISTINCT, distinct),
    "unique_dim": (DISTINCT, distinct_slices),
}
# Operators whose result the CPU must see to know a shape or a branch.
WAITING = frozenset({*RESULTS, "equal", "is_nonzero", "allclose"})


def is_mask(value: Any) -> bool:
    """Whether an index is a mask on the GPU, whose true elements the CPU must count."""
    is_on_device = isinstance(value, Tensor) and value.device.type == "cuda"
    return is_on_device and value.dtype in (torch.bool, torch.uint8)


def part_of(mask: Tensor) -> int:
    """How many elements of a mask are taken to be true."""
    return max(1, mask.numel() // SELECTED_PART)
