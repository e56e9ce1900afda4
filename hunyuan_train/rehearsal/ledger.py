"""Bytes of live storages on the pretended device: what for, by which line, and their peaks."""

import weakref
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

BLOCK = 512  # bytes to which torch's allocator rounds every request up
LINES_EVERY = 16 * 2**20  # a peak that is higher by less is not taken down line by line again


@dataclass(slots=True)
class Held:
    """A live storage."""

    num_bytes: int
    purpose: str
    line: str
    guard: weakref.ref[torch.UntypedStorage]


@dataclass(slots=True)
class Peak:
    """The fullest moment of a phase."""

    num_bytes: int = 0
    by_purpose: Counter[str] = field(default_factory=Counter)
    by_line: Counter[str] = field(default_factory=Counter)
    line_bytes: int = 0  # held when lines were taken down


@dataclass(frozen=True, slots=True)
class Event:
    """One request to the allocator: bytes of a new block of a stream, or -1 for its end."""

    num_bytes: int
    key: int
    stream: int


class Ledger:
    """Storages of one kind of device, from their first appearance to their end."""

    def __init__(self, device_type: str) -> None:
        self.device_type = device_type
        self.live = 0
        self.storages: dict[int, Held] = {}
        self.by_purpose: Counter[str] = Counter()
        self.by_line: Counter[str] = Counter()
        self.peaks: defaultdict[str, Peak] = defaultdict(Peak)
        self.events: list[Event] = []

    def see(
        self, tensor: Tensor, phase: str, stream: int, ask: Callable[[int], tuple[str, str]]
    ) -> None:
        """Count a tensor's storage unless it is known.

        Args:
            tensor: of any device.
            phase: that its peak belongs to.
            stream: on which it is allocated.
            ask: for purpose and line of a new one of so many bytes.
        """
        if tensor.device.type != self.device_type:
            return
        storage = tensor.untyped_storage()
        key, num_bytes = storage._cdata, storage.nbytes()
        if key in self.storages or num_bytes == 0:
            return
        num_bytes = -(-num_bytes // BLOCK) * BLOCK
        purpose, line = ask(num_bytes)
        guard = weakref.ref(storage, lambda _: self.forget(key))
        self.storages[key] = Held(num_bytes, purpose, line, guard)
        self.events.append(Event(num_bytes, key, stream))
        self.live += num_bytes
        self.by_purpose[purpose] += num_bytes
        self.by_line[line] += num_bytes
        peak = self.peaks[phase]
        if self.live > peak.num_bytes:
            peak.num_bytes, peak.by_purpose = self.live, self.by_purpose.copy()
            if self.live > peak.line_bytes + LINES_EVERY:
                peak.by_line, peak.line_bytes = self.by_line.copy(), self.live

    def forget(self, key: int) -> None:
        """A storage is freed."""
        held = self.storages.pop(key)
        self.events.append(Event(-1, key, 0))
        self.live -= held.num_bytes
        self.by_purpose[held.purpose] -= held.num_bytes
        self.by_line[held.line] -= held.num_bytes

    def rename(self, tensors: Iterable[Tensor], purpose: str) -> None:
        """Say what storages are for, now that their owner is known."""
        for tensor in tensors:
            if tensor.device.type != self.device_type:
                continue
            held = self.storages.get(tensor.untyped_storage()._cdata)
            if held is not None and held.purpose != purpose:
                self.by_purpose[held.purpose] -= held.num_bytes
                self.by_purpose[purpose] += held.num_bytes
                held.purpose = purpose

    def lines(self) -> Counter[str]:
        """Bytes held now, by line."""
        return +self.by_line
