"""The tables of what fits where: each figure is what `hunyuan-train plan` answers today."""

import io
import json
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache
from typing import Any

from hunyuan_train.config.planned_machines import MATMUL_SHARE
from hunyuan_train.planner.command import run_plan
from hunyuan_train.planner.machine import BANDWIDTH_SHARE
from hunyuan_train.planner.memory import SKEWED
from hunyuan_train.planner.speed import USUAL_SKEW

TOKENS = 10_000_000  # of the job whose hours are shown


@dataclass(frozen=True, slots=True)
class Job:
    """One line of a table."""

    english: str
    chinese: str
    flags: str  # of `hunyuan-train plan`
    num_gpus: int


LORA_NODE = Job(
    "Hunyuan-A13B, LoRA, 8×80 GB", "Hunyuan-A13B，LoRA，8×80 GB", "--method lora --gpu_memory 80", 8
)
LORA_ONE = Job(
    "Hunyuan-A13B, LoRA, experts in `nf4`, 1×80 GB",
    "Hunyuan-A13B，LoRA，专家用 `nf4`，1×80 GB",
    "--recipe one_gpu --gpus 1 --gpu_memory 80",
    1,
)
LORA_ONE_INT4 = Job(
    "Hunyuan-A13B, LoRA, experts in `int4`, 1×80 GB",
    "Hunyuan-A13B，LoRA，专家用 `int4`，1×80 GB",
    "--recipe one_gpu --expert_weights int4 --gpus 1 --gpu_memory 80",
    1,
)
LORA_TWO = Job(
    "Hunyuan-A13B, LoRA, experts in `fp8`, 2×80 GB",
    "Hunyuan-A13B，LoRA，专家用 `fp8`，2×80 GB",
    "--method lora --expert_weights fp8 --gpus 2 --gpu_memory 80",
    2,
)
HY3_NODE = Job(
    "Hy3, LoRA, experts in `fp8`, 8×80 GB",
    "Hy3，LoRA，专家用 `fp8`，8×80 GB",
    "--model hy3 --method lora --expert_weights fp8 --gpu_memory 80",
    8,
)
LORA_FOUR = Job(
    "Hunyuan-A13B, LoRA, 4×80 GB",
    "Hunyuan-A13B，LoRA，4×80 GB",
    "--method lora --gpus 4 --gpu_memory 80",
    4,
)
FULL_NODE = Job(
    "Hunyuan-A13B, full fine-tuning (`lean`), 8×80 GB",
    "Hunyuan-A13B，全参数微调（`lean`），8×80 GB",
    "--method full --gpu_memory 80",
    8,
)
OFFLOAD_NODE = Job(
    "Hunyuan-A13B, full fine-tuning (`offload`), 8×80 GB",
    "Hunyuan-A13B，全参数微调（`offload`），8×80 GB",
    "--method full --optimizer offload --gpu_memory 80",
    8,
)
LORA_NODES = Job(
    "Hunyuan-A13B, LoRA, 2×8×80 GB",
    "Hunyuan-A13B，LoRA，2×8×80 GB",
    "--method lora --nodes 2 --gpu_memory 80",
    16,
)
FULL_NODES = Job(
    "Hunyuan-A13B, full fine-tuning (`lean`), 2×8×80 GB",
    "Hunyuan-A13B，全参数微调（`lean`），2×8×80 GB",
    "--method full --nodes 2 --gpu_memory 80",
    16,
)
ADAMW_NODES = Job(
    "Hunyuan-A13B, full fine-tuning (`adamw`), 3×8×80 GB",
    "Hunyuan-A13B，全参数微调（`adamw`），3×8×80 GB",
    "--method full --optimizer adamw --nodes 3 --gpu_memory 80",
    24,
)
H20_NODE = Job(
    "Hunyuan-A13B, LoRA, 8×H20", "Hunyuan-A13B，LoRA，8×H20", "--method lora --gpu h20", 8
)
HY3_LORA = Job(
    "Hy3, LoRA, 2×8×80 GB",
    "Hy3，LoRA，2×8×80 GB",
    "--model hy3 --method lora --nodes 2 --gpu_memory 80",
    16,
)
HY3_FULL = Job(
    "Hy3, full fine-tuning (`lean`), 4×8×80 GB",
    "Hy3，全参数微调（`lean`），4×8×80 GB",
    "--model hy3 --method full --nodes 4 --gpu_memory 80",
    32,
)
MT_LORA = Job(
    "Hy-MT2-30B-A3B, LoRA, 1×80 GB",
    "Hy-MT2-30B-A3B，LoRA，1×80 GB",
    "--model hy-mt2-30b-a3b --method lora --gpus 1 --gpu_memory 80",
    1,
)
MT_FULL = Job(
    "Hy-MT2-30B-A3B, full fine-tuning (`lean`), 4×80 GB",
    "Hy-MT2-30B-A3B，全参数微调（`lean`），4×80 GB",
    "--model hy-mt2-30b-a3b --method full --gpus 4 --gpu_memory 80",
    4,
)
DENSE_LORA = Job(
    "Hunyuan-7B, LoRA, 1×24 GB",
    "Hunyuan-7B，LoRA，1×24 GB",
    "--model hunyuan-7b --method lora --gpus 1 --gpu rtx4090",
    1,
)
DENSE_FULL = Job(
    "Hunyuan-7B, full fine-tuning (`lean`), 1×80 GB",
    "Hunyuan-7B，全参数微调（`lean`），1×80 GB",
    "--model hunyuan-7b --method full --gpus 1 --gpu_memory 80",
    1,
)
SMALL_FULL = Job(
    "Hunyuan-1.8B, full fine-tuning (`lean`), 1×24 GB",
    "Hunyuan-1.8B，全参数微调（`lean`），1×24 GB",
    "--model hunyuan-1.8b --method full --gpus 1 --gpu rtx4090",
    1,
)
LONG_FLAGS = "--recipe long --use_lora --learning_rate 1e-4 --min_lr 1e-5 --gpu_memory 80"
LONG_LORA = Job(
    "Hunyuan-A13B, LoRA, sequences of 262,144, 8×80 GB",
    "Hunyuan-A13B，LoRA，序列长度 262,144，8×80 GB",
    LONG_FLAGS,
    8,
)
LONG_LORA_32K, LONG_LORA_64K, LONG_LORA_128K = (
    Job(
        f"Hunyuan-A13B, LoRA, sequences of {length:,}, 8×80 GB",
        f"Hunyuan-A13B，LoRA，序列长度 {length:,}，8×80 GB",
        f"{LONG_FLAGS} --max_seq_length {length}",
        8,
    )
    for length in (32_768, 65_536, 131_072)
)
LONG_FULL = Job(
    "Hunyuan-A13B, full fine-tuning (`adamw`), sequences of 262,144, 4×8×80 GB",
    "Hunyuan-A13B，全参数微调（`adamw`），序列长度 262,144，4×8×80 GB",
    "--recipe long --nodes 4 --gpu_memory 80",
    32,
)
SMALL_CARDS = Job(
    "Hunyuan-A13B, LoRA, experts in `nf4`, 2×48 GB",
    "Hunyuan-A13B，LoRA，专家用 `nf4`，2×48 GB",
    "--method lora --expert_weights nf4 --gpus 2 --gpu l40s",
    2,
)
SMALLEST_CARDS = Job(
    "Hunyuan-A13B, LoRA, experts in `nf4`, `--moe_chunks 8`, 4×24 GB",
    "Hunyuan-A13B，LoRA，专家用 `nf4`，`--moe_chunks 8`，4×24 GB",
    "--method lora --expert_weights nf4 --moe_chunks 8 --gpus 4 --gpu rtx4090",
    4,
)
HY3_NODE_NF4 = Job(
    "Hy3, LoRA, experts in `nf4`, 8×80 GB",
    "Hy3，LoRA，专家用 `nf4`，8×80 GB",
    "--model hy3 --method lora --expert_weights nf4 --gpu_memory 80",
    8,
)
MT_SMALL_CARD = Job(
    "Hy-MT2-30B-A3B, LoRA, experts in `nf4`, one card of 25.7 GB (sold as 24 GB)",
    "Hy-MT2-30B-A3B，LoRA，专家用 `nf4`，一张 25.7 GB 的卡（标称 24 GB）",
    "--model hy-mt2-30b-a3b --method lora --expert_weights nf4 --gpus 1 --gpu rtx4090 "
    "--gpu_memory 25.7",
    1,
)

TABLES: dict[str, Sequence[Job]] = {
    "models": (
        *(LORA_ONE, SMALL_CARDS, LORA_FOUR, LORA_NODE, FULL_NODE, HY3_NODE, HY3_LORA, HY3_FULL),
        *(MT_LORA, MT_FULL, DENSE_LORA, DENSE_FULL, SMALL_FULL),
    ),
    "readme": (
        *(LORA_ONE, LORA_FOUR, FULL_NODE, HY3_NODE, HY3_FULL),
        *(MT_LORA, DENSE_LORA, DENSE_FULL),
    ),
    "laptop": (LORA_NODE, FULL_NODE, DENSE_LORA),
    "one-gpu": (LORA_ONE, LORA_ONE_INT4, LORA_TWO, MT_LORA, DENSE_FULL, DENSE_LORA, SMALL_FULL),
    "one-node": (LORA_FOUR, LORA_NODE, FULL_NODE, OFFLOAD_NODE, H20_NODE),
    "many-hosts": (LORA_NODES, FULL_NODES, ADAMW_NODES, HY3_LORA, HY3_FULL),
    "slurm": (LORA_NODES, FULL_NODES),
    "long": (LONG_LORA_32K, LONG_LORA_64K, LONG_LORA_128K, LONG_LORA, LONG_FULL),
    "adapters": (LORA_ONE, SMALL_CARDS, SMALLEST_CARDS, HY3_NODE, HY3_NODE_NF4, MT_SMALL_CARD),
    "memory": (FULL_NODE, OFFLOAD_NODE, FULL_NODES, ADAMW_NODES),
}
ENGLISH_COLUMNS = "job", "memory per GPU", "host memory per node", "disk", "tokens/s (assumed)"
CHINESE_COLUMNS = "任务", "单卡显存", "每台机器的内存", "磁盘", "token/s（假设值）"
COLUMNS = {
    False: (*ENGLISH_COLUMNS, "time for 10 M tokens", "GPU-hours"),
    True: (*CHINESE_COLUMNS, "10 M token 用时", "GPU 小时"),
}
OTHER_GPUS = {"H20": "--gpu h20", "48 GB: L40S": "--gpu l40s", "24 GB: RTX 4090": "--gpu rtx4090"}
# Shares of peak rates, and of the busiest rank, as the planner assumes them.
SHARES = f"{MATMUL_SHARE:.0%}".replace("%", " %"), f"{BANDWIDTH_SHARE:.0%}".replace("%", " %")
NOTE = {
    False: f"Speeds are for an {{gpus}} that reaches {SHARES[0]} of its peak matrix throughput and "
    f"{SHARES[1]} of its memory and link bandwidth. They also assume that the busiest rank "
    f"receives {USUAL_SKEW:g} times an equal share of the routed tokens. Memory figures allow for "
    f"a rank that receives {SKEWED:g} times an equal share, so that a step with badly balanced "
    "routing still fits. No "
    "GPU run has confirmed these speeds: allow up to twice the time. Times are for one epoch. "
    "They exclude start-up, evaluation and saving. GB means 10^9 bytes. Disk is for "
    "checkpoints and the export, without the base model. Cost is GPU-hours times your price.",
    True: f"速度按以下假设估算：{{gpus}} 的矩阵乘达到峰值的 {SHARES[0]}，带宽达到 {SHARES[1]}；"
    f"最忙的进程收到的 token 是平均值的 {USUAL_SKEW:g} 倍。"
    f"显存按 {SKEWED:g} 倍估算，不均衡的步也放得下。"
    "速度没有在 GPU 上验证过，请按两倍时间安排。用时按一个 epoch 计，不含启动、评估和保存。"
    "GB 指 10^9 字节。磁盘只计检查点和导出结果，不含基座模型。费用 = GPU 小时 × 单价。",
}


def write_table(name: str, *, is_chinese: bool) -> str:
    """One table, with what is assumed below it."""
    jobs = TABLES[name]
    columns = COLUMNS[is_chinese]
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    lines += [write_row(job, is_chinese=is_chinese) for job in jobs]
    others = [name for name, flag in OTHER_GPUS.items() if any(flag in job.flags for job in jobs)]
    gpus = f"H100 ({', '.join(others)})" if others else "H100"
    return "\n".join([*lines, "", NOTE[is_chinese].format(gpus=gpus)])


def write_row(job: Job, *, is_chinese: bool) -> str:
    """One job: what the plan says of it.

    Raises:
        ValueError: it does not fit.
    """
    plan = ask_plan(job.flags)
    if not plan["fits"]:
        raise ValueError(f"{job.flags} does not fit: {plan['shortages']}")
    disk = plan["disk"]
    hours = TOKENS / plan["tokens_per_second"] / 3600
    cells = [
        job.chinese if is_chinese else job.english,
        gigabytes(plan["device_peak"]),
        gigabytes(plan["host_per_machine"]),
        gigabytes(disk["checkpoint"] * disk["checkpoints"] + disk["export"]),
        f"{plan['tokens_per_second']:,.0f}",
        f"{hours * 60:.0f} min" if hours < 1 else f"{hours:.1f} h",
        f"{hours * job.num_gpus:.1f}",
    ]
    return "| " + " | ".join(cells) + " |"


@cache
def ask_plan(flags: str) -> dict[str, Any]:
    """What `hunyuan-train plan FLAGS --json` prints."""
    printed = io.StringIO()
    with redirect_stdout(printed):
        run_plan([*flags.split(), "--json"])
    answer: dict[str, Any] = json.loads(printed.getvalue())
    return answer


def gigabytes(number: float) -> str:
    """Bytes in GB, as `plan` counts them."""
    value = number / 1e9
    return f"{value:,.1f} GB" if value < 100 else f"{value:,.0f} GB"
