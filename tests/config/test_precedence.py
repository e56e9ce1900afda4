"""What a flag says wins over what a file says in another way; both in one place are refused."""

from dataclasses import asdict

import pytest

from hunyuan_train.config.load import load_config
from hunyuan_train.config.precedence import DEMO_HELD_OUT
from hunyuan_train.errors import ConfigError


def _load(*arguments):
    config = load_config(arguments)
    return config.data.eval_fraction, config.data.eval_data_file, config.evaluation.eval_steps


@pytest.mark.parametrize("recipe", ["lora", "full", "long"])
def test_a_recipes_share_gives_way_to_a_file(recipe):
    fraction, file, steps = _load("--recipe", recipe, "--eval_data_file", "mine.jsonl")
    assert (fraction, file) == (0.0, "mine.jsonl")
    assert steps


def test_a_recipes_file_gives_way_to_a_share():
    fraction, file, _ = _load("--recipe", "tiny", "--eval_fraction", "0.1")
    assert (fraction, file) == (0.1, None)


@pytest.mark.parametrize("recipe", ["lora", "full", "long"])
@pytest.mark.parametrize("zero", ["0", "0.0", "0e0"])
def test_without_a_share_a_recipe_evaluates_nothing(recipe, zero):
    assert _load("--recipe", recipe, "--eval_fraction", zero) == (0.0, None, 0)


def test_no_file_is_no_file():
    fraction, file, steps = _load("--recipe", "lora", "--eval_data_file", "none")
    assert (fraction, file) == (0.01, None)
    assert steps
    assert _load("--recipe", "tiny", "--eval_data_file", "none") == (0.0, None, 0)
    assert _load("--recipe", "tiny", "--eval_data_file", "none", "--eval_fraction", "0.2")[0] == 0.2


def test_without_a_share_a_recipes_file_is_kept():
    fraction, file, steps = _load("--recipe", "tiny", "--eval_fraction", "0")
    assert fraction == 0.0
    assert steps
    assert file.endswith("_eval.jsonl")


def test_what_is_asked_for_by_a_flag_is_never_taken_away():
    arguments = ("--recipe", "lora", "--eval_fraction", "0", "--eval_steps", "10")
    assert _load(*arguments) == (0.0, None, 10)  # which the rules refuse, by name


def test_both_in_one_place_are_refused(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("data: {eval_fraction: 0.2, eval_data_file: f.jsonl}\n")
    both = ("--eval_fraction", "0.2", "--eval_data_file", "f.jsonl")
    for arguments in (both, ("--recipe", "lora", *both), ("--config", str(path))):
        with pytest.raises(ConfigError, match=r"eval_fraction is 0\.2 and eval_data_file f\.jsonl"):
            _load(*arguments)
    fraction, file, _ = _load("--config", str(path), "--eval_data_file", "other.jsonl")
    assert (fraction, file) == (0.0, "other.jsonl")


def test_a_flag_wins_over_what_the_file_says_in_another_way():
    demo = asdict(load_config(["--recipe", "tiny", "--num_train_epochs", "3"]))["train"]
    assert (demo["max_steps"], demo["num_train_epochs"]) == (-1, 3)
    both = load_config(["--recipe", "tiny", "--num_train_epochs", "3", "--max_steps", "9"])
    assert both.train.max_steps == 9


def test_a_warm_up_by_flag_wins_over_the_files(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("warmup_steps: 10\n")
    assert load_config([str(path), "--warmup_ratio", "0.1"]).optimizer.warmup_steps == 0


def test_the_demo_holds_no_dialogues_out_where_preferences_are_learned() -> None:
    pairs = ("--recipe", "tiny", "--objective", "dpo", "--train_data_file", "pairs.jsonl")
    assert _load(*pairs) == (0.0, None, 0)
    assert _load(*pairs, "--eval_data_file", "held_out.jsonl")[1] == "held_out.jsonl"
    assert _load(*pairs, "--eval_fraction", "0.1")[0] == 0.1
    assert _load("--recipe", "tiny", "--objective", "sft")[1] == DEMO_HELD_OUT
