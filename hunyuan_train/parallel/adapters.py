"""The model without its adapters, for as long as it is to judge as a reference."""

from collections.abc import Iterator
from contextlib import contextmanager

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from hunyuan_train.parallel.expert_lora import AdaptedExperts
from hunyuan_train.parallel.quantised_experts import QuantisedExperts


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Compute as if no adapters were there: those of linear layers and those of experts.

    PEFT's own switch (`enable_adapters`) also turns gradients of the adapters off and on, which the
    engine has hooks on; its layers read only the flag that is set here.
    """
    linear = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    experts = [
        module
        for module in model.modules()
        if isinstance(module, AdaptedExperts | QuantisedExperts)
    ]
    for layer in linear:
        layer._disable_adapters = True
    for layer in experts:
        layer.is_adapted = False
    try:
        yield
    finally:
        for layer in linear:
            layer._disable_adapters = False
        for layer in experts:
            layer.is_adapted = True
