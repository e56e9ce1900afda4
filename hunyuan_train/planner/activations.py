"""What forward saves for backward, tensor by tensor, and what one layer takes while it runs.

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
from hunyuan_train.planner.exchanges import can_be_skewed, hides_exchanges, weighs_inside
from hunyuan_train.planner.frozen_experts import dequantised_bytes
from hunyuan_train.planner.parameters import adapted_linears, is_trained, list_parameters
from hunyuan_train.planner.states import chunk_gradients_bytes

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

    With experts that is when the gradient comes to their weighted sum. A shared expert that ran
    last is done with then; one that ran while tokens travelled is not. Of experts in chunks one
    chunk has been computed a third time, and the input of all is there
    (model/expert_microbatches.py).
    """
    saving, num_chunks = describe_saving(run), run.config.train.moe_chunks
    fullest = 0
    for kinds in layers_by_kinds(run.shape):
        if Kind.ROUTER in kinds:
            inputs = boundary_bytes(run) if num_chunks > 1 else 0
            inside = moe_bytes(run, saving, imbalance=imbalance)
            if hides_exchanges(run) and Kind.SHARED_EXPERT in kinds:
                inside += mlp_bytes(run, saving, Kind.SHARED_EXPERT)
            fullest = max(fullest, inputs + ceil(inside / num_chunks))
        else:
            fullest = max(fullest, mlp_bytes(run, saving, Kind.MLP))
    return dense_bytes(run, saving) + fullest


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
        selected = layers * selected_bytes(run) if recomputed == "selective" else 0
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


def entered_bytes(run: ResolvedRun, *, imbalance: float) -> int:
    """What a layer holds on GPUs when the gradient of its split experts' outputs has come.

    What it has saved, that gradient, and the gradient of the layer's output; of experts in chunks,
    one chunk's, and the gradients of weights that chunks have added up. This is when the engine
    gathers the experts again, if other ranks have parts of them. In a dense layer it is the
    gradient of what goes down, before the engine frees what it has gathered for the second run.
    """
    if not run.is_on_gpu or (run.shape.num_experts and not run.splits_experts):
        return 0
    is_again = bool(run.config.train.gradient_checkpointing)  # otherwise among the activations
    saved = recomputed_bytes(run, imbalance=imbalance) if is_again else 0
    if not run.shape.num_experts:
        width = width_of(run.shape, Kind.MLP)
        return saved + run.num_tokens * width * run.element_bytes + boundary_bytes(run)
    rows = expert_rows(run, imbalance) * run.shape.hidden_size * run.element_bytes
    own = ceil(rows / run.config.train.moe_chunks) + boundary_bytes(run)
    return saved + own + chunk_gradients_bytes(run)


def again_bytes(run: ResolvedRun, *, imbalance: float) -> int:
    """What a layer holds in its second run on GPUs, when split experts have just run.

    All that it has saved by then; the rows of experts before and after they are put back in order,
    unless it ends before the last product, and their input, which trained experts save; and the
    gradient of the layer's output, the sum before the MLP, and the shared expert's output or the
    MLP's input. Of experts in chunks see `chunk_again_bytes`, of quantised ones `working_bytes`.
    """
    if not (run.splits_experts and run.is_on_gpu):
        return 0
    if run.config.train.moe_chunks > 1:
        return recomputed_bytes(run, imbalance=imbalance) + chunk_again_bytes(
            run, imbalance=imbalance
        )
    saving, rows = describe_saving(run), expert_rows(run, imbalance)
    num_rows = 0 if Kind.EXPERT in saving.kinds else 1
    num_rows += 0 if weighs_inside(run) else 2
    passing = num_rows * rows * run.shape.hidden_size * run.element_bytes
    if working := working_bytes(run, rows):
        passing = working + dequantised_bytes(run)
    return recomputed_bytes(run, imbalance=imbalance) + passing + 3 * boundary_bytes(run)


def chunk_again_bytes(run: ResolvedRun, *, imbalance: float) -> int:
    """What a chunk of experts holds in the layer's second run, beside `recomputed_bytes`.

    Nothing of it is saved: it runs as in a forward pass (`running_bytes`). There are also the
    gradient of the layer's output, the sum before the MLP, results of the chunks before (torch
    stops before the last one's), and the layer's input where it came from host memory.
    """
    num_chunks = run.config.train.moe_chunks
    saved = ceil(moe_bytes(run, describe_saving(run), imbalance=imbalance) / num_chunks)
    boundary = boundary_bytes(run)
    inputs = 1 if kept_on_host_bytes(run) else 0
    beside = (2 + inputs) * boundary + (num_chunks - 2) * boundary // num_chunks
    return running_bytes(run, imbalance=imbalance) + beside - saved


def norm_gradient_bytes(run: ResolvedRun) -> int:
    """What a recomputed layer holds in the backward of the norm before its MLP.

    What it has saved before, five float32 gradients of [tokens, hidden] (of the product, the mean
    and the square), and that of the layer's output. All that the MLP or the experts have saved is
    done with, and so are gradients that chunks have added to.
    """
    dense = dense_bytes(run, describe_saving(run))
    temporaries = 0 if uses_fused_kernels(run) else 5 * 4 * run.num_tokens * run.shape.hidden_size
    return dense + temporaries + boundary_bytes(run)


def running_bytes(run: ResolvedRun, *, imbalance: float) -> int:
    """What experts hold on GPUs while their last product is made and nothing is saved.

    Their input and output, gate, up and what goes down: the engine's functions hold each until they
    return. Where experts are adapted, the adapter's output lies beside the base's, to be added.
    """
    if not (run.shape.num_experts and run.is_on_gpu):
        return 0
    shape, size, rows = run.shape, run.element_bytes, expert_rows(run, imbalance)
    width = width_of(shape, Kind.EXPERT)
    num_outputs = 2 if describe_saving(run).expert_rank else 1
    plain = size * rows * ((1 + num_outputs) * shape.hidden_size + 3 * width)
    if working := working_bytes(run, rows):  # which is done with gate and up when it makes the last
        arriving = working - size * rows * (2 * shape.hidden_size + width)
        gates = arriving + size * rows * (shape.hidden_size + 3 * width)
        plain = max(gates, working + dequantised_bytes(run))
    # Transformers' own function weighs outputs in float32, and puts those in order.
    whole = 0 if run.splits_experts else (2 * size + 2 * 4) * rows * shape.hidden_size
    return ceil(max(plain, whole) / run.config.train.moe_chunks)


def gradient_rows_bytes(run: ResolvedRun, rows: int) -> int:
    """Gradients of the three inner tensors of split experts on GPUs, in their backward.

    What goes down has been saved where weights are trained, and is done with then; the gradient of
    its weight is there instead.
    """
    if not run.is_on_gpu:
        return 0
    shape, size = run.shape, run.element_bytes
    width = width_of(shape, Kind.EXPERT)
    is_trained = Kind.EXPERT in describe_saving(run).kinds
    inner = (2 if is_trained else 3) * width
    if weighs_inside(run):  # the last product's: of its result, and of what went in
        inner = max(inner, shape.hidden_size + width)
    return size * rows * inner + largest_expert(run) * size


def largest_expert(run: ResolvedRun) -> int:
    """Elements of the largest trained parameter of one layer's experts on this rank."""
    experts = (one for one in list_parameters(run) if one.kind is Kind.EXPERT and one.is_trained)
    return max((one.numel for one in experts), default=0)


def dispatch_bytes(run: ResolvedRun, *, imbalance: float) -> int:
    """What passes through a layer, beside what it saves until its experts are done.

    With split experts the fullest of several moments. One is when rows are put in order: they, or
    their gradients, before and after that (or the base's outputs and the adapter's), and the
    gradient of the layer's output. A rank that gets far more than an equal share is fullest then,
    or among the gradients of the experts' inner tensors. Where outputs are weighed behind the
    experts, there is the gradient of that: what was saved to combine, two products of rows in
    float32 and the gradient that they are of (auto_ep_layer.py combine_from_routed). Of experts in
    chunks there are those of one chunk. Quantised experts are fullest while their last product is
    made (`working_bytes`).
    """
    shape, size, chunks = run.shape, run.element_bytes, run.config.train.moe_chunks
    slots, rows = run.num_tokens * shape.moe_topk, expert_rows(run, imbalance)
    boundary = boundary_bytes(run)
    is_again = bool(run.config.train.gradient_checkpointing)  # otherwise among the activations
    saved = combine_bytes(run) if is_again and shape.num_experts else 0
    if not run.splits_experts:
        # In float32: gradients of what was weighed, of outputs, and of weights before their sum.
        weighing = shape.hidden_size * (12 * slots if run.is_on_gpu else size * rows + 4 * slots)
        inside = gate_gradients_bytes(run) if not shape.num_experts else 0
        return ceil((weighing + saved) / chunks) + max(2 * boundary, boundary + inside)
    outputs = max(2 * size * rows * shape.hidden_size, working_bytes(run, rows))
    products = 4 * (2 * slots + run.num_tokens) * shape.hidden_size
    weighing = 0 if weighs_inside(run) else products + saved
    inner = gradient_rows_bytes(run, rows)
    return max(
        ceil(outputs / chunks) + boundary,
        ceil(inner / chunks) + 2 * boundary,
        ceil(weighing / chunks) + 2 * boundary,
    )


def gate_gradients_bytes(run: ResolvedRun) -> int:
    """Gradients inside of a dense MLP: of what goes down, and of both that it is the product of.

    What goes down has been counted, where it is saved, and is done with then. Liger's kernel lays
    two of them where gate and up were.
    """
    saving = describe_saving(run)
    number = (1 if saving.is_fused else 3) - (Kind.MLP in saving.kinds)
    return number * saving.size * saving.tokens * width_of(run.shape, Kind.MLP)


def working_bytes(run: ResolvedRun, rows: int) -> int:
    """What passes through quantised experts without adapters while they make their last product.

    Their input, what goes down, and the output: none of these is saved, and each is still held by
    the function that made it. So is the input before it was put in order, unless other ranks sent
    it (auto_ep_layer.py).
    """
    shape, size = run.shape, run.element_bytes
    is_saved = Kind.EXPERT in describe_saving(run).kinds
    if run.config.model.expert_weights == "bf16" or is_saved:
        return 0
    arriving = 0 if run.expert_size > 1 else run.num_tokens * shape.moe_topk
    inside = rows * (2 * shape.hidden_size + width_of(shape, Kind.EXPERT))
    return size * (inside + arriving * shape.hidden_size)


def loss_bytes(run: ResolvedRun) -> int:
    """What the loss takes while it is computed, beside what it saves.

    Logits exist for some tokens and all words, or for all tokens and some words, in blocks of as
    many elements (model/chunks.py), in float32 and the training dtype; the gradient of the hidden
    states is summed in float32.
    """
    shape, tokens = run.shape, run.num_tokens
    block = tokens_per_chunk(tokens) * shape.vocab_size
    return (4 + run.element_bytes) * (block + tokens * shape.hidden_size)
