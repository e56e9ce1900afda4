"""Orders of which any part is known without the rest: those that were once drawn whole."""

import numpy as np
import pytest

from hunyuan_train.data import shuffle as shuffle_module
from hunyuan_train.data.batches import packing, rows
from hunyuan_train.data.batches.loader import BatchSampler, DataShard, Position
from hunyuan_train.data.batches.order import LengthGroups, order_units
from tests.data.dialogues import chat

GROUP, BLOCK = 4096, 64


def _draw_groups(lengths, generator):
    """Rows grouped by length as the first versions drew them, all at once."""
    order = generator.permutation(len(lengths))
    blocks = []
    for start in range(0, len(order), GROUP):
        group = order[start : start + GROUP]
        by_length = group[np.argsort(lengths[group], kind="stable")]
        blocks += np.split(by_length, range(BLOCK, len(group), BLOCK))
    return np.concatenate([blocks[number] for number in generator.permutation(len(blocks))])


def _draw_units(dataset, generator):
    """An epoch's samples as the first versions drew them, all at once."""
    sources = dataset.records["source"][dataset.samples["record"]]
    chosen = []
    for source, weight in enumerate(dataset.source_weights):
        samples = np.flatnonzero(sources == source)
        chosen += [samples] * int(weight)
        num_extra = round((weight - int(weight)) * len(samples))
        chosen.append(generator.permutation(samples)[:num_extra])
    return generator.permutation(np.concatenate(chosen))


def _group(lengths, seed=1):
    return LengthGroups(len(lengths), lengths.__getitem__, np.random.default_rng(seed))


@pytest.mark.parametrize("num_rows", [1, 63, 64, 65, 4096, 4097, 24_000, 24_001])
def test_rows_of_one_sample_keep_the_order_that_was_drawn_whole(num_rows):
    lengths = np.random.default_rng(0).integers(1, 3000, num_rows)
    expected = _draw_groups(lengths, np.random.default_rng(1))
    order = _group(lengths)
    starts = range(0, num_rows, 100)
    parts = [order.take(np.arange(start, min(start + 100, num_rows))) for start in starts]
    assert np.concatenate(parts).tolist() == expected.tolist()


def test_neighbours_are_of_similar_length_and_the_order_is_random():
    lengths = np.random.default_rng(0).lognormal(6.0, 1.1, 24_000).astype(np.int64)
    order, other = (_group(lengths, seed).take(np.arange(24_000)) for seed in (1, 2))
    assert sorted(order) == list(range(24_000))
    assert np.median(np.abs(np.diff(lengths[order]))) < 10
    assert not np.array_equal(order, other)
    first, last = lengths[order[:6000]].mean(), lengths[order[-6000:]].mean()
    assert 0.5 < first / last < 2


@pytest.fixture
def weighted(prepare, write_records):
    """Three files, shown two and a half times, not at all by their weight, and a part of once."""
    names = [
        write_records([chat(f"{name}{n}", "b" * (n + 1)) for n in range(size)], f"{name}.jsonl")
        for name, size in (("a", 30), ("c", 1), ("d", 40))
    ]
    return prepare(f"{names[0]}:2.5,{names[1]}:0.3,{names[2]}:0.7")


def test_units_keep_the_order_that_was_drawn_whole(weighted):
    expected = _draw_units(weighted, np.random.default_rng(3))
    order = order_units(weighted, np.random.default_rng(3))
    assert order.take(np.arange(len(order))).tolist() == expected.tolist()
    assert order.take(np.array([50, 2])).tolist() == expected[[50, 2]].tolist()


def test_a_keyed_order_shows_each_unit_as_often(weighted, monkeypatch):
    drawn = order_units(weighted, np.random.default_rng(3))
    monkeypatch.setattr(shuffle_module, "TABLE_LENGTH", 10)
    keyed = order_units(weighted, np.random.default_rng(3))
    counts = [
        np.bincount(order.take(np.arange(len(order))), minlength=len(weighted))
        for order in (drawn, keyed)
    ]
    for units, num_whole, num_extra in weighted.times_shown():
        for count in counts:
            part = count[units.start : units.stop]
            assert set(part) <= {num_whole, num_whole + 1}
            assert (part - num_whole).sum() == num_extra


def _epoch(dataset, *, packing):
    sampler = BatchSampler(
        dataset,
        DataShard(rows=2, num_ranks=1, rank=0),
        accumulation_steps=1,
        seed=5,
        packing=packing,
    )
    position, found = Position(), []
    while position.epoch == 0:
        content = sampler.step_content(position)
        batches, position = sampler.step_batches(position)
        ids = [one for batch in batches for one in batch.sample_ids.tolist() if one >= 0]
        assert content.num_tokens == int(dataset.lengths_of(np.array(ids)).sum())
        found.append(ids)
    return found


@pytest.fixture
def several_windows(prepare, tiny_data, monkeypatch):
    """A data set whose rows are packed in several windows, and so are kept on the disk."""
    monkeypatch.setattr(rows, "WINDOW", 32)
    dataset = prepare(tiny_data, max_seq_length=1024)
    assert len(dataset) > 64
    return dataset


def test_rows_on_the_disk_are_those_in_memory(several_windows, tmp_path, monkeypatch):
    laid = _epoch(several_windows, packing=True)
    [path] = (tmp_path / "cache").glob("*.rows")
    assert _epoch(several_windows, packing=True) == laid  # as they were found
    monkeypatch.setattr(rows, "WINDOW", 1 << 16)  # packed as before, and not kept
    path.unlink()
    monkeypatch.setattr(
        rows, "_pack", lambda dataset, units: packing.pack_windows(
            (
                packing.Window(part, dataset.unit_lengths(part))
                for start in range(0, len(units), 32)
                for part in [units.take(np.arange(start, min(start + 32, len(units))))]
            ),
            dataset.max_seq_length,
        ),
    )  # fmt: skip
    assert _epoch(several_windows, packing=True) == laid
    assert not path.exists()


@pytest.mark.parametrize("damage", ["a flipped bit", "cut short", "a memo of others", "removed"])
def test_rows_that_are_not_what_was_written_are_laid_again(several_windows, tmp_path, damage):
    expected = _epoch(several_windows, packing=True)
    [path] = (tmp_path / "cache").glob("*.rows")
    content = path.read_bytes()
    if damage == "a flipped bit":
        path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    elif damage == "cut short":
        path.write_bytes(content[:-8])
    elif damage == "removed":
        path.unlink()
    else:
        memo = path.with_name(f"{path.name}.json")
        memo.write_text(memo.read_text().replace('"samples": ', '"samples": 1'))
    assert _epoch(several_windows, packing=True) == expected
    assert path.read_bytes() == content


def test_rows_that_cannot_be_kept_are_laid_in_memory(several_windows, monkeypatch, caplog):
    expected = _epoch(several_windows, packing=True)

    def refuse(*arguments):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(rows, "_open_rows", refuse)
    assert _epoch(several_windows, packing=True) == expected
    assert "rows are laid in memory" in caplog.text


@pytest.mark.parametrize("is_packed", [True, False])
def test_a_keyed_epoch_shows_every_sample_once(several_windows, monkeypatch, is_packed):
    drawn = _epoch(several_windows, packing=is_packed)
    monkeypatch.setattr(shuffle_module, "TABLE_LENGTH", 0)
    for path in several_windows.folder.parent.glob("*.rows"):
        path.unlink()
    keyed = _epoch(several_windows, packing=is_packed)
    assert keyed != drawn
    flat = sorted(sample for step in keyed for sample in step)
    assert flat == list(range(len(several_windows)))


def test_a_step_reads_nothing_but_its_own_samples(several_windows, monkeypatch):
    """What it looks at does not grow with the data set."""
    sampler = BatchSampler(
        several_windows, DataShard(rows=2, num_ranks=1, rank=0), accumulation_steps=1, seed=5,
        packing=True,
    )  # fmt: skip
    asked = []
    lengths_of = type(several_windows).lengths_of
    monkeypatch.setattr(
        type(several_windows),
        "lengths_of",
        lambda self, ids: asked.append(len(ids)) or lengths_of(self, ids),
    )
    content = sampler.step_content(Position())
    assert asked == [sum(content.samples_by_source.values())]
