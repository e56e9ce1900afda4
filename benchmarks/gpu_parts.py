"""What one GPU is asked in its first minutes: parts that each give a section of figures.

Each runs in a process of its own (`benchmarks/gpu_first.py`), so that a kernel that breaks the GPU
breaks nothing else. Scaled down they run on a CPU too, on what there is: with plain kernels.
"""

import json
import os
import platform
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from deepspeed.module_inject.auto_ep_layer import (
    combine_from_routed,
    permute_by_local_expert,
    unpermute_by_local_expert,
)
from deepspeed.moe.ep_experts import (
    _run_experts_for_loop,
    _run_experts_grouped_mm,
    _run_experts_grouped_mm_fused_gate_up,
)
from deepspeed.ops.triton_ops import autoep_fused_token_ops
from torch import Tensor, nn
from torch.nn import functional
from transformers.integrations.flash_attention import flash_attention_forward
from transformers.models.hunyuan_v1_moe import modeling_hunyuan_v1_moe as modeling

from hunyuan_train.checkpoint.staging import Staging
from hunyuan_train.launcher.host.gpu_faults import find_faults
from hunyuan_train.launcher.host.probe import list_what_triton_lacks, read_gpu_faults
from hunyuan_train.launcher.rank.collectives import describe, read_collectives
from hunyuan_train.launcher.rank.environment import deterministic_environment
from hunyuan_train.model import attention
from hunyuan_train.model.compressed_values import decode
from hunyuan_train.model.compression_scheme import Scheme
from hunyuan_train.model.fused import Kernels, describe_lack, load_kernels
from hunyuan_train.optim.lean import LeanAdamW, random_bits
from hunyuan_train.optim.lean_memory import SLICE_ELEMENTS
from hunyuan_train.parallel.determinism import compute_deterministically
from hunyuan_train.parallel.engine import read_recorders, start_process_group
from hunyuan_train.parallel.quantised_experts import CompressedWeights, compile_decoding
from hunyuan_train.parallel.row_weights import WeightedSwiglu, has_kernels

CODED = {  # frozen experts
    "nf4": Scheme("nf4", 64),
    "int4": Scheme("group", 32),
    "gptq": Scheme("group", 128, "gptq"),
    "fp8 by tensor": Scheme("tensor"),
    "fp8 by channel": Scheme("channel"),
    "fp8 by block": Scheme("block"),
}
SEVEN = 7  # tokens of an expert that gets next to none
WEIGHTS_OF_A_RANK = 10.05e9  # of 80 B over eight
Rows = Iterator[tuple[str, ...]]  # of a table of Markdown


@dataclass(frozen=True, slots=True)
class Scale:
    """Sizes: those of a rank of the released model, or small ones for a CPU."""

    tokens: int = 4096
    hidden: int = 4096
    intermediate: int = 3072
    experts: int = 8
    coded: tuple[int, int, int] = (64, 3072, 4096)  # experts on one GPU, their outputs and inputs
    top_k: int = 8
    heads: tuple[int, int, int] = (32, 8, 128)  # heads, key-value heads, their size
    weights: int = 24 * SLICE_ELEMENTS  # of the optimizer's work
    staged_bytes: int = 4 * 2**30
    repeats: int = 10
    is_small: bool = False

    @property
    def device(self) -> torch.device:
        return torch.device("cpu" if self.is_small else "cuda")

    @property
    def dtype(self) -> torch.dtype:
        """A CPU without instructions for bfloat16 takes 30 times as long with it."""
        return torch.float32 if self.is_small else torch.bfloat16

    def random(self, *shape: int, scale: float = 1.0) -> Tensor:
        values = torch.randn(*shape, device=self.device) * scale
        return values.to(self.dtype).requires_grad_()


SMALL = Scale(
    tokens=96,
    hidden=64,
    intermediate=48,
    experts=8,
    coded=(2, 256, 384),
    top_k=2,
    heads=(4, 2, 16),
    weights=2**14,
    staged_bytes=2**20,
    repeats=1,
    is_small=True,
)


def timed(work: Callable[[], object], scale: Scale) -> float:
    """Milliseconds that some work takes, once it is warm."""
    work()
    wait(scale)
    began = time.perf_counter()
    for _ in range(scale.repeats):
        work()
    wait(scale)
    return (time.perf_counter() - began) / scale.repeats * 1000


def wait(scale: Scale) -> None:
    if not scale.is_small:
        torch.cuda.synchronize()


def run_quietly(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        return f"{command[0]}: {error}"
    return done.stdout.strip().replace("\n", "; ") or done.stderr.strip()[:200] or "nothing"


def machine(scale: Scale) -> Rows:
    """Versions, and memory as nvidia-smi and CUDA see it."""
    yield (
        "Python, torch, deepspeed, transformers",
        ", ".join(
            [platform.python_version(), *map(version, ("torch", "deepspeed", "transformers"))]
        ),
    )
    query = "--query-gpu=name,memory.total,memory.used,driver_version"
    yield "nvidia-smi", run_quietly("nvidia-smi", query, "--format=csv,noheader")
    if not scale.is_small:
        free, total = torch.cuda.mem_get_info()
        yield "CUDA: total, free with its context", f"{total / 2**30:.2f} GiB, {free / 2**30:.2f}"
        properties = torch.cuda.get_device_properties(0)
        yield "CUDA, NCCL", f"{torch.version.cuda}, {torch.cuda.nccl.version()}"
        yield (
            "capability, multiprocessors",
            (f"{properties.major}.{properties.minor}, {properties.multi_processor_count}"),
        )
        yield (
            "NUMA: PCI domain, bus, device",
            (f"{properties.pci_domain_id}, {properties.pci_bus_id}, {properties.pci_device_id}"),
        )
    yield "flash-attn", ", ".join(attention.installed_flash_attention()) or "not installed"
    yield "Triton lacks", ", ".join(list_what_triton_lacks(os.environ)) or "nothing"
    yield "headers", sysconfig.get_path("include")
    found = read_gpu_faults()
    faults = find_faults(found, within_seconds=24 * 3600)
    yield "errors of GPUs", "; ".join(f"{one.address}: {one.words}" for one in faults) or "none"
    yield "kernel's log", "read" if found["kernel_log_is_read"] else "not readable here"
    yield "memory errors by nvidia-smi -q", f"{len(found['gpu_memory_errors'])} characters"


def attention_kernels(scale: Scale) -> Rows:
    """Each attention backend against one call a document in float32, and whether it repeats."""
    yield "backend", "largest difference: output, q, k, v", "repeats", "deterministic", "ms"
    bounds = [0, scale.tokens // 6, scale.tokens // 6 + 1, scale.tokens // 2, scale.tokens]
    marks = torch.tensor(bounds, dtype=torch.int32, device=scale.device)
    lengths = marks.diff().tolist()
    heads, kv_heads, size = scale.heads
    torch.manual_seed(0)
    query, key, value = (
        scale.random(1, n, scale.tokens, size) for n in (heads, kv_heads, kv_heads)
    )
    gradient = torch.randn(1, scale.tokens, heads, size, device=scale.device).to(scale.dtype)
    options = {
        "document_lengths": lengths,
        "cu_seq_lens_q": marks,
        "cu_seq_lens_k": marks,
        "max_length_q": max(lengths),
        "max_length_k": max(lengths),
    }

    def run(name: str, *, in_float32: bool = False) -> list[Tensor]:
        function = backends[name]
        inputs = [one.float() if in_float32 else one for one in (query, key, value)]
        output = function(*inputs, options)
        taken = torch.autograd.grad(output, (query, key, value), gradient.to(output.dtype))
        return [output.detach(), *taken]

    backends = attention_backends(scale, size)
    exact = run(attention.PER_DOCUMENT, in_float32=True)
    for name in backends:
        once, twice = run(name), run(name)
        with deterministic():
            again = [run(name), run(name)]
        differences = [
            f"{(a.float() - b.float()).abs().max():.4f}" for a, b in zip(once, exact, strict=True)
        ]
        yield (
            *(name, ", ".join(differences), repeats(once, twice), repeats(*again)),
            f"{timed(lambda name=name: run(name), scale):.2f}",
        )


def attention_backends(scale: Scale, size: int) -> dict[str, Callable[..., Tensor]]:
    """The implementations that this machine has, called as the model calls them."""

    def ours(function: Callable[..., tuple[Tensor, None]]) -> Callable[..., Tensor]:
        def call(query: Tensor, key: Tensor, value: Tensor, options: dict[str, object]) -> Tensor:
            return function(None, query, key, value, None, size**-0.5, **options)[0]

        return call

    def transformers(name: str) -> Callable[..., Tensor]:
        config = SimpleNamespace(_attn_implementation=name)
        module = SimpleNamespace(is_causal=True, config=config)

        def call(query: Tensor, key: Tensor, value: Tensor, options: dict[str, object]) -> Tensor:
            taken = {n: one for n, one in options.items() if n != "document_lengths"}
            return flash_attention_forward(
                module, query, key, value, None, scaling=size**-0.5, **taken
            )[0]

        return call

    found = {attention.PER_DOCUMENT: ours(attention.per_document_attention)}
    if not scale.is_small:
        found[attention.VARIABLE_LENGTH] = ours(attention.variable_length_attention)
        found |= {name: transformers(name) for name in attention.installed_flash_attention()}
    return found


@contextmanager
def deterministic() -> Iterator[None]:
    """What --deterministic sets, for some work."""
    with mock.patch.dict(os.environ, deterministic_environment(os.environ)):
        compute_deterministically()
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(False)


def repeats(once: list[Tensor], twice: list[Tensor]) -> str:
    return "yes" if all(torch.equal(a, b) for a, b in zip(once, twice, strict=True)) else "no"


def expert_counts(scale: Scale, skew: float, *, multiple: int = 1) -> list[int]:
    """Rows of each expert: one gets none, one seven, and one so many times an equal share."""
    rows = scale.tokens * scale.top_k
    busiest = int(skew * rows / scale.experts) // multiple * multiple
    few = -(-SEVEN // multiple) * multiple
    others = scale.experts - 3
    equal = (rows - busiest - few) // others // multiple * multiple
    return [rows - busiest - few - equal * (others - 1), *[equal] * (others - 1), 0, few, busiest]


def expert_kernels(scale: Scale) -> Rows:
    """AutoEP's kernels against its plain loop, with an expert of no token and one of seven."""
    yield "experts", "relative error: output, rows, w1, w2, w3", "finite", "ms", "TFLOP/s"
    torch.manual_seed(0)
    hidden, inner = scale.hidden, scale.intermediate
    shapes = [(inner, hidden), (hidden, inner), (inner, hidden)]
    w1, w2, w3 = (scale.random(scale.experts, *shape, scale=0.02) for shape in shapes)
    rows = scale.random(scale.tokens * scale.top_k, hidden)
    counts = torch.tensor(expert_counts(scale, 2.0), dtype=torch.int32, device=scale.device)

    def run(function: Callable[..., Tensor]) -> list[Tensor]:
        permuted, order, sizes, number = permute_by_local_expert(rows, counts)
        output = unpermute_by_local_expert(function(w1, w2, w3, permuted, sizes), order, number)
        return [output.detach(), *torch.autograd.grad(output, (rows, w1, w2, w3), rows.detach())]

    exact = run(_run_experts_for_loop)
    kinds = {
        "separate gate and up": _run_experts_grouped_mm,
        "gate_up_impl fused": _run_experts_grouped_mm_fused_gate_up,
    }
    flops = 18 * len(rows) * hidden * inner
    for name, function in kinds.items():
        got = run(function)
        errors = ", ".join(f"{relative_error(a, b):.5f}" for a, b in zip(got, exact, strict=True))
        is_finite = all(bool(one.isfinite().all()) for one in got)
        spent = timed(lambda function=function: run(function), scale)
        yield name, errors, str(is_finite), f"{spent:.2f}", f"{flops / spent / 1e9:.1f}"
    # The permutation alone, which is a Triton kernel on a GPU, against the CPU's.
    on_host = permute_by_local_expert(rows.detach().cpu(), counts.cpu())[0]
    permuted = permute_by_local_expert(rows.detach(), counts)[0]
    yield "permutation as on the CPU", repeats([on_host], [permuted.cpu()]), "", "", ""


def relative_error(got: Tensor, exact: Tensor) -> float:
    return float((got.float() - exact.float()).norm() / exact.float().norm().clamp_min(1e-30))


def combining(scale: Scale) -> Rows:
    """The experts' outputs weighed and summed: plain against fused_weighted_sum."""
    yield "combine_impl", "largest difference: output, rows, scores", "ms"
    torch.manual_seed(0)
    number = scale.tokens * scale.top_k
    rows = scale.random(number, scale.hidden)
    scores = torch.rand(scale.tokens, scale.top_k, device=scale.device, requires_grad=True)
    order = torch.randperm(number, device=scale.device)
    shape = (1, scale.tokens, scale.hidden)
    gradient = torch.randn(shape, device=scale.device)

    def run(function: Callable[[], Tensor]) -> list[Tensor]:
        output = function()
        return [
            output.detach(),
            *torch.autograd.grad(output, (rows, scores), gradient.to(output.dtype)),
        ]

    def plain() -> Tensor:
        return combine_from_routed(rows, scores, order, scale.top_k, "post", "weighted_sum", shape)

    def fused() -> Tensor:
        return autoep_fused_token_ops.fused_weighted_restore(
            rows, top_scores=scores, token_indices_sorted=order, top_k=scale.top_k, shape=shape
        )

    exact = run(plain)
    yield "weighted_sum", "0", f"{timed(lambda: run(plain), scale):.2f}"
    if scale.is_small:  # Triton has no CPU
        yield "fused_weighted_sum", "needs a GPU", ""
        return
    pairs = zip(run(fused), exact, strict=True)
    errors = [f"{(a.float() - b.float()).abs().max():.4f}" for a, b in pairs]
    yield "fused_weighted_sum", ", ".join(errors), f"{timed(lambda: run(fused), scale):.2f}"


def gating(scale: Scale) -> Rows:
    """SwiGLU times the router's weight, one kernel each way on a GPU: against its formula."""
    yield "weighted SwiGLU", "relative error: result, gate, up, weights", "ms"
    torch.manual_seed(0)
    number = scale.tokens * scale.top_k
    gate, up = (scale.random(number, scale.intermediate) for _ in range(2))
    weights = torch.rand(number, device=scale.device, requires_grad=True)

    def formula(gate: Tensor, up: Tensor, weights: Tensor) -> Tensor:
        return functional.silu(gate.float()) * up.float() * weights[:, None]

    def run(function: Callable[..., Tensor]) -> list[Tensor]:
        result = function(gate, up, weights)
        gradient = up.detach().to(result.dtype)
        return [result.detach(), *torch.autograd.grad(result, (gate, up, weights), gradient)]

    pairs = zip(run(WeightedSwiglu.apply), run(formula), strict=True)
    errors = ", ".join(f"{relative_error(a, b):.5f}" for a, b in pairs)
    yield "formula in float32", "0", f"{timed(lambda: run(formula), scale):.2f}"
    name = "kernels" if has_kernels() else "operators, for Triton has no GPU"
    yield name, errors, f"{timed(lambda: run(WeightedSwiglu.apply), scale):.2f}"


def fused_kernels(scale: Scale) -> Rows:
    """RMSNorm, rope and SwiGLU, forward and backward: Transformers' operators against Liger's."""
    yield "part", "largest difference: results, gradients", "plain, ms", "Liger, ms"
    heads, kv_heads, size = scale.heads
    torch.manual_seed(0)
    hidden, weight = scale.random(scale.tokens, scale.hidden), scale.random(scale.hidden)
    gate, up = (scale.random(scale.tokens, scale.intermediate) for _ in range(2))
    query, key = (scale.random(1, n, scale.tokens, size) for n in (heads, kv_heads))
    angles = torch.rand(1, scale.tokens, size // 2, device=scale.device).repeat(1, 1, 2)
    cos, sin = angles.cos().to(scale.dtype), angles.sin().to(scale.dtype)
    plain_norm = modeling.HunYuanMoEV1RMSNorm(scale.hidden).to(scale.device)
    plain_norm.weight = nn.Parameter(weight.detach())
    plain = Kernels(
        norm=lambda rows, _, __: plain_norm(rows),
        rope=modeling.apply_rotary_pos_emb,
        gate=lambda one, other: functional.silu(one) * other,
    )
    lack = describe_lack(is_on_gpu=not scale.is_small)
    fused = None if lack else load_kernels()
    parts: dict[str, tuple[Callable[[Kernels], Any], list[Tensor]]] = {
        "RMSNorm": (lambda one: one.norm(hidden, weight, 1e-6), [hidden]),
        # Copies, because Liger's writes over what it is given.
        "rope": (lambda one: one.rope(query.clone(), key.clone(), cos, sin), [query, key]),
        "SwiGLU": (lambda one: one.gate(gate.clone(), up.clone()), [gate, up]),
    }

    def run(kernels: Kernels, work: Callable[[Kernels], Any], inputs: list[Tensor]) -> list[Tensor]:
        results = work(kernels)
        results = [results] if isinstance(results, Tensor) else list(results)
        ones = [torch.ones_like(one) for one in results]
        return [*(one.detach() for one in results), *torch.autograd.grad(results, inputs, ones)]

    for name, (work, inputs) in parts.items():
        exact = run(plain, work, inputs)
        spent = timed(lambda work=work, inputs=inputs: run(plain, work, inputs), scale)
        if fused is None:
            yield name, lack, f"{spent:.3f}", ""
            continue
        pairs = zip(run(fused, work, inputs), exact, strict=True)
        errors = ", ".join(f"{(a.float() - b.float()).abs().max():.4f}" for a, b in pairs)
        fast = timed(lambda work=work, inputs=inputs: run(fused, work, inputs), scale)
        yield name, errors, f"{spent:.3f}", f"{fast:.3f}"


def products(scale: Scale) -> Rows:
    """Grouped products alone, by how uneven the experts are, beside one product of that size."""
    yield "product", "ms", "TFLOP/s"
    torch.manual_seed(0)
    number, hidden, inner = scale.tokens * scale.top_k, scale.hidden, scale.intermediate
    rows, weights = scale.random(number, hidden), scale.random(scale.experts, hidden, inner)
    gradient = scale.random(number, inner)
    flops = 2 * number * hidden * inner
    with torch.no_grad():
        spent = timed(lambda: rows @ weights[0], scale)
        yield "one product", f"{spent:.3f}", f"{flops / spent / 1e9:.1f}"
        for name, counts in {
            "equal": [number // scale.experts] * scale.experts,
            "skew 3": expert_counts(scale, 3.0, multiple=8),  # as AutoEP pads them
        }.items():
            ends = torch.tensor(counts, device=scale.device).cumsum(0).int()
            kinds = {
                "forward": lambda ends=ends: torch._grouped_mm(rows, weights, offs=ends),
                "gradient of rows": lambda ends=ends: torch._grouped_mm(
                    gradient, weights.transpose(-2, -1), offs=ends
                ),
                "gradient of weights": lambda ends=ends: torch._grouped_mm(
                    rows.transpose(0, 1), gradient, offs=ends
                ),
            }
            for kind, work in kinds.items():
                spent = timed(work, scale)
                yield f"{kind}, {name}", f"{spent:.3f}", f"{flops / spent / 1e9:.1f}"


def decoding(scale: Scale) -> Rows:
    """A piece of experts made of codes: by torch's operators and by one kernel, bit for bit."""
    yield "codes", "piece", "weights that differ", "torch, ms", "kernel, ms", "TB/s"
    _, rows, columns = scale.coded
    for name, scheme in CODED.items():
        weights = coded_experts(scale, scheme)
        if not scale.is_small:
            compile_decoding([weights], torch.bfloat16)  # raises where it makes anything else
        compiled = weights.decoder
        pieces = {
            f"{weights.row_piece(torch.bfloat16)} rows": weights.rows,
            f"{weights.column_piece(torch.bfloat16)} columns": weights.columns,
        }
        for piece, cut in pieces.items():
            length = int(piece.partition(" ")[0])

            def make(cut=cut, length=length) -> Tensor:
                return cut(0, length, torch.bfloat16)

            weights.decoder = decode
            plain, spent = make(), timed(make, scale)
            if scale.is_small:  # Triton has no CPU
                yield name, piece, "needs a GPU", f"{spent:.3f}", "", ""
                continue
            weights.decoder = compiled
            differing = int((make().view(torch.int16) != plain.view(torch.int16)).sum())
            fast = timed(make, scale)
            each = 2 + scheme.num_bytes(rows, columns, scale_bytes=2) / (rows * columns)
            yield (
                *(name, piece, f"{differing} of {plain.numel()}", f"{spent:.3f}", f"{fast:.3f}"),
                f"{each * plain.numel() / fast / 1e9:.2f}",
            )


def coded_experts(scale: Scale, scheme: Scheme) -> CompressedWeights:
    """Experts of random codes, but for NaN, and of random scales."""
    torch.manual_seed(0)
    experts, rows, columns = scale.coded
    weights = CompressedWeights(scale.coded, scheme)
    for expert in range(experts):
        width = columns // 2 if scheme.is_4bit else columns
        codes = torch.randint(256, (rows, width), dtype=torch.uint8, device=scale.device)
        if not scheme.is_4bit:
            codes = codes.masked_fill(codes & 127 == 127, 0)
        scales = torch.rand(scheme.scales_shape(rows, columns))
        dtype = torch.float32 if scheme.strategy == "nf4" else torch.bfloat16
        if scheme.strategy == "group":
            codes = codes.view(torch.int32)
        weights.put(expert, codes, scales.to(dtype), scale.device)
    return weights


def update(scale: Scale) -> Rows:
    """The lean optimizer, compiled and tried against the plain one, and what its parts take."""
    optimizer = LeanAdamW(
        [{"params": [], "key": "k", "weight_decay": 0.1}], lr=1e-5, betas=(0.9, 0.95), eps=1e-8
    )
    number = scale.weights

    def step(size: int) -> float:
        flat = torch.randn(size, device=scale.device).bfloat16()
        flat.grad = torch.randn(size, device=scale.device).bfloat16()
        optimizer.param_groups[0]["params"] = [flat]
        return timed(optimizer.step, scale)

    plain = step(number)
    yield "plain, s per billion weights", f"{plain / number * 1e6:.4f}"
    if scale.is_small:
        yield "compiled", "on GPUs only"
        return
    began = time.perf_counter()
    optimizer.compile_update(scale.device)  # raises where it computes anything else
    yield "compiling and trying it, s", f"{time.perf_counter() - began:.1f}"
    compiled = step(number)
    yield "compiled, s per billion weights", f"{compiled / number * 1e6:.4f}"
    yield "a step of a rank of eight, s", f"{compiled / number * WEIGHTS_OF_A_RANK / 1000:.2f}"
    shape = torch.Size([2048, SLICE_ELEMENTS // 2048])
    bits = timed(lambda: random_bits(shape, 5, 0, scale.device), scale)
    yield "random bits, s per billion weights", f"{bits / SLICE_ELEMENTS * 1e6:.4f}"
    yield "a part of 2 M weights, ms", f"{step(2**21):.3f}"


def recorder(scale: Scale) -> Rows:
    """Which flight recorder knows the collectives, and what NCCL takes of the GPU."""
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    os.environ |= {"MASTER_PORT": "0", "TORCH_FR_BUFFER_SIZE": "100"}
    free = 0 if scale.is_small else torch.cuda.mem_get_info()[0]
    start_process_group(timeout_minutes=1)
    dist.all_reduce(torch.ones(3, device=scale.device))
    wait(scale)
    for number, trace in enumerate(read_recorders()):
        yield f"recorder {number}, entries", str(len(json.loads(trace).get("entries", [])))
    for one in read_collectives(read_recorders(), now_ns=time.time_ns()):
        state = "completed" if one.is_complete else "not completed"
        yield describe(one), f"{state}, ranks {one.ranks}"
    if not scale.is_small:
        taken = free - torch.cuda.mem_get_info()[0]
        yield "NCCL's memory, of one rank", f"{taken / 2**20:.0f} MiB"
    dist.destroy_process_group()


def staging(scale: Scale) -> Rows:
    """A copy of states to the host: by way of page-locked buffers, and without."""
    values = torch.zeros(scale.staged_bytes, dtype=torch.uint8, device=scale.device)
    buffers = Staging()
    buffers.copy(values[: 2**20])  # locks their memory
    ways = {"plain": lambda: values.to("cpu", copy=True), "staged": lambda: buffers.copy(values)}
    for name, copy in ways.items():
        wait(scale)
        began = time.perf_counter()
        copied = copy()
        spent = time.perf_counter() - began
        yield f"{name}, GB/s", f"{scale.staged_bytes / spent / 1e9:.2f}"
        assert copied.nbytes == scale.staged_bytes


PARTS: dict[str, Callable[[Scale], Rows]] = {
    one.__name__: one
    for one in (
        *(machine, attention_kernels, expert_kernels, combining, gating),
        *(fused_kernels, products),
        *(decoding, update, recorder, staging),
    )
}


def write_table(part: Callable[[Scale], Rows], scale: Scale) -> Iterator[str]:
    """A section of Markdown, line by line, as its figures come."""
    yield f"### {part.__name__}: {(part.__doc__ or '').strip()}\n"
    for number, row in enumerate(part(scale)):
        if number == 0:
            yield f"|{' |' * len(row)}" if len(row) == 2 else f"| {' | '.join(row)} |"
            yield f"|{'---|' * len(row)}"
            if len(row) > 2:
                continue
        yield f"| {' | '.join(row)} |"
    yield ""


def main() -> None:
    name, is_small = sys.argv[1], sys.argv[2:] == ["--small"]
    for line in write_table(PARTS[name], SMALL if is_small else Scale()):
        print(line, flush=True)


if __name__ == "__main__":
    main()
