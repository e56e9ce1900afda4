"""Losses by mode and span, from batches whose groups are known."""

import numpy as np
import pytest

from hunyuan_train.data.batches.loader import cut_batch, join_samples
from hunyuan_train.data.dataset import SampleTokens
from hunyuan_train.families.grammar.dialogue import MODES
from hunyuan_train.objectives.sft import SFT, group_masks


def sample(spans: list[int], weight: float) -> SampleTokens:
    array = np.array(spans, np.uint8)
    weights = np.where(array, weight, 0.0).astype(np.float32)
    return SampleTokens(np.arange(len(spans), dtype=np.uint32), array, weights)


BATCH = join_samples(
    [sample([0, 1, 2, 3], 1.0), sample([0, 0, 2, 2, 3], 0.5)],
    modes=[MODES.index("slow"), MODES.index("fast")],
    sample_ids=[0, 1],
)


def test_each_label_counts_in_its_mode_and_its_span() -> None:
    weights = dict(zip(SFT.groups, SFT.weigh([BATCH]), strict=True))
    assert weights == {
        "loss": 4.5,
        "loss_slow": 3.0,
        "loss_fast": 1.5,
        "loss_think": 1.0,
        "loss_answer": 2.0,
        "loss_markers": 1.5,
        "loss_text": 0.0,
    }


def test_means_are_by_weight_and_leave_out_groups_without_labels() -> None:
    losses = np.where(BATCH.labels >= 0, np.arange(9.0), 0.0) * BATCH.loss_weights
    means = SFT.means(group_masks(BATCH) @ losses, SFT.weigh([BATCH]))
    # Labels stand one position before their tokens: 0, 1, 2 (slow) and 5, 6, 7 (fast).
    assert means == pytest.approx(
        {
            "loss": (0 + 1 + 2 + 0.5 * (5 + 6 + 7)) / 4.5,
            "loss_slow": 1.0,
            "loss_fast": 6.0,
            "loss_think": 0.0,
            "loss_answer": (1 + 0.5 * (5 + 6)) / 2,
            "loss_markers": (2 + 0.5 * 7) / 1.5,
        }
    )
    empty = [join_samples([], modes=[], sample_ids=[])]
    assert SFT.means([0.0] * len(SFT.groups), SFT.weigh(empty)) == {"loss": 0.0}


def test_groups_of_the_parts_of_a_row_are_those_of_the_row() -> None:
    parts = [cut_batch(BATCH, part, 4) for part in range(4)]
    whole = group_masks(BATCH)
    assert np.array_equal(np.concatenate([group_masks(part) for part in parts], axis=1), whole)
    assert SFT.weigh(parts) == pytest.approx(SFT.weigh([BATCH]))
