"""What one layer takes at its fullest moments, while it runs, runs again, and has its backward."""

from math import ceil

from hunyuan_train.config.resolved_run import ResolvedRun
from hunyuan_train.families.tensors import Kind
from hunyuan_train.planner.activations import (
    boundary_bytes,
    combine_bytes,
    dense_bytes,
    describe_saving,
    expert_rows,
    kept_on_host_bytes,
    kept_results_bytes,
    moe_bytes,
    recomputed_bytes,
    uses_fused_kernels,
    width_of,
)
from hunyuan_train.planner.exchanges import weighs_inside
from hunyuan_train.planner.frozen_experts import dequantised_bytes
from hunyuan_train.planner.parameters import list_parameters
from hunyuan_train.planner.states import chunk_gradients_bytes, moved_gradient_bytes


def entered_bytes(run: ResolvedRun, *, imbalance: float) -> int:
    """What a layer holds on GPUs when the gradient of its split experts' outputs has come.

    That gradient, the gradient of the layer's output, and what it has saved: if rows are weighed
    inside, its second run or that of a chunk is still to come. Of experts in chunks, one chunk's,
    and the gradients of weights that chunks have added up. This is when the engine gathers the
    experts again, if other ranks have parts of them. In a dense layer it is the gradient of what
    goes down, before the engine frees what it has gathered for the second run.
    """
    if not run.is_on_gpu or (run.shape.num_experts and not run.splits_experts):
        return 0
    is_again = bool(run.config.train.gradient_checkpointing)  # otherwise among the activations
    saved = recomputed_bytes(run, imbalance=imbalance) if is_again else 0
    if not run.shape.num_experts:
        width = width_of(run.shape, Kind.MLP)
        return saved + run.num_tokens * width * run.element_bytes + boundary_bytes(run)
    if is_again and weighs_inside(run):
        is_cut = run.config.train.moe_chunks > 1
        saved = dense_bytes(run, describe_saving(run)) + boundary_bytes(run) if is_cut else 0
    rows = expert_rows(run, imbalance) * run.shape.hidden_size * run.element_bytes
    own = ceil(rows / run.config.train.moe_chunks) + boundary_bytes(run)
    return saved + own + chunk_gradients_bytes(run)


def again_bytes(run: ResolvedRun, *, imbalance: float) -> int:
    """What a layer holds in its second run on GPUs, when split experts have just run.

    All that it has saved by then; the gradient of the layer's output, the sum before the MLP, and
    the shared expert's output or the MLP's input; and rows of experts (`again_rows_bytes`). Of
    experts in chunks see `chunk_again_bytes`.
    """
    if not (run.splits_experts and run.is_on_gpu):
        return 0
    if run.config.train.moe_chunks > 1:
        return recomputed_bytes(run, imbalance=imbalance) + chunk_again_bytes(
            run, imbalance=imbalance
        )
    passing = again_rows_bytes(run, expert_rows(run, imbalance))
    return recomputed_bytes(run, imbalance=imbalance) + passing + 3 * boundary_bytes(run)


def again_rows_bytes(run: ResolvedRun, rows: int) -> int:
    """What rows of split experts hold at the end of these' second run, beside what they save.

    Where rows are weighed inside, gradients of outputs have come before the run begins, which ends
    before the last product: frozen experts also hold their input and what goes down. The last
    product of quantised ones saves nothing and has had its backward, so there is the gradient of
    what goes down instead of that of outputs. Their adapters' gradients need both, and gate and up
    are there twice while what adapters make of them is added. Otherwise there are outputs before
    and after they are put back in order, and the input of frozen experts, or what quantised ones
    hold in their last product (`working_bytes`).
    """
    hidden, width = run.shape.hidden_size, width_of(run.shape, Kind.EXPERT)
    row = rows * run.element_bytes
    is_saved = Kind.EXPERT in describe_saving(run).kinds
    is_plain = run.config.model.expert_weights == "bf16"
    if not weighs_inside(run):
        plain = (2 if is_saved else 3) * hidden * row
        return max(plain, working_bytes(run, rows) + dequantised_bytes(run))
    if is_plain:
        return (hidden if is_saved else 2 * hidden + width) * row
    if is_saved:  # what goes down is saved, and is still to come
        return (hidden + 2 * width) * row + dequantised_bytes(run)
    return (hidden + width) * row + max(width * row, dequantised_bytes(run))


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
    if weighs_inside(run):  # gradients of outputs have come before it begins
        rows = expert_rows(run, imbalance) * run.shape.hidden_size * run.element_bytes
        beside += ceil(rows / num_chunks)
    return running_bytes(run, imbalance=imbalance) + beside - saved


def norm_gradient_bytes(run: ResolvedRun) -> int:
    """What a recomputed layer holds in the backward of the norm before its MLP.

    What it has saved before, five float32 gradients of [tokens, hidden] (of the product, the mean
    and the square), and that of the layer's output. All that the MLP or the experts have saved is
    done with, and so are gradients that chunks have added to.
    """
    dense = dense_bytes(run, describe_saving(run)) - kept_results_bytes(run)
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

    With split experts see `split_dispatch_bytes`. Others weigh rows in float32: there are gradients
    of what was weighed, of outputs, and of weights before their sum.
    """
    if run.splits_experts:
        return split_dispatch_bytes(run, expert_rows(run, imbalance))
    shape, chunks, boundary = run.shape, run.config.train.moe_chunks, boundary_bytes(run)
    slots, rows = run.num_tokens * shape.moe_topk, expert_rows(run, imbalance)
    on_cpu = run.element_bytes * rows + 4 * slots
    weighing = shape.hidden_size * (12 * slots if run.is_on_gpu else on_cpu)
    inside = gate_gradients_bytes(run) if not shape.num_experts else 0
    return ceil((weighing + weighed_bytes(run)) / chunks) + max(2 * boundary, boundary + inside)


def weighed_bytes(run: ResolvedRun) -> int:
    """What a recomputed layer has saved to combine its experts' outputs."""
    is_again = bool(run.config.train.gradient_checkpointing)  # otherwise among the activations
    return combine_bytes(run) if is_again and run.shape.num_experts else 0


def split_dispatch_bytes(run: ResolvedRun, rows: int) -> int:
    """What passes through a layer of split experts: the fullest of several moments.

    One is when rows are put in order: they, or their gradients, before and after that (or the
    base's outputs and the adapter's), and the gradient of the layer's output. A rank that gets far
    more than an equal share is fullest then, or among the gradients of the experts' inner tensors.
    Where outputs are weighed behind the experts, there is the gradient of that: what was saved to
    combine, two products of rows in float32 and the gradient that they are of (auto_ep_layer.py
    combine_from_routed). Quantised experts whose last product is made in this moment, and not
    before it, are fullest then (`working_bytes`). On the way of a gradient to an optimizer in host
    memory, experts are done with gate, up and what goes down (`moved_gradient_bytes`). Of experts
    in chunks there are those of one chunk, whose own second run is among the moments.
    """
    shape, size, chunks = run.shape, run.element_bytes, run.config.train.moe_chunks
    hidden, width, slots = shape.hidden_size, width_of(shape, Kind.EXPERT), rows_sent(run)
    boundary, is_inside = boundary_bytes(run), weighs_inside(run)
    is_again = bool(run.config.train.gradient_checkpointing)
    working = 0 if is_again and is_inside else working_bytes(run, rows)
    outputs = max(2 * size * rows * hidden, working)
    products = 4 * (2 * slots + run.num_tokens) * hidden
    weighing = 0 if is_inside else products + weighed_bytes(run)
    again = again_rows_bytes(run, rows) if chunks > 1 and is_again and is_inside else 0
    moving = 0
    if moved := moved_gradient_bytes(run):
        inside = ceil(size * rows * (hidden - 2 * width) / chunks)
        moving = moved + largest_expert(run) * size + inside + boundary
    return max(
        moving,
        ceil(outputs / chunks) + boundary,
        *(
            ceil(one / chunks) + 2 * boundary
            for one in (gradient_rows_bytes(run, rows), weighing, again)
        ),
    )


def rows_sent(run: ResolvedRun) -> int:
    """Rows of a rank's own tokens, one for each expert of each."""
    return run.num_tokens * run.shape.moe_topk


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
