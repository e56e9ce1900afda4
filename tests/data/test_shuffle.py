import numpy as np
import pytest

from hunyuan_train.data import shuffle as module
from hunyuan_train.data.shuffle import shuffle


@pytest.fixture(params=["a table", "a network"])
def draw(request, monkeypatch):
    """Draw an order, of either kind whatever its length."""
    if request.param == "a network":
        monkeypatch.setattr(module, "TABLE_LENGTH", 0)
    return lambda length, seed=0: shuffle(length, np.random.default_rng(seed))


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 63, 64, 65, 1000, 65_537])
def test_every_number_stands_at_one_place(draw, length):
    order, places = draw(length), np.arange(length)
    numbers = order.take(places)
    assert np.array_equal(np.sort(numbers), places)
    assert np.array_equal(order.find(numbers), places)
    assert numbers.dtype == np.int64
    assert len(order) == length


def test_any_part_is_that_of_the_whole(draw):
    order = draw(10_007)
    whole = order.take(np.arange(10_007))
    parts = [
        order.take(np.arange(start, min(start + 64, 10_007))) for start in range(0, 10_007, 64)
    ]
    assert np.array_equal(np.concatenate(parts), whole)
    places = np.array([9_000, 3, 3, 77])
    assert order.take(places).tolist() == whole[places].tolist()


def test_seeds_give_other_orders_and_the_same_one_again(draw):
    places = np.arange(1000)
    first, again, other = (draw(1000, seed).take(places) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("length", [4096, 5000])
def test_an_order_is_as_random_as_a_drawn_one(draw, length):
    """Few stay in place, few keep their neighbour, and every number comes anywhere."""
    places = np.arange(length)
    orders = np.array([draw(length, seed).take(places) for seed in range(60)])
    assert (orders == places).sum(axis=1).mean() == pytest.approx(1, abs=0.6)
    assert (np.diff(orders) == 1).sum(axis=1).mean() == pytest.approx(1, abs=0.6)
    # Where a number stands, in eight parts, is uniform: chi-squared with 7 degrees of freedom.
    counts = np.stack([(orders * 8 // length == part).sum(axis=0) for part in range(8)])
    statistic = ((counts - 60 / 8) ** 2 / (60 / 8)).sum(axis=0)
    assert statistic.mean() == pytest.approx(7, rel=0.1)


def test_a_long_order_takes_no_memory_for_its_length():
    order = shuffle(10**12, np.random.default_rng(0))
    assert order.table is None
    numbers = order.take(np.array([0, 10**12 - 1]))
    assert order.find(numbers).tolist() == [0, 10**12 - 1]
