"""Adapters of routed experts as PEFT stores them and as servers do, from one to the other.

PEFT stores two matrices a layer and parameter: A with rows (expert, rank), B with columns (rank,
expert), one pair for gate and up together. SGLang looks for a pair of matrices by expert and
projection, `experts.7.gate_proj.lora_A.weight`, as adapters had when experts were layers of their
own. Both hold the same numbers, so nothing is rounded on the way.
"""

import json
import logging
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hunyuan_train.checkpoint.errors import CheckpointError
from hunyuan_train.checkpoint.publish import (
    check_room,
    check_sums,
    hash_files,
    publish_summed,
    unfinished_until_published,
)
from hunyuan_train.export.lora_deltas import DESCRIPTION, WEIGHTS, Change, read_changes
from hunyuan_train.export.peft_layout import PREFIX, WRAPPERS
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.families.tensors import FUSED
from hunyuan_train.json_file import read_json_object
from hunyuan_train.model.base_folder import resolve_base

logger = logging.getLogger(__name__)

# Whether each client reads the experts of a layer singly. vLLM's own class of hy_v3 does, too, but
# not what it serves hunyuan_v1_moe with: Transformers' class, for which 0.32 looks for every matrix
# by two names, `gate_proj` and `w1`, and wants both. PEFT's layout goes into both, with the flags
# that `serve` gives.
LAYOUTS = {"peft": False, "vllm": False, "sglang": True}
FUSED_KEY = re.compile(
    r"(?P<experts>.+\.mlp\.experts)(?P<wrapper>(?:\.base_layer)?)\.lora_(?P<matrix>[AB])\.weight"
)
SINGLE_KEY = re.compile(
    r"(?P<experts>.+\.mlp\.experts)\.(?P<expert>\d+)\.(?P<part>gate_proj|up_proj|down_proj)"
    r"\.lora_(?P<matrix>[AB])\.weight"
)
PARAMETERS = {kind: FUSED[f"{kind}_proj"] for kind in WRAPPERS}  # gate_up: gate_proj and up_proj
KIND_OF_WRAPPER = {wrapper: kind for kind, wrapper in WRAPPERS.items()}


def split_experts(tensors: dict[str, Tensor], num_experts: int) -> dict[str, Tensor]:
    """Give every expert and projection matrices of its own.

    Args:
        tensors: in PEFT's layout; A [experts * rank, in], B [out, rank * experts].
        num_experts: of a layer.

    Returns:
        A [rank, in] and B [out, rank] of each; whatever is not of routed experts as it was.
    """
    single: dict[str, Tensor] = {}
    for key, values in tensors.items():
        match = FUSED_KEY.fullmatch(key)
        if match is None:
            single[key] = values
            continue
        parts = PARAMETERS[KIND_OF_WRAPPER[match["wrapper"]]]
        if match["matrix"] == "A":
            by_expert = [(one,) * len(parts) for one in values.chunk(num_experts)]
        else:
            stacked = values.unflatten(1, (-1, num_experts))  # [out, rank, experts]
            by_expert = [one.chunk(len(parts)) for one in stacked.unbind(-1)]
        for expert, pieces in enumerate(by_expert):
            for part, piece in zip(parts, pieces, strict=True):
                name = f"{match['experts']}.{expert}.{part}.lora_{match['matrix']}.weight"
                single[name] = piece.clone(memory_format=torch.contiguous_format)
    return single


def fuse_experts(tensors: dict[str, Tensor], num_experts: int) -> dict[str, Tensor]:
    """The way back; see `split_experts`.

    Args:
        tensors: A [rank, in] and B [out, rank] of each expert and projection, by key.
        num_experts: of a layer.

    Returns:
        A [experts * rank, in] and B [out, rank * experts] of each projection of a layer.

    Raises:
        CheckpointError: gate and up of an expert have other matrices A, or an expert has none:
            PEFT's layout has no place for such an adapter.
    """
    fused = {key: values for key, values in tensors.items() if not SINGLE_KEY.fullmatch(key)}
    matches = [match for key in tensors if (match := SINGLE_KEY.fullmatch(key))]
    for module in sorted({match["experts"] for match in matches}):
        for kind, parts in PARAMETERS.items():
            pairs = [
                _join_parts(tensors, f"{module}.{expert}", parts) for expert in range(num_experts)
            ]
            key = f"{module}{WRAPPERS[kind]}.lora_"
            found = [pair for pair in pairs if pair is not None]
            if not found:
                continue
            if len(found) < num_experts:
                raise CheckpointError(
                    f"{module} has adapters on the {' and '.join(parts)} of {len(found)} of "
                    f"{num_experts} experts, and PEFT's layout holds all of a layer or none"
                )
            fused[f"{key}A.weight"] = torch.cat([one for one, _ in found])
            columns = torch.stack([one for _, one in found], dim=-1)  # [out, rank, experts]
            fused[f"{key}B.weight"] = columns.flatten(1).contiguous()
    return fused


def _join_parts(
    tensors: dict[str, Tensor], expert: str, parts: tuple[str, ...]
) -> tuple[Tensor, Tensor] | None:
    """A [rank, in] and B [out, rank] that an expert's projections share; None without any.

    Raises:
        CheckpointError: they do not share A, or one of them has no adapter.
    """
    keys = [[f"{expert}.{part}.lora_{matrix}.weight" for part in parts] for matrix in "AB"]
    known = [key in tensors for row in keys for key in row]
    if not any(known):
        return None
    first, *others = (tensors.get(key) for key in keys[0])
    if not all(known) or first is None or any(not torch.equal(first, one) for one in others):  # type: ignore[arg-type]
        raise CheckpointError(
            f"{expert} has matrices of its own for each of {', '.join(parts)}, and PEFT's layout "
            "has one A for all of them; keep the layout, or merge the adapter"
        )
    return first, torch.cat([tensors[key] for key in keys[1]])


def describe(settings: dict[str, Any], tensors: dict[str, Tensor], layout: str) -> dict[str, Any]:
    """adapter_config.json for a layout: what is adapted, by the names that its readers know."""
    names = {key.removeprefix(PREFIX).partition(".lora_")[0] for key in tensors}
    parameters = [f"mlp.experts.{kind}_proj" for kind in PARAMETERS]
    others = [one for one in settings.get("target_parameters") or [] if one not in parameters]
    has_experts = any(".mlp.experts" in name for name in names)
    modules = {one.rpartition(".")[2] for one in names if ".mlp.experts" not in one}
    modules -= {one.rpartition(".weight")[0].rpartition(".")[2] for one in others}
    if LAYOUTS[layout] and has_experts:
        modules |= {part for parts in PARAMETERS.values() for part in parts}
    elif has_experts:
        others = [*parameters, *others]
    return settings | {"target_modules": sorted(modules), "target_parameters": others or None}


def convert_adapter(base: Path, adapter: Path, folder: Path, layout: str) -> None:
    """Write an adapter in the layout of another client; whole or absent.

    Args:
        base: the model folder that it belongs on.
        adapter: a PEFT folder, in any of the layouts.
        folder: the final folder.
        layout: a key of `LAYOUTS`.

    Raises:
        CheckpointError: it does not belong on the base, is a DoRA (which no server takes), or has
            no place in the layout.
    """
    shape = resolve_base(str(base.absolute()))
    before = read_changes(adapter, shape)
    settings = read_json_object(adapter / DESCRIPTION)
    if settings.get("use_dora") and layout != "peft":
        raise CheckpointError(
            f"{adapter} is a DoRA, which {layout} does not load; merge it into its base with "
            "`hunyuan-train merge`"
        )
    check_sums([adapter / WEIGHTS, adapter / DESCRIPTION])
    tensors = load_file(adapter / WEIGHTS)
    is_single = any(SINGLE_KEY.fullmatch(key) for key in tensors)
    if LAYOUTS[layout] != is_single:
        change = split_experts if LAYOUTS[layout] else fuse_experts
        tensors = change(tensors, shape.num_experts)
    check_room(folder, sum(one.nbytes for one in tensors.values()))
    with unfinished_until_published(folder) as unfinished:
        weights = unfinished / WEIGHTS
        weights.touch()
        mode = weights.stat().st_mode  # as umask says; safetensors writes for the owner alone
        save_file(tensors, weights, metadata={"format": "pt"})
        weights.chmod(mode)
        text = json.dumps(describe(settings, tensors, layout), indent=2, sort_keys=True)
        (unfinished / DESCRIPTION).write_text(text + "\n", encoding="utf-8")
        _check_same(before, read_changes(unfinished, shape), shape, folder)
        digests = hash_files([weights, unfinished / DESCRIPTION], lambda _: None)
        publish_summed(folder, digests)
    logger.info("wrote %s in the layout of %s: %d tensors", folder, layout, len(tensors))


def _check_same(
    before: dict[str, Change], after: dict[str, Change], shape: ModelShape, folder: Path
) -> None:
    """Read the written adapter as a merge would, and compare what it changes, and by how much.

    Raises:
        CheckpointError: it is not the same.
    """
    scalings = {name: (one.scaling, one.rank) for name, one in before.items()}
    if {name: (one.scaling, one.rank) for name, one in after.items()} != scalings:
        raise CheckpointError(
            f"{folder} would change other tensors of the {shape.family} than the adapter that it "
            "was made of; its adapter_config.json has patterns that name single modules: export "
            "the adapter again without them"
        )
