"""The glossary: one text for `--help`, the page and the docs, and no number without an entry."""

import re

import pytest

from hunyuan_train.config.describe import describe_settings
from hunyuan_train.config.metric_names import METRICS, MODES, ON_SCREEN, SPANS, explain_metric
from hunyuan_train.objectives.loss_groups import BY_MODE, BY_SPAN
from hunyuan_train.report.charts import CHARTS, list_charts
from hunyuan_train.trainer.describe import describe_step

DRAWN = [name for chart in CHARTS for name in chart.series]


@pytest.mark.parametrize("name", DRAWN)
def test_every_number_of_a_chart_is_explained_beside_it(name):
    [chart] = [one for one in list_charts([name]) if not one.get("is_extra")]
    [series] = chart["series"]
    assert len(series["meaning"].split()) > 2


def test_modes_and_parts_of_an_answer_are_those_of_the_losses():
    assert MODES.keys() == BY_MODE.keys()
    assert SPANS.keys() == BY_SPAN.keys()


def test_help_explains_every_number_and_every_word_of_a_step():
    text = " ".join(describe_settings().split())
    for meaning in METRICS.values():
        assert meaning in text
    numbers = dict.fromkeys(ON_SCREEN.values(), 1.0)
    line = describe_step(numbers, 1, 2).partition("  ")[2]
    assert set(re.findall(r"[a-zA-Z/]{2,}", line)) == ON_SCREEN.keys()


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("eval_loss_fast", ["cross entropy", "held-out data", "without thinking"]),
        ("rewards/accuracies_slow", ["share of pairs", "with thoughts"]),
        ("eval_perplexity_markers", ["e to the power", "tags around"]),
        ("needles_4096", ["facts found"]),
        ("tokens_seen_my.jsonl", ["that file"]),
        ("eval_mode_leak_fast", ["wrong mode"]),
    ],
)
def test_prefixes_and_endings_are_taken_apart(name, parts):
    assert all(part in explain_metric(name) for part in parts)


def test_what_nobody_knows_has_no_meaning():
    assert explain_metric("my_own_number") == ""
