"""Attention over one row of several documents, none of which may see another.

Every batch is a single row [1, tokens] of concatenated samples. flash-attn takes the marks where
each begins (`cu_seq_lens_q`) itself, and so does torch's own kernel, on GPUs without that package.
Elsewhere torch's causal attention runs once per document: exact, no mask in memory, anywhere.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface
from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

from hunyuan_train.errors import ConfigError

PER_DOCUMENT = "per_document_sdpa"
VARIABLE_LENGTH = "torch_varlen"
FLASH_2, FLASH_3 = "flash_attention_2", "flash_attention_3"
# torch 2.10 has the kernel without scale and window, 2.11 lacks grouped heads.
VARLEN_OPTIONS = inspect.signature(varlen_attn).parameters.keys()
GROUPED_HEADS: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in VARLEN_OPTIONS else {}


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


def variable_length_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    *,
    cu_seq_lens_q: Tensor,
    max_length_q: int,
    **_: object,
) -> tuple[Tensor, None]:
    """The same in one call of torch's own flash kernel: on GPUs, in 16 bits, without dropout.

    Args:
        module: the attention layer; unused, part of Transformers' interface.
        query: [1, heads, tokens, head_dim].
        key: [1, kv_heads, tokens, head_dim].
        value: [1, kv_heads, tokens, head_dim].
        attention_mask: always None.
        scaling: factor on the scores.
        cu_seq_lens_q: [documents + 1], int32, where documents start, and the end.
        max_length_q: tokens of the longest document.

    Returns:
        [1, tokens, heads, head_dim], and None for the attention weights.
    """
    query_THD, key_THD, value_THD = (part[0].transpose(0, 1) for part in (query, key, value))
    if not GROUPED_HEADS:
        num_sharing = query.shape[1] // key.shape[1]
        key_THD = key_THD.repeat_interleave(num_sharing, dim=1)
        value_THD = value_THD.repeat_interleave(num_sharing, dim=1)
    output_THD = varlen_attn(
        query_THD,
        key_THD,
        value_THD,
        cu_seq_lens_q,
        cu_seq_lens_q,
        max_length_q,
        max_length_q,
        scale=scaling,
        window_size=(-1, 0),  # everything before, nothing behind: causal
        **GROUPED_HEADS,
    )
    assert isinstance(output_THD, Tensor)
    return output_THD[None], None


def choose_attention(use_flash_attn: bool | str, *, is_bf16: bool, dropout: float = 0.0) -> str:
    """Name the attention implementation for this machine: the fastest that keeps samples apart.

    flash-attn 3 or 2 where installed, else torch's variable-length kernel, else one call a sample.

    Args:
        use_flash_attn: True demands the package, False forbids it, "auto" takes it where it is.
        is_bf16: whether activations are bfloat16; all these kernels know 16 bits only.
        dropout: on attention weights, which only flash-attn 2 and torch's plain attention have.

    Raises:
        ConfigError: flash-attn was demanded and is not installed or there is no GPU.
    """
    packages = installed_flash_attention()
    has_gpu = torch.cuda.is_available()
    if use_flash_attn is True and not packages:
        lacking = "a GPU" if not has_gpu else "the flash-attn package (pip install flash-attn)"
        raise ConfigError(f"use_flash_attn is true, which needs {lacking}; or set it to auto")
    candidates = [] if use_flash_attn is False else packages
    if {"scale", "window_size"} <= VARLEN_OPTIONS:
        candidates = [*candidates, VARIABLE_LENGTH]
    if dropout:
        candidates = [name for name in candidates if name == FLASH_2]
    return candidates[0] if candidates and has_gpu and is_bf16 else PER_DOCUMENT


def installed_flash_attention() -> list[str]:
    """The flash-attn packages that this machine can run, by their names in Transformers."""
    found = []
    # Its version 3 is written for Hopper.
    if is_flash_attn_3_available() and torch.cuda.get_device_capability()[0] == 9:
        found.append(FLASH_3)
    if is_flash_attn_2_available():
        found.append(FLASH_2)
    return found


def describe_attention(name: str) -> str:
    """What an implementation is, for people."""
    return {
        FLASH_3: "flash-attn 3, one call for all samples of a row",
        FLASH_2: "flash-attn 2, one call for all samples of a row",
        VARIABLE_LENGTH: "torch's variable-length kernel, one call for all samples of a row",
        PER_DOCUMENT: "torch's scaled dot product, one call for each sample of a row",
    }[name]


# A mask of tokens x tokens would be built and then ignored: the documents' bounds replace it.
for _name, _function in {
    PER_DOCUMENT: per_document_attention,
    VARIABLE_LENGTH: variable_length_attention,
}.items():
    AttentionInterface.register(_name, _function)
    AttentionMaskInterface.register(_name, lambda *_, **__: None)
