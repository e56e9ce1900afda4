"""Stand-ins for kernels and answers of the engine that need a real GPU or other ranks.

A kernel written in Triton becomes the shapes that it reads, keeps and makes. What other ranks would
say is made up: how many tokens they send, and that they agree. Each is counted when it is used.
"""

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from deepspeed.module_inject import auto_ep_layer
from deepspeed.moe import ep_kernels
from deepspeed.ops.adam import cpu_adam
from deepspeed.ops.triton_ops import autoep_fused_token_ops, swiglu_triton
from deepspeed.runtime.zero import partition_parameters, partitioned_param_coordinator, stage3
from torch import Tensor
from torch.autograd.function import FunctionCtx
from transformers import GenerationMixin

from hunyuan_train.optim.lean import LeanAdamW
from hunyuan_train.parallel import optimizer as optimizers
from hunyuan_train.rehearsal.watch import Watch

LEAST_SKEW = 0.6  # of the skew asked for, in the layer that has least of it
KERNELS_OF_UPDATE = 7  # what torch's compiler makes of the update of lean
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


class Swiglu(torch.autograd.Function):
    """DeepSpeed's fused SwiGLU: reads gate and up, keeps both, makes their product."""

    @staticmethod
    def forward(ctx: FunctionCtx, gate: Tensor, up: Tensor) -> Tensor:
        """[rows, width] each."""
        ctx.save_for_backward(gate, up)
        return torch.empty_like(gate)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """[rows, width] each."""
        gate, up = ctx.saved_tensors
        return torch.empty_like(gate), torch.empty_like(up)


class WeightedRestore(torch.autograd.Function):
    """DeepSpeed's fused sum of experts' outputs by their weights (`fused_weighted_sum`)."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, rows: Tensor, scores: Tensor, inverse: Tensor, top_k: int
    ) -> Tensor:
        """From [tokens * top_k, hidden] to [tokens, hidden]."""
        ctx.save_for_backward(rows, scores, inverse)
        return rows.new_empty((rows.shape[0] // top_k, rows.shape[1]))

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """Gradients of rows and scores."""
        rows, scores, _inverse = ctx.saved_tensors
        return torch.empty_like(rows), torch.empty_like(scores), None, None


def stand_in_for_kernels(watch: Watch) -> None:
    """Replace Triton kernels by their shapes."""

    def gather_rows(source: Tensor, index: Tensor) -> Tensor:
        watch.note_stand_in("Triton: rows to experts (gather_rows)")
        return source.new_empty((index.numel(), source.shape[1]))

    def fill_indices(
        counts: Tensor,
        _starts: Tensor,
        _offsets: Tensor,
        _experts: int,
        _ranks: int,
        length: int,
        **_: Any,
    ) -> Tensor:
        watch.note_stand_in("Triton: order of rows (fill_indices)")
        return torch.full((length,), -1, dtype=torch.int32, device=counts.device)

    def swiglu(gate: Tensor, up: Tensor) -> Tensor:
        watch.note_stand_in("Triton: SwiGLU of experts")
        return Swiglu.apply(gate, up)

    def swiglu_packed(gate_up: Tensor) -> Tensor:
        watch.note_stand_in("Triton: SwiGLU of experts")
        return Swiglu.apply(*gate_up.chunk(2, -1))

    def weighted_restore(
        rows: Tensor,
        top_scores: Tensor,
        token_indices_sorted: Tensor,
        top_k: int,
        shape: tuple[int, int, int],
    ) -> Tensor:
        watch.note_stand_in("Triton: weighted sum of experts' outputs")
        inverse = torch.empty_like(token_indices_sorted, dtype=torch.int32)
        return WeightedRestore.apply(rows, top_scores, inverse, top_k).reshape(shape)

    ep_kernels.permute_rows_supported = lambda _: True
    ep_kernels.gather_rows = gather_rows
    ep_kernels.fill_indices_wrapper = fill_indices
    swiglu_triton.swiglu, swiglu_triton.swiglu_packed = swiglu, swiglu_packed
    autoep_fused_token_ops.is_available = lambda: True
    autoep_fused_token_ops.assert_supported = lambda *_, **__: None
    autoep_fused_token_ops.fused_weighted_restore = weighted_restore


def stand_in_for_ranks(watch: Watch, skew: Skew) -> None:
    """Make up what other ranks would say."""
    layer_type = auto_ep_layer.AutoEPMoELayer
    run_layer, split_plan = layer_type._forward, auto_ep_layer._split_plan_from_expert_counts

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

    layer_type._forward = enter_layer
    auto_ep_layer._split_plan_from_expert_counts = ask_ranks
    auto_ep_layer._PendingSplitPlan.wait = wait_for_ranks
    for module in (partition_parameters, partitioned_param_coordinator, stage3):
        module.assert_ints_same_as_other_ranks = agree


def repeat_updates(watch: Watch, skew: Skew) -> None:
    """Run the update of lean once for each size of parameter and step, and count the others alike.

    The released model has some 480 parameters of a dozen sizes; all of one size do the same.
    """
    run_update = LeanAdamW._update
    seen: dict[tuple[int, int, torch.dtype], tuple[Counter[Any], Counter[Any]]] = {}

    def update(optimizer: LeanAdamW, flat: Tensor, group: dict[str, Any]) -> None:
        key = (skew.step, flat.numel(), flat.dtype)
        if key in seen:
            watch.note_stand_in("updates of parameters as large as one before: counted, not run")
            kernels, waits = seen[key]
            watch.kernels.update(kernels)
            watch.waits.update(waits)
            optimizer.state[flat]["step"] += 1
            return
        kernels, waits = watch.kernels.copy(), watch.waits.copy()
        run_update(optimizer, flat, group)
        seen[key] = (watch.kernels - kernels, watch.waits - waits)

    lean: Any = LeanAdamW
    lean._update = update


def stand_in_for_updates(watch: Watch, skew: Skew) -> None:
    """Replace the compiled update of lean, and the update in host memory."""
    repeat_updates(watch, skew)

    def fused(
        weights: Tensor, _gradients: Tensor, moments: Sequence[Any], _seed: Any, _: Tensor
    ) -> Tensor:
        watch.note_stand_in(f"compiled: the update of lean, {KERNELS_OF_UPDATE} kernels")
        weights.copy_(weights)
        for blocks in moments:
            blocks.replace(blocks.codes, blocks.scales)
        return torch.zeros((), dtype=torch.int64, device=weights.device)

    def compile_for_shapes(optimizer: Any, device: torch.device) -> None:
        optimizer.update_whole = optimizer.update_part = fused

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


def stand_in_for_answers(watch: Watch) -> None:
    """End an answer after a few tokens: no value of a tensor says when."""
    goes_on = GenerationMixin._has_unfinished_sequences

    def count_tokens(model: Any, *arguments: Any, **options: Any) -> bool:
        watch.note_stand_in("whether an answer has ended: after three tokens")
        goes_on(model, *arguments, **options)
        model.rehearsed_tokens = getattr(model, "rehearsed_tokens", 0) + 1
        return model.rehearsed_tokens % (ADDED_TOKENS + 1) != 0

    GenerationMixin._has_unfinished_sequences = count_tokens
