"""Bad steps leave no trace in the weights, on any rank, and repeated ones lead back."""

import json
from dataclasses import replace
from math import inf, nan
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hunyuan_train.checkpoint.folder import checkpoint_folder
from hunyuan_train.config.preference_schema import PreferenceConfig
from hunyuan_train.config.schema import TrainConfig
from hunyuan_train.objectives.preferences import find_least_spike
from hunyuan_train.objectives.sft import SFT
from hunyuan_train.selftest.local_ranks import RanksError
from hunyuan_train.trainer.anomalies import MIN_RECENT, find_anomaly, remember
from hunyuan_train.trainer.state import Health
from hunyuan_train.trainer.step import Anomaly, StepResult, train_step
from tests.batches import global_batch
from tests.engines import kept_weights, my_share, small_engine
from tests.looped import Looped, run_loop
from tests.ranks import run_ranks, run_together

QUIET = Health(recent_losses=(2.0, 2.1, 1.9, 2.0) * 8)
BAD = 2


@pytest.mark.parametrize("policy", ["off", "warn", "act"])
@pytest.mark.parametrize("loss", [nan, inf, -inf])
def test_what_is_no_number_is_always_withheld(policy: str, loss: float) -> None:
    anomaly = find_anomaly(loss, health=Health(), config=TrainConfig(bad_steps=policy))
    assert anomaly is not None
    assert anomaly.is_skipped


@pytest.mark.parametrize(("loss", "is_spike"), [(0.5, False), (1.3, False), (1.5, True)])
def test_one_hard_pair_among_many_easy_ones_is_no_spike(loss: float, *, is_spike: bool) -> None:
    easy = Health(recent_losses=(0.02, 0.03, 0.01, 0.02) * 8)
    least = find_least_spike(PreferenceConfig(objective="dpo"))
    found = find_anomaly(loss, health=easy, config=TrainConfig(), least_spike=least)
    assert (found is not None) == is_spike
    assert find_anomaly(loss, health=easy, config=TrainConfig()) is not None


@pytest.mark.parametrize(
    ("loss", "settings", "withheld"),
    [
        (2.3, {}, None),
        (2.9, {}, None),  # many deviations, but no great rise
        (3.1, {}, True),
        (3.1, {"bad_steps": "warn"}, False),
        (3.1, {"bad_steps": "off"}, None),
        (30.0, {"spike_deviations": 0}, None),
        (3.1, {"spike_deviations": 20}, None),
    ],
)
def test_a_spike_is_far_above_the_recent_losses(
    loss: float, settings: dict[str, object], withheld: bool | None
) -> None:
    anomaly = find_anomaly(loss, health=QUIET, config=TrainConfig(**settings))
    assert (anomaly and anomaly.is_skipped) == withheld


def test_a_spike_is_told_beside_the_median_that_it_is_measured_by() -> None:
    health = Health(recent_losses=(1.1, 1.3, 9.0) * 10)  # the mean would be 3.8
    anomaly = find_anomaly(20.0, health=health, config=TrainConfig(spike_deviations=1))
    assert anomaly is not None
    assert anomaly.reason == "loss 20 is a spike: the median of the last 30 good steps is 1.3"


def test_the_first_losses_are_no_spikes() -> None:
    health = Health(recent_losses=(2.0,) * (MIN_RECENT - 1))
    assert find_anomaly(99.0, health=health, config=TrainConfig()) is None


def test_skipped_losses_are_not_remembered() -> None:
    result = StepResult(loss=2.2, by_group={}, router_loss=0.1, num_label_tokens=5, grad_norm=1.0)
    health = remember(Health(recent_losses=(1.0,), num_bad_in_a_row=2), result)
    assert health == Health(recent_losses=(1.0, 2.2 + 0.1), num_bad_in_a_row=0)
    bad = replace(result, loss=nan, anomaly=Anomaly("the loss is nan", is_skipped=True))
    assert remember(health, bad) == Health(health.recent_losses, num_bad_in_a_row=1)


def train_around(stage: int, expert_size: int, how: str) -> dict[tuple[str, int], Tensor]:
    """Five steps of which one is bad in some way, or is not done at all."""
    engine = small_engine(stage=stage, expert_size=expert_size)
    for step in range(5):
        if step == BAD and how == "left out":
            continue
        batches = my_share(global_batch(step, 4))
        find = lambda _: None  # noqa: E731
        if step == BAD and how == "withheld":
            find = lambda _: Anomaly("it is a spike", is_skipped=True)  # noqa: E731
        if step == BAD and how == "not finite on one rank" and torch.distributed.get_rank() == 1:
            batches[0].loss_weights[:] = nan
        result = train_step(engine, SFT, batches, learning_rate=1e-3, find_anomaly=find)
        assert bool(result.anomaly) == (step == BAD)
    return kept_weights(engine.module)


SPLITS = ((3, 2), (2, 0))  # ZeRO stage, ranks that share one set of experts
SKIPPED = ("withheld", "not finite on one rank")
WAYS = tuple((*split, how) for split in SPLITS for how in ("left out", *SKIPPED))


@pytest.mark.parametrize(("stage", "expert_size"), SPLITS)
def test_a_skipped_step_is_as_if_it_had_not_been(stage: int, expert_size: int) -> None:
    trained = run_together(train_around, 2, WAYS)
    expected = trained[stage, expert_size, "left out"]
    for how in SKIPPED:
        for rank, weights in enumerate(trained[stage, expert_size, how]):
            for key, values in weights.items():
                assert torch.equal(values, expected[rank][key]), key


ROUND = {"max_steps": 8, "save_steps": 2, "max_bad_steps": 3}


@pytest.fixture(scope="module")
def returned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Looped]]:
    """A run whose rows 5 to 7 are poisoned: it goes back to step 4 and on from row 8."""
    folder = tmp_path_factory.mktemp("returned") / "run"
    return folder, run_ranks(run_loop, 2, folder, ROUND, (2, 5, 6, 7), None)


def test_after_bad_steps_in_a_row_the_run_goes_back_and_on_behind_them(
    returned: tuple[Path, list[Looped]], tmp_path: Path
) -> None:
    folder, ranks = returned
    for rank in ranks:
        assert rank.seen == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]
        assert rank.result.is_complete
        assert rank.result.is_saved
    lines = [json.loads(line) for line in (folder / "quarantine.jsonl").read_text().splitlines()]
    assert [line["row"] for line in lines] == [2, 5, 6, 7]
    assert [line["step"] for line in lines] == [3, 6, 7, 8]
    assert lines[0]["samples"] == ["rows.jsonl:2"]
    assert lines[0]["loss"] is None
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in metrics] == list(range(1, 9))


def test_a_run_resumed_amid_bad_steps_is_the_same_run(
    returned: tuple[Path, list[Looped]], tmp_path: Path
) -> None:
    folder, ranks = returned
    start = checkpoint_folder(folder, 2)
    quarantine = (folder / "quarantine.jsonl").read_text()
    resumed = run_ranks(run_loop, 2, folder, ROUND, (2, 5, 6, 7), start)
    for one, other in zip(ranks, resumed, strict=True):
        assert all(torch.equal(other.weights[key], one.weights[key]) for key in one.weights)
    assert (folder / "quarantine.jsonl").read_text() == quarantine


@pytest.mark.parametrize(
    ("settings", "poisoned", "message"),
    [
        ({"bad_steps": "warn"}, (1,), r"loss is nan at step 2.*rows\.jsonl:1.*last checkpoint"),
        ({"max_bad_steps": 2}, (1, 2), r"2 bad steps in a row up to step 3, and no checkpoint"),
    ],
)
def test_a_run_that_cannot_go_on_says_why(
    tmp_path: Path, settings: dict[str, object], poisoned: tuple[int, ...], message: str
) -> None:
    with pytest.raises(RanksError, match=message):
        run_ranks(run_loop, 2, tmp_path / "run", {"max_steps": 5, **settings}, poisoned, None)
