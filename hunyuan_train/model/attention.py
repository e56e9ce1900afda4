"""Attention over one row of several documents, none of which may see another.

Every batch is a single row [1, tokens] of concatenated samples. flash-attn takes the marks where
each begins (`cu_seq_lens_q`) itself. Where it is absent this module runs torch's causal
attention once per document: exact, no mask in memory, on CPU and GPU.
"""

import importlib.util
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from hunyuan_train.config.errors import ConfigError

PER_DOCUMENT = "per_document_sdpa"


def per_document_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    *,
    document_lengths: Sequence[int],
    **_: object,
) -> tuple[Tensor, None]:
    """Causal attention inside each document.

    Args:
        module: the attention layer; unused, part of Transformers' interface.
        query: [1, heads, tokens, head_dim].
        key: [1, kv_heads, tokens, head_dim].
        value: [1, kv_heads, tokens, head_dim].
        attention_mask: always None here: the documents' bounds say all that a mask could.
        scaling: factor on the scores.
        dropout: on the attention weights.
        document_lengths: tokens of each document; numbers, not a tensor, because reading one would
            wait for the device in every layer.

    Returns:
        [1, tokens, heads, head_dim], and None for the attention weights.
    """
    lengths = list(document_lengths)
    documents = [
        functional.scaled_dot_product_attention(
            *parts, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=True
        )
        for parts in zip(
            query.split(lengths, dim=2),
            key.split(lengths, dim=2),
            value.split(lengths, dim=2),
            strict=True,
        )
    ]
    return torch.cat(documents, dim=2).transpose(1, 2), None


def choose_attention(use_flash_attn: bool | str, *, is_bf16: bool) -> str:
    """Name the attention implementation for this machine.

    Raises:
        ConfigError: flash-attn was demanded and is not installed or there is no GPU.
    """
    is_installed = importlib.util.find_spec("flash_attn") is not None
    has_gpu = torch.cuda.is_available()
    if use_flash_attn is True and not (is_installed and has_gpu):
        lacking = "a GPU" if not has_gpu else "the flash-attn package (pip install flash-attn)"
        raise ConfigError(f"use_flash_attn is true, which needs {lacking}; or set it to auto")
    # Its kernels know 16 bits only; a float32 run takes torch's.
    if use_flash_attn is not False and is_installed and has_gpu and is_bf16:
        return "flash_attention_2"
    return PER_DOCUMENT


# A mask of tokens x tokens would be built and then ignored: the documents' bounds replace it.
AttentionInterface.register(PER_DOCUMENT, per_document_attention)
AttentionMaskInterface.register(PER_DOCUMENT, lambda *_, **__: None)
