import pytest

from hunyuan_train.config.rules.evaluation import needle_lengths
from hunyuan_train.errors import ConfigError
from tests.config.resolved import resolve_flags

EVALUATED = "--eval_data_file data/tiny_eval.jsonl --eval_steps 5 "


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--eval_steps 5", "eval_steps is 5, but there is nothing to evaluate on"),
        ("--eval_generate 8", "eval_generate is 8, but there is nothing to evaluate on"),
        ("--save_best", "save_best is True, but there is nothing to evaluate on"),
        ("--save_best --eval_fraction 0.1", "save_best is true, but eval_steps is 0"),
        (
            "--eval_data_file data/tiny_eval.jsonl --early_stopping_patience 2",
            "there is one evaluation only, at the end; set --eval_steps",
        ),
        (EVALUATED + "--metric_for_best_model loss", "it must begin with one of eval_loss"),
        (EVALUATED + "--metric_for_best_model eval_set_f1", "with --eval_generate 64"),
        (
            "--needle_lengths 1024,16384",
            "needle_lengths is 1024,16384, and tiny reads 4096 tokens; leave the longer ones out",
        ),
    ],
)
def test_an_evaluation_that_cannot_be_is_refused(flags, message):
    with pytest.raises(ConfigError, match=message):
        resolve_flags(flags)


@pytest.mark.parametrize("text", ["", "a", "12", "1024,", "1024;2048", "-1024"])
def test_what_is_no_length_is_refused(text):
    with pytest.raises(ConfigError, match="such as 1024,4096,16384"):
        needle_lengths(text)


def test_lengths_come_in_order_and_once():
    assert needle_lengths(None) == []
    assert needle_lengths("4096, 1024,4096") == [1024, 4096]
