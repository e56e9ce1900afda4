"""Reads a DeepSpeed JSON, and answers what of it decides a run."""

import json
from pathlib import Path
from typing import Any

from hunyuan_train.config.values import quote
from hunyuan_train.errors import ConfigError
from hunyuan_train.json_file import parse_json, read_bytes
from hunyuan_train.shipped import DS_CONFIGS

MAX_BYTES = 1_000_000
DEEPEST = 16
MOST_ELEMENTS = 10**15  # DeepSpeed's documentation writes 1e14 for "never"

# DeepSpeed's own defaults (runtime/zero/config.py), for what a file leaves out.
ZERO_DEFAULTS = {
    "reduce_bucket_size": 500_000_000,
    "sub_group_size": 1_000_000_000,
    "stage3_param_persistence_threshold": 100_000,
    "stage3_max_live_parameters": 1_000_000_000,
    "stage3_max_reuse_distance": 1_000_000_000,
    "stage3_prefetch_bucket_size": 50_000_000,
}


def choose_file(*, is_split: bool, is_offloaded: bool) -> str:
    """The file of `ds_configs/` that `--deepspeed auto` stands for.

    Args:
        is_split: whether experts go through the engine's expert-parallel layer.
        is_offloaded: whether optimizer states live in host memory.
    """
    name = "zero3_ep" if is_split else "zero3"
    return str(DS_CONFIGS / f"{name}_offload.json" if is_offloaded else DS_CONFIGS / f"{name}.json")


def read_deepspeed_file(path: str) -> dict[str, Any]:
    """Read a DeepSpeed JSON, refusing the sections that the run itself decides."""
    try:
        content = parse_json(read_bytes(Path(path), max_bytes=MAX_BYTES))
    except FileNotFoundError as error:
        shipped = ", ".join(sorted(f"ds_configs/{file.name}" for file in DS_CONFIGS.glob("*.json")))
        raise ConfigError(f"deepspeed is {path}, which does not exist; choose {shipped}") from error
    except (ValueError, OSError) as error:
        raise ConfigError(f"deepspeed is {path}, which is not a JSON file: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"deepspeed is {path}, which holds no JSON object")
    _check_depth(content, path)
    _check_sections(content, path)
    _check_numbers(content, path)
    return content


def _check_depth(content: Any, path: str) -> None:
    """Refuse nesting that whatever copies the file would end in."""
    level = [content]
    for _ in range(DEEPEST):
        inner = [list(one.values()) if isinstance(one, dict) else one for one in level]
        level = [item for items in inner if isinstance(items, list) for item in items]
    if level:
        raise ConfigError(
            f"deepspeed is {path}, which is nested more than {DEEPEST} levels deep; DeepSpeed's "
            "sections are two or three"
        )


def _check_numbers(content: dict[str, Any], path: str) -> None:
    """Refuse sizes of the ZeRO section that are none; the plan computes with them."""
    for name in ZERO_DEFAULTS:
        written = content.get("zero_optimization", {}).get(name, "auto")
        try:
            is_size = written == "auto" or 0 <= float(written) <= MOST_ELEMENTS
        except (TypeError, ValueError, OverflowError):
            is_size = False
        if not is_size:
            raise ConfigError(
                f"{path} sets zero_optimization.{name} to {quote(written)}; it takes a number from "
                f'0 to {MOST_ELEMENTS:,}, or "auto"'
            )


def _check_sections(content: dict[str, Any], path: str) -> None:
    for name in ("zero_optimization", "expert_parallel", "bf16", "fp16"):
        if not isinstance(content.get(name, {}), dict):
            raise ConfigError(
                f"{path} sets {name} to {json.dumps(content[name])}; it is a section: {{...}}"
            )
    stage = content.get("zero_optimization", {}).get("stage", 0)
    if stage not in (2, 3):
        raise ConfigError(
            f"{path} sets zero_optimization.stage to {json.dumps(stage)}; it must be 2 or 3, which "
            "are the stages that are tested against plain training"
        )
    for section, flags in {
        "optimizer": "--optimizer, --learning_rate, --weight_decay and --adam_beta1",
        "scheduler": "--lr_scheduler_type, --warmup_ratio and --min_lr",
    }.items():
        if section in content:
            raise ConfigError(
                f"{path} has a section {section}, which this run would not follow; delete it and "
                f"use {flags}"
            )


def zero_stage(content: dict[str, Any]) -> int:
    """The ZeRO stage of a DeepSpeed file; DeepSpeed's own default is 0."""
    return int(content.get("zero_optimization", {}).get("stage", 0))


def offloads_optimizer(content: dict[str, Any]) -> bool:
    """Whether a DeepSpeed file keeps optimizer states in host memory."""
    return _offloads(content, "offload_optimizer")


def offloads_parameters(content: dict[str, Any]) -> bool:
    """Whether a DeepSpeed file keeps weights in host memory."""
    return _offloads(content, "offload_param")


def _offloads(content: dict[str, Any], key: str) -> bool:
    section = content.get("zero_optimization", {}).get(key) or {}
    if not isinstance(section, dict):
        raise ConfigError(
            f"zero_optimization.{key} is {json.dumps(section)}; it is a section, such "
            'as {"device": "cpu", "pin_memory": true}'
        )
    return section.get("device", "none") != "none"


def splits_experts(content: dict[str, Any]) -> bool:
    """Whether a DeepSpeed file turns expert parallelism on."""
    return bool(content.get("expert_parallel", {}).get("enabled", False))


def has_bf16_masters(content: dict[str, Any]) -> bool:
    """Whether a DeepSpeed file keeps the optimizer's copy of the weights in bfloat16."""
    return bool(content.get("bf16", {}).get("bf16_master_weights_and_grads", False))


def zero_number(content: dict[str, Any], name: str) -> int:
    """A number of a DeepSpeed file's ZeRO section, or the engine's default."""
    written = content.get("zero_optimization", {}).get(name, "auto")
    return ZERO_DEFAULTS[name] if written == "auto" else int(float(written))
