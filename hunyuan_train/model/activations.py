"""What the forward pass keeps for the backward pass, and where.

Without any of this a layer of the released model keeps some 120 vectors of the hidden size for
each token. Full recomputation keeps one, the layer's input, and computes the layer a second time.
Selective recomputation keeps seven: the results of attention and of the dense projections too, so
that only norms, rope and the routed experts run again. `benchmarks/step.py` shows what each costs.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import save_on_cpu
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import (
    CheckpointPolicy,
    SelectiveCheckpointContext,
    checkpoint,
    create_selective_checkpoint_contexts,
)
from transformers import PreTrainedModel

from hunyuan_train.model.kept_plans import keep_plans

# Parts of names, because each package and version of attention registers operators of its own.
KEPT_OPERATORS = ("aten::mm", "aten::addmm", "_scaled_dot_product", "_attn")


def recompute_layers(model: PreTrainedModel, *, is_selective: bool, is_offloaded: bool) -> None:
    """Let each layer be computed again in the backward pass.

    Without re-entry (`use_reentrant` False): a re-entrant forward pass runs without gradients, so
    the losses that are read off routers inside a layer would have none, without a word.

    Args:
        model: Transformers' model, before or after the engine has taken parts of it over.
        is_selective: keep the operators of `KEPT_OPERATORS` instead of running them again.
        is_offloaded: keep the layers' inputs in host memory, pinned where there is a GPU.
    """
    options: dict[str, Any] = {"use_reentrant": False}
    if is_selective:
        options["context_fn"] = keep_some
    function = partial(keep_plans, partial(checkpoint, **options))
    if is_offloaded:
        function = partial(checkpoint_on_host, function)
    # The public method is deprecated in one supported version of Transformers and new in another.
    model._set_gradient_checkpointing(enable=True, gradient_checkpointing_func=function)
    # As Transformers' own method does: below frozen embeddings (adapters) the first layer's input
    # would have no gradient, and the engine's hooks follow that of a layer's input.
    model.enable_input_require_grads()


def checkpoint_on_host(
    checkpoint_layer: Callable[..., Tensor], layer: Callable[..., Tensor], *inputs: object
) -> Tensor:
    """Checkpoint a layer, with the inputs that this keeps copied to host memory."""
    with save_on_cpu(pin_memory=torch.cuda.is_available()):
        return checkpoint_layer(layer, *inputs)


def keep_some() -> tuple[TorchDispatchMode, TorchDispatchMode]:
    """Contexts of a layer's two runs: the first keeps results, the second takes them back."""
    keeping, taking = create_selective_checkpoint_contexts(choose_kept)
    return keeping, Again(taking)


class Again(TorchDispatchMode):
    """The second run, in which operators whose results are not kept may differ from the first.

    Torch's own context counts all operators and raises where the counts differ. They do: ZeRO-3
    gathers and frees weights inside of layers, and after an evaluation at other places than before.
    """

    def __init__(self, taking: TorchDispatchMode) -> None:
        super().__init__()
        self.taking = taking

    def __torch_dispatch__(
        self,
        operator: torch._ops.OpOverload,
        types: tuple[type, ...],
        arguments: tuple[Any, ...] = (),
        options: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 whatever the operator gives
        """Take a kept result; run all else."""
        if is_kept(operator):
            return self.taking.__torch_dispatch__(operator, types, arguments, options)
        return operator(*arguments, **(options or {}))


def choose_kept(
    _: SelectiveCheckpointContext, operator: torch._ops.OpOverload, *__: object, **___: object
) -> CheckpointPolicy:
    """Whether an operator's result is kept or computed again."""
    return CheckpointPolicy.MUST_SAVE if is_kept(operator) else CheckpointPolicy.PREFER_RECOMPUTE


def is_kept(operator: torch._ops.OpOverload) -> bool:
    """Whether its results are worth their memory."""
    return any(part in operator.name() for part in KEPT_OPERATORS)
