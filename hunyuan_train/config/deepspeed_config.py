"""Fills a DeepSpeed JSON with the run's own numbers.

A number that belongs to the run (batch sizes, clipping, precision, expert-parallel size) is "auto"
in the file. One written there must say the same as the run; otherwise the run stops before it
starts. Keys that are not ours pass through to DeepSpeed unread.
"""

import json
from pathlib import Path
from typing import Any

from hunyuan_train.config.schema import RunConfig
from hunyuan_train.errors import ConfigError
from hunyuan_train.optim.records import find_optimizer
from hunyuan_train.shipped import DS_CONFIGS

# Hugging Face's Trainer derives these from the hidden size; left out, DeepSpeed's defaults hold.
DROPPED_WHEN_AUTO = (
    "reduce_bucket_size",
    "allgather_bucket_size",
    "stage3_prefetch_bucket_size",
    "stage3_param_persistence_threshold",
    "sub_group_size",
)


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
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        shipped = ", ".join(sorted(f"ds_configs/{file.name}" for file in DS_CONFIGS.glob("*.json")))
        raise ConfigError(f"deepspeed is {path}, which does not exist; choose {shipped}") from error
    except (ValueError, OSError) as error:
        raise ConfigError(f"deepspeed is {path}, which is not a JSON file: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"deepspeed is {path}, which holds no JSON object")
    _check_sections(content, path)
    return content


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


def build_deepspeed_config(config: RunConfig, *, world_size: int, is_bf16: bool) -> dict[str, Any]:
    """The dictionary that the engine is given.

    Args:
        config: resolved: its deepspeed file, expert-parallel size and optimizer are not "auto".
        world_size: processes on all machines.
        is_bf16: whether weights and activations are bfloat16.

    Raises:
        ConfigError: the file holds a number that differs from the run's.
    """
    path = config.parallel.deepspeed
    content = read_deepspeed_file(path)
    train = config.train
    batch_size = train.per_device_train_batch_size * train.gradient_accumulation_steps * world_size
    owned: dict[tuple[str, ...], tuple[str, Any]] = {
        ("train_batch_size",): ("the global batch size", batch_size),
        ("train_micro_batch_size_per_gpu",): (
            "per_device_train_batch_size",
            train.per_device_train_batch_size,
        ),
        ("gradient_accumulation_steps",): (
            "gradient_accumulation_steps",
            train.gradient_accumulation_steps,
        ),
        ("gradient_clipping",): ("max_grad_norm", config.optimizer.max_grad_norm),
        ("bf16", "enabled"): ("bf16", is_bf16),
        ("fp16", "enabled"): ("fp16", False),
    }
    optimizer = find_optimizer(config.optimizer.optimizer)
    if optimizer.shares_masters:
        for flag in ("bf16_master_weights_and_grads", "bf16_optimizer_states"):
            owned["bf16", flag] = (f"optimizer {optimizer.name}", True)
    if splits_experts(content):
        owned["expert_parallel", "autoep_size"] = (
            "expert_parallel_size",
            config.parallel.expert_parallel_size,
        )
    for keys, (setting, value) in owned.items():
        _put(content, keys, setting=setting, value=value, path=path)
    return _without_auto(content, path)


def _put(
    content: dict[str, Any], keys: tuple[str, ...], *, setting: str, value: Any, path: str
) -> None:
    """Write one of the run's numbers, unless the file already says another."""
    section = content
    for key in keys[:-1]:
        section = section.setdefault(key, {})
    written = section.get(keys[-1], "auto")
    if written not in ("auto", value):
        raise ConfigError(
            f"{path} sets {'.'.join(keys)} to {json.dumps(written)}, but {setting} of this run is "
            f'{json.dumps(value)}; write "auto" there, or change the run'
        )
    section[keys[-1]] = value


def _without_auto(section: dict[str, Any], path: str) -> dict[str, Any]:
    """Drop the "auto" values that have a default, and refuse those that nobody fills."""
    kept: dict[str, Any] = {}
    for key, value in section.items():
        if isinstance(value, dict):
            kept[key] = _without_auto(value, path)
        elif value != "auto":
            kept[key] = value
        elif key not in DROPPED_WHEN_AUTO:
            raise ConfigError(f'{path} sets {key} to "auto", which nothing fills; write a value')
    return kept
