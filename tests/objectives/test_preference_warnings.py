"""Figures that look well and are not: both sides unlearned, or nothing learned but length."""

from hunyuan_train.objectives.preference_warnings import find_warnings

FIRST = {"eval_logps/chosen": -20.0, "eval_logps/rejected": -40.0}
SOUND = {
    "eval_logps/chosen": -19.0,
    "eval_logps/rejected": -60.0,
    "eval_lengths/chosen": 10.0,
    "eval_lengths/rejected": 20.0,
    "eval_rewards/chosen": 0.1,
    "eval_rewards/rejected": -2.0,
}


def test_a_sound_run_and_one_without_preferences_get_no_warning() -> None:
    assert find_warnings([{}, FIRST, SOUND]) == []
    assert find_warnings([{"loss": 2.0}, {"loss": 1.0}]) == []


def test_both_log_probabilities_falling_is_said() -> None:
    [text] = find_warnings([FIRST, SOUND | {"eval_logps/chosen": -26.0}])
    assert "0.60 (chosen) and 1.00 (rejected)" in text


def test_a_margin_that_length_makes_is_said() -> None:
    by_length = {"eval_rewards/chosen": -1.0, "eval_rewards/rejected": -2.0}
    [text] = find_warnings([FIRST, SOUND | by_length])
    assert text.startswith("100% of the margin")
