"""The formulas of preference objectives, as their papers and TRL have them.

Shape letters:  P pairs
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from hunyuan_train.config.preference_schema import PreferenceConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Pairs:
    """What the model and a reference say of some pairs, each [P], float64."""

    chosen: Tensor  # log-probabilities of the model, with gradient
    rejected: Tensor
    reference_chosen: Tensor  # of the reference; 0 where there is none
    reference_rejected: Tensor
    chosen_lengths: Tensor  # label tokens
    rejected_lengths: Tensor


@dataclass(frozen=True, slots=True)
class PairLosses:
    """What became of some pairs, each [P]."""

    losses: Tensor
    chosen_rewards: Tensor
    rejected_rewards: Tensor


PairFormula = Callable[[Pairs, PreferenceConfig], PairLosses]


def prefer(margins: Tensor, label_smoothing: float) -> Tensor:
    """Cross entropy of the preference, with so large a share of labels taken to be wrong: [P]."""
    right, wrong = logsigmoid(margins), logsigmoid(-margins)
    return -(1 - label_smoothing) * right - label_smoothing * wrong


def dpo(pairs: Pairs, config: PreferenceConfig) -> PairLosses:
    """Direct preference optimization (arXiv 2305.18290, equation 7; smoothing 2309.16240)."""
    chosen = config.beta * (pairs.chosen - pairs.reference_chosen)
    rejected = config.beta * (pairs.rejected - pairs.reference_rejected)
    return PairLosses(prefer(chosen - rejected, config.label_smoothing), chosen, rejected)


def ipo(pairs: Pairs, config: PreferenceConfig) -> PairLosses:
    """Identity preference optimization (arXiv 2310.12036, equation 17), by means over tokens."""
    chosen = pairs.chosen - pairs.reference_chosen
    rejected = pairs.rejected - pairs.reference_rejected
    margins = chosen / pairs.chosen_lengths - rejected / pairs.rejected_lengths
    losses = (margins - 1 / (2 * config.beta)) ** 2
    return PairLosses(losses, config.beta * chosen, config.beta * rejected)


def simpo(pairs: Pairs, config: PreferenceConfig) -> PairLosses:
    """Simple preference optimization (arXiv 2405.14734, equation 6), by means over tokens."""
    chosen = config.beta * pairs.chosen / pairs.chosen_lengths
    rejected = config.beta * pairs.rejected / pairs.rejected_lengths
    margins = chosen - rejected - config.simpo_gamma
    return PairLosses(prefer(margins, config.label_smoothing), chosen, rejected)


def orpo(pairs: Pairs, config: PreferenceConfig) -> PairLosses:
    """Odds ratio preference optimization (arXiv 2403.07691, equation 7), without its first term.

    That one, the chosen answers' cross entropy, is a mean over tokens (`preferences.py`).
    """
    chosen = pairs.chosen / pairs.chosen_lengths
    rejected = pairs.rejected / pairs.rejected_lengths
    odds = (chosen - rejected) - (log1mexp(chosen) - log1mexp(rejected))
    return PairLosses(-config.beta * logsigmoid(odds), config.beta * chosen, config.beta * rejected)


def log1mexp(values: Tensor) -> Tensor:
    """log(1 - exp(x)) of negative numbers, whatever their size."""
    values = values.clamp(max=-1e-12)  # an answer that is certain has endless odds
    is_small = values > -0.693
    near = torch.log(-torch.expm1(torch.where(is_small, values, -1.0)))
    far = torch.log1p(-torch.exp(torch.where(is_small, -1.0, values)))
    return torch.where(is_small, near, far)


def kto(
    ratios: Tensor, is_chosen: Tensor, kl: float, config: PreferenceConfig
) -> tuple[Tensor, Tensor]:
    """Kahneman-Tversky optimization (arXiv 2402.01306, equation 7).

    Args:
        ratios: model to reference, as logarithms, [answers].
        is_chosen: whether each answer is desirable, [answers].
        kl: of the model to the reference, estimated over the whole step.
        config: its weights and beta.

    Returns:
        losses and rewards, [answers].
    """
    sign = torch.where(is_chosen, 1.0, -1.0).to(ratios)
    weights = sign.new_tensor([config.undesirable_weight, config.desirable_weight])[
        is_chosen.long()
    ]
    losses = weights * (1 - torch.sigmoid(config.beta * sign * (ratios - kl)))
    return losses, config.beta * ratios


PAIR_FORMULAS: dict[str, PairFormula] = {"dpo": dpo, "ipo": ipo, "simpo": simpo, "orpo": orpo}
