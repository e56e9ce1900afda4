"""Every setting of a run: one frozen dataclass per section, one home per number.

A field's name is its flag (`--seed`) and its YAML key (`train: {seed: ...}`). Names follow Hugging
Face's TrainingArguments and the vendor's script. A field checks itself here; rules across sections
live in `rules/`. Here are the model, its data, its training and adapters; the other sections stand
in files of their own, such as `launch_schema.py` (how processes and hosts share the work).
"""

from dataclasses import dataclass, field
from typing import Literal

from hunyuan_train.config.checkpoint_schema import CheckpointConfig
from hunyuan_train.config.declare import Auto, check_bounds, free_setting, setting
from hunyuan_train.config.evaluation_schema import EvaluationConfig
from hunyuan_train.config.guardian_schema import GuardianConfig
from hunyuan_train.config.launch_schema import LaunchConfig, ParallelConfig
from hunyuan_train.config.logs_schema import LoggingConfig
from hunyuan_train.config.preference_schema import PreferenceConfig
from hunyuan_train.errors import ConfigError
from hunyuan_train.families.registry import PRESETS
from hunyuan_train.optim.records import OptimizerName, choose_optimizer, describe_optimizers

HIGHEST_DECAY = 0.999999  # of a moment: at 1 nothing new would ever be learned from


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Which model is trained, and how its attention runs."""

    model_name_or_path: str = free_setting(
        "tiny",
        "a model folder, OWNER/NAME[@REVISION] on a hub, or a preset: " + ", ".join(PRESETS),
        form="path",
    )
    tokenizer_name_or_path: str | None = free_setting(
        None,
        "folder with hy.tiktoken or tokenizer.json (default: the model's, or the bundled one)",
        form="path",
    )
    use_flash_attn: bool | Auto = free_setting(
        "auto", "flash-attn kernels: true requires the package, auto uses it if it is installed"
    )
    use_liger_kernel: bool = setting(
        False,
        "RMSNorm, rope and SwiGLU by Liger's fused kernels (pip install liger-kernel), on GPUs; "
        "where they are not, the run says so and does without",
    )
    router_aux_loss_coef: float = setting(
        0.0,
        "weight of the load-balancing loss (0: off, as the model was released)",
        low=0,
        high=1000,
    )
    router_z_loss_coef: float = setting(0.0, "weight of the router z-loss", low=0, high=1000)
    freeze: str | None = setting(
        None,
        "comma-separated patterns of weights to freeze, such as '*.mlp.experts.*,lm_head.weight'",
        form="list",
    )
    freeze_router: bool = setting(False, "do not train the routers")
    train_attention_params_only: bool = setting(False, "train the attention weights alone")
    expert_weights: Literal["bf16", "fp8", "int4", "nf4", "base"] | Auto = setting(
        "auto",
        "format of frozen routed experts. bf16: as they are on disk. fp8: 8 bits, one scale per "
        "output. int4: whole numbers in groups of 32. nf4: bitsandbytes' NF4 in blocks of 64. "
        "base: as a quantised base has them. fp8, int4, nf4 and base need --use_lora. auto: the "
        "base's own format. A LoRA run takes the most accurate format that fits",
    )
    cache_expert_weights: bool = free_setting(
        False,
        "keep the codes of experts that are quantised at load time in cache_dir, with checksums",
    )
    add_tokens: str | None = free_setting(
        None, "file of new tokens, one per line. Their rows are trained in every run", form="path"
    )
    carry_mtp: bool = free_setting(True, "export the multi-token prediction (MTP) layer unchanged")
    attention_dropout: float = setting(
        0.0,
        "dropout on attention weights. The published config's 0.1 is not applied",
        low=0,
        high=0.9,
    )

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """The dialogues and texts to train on, and how they become tokens."""

    train_data_file: str = setting(
        "data/tiny_train.jsonl",
        "files, folders or hf:OWNER/NAME[:split], comma-separated, each with an optional :weight",
        form="paths",
    )
    eval_data_file: str | None = setting(
        None, "held-out dialogues, in the same forms", form="paths"
    )
    eval_fraction: float = setting(
        0.0,
        "share of the training records that is held out for evaluation, if there is no eval file",
        low=0,
        high=0.5,
    )
    max_seq_length: int = setting(
        4096, "tokens in the longest sample and in a packed row", low=16, high=2**24
    )
    packing: bool = setting(
        True,
        "sequence packing: several samples share a row of max_seq_length tokens, and attention "
        "stays inside each sample",
    )
    mode: Literal["auto", "fast", "slow", "plain"] = setting(
        "auto",
        "thinking mode of records that do not state one. auto: inferred from thoughts and tags, "
        "and an error if there are none. fast: answers without thoughts. slow: answers with "
        "thoughts. plain: answers without tags",
    )
    history: Literal["strip", "keep"] = setting(
        "strip",
        "strip: earlier answers lose their thoughts, and each answer is a sample of its own with "
        "loss on it alone (a dialogue of plain answers stays one sample). keep: one sample per "
        "dialogue, with loss on every answer",
    )
    overlong: Literal["error", "drop", "drop_turns"] = setting(
        "error",
        "what to do with dialogues longer than max_seq_length. Plain text is split at that length",
    )
    data_policy: str | None = setting(
        None,
        "actions for kinds of findings, as for `data check --policy`: tags=error,duplicate=drop "
        "(error, drop, fix or note). `data check --help` lists the kinds",
        form="list",
    )
    now: str | None = setting(
        None,
        'fixed date and time of tool prompts, "2026-03-02 09:15:00", for records that state none',
    )
    cache_dir: str | None = free_setting(
        None,
        "folder for tokenized data, and for what cache_expert_weights keeps (default: "
        "~/.cache/hunyuan_train)",
        form="path",
    )
    preprocessing_num_workers: int = free_setting(
        0, "processes that tokenize (0: one per core)", low=0, high=1024
    )

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """How long the run trains, in which batches, and how it reacts to bad steps."""

    output_dir: str = free_setting(
        "runs/tiny", "folder of this run: config, metrics, checkpoints, export", form="path"
    )
    overwrite_output_dir: bool = free_setting(
        False,
        "start a new run if output_dir holds one already. The old run moves to OUTPUT_DIR.previous "
        "and replaces what was there",
    )
    seed: int = setting(
        42, "seed of data order, dropout and the random weights of presets", low=0, high=2**32 - 1
    )
    max_steps: int = setting(
        -1,
        "optimizer steps (-1: num_train_epochs decides)",
        low=-1,
        changes_steps="by schedule",
    )
    num_train_epochs: float = setting(
        1.0,
        "passes over the data when max_steps is -1",
        low=0,
        high=10**6,
        changes_steps="by schedule",
    )
    per_device_train_batch_size: int = free_setting(
        1,
        "rows per process (or per group of sequence_parallel_size) and micro-step",
        low=1,
        high=2**16,
    )
    gradient_accumulation_steps: int = free_setting(
        1, "micro-steps per optimizer step", low=1, high=2**16
    )
    bf16: bool | Auto = setting(
        "auto", "bfloat16 weights and activations (auto: on GPUs, but not on CPUs)"
    )
    fp16: bool = setting(False, "rejected, because the router overflows in float16. Use bf16")
    deterministic: bool = free_setting(
        False, "repeat results bit for bit on GPUs, where kernels add in any order (slower)"
    )
    gradient_checkpointing: bool | Literal["selective"] = free_setting(
        True,
        "recompute each layer in the backward pass. true: all of it. selective: all but "
        "attention and dense projections, whose results then take seven times the memory. false: "
        "nothing",
    )
    activation_offload: bool = free_setting(
        False,
        "keep the layer inputs of gradient checkpointing in host memory (page-locked, on GPUs)",
    )
    moe_chunks: int = free_setting(
        1,
        "split the tokens of a layer's routed experts into N microbatches, computed one after "
        "the other. This takes 1/N of the memory, even if the routers send many tokens to one "
        "process. It costs up to one more forward pass of the experts",
        low=1,
        high=2**16,
    )
    max_hours: float = free_setting(
        0.0,
        "save and stop so that the run ends within this many hours of its start (0: no limit)",
        low=0,
        high=10**6,
    )
    bad_steps: Literal["off", "warn", "act"] = free_setting(
        "act",
        "reaction to NaN, infinity or a spike of the loss. act: skip the update, write the "
        "samples to quarantine.jsonl, and return to a checkpoint after max_bad_steps in a row. "
        "warn: report spikes. off: look for none. With warn and off, NaN ends the run",
    )
    max_bad_steps: int = free_setting(
        3, "bad steps in a row before the run returns to an earlier checkpoint", low=1
    )
    spike_deviations: float = free_setting(
        6.0,
        "a loss this many standard deviations above the recent ones is a spike (0: none is)",
        low=0,
        high=10**6,
    )

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.max_steps == 0:
            raise ConfigError(
                "max_steps is 0; set a number of steps, or -1 to let num_train_epochs decide"
            )
        if self.max_steps < 0 and self.num_train_epochs == 0:
            raise ConfigError(
                "num_train_epochs is 0 and max_steps is -1, so nothing would be trained; set one "
                "of them above 0"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    """How weights are updated. Names are Hugging Face's."""

    optimizer: OptimizerName | Auto = setting(
        "auto",
        f"{describe_optimizers()}. auto: {choose_optimizer(is_on_host=True)} if the DeepSpeed "
        f"file offloads, otherwise {choose_optimizer(is_on_host=False)}",
    )
    learning_rate: float = setting(1e-5, "highest learning rate", low=0, high=100)
    min_lr: float = setting(
        0.0,
        "learning rate at the end of cosine_with_min_lr and wsd, as an absolute value",
        low=0,
        high=100,
    )
    lr_scheduler_type: Literal[
        "cosine_with_min_lr", "cosine", "linear", "constant", "constant_with_warmup", "wsd"
    ] = setting("cosine_with_min_lr", "schedule of the learning rate after the warm-up")
    warmup_ratio: float = setting(
        0.0, "share of the steps in which the learning rate rises", low=0, high=1
    )
    warmup_steps: int | float = setting(
        0,
        "steps in which the learning rate rises, or below 1 a share of the run. It wins over "
        "warmup_ratio if it is above 0",
        low=0,
        form="share",
    )
    wsd_decay_ratio: float = setting(
        0.1, "share of the steps at the end in which wsd lowers the learning rate", low=0, high=1
    )
    adam_beta1: float = setting(0.9, "AdamW's first moment decay", low=0, high=HIGHEST_DECAY)
    adam_beta2: float = setting(0.95, "AdamW's second moment decay", low=0, high=HIGHEST_DECAY)
    adam_epsilon: float = setting(1e-8, "AdamW's epsilon", low=0, high=1)
    weight_decay: float = setting(
        0.0, "decoupled weight decay. It never applies to norms and biases", low=0, high=100
    )
    max_grad_norm: float = setting(
        1.0, "clip gradients to this global norm (0: no clipping)", low=0
    )

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraConfig:
    """Low-rank adapters instead of full-parameter training."""

    use_lora: bool = setting(False, "train low-rank adapters and freeze everything else")
    adapter_name_or_path: str | None = setting(
        None,
        "folder of adapters in PEFT's form to start from. The settings must be those that they "
        "were made with",
        form="path",
    )
    lora_rank: int = setting(64, "rank of each adapter", low=1, high=2**14)
    lora_alpha: float | Auto = setting(
        "auto",
        "adapters are scaled by lora_alpha / lora_rank (auto: twice lora_rank, so by 2)",
        low=0,
        high=10**6,
    )
    lora_dropout: float = setting(0.0, "dropout before each adapter", low=0, high=0.9)
    use_rslora: bool = setting(False, "scale adapters by lora_alpha / sqrt(lora_rank) instead")
    use_dora: bool = setting(False, "weight-decomposed adapters on linear layers (DoRA)")
    lora_target_modules: str = setting(
        "attention",
        "comma-separated: attention, mlp (of a dense model), shared_mlp, experts (all routed "
        "ones), router, all, or single projections of attention (q_proj, k_proj, v_proj, o_proj)",
        form="list",
    )

    def __post_init__(self) -> None:
        check_bounds(self)

    @property
    def alpha(self) -> float:
        """The number of `lora_alpha`; where none is given, it follows the rank."""
        return 2.0 * self.lora_rank if self.lora_alpha == "auto" else self.lora_alpha

    @property
    def scaling(self) -> float:
        """Factor on an adapter's product: alpha / rank, or alpha / sqrt(rank) with rslora."""
        return self.alpha / (self.lora_rank**0.5 if self.use_rslora else self.lora_rank)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """All sections of one run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    preferences: PreferenceConfig = field(default_factory=PreferenceConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoints: CheckpointConfig = field(default_factory=CheckpointConfig)
    logs: LoggingConfig = field(default_factory=LoggingConfig)
    guardian: GuardianConfig = field(default_factory=GuardianConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)
