"""Pairs in the cache and in rows: side by side, whole or not at all."""

import numpy as np
import pytest

from hunyuan_train.config.schema import DataConfig
from hunyuan_train.data.batches.loader import BatchSampler, DataShard, Position, eval_batches
from hunyuan_train.data.compiled.cache import prepare_dataset
from hunyuan_train.data.dataset import CHOSEN, REJECTED
from hunyuan_train.errors import DataError


def pair(number: int, chosen: str = "yes", rejected: str = "no, never", **fields: object) -> dict:
    record = {"prompt": f"Question {number}?", "chosen": f"{chosen} {number}", "mode": "fast"}
    return record | {"rejected": rejected, **fields}


@pytest.fixture
def compile_pairs(write_records, tokenizer, tmp_path):
    def prepare(records, *, kind="pairs", **settings):
        path = write_records(records)
        config = DataConfig(
            train_data_file=str(path), cache_dir=str(tmp_path / "cache"), **settings
        )
        return prepare_dataset(config, tokenizer, records=kind)

    return prepare


def text_of(dataset, tokenizer, sample):
    return tokenizer.decode(dataset.sample(sample).tokens.tolist())


def test_pairs_lie_side_by_side_in_every_row(compile_pairs, tokenizer):
    records = [pair(number, "yes " * (number % 7 + 1)) for number in range(40)]
    dataset = compile_pairs(records, max_seq_length=256)
    assert dataset.sides.tolist() == [CHOSEN, REJECTED] * 40
    shard = DataShard(rows=1, num_ranks=2, rank=0)
    sampler = BatchSampler(dataset, shard, accumulation_steps=2, seed=3, packing=True)
    seen = []
    for rank in range(2):
        position = Position()
        own = BatchSampler(
            dataset,
            DataShard(rows=1, num_ranks=2, rank=rank),
            accumulation_steps=2,
            seed=3,
            packing=True,
        )
        while position.epoch == 0:
            batches, position = own.step_batches(position)
            for batch in batches:
                kept = batch.sample_ids[batch.sample_ids >= 0]
                assert (kept[::2] + 1 == kept[1::2]).all()
                assert batch.sides[: len(kept)].tolist() == [CHOSEN, REJECTED] * (len(kept) // 2)
                assert len(batch.input_ids) <= 256
                seen += kept.tolist()
    assert sorted(seen) == list(range(80))
    assert sampler.step_content(Position()).num_rows == 4
    alone = eval_batches(dataset, shard, packing=False)
    assert all((batch.sample_ids >= 0).sum() in (0, 2) for batch in alone)


def test_a_pair_that_no_row_holds_is_left_out_as_a_pair(compile_pairs, tokenizer):
    records = [pair(0), pair(1, rejected="no " * 80), pair(2)]
    with pytest.raises(DataError, match="more than max_seq_length"):
        compile_pairs(records, max_seq_length=120)
    dataset = compile_pairs(records, max_seq_length=120, overlong="drop")
    assert len(dataset) == 4
    assert [dataset.origin(sample)[-1] for sample in range(4)] == ["1", "1", "3", "3"]


def test_oldest_turns_are_left_out_of_both_sides(compile_pairs, tokenizer):
    turns = [
        {"role": role, "content": f"{role} {number} " + "word " * 10}
        for number in range(3)
        for role in ("user", "assistant")
    ]
    prompt = [*turns, {"role": "user", "content": "the last"}]
    long = {"prompt": prompt, "chosen": "a", "rejected": "b", "mode": "plain"}
    dataset = compile_pairs(
        [pair(0), long, pair(2)], max_seq_length=200, overlong="drop_turns", data_policy=None
    )
    assert dataset.sides.tolist() == [CHOSEN, REJECTED] * 3
    chosen, rejected = (text_of(dataset, tokenizer, sample) for sample in (2, 3))
    assert "the last" in chosen
    assert "user 0" not in chosen
    assert chosen.rpartition("<|extra_0|>")[0] == rejected.rpartition("<|extra_0|>")[0]
    assert sum(dataset.lengths[2:4]) <= 200


def test_repeated_pairs_and_held_out_questions_are_found(compile_pairs):
    dataset = compile_pairs([pair(0), pair(1), pair(0)], data_policy="duplicate=drop")
    assert len(dataset) == len(dataset.sides) == 4


def test_judged_answers_meet_the_answers_to_other_prompts(compile_pairs, tokenizer):
    records = [
        {"prompt": f"P{number}?", "completion": f"A{number}", "label": number % 2 == 0}
        | {"mode": "plain"}
        for number in range(3)
    ]
    dataset = compile_pairs(records, kind="judged")
    assert dataset.sides.tolist() == [CHOSEN, REJECTED, CHOSEN]
    texts = [tokenizer.decode(dataset.mismatched(one).tokens.tolist()) for one in range(3)]
    expected = [f"<|startoftext|>P{one}?<|extra_0|>A{(one - 1) % 3}<|eos|>" for one in range(3)]
    assert texts == expected
    [batch] = eval_batches(dataset, DataShard(rows=1, num_ranks=1, rank=0), packing=True)
    assert batch.mismatched is not None
    assert np.array_equal(batch.mismatched.sample_ids, batch.sample_ids)


def test_dialogues_have_no_sides_and_no_file_of_them(compile_pairs, tmp_path):
    dialogue = {"mode": "plain", "prompt": "Q", "completion": "A"}
    dataset = compile_pairs([dialogue], kind="dialogues")
    assert dataset.sides is None
    assert not list((tmp_path / "cache").glob("*/sides.bin"))
    with pytest.raises(DataError, match="--objective dpo"):
        compile_pairs([pair(0)], kind="dialogues")
