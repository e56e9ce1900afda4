"""RMSNorm, rope and SwiGLU by Liger's fused kernels, in place of several operators each.

https://github.com/linkedin/Liger-Kernel has them, and a patch for Hunyuan of its own. That patch
takes the experts and the loss over as well, which the engine and `model/loss.py` compute here, and
leaves out the norms of queries and keys. So only its kernels are taken. They round as Transformers'
operators do (`casting_mode` "llama").

Rope and SwiGLU write over tensors that they are given: results of projections, which nothing else
reads. Selective recomputation keeps just those, and is refused (`config/rules/processes.py`).
"""

import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

PACKAGE = "liger_kernel"
ROPE = "apply_rotary_pos_emb"  # of each of Transformers' modules
NORM = "RMSNorm"  # ends the names of its classes, for heads as for layers
PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
HIDDEN_ACT = "silu"  # of every family; the kernel has no other


@dataclass(frozen=True, slots=True)
class Kernels:
    """What is computed by one kernel forward and one backward."""

    # RMSNorm of [..., width] by its weight [width] and epsilon.
    norm: Callable[[Tensor, Tensor, float], Tensor]
    # Queries and keys [1, heads, tokens, head_dim] turned by cos and sin [1, tokens, head_dim].
    rope: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    # SiLU of the first times the second: [..., width].
    gate: Callable[[Tensor, Tensor], Tensor]


def load_kernels() -> Kernels:
    """Liger's."""
    from liger_kernel.ops import (  # noqa: PLC0415  an optional package
        LigerRMSNormFunction,
        LigerRopeFunction,
        LigerSiLUMulFunction,
    )

    def norm(hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        result: Tensor = LigerRMSNormFunction.apply(hidden, weight, epsilon)
        return result

    return Kernels(norm, LigerRopeFunction.apply, LigerSiLUMulFunction.apply)


def describe_lack(*, is_on_gpu: bool) -> str:
    """Why kernels cannot be used; empty where they can."""
    if not is_on_gpu:
        return "there is no GPU"
    if find_spec(PACKAGE) is None:
        return "the package is not installed (pip install liger-kernel)"
    return ""


def fuse_or_warn(model: PreTrainedModel) -> None:
    """Use fused kernels, or say why Transformers' operators stay."""
    if lack := describe_lack(is_on_gpu=torch.cuda.is_available()):
        logger.warning("use_liger_kernel is true, and all runs without it: %s", lack)
        return
    fuse_layers(model, load_kernels())
    logger.info("RMSNorm, rope and SwiGLU: Liger's kernels")


def fuse_layers(model: PreTrainedModel, kernels: Kernels) -> None:
    """Let a model's norms, MLPs and shared experts, and its rope, be computed by kernels.

    Args:
        model: Transformers', before or after the engine has split its experts.
        kernels: that take over.
    """
    assert model.config.hidden_act == HIDDEN_ACT, "the families have no other"
    for module in model.modules():
        if type(module).__name__.endswith(NORM):
            module.forward = partial(run_norm, module, kernels)
        elif {*PROJECTIONS} <= {child for child, _ in module.named_children()}:
            module.forward = partial(run_mlp, module, kernels)
    vars(sys.modules[type(model).__module__])[ROPE] = kernels.rope


def is_fused(model: nn.Module) -> bool:
    """Whether kernels compute a model's norms."""
    own = (vars(module).get("forward") for module in model.modules())
    return any(isinstance(one, partial) and one.func is run_norm for one in own)


def run_norm(norm: Any, kernels: Kernels, hidden: Tensor) -> Tensor:  # noqa: ANN401 Transformers'
    """RMSNorm: [..., width]."""
    return kernels.norm(hidden, norm.weight, norm.variance_epsilon)


def run_mlp(mlp: Any, kernels: Kernels, hidden: Tensor) -> Tensor:  # noqa: ANN401 Transformers'
    """A dense MLP or a shared expert: [..., hidden]."""
    result: Tensor = mlp.down_proj(kernels.gate(mlp.gate_proj(hidden), mlp.up_proj(hidden)))
    return result
