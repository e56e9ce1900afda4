"""What forward saves for backward, tensor by tensor, and what one layer takes while it runs.

Read off torch.autograd's saved tensors of Transformers' `HunYuanMoEV1ForCausalLM`, without and with
the engine's expert-parallel layer; the tests count them again.

Letters: T tokens of this rank · N rows that its experts see · H hidden · I width of an expert ·
Q, V width of all query heads, of all key (or value) heads · K experts per token · E experts
"""

from dataclasses import dataclass
from math import ceil

from hunyuan_train.config.adapters import ATTENTION_NAMES, EXPERTS, target_names
from hunyuan_train.planner.layout import Layout
from hunyuan_train.planner.parameters import adapted_linears, is_trained

ROW_ALIGNMENT = 8  # rows of each local expert are padded by up to this (ep_kernels.py)


@dataclass(frozen=True, slots=True)
class Saving:
    """Which parts of a layer save what, and the sizes that decide how much."""

    tokens: int
    size: int  # bytes of an element
    norms: bool  # norm weights are trained
    attention: bool  # projections of attention save their inputs
    shared: bool
    router: bool
    experts: bool
    adapter_rows: int  # elements per token between the two matrices of all linear adapters
    expert_rank: int  # rank of adapters on experts, or 0


def describe_saving(layout: Layout) -> Saving:
    """Under stage 3 the engine's linear function saves its input whatever is trained."""
    model, lora = layout.config.model, layout.config.lora
    adapted = adapted_linears(layout.shape, lora)
    keeps = layout.stage == 3

    def trains(suffix: str) -> bool:
        return is_trained(f"model.layers.0.{suffix}", model, lora)

    adapts_experts = lora.use_lora and EXPERTS in target_names(lora)
    adapts_attention = any(name in adapted for name in ATTENTION_NAMES)
    adapts_shared = "shared_mlp.gate_proj" in adapted
    return Saving(
        tokens=layout.num_tokens,
        size=layout.element_bytes,
        norms=trains("input_layernorm.weight"),
        attention=keeps or adapts_attention or trains("self_attn.q_proj.weight"),
        shared=keeps or adapts_shared or trains("mlp.shared_mlp.gate_proj.weight"),
        router=keeps or trains("mlp.gate.wg.weight") or "gate.wg" in adapted,
        experts=trains("mlp.experts.down_proj") or adapts_experts,
        adapter_rows=len(adapted) * lora.lora_rank,
        expert_rank=lora.lora_rank if adapts_experts else 0,
    )


def norm_bytes(rows: int, width: int, saving: Saving) -> int:
    """RMSNorm of [rows, width]: its input in float32, the root, and what the weight multiplies."""
    return rows * (4 * width + 4 + (saving.size * width if saving.norms else 0))


def attention_bytes(layout: Layout, saving: Saving) -> int:
    """Input norm, projections, norms of queries and keys, and attention itself, of one layer."""
    shape, tokens, size = layout.shape, saving.tokens, saving.size
    heads, key_heads, head = shape.num_attention_heads, shape.num_key_value_heads, shape.head_dim
    query, key = heads * head, key_heads * head
    projections = size * (shape.hidden_size + query) if saving.attention else 0
    # Queries, keys, values, the float32 sums of softmax, and the output before it is laid together.
    attention = size * (2 * query + 2 * key) + 4 * heads
    return (
        norm_bytes(tokens, shape.hidden_size, saving)
        + norm_bytes(tokens * heads, head, saving)
        + norm_bytes(tokens * key_heads, head, saving)
        + tokens * (projections + attention)
    )


def router_bytes(layout: Layout, saving: Saving) -> int:
    """Post-attention norm, the router's float32 input, its scores and choices, of one layer."""
    shape, tokens = layout.shape, saving.tokens
    hidden, top_k = shape.hidden_size, shape.moe_topk
    is_pinned = saving.size == 2  # float32 beside bfloat16: its input and weight are copies
    copies = 4 * hidden * (tokens + shape.num_experts) if is_pinned and saving.router else 0
    # Softmax, the sum and the normed weights in float32; int64 indices of choice and of two sorts.
    scores = tokens * (4 * shape.num_experts + 4 + 4 * top_k + 3 * 8 * top_k)
    return norm_bytes(tokens, hidden, saving) + copies + scores


def expert_rows(layout: Layout, imbalance: float) -> int:
    """Rows that the routed experts of a rank see: `imbalance` 1 is an equal share."""
    rows = ceil(layout.num_tokens * layout.shape.moe_topk * imbalance)
    if not layout.splits_experts:
        return rows
    return rows + layout.shape.num_experts // layout.expert_size * ROW_ALIGNMENT


def expert_bytes(layout: Layout, saving: Saving, rows: int) -> int:
    """Routed experts of one layer, and what is saved to combine their outputs."""
    shape, size = layout.shape, saving.size
    hidden, width = shape.hidden_size, shape.intermediate_size
    slots = saving.tokens * shape.moe_topk
    # Gate, its SiLU, and up; with trained weights also the input, and the product that goes down.
    inner = 3 * width + (hidden + width if saving.experts else 0) + 2 * saving.expert_rank
    combine = slots * (4 + size * hidden)
    order = 4 * rows if layout.splits_experts else 8 * slots  # how rows were reordered
    return rows * size * inner + combine + order


def shared_bytes(layout: Layout, saving: Saving) -> int:
    """The shared expert of one layer; its input is that of the router and the routed experts."""
    shape = layout.shape
    inner = (4 if saving.shared else 3) * shape.intermediate_size
    return saving.tokens * saving.size * (shape.hidden_size + inner)


def layer_bytes(layout: Layout, *, imbalance: float) -> int:
    """All that one layer saves when it is not recomputed."""
    saving = describe_saving(layout)
    return (
        attention_bytes(layout, saving)
        + router_bytes(layout, saving)
        + expert_bytes(layout, saving, expert_rows(layout, imbalance))
        + shared_bytes(layout, saving)
        + saving.tokens * saving.size * saving.adapter_rows
    )


def boundary_bytes(layout: Layout) -> int:
    """All that one layer saves when it is recomputed: its input."""
    return layout.num_tokens * layout.shape.hidden_size * layout.element_bytes


def ends_bytes(layout: Layout) -> int:
    """Before the first layer and after the last: token ids, rotations, the final norm, labels."""
    shape, saving = layout.shape, describe_saving(layout)
    tokens, size = saving.tokens, saving.size
    rotations = 2 * size * shape.head_dim
    head_input = size * shape.hidden_size if saving.attention else 0
    return tokens * (8 + rotations + head_input + 8 + 4) + norm_bytes(
        tokens, shape.hidden_size, saving
    )


def saved_bytes(layout: Layout, *, imbalance: float = 1.0) -> int:
    """What forward leaves for backward, without the loss."""
    layers, hidden = layout.shape.num_hidden_layers, layout.shape.hidden_size
    if layout.config.train.gradient_checkpointing:
        return layers * boundary_bytes(layout) + ends_bytes(layout)
    inside = layers * layer_bytes(layout, imbalance=imbalance)
    if layout.config.lora.use_lora:  # nothing before the first adapter needs a gradient
        inside -= norm_bytes(layout.num_tokens, hidden, describe_saving(layout))
    return inside + ends_bytes(layout)


def dispatch_bytes(layout: Layout, *, imbalance: float) -> int:
    """What a layer's exchange of tokens holds beside what it saves, at its fullest moment.

    That is the combination: the rows sent and received, the experts' outputs before and after they
    are put back in order, and the weighted rows in float32 (auto_ep_layer.py combine_from_routed).
    """
    shape, size = layout.shape, layout.element_bytes
    slots, rows = layout.num_tokens * shape.moe_topk, expert_rows(layout, imbalance)
    exchanged = 3 * rows + slots if layout.splits_experts else rows
    return shape.hidden_size * (size * exchanged + 4 * slots)


def loss_bytes(layout: Layout) -> tuple[int, int]:
    """Saved until backward, and in all at the fullest moment, for the loss over the vocabulary.

    Logits in the training dtype, their float32 copy, and the logarithm of softmax, which alone is
    saved; backward makes as much again.
    """
    elements = layout.num_tokens * layout.shape.vocab_size
    return 4 * elements, (8 + 2 * layout.element_bytes) * elements
