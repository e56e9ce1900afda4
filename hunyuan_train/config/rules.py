"""Rules across sections: each is one small function, run before anything heavy starts.

They see a resolved config, so no setting that divides the model is "auto" any more. Rules about
what lies on disk are in `inputs.py`.
"""

import re
from importlib.util import find_spec

from hunyuan_train.config.adapters import (
    adapts_experts,
    adapts_kind,
    check_expert_adapters,
    check_targets,
)
from hunyuan_train.config.deepspeed_config import (
    build_deepspeed_config,
    has_bf16_masters,
    offloads_optimizer,
    offloads_parameters,
    read_deepspeed_file,
    splits_experts,
    zero_stage,
)
from hunyuan_train.config.resolve import Machine
from hunyuan_train.config.schema import (
    CheckpointConfig,
    DataConfig,
    EvaluationConfig,
    LoraConfig,
    OptimizerConfig,
    RunConfig,
    TrainConfig,
)
from hunyuan_train.config.sequences import check_sequences
from hunyuan_train.errors import ConfigError
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.families.tables import count_kind
from hunyuan_train.families.tensors import Kind
from hunyuan_train.optim.records import find_optimizer

SCHEDULES_WITH_MIN_LR = ("cosine_with_min_lr", "wsd")


MIN_NEEDLE_LENGTH = 256  # tokens; the question and the facts take about 100
TRACKERS = ("wandb", "tensorboard")
LOSS_METRICS = ("eval_loss", "eval_perplexity")
ANSWER_METRICS = ("eval_valid_format", "eval_mode_leak", "eval_exact_match", "eval_set_f1")


def check_config(config: RunConfig, *, machine: Machine, shape: ModelShape) -> None:
    """Run every rule that needs no disk but the DeepSpeed file.

    Raises:
        ConfigError: the first rule that is broken.
    """
    num_processes = int(config.parallel.num_processes)
    check_precision(config.train)
    check_learning_rate(config.optimizer, config.train)
    check_evaluation(config.evaluation, config.checkpoints, config.data)
    check_activations(config.train)
    check_lora(config, shape)
    check_guardian(config, shape)
    check_experts_exist(config, shape)
    check_flash_attn(config, machine)
    check_tracker(config.logs.report_to)
    profiled_steps(config.logs.profile)
    needle_lengths(config.evaluation.needle_lengths)
    check_processes_fit(num_processes, machine)
    check_experts_divide(
        int(config.parallel.expert_parallel_size),
        num_experts=shape.num_experts,
        num_processes=num_processes,
    )
    check_deepspeed_file(config)
    check_sequences(config)
    check_optimizer(config)
    build_deepspeed_config(config, world_size=num_processes, is_bf16=config.train.bf16 is True)


def check_precision(train: TrainConfig) -> None:
    """Refuse float16, alone or beside bfloat16."""
    if not train.fp16:
        return
    if train.bf16 is True:
        raise ConfigError("bf16 and fp16 are both true; a run has one precision: drop --fp16")
    raise ConfigError(
        "fp16 is true; the model was trained in bfloat16 and its router overflows in float16: "
        "use --bf16, or --bf16 false for float32"
    )


def check_learning_rate(optimizer: OptimizerConfig, train: TrainConfig) -> None:
    """Refuse a schedule that would climb, ignore its floor, or never reach its top."""
    min_lr, schedule = optimizer.min_lr, optimizer.lr_scheduler_type
    if min_lr > optimizer.learning_rate:
        raise ConfigError(
            f"min_lr is {min_lr}, above learning_rate {optimizer.learning_rate}; min_lr is the "
            "absolute rate at the end of the run, often a tenth of learning_rate"
        )
    if min_lr and schedule not in SCHEDULES_WITH_MIN_LR:
        raise ConfigError(
            f"min_lr is {min_lr}, which the schedule {schedule} does not reach; use "
            f"--lr_scheduler_type {' or '.join(SCHEDULES_WITH_MIN_LR)}, or --min_lr 0"
        )
    if 0 < train.max_steps <= optimizer.warmup_steps:
        raise ConfigError(
            f"warmup_steps is {optimizer.warmup_steps} and max_steps {train.max_steps}: the "
            "learning rate would never reach its top; lower warmup_steps"
        )


def check_evaluation(
    evaluation: EvaluationConfig, checkpoints: CheckpointConfig, data: DataConfig
) -> None:
    """Refuse to evaluate on nothing, and to go by a number that no evaluation gives."""
    wanting = {
        "eval_steps": evaluation.eval_steps,
        "eval_generate": evaluation.eval_generate,
        "save_best": checkpoints.save_best,
        "early_stopping_patience": evaluation.early_stopping_patience,
    }
    for name, value in wanting.items():
        if value and not (data.eval_data_file or data.eval_fraction):
            raise ConfigError(
                f"{name} is {value}, but there is nothing to evaluate on; set "
                "--eval_data_file, or hold out a share with --eval_fraction 0.05"
            )
    if evaluation.early_stopping_patience and not evaluation.eval_steps:
        raise ConfigError(
            f"early_stopping_patience is {evaluation.early_stopping_patience} and eval_steps 0, so "
            "there is one evaluation only, at the end; set --eval_steps"
        )
    metric = evaluation.metric_for_best_model
    needs_answers = metric.startswith(ANSWER_METRICS)
    if not needs_answers and not metric.startswith(LOSS_METRICS):
        raise ConfigError(
            f"metric_for_best_model is {metric}; it must begin with one of "
            f"{', '.join(LOSS_METRICS + ANSWER_METRICS)}"
        )
    if needs_answers and not evaluation.eval_generate:
        raise ConfigError(
            f"metric_for_best_model is {metric}, which answers are judged by; let the model answer "
            "with --eval_generate 64"
        )
    if checkpoints.save_best and not evaluation.eval_steps:
        raise ConfigError(
            "save_best is true, but eval_steps is 0, so no checkpoint is known to be better than "
            "another; set --eval_steps"
        )


def check_activations(train: TrainConfig) -> None:
    """Refuse to offload what would be all activations of every layer."""
    if train.activation_offload and not train.gradient_checkpointing:
        raise ConfigError(
            "activation_offload is true and gradient_checkpointing is false, so the whole of every "
            "layer would cross to host memory and back; use --gradient_checkpointing true"
        )


def check_lora(config: RunConfig, shape: ModelShape) -> None:
    """Refuse adapter settings that go unused, name nothing, or do not go together."""
    lora = config.lora
    if not lora.use_lora and lora != LoraConfig():
        raise ConfigError(
            "lora settings are given but use_lora is false, so every parameter would be trained; "
            "add --use_lora, or drop them"
        )
    if not lora.use_lora:
        return
    model = config.model
    if model.freeze or model.freeze_router or model.train_attention_params_only:
        raise ConfigError(
            "use_lora is true, which freezes everything but the adapters; drop --freeze, "
            "--freeze_router and --train_attention_params_only, and choose what is adapted with "
            "--lora_target_modules"
        )
    check_targets(lora, shape)
    if adapts_experts(lora, shape):
        is_split = splits_experts(read_deepspeed_file(config.parallel.deepspeed))
        check_expert_adapters(lora, is_split=is_split)


def check_optimizer(config: RunConfig) -> None:
    """Refuse an optimizer where it cannot work or does not help, and bf16 masters of others.

    Masters in bfloat16 that are rounded to the nearest lose 84 to 96 % of a fine-tuning update.
    """
    path = config.parallel.deepspeed
    content, optimizer = read_deepspeed_file(path), find_optimizer(config.optimizer.optimizer)
    is_set = f"optimizer is {optimizer.name}"
    if has_bf16_masters(content) and not optimizer.shares_masters:
        raise ConfigError(
            f"{path} sets bf16.bf16_master_weights_and_grads, and {is_set}, whose steps would "
            "round away almost whole: use --optimizer lean, which updates with stochastic "
            "rounding, or delete that key"
        )
    if optimizer.shares_masters and config.train.bf16 is not True:
        raise ConfigError(
            f"{is_set} and bf16 is false; its weights are bfloat16 by design: use --bf16, or "
            "--optimizer adamw"
        )
    if optimizer.reason_against_adapters and config.lora.use_lora:
        raise ConfigError(
            f"{is_set} and use_lora is true; {optimizer.reason_against_adapters}: use "
            "--optimizer adamw"
        )
    if optimizer.shares_masters and offloads_parameters(content):
        raise ConfigError(
            f"{is_set}, but {path} offloads the weights (zero_optimization.offload_param) that it "
            "updates in place: use --deepspeed auto, or --optimizer offload"
        )


def check_guardian(config: RunConfig, shape: ModelShape) -> None:
    """Refuse a guardian that would freeze what is frozen."""
    model, lora = config.model, config.lora
    trains_routers = not (model.freeze_router or model.train_attention_params_only)
    if lora.use_lora:
        trains_routers = adapts_kind(lora, shape, Kind.ROUTER)
    if config.guardian.router_guardian == "freeze_router" and not trains_routers:
        raise ConfigError(
            "router_guardian is freeze_router, but this run does not train the routers; use "
            "--router_guardian warn, aux_loss or stop"
        )


def check_experts_exist(config: RunConfig, shape: ModelShape) -> None:
    """Refuse settings of routers and routed experts for a model that has none."""
    if count_kind(shape, Kind.ROUTER):
        return
    asked = {
        "router_aux_loss_coef": (config.model.router_aux_loss_coef, 0.0),
        "router_z_loss_coef": (config.model.router_z_loss_coef, 0.0),
        "freeze_router": (config.model.freeze_router, False),
        "moe_chunks": (config.train.moe_chunks, 1),
    }
    for name, (value, usual) in asked.items():
        if value != usual:
            raise ConfigError(
                f"{name} is {value}, and this model has no routed experts; drop --{name}"
            )


def check_flash_attn(config: RunConfig, machine: Machine) -> None:
    """Refuse to demand kernels that are not there, or that cannot compute in float32."""
    if config.model.use_flash_attn is not True:
        return
    if config.train.bf16 is False and machine.num_gpus:
        raise ConfigError(
            "use_flash_attn is true and bf16 is false; flash-attn computes in 16 bits only: use "
            "--bf16, or --use_flash_attn auto"
        )
    if machine.num_gpus == 0:
        raise ConfigError("use_flash_attn is true, but there is no GPU; use auto or false")
    if find_spec("flash_attn") is None and find_spec("flash_attn_interface") is None:
        raise ConfigError(
            "use_flash_attn is true, but flash-attn is not installed; install it with "
            "`pip install flash-attn --no-build-isolation`, or use auto"
        )


def tracker_names(report_to: str) -> list[str]:
    """The trackers of `--report_to`."""
    names = [name.strip() for name in report_to.split(",")]
    return list(TRACKERS) if names == ["all"] else [name for name in names if name != "none"]


def check_tracker(report_to: str) -> None:
    """Refuse a tracker that is not known or not installed."""
    for name in tracker_names(report_to):
        if name not in TRACKERS:
            raise ConfigError(
                f"report_to is {report_to}; give {', '.join(TRACKERS)}, several of them "
                "comma-separated, or none"
            )
        if find_spec(name) is None:
            raise ConfigError(
                f"report_to is {report_to}, and {name} is not installed: `pip install {name}`"
            )


def profiled_steps(profile: str | None) -> tuple[int, int] | None:
    """First and last step of `--profile`.

    Raises:
        ConfigError: it names no steps.
    """
    if profile is None:
        return None
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", profile)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= first <= last:
        raise ConfigError(f"profile is {profile}; name a step or several in a row, such as 10-12")
    return first, last


def needle_lengths(text: str | None) -> list[int]:
    """Lengths of `--needle_lengths`, ascending.

    Raises:
        ConfigError: they are none.
    """
    words = text.split(",") if text is not None else []
    if not all(word.strip().isdecimal() and int(word) >= MIN_NEEDLE_LENGTH for word in words):
        raise ConfigError(
            f"needle_lengths is {text}; give numbers of tokens of {MIN_NEEDLE_LENGTH} or more, "
            "such as 1024,4096,16384"
        )
    return sorted({int(word) for word in words})


def check_needles_fit(text: str | None, *, context_length: int, model: str) -> None:
    """Refuse texts that a model was not made to read.

    Args:
        text: the value of `--needle_lengths`.
        context_length: tokens that the model reads.
        model: its name, for the message.

    Raises:
        ConfigError: one is longer than its context.
    """
    if max(needle_lengths(text), default=0) > context_length:
        raise ConfigError(
            f"needle_lengths is {text}, and {model} reads {context_length} tokens; leave the "
            "longer ones out"
        )


def check_processes_fit(num_processes: int, machine: Machine) -> None:
    """Refuse more processes than there are GPUs or, on the CPU, cores."""
    room, kind = (machine.num_gpus, "GPU") if machine.num_gpus else (machine.num_cores, "core")
    if num_processes > room:
        raise ConfigError(
            f"num_processes is {num_processes}, but this machine has {room} {kind}"
            f"{'s' if room > 1 else ''} and each process needs one; set num_processes to {room} or "
            "less"
        )


def check_experts_divide(expert_size: int, *, num_experts: int, num_processes: int) -> None:
    """Refuse expert groups that cannot hold equal shares or do not fill the machine."""
    if expert_size > 1 and not num_experts:
        raise ConfigError(
            f"expert_parallel_size is {expert_size}, and this model has no routed experts to "
            "split; set it to 1, or to auto"
        )
    if num_experts % expert_size == 0 and num_processes % expert_size == 0:
        return
    fitting = [
        str(size)
        for size in range(1, num_processes + 1)
        if num_experts % size == 0 and num_processes % size == 0
    ]
    raise ConfigError(
        f"expert_parallel_size is {expert_size}; it must divide the model's {num_experts} experts "
        f"and num_processes, which is {num_processes}: set {' or '.join(fitting)}"
    )


def check_deepspeed_file(config: RunConfig) -> None:
    """Refuse a DeepSpeed file that does not go with the optimizer or the expert groups."""
    path = config.parallel.deepspeed
    content = read_deepspeed_file(path)
    optimizer = find_optimizer(config.optimizer.optimizer)
    if offloads_optimizer(content) != optimizer.is_on_host:
        verb = "does not offload" if optimizer.is_on_host else "offloads"
        raise ConfigError(
            f"optimizer is {optimizer.name}, but {path} {verb} the optimizer states "
            "(zero_optimization.offload_optimizer); use --optimizer auto, which follows the file, "
            "or --deepspeed auto, which follows the optimizer"
        )
    size = f"expert_parallel_size is {config.parallel.expert_parallel_size}"
    is_split = splits_experts(content)
    if config.parallel.expert_parallel_size != 1 and not is_split:
        raise ConfigError(
            f"{size}, but {path} has no enabled expert_parallel section; use "
            "--deepspeed ds_configs/zero3_ep.json, or --expert_parallel_size 1"
        )
    if is_split and zero_stage(content) != 3:
        raise ConfigError(
            f"{size}, but {path} asks for ZeRO stage {zero_stage(content)}; below stage 3 the "
            "engine clips experts by a norm of their own or refuses our optimizer: set "
            "zero_optimization.stage to 3"
        )
    if config.lora.use_lora and zero_stage(content) != 3:
        raise ConfigError(
            f"use_lora is true, but {path} asks for ZeRO stage {zero_stage(content)}; below stage "
            "3 the engine does not know the names of adapters: set zero_optimization.stage to 3"
        )
    if not is_split:
        return
    if content["zero_optimization"].get("stage3_gather_16bit_weights_on_model_save"):
        raise ConfigError(
            f"{path} sets stage3_gather_16bit_weights_on_model_save, which the engine cannot do "
            "for split experts; set it to false: the export streams the weights by itself"
        )
