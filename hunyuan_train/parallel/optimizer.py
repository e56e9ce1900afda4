"""Optimizers, built over the parameters that this process keeps."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from subprocess import SubprocessError
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.ops.adam import DeepSpeedCPUAdam
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from transformers import PreTrainedModel

from hunyuan_train.config.schema import OptimizerConfig
from hunyuan_train.families.registry import FAMILIES
from hunyuan_train.families.tables import kind_of
from hunyuan_train.families.tensors import Kind
from hunyuan_train.model.new_rows import trains_new_rows_only
from hunyuan_train.optim.lean import LeanAdamW
from hunyuan_train.optim.records import MOMENTS, OptimizerRecord, find_optimizer
from hunyuan_train.parallel.engine import OptimizerFactory, sum_over_ranks
from hunyuan_train.parallel.zero import flat_masters, num_dimensions

logger = logging.getLogger(__name__)

ROUTERS = "is_router"  # marks a group that the router monitor may hold
HELD = "is_held"
NAME = "optimizer"  # of the record that a group's optimizer was made from


def decay_groups(model: PreTrainedModel, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups: matrices, which decay; vectors, which never do; routers, apart from both.

    Routers are matrices too; the router monitor may hold them.
    """
    family = FAMILIES[model.config.model_type]
    named = [pair for pair in model.named_parameters() if pair[1].requires_grad]
    routers = [parameter for name, parameter in named if kind_of(family, name) is Kind.ROUTER]
    others = [parameter for name, parameter in named if kind_of(family, name) is not Kind.ROUTER]
    vectors = [parameter for parameter in others if not decays(parameter)]
    matrices = [parameter for parameter in others if decays(parameter)]
    groups = ((matrices, weight_decay), (vectors, 0.0), (routers, weight_decay))
    return [
        {"params": members, "weight_decay": decay, ROUTERS: members is routers}
        for members, decay in groups
        if members
    ]


def decays(parameter: nn.Parameter) -> bool:
    """Whether a parameter has weight decay: a matrix that is trained whole."""
    return num_dimensions(parameter) >= 2 and not trains_new_rows_only(parameter)


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
            "weight_decay": weight_decay if decays(parameter) else 0.0,
            "key": f"{seed}:{dist.get_rank()}:{name}",
            ROUTERS: kind_of(family, name) is Kind.ROUTER,
        }
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    ]


def make_lean(model: PreTrainedModel, config: OptimizerConfig, seed: int) -> Optimizer:
    """8-bit AdamW over shared master weights; on GPUs its update is one kernel."""
    groups = lean_groups(model, config.weight_decay, seed)
    optimizer = LeanAdamW(groups, **adam_settings(config))
    if torch.cuda.is_available():
        compile_or_warn(optimizer, torch.device("cuda", torch.cuda.current_device()))
    return optimizer


def make_adamw(model: PreTrainedModel, config: OptimizerConfig, _seed: int) -> Optimizer:
    """torch's own AdamW, fused: one pass over gradients, weights and states."""
    groups = decay_groups(model, config.weight_decay)
    return AdamW(groups, **adam_settings(config), fused=True)


def make_offload(model: PreTrainedModel, config: OptimizerConfig, _seed: int) -> Optimizer:
    """AdamW whose step runs in host memory, where its states live."""
    groups = decay_groups(model, config.weight_decay)
    return DeepSpeedCPUAdam(groups, **adam_settings(config), adamw_mode=True)


def make_sgd(model: PreTrainedModel, config: OptimizerConfig, _seed: int) -> Optimizer:
    """Plain SGD: a step at rate 1 is the gradient itself, which parity tests compare."""
    return SGD(decay_groups(model, config.weight_decay), lr=config.learning_rate)


def adam_settings(config: OptimizerConfig) -> dict[str, Any]:
    """Arguments that every AdamW takes by the same names."""
    betas = (config.adam_beta1, config.adam_beta2)
    return {"lr": config.learning_rate, "betas": betas, "eps": config.adam_epsilon}


def compile_or_warn(optimizer: LeanAdamW, device: torch.device) -> None:
    """Compile its update, or say why it stays as it is: right, but slow."""
    logger.info("compiling the update of the optimizer")
    try:
        optimizer.compile_update(device)
    except (RuntimeError, OSError, ImportError, SubprocessError) as error:
        logger.warning(
            "the update of --optimizer lean stays uncompiled and takes many times as long; its "
            "kernel needs triton, a C compiler and Python's headers, and must equal it: %s",
            " ".join(str(error).split())[:300],
        )


def start_adamw_state(optimizer: Optimizer, flat: Tensor, step_count: int) -> None:
    """States of torch's AdamW, which counts in a tensor, where the fused update reads it."""
    step = torch.tensor(float(step_count), device=flat.device if flat.is_cuda else None)
    optimizer.state[flat] = {"step": step, **zero_moments(flat)}


def start_offload_state(optimizer: Optimizer, flat: Tensor, step_count: int) -> None:
    """States of DeepSpeed's AdamW, whose count goes to its C++ as a whole number."""
    optimizer.state[flat] = {"step": step_count, **zero_moments(flat)}


def start_no_state(_optimizer: Optimizer, _flat: Tensor, _step_count: int) -> None:
    """What keeps nothing needs nothing."""


def zero_moments(flat: Tensor) -> dict[str, Tensor]:
    """Both moments of AdamW, float32: [elements] each."""
    return {name: torch.zeros_like(flat) for name in MOMENTS}


@dataclass(frozen=True, slots=True)
class Factory:
    """How one optimizer is made, and how a resumed run gives it its states."""

    # Of the model (with every parameter in its final form), the settings and the run's seed.
    make: Callable[[PreTrainedModel, OptimizerConfig, int], Optimizer]
    # Of the optimizer, a flat tensor that it updates, and the number of updates done: zeros, as its
    # first step would make them, to be written over.
    start_state: Callable[[Any, Tensor, int], None]


# One for each record (optim/records.py), by its name.
FACTORIES = {
    "adamw": Factory(make_adamw, start_adamw_state),
    "lean": Factory(make_lean, LeanAdamW.start_state),
    "offload": Factory(make_offload, start_offload_state),
    "sgd": Factory(make_sgd, start_no_state),
}


def optimizer_factory(config: OptimizerConfig, *, seed: int) -> OptimizerFactory:
    """Choose the optimizer; the engine calls the factory once the experts are split.

    Args:
        config: which one, its rates and decay.
        seed: of the run, for stochastic rounding.

    Raises:
        ConfigError: an optimizer of that name is not known.
    """
    record = find_optimizer(config.optimizer)

    def make(model: PreTrainedModel) -> Optimizer:
        optimizer = FACTORIES[record.name].make(model, config, seed)
        for group in optimizer.param_groups:
            group[NAME] = record.name
        return optimizer

    return make


def engine_optimizer(engine: deepspeed.DeepSpeedEngine) -> OptimizerRecord:
    """What is known of the optimizer that an engine was started with."""
    return find_optimizer(engine.optimizer.optimizer.param_groups[0][NAME])


def prepare_optimizer_states(engine: deepspeed.DeepSpeedEngine, step_count: int) -> None:
    """Give the optimizer the states that it has after some updates, to be written over.

    Args:
        engine: between two steps.
        step_count: updates that the optimizer has done; after none it has no states, but where
            weights are their own masters.
    """
    optimizer, record = engine.optimizer.optimizer, engine_optimizer(engine)
    factory = FACTORIES[record.name]
    for flat in flat_masters(engine):
        optimizer.state.pop(flat, None)
        if step_count or record.shares_masters:
            factory.start_state(optimizer, flat, step_count)


def share_of_weights_moved(engine: deepspeed.DeepSpeedEngine) -> float | None:
    """Of the bfloat16 weights updated since the last call, the share that changed; all ranks.

    None where the optimizer has a float32 master copy: there no update is lost.
    """
    if not engine_optimizer(engine).shares_masters:
        return None
    counts = engine.optimizer.optimizer.take_moved()
    moved, rounded = sum_over_ranks([float(count) for count in counts], engine.device)
    return moved / max(rounded, 1.0)
