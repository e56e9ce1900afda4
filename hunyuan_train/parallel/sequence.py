"""Sequence parallelism (Ulysses, https://arxiv.org/abs/2309.14509): ranks that share rows.

Split: the tokens of a row, an even part on each rank of a group. Communicated: queries, keys and
values of a layer before attention, so that a rank has all tokens of its share of the heads, and
attention's results after it, so that it has all heads of its tokens again; and their gradients.
Attention itself is the same as without, on any backend, and keeps documents apart as ever. All
else works on tokens, with their places in the document (`position_ids`) and labels of the whole
row.

The engine is not told: to it, all ranks are data-parallel. Its own settings for this refuse split
experts (engine.py `_validate_zero3_moe_compatibility`), and its attention lets packed documents see
each other.
Gradients come out right because the loss is a sum over this rank's tokens by the number of all.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from deepspeed import comm
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

AttentionFunction = Callable[..., tuple[Tensor, Tensor | None]]


def use_sequence_parallel(attention: str, size: int) -> None:
    """Let attention of this name run over whole rows of which each rank has a part.

    Every rank calls it once the process group exists. A call without `part_lengths`, as in
    generation, runs the plain function.

    Args:
        attention: name of an implementation in Transformers' registry.
        size: consecutive ranks that share rows; 1 shares nothing.
    """
    known = ALL_ATTENTION_FUNCTIONS[attention]
    plain = known.plain if isinstance(known, SequenceParallelAttention) else known
    if size > 1:
        AttentionInterface.register(
            attention, SequenceParallelAttention(plain, sequence_group(size))
        )
    elif known is not plain:
        AttentionInterface.register(attention, plain)


def sequence_group(size: int) -> dist.ProcessGroup:
    """This rank's group; consecutive ranks share rows, because their links are the fastest."""
    world_size = dist.get_world_size()
    assert world_size % size == 0, f"{world_size} ranks do not make groups of {size}"
    members = [list(range(first, first + size)) for first in range(0, world_size, size)]
    group, _ = dist.new_subgroups_by_enumeration(members)
    assert isinstance(group, dist.ProcessGroup)
    return group


class SequenceParallelAttention:
    """An attention function for rows that the ranks of a group share."""

    def __init__(self, plain: AttentionFunction, group: dist.ProcessGroup) -> None:
        self.plain = plain
        self.group = group

    def __call__(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *,
        part_lengths: Sequence[int] = (),
        **options: Any,  # noqa: ANN401 whatever the plain function takes
    ) -> tuple[Tensor, Tensor | None]:
        """Attend over the whole row.

        Args:
            module: the attention layer.
            query: [1, heads, local tokens, head_dim].
            key: [1, kv_heads, local tokens, head_dim].
            value: [1, kv_heads, local tokens, head_dim].
            attention_mask: always None where rows are shared.
            part_lengths: tokens of each rank of the group; none: the row is not shared.
            options: of the plain function; the documents' bounds are those of the whole row.

        Returns:
            [1, local tokens, heads, head_dim], and None for the attention weights.
        """
        if not part_lengths:
            return self.plain(module, query, key, value, attention_mask, **options)
        size = len(part_lengths)
        states = [query, repeat_heads(key, size), repeat_heads(value, size)]
        query, key, value = heads_for_tokens(states, part_lengths, self.group)
        output, _ = self.plain(module, query, key, value, attention_mask, **options)
        return tokens_for_heads(output, part_lengths, self.group), None


def repeat_heads(states: Tensor, size: int) -> Tensor:
    """Keys or values with at least one head for each of `size` ranks; their gradients add up.

    Args:
        states: [1, kv_heads, tokens, head_dim].
        size: a divisor or a multiple of the number of heads.
    """
    num_heads = states.shape[1]
    return states if num_heads >= size else states.repeat_interleave(size // num_heads, dim=1)


def heads_for_tokens(
    states: Sequence[Tensor], part_lengths: Sequence[int], group: dist.ProcessGroup
) -> list[Tensor]:
    """Give away other ranks' heads of the local tokens for the other tokens of this rank's heads.

    Shape letters:  S ranks of the group · T local tokens · R tokens of the row · D head_dim

    Args:
        states: queries, keys and values, each [1, heads, T, D].
        part_lengths: tokens of each rank.
        group: the ranks that share the row.

    Returns:
        each as [1, heads / S, R, D]: views of one buffer.
    """
    size, num_tokens = len(part_lengths), states[0].shape[2]
    own_heads = [part.shape[1] // size for part in states]
    blocks = [part[0].unflatten(0, (size, -1)).transpose(1, 2) for part in states]  # [S, T, own, D]
    sent = torch.cat(blocks, dim=2).flatten(0, 1)  # [S * T, all own heads, D]
    row = Exchange.apply(sent, group, [num_tokens] * size, list(part_lengths))  # [R, ...]
    return [part.transpose(0, 1)[None] for part in row.split(own_heads, dim=1)]


def tokens_for_heads(
    output: Tensor, part_lengths: Sequence[int], group: dist.ProcessGroup
) -> Tensor:
    """The way back, of attention's results.

    Args:
        output: [1, tokens of the row, own heads, head_dim].
        part_lengths: tokens of each rank.
        group: the ranks that share the row.

    Returns:
        [1, local tokens, heads, head_dim].
    """
    size, num_tokens = len(part_lengths), part_lengths[dist.get_rank(group)]
    blocks = Exchange.apply(output[0], group, list(part_lengths), [num_tokens] * size)
    return blocks.unflatten(0, (size, num_tokens)).transpose(0, 1).flatten(1, 2)[None]


class Exchange(torch.autograd.Function):
    """Send a stretch of rows to each rank of a group and receive one from each; back, gradients."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        rows: Tensor,
        group: dist.ProcessGroup,
        sent: list[int],
        received: list[int],
    ) -> Tensor:
        """Exchange rows.

        Args:
            ctx: keeps the numbers.
            rows: [sum of sent, ...].
            group: the ranks.
            sent: rows for each rank.
            received: rows from each rank.

        Returns:
            [sum of received, ...].
        """
        ctx.group, ctx.sent, ctx.received = group, sent, received
        return exchange(rows, group, sent, received)

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        """Send each row's gradient back to where the row came from."""
        return exchange(gradient, ctx.group, ctx.received, ctx.sent), None, None, None


def exchange(
    rows: Tensor, group: dist.ProcessGroup, sent: list[int], received: list[int]
) -> Tensor:
    """Rows from each rank of a group, [sum of received, ...]; every rank of it takes part.

    By way of the engine's communication, where time is measured (`parallel/collective_timers.py`).
    """
    arrived = rows.new_empty(sum(received), *rows.shape[1:])
    comm.all_to_all_single(arrived, rows.contiguous(), received, sent, group=group)
    return arrived
