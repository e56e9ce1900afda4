from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from hunyuan_train.data.batches.loader import join_samples
from hunyuan_train.data.dataset import SampleTokens
from hunyuan_train.families.grammar.dialogue import MODES
from hunyuan_train.families.grammar.segments import SPAN_ANSWER, SPAN_MARKER, SPAN_THINK
from hunyuan_train.model.compressed_values import round_activations
from hunyuan_train.model.compressed_weights import open_model
from hunyuan_train.quantize.measure import (
    LabelScores,
    Rows,
    compare_states,
    final_states,
    summarize_loss,
    summarize_survival,
)
from hunyuan_train.quantize.report import find_nonsense, find_undone
from tests.quantize.models import CHANNEL, WIDE, write_quantized
from tests.quantize.test_verify import swap_experts

FAST, SLOW = MODES.index("fast"), MODES.index("slow")


def make_rows() -> Rows:
    """A row of a fast and a slow dialogue, and a row of another slow one."""
    random = np.random.default_rng(0)

    def sample(spans: list[int]) -> SampleTokens:
        tokens = random.integers(0, WIDE.vocab_size, len(spans)).astype(np.uint32)
        labels = np.array(spans, np.uint8)
        return SampleTokens(tokens, labels, (labels > 0).astype(np.float32))

    fast = sample([0] * 8 + [SPAN_ANSWER] * 6 + [SPAN_MARKER])
    slow = [sample([0] * 4 + [SPAN_THINK] * 9 + [SPAN_ANSWER] * 5) for _ in range(2)]
    first = join_samples([fast, slow[0]], modes=[FAST, SLOW], sample_ids=[0, 1])
    return Rows([first, join_samples([slow[1]], modes=[SLOW], sample_ids=[2])])


def test_groups_are_the_modes_and_spans_of_the_labels() -> None:
    counts = {name: int(mask.sum()) for name, mask in make_rows().masks().items()}
    assert counts == {"all": 35, "fast answer": 6, "slow think": 18, "slow answer": 10}


def test_losses_are_those_of_the_plain_formulas(tmp_path: Path) -> None:
    _, written = write_quantized(tmp_path, CHANNEL)
    _, original, _ = open_model(tmp_path / "in")
    rows = make_rows()
    before = final_states(WIDE, original, rows, title="before")
    same = summarize_loss(compare_states(before, before, rows.labels), rows)["all"]
    assert same["kl_divergence"] == pytest.approx(0, abs=1e-7)
    assert same["same_argmax"] == 1
    assert same["perplexity_before"] == same["perplexity_after"]

    rounding = partial(round_activations, scheme=CHANNEL)
    after = final_states(WIDE, written, rows, title="after", rounding=rounding)
    scores = compare_states(before, after, rows.labels)
    old, new = ((states @ head.T).double().log_softmax(-1) for states, head in (before, after))
    wanted = torch.nn.functional.kl_div(new, old, reduction="none", log_target=True).sum(-1)
    torch.testing.assert_close(scores.divergence.double(), wanted, atol=1e-5, rtol=1e-3)
    labels = torch.from_numpy(rows.labels)
    torch.testing.assert_close(
        scores.after.double(),
        -torch.nn.functional.nll_loss(new, labels, reduction="none"),
        atol=1e-5,
        rtol=1e-5,
    )
    loss = summarize_loss(scores, rows)
    assert 0 < loss["all"]["kl_divergence"] < 0.05

    swap_experts(written)
    faulty = final_states(WIDE, written, rows, title="after", rounding=rounding)
    worse = summarize_loss(compare_states(before, faulty, rows.labels), rows)
    assert worse["all"]["kl_divergence"] > 2 * loss["all"]["kl_divergence"]


def test_rounding_of_activations_is_that_of_each_token() -> None:
    values = torch.randn(3, 5, 192) * torch.tensor([1.0, 100.0, 1e-3])[:, None, None]
    rounded = round_activations(values, CHANNEL)
    scale = values.abs().amax(-1, keepdim=True) / 448
    wanted = (values / scale).to(torch.float8_e4m3fn).float() * scale
    torch.testing.assert_close(rounded, wanted)
    in_groups = round_activations(values, replace(CHANNEL, strategy="block"))
    torch.testing.assert_close(in_groups[..., :128], round_activations(values[..., :128], CHANNEL))
    torch.testing.assert_close(in_groups[..., 128:], round_activations(values[..., 128:], CHANNEL))


def test_survival_is_the_share_of_the_gain_that_is_left() -> None:
    rows = make_rows()
    base = torch.full((len(rows.labels),), -3.0)
    tuned, half = base + 2, base + 1
    assert summarize_survival(base, tuned, tuned, rows)["all"]["survives"] == pytest.approx(1)
    assert summarize_survival(base, tuned, base, rows)["slow think"]["survives"] == 0
    assert summarize_survival(base, tuned, half, rows)["all"]["survives"] == pytest.approx(0.5)
    assert summarize_survival(base, base + 1e-3, base, rows)["all"]["survives"] is None
    undone = {"survival": summarize_survival(base, tuned, half, rows)}
    assert find_undone(undone) == "50.0% of what fine-tuning gained on trained tokens"
    assert not find_undone({"survival": summarize_survival(base, tuned, tuned, rows)})


def test_numbers_that_are_none_are_neither_gain_nor_loss() -> None:
    report = {"survival": {"all": {"tokens": 9, "gain": 1.0, "survives": float("nan")}}}
    assert find_undone(report)
    assert find_nonsense(report) == "survives of all is nan"
    assert not find_nonsense({"held_out": {"all": {"tokens": 9, "kl_divergence": 0.1}}})


def test_a_part_of_scores_keeps_all_their_columns() -> None:
    columns = [torch.arange(4.0) + place for place in range(4)]
    part = LabelScores(*columns).part(slice(1, 3))
    assert part.is_same.tolist() == [4.0, 5.0]
