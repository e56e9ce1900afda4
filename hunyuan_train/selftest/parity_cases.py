"""The cases that are checked: every way of splitting and saving memory that the project offers.

A case is settings of a run. They pass through the checks and the assembly of a real one; only model
and data are those of `samples.py`, and all but a few are float32, where differences show.
"""

from dataclasses import dataclass, field, replace
from math import gcd
from typing import Any

from hunyuan_train.config.deepspeed_config import settings_of_gpus
from hunyuan_train.config.load import build_config, load_config
from hunyuan_train.config.resolve import resolve
from hunyuan_train.config.resolved_run import Machine, ResolvedRun
from hunyuan_train.config.rules.listing import SETTINGS_ALONE
from hunyuan_train.config.schema import RunConfig
from hunyuan_train.config.settings import with_settings
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.model import fused
from hunyuan_train.optim.records import choose_optimizer, find_optimizer
from hunyuan_train.selftest.compare import Errors
from hunyuan_train.selftest.samples import DEFAULT_BATCHES, DENSE, HY_V3, SHAPE
from hunyuan_train.shipped import DS_CONFIGS

Settings = dict[str, Any]

# Rates at which the tiny model moves far beyond float32's last digits in four steps. The epsilon is
# of the size of the gradients: with 1e-8 Adam makes full steps of the rounding errors of zeros.
SGD: Settings = {"optimizer": "sgd", "learning_rate": 1.0}
ADAMW: Settings = {
    "optimizer": "adamw",
    "learning_rate": 1e-2,
    "adam_epsilon": 1e-3,
    "weight_decay": 0.1,
}
ZERO_2: Settings = {"deepspeed": str(DS_CONFIGS / "zero2.json")}
SPLIT: Settings = {"deepspeed": str(DS_CONFIGS / "zero3_ep.json")}
SHARING = "sequence_parallel_size"
SHARED: Settings = {SHARING: 2}
LORA: Settings = {"use_lora": True, "lora_rank": 8, "lora_alpha": 16}
ON_EXPERTS: Settings = {"lora_target_modules": "experts"}
ON_ALL: Settings = {"lora_target_modules": "all"}
FP8: Settings = {"expert_weights": "fp8"}
INT4: Settings = {"expert_weights": "int4"}
NF4: Settings = {"expert_weights": "nf4"}
LORA_IN_CHUNKS: Settings = LORA | ON_ALL | {"moe_chunks": 3}
KEPT: Settings = {"gradient_checkpointing": False}
SELECTIVE: Settings = {"gradient_checkpointing": "selective"}
LONG: Settings = {SHARING: 4, "moe_chunks": 3, "activation_offload": True}
LEAN: Settings = {"bf16": True, "optimizer": "lean"}
UNTIED = replace(SHAPE, tie_word_embeddings=False)
DPO: Settings = {"objective": "dpo", "beta": 0.5}
KTO: Settings = {"objective": "kto", "beta": 0.5, "desirable_weight": 1.5}
MORE: Settings = {"label_smoothing": 0.1, "rpo_alpha": 0.7}
IPO: Settings = {"objective": "ipo", "beta": 0.5}
ORPO: Settings = {"objective": "orpo", "beta": 0.5}
SIMPO: Settings = {"objective": "simpo", "beta": 2.0, "label_smoothing": 0.1}
STARTED: Settings = {"adapter_name_or_path": "adapters of samples.py"}
MAX_NORM = 1.0  # below the norm of every step, so that clipping is always at work

# Of float32 against float64: three times to a hundred times what was measured.
TOLERANCE = Errors(loss=1e-5, gradients=1e-4, clip=1e-5, weights=3e-4)
# Of bfloat16, as a whole: about twice what was measured, lean and AdamW with float32 masters alike.
# Steps of a few tokens have gradients of one digit there, and ties of routers fall otherwise.
BFLOAT16_TOLERANCE = Errors(loss=3e-2, gradients=0.5, clip=0.1, weights=0.4)
# Rewards of preferences are sums over the tokens of an answer, each of which was rounded.
BFLOAT16_REWARDS = replace(BFLOAT16_TOLERANCE, loss=0.3)


# Of the engine's section for split experts: what a file may set, and nothing on by itself.
PLAIN_EXPERTS: Settings = {"async_split_plan": False, "combine_impl": "weighted_sum"}
SPLIT_PLAN: Settings = {"async_split_plan": True}
FUSED_SUM: Settings = {"combine_impl": "fused_weighted_sum"}
# Not by the engine's own kernel for GPUs before Hopper, which has no such way.
FUSED_GATES: Settings = {"gate_up_impl": "fused", "disable_triton_grouped_mm": True}
LIGER: Settings = {"use_liger_kernel": True}


@dataclass(frozen=True, slots=True)
class ParityCase:
    """Settings under a name, for one number of processes."""

    name: str
    run: ResolvedRun
    lack: str = ""  # which setting of it cannot run here, and why; then nothing is trained
    left_out: str = ""  # the same of a recipe, which is trained without

    @property
    def tolerance(self) -> Errors:
        """The largest errors that are right."""
        if not self.run.is_bf16:
            return TOLERANCE
        is_imitated = self.run.config.preferences.objective == "sft"
        return BFLOAT16_TOLERANCE if is_imitated else BFLOAT16_REWARDS

    @property
    def num_processes(self) -> int:
        """Processes that train."""
        return self.run.num_ranks

    @property
    def num_groups(self) -> int:
        """Processes, or groups of them that share rows."""
        return self.num_processes // self.run.sequence_size

    @property
    def num_batches(self) -> int:
        """Micro-batches of a step: as many for any few processes, which share a reference."""
        return -(-DEFAULT_BATCHES // self.num_processes) * self.num_processes


@dataclass(frozen=True, slots=True)
class Entry:
    """A case for several numbers of processes."""

    name: str
    num_groups: int  # of processes, each with all experts between them; 0: experts are not split
    settings: Settings
    shape: ModelShape = SHAPE
    experts: Settings = field(default_factory=dict)  # of the file's expert_parallel section


def _entry(
    name: str,
    num_groups: int,
    *settings: Settings,
    shape: ModelShape = SHAPE,
    experts: Settings | None = None,
) -> Entry:
    joined = {k: v for part in settings for k, v in part.items()}
    return Entry(name, num_groups, joined, shape, experts or {})


ON_ANY = (
    _entry("ZeRO-3", 0, SGD),
    _entry("ZeRO-2", 0, SGD, ZERO_2),
    _entry("experts split, SGD", 1, SGD, SPLIT),
    _entry("experts split, AdamW", 1, ADAMW, SPLIT),
)
LIGERS = _entry("use_liger_kernel", 1, SGD, SPLIT, LIGER, experts=PLAIN_EXPERTS)
FUSED = (
    _entry("combine_impl", 1, SGD, SPLIT, experts=PLAIN_EXPERTS | FUSED_SUM),
    _entry("gate_up_impl", 1, SGD, SPLIT, experts=PLAIN_EXPERTS | FUSED_GATES),
    LIGERS,
)
ON_ONE = (
    *FUSED,
    _entry("AdamW", 0, ADAMW),
    _entry("AdamW, ZeRO-2", 0, ADAMW, ZERO_2),
    _entry("AdamW in host memory", 0, ADAMW, {"optimizer": "offload"}),
    _entry("adapters on attention", 0, SGD, LORA),
    _entry("nothing recomputed", 0, SGD, KEPT),
    _entry("dense", 0, SGD, shape=DENSE),
    _entry("dpo", 1, SGD, SPLIT, DPO),
    _entry("kto, adapters on attention", 0, SGD, KTO, LORA),
    _entry("hy_v3, ZeRO-3", 0, SGD, shape=HY_V3),
    _entry("hy_v3", 1, SGD, SPLIT, shape=HY_V3),
    _entry("experts in int4, adapters everywhere", 1, SGD, SPLIT, LORA, ON_ALL, INT4),
)
ON_TWO = (
    *FUSED,
    _entry("async_split_plan", 1, SGD, experts=PLAIN_EXPERTS | SPLIT_PLAN),
    _entry("AdamW in host memory", 1, ADAMW, {"optimizer": "offload"}),
    _entry("bfloat16", 1, ADAMW, {"bf16": True}),
    _entry("lean", 1, ADAMW, {"bf16": True, "optimizer": "lean"}),
    _entry("one sample a row", 1, SGD, {"packing": False}),
    _entry("no clipping", 1, SGD, {"max_grad_norm": 0.0, "learning_rate": 0.05}),
    _entry("nothing recomputed", 1, SGD, KEPT),
    _entry("selective recomputation", 1, SGD, SELECTIVE),
    _entry("activations in host memory", 1, SGD, {"activation_offload": True}),
    _entry("router losses", 1, SGD, {"router_aux_loss_coef": 0.3, "router_z_loss_coef": 0.01}),
    _entry("experts frozen", 1, SGD, {"freeze": "*.mlp.experts.*"}),
    _entry("adapters on attention", 1, SGD, LORA),
    _entry("adapters everywhere", 1, SGD, LORA, ON_ALL),
    _entry("experts in chunks", 1, SGD, {"moe_chunks": 3}),
    _entry("experts in fp8, adapters on attention", 1, SGD, LORA, FP8),
    _entry("experts in int4, rows shared, in chunks", 1, SGD, SHARED, LORA_IN_CHUNKS, INT4),
    _entry("experts in nf4, adapters everywhere", 1, SGD, LORA, ON_ALL, NF4),
    _entry("experts in nf4, bfloat16", 1, ADAMW, LORA, NF4, {"bf16": True}),
    _entry("hy_v3, experts in fp8", 1, SGD, LORA, ON_EXPERTS, FP8, shape=HY_V3),
    _entry("rows shared", 1, SGD, SHARED),
    _entry("rows shared, AdamW, nothing recomputed", 0, ADAMW, SHARED, KEPT),
    _entry("rows shared, adapters everywhere, experts in chunks", 1, SGD, SHARED, LORA_IN_CHUNKS),
    _entry("output layer of its own, ZeRO-3", 0, SGD, shape=UNTIED),
    _entry("output layer of its own", 1, SGD, shape=UNTIED),
    _entry("dense, rows shared", 0, ADAMW, SHARED, shape=DENSE),
    _entry("hy_v3, ZeRO-2", 0, SGD, ZERO_2, shape=HY_V3),
    _entry("hy_v3, experts split, AdamW", 1, ADAMW, shape=HY_V3),
    _entry("hy_v3, bfloat16", 1, ADAMW, {"bf16": True}, shape=HY_V3),
    _entry("hy_v3, bfloat16, ZeRO-3", 0, ADAMW, {"bf16": True}, shape=HY_V3),
    _entry("hy_v3, adapters everywhere", 1, SGD, LORA, ON_ALL, shape=HY_V3),
    _entry("hy_v3, rows shared, experts in chunks", 1, SGD, SHARED, {"moe_chunks": 3}, shape=HY_V3),
    _entry("hy_v3, selective recomputation", 1, SGD, SELECTIVE, shape=HY_V3),
    _entry("dense, adapters everywhere", 0, SGD, LORA, ON_ALL, shape=DENSE),
    _entry("dpo", 1, SGD, DPO),
    _entry("dpo, labels smoothed, cross entropy beside it", 1, SGD, DPO, MORE),
    _entry("ipo", 1, SGD, IPO),
    _entry("orpo", 1, SGD, ORPO),
    _entry("simpo", 1, SGD, SIMPO),
    _entry("dpo, adapters everywhere", 1, SGD, DPO, LORA, ON_ALL),
    _entry("dpo, adapters of an earlier run", 1, SGD, DPO, LORA, ON_ALL, STARTED),
    _entry("dpo, rows shared", 1, SGD, DPO, SHARED),
    _entry("dpo, lean", 1, ADAMW, DPO, LEAN),
    _entry("kto", 1, SGD, KTO),
    _entry("kto, rows shared, adapters on attention", 1, SGD, KTO, SHARED, LORA),
)
ON_FOUR = (
    _entry("fused experts, split twice", 2, SGD, experts=SPLIT_PLAN | FUSED_SUM | FUSED_GATES),
    LIGERS,
    _entry("experts split twice", 2, SGD),
    _entry("experts split twice, AdamW", 2, ADAMW),
    _entry("lean, experts split twice", 2, ADAMW, {"bf16": True, "optimizer": "lean"}),
    _entry("experts split twice, selective", 2, SGD, SELECTIVE),
    _entry("rows shared by two, selective", 1, SGD, SHARED, SELECTIVE),
    _entry("rows shared by four, experts split twice, in chunks, in host memory", 2, SGD, LONG),
    _entry("hy_v3, experts split", 1, SGD, shape=HY_V3),
    _entry("hy_v3, experts split twice, lean", 2, ADAMW, LEAN, shape=HY_V3),
    _entry("hy_v3, experts frozen", 1, SGD, {"freeze": "*.mlp.experts.*"}, shape=HY_V3),
    _entry("adapters on experts, split twice", 2, SGD, LORA, ON_EXPERTS),
    _entry("experts in nf4, split twice", 2, SGD, LORA, ON_ALL, NF4),
    _entry("dpo", 1, SGD, DPO),
    _entry("dpo, rows shared, adapters on experts", 1, SGD, DPO, SHARED, LORA, ON_EXPERTS),
    _entry("kto", 1, SGD, KTO),
    _entry("kto, two groups of experts, lean", 2, ADAMW, KTO, LEAN),
)


def choose_cases(num_processes: int, recipe: str | None, *, num_gpus: int) -> list[ParityCase]:
    """All cases for this number of processes, or that of one recipe.

    Raises:
        ConfigError: see `recipe_case`.
    """
    if recipe:
        return [recipe_case(recipe, num_processes, num_gpus=num_gpus)]
    return list_cases(num_processes, num_gpus=num_gpus)


def list_cases(num_processes: int, *, num_gpus: int) -> list[ParityCase]:
    """Every case that is checked on this number of processes."""
    entries = [*ON_ANY]
    entries += {1: ON_ONE, 2: ON_TWO}.get(num_processes, ())
    if num_processes >= 4 and num_processes % 2 == 0:
        entries += ON_FOUR
    return [
        _make_case(entry, num_processes, num_gpus)
        for entry in entries
        if num_processes % entry.settings.get(SHARING, 1) == 0
    ]


def _make_case(entry: Entry, num_processes: int, num_gpus: int) -> ParityCase:
    group = num_processes // entry.num_groups if entry.num_groups else 1
    expert_size = gcd(group, entry.shape.num_experts)
    settings = {
        "bf16": False,
        "max_grad_norm": MAX_NORM,
        "expert_parallel_size": expert_size,
        **entry.settings,
    }
    run = _resolve(build_config(settings), entry.shape, num_processes, num_gpus)
    if entry.experts:
        section = run.engine["expert_parallel"] | entry.experts
        run = replace(run, engine=run.engine | {"expert_parallel": section})
    return ParityCase(entry.name, run, lack=describe_lack(run))


def describe_lack(run: ResolvedRun) -> str:
    """Which setting of a run cannot run here, and why; empty where all can."""
    if run.config.model.use_liger_kernel and (lack := fused.describe_lack(is_on_gpu=run.is_on_gpu)):
        return f"use_liger_kernel: {lack}"
    needing = [] if run.is_on_gpu else settings_of_gpus(run)
    return f"{needing[0]}: there is no GPU" if needing else ""


def recipe_case(recipe: str, num_processes: int, *, num_gpus: int) -> ParityCase:
    """A recipe of ours or of the user's on the tiny model: its methods, not its sizes and rates.

    Raises:
        ConfigError: no such recipe, or one that these processes cannot carry out.
    """
    config = load_config(["--recipe", recipe])
    optimizer, parallel = config.optimizer, config.parallel
    size = parallel.expert_parallel_size
    name = optimizer.optimizer  # "auto" is AdamW, wherever its states will live
    record = find_optimizer(choose_optimizer(is_on_host=False) if name == "auto" else name)
    rates = {"sgd": SGD, "adamw": ADAMW}[record.reference]
    config = with_settings(
        config,
        bf16=record.shares_masters,
        learning_rate=rates["learning_rate"],
        adam_epsilon=ADAMW["adam_epsilon"],
        max_grad_norm=MAX_NORM if optimizer.max_grad_norm else 0.0,
        max_seq_length=min(config.data.max_seq_length, SHAPE.context_length),
        needle_lengths=None,
        use_flash_attn="auto",
        attention_dropout=0.0,
        expert_parallel_size=size if size == "auto" else gcd(int(size), num_processes),
        sequence_parallel_size=gcd(
            parallel.sequence_parallel_size, num_processes, SHAPE.num_attention_heads
        ),
    )
    if config.lora.use_lora:
        config = with_settings(config, lora_rank=min(config.lora.lora_rank, 8), lora_dropout=0.0)
    run = _resolve(config, SHAPE, num_processes, num_gpus)
    left_out = describe_lack(run)
    if left_out:  # of Liger's kernels: what the engine cannot do here, a rule has refused
        run = replace(run, config=with_settings(run.config, use_liger_kernel=False))
    return ParityCase(recipe, run, left_out=left_out)


def _resolve(
    config: RunConfig, shape: ModelShape, num_processes: int, num_gpus: int
) -> ResolvedRun:
    """As a run's settings are, by the same rules; all processes count as those of one host."""
    config = with_settings(config, num_processes=num_processes, timeout_minutes=2.0)
    machine = Machine(num_gpus=num_gpus, num_cores=num_processes)
    return resolve(config, shape=shape, machine=machine, known=SETTINGS_ALONE)
