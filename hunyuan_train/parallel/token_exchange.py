"""Sends rows to the ranks of a group, while the rank that sends them computes something else.

The engine's own exchange is one function: it begins, and the GPU waits. Here its beginning and its
end are two functions of autograd. What is computed between them runs beside the exchange. In the
backward pass it does so again: autograd takes, of what can run, what was made last in the forward
pass. So the gradients' way back begins (`Arrive`), what was computed between has its backward, and
then it ends (`Depart`). All of it is on one stream, so the allocator needs to know of nothing.
"""

from typing import Any

import deepspeed.comm as dist
import torch
from torch import Tensor


class Exchange:
    """Rows on their way between the ranks of a group; one way at a time.

    Args:
        group: of ranks.
        sent: rows that this rank sends to each of them.
        received: rows that come from each of them.
    """

    def __init__(
        self,
        group: Any,  # noqa: ANN401 torch's, or the engine's
        sent: list[int],
        received: list[int],
    ) -> None:
        self.group = group
        self.sent = sent
        self.received = received
        self._running: list[tuple[Any, Tensor, Tensor]] = []

    def begin(self, *tensors: Tensor, is_back: bool = False) -> tuple[Tensor, ...]:
        """Send rows, or their gradients back; nobody may look at the results before the end.

        Args:
            tensors: [rows sent, ...], or back [rows received, ...]; contiguous.
            is_back: against the exchange's own direction.

        Returns:
            Of each [rows received, ...], or back [rows sent, ...].
        """
        assert not self._running, "an exchange goes one way at a time"
        sent, received = (self.received, self.sent) if is_back else (self.sent, self.received)
        for rows in tensors:
            arriving = rows.new_empty((sum(received), *rows.shape[1:]))
            work = dist.all_to_all_single(
                arriving,
                rows,
                output_split_sizes=received,
                input_split_sizes=sent,
                group=self.group,
                async_op=True,
            )
            self._running.append((work, arriving, rows))  # which lives as long as it is read
        return tuple(arriving for _, arriving, _ in self._running)

    def end(self) -> tuple[Tensor, ...]:
        """What `begin` has returned, once it is there."""
        assert self._running, "an exchange ends that has begun"
        running, self._running = self._running, []
        for work, _, _ in running:
            work.wait()
        return tuple(arriving for _, arriving, _ in running)


class Depart(torch.autograd.Function):
    """Rows set out; in the backward pass their gradients have come back."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        exchange: Exchange,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        """Each [rows sent, ...] to [rows received, ...], which are not there yet."""
        ctx.exchange = exchange
        return exchange.begin(*(one.contiguous() for one in tensors))

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        """What `Arrive.backward` has sent, [rows sent, ...]; what it returned says nothing."""
        return None, *ctx.exchange.end()


class Arrive(torch.autograd.Function):
    """Rows are there; in the backward pass their gradients set out."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        exchange: Exchange,
        *arriving: Tensor,
    ) -> tuple[Tensor, ...]:
        """Each [rows received, ...], from `Depart` and back again."""
        ctx.exchange = exchange
        exchange.end()
        ctx.mark_dirty(*arriving)
        return arriving

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        """Each [rows received, ...]; returned because autograd wants something of this shape."""
        gradients = tuple(one.contiguous() for one in gradients)
        ctx.exchange.begin(*gradients, is_back=True)
        return None, *gradients
