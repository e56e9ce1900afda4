"""Where the time of a training step goes, by part of the model, forward and backward.

Marks lie in the stream of the GPU (events) or in time (CPU). Between two marks, time belongs to the
part entered last; recomputation under gradient checkpointing belongs to the part recomputed.
"""

import time
from collections import defaultdict
from functools import partial

import torch
from torch import Tensor, nn

REST = "embedding, norms, gathering, reducing"
ATTENTION, ROUTER, DISPATCH = "attention", "router", "dispatch and combine"
EXPERTS, SHARED, LOSS, OPTIMIZER = "expert GEMMs", "shared expert", "logits and loss", "optimizer"


class PhaseClock:
    """Collects marks while it is on."""

    def __init__(self) -> None:
        self.is_on = False
        self.marks: list[tuple[object, str, str]] = []  # time or event, "enter" or "leave", part

    def mark(self, kind: str, phase: str) -> None:
        """Note that work of a part begins or ends here."""
        if not self.is_on:
            return
        if torch.cuda.is_available():
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append((event, kind, phase))
        else:
            self.marks.append((time.perf_counter(), kind, phase))

    def seconds(self) -> dict[str, float]:
        """Time by part, from the first mark to the last; what no part claims is the rest."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        totals: dict[str, float] = defaultdict(float)
        entered = [REST]
        for (at, kind, phase), (later, _, _) in zip(self.marks, self.marks[1:], strict=False):
            if kind == "enter":
                entered.append(phase)
            elif phase in entered[1:]:
                del entered[len(entered) - 1 - entered[::-1].index(phase) :]
            totals[entered[-1]] += _between(at, later)
        return dict(totals)


def _between(at, later) -> float:
    if isinstance(at, float):
        return later - at
    return at.elapsed_time(later) / 1000


class _Mark(torch.autograd.Function):
    """Nothing going forward; a mark when the gradient passes."""

    @staticmethod
    def forward(ctx, values: Tensor, clock: PhaseClock, kind: str, phase: str) -> Tensor:
        ctx.clock, ctx.kind, ctx.phase = clock, kind, phase
        return values.view_as(values)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        ctx.clock.mark(ctx.kind, ctx.phase)
        return gradient, None, None, None


def watch_phases(model: nn.Module, clock: PhaseClock) -> None:
    """Mark the parts of a Hunyuan model with split experts."""
    for layer in model.model.layers:
        mlp = layer.mlp
        watched = {ATTENTION: layer.self_attn, DISPATCH: mlp, ROUTER: mlp.router}
        watched |= {EXPERTS: mlp.experts, SHARED: mlp.shared_experts}
        for phase, module in watched.items():
            module.register_forward_pre_hook(partial(_enter, clock, phase), with_kwargs=True)
            module.register_forward_hook(partial(_leave, clock, phase))
    model.model.norm.register_forward_hook(partial(_begin_loss, clock))


def _enter(clock: PhaseClock, phase: str, _: nn.Module, arguments: tuple, named: dict):
    clock.mark("enter", phase)
    if arguments:
        first, *others = arguments
        return (_Mark.apply(first, clock, "leave", phase), *others), named
    hidden = _Mark.apply(named["hidden_states"], clock, "leave", phase)
    return arguments, named | {"hidden_states": hidden}


def _leave(clock: PhaseClock, phase: str, _: nn.Module, __: tuple, output):
    clock.mark("leave", phase)
    if isinstance(output, Tensor):
        return _Mark.apply(output, clock, "enter", phase)
    first, *others = output
    return (_Mark.apply(first, clock, "enter", phase), *others)


def _begin_loss(clock: PhaseClock, _: nn.Module, __: tuple, hidden: Tensor) -> Tensor:
    clock.mark("enter", LOSS)
    return _Mark.apply(hidden, clock, "leave", LOSS)
