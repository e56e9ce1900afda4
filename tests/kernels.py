"""What stands in on a CPU for the attention kernels of GPUs, behind all that calls them.

Both take rows of documents, [tokens, heads, head_dim], and the bounds of the documents, and are
written from their documentation: https://github.com/Dao-AILab/flash-attention and
`torch.nn.attention.varlen`. Unlike the kernels they refuse what no caller here should ask for.
"""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, modeling_flash_attention_utils

from hunyuan_train.model import attention


def attend(query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, scale: float) -> Tensor:
    """Causal attention inside each document, by the formula: [tokens, heads, head_dim]."""
    assert bounds.dtype == torch.int32
    assert bounds[0] == 0
    assert bounds[-1] == len(query) == len(key) == len(value)
    num_sharing = query.shape[1] // key.shape[1]
    key, value = (part.repeat_interleave(num_sharing, dim=1) for part in (key, value))
    results = []
    for first, last in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        queries, keys, values = (part[first:last] for part in (query, key, value))
        scores = scale * torch.einsum("qhd,khd->hqk", queries, keys)
        is_later = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1)
        shares = scores.masked_fill(is_later, -torch.inf).softmax(dim=-1)
        results.append(torch.einsum("hqk,khd->qhd", shares, values))
    return torch.cat(results)


def check_documents(bounds: Tensor, other_bounds: Tensor, *longest: int) -> None:
    """Queries and keys are of the same documents, none of them longer than said."""
    assert torch.equal(bounds, other_bounds)
    assert longest == (int(bounds.diff().max()),) * 2


def flash_attn_varlen_func(  # noqa: PLR0913 the package's own signature
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
) -> Tensor:
    """As flash-attn's."""
    check_documents(cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    assert causal
    assert dropout_p == 0
    assert window_size == (-1, -1)
    assert softmax_scale is not None
    return attend(q, k, v, cu_seqlens_q, softmax_scale)


def varlen_attn(  # noqa: PLR0913 torch's own signature
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool,
) -> Tensor:
    """As torch's."""
    check_documents(cu_seq_q, cu_seq_k, max_q, max_k)
    assert window_size == (-1, 0)
    assert enable_gqa or query.shape == key.shape
    return attend(query, key, value, cu_seq_q, scale)


def stand_in_for_kernels(patch: pytest.MonkeyPatch) -> None:
    """Let torch's variable-length kernel and both flash-attn packages seem to be here."""
    functions = (None, flash_attn_varlen_func, None, None, None)
    flash_attn: dict[str, Any] = {
        "_lazy_imports": lambda *_, **__: functions,
        "_loaded_implementation": None,
    }
    for name, stand_in in flash_attn.items():
        patch.setattr(modeling_flash_attention_utils, name, stand_in)
    patch.setattr(
        PreTrainedModel,
        "_check_and_adjust_attn_implementation",
        lambda _, name, *__, **___: name,
    )
    patch.setattr(attention, "varlen_attn", varlen_attn)
