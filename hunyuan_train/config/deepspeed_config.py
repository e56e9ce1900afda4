"""Fills a DeepSpeed file with the run's own numbers.

What belongs to the run (batch sizes, clipping, precision, expert-parallel size, model family) is
"auto" in the file. A value written there must say the same as the run; otherwise the run stops
before it starts. Keys that are not ours pass through to DeepSpeed unread.
"""

import json
from copy import deepcopy
from typing import Any

from hunyuan_train.config.resolved_run import ResolvedRun
from hunyuan_train.errors import ConfigError
from hunyuan_train.plain_text import make_plain_name

# What the engine's layer of experts does faster on GPUs, and leaves off by itself; a file that sets
# one of them keeps it. The selftest compares them with plain training where there are GPUs.
# Not among them is gate_up_impl "fused", one product for gate and up: it lays both weights together
# in each forward pass (0.8 GB moved, 0.4 GB held in a layer of A13B on eight ranks), and spares the
# sum of two gradients of rows. By the rates of `plan` that pays from a skew of 2 on, not before.
FAST_EXPERTS = {
    "async_split_plan": True,  # numbers of rows travel while rows are sorted
    "combine_impl": "fused_weighted_sum",  # a token's rows summed in one kernel
}

# Hugging Face's Trainer derives these from the hidden size; left out, DeepSpeed's defaults hold.
DROPPED_WHEN_AUTO = (
    "reduce_bucket_size",
    "allgather_bucket_size",
    "stage3_prefetch_bucket_size",
    "stage3_param_persistence_threshold",
    "sub_group_size",
)


def build_deepspeed_config(run: ResolvedRun) -> dict[str, Any]:
    """The dictionary that the engine is given.

    Raises:
        ConfigError: the file holds a number that differs from the run's.
    """
    content, path = deepcopy(run.engine), run.engine_path
    train, optimizer = run.config.train, run.optimizer
    rows = train.per_device_train_batch_size
    owned: dict[tuple[str, ...], tuple[str, Any]] = {
        ("train_batch_size",): (
            "the global batch size",
            rows * train.gradient_accumulation_steps * run.num_ranks,
        ),
        ("train_micro_batch_size_per_gpu",): ("per_device_train_batch_size", rows),
        ("gradient_accumulation_steps",): (
            "gradient_accumulation_steps",
            train.gradient_accumulation_steps,
        ),
        ("gradient_clipping",): ("max_grad_norm", run.config.optimizer.max_grad_norm),
        ("bf16", "enabled"): ("bf16", run.is_bf16),
        ("fp16", "enabled"): ("fp16", False),
    }
    if optimizer.shares_masters:
        for flag in ("bf16_master_weights_and_grads", "bf16_optimizer_states"):
            owned["bf16", flag] = (f"optimizer {optimizer.name}", True)
    if run.splits_experts:
        owned["expert_parallel", "autoep_size"] = ("expert_parallel_size", run.expert_size)
        owned["expert_parallel", "preset_model"] = ("the model's family", run.shape.family)
        content["expert_parallel"] = fast_experts(run) | content["expert_parallel"]
    for keys, (setting, value) in owned.items():
        _put(content, keys, setting=setting, value=value, path=path)
    return _without_auto(content, path)


def fast_experts(run: ResolvedRun) -> dict[str, Any]:
    """The engine's faster ways for a run's `expert_parallel` section, where it can go them.

    They are kernels of CUDA. DeepEP (`comm_backend`), an opt-in, sends and combines rows itself.
    """
    section = run.engine.get("expert_parallel", {})
    is_plain = run.is_on_gpu and section.get("comm_backend", "comm") == "comm"
    return dict(FAST_EXPERTS) if is_plain and run.splits_experts else {}


def settings_of_gpus(run: ResolvedRun) -> list[str]:
    """Settings of the file's expert_parallel section that run on GPUs only."""
    section = run.engine.get("expert_parallel", {})
    return [name for name, value in FAST_EXPERTS.items() if section.get(name) == value]


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
            raise ConfigError(
                f'{path} sets {make_plain_name(key)} to "auto", which nothing fills; write a value'
            )
    return kept
