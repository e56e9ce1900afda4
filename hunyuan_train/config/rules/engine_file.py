"""Rules about the DeepSpeed file: what this run, or the engine itself, cannot do with it."""

import json
from importlib.util import find_spec

from hunyuan_train.config.deepspeed_config import (
    FAST_EXPERTS,
    build_deepspeed_config,
    settings_of_gpus,
)
from hunyuan_train.config.deepspeed_file import offloads_optimizer
from hunyuan_train.config.resolved_run import ResolvedRun
from hunyuan_train.errors import ConfigError

# The engine's own ways to share rows: they refuse split experts, or mix packed documents.
SEQUENCE_KEYS = ("sequence_parallel_size", "data_parallel_size")
DEEPEP, DEEPEP_PACKAGE = "deepep", "deep_ep"


def check_offloading(run: ResolvedRun) -> None:
    """Refuse a file that keeps optimizer states elsewhere than the optimizer does."""
    optimizer = run.optimizer
    if offloads_optimizer(run.engine) != optimizer.is_on_host:
        verb = "does not offload" if optimizer.is_on_host else "offloads"
        raise ConfigError(
            f"optimizer is {optimizer.name}, but {run.engine_path} {verb} the optimizer states "
            "(zero_optimization.offload_optimizer); use --optimizer auto, which follows the file, "
            "or --deepspeed auto, which follows the optimizer"
        )


def check_expert_section(run: ResolvedRun) -> None:
    """Refuse a file that leaves whole what is to be split, or splits experts of a dense model."""
    if run.splits_experts and not run.shape.num_experts:
        raise ConfigError(
            f"{run.engine_path} has an enabled expert_parallel section, but the model "
            f"({run.shape.family}) has no routed experts to split; use --deepspeed auto, or "
            "ds_configs/zero3.json"
        )
    if run.expert_size != 1 and not run.splits_experts:
        raise ConfigError(
            f"expert_parallel_size is {run.expert_size}, but {run.engine_path} has no enabled "
            "expert_parallel section; use --deepspeed ds_configs/zero3_ep.json, or "
            "--expert_parallel_size 1"
        )


def check_expert_kernels(run: ResolvedRun) -> None:
    """Refuse kernels of CUDA where there is none, before the engine does in its first step."""
    if run.is_on_gpu or not run.splits_experts:
        return
    for name in settings_of_gpus(run):
        raise ConfigError(
            f"{run.engine_path} sets expert_parallel.{name} to {json.dumps(FAST_EXPERTS[name])}, "
            "which runs on GPUs only, and this machine has none; delete it: on GPUs it is set by "
            "itself"
        )


def uses_deepep(run: ResolvedRun) -> bool:
    """Whether DeepEP sends tokens to their experts, in place of the engine's own all-to-all."""
    section = run.engine.get("expert_parallel", {})
    is_split = run.splits_experts and run.expert_size > 1
    return is_split and section.get("comm_backend") == DEEPEP


def check_exchange(run: ResolvedRun) -> None:
    """Refuse DeepEP where it cannot run, before the engine does in its first step."""
    if not uses_deepep(run):
        return
    setting = f'{run.engine_path} sets expert_parallel.comm_backend to "{DEEPEP}"'
    if not run.is_on_gpu:
        raise ConfigError(
            f"{setting}, which runs on GPUs only, and this machine has none; delete it"
        )
    if not run.is_bf16:
        raise ConfigError(
            f"{setting} and bf16 is false; DeepEP sends bfloat16 only: use --bf16, or delete it"
        )
    combine_impl = FAST_EXPERTS["combine_impl"]
    if run.engine["expert_parallel"].get("combine_impl") == combine_impl:
        raise ConfigError(
            f"{setting} and expert_parallel.combine_impl to {json.dumps(combine_impl)}; "
            "DeepEP sums experts' outputs itself: delete one of the two"
        )


def check_exchange_package(run: ResolvedRun) -> None:
    """Refuse DeepEP where it is not installed."""
    if uses_deepep(run) and find_spec(DEEPEP_PACKAGE) is None:
        raise ConfigError(
            f'{run.engine_path} sets expert_parallel.comm_backend to "{DEEPEP}", but the package '
            f"{DEEPEP_PACKAGE} is not installed; install it on every host "
            "(https://github.com/deepseek-ai/DeepEP), or delete the setting"
        )


def check_stage(run: ResolvedRun) -> None:
    """Refuse split experts and adapters below stage 3, where the engine gets them wrong."""
    if run.stage == 3:
        return
    if run.splits_experts:
        raise ConfigError(
            f"expert_parallel_size is {run.expert_size}, but {run.engine_path} asks for ZeRO stage "
            f"{run.stage}; below stage 3 the engine clips experts by a norm of their own or "
            "refuses our optimizer: set zero_optimization.stage to 3"
        )
    if run.config.lora.use_lora:
        raise ConfigError(
            f"use_lora is true, but {run.engine_path} asks for ZeRO stage {run.stage}; below stage "
            "3 the engine does not know the names of adapters: set zero_optimization.stage to 3"
        )


def check_gathering(run: ResolvedRun) -> None:
    """Refuse to let the engine gather experts that it has split."""
    section = run.engine["zero_optimization"]
    if run.splits_experts and section.get("stage3_gather_16bit_weights_on_model_save"):
        raise ConfigError(
            f"{run.engine_path} sets stage3_gather_16bit_weights_on_model_save, which the engine "
            "cannot do for split experts; set it to false: the export streams the weights by itself"
        )


def check_sequences(run: ResolvedRun) -> None:
    """Refuse a file that lets the engine share rows."""
    for name in SEQUENCE_KEYS:
        if name in run.engine:
            raise ConfigError(
                f"{run.engine_path} sets {name}, by which the engine would share rows itself: it "
                "refuses to where experts are split, and lets packed documents see each other; "
                "delete it and use --sequence_parallel_size"
            )


def check_numbers(run: ResolvedRun) -> None:
    """Refuse a number that differs from the run's own."""
    build_deepspeed_config(run)
