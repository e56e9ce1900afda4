"""Flags that people bring from the vendor's train.sh, from Hugging Face's Trainer and from PEFT.

Those of other tools stand in `other_tools.py`. Each is accepted (it is one of ours by another name,
or says what is done anyway) or refused with what to use instead. The vendor's flags are those of
the training scripts that Tencent publishes for its Hunyuan models (A13B and its successors).
"""

from dataclasses import dataclass

from hunyuan_train.config import other_tools
from hunyuan_train.optim.records import OPTIMIZERS

Choices = dict[str, dict[str, tuple[str, str] | None]]

# Another name for one of our settings, with the same values.
RENAMED = {
    "model_max_length": "max_seq_length",
    "max_length": "max_seq_length",
    "lora_r": "lora_rank",
    "lora_target": "lora_target_modules",
    "weight_decay_rate": "weight_decay",
    "cosine_min_lr": "min_lr",
    "train_file": "train_data_file",
    "eval_file": "eval_data_file",
    "tokenizer_name": "tokenizer_name_or_path",
    "train_batch_size": "per_device_train_batch_size",
    "eval_batch_size": "per_device_eval_batch_size",
    "full_determinism": "deterministic",
} | other_tools.RENAMED

# Flags whose value decides: each accepted value maps to one of our settings, or to None where it
# asks for what is done anyway.
TRANSLATED: Choices = {
    "do_train": {"true": None},
    "do_eval": {"true": None, "false": None},
    "save_strategy": {"steps": None, "no": ("save_steps", "0")},
    "eval_strategy": {"steps": None, "no": ("eval_steps", "0")},
    "evaluation_strategy": {"steps": None, "no": ("eval_steps", "0")},
    "logging_strategy": {"steps": None},
    "save_safetensors": {"true": None},
    "optim": {
        name: ("optimizer", one.name)
        for one in OPTIMIZERS.values()
        for name in one.hugging_face_names
    },
    "attn_implementation": {
        "flash_attention_2": ("use_flash_attn", "true"),
        "sdpa": ("use_flash_attn", "false"),
        "eager": ("use_flash_attn", "false"),
    },
    "torch_dtype": {"bfloat16": ("bf16", "true"), "float32": ("bf16", "false"), "auto": None},
    "dtype": {"bfloat16": ("bf16", "true"), "float32": ("bf16", "false"), "auto": None},
    "remove_unused_columns": {"true": None, "false": None},
    "bf16_full_eval": {"true": None},
    "average_tokens_across_devices": {"true": None},
}
TRANSLATED |= other_tools.TRANSLATED
# What we do not have: only its absence can be asked for.
NOT_OFFERED = (
    "auto_find_batch_size",
    "dataloader_drop_last",
    "ddp_find_unused_parameters",
    "do_predict",
    "enable_jit_checkpoint",
    "group_by_length",
    "ignore_data_skip",
    "save_on_each_node",
    "torch_compile",
    "trust_remote_code",
    "use_dummy_data",
)
TRANSLATED |= {name: {"false": None} for name in NOT_OFFERED}

# Flags about speed or bookkeeping that change no result: whatever their value, nothing is lost.
IGNORED = (
    "batch_eval_metrics",
    "dataloader_in_order",
    "dataloader_multiprocessing_context",
    "dataloader_num_workers",
    "dataloader_persistent_workers",
    "dataloader_pin_memory",
    "dataloader_prefetch_factor",
    "ddp_broadcast_buffers",
    "ddp_bucket_cap_mb",
    "ddp_static_graph",
    "debug",
    "disable_tqdm",
    "eval_accumulation_steps",
    "eval_do_concat_batches",
    "eval_use_gather_object",
    "half_precision_backend",
    "include_for_metrics",
    "include_num_input_tokens_seen",
    "label_names",
    "length_column_name",
    "local_rank",
    "log_level",
    "log_level_replica",
    "log_on_each_node",
    "logging_first_step",
    "logging_nan_inf_filter",
    "prediction_loss_only",
    "restore_callback_states_from_checkpoint",
    "skip_memory_metrics",
    "tf32",
    "torch_empty_cache_steps",
    "use_cache",
    *other_tools.IGNORED,
)

SHAPE_REMEDY = "the model's shape comes from config.json in --model_name_or_path; leave them out"
REFUSED_TOGETHER = {
    SHAPE_REMEDY: (
        "hidden_size",
        "intermediate_size",
        "num_layers",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "attention_head_dim",
        "head_dim",
        "max_position_embeddings",
        "vocab_size",
        "type_vocab_size",
        "layer_norm_eps",
        "tie_word_embeddings",
        "num_experts",
        "moe_topk",
        "moe_intermediate_size",
        "moe_layer_num_skipped",
        "moe_drop_tokens",
        "moe_random_routing_dropped_token",
        "num_shared_expert",
        "use_mixed_mlp_moe",
        "use_qk_norm",
        "use_cla",
        "cla_share_factor",
    ),
    "experts are divided by --expert_parallel_size, which never gathers them": (
        "make_moe_param_leaf_module",
    ),
    "evaluate and save by --eval_steps and --save_steps, as numbers of optimizer steps": (
        "eval_delay",
        "eval_on_start",
    ),
    "to keep the checkpoint of the best evaluation say --save_best; --metric_for_best_model says "
    "which number is meant, and whether high or low is better follows from it": (
        "load_best_model_at_end",
        "greater_is_better",
    ),
    "say --timeout_minutes": ("ddp_timeout",),
    "say --bf16 true or false": ("fp16_opt_level", "fp16_backend", "fp16_full_eval"),
    "to train on the CPU, set DS_ACCELERATOR=cpu in the environment": ("no_cuda", "use_cpu"),
    "the order of rows is random by --seed, and --packing fills them": ("train_sampling_strategy",),
    "the loss is the plain cross-entropy of the answers": (
        "label_smoothing_factor",
        "neftune_noise_alpha",
    ),
    "say --optimizer, --adam_beta1, --adam_beta2, --adam_epsilon": (
        "optim_args",
        "optim_target_modules",
    ),
    "kernels are chosen by --use_flash_attn, --use_liger_kernel and the DeepSpeed file": (
        "liger_kernel_config",
        "torch_compile_backend",
        "torch_compile_mode",
    ),
    "DeepSpeed does this: say --deepspeed ds_configs/zero3.json": (
        "fsdp",
        "fsdp_config",
        "ddp_backend",
        "accelerator_config",
        "parallelism_config",
    ),
    "one seed rules a run: say --seed": ("data_seed",),
    "checkpoints and the exported folder are local; after the run `hunyuan-train push` uploads "
    "the export": (
        "push_to_hub",
        "hub_model_id",
        "hub_token",
        "hub_strategy",
        "hub_always_push",
        "hub_private_repo",
        "hub_revision",
    ),
    "say --gradient_checkpointing true, selective or false, and --activation_offload": (
        "gradient_checkpointing_kwargs",
        "activation_checkpointing",
        "activation_checkpointing_kwargs",
    ),
    "logs go to output_dir; choose a tracker with --report_to, its project in its own settings": (
        "logging_dir",
        "project",
        "trackio_bucket_id",
        "trackio_space_id",
        "trackio_static_space_id",
    ),
    "min_lr is an absolute rate: say --min_lr": ("lr_scheduler_kwargs", "min_lr_rate"),
    "the training data is one set of dialogues: say --train_data_file": (
        "complex_data",
        "dataset",
        "dataset_name",
    ),
}
# What there is for a value that no choice of its flag's means.
LESS_MEMORY = (
    "; beside adapters, whose states are small, say --optimizer adamw; to take less memory in full "
    "fine-tuning say --optimizer with "
    + " or ".join(one.title for one in OPTIMIZERS.values() if not one.hugging_face_names)
)
OTHER_CHOICES = {"optim": LESS_MEMORY}
REFUSED = {
    name: remedy
    for together in (REFUSED_TOGETHER, other_tools.REFUSED_TOGETHER)
    for remedy, names in together.items()
    for name in names
}

ABSENT = ("false", "none", "null")  # values by which a tool's file says that it does without

FOREIGN_NAMES = frozenset({*RENAMED, *TRANSLATED, *IGNORED, *REFUSED})


@dataclass(frozen=True, slots=True)
class Refusal:
    """One flag we do not take, as it was written, and what to do instead."""

    flag: str
    remedy: str


def translate_flag(name: str, value: str) -> tuple[str, str] | Refusal | None:
    """Turn another script's flag into ours.

    Returns:
        our setting and its value; or None where the flag asks for what is done anyway; or why not.
    """
    if name in RENAMED:
        return RENAMED[name], value
    if name in IGNORED:
        return None
    if name in REFUSED:
        is_turned_off = value.lower() in ABSENT
        return None if is_turned_off else Refusal(f"--{name}", REFUSED[name])
    accepted = TRANSLATED[name]
    if value.lower() in accepted:
        return accepted[value.lower()]
    others = OTHER_CHOICES.get(name, "")
    return Refusal(f"--{name} {value}", f"only {' or '.join(accepted)} is offered{others}")


def translate_value(name: str, value: str) -> tuple[str, str]:
    """One of our settings, also where its value is written in Hugging Face's words."""
    if name == "optimizer" and value in TRANSLATED["optim"]:
        return TRANSLATED["optim"][value] or (name, value)
    return name, value


def refuse_value(name: str, value: object) -> Refusal | None:
    """Why one of our settings does not take the value that another tool has for it."""
    if name == "optimizer" and isinstance(value, str) and value not in ("auto", *OPTIMIZERS):
        return Refusal(f"{name} {value}", f"only {' or '.join(OPTIMIZERS)} is offered{LESS_MEMORY}")
    if name == "lora_target_modules" and value in ("all-linear", ["all-linear"]):
        return Refusal(
            f"{name} all-linear",
            "say all, which adapts the routed experts, too, or attention,shared_mlp (of a dense "
            "model attention,mlp)",
        )
    return None


def describe_refusals(refusals: list[Refusal], *, of: str = "these flags") -> str:
    """All refused flags, or keys of a file, in one text; those with the same remedy together."""
    remedies: dict[str, list[str]] = {}
    for refusal in refusals:
        remedies.setdefault(refusal.remedy, []).append(refusal.flag)
    lines = [f"  {', '.join(flags)}: {remedy}" for remedy, flags in remedies.items()]
    return "\n".join([f"{of} are not taken here:", *lines])
