"""Preference objectives of the plain model: formulas in float64, one answer at a time.

They stand here once more on purpose; nothing here comes from the training path. What the reference
says is what the model says before its first step, be it a copy or the model without its adapters.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from hunyuan_train.config.preference_schema import PreferenceConfig
from hunyuan_train.data.dataset import CHOSEN
from hunyuan_train.families.grammar.dialogue import MODES
from hunyuan_train.selftest.samples import Sample, Step, list_answers, list_mismatched

CERTAIN = 1e-12  # a log-probability no further below 0 counts as this far below
Known = dict[tuple[int, int], float]  # log-probabilities by the reference: of a sample's answers


def judge_steps(model: nn.Module, steps: Sequence[Step], config: PreferenceConfig) -> Known:
    """What the model says of all answers now."""
    if config.objective == "sft":
        return {}
    with torch.no_grad():
        return {
            (id(sample), number): float(_logp(model, answer))
            for step in steps
            for batch in step
            for sample in batch
            for number, answer in enumerate((*_answers(sample, config), *list_mismatched(sample)))
        }


def preference_loss(
    model: nn.Module, step: Step, config: PreferenceConfig, known: Known
) -> tuple[Tensor, dict[str, float]]:
    """Mean loss of a step's pairs or judged answers, and the figures that a run reports.

    Args:
        model: in float64.
        step: samples of all ranks.
        config: with the numbers of its objective.
        known: what the reference says.
    """
    if config.objective == "kto":
        return _judged_loss(model, step, config, known)
    samples = [sample for batch in step for sample in batch]
    answers = [_answers(sample, config) for sample in samples]
    lengths = [[float(np.count_nonzero(one.tokens.spans[1:])) for one in pair] for pair in answers]
    # A cross entropy beside the preference is a mean over all chosen tokens of the step.
    nll_weight = 1.0 if config.objective == "orpo" else config.rpo_alpha
    nll_weight *= len(samples) / sum(pair[0] for pair in lengths)
    rows = []
    for sample, pair, counted in zip(samples, answers, lengths, strict=True):
        logps = [_logp(model, answer) for answer in pair]
        said = [known[id(sample), number] for number in range(2)]
        ratios = [
            logp - (one if config.needs_reference else 0.0)
            for logp, one in zip(logps, said, strict=True)
        ]
        loss, rewards = _pair_formula(ratios, counted, config)
        row = {
            "loss": loss - nll_weight * logps[0],
            "rewards/margins": rewards[0] - rewards[1],
            "rewards/accuracies": (rewards[0] > rewards[1]).double(),
            "kl": (ratios[0] + ratios[1]) / 2,
        }
        for number, side in enumerate(("chosen", "rejected")):
            row[f"rewards/{side}"], row[f"logps/{side}"] = rewards[number], logps[number]
            row[f"lengths/{side}"] = torch.tensor(counted[number])
        rows.append((row, MODES[sample.mode]))
    return torch.stack([row["loss"] for row, _ in rows]).mean(), _means(rows)


def _pair_formula(
    ratios: Sequence[Tensor], lengths: Sequence[float], config: PreferenceConfig
) -> tuple[Tensor, list[Tensor]]:
    """Loss of a pair, and the rewards of its sides.

    Args:
        ratios: log-probabilities of both sides, less those of the reference where there is one.
        lengths: label tokens of both sides.
        config: of an objective of pairs, with its numbers.
    """
    means = [ratio / max(length, 1.0) for ratio, length in zip(ratios, lengths, strict=True)]
    if config.objective == "ipo":
        loss = (means[0] - means[1] - 1 / (2 * config.beta)) ** 2
        return loss, [config.beta * ratio for ratio in ratios]
    if config.objective == "orpo":
        # An answer without labels would be certain, and have endless odds.
        chances = [torch.exp(mean.clamp(max=-CERTAIN)) for mean in means]
        odds = [chance / (1 - chance) for chance in chances]
        loss = config.beta * torch.log1p(odds[1] / odds[0])
        return loss, [config.beta * mean for mean in means]
    is_simpo = config.objective == "simpo"
    rewards = [config.beta * one for one in (means if is_simpo else ratios)]
    margin = rewards[0] - rewards[1] - (config.simpo_gamma if is_simpo else 0.0)
    right, wrong = torch.log1p(torch.exp(-margin)), torch.log1p(torch.exp(margin))
    return (1 - config.label_smoothing) * right + config.label_smoothing * wrong, rewards


def _judged_loss(
    model: nn.Module, step: Step, config: PreferenceConfig, known: Known
) -> tuple[Tensor, dict[str, float]]:
    samples = [one for batch in step for one in batch]
    with torch.no_grad():
        drifts = [
            float(_logp(model, list_mismatched(one)[0])) - known[id(one), 1] for one in samples
        ]
    kl = max(0.0, sum(drifts) / len(drifts))
    rows = []
    losses = []
    for batch in step:
        for place, sample in enumerate(batch):
            [answer], verdict = _answers(sample, config), 1 + place % 2
            logp = _logp(model, answer)
            ratio = logp - known[id(sample), 0]
            is_good = verdict == CHOSEN
            drawn = config.beta * ((ratio - kl) if is_good else (kl - ratio))
            weight = config.desirable_weight if is_good else config.undesirable_weight
            losses.append(weight * torch.sigmoid(-drawn))
            side = "chosen" if is_good else "rejected"
            length = torch.tensor(float(np.count_nonzero(answer.tokens.spans[1:])))
            row = {"loss": losses[-1], "kl": torch.tensor(kl, dtype=torch.float64)}
            row |= {f"rewards/{side}": config.beta * ratio, f"logps/{side}": logp}
            rows.append((row | {f"lengths/{side}": length}, MODES[sample.mode]))
    means = _means(rows)
    for mode in ("", "_fast", "_slow"):
        sides = [means.get(f"rewards/{side}{mode}") for side in ("chosen", "rejected")]
        if sides[0] is not None and sides[1] is not None:
            means[f"rewards/margins{mode}"] = sides[0] - sides[1]
    return torch.stack(losses).mean(), means


def _answers(sample: Sample, config: PreferenceConfig) -> list[Sample]:
    return list_answers(sample, is_paired=config.objective != "kto")


def _logp(model: nn.Module, sample: Sample) -> Tensor:
    """Weighted log-probability of a document's labels, run alone: a scalar, float64."""
    ids = torch.from_numpy(sample.tokens.tokens.astype(np.int64))
    logits = model(input_ids=ids[None]).logits[0]
    losses = functional.cross_entropy(logits[:-1], ids[1:], reduction="none")
    return -(losses * torch.from_numpy(sample.tokens.weights[1:]).double()).sum()


def _means(rows: Sequence[tuple[dict[str, Tensor], str]]) -> dict[str, float]:
    """Mean of each figure over all rows that have it, and over those of each mode."""
    found: dict[str, list[float]] = {}
    for row, mode in rows:
        for name, value in row.items():
            for suffix in ("", f"_{mode}"):
                found.setdefault(f"{name}{suffix}", []).append(value.item())
    return {name: sum(values) / len(values) for name, values in found.items()}
