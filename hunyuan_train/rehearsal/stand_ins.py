"""Stand-ins for kernels and answers of the engine that need a real GPU or other ranks.

A kernel written in Triton becomes the shapes that it reads, keeps and makes. What other ranks would
say is made up: how many tokens they send, and that they agree. Each is counted when it is used.
"""

import itertools
import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from deepspeed.module_inject import auto_ep_layer
from deepspeed.moe import ep_kernels
from deepspeed.ops.adam import cpu_adam
from deepspeed.ops.triton_ops import autoep_fused_token_ops, swiglu_triton
from deepspeed.runtime.zero import partition_parameters, partitioned_param_coordinator, stage3
from torch import Tensor
from transformers import GenerationMixin

from hunyuan_train.model import fused
from hunyuan_train.model.compression_scheme import Scheme
from hunyuan_train.optim.lean import LeanAdamW
from hunyuan_train.optim.lean_memory import num_blocks
from hunyuan_train.optim.records import OPTIMIZERS
from hunyuan_train.parallel import optimizer as optimizers
from hunyuan_train.parallel import quantised_experts, row_weights
from hunyuan_train.parallel.quantised_experts import CompressedWeights
from hunyuan_train.rehearsal.devices import Properties
from hunyuan_train.rehearsal.watch import Watch

LEAST_SKEW = 0.6  # of the skew asked for, in the layer that has least of it
ADDED_TOKENS = 3  # of an answer that is rehearsed


class Skew:
    """How many rows other ranks send: a share that differs from layer to layer and step to step.

    The first and the last layer get the whole skew, because most is held in the backward pass of
    one of them; the others between 0.6 and 1 of it, so that the allocator meets blocks of many
    sizes, as on a GPU.
    """

    def __init__(self, skew: float, *, is_varied: bool) -> None:
        self.skew = skew
        self.is_varied = is_varied
        self.step = 0
        self.layers: dict[int, int] = {}
        self.slots = 0  # token slots that this rank sends in the layer that runs
        self.layer = 0

    def number_layers(self, model: torch.nn.Module) -> None:
        """Know a model's layers with experts, first to last."""
        blocks = [one for one in model.modules() if isinstance(one, auto_ep_layer.AutoEPMoELayer)]
        self.layers = {id(block): index for index, block in enumerate(blocks)}

    def enter(self, layer: torch.nn.Module, hidden_states: Tensor, top_k: int) -> None:
        """A layer begins with some tokens."""
        self.layer = self.layers[id(layer)]
        self.slots = hidden_states.numel() // hidden_states.shape[-1] * top_k

    def received(self) -> int:
        """Rows that come to this rank."""
        share = 1.0
        if self.is_varied and 0 < self.layer < len(self.layers) - 1:
            draw = random.Random(f"{self.step}:{self.layer}").random()
            share = LEAST_SKEW + (1 - LEAST_SKEW) * draw
        return max(1, round(self.slots * self.skew * share))


def spread(total: int, parts: int) -> list[int]:
    """A number in parts that are as equal as can be."""
    return [(index + 1) * total // parts - index * total // parts for index in range(parts)]


NoteKernel = Callable[..., None]  # `Watch.note_kernel` of some name


class Swiglu(torch.autograd.Function):
    """DeepSpeed's fused SwiGLU: reads gate and up, keeps both, makes their product."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, note: NoteKernel) -> Tensor:
        """[rows, width] each."""
        ctx.save_for_backward(gate, up)
        ctx.note = note
        product = torch.empty_like(gate)
        note(gate, up, product)
        return product

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        """[rows, width] each."""
        gate, up = ctx.saved_tensors
        gradients = torch.empty_like(gate), torch.empty_like(up)
        ctx.note(gradient, gate, up, *gradients)
        return *gradients, None


class WeightedRestore(torch.autograd.Function):
    """DeepSpeed's fused sum of experts' outputs by their weights (`fused_weighted_sum`)."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, scores: Tensor, inverse: Tensor, top_k: int, note: NoteKernel
    ) -> Tensor:
        """From [tokens * top_k, hidden] to [tokens, hidden]."""
        ctx.save_for_backward(rows, scores, inverse)
        ctx.note = note
        summed = rows.new_empty((rows.shape[0] // top_k, rows.shape[1]))
        note(inverse, inverse)  # one kernel inverts the order
        note(rows, scores, inverse, summed)
        return summed

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        """Gradients of rows and scores."""
        rows, scores, inverse = ctx.saved_tensors
        gradients = torch.empty_like(rows), torch.empty_like(scores)
        ctx.note(gradient, rows, scores, inverse, *gradients)
        return *gradients, None, None, None


def stand_in_for_kernels(watch: Watch) -> None:
    """Replace Triton kernels by their shapes."""
    note_swiglu = partial(watch.note_kernel, "Triton: SwiGLU of experts")
    note_sum = partial(watch.note_kernel, "Triton: weighted sum of experts' outputs")

    def gather_rows(source: Tensor, index: Tensor) -> Tensor:
        rows = source.new_empty((index.numel(), source.shape[1]))
        watch.note_kernel("Triton: rows to experts (gather_rows)", index, rows, rows)
        return rows

    def fill_indices(
        counts: Tensor,
        _starts: Tensor,
        _offsets: Tensor,
        _experts: int,
        _ranks: int,
        length: int,
        **_: Any,
    ) -> Tensor:
        watch.note_kernel("Triton: order of rows (fill_indices)", counts)
        return torch.full((length,), -1, dtype=torch.int32, device=counts.device)

    def swiglu(gate: Tensor, up: Tensor) -> Tensor:
        return Swiglu.apply(gate, up, note_swiglu)

    def swiglu_packed(gate_up: Tensor) -> Tensor:
        return Swiglu.apply(*gate_up.chunk(2, -1), note_swiglu)

    def weighted_restore(
        rows: Tensor,
        top_scores: Tensor,
        token_indices_sorted: Tensor,
        top_k: int,
        shape: tuple[int, int, int],
    ) -> Tensor:
        inverse = torch.empty_like(token_indices_sorted, dtype=torch.int32)
        restored = WeightedRestore.apply(rows, top_scores, inverse, top_k, note_sum)
        return restored.reshape(shape)

    ep_kernels.permute_rows_supported = lambda rows: rows.dim() == 2
    ep_kernels.gather_rows = gather_rows
    ep_kernels.fill_indices_wrapper = fill_indices
    swiglu_triton.swiglu, swiglu_triton.swiglu_packed = swiglu, swiglu_packed
    autoep_fused_token_ops.is_available = lambda: True
    autoep_fused_token_ops.assert_supported = lambda *_, **__: None
    autoep_fused_token_ops.fused_weighted_restore = weighted_restore


def stand_in_for_gating(watch: Watch) -> None:
    """Replace the kernels of experts' weighted SwiGLU."""
    note_weighted = partial(watch.note_kernel, "Triton: weighted SwiGLU of experts")

    def weighted_forward(gate: Tensor, up: Tensor, weights: Tensor) -> Tensor:
        product = gate.new_empty(gate.shape)
        note_weighted(gate, up, weights, product)
        return product

    def weighted_backward(
        gradient: Tensor, gate: Tensor, up: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        gradients = gate.new_empty(gate.shape), up.new_empty(up.shape), torch.empty_like(weights)
        note_weighted(gradient, gate, up, weights, *gradients)
        return gradients

    module: Any = row_weights
    module.compute_forward, module.compute_backward = weighted_forward, weighted_backward


class FusedNorm(torch.autograd.Function):
    """Liger's RMSNorm: keeps its input and a root for each row; writes over its gradient."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, note: NoteKernel) -> Tensor:
        """[..., width]."""
        hidden = hidden.contiguous()
        roots = hidden.new_empty(hidden.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(hidden, weight, roots)
        ctx.note = note
        normed = torch.empty_like(hidden)
        note(hidden, weight, roots, normed)
        return normed

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        """The gradient in its own memory, and sums for the weight, a row a multiprocessor."""
        hidden, weight, roots = ctx.saved_tensors
        gradient = gradient.contiguous()
        parts = weight.new_empty((Properties.multi_processor_count, *weight.shape)).float()
        ctx.note(gradient, hidden, weight, roots, gradient, parts)
        return gradient, parts.sum(dim=0).to(weight.dtype), None


class FusedRope(torch.autograd.Function):
    """Liger's rope: turns queries and keys, and their gradients, in their own memory."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, note: NoteKernel
    ) -> tuple[Tensor, Tensor]:
        """[1, heads, tokens, head_dim] each."""
        ctx.save_for_backward(cos, sin)
        ctx.note = note
        note(query, query, key, key, cos, sin)
        return query.view_as(query), key.view_as(key)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        """Turned back."""
        query, key = (one.transpose(1, 2).contiguous().transpose(1, 2) for one in gradients)
        ctx.note(query, query, key, key, *ctx.saved_tensors)
        return query, key, None, None, None


class FusedGate(Swiglu):
    """Liger's SwiGLU, whose gradients take the memory of gate and up."""

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        """[rows, width] each."""
        gate, up = ctx.saved_tensors
        ctx.note(gradient, gate, up, gate, up)
        return gate, up, None


def stand_in_for_fused(watch: Watch) -> None:
    """Replace Liger's kernels, whether they are installed or not."""

    def noting(what: str) -> NoteKernel:
        return partial(watch.note_kernel, f"Triton: {what} (Liger)")

    norm, rope, gate = map(noting, ("RMSNorm", "rope", "SwiGLU of MLPs"))
    module: Any = fused
    module.describe_lack = lambda *, is_on_gpu: ""
    module.load_kernels = lambda: fused.Kernels(
        norm=lambda hidden, weight, _: FusedNorm.apply(hidden, weight, norm),
        rope=lambda query, key, cos, sin: FusedRope.apply(query, key, cos, sin, rope),
        gate=lambda one, other: FusedGate.apply(one, other, gate),
    )


def stand_in_for_ranks(watch: Watch, skew: Skew) -> None:
    """Make up what other ranks would say."""
    layer_type = auto_ep_layer.AutoEPMoELayer
    run_layer, split_plan = layer_type.forward, auto_ep_layer._split_plan_from_expert_counts

    def enter_layer(layer: Any, hidden_states: Tensor) -> Any:
        skew.enter(layer, hidden_states, layer.top_k)
        return run_layer(layer, hidden_states)

    def make_up(plan: Any, ep_size: int) -> Any:
        watch.note_stand_in("numbers of rows from other ranks, by the skew")
        return plan._replace(
            input_splits=spread(skew.slots, ep_size), output_splits=spread(skew.received(), ep_size)
        )

    def ask_ranks(counts: Tensor, ep_size: int, num_experts: int, group: Any) -> Any:
        return make_up(split_plan(counts, ep_size, num_experts, group), ep_size)

    def wait_for_ranks(pending: Any) -> Any:
        if pending._plan is None:
            counts = pending._local_counts_by_source
            pending._ready_event.synchronize()
            pending._plan = make_up(auto_ep_layer.SplitPlan([], [], counts), counts.shape[0])
            pending._keepalive = ()
        return pending._plan

    def agree(_: Sequence[int]) -> None:
        watch.note_wait("whether all ranks agree")
        watch.note_stand_in("whether ranks agree (assert_ints_same_as_other_ranks): they do")

    layer_type.forward = enter_layer
    auto_ep_layer._split_plan_from_expert_counts = ask_ranks
    auto_ep_layer._PendingSplitPlan.wait = wait_for_ranks
    for module in (partition_parameters, partitioned_param_coordinator, stage3):
        module.assert_ints_same_as_other_ranks = agree


def stand_in_for_updates(watch: Watch) -> None:
    """Replace the kernel of lean, and the update in host memory."""

    def update_flat(
        flat: Tensor, _gradients: Tensor, _moments: Sequence[Any], _seed: Any, _: Tensor
    ) -> Tensor:
        traffic = OPTIMIZERS["lean"].traffic_bytes * flat.numel()
        watch.note_kernel("Triton: the update of lean", num_bytes=traffic)
        return flat.new_empty((num_blocks(flat.numel()),), dtype=torch.int32).sum()

    def compile_for_shapes(optimizer: LeanAdamW, device: torch.device) -> None:
        optimizer.update_flat = update_flat

    class HostAdam:
        """DeepSpeed's extension, whose update changes no shape."""

        def create_adam(self, *_: object) -> None:
            """Nothing to make."""

        def destroy_adam(self, *_: object) -> None:
            """Nothing to end."""

        def adam_update(self, *_: object) -> None:
            """Update in place."""
            watch.note_stand_in("C++: AdamW in host memory")

    class Builder:
        """What loads it."""

        def load(self, **_: object) -> HostAdam:
            """Without compiling."""
            return HostAdam()

    optimizers.compile_or_warn = compile_for_shapes
    cpu_adam.CPUAdamBuilder = Builder


def stand_in_for_decoding(watch: Watch) -> None:
    """Replace the kernel that makes weights of experts' codes."""

    def decode_piece(
        codes: Tensor, scales: Tensor, scheme: Scheme, dtype: torch.dtype | None = None
    ) -> Tensor:
        bytes_of_row = codes.shape[-1] * codes.element_size()
        width = 2 * bytes_of_row if scheme.is_4bit else bytes_of_row
        values = scales.new_empty((*codes.shape[:-1], width), dtype=dtype)
        watch.note_kernel("Triton: experts' weights from codes", codes, scales, values)
        return values

    def use_for_shapes(projections: list[CompressedWeights], dtype: torch.dtype) -> None:
        for weights in projections:
            weights.decoder = decode_piece

    quantised_experts.compile_or_warn = use_for_shapes


def stand_in_for_answers(watch: Watch) -> None:
    """End an answer after a few tokens: no value of a tensor says when."""
    goes_on = GenerationMixin._has_unfinished_sequences
    num_tokens = itertools.count(1)  # over all answers, which end after as many each

    def count_tokens(model: Any, *arguments: Any, **options: Any) -> bool:
        watch.note_stand_in("whether an answer has ended: after three tokens")
        goes_on(model, *arguments, **options)
        return next(num_tokens) % (ADDED_TOKENS + 1) != 0

    GenerationMixin._has_unfinished_sequences = count_tokens
