"""What is logged of losses on held-out data."""

import pytest

from hunyuan_train.evaluation.losses import name_losses


def test_perplexity_is_the_exponential_of_the_loss() -> None:
    numbers = name_losses({"loss": 0.0, "loss_fast": 1.0})
    assert numbers["eval_loss_fast"] == 1.0
    assert numbers["eval_perplexity"] == 1.0
    assert numbers["eval_perplexity_fast"] == pytest.approx(2.718281828)
