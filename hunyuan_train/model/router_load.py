"""What the load of experts says about the health of routers.

A load counts the token slots that each expert of each layer received, of all ranks.

Shape letters:  E experts · L layers
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

DEAD = 0.01  # an expert with less than this part of an equal share learns next to nothing


@dataclass(frozen=True, slots=True)
class LoadShape:
    """A load in numbers, each [layers], float64, on CPU."""

    entropy: Tensor  # of the shares, 1 where they are equal and 0 where one expert gets all
    violation: Tensor  # the busiest expert's load by the mean, less 1: MaxVio, arXiv 2408.15664
    is_dead: Tensor  # [layers, experts], bool

    @property
    def num_dead(self) -> int:
        """Dead experts of all layers."""
        return int(self.is_dead.sum())


def to_shares(load_LE: Tensor) -> Tensor:
    """Parts of a layer's token slots: [layers, experts], float64, rows sum to 1."""
    load_LE = load_LE.double().cpu()
    num_experts = load_LE.shape[1]
    total_L1 = load_LE.sum(dim=1, keepdim=True)
    return torch.where(total_L1 > 0, load_LE / total_L1.clamp(min=1), 1 / num_experts)


def describe_load(load_LE: Tensor) -> LoadShape:
    """Measure a load: [layers, experts], counts or shares."""
    shares_LE = to_shares(load_LE)
    num_experts = shares_LE.shape[1]
    entropy_L = -torch.xlogy(shares_LE, shares_LE).sum(dim=1) / math.log(num_experts)
    return LoadShape(
        entropy=entropy_L,
        violation=shares_LE.amax(dim=1) * num_experts - 1,
        is_dead=shares_LE < DEAD / num_experts,
    )


def divergence(load_LE: Tensor, profile_LE: Tensor) -> Tensor:
    """How far two loads lie apart, by layer: 0 the same, 1 no expert in common: [layers].

    The Jensen-Shannon divergence in bits (Lin 1991): symmetric, and finite where an expert died.
    """
    one, other = to_shares(load_LE), to_shares(profile_LE)
    middle = (one + other) / 2

    def entropy(shares_LE: Tensor) -> Tensor:
        return -torch.xlogy(shares_LE, shares_LE).sum(dim=1) / math.log(2)

    return (entropy(middle) - (entropy(one) + entropy(other)) / 2).clamp(min=0)
