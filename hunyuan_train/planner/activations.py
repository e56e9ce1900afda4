"""What forward saves for backward, tensor by tensor.

Read off torch.autograd's saved tensors of Transformers' models, without and with the engine's
expert-parallel layer; the tests count them again. A layer is the sum of the parts that it has.

"""

from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import lru_cache
from math import ceil

from hunyuan_train.config.adapters import adapted_modules
from hunyuan_train.config.resolved_run import ResolvedRun
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.families.tables import layer_rows, model_parameters, modules_of_kind
from hunyuan_train.families.tensors import EXPERT, Kind
from hunyuan_train.model.chunks import tokens_per_chunk
from hunyuan_train.planner.exchanges import can_be_skewed, weighs_inside
from hunyuan_train.planner.parameters import adapted_linears, is_trained, list_parameters

RANDOM_STATE = 5056  # of the CPU's generator, which a recomputed layer starts from again
ROW_ALIGNMENT = 8  # rows of each local expert are padded by up to this (ep_kernels.py)


@dataclass(frozen=True, slots=True)
class Saving:
    """Which parts of a layer save what, and the sizes that decide how much."""

    tokens: int
    size: int  # bytes of an element
    is_fused: bool  # norms and MLPs by Liger's kernels, which keep what they are given
    kinds: frozenset[Kind]  # of tensors that save their inputs, for their own gradients
    expert_rank: int  # rank of adapters on experts, or 0


def describe_saving(run: ResolvedRun) -> Saving:
    """Under stage 3 the engine's linear function saves its input whatever is trained."""
    model, lora = run.config.model, run.config.lora
    adapted = set(adapted_modules(lora, run.shape).values())
    inside = [one for one in model_parameters(run.shape) if one.layer is not None]
    trained = {one.kind for one in inside if is_trained(one, model, lora)}
    linear = {Kind.ATTENTION, Kind.MLP, Kind.SHARED_EXPERT, Kind.ROUTER}
    return Saving(
        tokens=run.num_tokens,
        size=run.element_bytes,
        is_fused=uses_fused_kernels(run),
        kinds=frozenset(trained | adapted | (linear if run.stage == 3 else set())),
        expert_rank=lora.lora_rank if Kind.EXPERT in adapted else 0,
    )


def uses_fused_kernels(run: ResolvedRun) -> bool:
    """Whether norms, rope and MLPs are computed by Liger's kernels (model/fused.py)."""
    return run.config.model.use_liger_kernel and run.is_on_gpu


def norm_bytes(rows: int, width: int, saving: Saving) -> int:
    """RMSNorm of [rows, width]: its input in float32, the root, and what the weight multiplies."""
    if saving.is_fused:  # its input as it came, and the root
        return rows * (saving.size * width + 4)
    return rows * (4 * width + 4 + (saving.size * width if Kind.NORM in saving.kinds else 0))


def attention_bytes(run: ResolvedRun, saving: Saving) -> int:
    """Input norm, projections, norms of queries and keys, and attention itself, of one layer."""
    shape, tokens, size = run.shape, saving.tokens, saving.size
    heads, key_heads, head = shape.num_attention_heads, shape.num_key_value_heads, shape.head_dim
    query = heads * head
    is_saved = Kind.ATTENTION in saving.kinds
    projections = size * (shape.hidden_size + query) if is_saved else 0
    # Queries, keys, values, the float32 sums of softmax, and the output before it is laid together.
    # Of rows that ranks share, a rank has all tokens of its heads, of which each has one or more.
    seen_keys = max(key_heads, run.sequence_size) * head
    attention = size * (2 * query + 2 * seen_keys) + 4 * heads
    return (
        norm_bytes(tokens, shape.hidden_size, saving)
        + norm_bytes(tokens * heads, head, saving)
        + norm_bytes(tokens * key_heads, head, saving)
        + tokens * (projections + attention)
    )


def router_bytes(run: ResolvedRun, saving: Saving) -> int:
    """The router's float32 input, its scores and choices, of one layer."""
    shape, tokens = run.shape, saving.tokens
    hidden, top_k = shape.hidden_size, shape.moe_topk
    is_pinned = saving.size == 2  # float32 beside bfloat16: its input and weight are copies
    is_saved = Kind.ROUTER in saving.kinds
    copies = 4 * hidden * (tokens + shape.num_experts) if is_pinned and is_saved else 0
    # Softmax, the sum and the normed weights in float32; int64 indices of choice and of two sorts.
    scores = tokens * (4 * shape.num_experts + 4 + 4 * top_k + 3 * 8 * top_k)
    return copies + scores


def possible_skew(run: ResolvedRun, skew: float) -> float:
    """A skew, or the most that there can be: one rank gets all rows of those that share experts."""
    return min(skew, run.expert_size) if can_be_skewed(run) else 1.0


def expert_rows(run: ResolvedRun, imbalance: float) -> int:
    """Rows that the routed experts of a rank see: `imbalance` 1 is an equal share.

    At most those of all ranks that share its experts.
    """
    rows = ceil(run.num_tokens * run.shape.moe_topk * possible_skew(run, imbalance))
    if not run.splits_experts:
        return rows
    return rows + run.shape.num_experts // run.expert_size * ROW_ALIGNMENT


def expert_bytes(run: ResolvedRun, saving: Saving, rows: int) -> int:
    """Routed experts of one layer, without what is saved to combine their outputs."""
    shape, size = run.shape, saving.size
    hidden, width = shape.hidden_size, width_of(shape, Kind.EXPERT)
    slots = saving.tokens * shape.moe_topk
    # Gate and up; and the SiLU of gate, but where split experts compute it again. With trained
    # weights also the input, and the product that goes down.
    gates = 2 if run.splits_experts else 3
    trained = hidden + width if Kind.EXPERT in saving.kinds else 0
    inner = gates * width + trained + 2 * saving.expert_rank
    # How rows were reordered, and their weights.
    order = 8 * slots if not run.splits_experts else (12 if weighs_inside(run) else 4) * rows
    return rows * size * inner + order


def combine_bytes(run: ResolvedRun) -> int:
    """What is saved of one layer to combine its experts' outputs: those, and their weights.

    Nothing where rows are weighed before the last product.
    """
    if weighs_inside(run):
        return 0
    slots = run.num_tokens * run.shape.moe_topk
    return slots * (4 + run.element_bytes * run.shape.hidden_size)


def mlp_bytes(run: ResolvedRun, saving: Saving, kind: Kind) -> int:
    """A dense MLP of one layer, or its shared expert, with the input that the whole block has.

    Gate, its SiLU and up; what goes down is kept only where that projection wants a gradient.
    """
    gates = 2 if saving.is_fused else 3
    inner = (gates + (kind in saving.kinds)) * width_of(run.shape, kind)
    return saving.tokens * saving.size * (run.shape.hidden_size + inner)


def width_of(shape: ModelShape, kind: Kind) -> int:
    """Rows of the gate projection of an MLP, or of one expert."""
    suffix = f"{EXPERT}.gate_proj.weight" if kind is Kind.EXPERT else "weight"
    return layer_rows(shape, f"{modules_of_kind(shape, kind)[0]}.{suffix}")[0].shape[0]


@lru_cache(maxsize=16)
def layers_by_kinds(shape: ModelShape) -> Counter[frozenset[Kind]]:
    """Number of layers that consist of the same kinds; layers of most models are all alike."""
    kinds: defaultdict[int, set[Kind]] = defaultdict(set)
    for one in model_parameters(shape):
        if one.layer is not None:
            kinds[one.layer].add(one.kind)
    return Counter(map(frozenset, kinds.values()))


def all_layers_bytes(run: ResolvedRun, *, imbalance: float) -> int:
    """All that the layers save when they are not recomputed."""
    saving = describe_saving(run)
    return sum(
        number * layer_bytes(run, saving, kinds, imbalance=imbalance)
        for kinds, number in layers_by_kinds(run.shape).items()
    )


def layer_bytes(
    run: ResolvedRun, saving: Saving, kinds: frozenset[Kind], *, imbalance: float
) -> int:
    """All that a layer of these kinds saves when it is not recomputed."""
    total = dense_bytes(run, saving)
    if Kind.ROUTER in kinds:
        total += moe_bytes(run, saving, imbalance=imbalance) + combine_bytes(run)
    for kind in kinds & {Kind.MLP, Kind.SHARED_EXPERT}:
        total += mlp_bytes(run, saving, kind)
    return total


def moe_bytes(run: ResolvedRun, saving: Saving, *, imbalance: float) -> int:
    """The router and the routed experts of one layer, before their outputs are combined."""
    rows = expert_rows(run, imbalance)
    return router_bytes(run, saving) + expert_bytes(run, saving, rows)


def dense_bytes(run: ResolvedRun, saving: Saving) -> int:
    """What a layer saves outside of its MLP or MoE block: attention, both norms, adapters."""
    lora = run.config.lora
    post_norm = norm_bytes(saving.tokens, run.shape.hidden_size, saving)
    # Elements between the two matrices of every linear adapter.
    rows = len(adapted_linears(run.shape, lora)) * lora.lora_rank
    return attention_bytes(run, saving) + post_norm + saving.tokens * saving.size * rows


def recomputed_bytes(run: ResolvedRun, *, imbalance: float) -> int:
    """What a layer that is computed again holds at its fullest moment, of what it saves.

    With experts that is when a gradient comes to them. A shared expert that ran last is done with
    then; one that ran before them is not (parallel/expert_layer.py). Of experts in chunks one chunk
    has been computed a third time, and the input of all is there (model/expert_microbatches.py).
    What selective recomputation had kept of the layer is a part of this by then, or done with.
    """
    saving, num_chunks = describe_saving(run), run.config.train.moe_chunks
    fullest = 0
    for kinds in layers_by_kinds(run.shape):
        if Kind.ROUTER in kinds:
            inputs = boundary_bytes(run) if num_chunks > 1 else 0
            inside = moe_bytes(run, saving, imbalance=imbalance)
            if weighs_inside(run) and Kind.SHARED_EXPERT in kinds:
                inside += mlp_bytes(run, saving, Kind.SHARED_EXPERT)
            fullest = max(fullest, inputs + ceil(inside / num_chunks))
        else:
            fullest = max(fullest, mlp_bytes(run, saving, Kind.MLP))
    return dense_bytes(run, saving) + fullest - kept_results_bytes(run)


def boundary_bytes(run: ResolvedRun) -> int:
    """What one layer keeps when it is recomputed in full: its input."""
    return run.num_tokens * run.shape.hidden_size * run.element_bytes


def selected_bytes(run: ResolvedRun) -> int:
    """What selective recomputation keeps of one layer beside its input (model/activations.py).

    Results of the products of attention, of the MLP or the shared expert, and of the router, and
    of attention itself. The layer that keeps most counts.
    """
    shape = run.shape
    query = shape.num_attention_heads * shape.head_dim
    key = shape.num_key_value_heads * shape.head_dim
    most = 0
    for kinds in layers_by_kinds(shape):
        products = 2 * query + 2 * key + shape.hidden_size
        for kind in kinds & {Kind.MLP, Kind.SHARED_EXPERT}:
            products += 2 * width_of(shape, kind) + shape.hidden_size
        # Sums of softmax, and router logits.
        float32 = shape.num_attention_heads + (shape.num_experts if Kind.ROUTER in kinds else 0)
        most = max(most, run.element_bytes * products + 4 * float32)
    return run.num_tokens * most


def kept_results_bytes(run: ResolvedRun) -> int:
    """What a layer keeps beside its input from its first run on, to take it back in its second."""
    return selected_bytes(run) if run.config.train.gradient_checkpointing == "selective" else 0


def before_bytes(run: ResolvedRun) -> int:
    """Before the first layer: ids, positions, rotations, and what a frozen embedding gives.

    That is a leaf, whose gradient autograd keeps (model/activations.py). On the device it is one of
    the layers' inputs, unless those lie in host memory.
    """
    rotations = 2 * run.element_bytes * run.shape.head_dim
    embeddings = [one for one in list_parameters(run) if one.kind is Kind.EMBEDDING]
    is_leaf = kept_on_host_bytes(run) and not any(one.is_trained for one in embeddings)
    return run.num_tokens * (8 + 8 + rotations) + (boundary_bytes(run) if is_leaf else 0)


def after_bytes(run: ResolvedRun, num_labels: int | None = None) -> int:
    """After the last layer: final norm and loss.

    Only positions with a label (default: all) go through the output layer. It saves their hidden
    states, indices, labels, weights, and the maximum and the sum of their softmax
    (model/label_losses.py).
    """
    saving, hidden = describe_saving(run), run.shape.hidden_size
    label = saving.size * hidden + 8 + 8 + 4 + 8
    num_labels = saving.tokens if num_labels is None else num_labels
    return norm_bytes(saving.tokens, hidden, saving) + num_labels * label


def kept_on_host_bytes(run: ResolvedRun) -> int:
    """Layers' inputs that lie in host memory instead of the device's."""
    if not (run.is_on_gpu and run.config.train.activation_offload):
        return 0
    return run.shape.num_hidden_layers * boundary_bytes(run)


def saved_bytes(run: ResolvedRun, *, imbalance: float = 1.0) -> int:
    """What forward leaves on the device for the layers' backward; `after_bytes` come on top.

    Args:
        run: what is trained.
        imbalance: rows that this rank's experts see over an equal share.
    """
    layers, before = run.shape.num_hidden_layers, before_bytes(run)
    recomputed = run.config.train.gradient_checkpointing
    if recomputed:
        selected = layers * kept_results_bytes(run)
        inputs = layers * (boundary_bytes(run) + RANDOM_STATE)
        inputs += kept_order_bytes(run, imbalance=imbalance)
        return before + inputs + selected - kept_on_host_bytes(run)
    inside = all_layers_bytes(run, imbalance=imbalance)
    if run.config.lora.use_lora:  # nothing before the first adapter needs a gradient
        saving = describe_saving(run)
        inside -= norm_bytes(run.num_tokens, run.shape.hidden_size, saving)
    return before + inside


def kept_order_bytes(run: ResolvedRun, *, imbalance: float) -> int:
    """Orders of rows that all layers keep from their first run on (parallel/row_order.py)."""
    if not weighs_inside(run):
        return 0
    num_layers = run.shape.num_hidden_layers - run.shape.num_dense_layers
    slots = run.num_tokens * run.shape.moe_topk
    return num_layers * (8 * slots + 4 * expert_rows(run, imbalance))


def first_bytes(run: ResolvedRun, *, imbalance: float) -> int:
    """What is left of what forward saved when backward comes to the first layer."""
    before = before_bytes(run)
    return before + (saved_bytes(run, imbalance=imbalance) - before) // run.shape.num_hidden_layers


def loss_bytes(run: ResolvedRun) -> int:
    """What the loss takes while it is computed, beside what it saves.

    Logits exist for some tokens and all words, or for all tokens and some words, in blocks of as
    many elements (model/chunks.py), in float32 and the training dtype; the gradient of the hidden
    states is summed in float32.
    """
    shape, tokens = run.shape, run.num_tokens
    block = tokens_per_chunk(tokens) * shape.vocab_size
    return (4 + run.element_bytes) * (block + tokens * shape.hidden_size)
