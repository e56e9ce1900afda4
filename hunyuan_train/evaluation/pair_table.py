"""The same held-out pairs at each evaluation, with the rewards of both answers."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch.distributed as dist

from hunyuan_train.data.batches.loader import Batch
from hunyuan_train.data.dataset import CHOSEN, Dataset
from hunyuan_train.families.grammar.tokenizer import Tokenizer
from hunyuan_train.json_lines import Lines, NoLines
from hunyuan_train.objectives.objective import Sums

MAX_PAIRS = 40  # spread evenly over the held-out data


@dataclass(slots=True)
class PairTable:
    """Some pairs as text, and what an evaluation finds of them. Every rank has one.

    By default there are none, and nothing is kept.
    """

    texts: Mapping[int, dict[str, str]] = field(default_factory=dict)  # by number of the pair
    log: Lines = field(default_factory=NoLines)  # rank 0's is kept
    found: dict[int, list[float]] = field(default_factory=dict)  # chosen and rejected, of this rank

    def see(self, batch: Batch, sums: Sums) -> None:
        """Take the rewards of a batch's pairs."""
        if sums.pairs is None or not self.texts:
            return
        assert batch.sides is not None, "pairs have sides"
        numbers = (batch.sample_ids[batch.sides == CHOSEN] // 2).tolist()
        for number, rewards in zip(numbers, sums.pairs.T.tolist(), strict=True):
            if number in self.texts:
                self.found[number] = rewards

    def write(self, step: int) -> None:
        """Keep what all ranks have seen since the last time; called by every rank."""
        if not self.texts:
            return
        ranks: list[dict[int, list[float]]] = [{}] * dist.get_world_size()
        dist.all_gather_object(ranks, self.found)
        found = {number: rewards for rank in ranks for number, rewards in rank.items()}
        for number in sorted(found):
            chosen, rejected = found[number]
            rewards = {"reward_chosen": chosen, "reward_rejected": rejected}
            self.log.append({"step": step, **self.texts[number], **rewards})
        self.found.clear()


def make_pair_table(dataset: Dataset, tokenizer: Tokenizer, log: Lines) -> PairTable:
    """A table of some of a data set's pairs."""
    num_pairs = len(dataset) // 2
    numbers = np.unique(np.linspace(0, num_pairs - 1, min(MAX_PAIRS, num_pairs)).astype(int))
    return PairTable(
        {number: _write(dataset, tokenizer, number) for number in numbers.tolist()}, log
    )


def _write(dataset: Dataset, tokenizer: Tokenizer, number: int) -> dict[str, str]:
    """Prompt and both answers of a pair, as the model sees them."""
    parts = {}
    for offset, side in enumerate(("chosen", "rejected")):
        sample = dataset.sample(2 * number + offset)
        first = int((sample.spans != 0).argmax())
        parts["prompt"] = tokenizer.decode(sample.tokens[:first].tolist())
        parts[side] = tokenizer.decode(sample.tokens[first:].tolist())
    return parts
