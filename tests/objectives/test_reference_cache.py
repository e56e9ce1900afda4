"""What a reference says is kept: killed ten times it is right, and another model's is refused."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch.distributed as dist

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
from tests.ranks import run_ranks

pytestmark = pytest.mark.slow

NUM_PAIRS = 21  # blocks of two, the last one short
KILLS = 10


class KilledError(RuntimeError):
    """A stand-in for the end of a process."""


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
    num_kills: int = 0
    num_asked: list[int] = field(default_factory=list)
    refusal: str = ""


def watch(folder: Path) -> Seen:
    reference_cache.BLOCK = 2
    engine, seen = small_engine(stage=3, expert_size=2, optimizer="sgd"), Seen()
    by = Judge(engine, DataShard(rows=1, num_ranks=2, rank=dist.get_rank()), None, packing=True)
    ask, write = reference_cache._Filling._ask, reference_cache._Filling._write
    asked: list[int] = []

    def count(self, units, pick):
        asked.append(len(units))
        return ask(self, units, pick)

    def write_and_die(self, name, number, values):
        write(self, name, number, values)
        if seen.num_kills < KILLS:
            seen.num_kills += 1
            raise KilledError

    def judge(cache: str, dataset: Dataset) -> Dataset:
        asked.clear()
        found = with_reference(dataset, by, {"model": 1}, RunConfig(), folder / cache)
        seen.num_asked.append(sum(asked))
        return found

    reference_cache._Filling._ask = count
    pairs = make_dataset()
    seen.values.append(judge("whole", pairs).reference_logps)
    reference_cache._Filling._write = write_and_die
    for _ in range(KILLS + 1):
        try:
            seen.values.append(judge("killed", pairs).reference_logps)
        except KilledError:
            continue
    reference_cache._Filling._write = write
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
    return run_ranks(watch, 2, tmp_path_factory.mktemp("reference"))


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
        assert seen.num_kills == KILLS
        whole, *others = seen.values
        assert len(others) == 3
        assert all(np.array_equal(whole, other) for other in others)
        asked_at_last, damaged = seen.num_asked[2], seen.num_asked[3]
        assert seen.num_asked[0] == NUM_PAIRS
        assert asked_at_last == 2  # the probe alone
        assert damaged == 2 + 2


def test_what_another_model_has_said_is_refused(ranks: list[Seen]) -> None:
    for seen in ranks:
        assert "holds log-probabilities of another model" in seen.refusal
        assert "delete that folder" in seen.refusal
