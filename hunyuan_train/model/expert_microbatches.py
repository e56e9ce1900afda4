"""Runs the routed experts of a layer on one microbatch of tokens after the other, to save memory.

A token takes eight rows on its way through the experts, so they hold most of what a layer does, and
a rank that the routers favour holds that many times more. In chunks, each computed again when its
gradient is due, only one chunk's rows exist at a time. The layer is computed again as a whole, too:
all chunks but the last then run a third time (torch stops where nothing more is to be saved).
"""

from collections.abc import Callable, Iterable
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hunyuan_train.model.kept_plans import as_part, running


def chunk_experts(moe_blocks: Iterable[nn.Module], num_chunks: int) -> None:
    """Let every MoE block compute its tokens in chunks; 1 leaves it as it is.

    Args:
        moe_blocks: of a model, after the engine has split its experts, where it does.
        num_chunks: of a row's tokens, however few they are: every rank must run as many, because
            each exchanges tokens with the others. Some may be empty.
    """
    if num_chunks == 1:
        return
    for block in moe_blocks:
        block.forward = partial(run_chunks, block.forward, num_chunks)


def run_chunks(
    forward: Callable[[Tensor], Tensor], num_chunks: int, hidden_states: Tensor
) -> Tensor:
    """Apply a function of single tokens to chunks of them: [1, tokens, hidden], and so its result.

    `torch.chunk` may give fewer chunks than asked for. Chunks of `split` keep gradients of their
    own size until all are there, where those of `tensor_split` would each be as large as the whole.
    """
    num_tokens = hidden_states.shape[1]
    bounds = [index * num_tokens // num_chunks for index in range(num_chunks + 1)]
    chunks = hidden_states.split([end - start for start, end in pairwise(bounds)], dim=1)
    layer = running.get()
    plans = layer.plans if layer else {}
    results = []
    for index, chunk in enumerate(chunks):
        run = as_part(forward, plans, index)
        if torch.is_grad_enabled():
            run = partial(checkpoint, run, use_reentrant=False)
        results.append(run(chunk))
    return torch.cat(results, dim=1)
