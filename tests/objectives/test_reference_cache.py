"""What a reference says is kept: killed ten times it is right, and another model's is refused."""

import random
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch.distributed as dist
from deepspeed import DeepSpeedEngine

from hunyuan_train.config.preference_schema import PreferenceConfig
from hunyuan_train.config.schema import RunConfig
from hunyuan_train.data.batches.loader import DataShard
from hunyuan_train.data.dataset import CHOSEN, RECORD, REJECTED, SAMPLE, Dataset, DataSummary
from hunyuan_train.errors import DataError
from hunyuan_train.objectives import reference_cache
from hunyuan_train.objectives.preferences import make_preference_objective
from hunyuan_train.objectives.reference_cache import Judge, with_reference
from hunyuan_train.trainer.step import train_step
from tests.batches import SHAPE, plain_model
from tests.engines import small_engine
from tests.objectives.test_preferences import PROMPT, make_batch, plain_logps
from tests.ranks import run_ranks, start_ranks

pytestmark = pytest.mark.slow

NUM_PAIRS = 21
NUM_KILLS = 10
BLOCK_SECONDS = 0.1  # that a block takes where it is to be killed, at least


def make_dataset(*, is_paired: bool = True) -> Dataset:
    draw = np.random.default_rng(1)
    lengths = draw.integers(PROMPT + 2, 20, 2 * NUM_PAIRS)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    samples = np.zeros(len(lengths), SAMPLE)
    samples["record"] = np.arange(len(lengths)) // 2
    samples["target_start"], samples["target_length"] = starts[:-1], lengths
    spans = np.full(starts[-1], 2, np.uint8)
    for start in starts[:-1]:
        spans[start : start + PROMPT + 1] = 0
    summary = {one: 0 for one in DataSummary.__dataclass_fields__} | {"fingerprint": "data"}
    return Dataset(
        paths=["pairs.jsonl"],
        source_weights=[1.0],
        source_hashes=["hash"],
        max_seq_length=64,
        pad_id=0,
        tokenizer_hash="tokenizer",
        summary=DataSummary(**summary),
        samples=samples,
        records=np.zeros(NUM_PAIRS, RECORD),
        tokens=draw.integers(0, SHAPE.vocab_size, starts[-1]).astype(np.uint32),
        spans=spans,
        weights=None,
        sides=np.array([CHOSEN, REJECTED] * NUM_PAIRS, np.uint8),
        is_paired=is_paired,
    )


@dataclass
class Seen:
    values: list[np.ndarray] = field(default_factory=list)
    mismatched: np.ndarray | None = None
    num_asked: list[int] = field(default_factory=list)
    refusal: str = ""


def judge_by(engine: DeepSpeedEngine, dataset: Dataset, cache: Path) -> Dataset:
    by = Judge(engine, DataShard(rows=1, num_ranks=2, rank=dist.get_rank()), None, packing=True)
    return with_reference(dataset, by, {"model": 1}, RunConfig(), cache)


def fill_slowly(cache: Path) -> None:
    """Fill a cache, a pair in each block, until somebody ends it."""
    reference_cache.BLOCK = 1
    ask = reference_cache._Filling._ask

    def wait_and_ask(self, units, pick):
        time.sleep(BLOCK_SECONDS)
        return ask(self, units, pick)

    reference_cache._Filling._ask = wait_and_ask
    judge_by(small_engine(stage=3, expert_size=2, optimizer="sgd"), make_dataset(), cache)


def kill_ten_times(cache: Path) -> None:
    """Kill both ranks after the next block, at any moment of the one behind it."""
    moments = random.Random(0)

    def count_blocks() -> int:
        return len(list(cache.glob("*/answers-*.bin")))

    for _ in range(NUM_KILLS):
        before = count_blocks()
        processes = [process for process, _ in start_ranks(fill_slowly, 2, cache)]
        while count_blocks() == before and all(process.is_alive() for process in processes):
            time.sleep(0.005)
        time.sleep(moments.uniform(0, BLOCK_SECONDS))
        for process in processes:
            process.kill()
        for process in processes:
            process.join()
        assert {process.exitcode for process in processes} == {-signal.SIGKILL}
    assert NUM_KILLS <= count_blocks() < NUM_PAIRS


def watch(folder: Path) -> Seen:
    reference_cache.BLOCK = 1
    engine, seen = small_engine(stage=3, expert_size=2, optimizer="sgd"), Seen()
    ask = reference_cache._Filling._ask
    asked: list[int] = []

    def count(self, units, pick):
        asked.append(len(units))
        return ask(self, units, pick)

    def judge(cache: str, dataset: Dataset) -> Dataset:
        asked.clear()
        found = judge_by(engine, dataset, folder / cache)
        seen.num_asked.append(sum(asked))
        return found

    reference_cache._Filling._ask = count
    pairs = make_dataset()
    seen.values.append(judge("whole", pairs).reference_logps)
    seen.values.append(judge("killed", pairs).reference_logps)
    seen.values.append(judge("killed", pairs).reference_logps)  # read by a later run
    dist.barrier()
    if dist.get_rank() == 0:
        [block] = (folder / "killed").glob("*/answers-000003.bin")
        block.write_bytes(block.read_bytes()[:-3])
    seen.values.append(judge("killed", pairs).reference_logps)
    seen.mismatched = judge("judged", make_dataset(is_paired=False)).mismatched_logps
    config = PreferenceConfig(objective="dpo")
    objective = make_preference_objective(config, group=None, reference_is_base=False)
    train_step(engine, objective, [make_batch(slice(0, 2))], learning_rate=2.0)
    try:
        judge("whole", pairs)
    except DataError as error:
        seen.refusal = str(error)
    return seen


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[Seen]:
    folder = tmp_path_factory.mktemp("reference")
    kill_ten_times(folder / "killed")
    return run_ranks(watch, 2, folder)


def test_values_are_those_of_the_plain_model(ranks: list[Seen]) -> None:
    dataset = make_dataset()
    texts = [dataset.sample(sample).tokens for sample in range(len(dataset))]
    expected = plain_logps(plain_model(), texts).detach().numpy()
    others = [dataset.mismatched(sample).tokens for sample in range(len(dataset))]
    expected_others = plain_logps(plain_model(), others).detach().numpy()
    for seen in ranks:
        assert seen.values[0] == pytest.approx(expected, abs=2e-3)
        assert seen.mismatched == pytest.approx(expected_others, abs=2e-3)


def test_ten_kills_a_later_run_and_a_damaged_block_change_not_one_bit(ranks: list[Seen]) -> None:
    for seen in ranks:
        whole, *others = seen.values
        assert len(others) == 3
        assert all(np.array_equal(whole, other) for other in others)
        anew, finished, at_last, damaged, _ = seen.num_asked
        assert anew == NUM_PAIRS
        assert 1 < finished <= NUM_PAIRS - NUM_KILLS + 1  # with the probe
        assert at_last == 1  # the probe alone
        assert damaged == 1 + 1


def test_what_another_model_has_said_is_refused(ranks: list[Seen]) -> None:
    for seen in ranks:
        assert "holds log-probabilities of another model" in seen.refusal
        assert "delete that folder" in seen.refusal
