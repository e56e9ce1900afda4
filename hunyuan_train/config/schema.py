"""Every setting of a run: one frozen dataclass per section, one home per number.

A field's name is its flag (`--seed`) and its YAML key (`train: {seed: ...}`). Names follow Hugging
Face's TrainingArguments and the vendor's script. A field checks itself here; rules across sections
live in `rules/`. Sections that are long stand in files of their own: `launch_schema.py` (how
processes and hosts share the work), `guardian_schema.py`, `preference_schema.py`.
"""

from dataclasses import dataclass, field
from typing import Literal

from hunyuan_train.config.declare import Auto, check_bounds, free_setting, setting
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
        "folder with hy.tiktoken or tokenizer.json; default: the model's, or the bundled one",
        form="path",
    )
    use_flash_attn: bool | Auto = free_setting(
        "auto", "flash-attn kernels: true demands the package, auto takes it where it is installed"
    )
    router_aux_loss_coef: float = setting(
        0.0,
        "weight of the load-balancing loss; 0 leaves the released routing alone",
        low=0,
        high=1000,
    )
    router_z_loss_coef: float = setting(0.0, "weight of the router z-loss", low=0, high=1000)
    freeze: str | None = setting(
        None,
        "comma-separated patterns of what is not trained, such as '*.mlp.experts.*,lm_head.weight'",
        form="list",
    )
    freeze_router: bool = setting(False, "do not train the routers")
    train_attention_params_only: bool = setting(False, "train attention and nothing else")
    expert_weights: Literal["bf16", "fp8", "int4", "nf4", "base"] | Auto = setting(
        "auto",
        "how frozen routed experts are kept: bf16, as they came; fp8, 8 bits, a scale for each "
        "output; int4, whole numbers in groups of 32; nf4, bitsandbytes' NF4 in blocks of 64; "
        "base, as a quantised base has them. All but bf16 need --use_lora. auto: as the base has "
        "them, and for adapters the gentlest that fits",
    )
    cache_expert_weights: bool = free_setting(
        False,
        "keep the codes of experts that are quantised while loading in cache_dir, checksummed",
    )
    add_tokens: str | None = free_setting(
        None, "file of new tokens, one a line; their rows are trained in every run", form="path"
    )
    carry_mtp: bool = free_setting(True, "export the multi-token prediction (MTP) layer unchanged")
    attention_dropout: float = setting(
        0.0,
        "dropout on attention weights; the published config's 0.1 is not applied unless asked",
        low=0,
        high=0.9,
    )

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Which dialogues and texts are trained on, and how they become tokens."""

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
        "share of the training records held out for evaluation when there is no eval file",
        low=0,
        high=0.5,
    )
    max_seq_length: int = setting(
        4096, "tokens in the longest sample and in a packed row", low=16, high=2**24
    )
    packing: bool = setting(
        True,
        "sequence packing: several samples share a row of max_seq_length tokens, each blind to the "
        "others",
    )
    mode: Literal["auto", "fast", "slow", "plain"] = setting(
        "auto",
        "thinking mode of records that do not state one. auto: read off thoughts and tags; a "
        "record without any is refused. fast: answered without thinking; slow: with thoughts; "
        "plain: without tags",
    )
    history: Literal["strip", "keep"] = setting(
        "strip",
        "strip: earlier answers lose their thoughts, loss on the last turn (one sample per turn); "
        "keep: one sample per dialogue, loss on every turn",
    )
    overlong: Literal["error", "drop", "drop_turns"] = setting(
        "error",
        "what happens to dialogues longer than max_seq_length; plain text is split at the row",
    )
    data_policy: str | None = setting(
        None,
        "what is done about kinds of findings, as `data check --policy` takes it: "
        "tags=error,duplicate=drop (error, drop, fix or note; `data check --help` lists the kinds)",
        form="list",
    )
    now: str | None = setting(
        None,
        'fixed date and time of tool prompts, "2026-03-02 09:15:00"; a record may state its own',
    )
    cache_dir: str | None = free_setting(
        None,
        "folder of tokenized data, and of what cache_expert_weights keeps; default: "
        "~/.cache/hunyuan_train",
        form="path",
    )
    preprocessing_num_workers: int = free_setting(
        0, "processes that tokenize; 0 means one per core", low=0, high=1024
    )

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """What is trained for how long, in which pieces, and what is done about bad steps."""

    output_dir: str = free_setting(
        "runs/tiny", "folder of this run: config, metrics, checkpoints, export", form="path"
    )
    overwrite_output_dir: bool = free_setting(
        False, "start afresh where output_dir holds a run: that one moves to OUTPUT_DIR.previous"
    )
    seed: int = setting(42, "seed of data order, dropout and preset weights", low=0, high=2**32 - 1)
    max_steps: int = setting(
        -1,
        "optimizer steps; -1 means num_train_epochs decides",
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
        "auto", "bfloat16 weights and activations; auto: on GPUs, not on CPU"
    )
    fp16: bool = setting(False, "refused: the router overflows in float16; use bf16")
    deterministic: bool = free_setting(
        False, "bit-for-bit repeatable on GPUs, whose kernels otherwise add in any order; slower"
    )
    gradient_checkpointing: bool | Literal["selective"] = free_setting(
        True,
        "recompute each layer in the backward pass: true, all of it; selective, all but attention "
        "and dense projections, whose results are kept at seven times the memory; false, nothing",
    )
    activation_offload: bool = free_setting(
        False,
        "keep the layers' inputs of gradient checkpointing in host memory (pinned, on GPUs)",
    )
    moe_chunks: int = free_setting(
        1,
        "microbatches in which a layer's routed experts compute their tokens, one after the other. "
        "N of them take 1/N of the memory, even where routers send many tokens to one process, "
        "and cost up to one more forward pass of the experts",
        low=1,
        high=2**16,
    )
    max_hours: float = free_setting(
        0.0,
        "save and stop in time to end within so many hours of the start; 0: no limit",
        low=0,
        high=10**6,
    )
    bad_steps: Literal["off", "warn", "act"] = free_setting(
        "act",
        "NaN, infinity or a spike of the loss: act skips the update, notes the samples in "
        "quarantine.jsonl and returns to a checkpoint after max_bad_steps in a row; warn notes "
        "spikes; off looks for none; warn and off end the run on NaN",
    )
    max_bad_steps: int = free_setting(3, "bad steps in a row before the run goes back", low=1)
    spike_deviations: float = free_setting(
        6.0,
        "a loss this many standard deviations above the recent ones is a spike; 0: none is",
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
    """How weights are updated, in Hugging Face's names."""

    optimizer: OptimizerName | Auto = setting(
        "auto",
        f"{describe_optimizers()}; auto: {choose_optimizer(is_on_host=True)} where the DeepSpeed "
        f"file offloads, else {choose_optimizer(is_on_host=False)}",
    )
    learning_rate: float = setting(1e-5, "highest learning rate", low=0, high=100)
    min_lr: float = setting(
        0.0, "learning rate at the end, for cosine_with_min_lr and wsd; absolute", low=0, high=100
    )
    lr_scheduler_type: Literal[
        "cosine_with_min_lr", "cosine", "linear", "constant", "constant_with_warmup", "wsd"
    ] = setting("cosine_with_min_lr", "how the learning rate moves after the warm-up")
    warmup_ratio: float = setting(
        0.0, "share of the steps in which the learning rate rises", low=0, high=1
    )
    warmup_steps: int | float = setting(
        0,
        "steps in which it rises, or below 1 a share of the run; wins over warmup_ratio when above "
        "0",
        low=0,
        form="share",
    )
    wsd_decay_ratio: float = setting(
        0.1, "share of the steps in which wsd falls at the end", low=0, high=1
    )
    adam_beta1: float = setting(0.9, "AdamW's first moment decay", low=0, high=HIGHEST_DECAY)
    adam_beta2: float = setting(0.95, "AdamW's second moment decay", low=0, high=HIGHEST_DECAY)
    adam_epsilon: float = setting(1e-8, "AdamW's epsilon", low=0, high=1)
    weight_decay: float = setting(
        0.0, "decoupled weight decay; norms and biases are never decayed", low=0, high=100
    )
    max_grad_norm: float = setting(
        1.0, "clip gradients to this global norm; 0 turns clipping off", low=0
    )

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationConfig:
    """What is measured beside the training loss, and what follows from it."""

    eval_steps: int | float = free_setting(
        0,
        "evaluate every N steps, or below 1 after each such share of the run (0.1: ten times); "
        "0: only at the end, if there is eval data",
        low=0,
        form="share",
    )
    per_device_eval_batch_size: int = free_setting(
        1, "the same in an evaluation step", low=1, high=2**16
    )
    expert_loss_samples: int = free_setting(
        16,
        "held-out samples on which quantised experts are compared with the base as it came, before "
        "the first step (--expert_weights); 0: none",
        low=0,
        high=10**6,
    )
    eval_generate: int = free_setting(
        0,
        "let the model answer N held-out prompts before the first step and at each evaluation: "
        "format, mode, exact match, set F1 and calls of tools are scored, the answers kept in "
        "answers.jsonl",
        low=0,
        high=10**6,
    )
    eval_max_new_tokens: int = free_setting(
        512, "tokens of such an answer at most", low=1, high=2**20
    )
    eval_metric: str | None = free_setting(
        None,
        "a metric of your own, FILE.py:FUNCTION, over the answers of eval_generate; it gets a list "
        "of them, taken apart, and returns a number or numbers by name, where more is better",
    )
    metric_for_best_model: str = free_setting(
        "eval_loss",
        "which number of an evaluation save_best and early stopping go by: eval_loss_answer, "
        "eval_set_f1, eval_call_accuracy, eval_metric, eval_rewards/accuracies, eval_loss/FILE; "
        "losses, leaks best low",
    )
    early_stopping_patience: int = free_setting(
        0,
        "end training, as if complete, after so many evaluations in a row without a better "
        "metric_for_best_model; 0: never",
        low=0,
    )
    needle_lengths: str | None = free_setting(
        None,
        "before the first step and after the last, let the model find facts in texts of so many "
        "tokens, such as 1024,4096,16384, to see whether long context is kept",
        form="list",
    )
    needle_number: int = free_setting(8, "texts of each of these lengths", low=1, high=10**5)
    sample_answers: bool | Auto = free_setting(
        "auto",
        "let the model answer two training prompts at the end, of 2,048 tokens at most, for its "
        "report; auto: in a minute each at most, however large it is; true: without that limit",
    )

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointConfig:
    """What is saved and how long it is kept, and what a run goes on from."""

    save_steps: int | float = free_setting(
        0,
        "checkpoint every N steps, or below 1 after each such share of the run (0.2: five times); "
        "0: only at the end",
        low=0,
        form="share",
    )
    save_total_limit: int = free_setting(
        0, "checkpoints kept, oldest deleted first; 0 keeps all", low=0
    )
    save_best: bool = free_setting(
        False, "also save whenever metric_for_best_model is best, and keep that checkpoint"
    )
    save_keep_every: int = free_setting(
        0, "keep the checkpoint of every N-th step for good; 0: of none", low=0
    )
    save_only_model: bool = free_setting(
        False,
        "save weights without optimizer states: a third of the size, for export; such a checkpoint "
        "cannot be resumed",
    )
    snapshot_gib: float | Auto = free_setting(
        "auto",
        "host memory, in GiB per process, for copies of states that are written while training "
        "goes on; the rest is written before the next update; auto: half of what is free",
        low=0,
        high=10**6,
    )
    wait_for_room_minutes: float = free_setting(
        60.0,
        "how long a run that is over waits for room on a full disk, with what it has trained kept "
        "in memory, before it ends without its last checkpoint or its export",
        low=0,
    )
    after_checkpoint: str | None = free_setting(
        None,
        "a command for sh that runs beside training once a checkpoint is written, such as a copy "
        "to another machine; its folder is $1, or the last word; a failure is told and tried again",
    )
    before_resume: str | None = free_setting(
        None,
        "a command for sh that runs before a resume looks for checkpoints, such as one that brings "
        "copies back; output_dir is $1, or the last word; with nothing to bring it must succeed",
    )
    commands_on: Literal["first_host", "each_host"] = free_setting(
        "first_host",
        "where after_checkpoint and before_resume run: once, on the first host, or once on each "
        "host, where a copy lies on its own disk",
    )
    resume_from_checkpoint: str | None = free_setting(
        None,
        "auto (newest complete checkpoint of output_dir, if any) or a checkpoint folder",
        form="path",
    )
    ignore_data_change: bool = free_setting(
        False, "resume although the data is not what the checkpoint saw; it is read from its start"
    )
    ignore_code_change: bool = free_setting(
        False, "resume although this code or a library is of another version than the checkpoint's"
    )
    ignore_settings_change: bool = free_setting(
        False, "resume although settings differ that steps depend on, such as learning_rate"
    )
    export: bool = free_setting(True, "write an HF-format model folder at the end")

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraConfig:
    """Low-rank adapters instead of full-parameter training."""

    use_lora: bool = setting(False, "train low-rank adapters and freeze everything else")
    adapter_name_or_path: str | None = setting(
        None,
        "folder of adapters in PEFT's form to start from, with the settings they were made with",
        form="path",
    )
    lora_rank: int = setting(64, "rank of each adapter", low=1, high=2**14)
    lora_alpha: float = setting(
        128.0, "adapters are scaled by lora_alpha / lora_rank", low=0, high=10**6
    )
    lora_dropout: float = setting(0.0, "dropout before each adapter", low=0, high=0.9)
    use_rslora: bool = setting(False, "scale adapters by lora_alpha / sqrt(lora_rank) instead")
    use_dora: bool = setting(False, "weight-decomposed adapters on linear layers (DoRA)")
    lora_target_modules: str = setting(
        "attention",
        "comma-separated: attention, mlp (of a dense model), shared_mlp, experts (all routed "
        "ones), router, all, or single "
        "projections of attention (q_proj, k_proj, v_proj, o_proj)",
        form="list",
    )

    def __post_init__(self) -> None:
        check_bounds(self)


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
