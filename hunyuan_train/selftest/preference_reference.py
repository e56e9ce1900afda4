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
        config: dpo or kto, with its numbers.
        known: what the reference says.
    """
    if config.objective == "kto":
        return _judged_loss(model, step, config, known)
    rows: list[dict[str, Tensor]] = []
    modes = []
    for sample in (one for batch in step for one in batch):
        answers = _answers(sample, config)
        logps = [_logp(model, answer) for answer in answers]
        rewards = [
            config.beta * (logp - known[id(sample), number]) for number, logp in enumerate(logps)
        ]
        margin = rewards[0] - rewards[1]
        lengths = [torch.tensor(float(np.count_nonzero(one.tokens.spans[1:]))) for one in answers]
        rows.append(
            {
                "loss": torch.log1p(torch.exp(-margin)),
                "rewards/chosen": rewards[0],
                "rewards/rejected": rewards[1],
                "rewards/margins": margin,
                "rewards/accuracies": (margin > 0).double(),
                "logps/chosen": logps[0],
                "logps/rejected": logps[1],
                "lengths/chosen": lengths[0],
                "lengths/rejected": lengths[1],
                "kl": (rewards[0] + rewards[1]) / (2 * config.beta),
            }
        )
        modes.append(MODES[sample.mode])
    total = torch.stack([row["loss"] for row in rows]).mean()
    return total, _means([(row, mode) for row, mode in zip(rows, modes, strict=True)])


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
