"""Objectives that learn from preferences, as values: pairs (dpo, ipo, orpo, simpo) and kto.

What is weighed is pairs, or judged answers. Ranks that share a row all know its sums; each counts
for its share of the group, so that nothing is counted twice.

Shape letters:  S documents of a row · F figures · G groups
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import deepspeed
import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor

from hunyuan_train.config.preference_schema import PreferenceConfig
from hunyuan_train.data.batches.loader import Batch
from hunyuan_train.data.dataset import CHOSEN, REJECTED
from hunyuan_train.objectives.log_probabilities import (
    add_reference,
    answer_lengths,
    answer_logps,
    judge,
)
from hunyuan_train.objectives.loss_groups import BY_MODE
from hunyuan_train.objectives.objective import SMALLEST_WEIGHT, Objective, Sums
from hunyuan_train.objectives.preference_losses import PAIR_FORMULAS, Pairs, kto
from hunyuan_train.parallel.engine import sum_over_ranks

# Figures in TRL's names, in the order in which they are summed.
PAIR_FIGURES = (
    "loss",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",
    "logps/chosen",
    "logps/rejected",
    "lengths/chosen",
    "lengths/rejected",
    "kl",
)
# Of judged answers, each with the side it is a mean over; 0: both.
KTO_FIGURES = {
    "loss": 0,
    "rewards/chosen": CHOSEN,
    "rewards/rejected": REJECTED,
    "logps/chosen": CHOSEN,
    "logps/rejected": REJECTED,
    "lengths/chosen": CHOSEN,
    "lengths/rejected": REJECTED,
    "kl": 0,
}


def make_preference_objective(
    config: PreferenceConfig, *, group: dist.ProcessGroup | None, reference_is_base: bool
) -> Objective:
    """An objective of preferences.

    Args:
        config: which, and its numbers.
        group: ranks that share rows, or None.
        reference_is_base: the reference is the model with its adapters off; otherwise what it says
            comes with the batches, or there is none.
    """
    base = _Base(config, group, reference_is_base)
    if config.objective == "kto":
        return Objective(
            groups=_name_groups(KTO_FIGURES),
            forward=JudgedAnswers(base).forward,
            weigh=weigh_answers,
            prepare=JudgedAnswers(base).prepare,
            complete=add_margins,
            has_perplexity=False,
            least_spike=max(config.desirable_weight, config.undesirable_weight),
        )
    pairs = PairedAnswers(base)
    return Objective(
        groups=_name_groups(PAIR_FIGURES),
        forward=pairs.forward,
        weigh=weigh_pairs,
        prepare=pairs.prepare,
        has_perplexity=False,
        least_spike=find_least_spike(config),
    )


def find_least_spike(config: PreferenceConfig) -> float:
    """Twice the loss of a model that prefers neither answer; a cross entropy beside it counts 0."""
    if config.objective == "ipo":
        return 2 / (2 * config.beta) ** 2
    return 2 * math.log(2) * (config.beta if config.objective == "orpo" else 1.0)


@dataclass(frozen=True, slots=True)
class _Base:
    """What both kinds of objectives are made of."""

    config: PreferenceConfig
    group: dist.ProcessGroup | None
    reference_is_base: bool

    def add_reference(
        self, engine: deepspeed.DeepSpeedEngine, batches: Sequence[Batch]
    ) -> list[Batch]:
        """The batches with what the reference says of them."""
        if not self.reference_is_base:
            return list(batches)
        return add_reference(engine, batches, self.group)


@dataclass(frozen=True, slots=True)
class PairedAnswers:
    """Two answers to each prompt, one of them preferred."""

    base: _Base

    @property
    def nll_weight(self) -> float:
        """Of the chosen answers' mean cross entropy beside the preference."""
        return 1.0 if self.base.config.objective == "orpo" else self.base.config.rpo_alpha

    def prepare(self, engine: deepspeed.DeepSpeedEngine, batches: Sequence[Batch]) -> list[Batch]:
        """Ask the reference, and count pairs and chosen tokens, by which a cross entropy counts."""
        batches = self.base.add_reference(engine, batches)
        if not self.nll_weight:
            return batches
        num_tokens = 0.0
        for batch in batches:
            lengths = answer_lengths(batch, engine.device, self.base.group)
            chosen = _places(batch, CHOSEN, engine.device)
            num_tokens += _share(batch) * float(lengths[chosen].sum())
        num_pairs = float(weigh_pairs(batches)[0])
        pairs, tokens = sum_over_ranks([num_pairs, num_tokens], engine.device)
        return [replace(batch, of_step=pairs / max(tokens, 1.0)) for batch in batches]

    def forward(self, engine: deepspeed.DeepSpeedEngine, batch: Batch) -> Sums:
        """Losses of a batch's pairs, and all that is logged of them."""
        base = self.base
        logps_S = answer_logps(engine, batch, base.group)
        lengths_S = answer_lengths(batch, engine.device, base.group)
        reference_S = references_of(batch, engine.device)
        chosen, rejected = (_places(batch, side, engine.device) for side in (CHOSEN, REJECTED))
        pairs = Pairs(
            chosen=logps_S[chosen],
            rejected=logps_S[rejected],
            reference_chosen=reference_S[chosen],
            reference_rejected=reference_S[rejected],
            chosen_lengths=lengths_S[chosen].clamp(min=1),
            rejected_lengths=lengths_S[rejected].clamp(min=1),
        )
        found = PAIR_FORMULAS[base.config.objective](pairs, base.config)
        losses = found.losses
        if self.nll_weight:
            losses = losses - self.nll_weight * batch.of_step * pairs.chosen
        ratios = pairs.chosen - pairs.reference_chosen + pairs.rejected - pairs.reference_rejected
        rewards = found.chosen_rewards, found.rejected_rewards
        values_FP = torch.stack(
            [
                losses,
                *rewards,
                rewards[0] - rewards[1],
                (rewards[0] > rewards[1]).double(),
                pairs.chosen,
                pairs.rejected,
                lengths_S[chosen],
                lengths_S[rejected],
                ratios / 2,
            ]
        ).detach()
        masks = torch.from_numpy(mode_masks(batch)).to(engine.device)[:, chosen]
        # Where a rank has no pair the sum over nothing keeps its backward pass in step.
        loss = losses.sum() + 0 * logps_S.sum()
        by_group = _share(batch) * (values_FP @ masks.T).flatten()
        return Sums(loss.float(), by_group, torch.stack(rewards).detach())


@dataclass(frozen=True, slots=True)
class JudgedAnswers:
    """Single answers, good or bad."""

    base: _Base

    def prepare(self, engine: deepspeed.DeepSpeedEngine, batches: Sequence[Batch]) -> list[Batch]:
        """Ask the reference, and estimate the model's distance to it over the whole step.

        The estimate is a mean over prompts with the answers to other prompts, of all ranks.
        """
        batches = self.base.add_reference(engine, batches)
        others = [batch.mismatched for batch in batches]
        known = self.base.add_reference(engine, [one for one in others if one is not None])
        logps = judge(engine, known, self.base.group)
        total, number = 0.0, 0.0
        for batch, found in zip(known, logps, strict=True):
            is_sample = batch.sample_ids >= 0
            references = np.zeros(len(found))
            if batch.reference_logps is not None:
                references = batch.reference_logps
            total += _share(batch) * float((found - references)[is_sample].sum())
            number += _share(batch) * float(is_sample.sum())
        total, number = sum_over_ranks([total, number], engine.device)
        kl = max(0.0, total / max(number, SMALLEST_WEIGHT))
        return [replace(batch, of_step=kl) for batch in batches]

    def forward(self, engine: deepspeed.DeepSpeedEngine, batch: Batch) -> Sums:
        """Losses of a batch's answers, and all that is logged of them."""
        base = self.base
        logps_S = answer_logps(engine, batch, base.group)
        lengths_S = answer_lengths(batch, engine.device, base.group)
        ratios_S = logps_S - references_of(batch, engine.device)
        sides_S = torch.from_numpy(sides_of(batch)).to(engine.device)
        is_judged_S = sides_S > 0
        losses_S, rewards_S = kto(ratios_S, sides_S == CHOSEN, batch.of_step, base.config)
        losses_S = torch.where(is_judged_S, losses_S, 0.0)
        by_figure = {
            "loss": losses_S,
            "rewards": rewards_S,
            "logps": logps_S,
            "lengths": lengths_S,
            "kl": torch.full_like(losses_S, batch.of_step),
        }
        masks = torch.from_numpy(mode_masks(batch)).to(engine.device)
        sums = []
        for name, side in KTO_FIGURES.items():
            is_meant = sides_S == side if side else is_judged_S
            values = torch.where(is_meant, by_figure[name.partition("/")[0]].detach(), 0.0)
            sums.append(masks @ values)
        loss = losses_S.sum() + 0 * logps_S.sum()
        return Sums(loss.float(), _share(batch) * torch.cat(sums))


def weigh_pairs(batches: Sequence[Batch]) -> npt.NDArray[np.float64]:
    """Pairs of each mode, for each figure: [G]."""
    counts = np.zeros(1 + len(BY_MODE))
    for batch in batches:
        counts += _share(batch) * mode_masks(batch)[:, sides_of(batch) == CHOSEN].sum(axis=1)
    return np.tile(counts, len(PAIR_FIGURES))


def weigh_answers(batches: Sequence[Batch]) -> npt.NDArray[np.float64]:
    """Judged answers of each mode, for each figure those of its side: [G]."""
    counts = np.zeros((len(KTO_FIGURES), 1 + len(BY_MODE)))
    for batch in batches:
        masks, sides = mode_masks(batch), sides_of(batch)
        for row, side in zip(counts, KTO_FIGURES.values(), strict=True):
            row += _share(batch) * masks[:, sides == side if side else sides > 0].sum(axis=1)
    return counts.flatten()


def add_margins(means: dict[str, float]) -> dict[str, float]:
    """Means with how far good answers are from bad ones, where there are both."""
    margins = {}
    for suffix in ("", *(f"_{mode}" for mode in BY_MODE)):
        sides = [f"rewards/{side}{suffix}" for side in ("chosen", "rejected")]
        if all(side in means for side in sides):
            margins[f"rewards/margins{suffix}"] = means[sides[0]] - means[sides[1]]
    return means | margins


def mode_masks(batch: Batch) -> npt.NDArray[np.float64]:
    """Which documents belong to all, and to each mode: [1 + modes, S]."""
    rows = [np.ones_like(batch.modes), *(batch.modes == number for number in BY_MODE.values())]
    return np.stack(rows).astype(np.float64)


def sides_of(batch: Batch) -> npt.NDArray[np.uint8]:
    """CHOSEN or REJECTED, 0 for what keeps ranks in step: [S]."""
    return np.zeros(len(batch.modes), np.uint8) if batch.sides is None else batch.sides


def references_of(batch: Batch, device: torch.device) -> Tensor:
    """Log-probabilities by the reference, 0 where there is none: [S], float64."""
    known = batch.reference_logps
    return torch.from_numpy(np.zeros(len(batch.modes)) if known is None else known).to(device)


def _places(batch: Batch, side: int, device: torch.device) -> Tensor:
    return torch.from_numpy(np.flatnonzero(sides_of(batch) == side)).to(device)


def _share(batch: Batch) -> float:
    """This rank's share of a row that it shares with others."""
    return 1 / max(len(batch.part_lengths), 1)


def _name_groups(figures: Sequence[str] | dict[str, int]) -> tuple[str, ...]:
    suffixes = ("", *(f"_{mode}" for mode in BY_MODE))
    return tuple(f"{figure}{suffix}" for figure in figures for suffix in suffixes)
