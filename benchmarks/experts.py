"""A layer of experts, forward and backward, beside that of Transformers, in turns on the same rows.

    python -m benchmarks.experts [--tokens 1024 4096] [--hidden 1024] [--turns 9] [--report]

One process and one thread, float32. Each contender has the same weights, and the gradients of all
of them are compared first. Time is processor time, ratios are medians over turns.
"""

import argparse
import os
import platform
import sys
import time
import warnings
from dataclasses import replace
from datetime import date
from importlib.metadata import version
from statistics import median

import torch
from deepspeed.module_inject.auto_ep import AutoEP
from deepspeed.module_inject.auto_ep_config import AutoEPConfig
from torch import Tensor, nn

from benchmarks.results import add_report_flag, show
from hunyuan_train.families.hunyuan_v1_moe import TINY
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.model.weights import SeededWeights
from hunyuan_train.parallel.expert import register_families, show_router_weight
from hunyuan_train.parallel.expert_layer import take_over_layers
from hunyuan_train.selftest.reference import plain_model


def make_shape(hidden: int) -> ModelShape:
    """One layer in the proportions of the released model."""
    return replace(
        TINY,
        vocab_size=256,
        hidden_size=hidden,
        intermediate_size=hidden * 3 // 4,
        num_hidden_layers=1,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=64,
        num_experts=64,
        moe_topk=8,
    )


def plain_block(shape: ModelShape) -> nn.Module:
    """Transformers' block of experts, with its grouped products."""
    source = SeededWeights(0, shape.initializer_range)
    model = plain_model(shape, source, attention="sdpa", experts="grouped_mm").train()
    return model.model.layers[0].mlp


def split_block(shape: ModelShape, gate_and_up: str = "separate") -> nn.Module:
    """Our block of experts, all of them on one rank; its two first products may be one."""
    source = SeededWeights(0, shape.initializer_range)
    model = plain_model(shape, source, attention="sdpa", experts="grouped_mm").train()
    register_families()
    show_router_weight(model)
    model.config.routed_scaling_factor = shape.router_scale
    settings = AutoEPConfig(enabled=True, preset_model=shape.family, gate_up_impl=gate_and_up)
    parts = AutoEP(model, settings)
    parts.replace_moe_layers(parts.ep_parser(), ep_size=1, ep_rank=0)
    block: nn.Module = model.model.layers[0].mlp
    take_over_layers([block])
    return block


def take_turn(
    block: nn.Module, hidden_states: Tensor, gradient: Tensor
) -> tuple[float, list[Tensor]]:
    """Seconds of the processor, and the result with the gradients that all have."""
    inputs = hidden_states.clone().requires_grad_()
    began = time.process_time()
    output = block(inputs)
    output.backward(gradient)
    seconds = time.process_time() - began
    results = [output.detach(), inputs.grad, *expert_gradients(block)]
    for parameter in block.parameters():
        parameter.grad = None
    return seconds, results


def expert_gradients(block: nn.Module) -> list[Tensor]:
    """Of gate, up and down, in one form."""
    experts = block.experts
    if hasattr(experts, "w1"):
        return [experts.w1.grad, experts.w3.grad, experts.w2.grad]
    return [*experts.gate_up_proj.grad.chunk(2, dim=1), experts.down_proj.grad]


def measure(
    contenders: dict[str, nn.Module], shape: ModelShape, num_tokens: int, num_turns: int
) -> tuple[dict[str, list[float]], float]:
    """Seconds of each contender by turn, and the largest relative difference between them."""
    generator = torch.Generator().manual_seed(0)
    size = (1, num_tokens, shape.hidden_size)
    hidden_states, gradient = (torch.randn(size, generator=generator) for _ in range(2))
    plain, *others = (take_turn(one, hidden_states, gradient)[1] for one in contenders.values())
    worst = max(
        float((one - wanted).norm() / wanted.norm())
        for results in others
        for one, wanted in zip(results, plain, strict=True)
    )
    del plain, others
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for number in range(num_turns):
        for name in names if number % 2 else reversed(names):
            seconds[name].append(take_turn(contenders[name], hidden_states, gradient)[0])
    return seconds, worst


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 4096])
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--turns", type=int, default=9)
    add_report_flag(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    load, shape = os.getloadavg()[0], make_shape(arguments.hidden)
    contenders = {
        "Transformers, grouped_mm": plain_block(shape),
        "ours": split_block(shape),
        "ours, gate and up as one product": split_block(shape, "fused"),
    }
    rows, worst = [], 0.0
    for num_tokens in arguments.tokens:
        seconds, difference = measure(contenders, shape, num_tokens, arguments.turns)
        worst = max(worst, difference)
        first = next(iter(seconds.values()))
        for name, own in seconds.items():
            ratio = median(one / other for one, other in zip(own, first, strict=True))
            rows.append(f"| {num_tokens:,} | {name} | {median(own):.2f} s | {ratio:.2f} |")
    lines = [
        f"## A layer of experts: {date.today()}",
        "",
        f"`{' '.join(['python -m benchmarks.experts', *sys.argv[1:]])}` on {platform.machine()}, "
        f"load {load:.1f} before and {os.getloadavg()[0]:.1f} behind, torch {version('torch')}, "
        f"float32, one thread; hidden size {arguments.hidden}, 64 experts three quarters as wide, "
        f"8 a token; processor time of forward and backward, medians of {arguments.turns} turns. "
        f"Results and gradients differ by at most {worst:.0e} of their norm.",
        "",
        "| tokens | layer | time | ratio |",
        "|---:|---|---:|---:|",
        *rows,
        "",
    ]
    show("\n".join(lines), is_kept=arguments.report)


if __name__ == "__main__":
    main()
