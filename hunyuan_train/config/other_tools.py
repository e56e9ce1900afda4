"""Settings of LLaMA-Factory, axolotl, TRL and ms-swift, and words that people use for ours.

Their files and flags are taken where a name means one of our settings, with the same values. Where
it only resembles one, the error names ours.
"""

# Another name for one of our settings, with the same values.
RENAMED = {
    # LLaMA-Factory
    "cutoff_len": "max_seq_length",
    "enable_liger_kernel": "use_liger_kernel",
    "val_size": "eval_fraction",
    "pref_beta": "beta",
    "pref_ftx": "rpo_alpha",
    "dpo_label_smoothing": "label_smoothing",
    "kto_chosen_weight": "desirable_weight",
    "kto_rejected_weight": "undesirable_weight",
    # axolotl
    "base_model": "model_name_or_path",
    "tokenizer_config": "tokenizer_name_or_path",
    "sequence_len": "max_seq_length",
    "sample_packing": "packing",
    "val_set_size": "eval_fraction",
    "micro_batch_size": "per_device_train_batch_size",
    "num_epochs": "num_train_epochs",
    "lr_scheduler": "lr_scheduler_type",
    "peft_use_dora": "use_dora",
    "peft_use_rslora": "use_rslora",
    "lora_model_dir": "adapter_name_or_path",
    "rl_beta": "beta",
    "flash_attention": "use_flash_attn",
    "context_parallel_size": "sequence_parallel_size",
    "sequence_parallel_degree": "sequence_parallel_size",
    "dataset_prepared_path": "cache_dir",
    "dataset_processes": "preprocessing_num_workers",
    # TRL
    "use_peft": "use_lora",
    "dataset_num_proc": "preprocessing_num_workers",
    # ms-swift
    "target_modules": "lora_target_modules",
    "split_dataset_ratio": "eval_fraction",
    # Hugging Face, before they were renamed there
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
}

# Flags whose value decides, as in `vendor.py`.
TRANSLATED: dict[str, dict[str, tuple[str, str] | None]] = {
    "stage": {"sft": None, "pt": None, "dpo": ("objective", "dpo"), "kto": ("objective", "kto")},
    "rl": {name: ("objective", name) for name in ("dpo", "ipo", "kto", "orpo", "simpo")},
    "rlhf_type": {name: ("objective", name) for name in ("dpo", "kto", "orpo", "simpo")},
    "finetuning_type": {"lora": ("use_lora", "true"), "full": ("use_lora", "false")},
    "train_type": {"lora": ("use_lora", "true"), "full": ("use_lora", "false")},
    "tuner_type": {"lora": ("use_lora", "true"), "full": ("use_lora", "false")},
    "adapter": {"lora": ("use_lora", "true"), "none": ("use_lora", "false")},
    "peft_method": {"lora": ("use_lora", "true"), "none": ("use_lora", "false")},
    "peft_type": {"lora": ("use_lora", "true"), "none": ("use_lora", "false")},
    "flash_attn": {
        "fa2": ("use_flash_attn", "true"),
        "auto": ("use_flash_attn", "auto"),
        "sdpa": ("use_flash_attn", "false"),
        "disabled": ("use_flash_attn", "false"),
    },
    "sdp_attention": {"true": ("use_flash_attn", "false"), "false": None},
    "assistant_only_loss": {"true": None},
    "completion_only_loss": {"true": None},
    "dataloader_shuffle": {"true": None},
    "mask_prompt": {"true": None},
    "mask_prompts": {"true": None},
    "neat_packing": {"true": None, "false": None},  # packed samples never see each other
    "train_on_completions_only": {"true": None},
    "train_on_responses_only": {"true": None},
}
# What we do not have: only its absence can be asked for.
NOT_OFFERED = (
    "do_bench",
    "eval_sample_packing",
    "freeze_vision_tower",
    "fp8",
    "low_cpu_mem_usage",
    "predict_with_generate",
    "pure_bf16",
    "quantize_moe_experts",
    "reward_model",
    "s2_attention",
    "shift_attn",
    "streaming",
    "strict",
    "train_on_inputs",
    "train_on_prompt",
    "use_badam",
    "use_galore",
    "use_unsloth",
    "xformers_attention",
)
TRANSLATED |= {name: {"false": None} for name in NOT_OFFERED}

# The rank and alpha that a tool gives to adapters where its file names neither, by a key that only
# its files have. Where no alpha stands here, the tool takes twice the rank.
LLAMA_FACTORY_ADAPTERS = {"lora_rank": 8}  # its hparams/finetuning_args.py
SWIFT_ADAPTERS = {"lora_rank": 8, "lora_alpha": 32}  # its arguments/tuner_args.py
TRL_ADAPTERS = {"lora_rank": 16, "lora_alpha": 32}  # its trainer/model_config.py
ADAPTERS_LEFT_OUT = {
    "finetuning_type": LLAMA_FACTORY_ADAPTERS,
    "train_type": SWIFT_ADAPTERS,
    "tuner_type": SWIFT_ADAPTERS,
    "use_peft": TRL_ADAPTERS,
}

# About speed or bookkeeping: whatever their value, no result changes.
IGNORED = (
    "eval_table_size",
    "include_tokens_per_second",
    "is_llama_derived_model",
    "is_mistral_derived_model",
    "model_author",
    "model_type",
    "overwrite_cache",
    "pad_to_sequence_len",
    "plot_loss",
    "preprocessing_batch_size",
    "tokenizer_type",
    "use_fast_tokenizer",
    "wandb_watch",
)

QUANTIZATION_REMEDY = (
    "here frozen routed experts are kept in fewer bits, and nothing else is: --use_lora with "
    "--expert_weights fp8, int4 or nf4 (auto takes what is needed); for a model without routed "
    "experts leave it out. `hunyuan-train plan` says what fits"
)
REFUSED_TOGETHER = {
    QUANTIZATION_REMEDY: (
        "bits",
        "bnb_4bit_compute_dtype",
        "bnb_4bit_quant_type",
        "bnb_4bit_use_double_quant",
        "bnb_config_kwargs",
        "double_quantization",
        "gptq",
        "load_in_4bit",
        "load_in_8bit",
        "qlora",
        "quant_bits",
        "quant_method",
        "quantization_bit",
        "quantization_method",
        "quantization_type",
        "use_bnb_nested_quant",
    ),
    "dialogues are rendered by the model's own template: leave it out": (
        "chat_template",
        "chat_template_jinja",
        "chat_template_path",
        "default_system",
        "eos_token",
        "pad_token",
        "special_tokens",
        "template",
    ),
    "data is a file or a folder of dialogues: say --train_data_file, and --eval_data_file": (
        "data_files",
        "dataset_config",
        "dataset_dir",
        "dataset_test_split",
        "dataset_text_field",
        "dataset_train_split",
        "datasets",
        "eval_dataset",
        "test_datasets",
        "val_dataset",
    ),
    "all records of a file are used: cut the file, or give it a weight (a.jsonl:0.5)": (
        "max_samples",
        "max_train_samples",
        "max_eval_samples",
    ),
    "evaluate and save after shares of the run, 1 / (times an epoch x num_train_epochs): 4 times "
    "an epoch in 2 epochs are --eval_steps 0.125, or --save_steps 0.125": (
        "evals_per_epoch",
        "saves_per_epoch",
    ),
    "to leave repeated records out, say data_policy duplicate=drop": ("dataset_exact_dedup",),
    "say --lora_target_modules all, or name the projections": ("lora_target_linear",),
    "experts and rows are split, not single matrices or stages: say --expert_parallel_size and "
    "--sequence_parallel_size": (
        "pipeline_model_parallel_size",
        "pipeline_parallel_size",
        "tensor_model_parallel_size",
        "tensor_parallel_size",
    ),
    "say --deepspeed, with a file of ds_configs/": ("zero_stage",),
    "a run takes the hosts that it is given by name: say --node_ip_list 10.0.0.1:8,10.0.0.2:8 "
    "(NODE_IP_LIST) or --hostfile (HOSTFILE)": (
        "n_nodes",
        "nnode",
        "nnodes",
        "num_hosts",
        "num_machines",
        "num_nodes",
    ),
    "say --warmup_steps for a number of steps, --warmup_ratio for a share of them": ("warmup",),
    "more modules are not trained whole beside adapters: leave it out": (
        "additional_target",
        "lora_modules_to_save",
        "modules_to_save",
    ),
    "logs go to output_dir; choose a tracker with --report_to, its project in its own settings": (
        "swanlab_project",
        "wandb_entity",
        "wandb_log_model",
        "wandb_mode",
        "wandb_name",
        "wandb_project",
        "wandb_run_id",
    ),
}

# Words that people use for a setting. Its values may be other ones, so that the error names ours
# and nothing is taken for granted.
MEANT_TOGETHER = {
    "model_name_or_path": "base model model_dir model_id model_name model_path pretrained",
    "tokenizer_name_or_path": "tokenizer tokenizer_dir tokenizer_path",
    "train_data_file": "data data_file data_path dataset_path train train_data "
    "train_dataset train_path training_data training_file",
    "eval_data_file": "eval_data eval_path test_file val_data val_file valid_file validation_data "
    "validation_file",
    "eval_fraction": "eval_ratio eval_split test_size val_ratio val_split validation_split",
    "max_seq_length": "block_size context_length cutoff max_len max_length_tokens max_seq_len "
    "max_tokens seq_len seq_length sequence_length",
    "mode": "enable_thinking reasoning_effort thinking thinking_mode",
    "history": "mask_history",
    "preprocessing_num_workers": "num_proc num_workers workers",
    "output_dir": "checkpoint_dir checkpoint_path ckpt_dir ckpt_path out out_dir outdir output "
    "output_path save_dir save_path",
    "overwrite_output_dir": "force overwrite",
    "seed": "random_seed rng_seed",
    "max_steps": "iterations iters max_iters max_train_steps num_steps num_train_steps steps "
    "total_steps train_iters train_steps",
    "num_train_epochs": "epoch epochs max_epochs n_epochs num_epoch train_epochs",
    "per_device_train_batch_size": "batch batch_size bs micro_batch micro_bs per_device_batch_size "
    "per_gpu_batch_size train_bs train_micro_batch_size_per_gpu",
    "per_device_eval_batch_size": "eval_bs val_batch_size",
    "gradient_accumulation_steps": "accum_steps accumulation accumulation_steps ga "
    "grad_acc grad_acc_steps grad_accum grad_accum_steps gradient_accumulation",
    "gradient_checkpointing": "activation_recompute checkpointing grad_checkpointing recompute "
    "use_gradient_checkpointing",
    "bf16": "amp bfloat16 half mixed_precision precision",
    "learning_rate": "base_lr init_lr lr max_lr peak_lr",
    "min_lr": "lr_end lr_min final_lr minimum_lr",
    "lr_scheduler_type": "lr_decay_style lr_schedule schedule scheduler scheduler_type",
    "warmup_ratio": "warmup_fraction warmup_share",
    "warmup_steps": "lr_warmup_steps num_warmup_steps warmup_iters",
    "weight_decay": "decay wd",
    "max_grad_norm": "clip clip_grad clip_grad_norm grad_clip gradient_clip_val gradient_clipping",
    "adam_beta1": "beta1 beta_1",
    "adam_beta2": "beta2 beta_2",
    "adam_epsilon": "adam_eps eps epsilon",
    "eval_steps": "eval_every eval_freq eval_interval evaluation_steps val_check_interval",
    "save_steps": "checkpoint_every checkpointing_steps save_every save_freq save_interval",
    "save_total_limit": "keep_checkpoints max_checkpoints save_limit",
    "logging_steps": "log_every log_freq log_interval log_steps",
    "early_stopping_patience": "early_stopping patience",
    "resume_from_checkpoint": "continue from_checkpoint load_checkpoint resume resume_from",
    "report_to": "logger tensorboard tracker wandb",
    "run_name": "experiment_name name",
    "use_lora": "lora peft",
    "lora_rank": "lora_dim r rank",
    "lora_alpha": "alpha",
    "lora_target_modules": "lora_modules lora_targets targets",
    "router_aux_loss_coef": "aux_loss aux_loss_coef load_balancing_loss_coef moe_aux_loss_coeff",
    "num_processes": "gpus_per_node n_gpus ngpus nproc nproc_per_node num_gpus world_size",
    "expert_parallel_size": "ep ep_size expert_model_parallel_size expert_parallel",
    "sequence_parallel_size": "cp cp_size sp sp_size ulysses ulysses_size",
    "deepspeed": "deepspeed_config ds_config zero",
    "optimizer": "optimizer_name optimizer_type",
    "activation_offload": "offload_activations",
    "node_ip_list": "hosts ip_list node_list nodelist",
    "master_port": "main_process_port port rdzv_port",
    "max_hours": "max_time time_limit",
}
MEANT = {word: name for name, words in MEANT_TOGETHER.items() for word in words.split()}
