import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hunyuan_train.data.batches import rows as row_tables
from hunyuan_train.data.batches.rows import measure_fill, pack_rows, single_rows


@pytest.fixture
def realistic():
    """Lengths as a chat mix has them: median 400, a tail beyond 4,000."""
    generator = np.random.default_rng(0)
    return np.minimum(generator.lognormal(6.0, 1.1, 24_000).astype(np.int64) + 16, 4096)


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=200),
    seed=st.integers(0, 9),
)
def test_every_sample_is_in_one_row_and_no_row_is_too_long(lengths, seed):
    lengths = np.array(lengths)
    order = np.random.default_rng(seed).permutation(len(lengths))
    rows = pack_rows(lengths, order, max_length=50)
    assert sorted(rows.samples) == list(range(len(lengths)))
    assert all(0 < lengths[rows[number]].sum() <= 50 for number in range(len(rows)))


@given(lengths=st.lists(st.integers(1, 50), min_size=2, max_size=100))
def test_no_sample_would_have_fitted_in_an_earlier_row(lengths):
    lengths = np.array(lengths)
    rows = pack_rows(lengths, np.arange(len(lengths)), max_length=50)
    room = [50 - lengths[rows[number]].sum() for number in range(len(rows))]
    for number in range(1, len(rows)):
        assert min(lengths[rows[number]]) > max(room[:number])


@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=100))
def test_a_row_that_takes_everything_is_packed_at_once(lengths):
    lengths = np.array(lengths)
    rows = pack_rows(lengths, np.arange(len(lengths)), max_length=2**62)
    assert sorted(rows[0]) == list(range(len(lengths)))
    assert len(rows) == 1


def test_rows_of_a_realistic_mix_are_full(realistic):
    rows = pack_rows(realistic, np.arange(len(realistic)), max_length=4096)
    assert measure_fill(realistic, rows, 4096) > 0.995


def test_windows_keep_rows_full(realistic, monkeypatch):
    monkeypatch.setattr(row_tables, "WINDOW", 4000)
    rows = pack_rows(realistic, np.arange(len(realistic)), max_length=4096)
    assert sorted(rows.samples) == list(range(len(realistic)))
    assert measure_fill(realistic, rows, 4096) > 0.995


def test_a_sample_may_come_several_times():
    rows = pack_rows(np.array([3, 4]), np.array([0, 0, 1, 0]), max_length=10)
    assert sorted(rows.samples) == [0, 0, 0, 1]


def test_single_rows_keep_the_order():
    rows = single_rows(np.array([4, 2, 9]))
    assert [rows[number].tolist() for number in range(len(rows))] == [[4], [2], [9]]
