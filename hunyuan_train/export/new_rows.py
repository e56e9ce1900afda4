"""Rows of new tokens that a PEFT adapter brings along, and a base that has them, without torch."""

from dataclasses import dataclass, replace
from pathlib import Path

from hunyuan_train.checkpoint.errors import CheckpointError
from hunyuan_train.families.registry import family_of
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.families.tables import kind_of, released_tensors
from hunyuan_train.families.tensors import VOCABULARY
from hunyuan_train.json_file import read_json_object
from hunyuan_train.model.safetensors_header import TensorLocation

PREFIX = "base_model.model."
NEW_ROWS = ".token_adapter.trainable_tokens_delta"  # behind the name of a module
INDICES = "trainable_token_indices"  # of adapter_config.json


@dataclass(frozen=True, slots=True)
class NewRows:
    """Rows that take the place of a matrix's own, or stand behind them."""

    location: TensorLocation  # [rows, hidden]
    indices: tuple[int, ...]  # of the rows within the matrix


def find_new_rows(
    locations: dict[str, TensorLocation], settings: Path, shape: ModelShape
) -> dict[str, NewRows]:
    """The rows of each embedding or head, by its released name.

    Args:
        locations: of an adapter's tensors.
        settings: its adapter_config.json.
        shape: of the base.

    Raises:
        CheckpointError: rows that do not belong to this base.
    """
    family, tensors = family_of(shape), released_tensors(shape)
    stated = read_json_object(settings).get(INDICES) or {}
    found: dict[str, NewRows] = {}
    for name, location in locations.items():
        if not name.endswith(NEW_ROWS):
            continue
        module = name.removesuffix(NEW_ROWS).removeprefix(PREFIX)
        indices = stated.get(module.rpartition(".")[2]) if isinstance(stated, dict) else None
        rows = tuple(indices) if isinstance(indices, list) else ()
        matrix = tensors.get(f"{module}.weight")
        if matrix is None or kind_of(family, module) not in VOCABULARY:
            raise CheckpointError(
                f"{location.file} has rows of new tokens for {module}, which the base has not as a "
                "matrix of its own; take the base that the adapter was trained on"
            )
        if not _are_ids(rows) or location.shape != (len(rows), matrix.shape[1]):
            raise CheckpointError(
                f"{settings} and {location.file} disagree on the rows of new tokens of {module}, "
                f"or the base has rows of {matrix.shape[1]}; export the adapter again, or take the "
                "base that it was trained on"
            )
        found[matrix.name] = NewRows(location, rows)
    return found


def _are_ids(rows: tuple[object, ...]) -> bool:
    """Whether these are ids, each once."""
    return len(set(rows)) == len(rows) and all(type(one) is int and one >= 0 for one in rows)


def grow(shape: ModelShape, rows: dict[str, NewRows]) -> ModelShape:
    """The base's shape with room for the rows.

    Raises:
        CheckpointError: between the base's rows and these some would be missing.
    """
    known = shape.vocab_size
    beyond = {tuple(sorted(i for i in one.indices if i >= known)) for one in rows.values()}
    if not beyond or beyond == {()}:
        return shape
    last = max(max(one, default=known - 1) for one in beyond)
    if beyond != {tuple(range(known, last + 1))}:
        raise CheckpointError(
            f"the adapter has rows of new tokens behind row {known - 1}, the last of the base, "
            "and not all from there on; take the base that it was trained on"
        )
    return replace(shape, vocab_size=last + 1)
