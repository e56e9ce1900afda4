"""Where no share can be held out, a run goes on without evaluation or says what cannot."""

import pytest

from hunyuan_train.config.load import load_config
from hunyuan_train.errors import ConfigError
from hunyuan_train.launcher.start.prepare import say_nothing_is_held_out


def test_a_recipes_evaluation_is_left_out_and_that_is_said(caplog):
    say_nothing_is_held_out(load_config(["--recipe", "lora", "--train_data_file", "one.jsonl"]))
    assert "no evaluation: the samples of one.jsonl have one question only" in caplog.text


@pytest.mark.parametrize(
    "flags", [("--eval_generate", "4"), ("--save_best",), ("--early_stopping_patience", "2")]
)
def test_what_cannot_do_without_is_refused_by_name(flags):
    config = load_config(["--recipe", "lora", "--train_data_file", "one.jsonl", *flags])
    with pytest.raises(ConfigError, match=rf"{flags[0][2:]} is .*give more dialogues, or --eval_d"):
        say_nothing_is_held_out(config)
