"""Rows of a family's table of tensors that more than one family has.

All of them have the same layers but for the block behind attention: an MLP, or routed experts.
"""

from collections.abc import Callable

from hunyuan_train.families.shape import ModelShape
from hunyuan_train.families.tensors import Kind, StoredTensor

NORMS_OF_HEADS = ("query_layernorm", "key_layernorm")


def table_of(
    shape: ModelShape,
    block_rows: Callable[[str, int], list[StoredTensor]],
    *,
    norms: tuple[str, str] = NORMS_OF_HEADS,
) -> list[StoredTensor]:
    """Every tensor, in the order of Transformers' model.

    Args:
        shape: of the model.
        block_rows: given the released name of the block behind attention, and its layer.
        norms: of queries and of keys.
    """
    rows = embedding_rows(shape)
    for layer in range(shape.num_hidden_layers):
        prefix = f"model.layers.{layer}"
        rows += layer_rows(shape, prefix, block_rows(f"{prefix}.mlp", layer), norms=norms)
    return [*rows, *outer_rows(shape)]


def layer_rows(
    shape: ModelShape, prefix: str, block: list[StoredTensor], *, norms: tuple[str, str]
) -> list[StoredTensor]:
    """A layer around its block."""
    attention = attention_rows(shape, f"{prefix}.self_attn", norms=norms)
    return [*attention, *block, *norm_rows(shape, prefix)]


def embedding_rows(shape: ModelShape) -> list[StoredTensor]:
    """What lies before the first layer."""
    size = (shape.vocab_size, shape.hidden_size)
    return [StoredTensor("model.embed_tokens.weight", size, Kind.EMBEDDING)]


def mlp_rows(
    shape: ModelShape, module: str, kind: Kind, *, width: int | None = None
) -> list[StoredTensor]:
    """A gated MLP: of a dense layer, a shared expert, or each routed one."""
    hidden, width = shape.hidden_size, width or shape.intermediate_size
    sizes = {"gate_proj": (width, hidden), "up_proj": (width, hidden), "down_proj": (hidden, width)}
    return [StoredTensor(f"{module}.{name}.weight", size, kind) for name, size in sizes.items()]


def attention_rows(shape: ModelShape, module: str, *, norms: tuple[str, str]) -> list[StoredTensor]:
    """Projections of attention, and the norms of queries and keys."""
    hidden = shape.hidden_size
    query = shape.num_attention_heads * shape.head_dim
    key_value = shape.num_key_value_heads * shape.head_dim
    sizes = {
        "q_proj": (query, hidden),
        "k_proj": (key_value, hidden),
        "v_proj": (key_value, hidden),
        "o_proj": (hidden, query),
    }
    rows = []
    for name, size in sizes.items():
        rows.append(StoredTensor(f"{module}.{name}.weight", size, Kind.ATTENTION))
        if shape.attention_bias:
            rows.append(StoredTensor(f"{module}.{name}.bias", size[:1], Kind.ATTENTION))
    return rows + [
        StoredTensor(f"{module}.{name}.weight", (shape.head_dim,), Kind.HEAD_NORM) for name in norms
    ]


def norm_rows(shape: ModelShape, layer: str) -> list[StoredTensor]:
    """The two norms of a layer's hidden states."""
    return [
        StoredTensor(f"{layer}.{name}.weight", (shape.hidden_size,), Kind.NORM)
        for name in ("input_layernorm", "post_attention_layernorm")
    ]


def outer_rows(shape: ModelShape) -> list[StoredTensor]:
    """What lies behind the last layer; tied output weights are not stored."""
    rows = [StoredTensor("model.norm.weight", (shape.hidden_size,), Kind.NORM)]
    if not shape.tie_word_embeddings:
        size = (shape.vocab_size, shape.hidden_size)
        rows.append(StoredTensor("lm_head.weight", size, Kind.HEAD))
    return rows
