"""A PEFT adapter, read as changes of released tensors: names, sizes and settings, without torch.

Linear layers have matrices A [rank, in] and B [out, rank]. Routed experts, which PEFT adapts as 3-D
parameters, share two matrices a layer and parameter: A with rows (expert, rank), B with columns
(rank, expert). Every released tensor of one expert takes its rows of B @ A from there.
"""

import re
from collections import defaultdict
from dataclasses import dataclass, field
from math import isfinite, sqrt
from pathlib import Path
from typing import Any

from hunyuan_train.checkpoint.errors import CheckpointError
from hunyuan_train.errors import ConfigError
from hunyuan_train.export.companions import list_other_files
from hunyuan_train.export.new_rows import INDICES, NEW_ROWS, NewRows, find_new_rows, grow
from hunyuan_train.families.registry import family_of, read_shape
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.families.tables import kind_of, released_tensors, stored_tensors
from hunyuan_train.families.tensors import Kind, StoredTensor
from hunyuan_train.json_file import read_json_object
from hunyuan_train.model.base_folder import locate_base, resolve_base
from hunyuan_train.model.safetensors_header import TensorLocation, read_header
from hunyuan_train.plain_text import make_plain_name

WEIGHTS, DESCRIPTION = "adapter_model.safetensors", "adapter_config.json"
MATRIX = re.compile(
    r"(?:base_model\.model\.)?(?P<module>.+?)\.(?P<kind>lora_A|lora_B|lora_magnitude_vector)"
    r"(?:\.default)?(?:\.weight)?"
)
EXPERTS = re.compile(r"(?P<layer>.+\.experts)(?:\.base_layer)*")

# Settings that say where adapters are, or how they came to be what they are. A change by any other
# setting that is on could be missed, so those are refused.
UNDERSTOOD = {
    "peft_type", "task_type", "auto_mapping", "base_model_name_or_path", "revision",
    "peft_version", "inference_mode", "r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora",
    "rank_pattern", "alpha_pattern", "target_modules", "target_parameters", "exclude_modules",
    "layers_to_transform", "layers_pattern", "init_lora_weights", "eva_config", "megatron_core",
    "qalora_group_size", INDICES,
}  # fmt: skip
PEFT_ALPHA, PEFT_RANK = 8, 8  # its defaults, for a description that leaves them out
# These first values change the base weights too, so the adapter does not belong on the plain base.
INITS_OF_ANOTHER_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True, slots=True)
class Change:
    """What an adapter does to one released tensor: add scaling * B @ A; DoRA sizes the rows."""

    matrix_a: TensorLocation
    matrix_b: TensorLocation
    magnitude: TensorLocation | None  # [out], the length of each row under DoRA
    scaling: float
    first_row: int = 0  # of the tensor, among the rows of B
    expert: int = 0
    num_experts: int = 1  # that share the matrices

    @property
    def rank(self) -> int:
        """Columns of B that belong to this tensor."""
        return self.matrix_a.shape[0] // self.num_experts


@dataclass(frozen=True, slots=True)
class Merge:
    """A base and what an adapter changes of it, both only located."""

    shape: ModelShape
    weights: dict[str, TensorLocation]
    changes: dict[str, Change]
    others: list[Path]  # files of the base that come along
    new_rows: dict[str, NewRows] = field(default_factory=dict)  # by tensor

    @property
    def has_single_experts(self) -> bool:
        """Whether some experts have matrices of their own, which PEFT knows for all together."""
        family = family_of(self.shape)
        return any(
            change.num_experts < self.shape.num_experts and kind_of(family, name) is Kind.EXPERT
            for name, change in self.changes.items()
        )


def open_merge(base: Path, adapter: Path, *, takes_quantised: bool = False) -> Merge:
    """Check that an adapter belongs on a base, by their headers and settings.

    Args:
        base: a model folder.
        adapter: a PEFT folder.
        takes_quantised: whether the weights of the base may be quantised.

    Raises:
        ConfigError: the base is no whole model.
        CheckpointError: see `read_changes` and `check_inside`.
    """
    is_there = (base / "config.json").is_file()
    shape = resolve_base(str(base)) if is_there else read_shape(base)
    if shape.stored_as and not takes_quantised:
        raise ConfigError(
            f"base is {base}, whose weights are quantised ({shape.stored_as}), which is not "
            "changed here; give the model in bfloat16"
        )
    weights = locate_base(base, shape)
    changes = read_changes(adapter, shape)
    rows = find_new_rows(read_header(adapter / WEIGHTS), adapter / DESCRIPTION, shape)
    if rows and shape.stored_as:
        raise ConfigError(
            f"{adapter} brings new tokens, whose rows are not merged into a quantised base such as "
            f"{base}; merge into the model in bfloat16"
        )
    return Merge(grow(shape, rows), weights, changes, list_other_files(base), rows)


def read_changes(folder: Path, shape: ModelShape) -> dict[str, Change]:
    """Find the released tensors that an adapter changes, by name.

    Raises:
        CheckpointError: no PEFT LoRA adapter, one of a kind that cannot be merged tensor by tensor,
            or one whose matrices do not all belong to this model.
    """
    settings = _read_settings(folder)
    try:
        locations = read_header(folder / WEIGHTS)
    except FileNotFoundError as error:
        pickled = [path.name for path in folder.glob("adapter_model.*") if path.name != WEIGHTS]
        raise CheckpointError(
            f"{folder} holds no {WEIGHTS}"
            + (f", and {pickled[0]} is not read: it can hold code" if pickled else "")
            + "; load the adapter with PEFT where it comes from a source that you trust, and write "
            "it again with save_pretrained"
        ) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / WEIGHTS} cannot be used: {error}") from error
    changes: dict[str, Change] = {}
    strangers = []
    locations = {name: one for name, one in locations.items() if not name.endswith(NEW_ROWS)}
    for module, matrices in _group_by_module(locations).items():
        found = {}
        if _is_adapter(matrices):
            found = _find_tensors(module, matrices, settings, shape)
        changes |= found
        if not found:
            strangers += [f"{module}.{kind}" for kind in matrices]
    whole = [name for name in locations if _is_whole_layer(name, shape)]
    if whole:
        raise CheckpointError(
            f"{folder / WEIGHTS} holds whole weights beside its matrices ({', '.join(whole)}), as "
            "PEFT saves them where they were trained or the vocabulary was resized; these cannot "
            "be merged tensor by tensor: use PEFT's merge_and_unload on a machine that holds the "
            "model"
        )
    if strangers or not changes:
        listed = ", ".join(strangers[:5]) + (", ..." if len(strangers) > 5 else "")
        raise CheckpointError(
            f"{len(strangers)} of {len(locations)} tensors in {folder / WEIGHTS} match nothing in "
            f"the base ({listed}); take the base that the adapter was trained on"
        )
    return changes


def _is_whole_layer(name: str, shape: ModelShape) -> bool:
    """Whether an adapter's tensor is one of the model itself, which would take its place."""
    released = name.removeprefix("base_model.model.").replace(".modules_to_save.default.", ".")
    return released in released_tensors(shape) or released == "lm_head.weight"


def _read_settings(folder: Path) -> dict[str, Any]:
    path = folder / DESCRIPTION
    try:
        settings = read_json_object(path)
        peft_type = settings.get("peft_type")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointError(
            f"{folder} holds no {DESCRIPTION}; give the folder of a PEFT adapter, as RUN/export of "
            "a run with adapters is"
        ) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error}); give the folder of a PEFT adapter"
        ) from error
    if peft_type != "LORA":
        raise CheckpointError(f"{path} has peft_type {peft_type}; only LORA adapters can be merged")
    refused = [
        f"{name}={value!r}"
        for name, value in settings.items()
        if name not in UNDERSTOOD and value not in (None, False, [], {}, "none")
    ]
    if str(settings.get("init_lora_weights")).startswith(INITS_OF_ANOTHER_BASE):
        refused.append(f"init_lora_weights={settings['init_lora_weights']!r}")
    if refused:
        raise CheckpointError(
            f"{path} sets {', '.join(refused)}, which cannot be merged tensor by tensor; use "
            "PEFT's merge_and_unload on a machine that holds the model"
        )
    _check_scaling(settings, path)
    return settings


def _check_scaling(settings: dict[str, Any], path: Path) -> None:
    """Check the settings that decide how large a change is.

    Raises:
        CheckpointError: one that is no number, or a pattern that is none.
    """
    alphas = {"lora_alpha": settings.get("lora_alpha", PEFT_ALPHA)}
    ranks = {"r": settings.get("r", PEFT_RANK)}
    for name, values in (("alpha_pattern", alphas), ("rank_pattern", ranks)):
        patterns = settings.get(name) or {}
        try:
            values |= {f"{name} of {pattern}": value for pattern, value in patterns.items()}
            for pattern in patterns:
                re.compile(pattern)
        except (AttributeError, re.error) as error:
            raise CheckpointError(f"{path} has {name} that cannot be used: {error}") from error
    wrong = [name for name, value in alphas.items() if not _is_number(value)]
    wrong += [name for name, value in ranks.items() if type(value) is not int or value < 1]
    if wrong:
        values = ranks | alphas
        raise CheckpointError(
            f"{path} has {wrong[0]} {values[wrong[0]]!r}, without which nobody knows how large the "
            "adapter's change is; set it to the number that it was trained with"
        )


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and isfinite(value)  # type: ignore[arg-type]


def _group_by_module(
    locations: dict[str, TensorLocation],
) -> dict[str, dict[str, TensorLocation]]:
    """Matrices by the module they adapt and their kind; other tensors stand alone."""
    modules: defaultdict[str, dict[str, TensorLocation]] = defaultdict(dict)
    for name, location in locations.items():
        match = MATRIX.fullmatch(name)
        module, kind = (match["module"], match["kind"]) if match else name.rsplit(".", 1)
        modules[module][kind] = location
    return modules


def _is_adapter(matrices: dict[str, TensorLocation]) -> bool:
    """Whether a module has what an adapter is made of: two matrices, and DoRA's lengths of rows."""
    if not {"lora_A", "lora_B"} <= matrices.keys():
        return False
    matrix_a, matrix_b = matrices["lora_A"], matrices["lora_B"]
    magnitude = matrices.get("lora_magnitude_vector")
    return len(matrix_a.shape) == len(matrix_b.shape) == 2 and (
        magnitude is None or magnitude.shape == matrix_b.shape[:1]
    )


def _find_tensors(
    module: str,
    matrices: dict[str, TensorLocation],
    settings: dict[str, Any],
    shape: ModelShape,
) -> dict[str, Change]:
    """Changes of the released tensors that a module's matrices adapt; none for an unknown module.

    Raises:
        CheckpointError: the base has the module in another size.
    """
    family, num_experts = family_of(shape), shape.num_experts
    released = released_tensors(shape)
    size: tuple[int, ...] = (matrices["lora_B"].shape[0], matrices["lora_A"].shape[1])
    experts = EXPERTS.fullmatch(module)
    if experts:
        parameters = [f"{experts['layer']}.{kind}_proj" for kind in ("gate_up", "down")]
        size = (num_experts, *size)
    else:
        num_experts = 1
        parameters = [f"{module}.weight"]
    for parameter in parameters:
        tensors = stored_tensors(family, parameter, size)
        if all(released.get(tensor.name) == tensor for tensor in tensors):
            target = parameter if experts else module
            return _share_out(matrices, tensors, num_experts, target, settings)
    if any(stored_tensors(family, parameter, size)[0].name in released for parameter in parameters):
        raise CheckpointError(
            f"the adapter's {module} is made for weights of {' x '.join(map(str, size))}, and the "
            "base has others there; take the base that the adapter was trained on"
        )
    return {}


def _share_out(
    matrices: dict[str, TensorLocation],
    tensors: list[StoredTensor],
    num_experts: int,
    target: str,
    settings: dict[str, Any],
) -> dict[str, Change]:
    """Give each released tensor of an adapted parameter its rows of the matrices.

    Raises:
        CheckpointError: the ranks of A and B differ.
    """
    matrix_a, matrix_b = matrices["lora_A"], matrices["lora_B"]
    rank, remainder = divmod(matrix_a.shape[0], num_experts)
    if remainder or matrix_b.shape[1] != matrix_a.shape[0]:
        raise CheckpointError(
            f"the adapter's {target} has matrices of {matrix_a.shape[0]} and {matrix_b.shape[1]} "
            f"ranks for {num_experts} expert(s); it is damaged, export it again"
        )
    stated = _by_pattern(settings, "rank_pattern", target, settings.get("r", PEFT_RANK))
    if rank != stated:
        raise CheckpointError(
            f"the adapter's {target} has rank {rank} for {num_experts} expert(s), and its "
            f"{DESCRIPTION} says {stated}; it is damaged, or of another number of experts: take "
            "the base that the adapter was trained on"
        )
    parts = len(tensors) // num_experts  # gate and up lie in one parameter
    return {
        tensor.name: Change(
            matrix_a=matrix_a,
            matrix_b=matrix_b,
            magnitude=matrices.get("lora_magnitude_vector"),
            scaling=_scaling(settings, target, rank),
            first_row=index % parts * tensor.shape[0],
            expert=index // parts,
            num_experts=num_experts,
        )
        for index, tensor in enumerate(tensors)
    }


def _scaling(settings: dict[str, Any], target: str, rank: int) -> float:
    """Factor on B @ A; alpha may be given for some targets only, as a pattern on their names."""
    alpha = _by_pattern(settings, "alpha_pattern", target, settings.get("lora_alpha", PEFT_ALPHA))
    return float(alpha) / (sqrt(rank) if settings.get("use_rslora") else rank)


def _by_pattern(settings: dict[str, Any], name: str, target: str, otherwise: float) -> float:
    """The first value whose pattern fits a target's name.

    Raises:
        CheckpointError: it is no object of patterns and numbers.
    """
    patterns = settings.get(name)
    patterns = {} if patterns is None else patterns
    if not isinstance(patterns, dict) or any(
        type(value) not in (int, float) for value in (*patterns.values(), otherwise)
    ):
        raise CheckpointError(
            f"{DESCRIPTION} has {make_plain_name(patterns, most=80)} as {name} and "
            f"{make_plain_name(otherwise, most=80)} without one; they must be numbers by pattern, "
            "and a number: export the adapter again"
        )
    try:
        fitting = [n for one, n in patterns.items() if re.fullmatch(rf"(.*\.)?({one})", target)]
    except re.error as error:
        raise CheckpointError(
            f"{DESCRIPTION} has {name} with a pattern that is none ({error}): export the adapter "
            "again"
        ) from error
    return fitting[0] if fitting else otherwise
