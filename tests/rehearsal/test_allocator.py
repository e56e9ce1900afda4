"""The model of torch's caching allocator, by the rules that its source states."""

import random

import pytest

from hunyuan_train.rehearsal.allocator import MB, CachingAllocator, find_least, replay
from hunyuan_train.rehearsal.ledger import Event


def requests(*sizes: int) -> list[Event]:
    return [Event(size, key, 0) for key, size in enumerate(sizes)]


@pytest.mark.parametrize(
    ("size", "reserved"),
    [
        (1, 2 * MB),  # small: from a segment of 2 MB
        (MB, 2 * MB),
        (MB + 1, 20 * MB),  # below 10 MB: from one of 20
        (10 * MB - 512, 20 * MB),
        (10 * MB, 10 * MB),  # its own, rounded up to 2 MB
        (11 * MB, 12 * MB),
    ],
)
def test_segments_have_the_sizes_of_torch(size, reserved):
    assert replay(requests(size), is_expandable=False).reserved == reserved


def test_small_requests_share_a_segment_and_rests_serve_others():
    assert replay(requests(*[512] * 4096), is_expandable=False).reserved == 2 * MB
    assert replay(requests(*[512] * 4097), is_expandable=False).reserved == 4 * MB
    assert replay(requests(9 * MB, 9 * MB, 2 * MB), is_expandable=False).reserved == 20 * MB


def test_a_block_that_is_freed_serves_the_same_stream_alone():
    events = [Event(64 * MB, 1, 0), Event(-1, 1, 0)]
    assert replay([*events, Event(64 * MB, 2, 0)], is_expandable=False).reserved == 64 * MB
    assert replay([*events, Event(64 * MB, 2, 1)], is_expandable=False).reserved == 128 * MB


def test_free_neighbours_are_joined():
    events = [
        *(Event(20 * MB, 1, 0), Event(-1, 1, 0)),
        *(Event(8 * MB, 2, 0), Event(8 * MB, 3, 0)),  # both from the first segment
        *(Event(-1, 2, 0), Event(-1, 3, 0)),
        Event(20 * MB, 4, 0),
    ]
    assert replay(events, is_expandable=False).reserved == 20 * MB


def test_growing_blocks_leave_holes_that_expandable_segments_do_not():
    events = []
    for key, size in enumerate(range(100, 140, 4)):
        events += [Event(size * MB, key, 0), Event(-1, key, 0)]
    fixed, growing = (replay(events, is_expandable=one) for one in (False, True))
    assert fixed.peak_allocated == growing.peak_allocated == 136 * MB
    assert fixed.peak_reserved == sum(range(100, 140, 4)) * MB
    assert growing.peak_reserved == 140 * MB  # in pages of 20 MB


@pytest.mark.parametrize("is_expandable", [False, True])
def test_nothing_is_lost_or_given_twice(is_expandable):
    draw, live = random.Random(0), {}
    allocator = CachingAllocator(is_expandable=is_expandable)
    for step in range(3000):
        if live and draw.random() < 0.5:
            allocator.free(live.pop(draw.choice(list(live))))
        else:
            size = draw.choice([300, 5_000, 700_000, 3_000_000, 30_000_000])
            live[step] = allocator.allocate(draw.randrange(1, size), draw.randrange(2))
        assert allocator.allocated == sum(block.size for block in live.values())
        free = sum(size for pool in allocator.pools.values() for size, _ in pool.order)
        assert allocator.allocated + free == allocator.reserved
    for block in live.values():
        allocator.free(block)
    assert allocator.allocated == 0


def test_a_run_survives_with_less_than_it_would_reserve_and_not_with_less_than_it_needs():
    events = [
        *(Event(100 * MB, 0, 0), Event(-1, 0, 0)),
        *(Event(100 * MB, 1, 1), Event(-1, 1, 1)),  # of another stream: nothing is shared
        *(Event(60 * MB, 2, 0), Event(60 * MB, 3, 1)),
    ]
    for is_expandable in (False, True):
        most = replay(events, is_expandable=is_expandable).peak_reserved
        assert most == 200 * MB
        least = find_least(events, is_expandable=is_expandable, low=0, high=most)
        assert 120 * MB <= least <= most
        with pytest.raises(MemoryError):
            replay(events, is_expandable=is_expandable, capacity=119 * MB)
    # Whole segments of other streams are given back: nothing more is needed than is in use.
    replay(events, is_expandable=False, capacity=120 * MB)
    # Of growing segments all pages but the first and the last, which neighbours may use.
    replay(events, is_expandable=True, capacity=128 * MB)
