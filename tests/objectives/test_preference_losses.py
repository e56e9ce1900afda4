"""The formulas of preference objectives, against float64 arithmetic written once more by hand."""

import math

import pytest
import torch

from hunyuan_train.config.preference_schema import PreferenceConfig
from hunyuan_train.objectives.preference_losses import PAIR_FORMULAS, Pairs, kto, log1mexp

# Chosen and rejected log-probabilities of the model and of the reference, and answers' lengths.
PAIRS = ((-4.0, -7.5, -5.0, -6.0, 3, 9), (-30.0, -12.0, -20.0, -15.0, 11, 2))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def by_hand(objective: str, config: PreferenceConfig) -> list[float]:
    losses = []
    for chosen, rejected, ref_chosen, ref_rejected, num_chosen, num_rejected in PAIRS:
        ratios = chosen - ref_chosen, rejected - ref_rejected
        mean_chosen, mean_rejected = chosen / num_chosen, rejected / num_rejected
        margin = config.beta * (ratios[0] - ratios[1])
        if objective == "ipo":
            difference = ratios[0] / num_chosen - ratios[1] / num_rejected
            losses.append((difference - 1 / (2 * config.beta)) ** 2)
            continue
        if objective == "orpo":
            odds = [math.exp(one) / (1 - math.exp(one)) for one in (mean_chosen, mean_rejected)]
            losses.append(-config.beta * math.log(sigmoid(math.log(odds[0] / odds[1]))))
            continue
        if objective == "simpo":
            margin = config.beta * (mean_chosen - mean_rejected) - config.simpo_gamma
        wrong = config.label_smoothing
        losses.append(-(1 - wrong) * math.log(sigmoid(margin)) - wrong * math.log(sigmoid(-margin)))
    return losses


@pytest.mark.parametrize("objective", PAIR_FORMULAS)
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_losses_of_pairs(objective: str, smoothing: float) -> None:
    config = PreferenceConfig(objective=objective, beta=0.3, label_smoothing=smoothing)
    columns = [torch.tensor(one, dtype=torch.float64) for one in zip(*PAIRS, strict=True)]
    names = ("chosen", "rejected", "reference_chosen", "reference_rejected")
    fields = dict(zip((*names, "chosen_lengths", "rejected_lengths"), columns, strict=True))
    found = PAIR_FORMULAS[objective](Pairs(**fields), config)
    assert found.losses.tolist() == pytest.approx(by_hand(objective, config), rel=1e-12)
    divisors = (1, 1) if objective in ("dpo", "ipo") else (PAIRS[0][4], PAIRS[0][5])
    references = PAIRS[0][2:4] if objective in ("dpo", "ipo") else (0.0, 0.0)
    rewards = [0.3 * (PAIRS[0][n] - references[n]) / divisors[n] for n in (0, 1)]
    assert [float(found.chosen_rewards[0]), float(found.rejected_rewards[0])] == pytest.approx(
        rewards
    )


@pytest.mark.parametrize("kl", [0.0, 1.5])
def test_losses_of_judged_answers(kl: float) -> None:
    config = PreferenceConfig(
        objective="kto", beta=0.2, desirable_weight=1.5, undesirable_weight=0.5
    )
    ratios = torch.tensor([2.0, -3.0], dtype=torch.float64)
    losses, rewards = kto(ratios, torch.tensor([True, False]), kl, config)
    expected = [1.5 * (1 - sigmoid(0.2 * (2.0 - kl))), 0.5 * (1 - sigmoid(0.2 * (kl + 3.0)))]
    assert losses.tolist() == pytest.approx(expected, rel=1e-12)
    assert rewards.tolist() == pytest.approx([0.4, -0.6])


def test_the_logarithm_of_what_is_left_of_a_probability_keeps_its_digits() -> None:
    values = torch.tensor([-1e-9, -0.5, -0.7, -50.0], dtype=torch.float64)
    expected = [math.log(1e-9), math.log(1 - math.exp(-0.5)), math.log(1 - math.exp(-0.7))]
    expected.append(math.log1p(-math.exp(-50.0)))
    assert log1mexp(values).tolist() == pytest.approx(expected, rel=1e-8)
