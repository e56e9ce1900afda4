"""Ranks and alphas that an adapter gives for some of its targets only."""

from typing import Any

import pytest

from hunyuan_train.checkpoint.errors import CheckpointError
from hunyuan_train.export.lora_deltas import _by_pattern

TARGET = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [(None, 8), ({}, 8), ({"q_proj": 4}, 4), ({"k_proj": 4}, 8), ({r"layers\.\d+\..*": 2}, 2)],
)
def test_the_first_pattern_that_fits_a_target_counts(patterns: object, expected: int) -> None:
    assert _by_pattern({"rank_pattern": patterns}, "rank_pattern", TARGET, 8) == expected


@pytest.mark.parametrize(
    ("patterns", "otherwise"),
    [([1], 8), ("x", 8), (False, 8), ({"q_proj": "4"}, 8), ({"q_proj": None}, 8), ({"(": 4}, 8),
     ({}, "8"), ({}, [8])],
)  # fmt: skip
def test_patterns_that_are_none_are_refused_in_words(patterns: object, otherwise: Any) -> None:
    with pytest.raises(CheckpointError, match="rank_pattern"):
        _by_pattern({"rank_pattern": patterns}, "rank_pattern", TARGET, otherwise)
