from dataclasses import replace

import numpy as np
import pytest

from hunyuan_train.data.batches.loader import (
    IGNORED,
    Batch,
    BatchSampler,
    DataShard,
    Position,
    cut_batch,
    eval_batches,
    eval_by_file,
    make_batch,
)
from hunyuan_train.errors import DataError
from tests.data.dialogues import chat


@pytest.fixture
def dataset(prepare, tiny_data):
    return prepare(tiny_data, max_seq_length=1024)


def _plans(dataset, num_ranks, accumulation_steps=2, rows_per_rank=2, packing=True, seed=3):
    return [
        BatchSampler(
            dataset,
            DataShard(rows=rows_per_rank, num_ranks=num_ranks, rank=rank),
            accumulation_steps=accumulation_steps,
            seed=seed,
            packing=packing,
        )
        for rank in range(num_ranks)
    ]


def _step(plans, position):
    """The samples of one step over all ranks, in order, and the next position."""
    results = [sampler.step_batches(position) for sampler in plans]
    assert len({following for _, following in results}) == 1
    micro_steps = zip(*(batches for batches, _ in results), strict=True)
    ids = [sample for step in micro_steps for batch in step for sample in batch.sample_ids.tolist()]
    return [sample for sample in ids if sample >= 0], results[0][1]


def _flat(steps):
    return [sample for step in steps for sample in step]


def _epoch(plans, position=Position()):  # noqa: B008  # frozen
    epoch, steps = position.epoch, []
    while position.epoch == epoch:
        ids, position = _step(plans, position)
        steps.append(ids)
    return steps


@pytest.mark.parametrize("packing", [True, False])
def test_an_epoch_shows_every_sample_once(dataset, packing):
    steps = _epoch(_plans(dataset, num_ranks=3, packing=packing))
    assert sorted(_flat(steps)) == list(range(len(dataset)))
    assert len(steps) == _plans(dataset, 3, packing=packing)[0].steps_per_epoch


@pytest.mark.parametrize("packing", [True, False])
def test_steps_do_not_depend_on_how_many_ranks_share_them(dataset, packing):
    one = _epoch(_plans(dataset, num_ranks=1, accumulation_steps=8, packing=packing))
    assert _epoch(_plans(dataset, num_ranks=8, accumulation_steps=1, packing=packing)) == one
    assert _epoch(_plans(dataset, num_ranks=2, accumulation_steps=4, packing=packing)) == one


@pytest.mark.parametrize("packing", [True, False])
def test_a_run_goes_on_exactly_where_it_stopped_on_other_ranks(dataset, packing):
    whole = _epoch(_plans(dataset, num_ranks=4, packing=packing))
    plans, position = _plans(dataset, num_ranks=4, packing=packing), Position()
    before = []
    for _ in range(2):
        ids, position = _step(plans, position)
        before.append(ids)
    after = _epoch(_plans(dataset, num_ranks=2, accumulation_steps=4, packing=packing), position)
    assert before + after == whole


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize(
    ("num_ranks", "accumulation_steps", "rows_per_rank"), [(3, 1, 1), (5, 2, 3)]
)
def test_steps_of_another_size_go_on_at_the_same_sample(
    dataset, packing, num_ranks, accumulation_steps, rows_per_rank
):
    plans, position = _plans(dataset, num_ranks=4, packing=packing), Position()
    before = []
    for _ in range(2):
        ids, position = _step(plans, position)
        before += ids
    others = _plans(dataset, num_ranks, accumulation_steps, rows_per_rank, packing=packing)
    whole = _flat(_epoch(_plans(dataset, num_ranks=1, packing=packing)))
    assert before + _flat(_epoch(others, position)) == whole


def test_epochs_and_seeds_differ_and_repeat(dataset):
    plans = _plans(dataset, num_ranks=1)
    first, second = _epoch(plans), _epoch(plans, Position(1, 0))
    assert first != second
    assert sorted(_flat(first)) == sorted(_flat(second))
    assert _epoch(_plans(dataset, num_ranks=1)) == first
    assert _epoch(_plans(dataset, num_ranks=1, seed=4)) != first


def test_every_rank_gets_as_many_batches_to_the_end_of_the_epoch(dataset):
    plans = _plans(dataset, num_ranks=8, accumulation_steps=3, rows_per_rank=1)
    position = Position(0, plans[0].rows_per_step * (plans[0].steps_per_epoch - 1))
    for sampler in plans:
        batches, following = sampler.step_batches(position)
        assert len(batches) == 3
        assert following == Position(1, 0)
        assert all(len(batch.input_ids) > 0 for batch in batches)
    [filler] = [b for b in plans[-1].step_batches(position)[0] if b.sample_ids[0] < 0][-1:]
    assert filler.input_ids.tolist() == [dataset.pad_id]
    assert filler.labels.tolist() == [IGNORED]
    assert filler.loss_weights.tolist() == [0.0]
    assert filler.cu_seqlens.tolist() == [0, 1]


def test_a_batch_is_its_samples_end_to_end(dataset):
    batch = make_batch(dataset, [np.array([5, 7]), np.array([0])])
    assert batch.sample_ids.tolist() == [5, 7, 0]
    for number, sample_id in enumerate((5, 7, 0)):
        sample = dataset.sample(sample_id)
        part = slice(*batch.cu_seqlens[number : number + 2].tolist())
        assert np.array_equal(batch.input_ids[part], sample.tokens)
        assert batch.position_ids[part].tolist() == list(range(len(sample.tokens)))
        labels = batch.labels[part]
        assert labels[-1] == IGNORED
        has_loss = sample.spans[1:] != 0
        assert np.array_equal(labels[:-1][has_loss], sample.tokens[1:][has_loss])
        assert set(labels[:-1][~has_loss].tolist()) == {IGNORED}
        assert np.array_equal(batch.spans[part][:-1], sample.spans[1:])
        assert np.array_equal(batch.loss_weights[part] > 0, labels != IGNORED)
        assert batch.modes[number] == dataset.samples[sample_id]["mode"]


def test_dtypes_are_those_that_the_model_takes(dataset):
    batch = make_batch(dataset, [np.array([0])])
    dtypes = {
        name: value.dtype.name
        for name in batch.__slots__
        if isinstance(value := getattr(batch, name), np.ndarray)
    }
    assert dtypes == {
        "input_ids": "int64",
        "position_ids": "int64",
        "labels": "int64",
        "loss_weights": "float32",
        "spans": "uint8",
        "modes": "uint8",
        "cu_seqlens": "int32",
        "sample_ids": "int64",
    }


def test_packed_rows_fit_and_hold_labels(dataset):
    sampler = _plans(dataset, num_ranks=1)[0]
    for batch in sampler.step_batches(Position())[0]:
        assert len(batch.input_ids) <= 2 * 1024
        assert (batch.labels != IGNORED).any()


@pytest.mark.parametrize("packing", [True, False])
def test_evaluation_shows_everything_once_and_every_rank_as_many_batches(dataset, packing):
    batches = [
        eval_batches(dataset, DataShard(rows=2, num_ranks=3, rank=rank), packing=packing)
        for rank in range(3)
    ]
    assert len({len(own) for own in batches}) == 1
    ids = [sample for own in batches for b in own for sample in b.sample_ids.tolist()]
    assert sorted(sample for sample in ids if sample >= 0) == list(range(len(dataset)))


@pytest.mark.parametrize("packing", [True, False])
def test_files_that_are_held_out_together_share_no_row(prepare, tiny_data, packing, tmp_path):
    other = tmp_path / "other.jsonl"
    other.write_text("".join(f'{{"text": "a document, number {n}"}}\n' for n in range(7)))
    dataset = prepare(f"{tiny_data},{other}", max_seq_length=1024)
    shards = [DataShard(rows=2, num_ranks=3, rank=rank) for rank in range(3)]
    ranks = [eval_by_file(dataset, shard, packing=packing) for shard in shards]
    assert len({tuple(batch.source for batch in batches) for batches in ranks}) == 1
    found: dict[str, list[int]] = {}
    for batch in (batch for batches in ranks for batch in batches):
        found.setdefault(batch.source, []).extend(batch.sample_ids[batch.sample_ids >= 0].tolist())
    sources = dataset.records["source"][dataset.samples["record"]]
    for number, name in enumerate(("tiny_train.jsonl", "other.jsonl")):
        assert sorted(found[name]) == np.flatnonzero(sources == number).tolist()
    alone = eval_by_file(prepare(other, max_seq_length=1024), shards[0], packing=packing)
    assert {batch.source for batch in alone} == {""}


def _join(parts: list[Batch], name: str) -> list[int]:
    return np.concatenate([getattr(part, name) for part in parts]).tolist()


@pytest.mark.parametrize("sequence_size", [2, 3, 6])
def test_ranks_that_share_a_row_have_all_of_it_between_them(dataset, sequence_size):
    num_ranks, options = 6, {"accumulation_steps": 2, "seed": 3, "packing": True}
    shares = [DataShard(rows=1, num_ranks=num_ranks, rank=rank) for rank in range(num_ranks)]
    shared = [replace(share, sequence_size=sequence_size) for share in shares]
    num_groups = num_ranks // sequence_size
    wholes = [
        BatchSampler(dataset, replace(share, num_ranks=num_groups), **options)
        for share in shares[:num_groups]
    ]
    parts = [BatchSampler(dataset, share, **options) for share in shared]
    assert {sampler.rows_per_step for sampler in (*wholes, *parts)} == {2 * num_groups}
    for group, whole in enumerate(wholes):
        members = parts[group * sequence_size :][:sequence_size]
        expected, following = whole.step_batches(Position())
        steps = [member.step_batches(Position()) for member in members]
        assert {after for _, after in steps} == {following}
        for batch, *cut in zip(expected, *(batches for batches, _ in steps), strict=True):
            for name in ("input_ids", "position_ids", "labels", "loss_weights", "spans"):
                assert _join(cut, name) == getattr(batch, name).tolist()
            for place, part in enumerate(cut):
                assert part.part_lengths == tuple(len(one.input_ids) for one in cut)
                assert part.first_token == sum(part.part_lengths[:place])
                assert np.array_equal(part.cu_seqlens, batch.cu_seqlens)
            assert max(cut[0].part_lengths) - min(cut[0].part_lengths) <= 1


def test_a_row_shorter_than_its_ranks_is_filled_up(dataset):
    share = DataShard(rows=1, num_ranks=2048, rank=2047, sequence_size=2048)
    sampler = BatchSampler(dataset, share, accumulation_steps=1, seed=3, packing=True)
    [batch], _ = sampler.step_batches(Position())
    assert batch.part_lengths == (1,) * 2048
    assert batch.input_ids.tolist() == [dataset.pad_id]
    assert batch.labels.tolist() == [IGNORED]
    assert batch.sample_ids[-1] == -1
    assert batch.cu_seqlens[-1] == 2048


def test_evaluation_parts_are_of_the_same_rows(dataset):
    [whole, *_] = eval_batches(dataset, DataShard(rows=2, num_ranks=1, rank=0), packing=True)
    parts = [
        eval_batches(
            dataset, DataShard(rows=2, num_ranks=2, rank=rank, sequence_size=2), packing=True
        )
        for rank in range(2)
    ]
    assert _join([part[0] for part in parts], "labels") == whole.labels.tolist()
    assert cut_batch(whole, 0, 1) is whole


def test_origins_name_file_and_line(prepare, write_records):
    path = write_records([chat("a", "b"), chat("c", "d", "e", "f", mode="fast")])
    dataset = prepare(path)
    sampler = _plans(dataset, num_ranks=1, rows_per_rank=1)[0]
    batches = sampler.step_batches(Position())[0]
    assert sorted(sampler.origins(batches)) == [f"{path}:1", f"{path}:2", f"{path}:2"]


def _times_shown(dataset, seed=0):
    ids = _flat(_epoch(_plans(dataset, num_ranks=1, seed=seed)))
    shown = {}
    for sample in ids:
        source = dataset.origin(sample).split(":")[0].rsplit("/", 1)[1]
        shown.setdefault(source, []).append(sample)
    return shown


def test_weights_say_how_often_an_epoch_shows_a_source(prepare, write_records):
    write_records([chat(f"a{n}", "b") for n in range(10)], "a.jsonl")
    path = write_records([chat(f"c{n}", "d") for n in range(10)], "c.jsonl")
    dataset = prepare(f"{path.with_name('a.jsonl')}:2.5,{path}:0.3")
    shown = _times_shown(dataset)
    assert len(shown["a.jsonl"]) == 25
    assert {shown["a.jsonl"].count(sample) for sample in set(shown["a.jsonl"])} == {2, 3}
    assert len(set(shown["c.jsonl"])) == len(shown["c.jsonl"]) == 3
    assert sorted(_times_shown(dataset)["c.jsonl"]) == sorted(shown["c.jsonl"])
    assert any(
        sorted(_times_shown(dataset, seed)["c.jsonl"]) != sorted(shown["c.jsonl"])
        for seed in range(1, 5)
    )


def test_weights_that_leave_nothing_are_an_error(prepare, write_records):
    dataset = prepare(f"{write_records([chat('a', 'b')])}:0.01")
    with pytest.raises(DataError, match="leave not one sample"):
        _plans(dataset, num_ranks=1)
