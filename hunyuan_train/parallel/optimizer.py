"""Optimizers, built over the parameters that this process keeps."""

import logging
from subprocess import SubprocessError
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.ops.adam import DeepSpeedCPUAdam
from torch.optim import SGD, AdamW, Optimizer
from transformers import PreTrainedModel

from hunyuan_train.config.schema import OptimizerConfig
from hunyuan_train.families.registry import FAMILIES
from hunyuan_train.families.tables import kind_of
from hunyuan_train.families.tensors import Kind
from hunyuan_train.optim.lean import LeanAdamW
from hunyuan_train.optim.lean_memory import LEAN_BLOCK, SLICE_BLOCKS
from hunyuan_train.parallel.engine import OptimizerFactory, sum_over_ranks
from hunyuan_train.parallel.zero import MASTER, flat_masters, num_dimensions, weight_shards

logger = logging.getLogger(__name__)

ROUTERS = "is_router"  # marks a group that the guardian may hold
HELD = "is_held"


def decay_groups(model: PreTrainedModel, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups: matrices, which decay; vectors, which never do; routers, apart from both.

    Routers are matrices too; the guardian may hold them.
    """
    family = FAMILIES[model.config.model_type]
    named = [pair for pair in model.named_parameters() if pair[1].requires_grad]
    routers = [parameter for name, parameter in named if kind_of(family, name) is Kind.ROUTER]
    others = [parameter for name, parameter in named if kind_of(family, name) is not Kind.ROUTER]
    vectors = [parameter for parameter in others if num_dimensions(parameter) < 2]
    matrices = [parameter for parameter in others if num_dimensions(parameter) >= 2]
    groups = ((matrices, weight_decay), (vectors, 0.0), (routers, weight_decay))
    return [
        {"params": members, "weight_decay": decay, ROUTERS: members is routers}
        for members, decay in groups
        if members
    ]


def set_learning_rate(optimizer: Optimizer, learning_rate: float) -> None:
    """Set the rate of the next step; held groups have none and stay as they are, bit for bit."""
    for group in optimizer.param_groups:
        group["lr"] = 0.0 if group.get(HELD) else learning_rate


def hold_routers(optimizer: Optimizer, *, is_held: bool = True) -> None:
    """Train the routers no further, or again."""
    for group in optimizer.param_groups:
        group[HELD] = is_held and group[ROUTERS]


def lean_groups(model: PreTrainedModel, weight_decay: float, seed: int) -> list[dict[str, Any]]:
    """A group for each parameter, so that the engine keeps each in a flat tensor of its own.

    Blocks of its states then belong to one parameter, and its gradients are used where they lie:
    the engine copies those of a tensor that holds several.

    Args:
        model: its trained parameters are grouped.
        weight_decay: of matrices.
        seed: of the run; with rank and name it says which random bits a parameter's rounding takes.
    """
    family = FAMILIES[model.config.model_type]
    return [
        {
            "params": [parameter],
            "weight_decay": weight_decay if num_dimensions(parameter) >= 2 else 0.0,
            "key": f"{seed}:{dist.get_rank()}:{name}",
            ROUTERS: kind_of(family, name) is Kind.ROUTER,
        }
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    ]


def optimizer_factory(config: OptimizerConfig, *, seed: int) -> OptimizerFactory:
    """Choose the optimizer; the engine calls the factory once the experts are split.

    Args:
        config: which one, its rates and decay. States of "offload" live in host memory, so its step
            runs there (DeepSpeedCPUAdam).
        seed: of the run, for what is rounded at random.
    """
    rate, epsilon = config.learning_rate, config.adam_epsilon
    betas = (config.adam_beta1, config.adam_beta2)

    def make(model: PreTrainedModel) -> Optimizer:
        if config.optimizer == "lean":
            groups = lean_groups(model, config.weight_decay, seed)
            optimizer = LeanAdamW(groups, lr=rate, betas=betas, eps=epsilon)
            if torch.cuda.is_available() and has_whole_slice(model):
                compile_or_warn(optimizer, torch.device("cuda", torch.cuda.current_device()))
            return optimizer
        groups = decay_groups(model, config.weight_decay)
        if config.optimizer == "sgd":
            return SGD(groups, lr=rate)
        if config.optimizer == "offload":
            return DeepSpeedCPUAdam(groups, lr=rate, betas=betas, eps=epsilon, adamw_mode=True)
        is_fused = torch.cuda.is_available()
        return AdamW(groups, lr=rate, betas=betas, eps=epsilon, fused=is_fused)

    return make


def has_whole_slice(model: PreTrainedModel) -> bool:
    """Whether some parameter kept here is large enough for what `LeanAdamW` compiles."""
    sizes = (shard.stop - shard.start for shard in weight_shards(model))
    return max(sizes, default=0) >= SLICE_BLOCKS * LEAN_BLOCK


def compile_or_warn(optimizer: LeanAdamW, device: torch.device) -> None:
    """Compile its update, or say why it stays as it is: right, but slow."""
    logger.info("compiling the update of the optimizer")
    try:
        optimizer.compile_update(device)
    except (RuntimeError, OSError, ImportError, SubprocessError) as error:
        logger.warning(
            "the update of --optimizer lean stays uncompiled and takes about three times as long; "
            "it needs a C compiler and Python's headers, and the compiled one must equal it: %s",
            " ".join(str(error).split())[:300],
        )


def prepare_optimizer_states(
    engine: deepspeed.DeepSpeedEngine, kinds: list[str], step_count: int
) -> None:
    """Create the optimizer's states, which it would make at its first step, to be written over.

    Args:
        engine: before its first step.
        kinds: of states, by the names of `parallel/zero.py`.
        step_count: updates that the optimizer has done.
    """
    optimizer = engine.optimizer.optimizer
    for flat in flat_masters(engine):
        if isinstance(optimizer, LeanAdamW):
            optimizer.start_state(flat, step_count)
            continue
        state = optimizer.state[flat]
        for kind in kinds:
            if kind != MASTER:
                state[kind] = torch.zeros_like(flat)
        if step_count:
            is_torch = isinstance(optimizer, AdamW)
            on_device = flat.device if flat.is_cuda else None
            state["step"] = (
                torch.tensor(float(step_count), device=on_device) if is_torch else step_count
            )


def share_of_weights_moved(engine: deepspeed.DeepSpeedEngine) -> float | None:
    """Of the bfloat16 weights updated since the last call, the share that changed; all ranks.

    None where the optimizer has a float32 master copy: there no update is lost.
    """
    optimizer = engine.optimizer.optimizer
    if not isinstance(optimizer, LeanAdamW):
        return None
    moved, rounded = sum_over_ranks([float(n) for n in optimizer.take_moved()], engine.device)
    return moved / max(rounded, 1.0)
