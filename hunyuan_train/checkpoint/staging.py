"""Brings states from a GPU to host memory by way of two small page-locked buffers.

A GPU writes to page-locked memory by itself, several times as fast as to any other. All of a rank's
states in such memory would be tens of GB that the machine can do nothing else with, and that take
long to lock: so one buffer is emptied while the GPU fills the other.
"""

import logging
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

BUFFER_BYTES = 2**26  # a power of two: torch rounds page-locked blocks up to one
# Begins to copy a part of a tensor into a buffer; what it gives waits until that is done.
BeginCopy = Callable[[Tensor, Tensor], Callable[[], object]]


class Staging:
    """The buffers of one rank, made when they are first needed and then kept."""

    def __init__(
        self,
        *,
        buffer_bytes: int = BUFFER_BYTES,
        begin_copy: BeginCopy | None = None,
    ) -> None:
        """Store what is given.

        Args:
            buffer_bytes: of each of the two.
            begin_copy: default: on the GPU's current stream.
        """
        self.buffer_bytes = buffer_bytes
        self.begin_copy = begin_copy or begin_copy_from_gpu
        self.is_for_all = begin_copy is not None  # and not only for tensors on a GPU
        self.buffers: list[Tensor] = []

    def copy(self, values: Tensor) -> Tensor:
        """Values [elements] in ordinary host memory, apart from the live ones."""
        if not self._is_staged(values):
            return values.to("cpu", copy=True)
        copied = torch.empty(values.shape, dtype=values.dtype)
        for start, part in self.parts(values):
            copied[start : start + len(part)] = part
        return copied

    def parts(self, values: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Values [elements] in host memory, part by part: where each begins, and the part.

        A part is good until the next one is asked for. Those of a CPU come whole, as they are.
        """
        if not self._is_staged(values):
            yield 0, values
            return
        length = self.buffer_bytes // values.dtype.itemsize
        previous: tuple[int, Tensor, Callable[[], object]] | None = None
        for number, start in enumerate(range(0, len(values), length)):
            part = values[start : start + length]
            buffer = self._buffer(number % 2).view(values.dtype)[: len(part)]
            wait = self.begin_copy(buffer, part)
            if previous:  # which is emptied while the GPU fills this one
                yield self._finish(*previous)
            previous = (start, buffer, wait)
        if previous:
            yield self._finish(*previous)

    def _is_staged(self, values: Tensor) -> bool:
        return values.is_cuda or self.is_for_all

    @staticmethod
    def _finish(start: int, buffer: Tensor, wait: Callable[[], object]) -> tuple[int, Tensor]:
        wait()
        return start, buffer

    def _buffer(self, number: int) -> Tensor:
        while len(self.buffers) < 2:
            self.buffers.append(lock_memory(self.buffer_bytes))
        return self.buffers[number]


def lock_memory(num_bytes: int) -> Tensor:
    """Page-locked memory where there is a GPU and the system allows it, else any: [bytes]."""
    if torch.cuda.is_available():
        try:
            return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)
        except RuntimeError as error:  # a limit of locked memory: slower, and no reason to fail
            logger.warning("no memory can be page-locked (ulimit -l), saving is slower: %s", error)
    return torch.empty(num_bytes, dtype=torch.uint8)


def begin_copy_from_gpu(buffer: Tensor, part: Tensor) -> Callable[[], object]:
    """Let the GPU copy on the current stream; the CPU sleeps, and does not spin, in the wait."""
    copied = torch.cuda.Event(blocking=True)
    buffer.copy_(part, non_blocking=True)
    copied.record()
    return copied.synchronize
