"""The plan against reality: what processes of real engines hold, on CPU, within 3 %."""

from dataclasses import replace

import pytest
import torch

from hunyuan_train.config.resolved_run import ResolvedRun
from hunyuan_train.families.hunyuan_v1_moe import TINY
from hunyuan_train.optim.lean import LeanAdamW
from hunyuan_train.optim.lean_memory import SLICE_ELEMENTS
from hunyuan_train.optim.records import find_optimizer
from hunyuan_train.planner.activations import after_bytes, saved_bytes
from hunyuan_train.planner.disk import plan_disk
from hunyuan_train.planner.states import (
    gradient_bytes,
    host_states,
    kept_whole_bytes,
    optimizer_bytes,
    weight_bytes,
)
from tests.planner.held import Bytes, measure, resolved
from tests.planner.live import LiveBytes
from tests.ranks import run_ranks

SHAPE = replace(
    TINY,
    vocab_size=700,
    hidden_size=192,
    num_hidden_layers=2,
    num_attention_heads=8,
    head_dim=16,
)
LENGTHS = [100, 41]  # no two sizes of tensors are alike by chance
NUM_LABELS = sum(length - length // 3 - 1 for length in LENGTHS)  # tests/batches.py
TOLERANCE = 0.03
ZERO2 = "--expert_parallel_size 1 --deepspeed ds_configs/zero2.json"

RUNS = {
    "experts split over 2, bf16": (2, "--bf16 true --no_gradient_checkpointing"),
    "gradient checkpointing": (2, "--bf16 true --gradient_checkpointing"),
    "selective recomputation": (2, "--bf16 true --gradient_checkpointing selective"),
    "activations in host memory": (2, "--bf16 true --activation_offload"),
    "float32": (2, "--bf16 false --no_gradient_checkpointing"),
    "stage 3 without the expert layer": (
        2,
        "--bf16 true --expert_parallel_size 1 --no_gradient_checkpointing",
    ),
    "stage 2": (2, f"--bf16 true --no_gradient_checkpointing {ZERO2}"),
    "stage 2, float32, gradient checkpointing": (2, f"--bf16 false {ZERO2}"),
    "one process": (1, "--bf16 true --no_gradient_checkpointing"),
    "expert data parallelism": (4, "--bf16 true --expert_parallel_size 2"),
    "adapters on attention": (
        2,
        "--bf16 true --use_lora --lora_rank 8 --no_gradient_checkpointing",
    ),
    "adapters on everything": (
        2,
        "--bf16 true --use_lora --lora_rank 8 --lora_target_modules all "
        "--no_gradient_checkpointing",
    ),
    "experts in fp8": (2, "--bf16 true --use_lora --lora_rank 8 --expert_weights fp8"),
    "experts in nf4, adapters on everything": (
        2,
        "--bf16 true --use_lora --lora_rank 8 --lora_target_modules all --expert_weights nf4 "
        "--no_gradient_checkpointing",
    ),
    "experts in int4, one process": (
        1,
        "--bf16 true --use_lora --lora_rank 8 --expert_weights int4 --no_gradient_checkpointing",
    ),
    "offloaded optimizer": (2, "--bf16 true --optimizer offload"),
    "lean optimizer": (2, "--bf16 true --optimizer lean"),
    "lean optimizer, expert data parallelism": (
        4,
        "--bf16 true --optimizer lean --expert_parallel_size 2 --no_gradient_checkpointing",
    ),
    "no optimizer states": (2, "--bf16 true --optimizer sgd"),
}


def planned(run: ResolvedRun) -> Bytes:
    """The same lines as `measure` counts."""
    host = {line.name: line.num_bytes for line in host_states(run)}
    return {
        "weights": weight_bytes(run),
        "small weights kept whole": kept_whole_bytes(run) if run.stage == 3 else 0,
        "gradients": gradient_bytes(run),
        "optimizer": optimizer_bytes(run),
        "float32 gradients": host.get("float32 gradients, pinned", 0),
        "activations": saved_bytes(run) + after_bytes(run, NUM_LABELS),
        "checkpoint": plan_disk(run).checkpoint,
    }


COMPILED = {"offloaded optimizer"}  # DeepSpeed's extension, for a minute or more


@pytest.mark.parametrize(
    "name",
    [pytest.param(one, marks=pytest.mark.slow) if one in COMPILED else one for one in RUNS],
)
def test_every_component_is_what_the_processes_hold(name, monkeypatch):
    num_ranks, flags = RUNS[name]
    if num_ranks == 1:  # a CPU pads no rows of one rank (parallel/row_order.py)
        monkeypatch.setattr("hunyuan_train.planner.activations.ROW_ALIGNMENT", 0)
    words = [*flags.split(), "--max_seq_length", str(sum(LENGTHS))]
    ranks = run_ranks(measure, num_ranks, words, SHAPE, LENGTHS)
    plan = planned(resolved(words, SHAPE, num_ranks))
    for component, expected in plan.items():
        held = [rank[component] for rank in ranks]
        # Rows are routed unevenly, but all of them are routed; of the rest the fullest rank counts.
        found = sum(held) / num_ranks if component == "activations" else max(held)
        assert expected == pytest.approx(found, rel=TOLERANCE, abs=2000), component


@pytest.mark.parametrize("num_elements", [SLICE_ELEMENTS // 4, SLICE_ELEMENTS, 2 * SLICE_ELEMENTS])
def test_an_update_of_lean_takes_the_temporaries_that_plans_count_with(num_elements):
    weights = torch.zeros(num_elements, dtype=torch.bfloat16)
    weights.grad = torch.ones_like(weights)
    optimizer = LeanAdamW([{"params": [weights]}], lr=1e-3, betas=(0.9, 0.95), eps=1e-8)
    optimizer.start_state(weights)
    with LiveBytes() as live:
        optimizer.step()
    expected = find_optimizer("lean").temporary_bytes(num_elements, False)
    assert live.peak == pytest.approx(expected, rel=TOLERANCE)
