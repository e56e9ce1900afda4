"""One optimizer step is the same however its batches are dealt out, and for any objective."""

from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from deepspeed import DeepSpeedEngine
from deepspeed.runtime.utils import combine_grad_norm_groups
from torch import Tensor
from torch.nn import functional

from hunyuan_train.data.batches.loader import Batch
from hunyuan_train.evaluation.losses import evaluate
from hunyuan_train.model.loss import token_losses
from hunyuan_train.objectives.objective import Objective, Sums
from hunyuan_train.objectives.sft import SFT
from hunyuan_train.selftest.reference import trained_gradients
from hunyuan_train.selftest.training import kept_gradients
from hunyuan_train.trainer.step import Anomaly, accumulate_gradients, train_step, update_weights
from tests.batches import SHAPE, batch_of, plain_model
from tests.engines import kept_weights, my_share, small_engine
from tests.ranks import run_ranks

LENGTHS = (12, 30, 7, 21, 16, 9, 25, 14)
TOLERANCE = 1e-6
Kept = dict[tuple[str, int], Tensor]


def documents() -> list[np.ndarray]:
    generator = np.random.default_rng(5)
    return [generator.integers(0, SHAPE.vocab_size, length) for length in LENGTHS]


def rows_of(num_documents: int) -> list[Batch]:
    """All documents, so many to a micro-batch."""
    return [
        batch_of(documents()[start : start + num_documents], [4] * num_documents)
        for start in range(0, len(LENGTHS), num_documents)
    ]


def sum_document_means(engine: DeepSpeedEngine, batch: Batch) -> Sums:
    bounds = batch.cu_seqlens.tolist()
    losses = token_losses(engine, batch)
    means = [
        losses[start:stop].sum() / int((batch.labels[start:stop] >= 0).sum())
        for start, stop in pairwise(bounds)
    ]
    total = torch.stack(means).sum()
    return Sums(total, total.detach()[None])


def count_documents(batches: list[Batch]) -> np.ndarray:
    return np.array([sum(len(batch.cu_seqlens) - 1 for batch in batches)], np.float64)


BY_DOCUMENT = Objective(groups=("loss",), forward=sum_document_means, weigh=count_documents)


def spoil_gradient(engine: DeepSpeedEngine, batch: Batch) -> Sums:
    """The loss is a number, and its gradient is none: the root of 0 has an endless slope."""
    sums = SFT.forward(engine, batch)
    return Sums(sums.loss + (0 * sums.loss).sqrt(), sums.by_group)


SPOILED = Objective(groups=SFT.groups, forward=spoil_gradient, weigh=SFT.weigh)


@dataclass
class Seen:
    """What a rank saw of several steps, none of which moved a weight but the last."""

    losses: dict[str, dict[str, float]] = field(default_factory=dict)
    gradients: dict[str, Kept] = field(default_factory=dict)
    norms: dict[str, list[float]] = field(default_factory=dict)
    events: list[str] = field(default_factory=list)
    judged: list[float] = field(default_factory=list)
    faults: dict[str, Anomaly | None] = field(default_factory=dict)
    moved: dict[str, bool] = field(default_factory=dict)
    num_label_tokens: int = 0
    by_source: list[dict[str, float]] = field(default_factory=list)


def evaluate_by_source(engine: DeepSpeedEngine) -> list[dict[str, float]]:
    """Losses of batches of two files together, of each file alone, and without files."""
    batches = my_share(rows_of(1))
    named = [replace(one, source="ab"[index % 2]) for index, one in enumerate(batches)]
    alone = [[one for one in named if one.source == source] for source in "ab"]
    return [evaluate(engine, SFT, some) for some in (named, *alone, batches)]


def watch_steps() -> Seen:
    engine, seen = small_engine(stage=3, expert_size=2, optimizer="sgd", max_grad_norm=0.0), Seen()
    for name, objective, per_batch in (
        ("8 batches of 1", SFT, 1),
        ("2 batches of 4", SFT, 4),
        ("by document", BY_DOCUMENT, 2),
    ):
        batches = my_share(rows_of(per_batch))
        found = accumulate_gradients(engine, objective, batches)
        seen.losses[name] = {"loss": found.loss, **found.by_group}
        seen.num_label_tokens = found.num_label_tokens
        seen.gradients[name] = kept_gradients(engine.module)
        seen.norms[name] = [norm_of(engine), norm_of(engine)]  # given, and the engine's own
        update_weights(engine, 0.0, is_skipped=True)
        seen.losses[f"{name}, evaluated"] = evaluate(engine, objective, batches)
    seen.by_source = evaluate_by_source(engine)
    before = kept_weights(engine.module)

    def find_anomaly(loss: float) -> Anomaly:
        seen.events.append("judged")
        seen.judged.append(loss)
        return Anomaly("a test says so", is_skipped=True)

    def wait() -> None:
        seen.events.append("waited")
        seen.moved["before the wait"] = has_moved(engine, before)

    steps: dict[str, tuple[Objective, dict[str, Any]]] = {
        "withheld": (SFT, {"find_anomaly": find_anomaly, "wait_before_update": wait}),
        "no finite gradient": (SPOILED, {}),
        "sound": (SFT, {}),
    }
    for name, (objective, options) in steps.items():
        result = train_step(engine, objective, my_share(rows_of(4)), learning_rate=0.1, **options)
        seen.faults[name] = result.anomaly
        seen.moved[name] = has_moved(engine, before)
    return seen


def norm_of(engine: DeepSpeedEngine) -> float:
    return float(combine_grad_norm_groups(engine.optimizer._get_norm_groups()))


def has_moved(engine: DeepSpeedEngine, before: Kept) -> bool:
    return any(
        not torch.equal(one, before[key]) for key, one in kept_weights(engine.module).items()
    )


@pytest.fixture(scope="module")
def ranks() -> list[Seen]:
    return run_ranks(watch_steps, 2)


def test_eight_micro_batches_of_one_are_one_of_eight(ranks: list[Seen]) -> None:
    for seen in ranks:
        one, other = seen.losses["8 batches of 1"], seen.losses["2 batches of 4"]
        assert one == pytest.approx(other, abs=TOLERANCE)
        gradients = seen.gradients["8 batches of 1"]
        assert max(float(part.abs().max()) for part in gradients.values() if len(part)) > 1e-3
        for key, values in seen.gradients["2 batches of 4"].items():
            assert torch.allclose(values, gradients[key], atol=TOLERANCE), key


def test_an_evaluation_reports_what_a_step_of_the_same_batches_does(ranks: list[Seen]) -> None:
    for seen in ranks:
        for name in seen.gradients:
            assert seen.losses[f"{name}, evaluated"] == pytest.approx(seen.losses[name], abs=1e-6)


def test_files_that_are_held_out_together_have_losses_of_their_own(ranks: list[Seen]) -> None:
    for seen in ranks:
        together, first, second, unnamed = seen.by_source
        assert together["loss/a"] == pytest.approx(first["loss"], abs=1e-7)
        assert together["loss/b"] == pytest.approx(second["loss"], abs=1e-7)
        assert abs(first["loss"] - second["loss"]) > 1e-3
        names = [name for name in together if "/" not in name]
        assert {name: together[name] for name in names} == pytest.approx(unnamed, abs=1e-7)
        assert not any("/" in name for name in (*first, *unnamed))


def test_an_objective_is_divided_by_its_own_weight(ranks: list[Seen]) -> None:
    """A mean over documents counts short ones as much as long ones, across ranks and batches."""
    model = plain_model()
    losses = []
    for document in documents():
        ids = torch.from_numpy(document)
        logits = model(input_ids=ids[None]).logits[0]
        losses.append(functional.cross_entropy(logits[4:-1], ids[5:]))
    loss = torch.stack(losses).mean()
    loss.backward()
    expected = trained_gradients(model)
    for seen in ranks:
        assert seen.losses["by document"]["loss"] == pytest.approx(loss.item(), abs=TOLERANCE)
        assert abs(loss.item() - seen.losses["2 batches of 4"]["loss"]) > 1e-3, "no other objective"
        for (name, start), values in seen.gradients["by document"].items():
            theirs = torch.from_numpy(expected[name, 0][start : start + len(values)])
            assert torch.allclose(values, theirs, atol=1e-5), name


def test_the_labels_of_all_ranks_are_counted(ranks: list[Seen]) -> None:
    assert [seen.num_label_tokens for seen in ranks] == [sum(LENGTHS) - 5 * len(LENGTHS)] * 2


def test_the_norm_that_comes_with_the_losses_is_the_engines(ranks: list[Seen]) -> None:
    for name, (given, own) in ranks[0].norms.items():
        assert given == pytest.approx(own, rel=1e-6), name
        assert given == ranks[1].norms[name][0]
        assert given > 0.1


def test_a_fault_withholds_the_update_on_every_rank(ranks: list[Seen]) -> None:
    for seen in ranks:
        assert seen.events == ["judged", "waited"]
        assert seen.judged == [pytest.approx(seen.losses["2 batches of 4"]["loss"], abs=TOLERANCE)]
        assert seen.faults["withheld"] == Anomaly("a test says so", is_skipped=True)
        assert not seen.moved["withheld"]
    assert not any(seen.moved["before the wait"] for seen in ranks)


def test_a_gradient_that_is_no_number_moves_nothing_and_is_told(ranks: list[Seen]) -> None:
    for seen in ranks:
        anomaly = seen.faults["no finite gradient"]
        assert anomaly is not None
        assert anomaly.reason == "the gradient norm is inf"  # as the engine puts it
        assert anomaly.is_skipped
        assert not seen.moved["no finite gradient"]
        assert seen.faults["sound"] is None
        assert seen.moved["sound"]
