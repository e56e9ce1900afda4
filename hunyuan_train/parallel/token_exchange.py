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
        self._running: tuple[Any, Tensor, Tensor] | None = None

    def begin(self, rows: Tensor, *, is_back: bool = False) -> Tensor:
        """Send rows, or their gradients back; nobody may look at the result before the end.

        Args:
            rows: [rows sent, width], or back [rows received, width]; contiguous.
            is_back: against the exchange's own direction.

        Returns:
            [rows received, width], or back [rows sent, width].
        """
        assert self._running is None, "an exchange goes one way at a time"
        sent, received = (self.received, self.sent) if is_back else (self.sent, self.received)
        arriving = rows.new_empty((sum(received), *rows.shape[1:]))
        work = dist.all_to_all_single(
            arriving,
            rows,
            output_split_sizes=received,
            input_split_sizes=sent,
            group=self.group,
            async_op=True,
        )
        self._running = work, arriving, rows  # which lives as long as it is read
        return arriving

    def end(self) -> Tensor:
        """What `begin` has returned, once it is there."""
        assert self._running is not None, "an exchange ends that has begun"
        work, arriving, _ = self._running
        self._running = None
        work.wait()
        return arriving


class Depart(torch.autograd.Function):
    """Rows set out; in the backward pass their gradients have come back."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, exchange: Exchange) -> Tensor:  # noqa: ANN401
        """[rows sent, width] to [rows received, width], which are not there yet."""
        ctx.exchange = exchange
        return exchange.begin(rows.contiguous())

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        """What `Arrive.backward` has sent, as [rows sent, width]; what it returned says nothing."""
        return ctx.exchange.end(), None


class Arrive(torch.autograd.Function):
    """Rows are there; in the backward pass their gradients set out."""

    @staticmethod
    def forward(ctx: Any, arriving: Tensor, exchange: Exchange) -> Tensor:  # noqa: ANN401
        """[rows received, width], from `Depart` and back again."""
        ctx.exchange = exchange
        exchange.end()
        ctx.mark_dirty(arriving)
        return arriving

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        """[rows received, width]; returned because autograd wants something of this shape."""
        gradient = gradient.contiguous()
        ctx.exchange.begin(gradient, is_back=True)
        return gradient, None
