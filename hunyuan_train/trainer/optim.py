"""Optimizers, built over the parameters that this process keeps."""

from typing import Any

import torch
from deepspeed.ops.adam import DeepSpeedCPUAdam
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from hunyuan_train.config.schema import TrainConfig
from hunyuan_train.parallel.engine import OptimizerFactory


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two parameter groups: matrices, which decay, and vectors (norms, biases), which never do."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    vectors = [parameter for parameter in trained if num_dimensions(parameter) < 2]
    matrices = [parameter for parameter in trained if num_dimensions(parameter) >= 2]
    groups = ((matrices, weight_decay), (vectors, 0.0))
    return [{"params": members, "weight_decay": decay} for members, decay in groups if members]


def num_dimensions(parameter: nn.Parameter) -> int:
    """Dimensions of the whole parameter; a ZeRO-3 partition is flat and remembers its shape."""
    shape = parameter.ds_shape if hasattr(parameter, "ds_shape") else parameter.shape
    return len(shape)


def optimizer_factory(config: TrainConfig, *, offload: bool) -> OptimizerFactory:
    """Choose the optimizer; the engine calls the factory once the experts are split.

    Args:
        config: rates and decay.
        offload: optimizer states live in host memory, so the step runs there (DeepSpeedCPUAdam).
    """
    rate, epsilon = config.learning_rate, config.adam_epsilon
    betas = (config.adam_beta1, config.adam_beta2)

    def make(model: nn.Module) -> Optimizer:
        groups = decay_groups(model, config.weight_decay)
        if config.optimizer == "sgd":
            return SGD(groups, lr=rate)
        if offload:
            return DeepSpeedCPUAdam(groups, lr=rate, betas=betas, eps=epsilon, adamw_mode=True)
        is_fused = torch.cuda.is_available()
        return AdamW(groups, lr=rate, betas=betas, eps=epsilon, fused=is_fused)

    return make
