"""A model of torch's caching allocator: what it reserves for the requests of a rehearsal.

The rules are those of c10/cuda/CUDACachingAllocator.cpp. Requests are rounded up to 512 bytes.
Those of up to 1 MB are cut from segments of 2 MB, those below 10 MB from segments of 20 MB; larger
ones get a segment of their own size, rounded up to 2 MB. The smallest free block of the stream that
is large enough is taken, and split where enough is left. Neighbours that are free are joined. An
expandable segment is one range of addresses for each stream and kind, which grows at its end by
whole pages.

Where the driver has no more, free segments are given back, and free pages of expandable ones,
before torch reports that it has run out: so a run survives with less than it would reserve.

Not modelled: blocks that another stream still reads (`record_stream`), and what NCCL and cuBLAS ask
the driver for themselves.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from hunyuan_train.rehearsal.ledger import BLOCK, Event

MB = 2**20
SMALL = MB  # requests up to this come from small segments
SMALL_SEGMENT = 2 * MB
MIDDLE = 10 * MB
MIDDLE_SEGMENT = 20 * MB
ROUNDING = 2 * MB
RESOLUTION = 256 * MB

Pool = tuple[int, bool]  # stream, whether small


@dataclass(slots=True, eq=False)
class Block:
    """A piece of a segment."""

    size: int
    pool: Pool
    before: "Block | None" = None
    behind: "Block | None" = None
    is_free: bool = False
    unmapped: int = 0  # bytes of it that were given back to the driver


@dataclass(slots=True)
class FreeBlocks:
    """The free blocks of a pool, by size."""

    order: list[tuple[int, int]] = field(default_factory=list)
    blocks: dict[int, Block] = field(default_factory=dict)

    def add(self, block: Block) -> None:
        """A block is free."""
        insort(self.order, (block.size, id(block)))
        self.blocks[id(block)] = block

    def remove(self, block: Block) -> None:
        """It is so no longer, or not by this size."""
        del self.order[bisect_left(self.order, (block.size, id(block)))]
        del self.blocks[id(block)]

    def take(self, size: int) -> Block | None:
        """The smallest that is large enough."""
        index = bisect_left(self.order, (size, 0))
        if index == len(self.order):
            return None
        block = self.blocks[self.order[index][1]]
        self.remove(block)
        return block


class CachingAllocator:
    """What is reserved and allocated, and the most of both.

    Args:
        is_expandable: whether segments grow.
        capacity: bytes that the driver has; 0: no limit.
    """

    def __init__(self, *, is_expandable: bool, capacity: int = 0) -> None:
        self.is_expandable = is_expandable
        self.capacity = capacity
        self.pools: dict[Pool, FreeBlocks] = {}
        self.tails: dict[Pool, Block] = {}  # the last block of each expandable segment
        self.reserved = self.allocated = 0
        self.peak_reserved = self.peak_allocated = 0

    def free_blocks(self, pool: Pool) -> FreeBlocks:
        """Those of one stream and kind."""
        return self.pools.setdefault(pool, FreeBlocks())

    def allocate(self, num_bytes: int, stream: int) -> Block:
        """A block of a stream."""
        size = -(-num_bytes // BLOCK) * BLOCK
        pool = (stream, size <= SMALL)
        block = self.free_blocks(pool).take(size)
        if block is None:
            block = self.grow(size, pool) if self.is_expandable else self.new_segment(size, pool)
        unmapped, block.unmapped = block.unmapped, 0
        rest = self.split(block, size)
        missing = unmapped if rest is None else min(unmapped, size)
        if rest is not None:
            rest.unmapped = min(unmapped - missing, rest.size)
        if missing:
            self.ask_driver(missing)
        block.is_free = False
        self.allocated += block.size
        self.peak_allocated = max(self.peak_allocated, self.allocated)
        self.peak_reserved = max(self.peak_reserved, self.reserved)
        return block

    def new_segment(self, size: int, pool: Pool) -> Block:
        """Ask the driver for memory."""
        if pool[1]:
            segment = SMALL_SEGMENT
        elif size < MIDDLE:
            segment = MIDDLE_SEGMENT
        else:
            segment = -(-size // ROUNDING) * ROUNDING
        self.ask_driver(segment)
        return Block(segment, pool)

    def ask_driver(self, size: int) -> None:
        """Take memory from the driver, which others may have to give back first.

        Raises:
            MemoryError: there is not so much.
        """
        if self.capacity and self.reserved + size > self.capacity:
            self.give_back()
            if self.reserved + size > self.capacity:
                raise MemoryError
        self.reserved += size

    def give_back(self) -> None:
        """Give back what no block uses: whole segments, or pages of expandable ones."""
        for blocks in self.pools.values():
            for block in list(blocks.blocks.values()):
                if self.is_expandable:
                    # Its first and last page may belong to its neighbours, too.
                    pages = max(0, block.size // ROUNDING - 1) * ROUNDING
                    self.reserved -= max(0, pages - block.unmapped)
                    block.unmapped = max(block.unmapped, pages)
                elif block.before is None and block.behind is None:
                    blocks.remove(block)
                    self.reserved -= block.size

    def grow(self, size: int, pool: Pool) -> Block:
        """Map more pages behind the last block of an expandable segment."""
        page = SMALL_SEGMENT if pool[1] else MIDDLE_SEGMENT
        tail = self.tails.get(pool)
        has_room = tail is not None and tail.is_free
        missing = size - (tail.size if tail is not None and has_room else 0)
        added = -(-missing // page) * page
        self.ask_driver(added)
        if tail is not None and has_room:
            self.free_blocks(pool).remove(tail)
            tail.size += added
            return tail
        block = Block(added, pool, before=tail)
        if tail is not None:
            tail.behind = block
        self.tails[pool] = block
        return block

    def split(self, block: Block, size: int) -> Block | None:
        """Leave what is not needed of a block to others: the rest, where it is worth it."""
        rest = block.size - size
        if rest < BLOCK or (not block.pool[1] and rest <= SMALL):
            return None
        behind = Block(rest, block.pool, before=block, behind=block.behind, is_free=True)
        if block.behind is not None:
            block.behind.before = behind
        block.behind, block.size = behind, size
        if self.tails.get(block.pool) is block:
            self.tails[block.pool] = behind
        self.free_blocks(block.pool).add(behind)
        return behind

    def free(self, block: Block) -> None:
        """A block is no longer needed; it joins its free neighbours."""
        self.allocated -= block.size
        blocks = self.free_blocks(block.pool)
        if block.before is not None and block.before.is_free:
            neighbour = block.before
            blocks.remove(neighbour)
            neighbour.size += block.size
            self.close_gap(neighbour, block)
            block = neighbour
        if block.behind is not None and block.behind.is_free:
            neighbour = block.behind
            blocks.remove(neighbour)
            block.size += neighbour.size
            self.close_gap(block, neighbour)
        block.is_free = True
        blocks.add(block)

    def close_gap(self, kept: Block, gone: Block) -> None:
        """Let a block take the place of the one behind it, too."""
        kept.unmapped += gone.unmapped
        kept.behind = gone.behind
        if gone.behind is not None:
            gone.behind.before = kept
        if self.tails.get(gone.pool) is gone:
            self.tails[gone.pool] = kept


def find_least(events: Sequence[Event], *, is_expandable: bool, low: int, high: int) -> int:
    """The least memory with which no request fails, to a quarter of a GiB.

    Args:
        events: of a rehearsal.
        is_expandable: whether segments grow.
        low: what is allocated at most.
        high: what is reserved at most, with which it does not fail.
    """
    while high - low > RESOLUTION:
        middle = (low + high) // 2
        try:
            replay(events, is_expandable=is_expandable, capacity=middle)
        except MemoryError:
            low = middle
        else:
            high = middle
    return high


def replay(events: Iterable[Event], *, is_expandable: bool, capacity: int = 0) -> CachingAllocator:
    """Ask an allocator for what a rehearsal asked for.

    Raises:
        MemoryError: it has not so much.
    """
    allocator = CachingAllocator(is_expandable=is_expandable, capacity=capacity)
    live: dict[int, Block] = {}
    for event in events:
        if event.num_bytes < 0:
            allocator.free(live.pop(event.key))
        else:
            live[event.key] = allocator.allocate(event.num_bytes, event.stream)
    return allocator
