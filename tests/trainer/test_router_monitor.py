"""A planted collapse is seen at the next check, and each policy does what it says."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hunyuan_train.config.run_files import ROUTER_LOAD
from hunyuan_train.config.schema import GuardianConfig
from hunyuan_train.json_lines import JsonLines, Lines, NoLines
from hunyuan_train.objectives.sft import SFT
from hunyuan_train.optim.records import MASTER
from hunyuan_train.parallel.routers import refresh_routers
from hunyuan_train.parallel.zero import publish_weights, trained_shards, write_state
from hunyuan_train.trainer.metrics import MetricsLog
from hunyuan_train.trainer.router_monitor import (
    RouterCollapseError,
    RouterMonitor,
    find_alarms,
)
from hunyuan_train.trainer.step import train_step
from tests.batches import SHAPE, global_batch
from tests.engines import kept_weights, my_share, router_terms, small_engine
from tests.ranks import run_each, run_ranks

NUM_BATCHES = 8  # of all ranks: about a hundred token slots for each expert
COLLAPSE_AFTER = 3
ROUTERS = ".mlp.gate.wg."


class Told:
    """A tracker that keeps what it is warned of."""

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts

    def alert(self, title: str, text: str) -> None:
        self.texts.append(text)

    def log_image(self, name: str, path: Path, step: int) -> None:
        assert path.exists()


def router_log(folder: Path) -> Lines:
    """Only one rank writes."""
    return NoLines() if torch.distributed.get_rank() else JsonLines(folder / ROUTER_LOAD)


def zero_routers(engine: Any) -> None:
    """All logits are equal then, and every token goes to the same experts."""
    for shard in trained_shards(engine.module):
        if shard.stored[0].name.endswith(".mlp.gate.wg.weight"):
            write_state(engine, shard, MASTER, torch.zeros(shard.stop - shard.start))
    publish_weights(engine)
    refresh_routers(engine)


def train_and_collapse(
    folder: Path, policy: str, num_steps: int, expert_size: int, is_collapsing: bool = True
) -> dict[str, Any]:
    engine = small_engine(stage=3, expert_size=expert_size)
    terms = router_terms(engine, 0.0, 0.0)
    told: list[str] = []
    is_first = torch.distributed.get_rank() == 0
    metrics = MetricsLog(folder, NoLines(), [Told(told)] if is_first else [])
    config = GuardianConfig(router_guardian=policy)
    monitor = RouterMonitor(engine, terms, config, router_log(folder), metrics)
    monitor.start(0)
    seen: dict[str, Any] = {"told": told, "stopped": 0, "numbers": [], "weights": []}
    for step in range(1, num_steps + 1):
        batches = my_share(global_batch(step, NUM_BATCHES))
        train_step(engine, SFT, batches, learning_rate=1e-3, routers=terms)
        try:
            monitor.check(step)
        except RouterCollapseError:
            seen["stopped"] = step
            break
        seen["numbers"].append(monitor.measure(step))
        seen["weights"].append(kept_weights(engine.module))
        if is_collapsing and step == COLLAPSE_AFTER:
            zero_routers(engine)
    seen["coefficient"] = terms.balance_coefficient
    return seen


def read_lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / ROUTER_LOAD).read_text().splitlines()]


Run = tuple[str, int, int]  # the policy, steps, ranks that share one set of experts
RUNS: list[Run] = [
    *(("warn", 5, 2), ("warn", 5, 0), ("stop", 6, 2)),
    *(("freeze_router", 7, 2), ("aux_loss", 12, 2), ("aux_loss", 5, 2)),
    ("off", 5, 2),
]


Collapsed = dict[Run, tuple[Path, list[dict[str, Any]]]]


@pytest.fixture(scope="module")
def collapsed(tmp_path_factory: pytest.TempPathFactory) -> Collapsed:
    """The folder of each run, and what its ranks saw."""
    folders = [tmp_path_factory.mktemp("collapsed") for _ in RUNS]
    arguments = [(folder, *run) for folder, run in zip(folders, RUNS, strict=True)]
    seen = run_each(train_and_collapse, 2, arguments)
    return dict(zip(RUNS, zip(folders, seen, strict=True), strict=True))


@pytest.mark.parametrize("expert_size", [2, 0])
def test_a_collapse_is_told_at_the_next_check_and_a_sound_run_is_not(
    collapsed: Collapsed, expert_size: int
) -> None:
    folder, (first, second) = collapsed["warn", 5, expert_size]
    assert second["told"] == []  # one rank speaks for all
    assert len(first["told"]) == 1
    assert first["told"][0].startswith(f"step {COLLAPSE_AFTER + 1}: ")
    assert first["numbers"] == second["numbers"]
    before, after = first["numbers"][COLLAPSE_AFTER - 1], first["numbers"][COLLAPSE_AFTER]
    assert before["dead_experts"] == 0
    num_dead = SHAPE.num_hidden_layers * (SHAPE.num_experts - SHAPE.moe_topk)
    assert after["dead_experts"] == num_dead
    most = SHAPE.num_experts / SHAPE.moe_topk - 1
    assert after["expert_imbalance"] == pytest.approx(most)
    assert after["router_entropy"] == pytest.approx(0.5)  # log 4 / log 16
    assert after["router_drift"] > 0.4 > 0.1 > before["router_drift"]
    kinds = [(line["step"], line["kind"]) for line in read_lines(folder)]
    assert kinds == [(1, "profile"), (COLLAPSE_AFTER + 1, "load")]
    assert first["numbers"][0]["router_drift"] < 1e-6  # of the base model from itself


def test_without_the_guardian_no_profile_is_taken_and_load_is_measured_still(
    collapsed: Collapsed,
) -> None:
    folder, (first, _) = collapsed["off", 5, 2]
    assert first["told"] == []
    assert all("router_drift" not in numbers for numbers in first["numbers"])
    assert first["numbers"][COLLAPSE_AFTER]["dead_experts"] > 0
    assert not (folder / ROUTER_LOAD).exists()


def test_the_run_stops_where_that_is_asked_for(collapsed: Collapsed) -> None:
    _, results = collapsed["stop", 6, 2]
    assert [result["stopped"] for result in results] == [COLLAPSE_AFTER + 1] * 2


def test_held_routers_stay_as_they_are_bit_for_bit_and_the_rest_is_trained(
    collapsed: Collapsed,
) -> None:
    folder, results = collapsed["freeze_router", 7, 2]
    for result in results:
        weights = result["weights"]
        held, later = weights[COLLAPSE_AFTER], weights[-1]
        moved = {key for key in held if not torch.equal(held[key], later[key])}
        routers = {key for key in held if ROUTERS in key[0]}
        assert routers
        assert not moved & routers
        assert moved == held.keys() - routers
        trained = weights[COLLAPSE_AFTER - 2]
        assert all(not torch.equal(trained[one], held[one]) for one in routers)
    assert [line["kind"] for line in read_lines(folder)] == ["profile", "load", "action"]


def test_the_balance_loss_turns_on_and_spreads_the_load_again(collapsed: Collapsed) -> None:
    _, (result, _) = collapsed["aux_loss", 12, 2]
    assert result["coefficient"] == GuardianConfig().router_alarm_aux_coef
    assert result["numbers"][-1]["dead_experts"] < result["numbers"][COLLAPSE_AFTER]["dead_experts"]


def resume_after_action(folder: Path) -> tuple[float, list[list[float]], float]:
    engine = small_engine(stage=3, expert_size=2)
    terms = router_terms(engine, 0.0, 0.0)
    config = GuardianConfig(router_guardian="aux_loss")
    metrics = MetricsLog(folder, NoLines(), [])
    monitor = RouterMonitor(engine, terms, config, router_log(folder), metrics)
    monitor.start(5)
    assert monitor.profile_LE is not None
    profile, resumed = monitor.profile_LE.tolist(), terms.balance_coefficient
    monitor.roll_back_to(COLLAPSE_AFTER)
    return resumed, profile, terms.balance_coefficient


def test_a_resumed_run_knows_the_base_models_profile_and_what_was_done(
    collapsed: Collapsed,
) -> None:
    folder, _ = collapsed["aux_loss", 5, 2]
    profile = read_lines(folder)[0]["load"]
    for resumed, known, before_the_alarm in run_ranks(resume_after_action, 2, folder):
        assert resumed == GuardianConfig().router_alarm_aux_coef
        assert known == profile
        assert before_the_alarm == 0.0


def test_few_tokens_raise_no_alarm() -> None:
    profile_LE = torch.full((1, 16), 100)
    load_LE = torch.zeros(1, 16)
    load_LE[0, :4] = 100
    config = GuardianConfig()
    assert find_alarms(load_LE, profile_LE, config, top_k=4) == []
    kinds = [alarm.kind for alarm in find_alarms(10 * load_LE, profile_LE, config, top_k=4)]
    assert kinds == ["entropy", "dead", "violation", "drift"]
