"""What a GPU does in a micro-step, by item: operations, bytes that kernels move, and kernels.

Products follow from sizes. What kernels of a part read and write was counted by a rehearsal for
each of its elements (`rehearsal/work.py`), which counts again in `tests/rehearsal/test_waits.py`.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum
from functools import lru_cache

from hunyuan_train.config.freezing import VOCABULARY
from hunyuan_train.config.resolved_run import ResolvedRun
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.families.tables import ModelParameter, model_parameters
from hunyuan_train.families.tensors import Kind
from hunyuan_train.model.compression_scheme import Scheme
from hunyuan_train.planner.activations import (
    describe_saving,
    expert_rows,
    layers_by_kinds,
    width_of,
)
from hunyuan_train.planner.exchanges import weighs_inside
from hunyuan_train.planner.frozen_experts import num_pieces, quantised_as
from hunyuan_train.planner.gathered import copied_elements
from hunyuan_train.planner.parameters import (
    Parameter,
    adapted_linears,
    is_trained,
    list_parameters,
)
from hunyuan_train.planner.states import reduced, trained


class Item(Enum):
    """What work is for."""

    EXPERTS = "products of experts"
    DENSE = "dense products"
    FLOAT32 = "products in float32"
    ATTENTION = "attention"
    NORMS = "norms"
    ROPE = "rope"
    HEADS = "layout of heads"
    GATES = "SwiGLU"
    ROWS = "rows to experts and back"
    ROUTING = "choosing experts"
    SUMS = "residual sums"
    ADAPTERS = "adapters"
    CODES = "experts from codes"
    ZERO = "ZeRO's copies"
    LOSS = "logits and loss"
    UPDATE = "update"
    OTHER = "rest"


@dataclass(slots=True)
class Work:
    """So many kernels, which read and write so many bytes and do so many operations."""

    kernels: int = 0
    num_bytes: int = 0
    flops: int = 0

    def add(self, other: "Work", times: float = 1) -> None:
        """Do the other too, so many times."""
        self.kernels += round(times * other.kernels)
        self.num_bytes += round(times * other.num_bytes)
        self.flops += round(times * other.flops)


class Pass(Enum):
    """When work is done in a micro-step."""

    FORWARD = "forward"
    AGAIN = "again"  # of layers that are computed again
    BACKWARD = "backward"


@dataclass(frozen=True, slots=True)
class Part:
    """What one layer does for an item in its forward pass and in its backward pass."""

    item: Item
    forward: Work
    backward: Work
    is_of_experts: bool = False  # which run once more in chunks
    is_of_chunks: bool = False  # the same in each chunk, however few tokens it has
    is_kept: bool = False  # whether selective recomputation keeps its results
    is_last: bool = False  # behind the last result that backward needs: never computed again


StepWork = dict[tuple[Pass, Item], Work]


def micro_step_work(run: ResolvedRun, *, imbalance: float) -> StepWork:
    """All that a rank's GPU does in a micro-step, by pass and item; not the update.

    Args:
        run: what is trained.
        imbalance: rows that this rank's experts get over an equal share.
    """
    found: defaultdict[tuple[Pass, Item], Work] = defaultdict(Work)
    recomputed, chunks = run.config.train.gradient_checkpointing, run.config.train.moe_chunks
    for kinds, number in layers_by_kinds(run.shape).items():
        for part in layer_parts(run, kinds, imbalance):
            is_again = recomputed is True or (recomputed == "selective" and not part.is_kept)
            is_again = is_again and not part.is_last
            # Chunks are computed again one by one, too, but for the last (expert_microbatches.py).
            again = float(is_again) + (part.is_of_experts * (chunks - 1) / chunks)
            each = number * (chunks if part.is_of_chunks else 1)
            found[Pass.FORWARD, part.item].add(part.forward, each)
            found[Pass.AGAIN, part.item].add(part.forward, each * again)
            found[Pass.BACKWARD, part.item].add(part.backward, each)
    for part in (*outer_parts(run), *engine_parts(run)):
        found[Pass.FORWARD, part.item].add(part.forward)
        found[Pass.BACKWARD, part.item].add(part.backward)
    return dict(found)


def moving(each: float, elements: int, kernels: int) -> Work:
    """Work of kernels that move so many bytes an element."""
    return Work(kernels, round(each * elements), 0)


def multiplying(inputs: int, outputs: int, rows: int, size: int, weights: int = 1) -> Work:
    """A product of [rows, inputs] with so many [inputs, outputs], each row with one of them."""
    num_bytes = size * (rows * (inputs + outputs) + weights * inputs * outputs)
    return Work(1, num_bytes, 2 * rows * inputs * outputs)


def times(work: Work, number: float) -> Work:
    """The same, so many times."""
    result = Work()
    result.add(work, number)
    return result


def layer_parts(run: ResolvedRun, kinds: frozenset[Kind], imbalance: float) -> Iterator[Part]:
    """The parts of a layer that has tensors of these kinds."""
    shape, tokens, saving = run.shape, run.num_tokens, describe_saving(run)
    hidden = tokens * shape.hidden_size
    query = tokens * shape.num_attention_heads * shape.head_dim
    key = tokens * shape.num_key_value_heads * shape.head_dim
    yield norm_part(run, 2 * hidden + query + key, 4)
    if saving.is_fused:  # each once in and once out
        turned = moving(2 * saving.size, query + key, 1)
        yield Part(Item.ROPE, turned, turned)
        # The norms of heads want theirs laid together, and rope their gradients.
        laid = moving(2 * saving.size, query + key, 2)
        yield Part(Item.NORMS, laid, laid)
        yield Part(Item.HEADS, Work(), laid)
    else:
        yield Part(Item.ROPE, moving(20.2, query + key, 10), moving(16.2, query + key, 8))
    yield Part(Item.SUMS, moving(6, hidden, 1), Work())
    num_last = 1 + (Kind.SHARED_EXPERT in kinds)
    yield Part(Item.SUMS, moving(6 * num_last, hidden, num_last), Work(), is_last=True)
    # Gradients of what several projections read, and of parts of tensors.
    yield Part(Item.OTHER, Work(), moving(71, hidden, 23))
    seen = run.config.data.max_seq_length // 2  # causal: on average, of a row of one document
    scores = Work(1, run.element_bytes * 2 * (query + key), 4 * query * seen)
    yield Part(Item.ATTENTION, scores, times(scores, 2.5), is_kept=True)
    yield from dense_parts(run, kinds)
    if Kind.ROUTER in kinds:
        yield from expert_parts(run, imbalance)


def norm_part(run: ResolvedRun, elements: int, number: int) -> Part:
    """So many norms of as many elements in all."""
    saving = describe_saving(run)
    if saving.is_fused:  # gradients of weights come by the way, and are summed
        forward = moving(2 * saving.size, elements, number)
        return Part(Item.NORMS, forward, moving(3 * saving.size, elements, 3 * number))
    weighing = 8 if Kind.NORM in saving.kinds else 0  # bytes, for the weights' gradients
    backward = moving(84.1 + weighing, elements, (14 + weighing // 4) * number)
    return Part(Item.NORMS, moving(36.1, elements, 8 * number), backward)


def dense_parts(run: ResolvedRun, kinds: frozenset[Kind]) -> Iterator[Part]:
    """Projections of attention, MLPs and shared experts of a layer, and adapters of all these."""
    model, lora = run.config.model, run.config.lora
    tokens, size, rank = run.num_tokens, run.element_bytes, run.config.lora.lora_rank
    adapted = {f"{one.name}.weight" for one in adapted_linears(run.shape, lora)}
    for one in layer_matrices(run.shape):
        if one.kind not in kinds:
            continue
        outputs, inputs = one.shape
        product = multiplying(inputs, outputs, tokens, size)
        num_backward = 1 + is_trained(one, model, lora)
        yield Part(Item.DENSE, product, times(product, num_backward), is_kept=True)
        if one.name_in_layer in adapted:
            yield from adapter_parts(inputs, outputs, rank, tokens, size)
    for kind in kinds & {Kind.MLP, Kind.SHARED_EXPERT}:
        gates = tokens * width_of(run.shape, kind)
        if describe_saving(run).is_fused:
            yield Part(Item.GATES, moving(3 * size, gates, 1), moving(5 * size, gates, 1))
        else:
            yield Part(Item.GATES, moving(10, gates, 2), moving(18, gates, 3))


def adapter_parts(
    inputs: int, outputs: int, rank: int, rows: int, size: int, experts: int = 1
) -> Iterator[Part]:
    """Both products of an adapter, which are scaled and added to the projection's."""
    narrow = multiplying(inputs, rank, rows, size, experts)
    narrow.add(multiplying(rank, outputs, rows, size, experts))
    is_of_experts = experts > 1
    item = Item.EXPERTS if is_of_experts else Item.DENSE
    yield Part(item, narrow, times(narrow, 2), is_of_experts=is_of_experts)
    added = rows * outputs
    if is_of_experts:  # scaled where they are narrow, and added in place
        # Backward lays gradients of gate and up together, and sums those of rows.
        scaled = moving(2 * size, rows * rank, 1)
        forward, backward = moving(6, added, 1), moving(6, added, 1)
        forward.add(scaled)
        backward.add(scaled)
    else:
        forward, backward = moving(10, added, 2), moving(4, added, 1)
        # The sum of gradients of what the projection and its adapter both read.
        yield Part(Item.OTHER, Work(), moving(3 * size, rows * inputs, 1))
    yield Part(Item.ADAPTERS, forward, backward, is_of_experts=is_of_experts)


@lru_cache(maxsize=16)
def layer_matrices(shape: ModelShape) -> tuple[ModelParameter, ...]:
    """The matrices of layers outside of routers and routed experts, each of one layer."""
    kinds = (Kind.ATTENTION, Kind.MLP, Kind.SHARED_EXPERT)
    found = {
        one.name_in_layer: one
        for one in model_parameters(shape)
        if one.layer is not None and one.kind in kinds and len(one.shape) == 2
    }
    return tuple(found.values())


def expert_parts(run: ResolvedRun, imbalance: float) -> Iterator[Part]:
    """The router, rows on their way, and the routed experts of a layer."""
    shape, tokens, size = run.shape, run.num_tokens, run.element_bytes
    hidden, width = shape.hidden_size, width_of(shape, Kind.EXPERT)
    rows = expert_rows(run, imbalance)
    local, scheme = shape.num_experts // run.expert_size, quantised_as(run)
    router = multiplying(hidden, shape.num_experts, tokens, 4)
    yield Part(Item.FLOAT32, router, times(router, 2), is_of_experts=True)
    chosen = tokens * hidden
    yield Part(Item.ROUTING, moving(6.8, chosen, 17), moving(6.6, chosen, 13), is_of_experts=True)
    yield from row_parts(run, rows)
    num_backward = 1 + any(one.kind is Kind.EXPERT and one.is_trained for one in base(run))
    for inputs, outputs in ((hidden, width), (hidden, width), (width, hidden)):
        is_last = inputs == width and weighs_inside(run)
        product = multiplying(inputs, outputs, rows, size, local)
        backward = times(product, num_backward)
        yield Part(Item.EXPERTS, product, backward, is_of_experts=True, is_last=is_last)
        if scheme:
            for part in decoding_parts(run, scheme, inputs, outputs, rows):
                yield replace(part, is_last=is_last)
    if rank := describe_saving(run).expert_rank:
        yield from adapter_parts(hidden, 2 * width, rank, rows, size, local)
        yield from adapter_parts(width, hidden, rank, rows, size, local)
    gates = moving(3 * size, rows * width, 1)
    gradients = moving(5 * size, rows * width, 1)
    summed = moving(3 * size, rows * hidden, 1)  # gradients of what gate and up both read
    yield Part(Item.GATES, gates, gradients, is_of_experts=True)
    yield Part(Item.OTHER if rank or scheme else Item.GATES, Work(), summed, is_of_experts=True)


def row_parts(run: ResolvedRun, rows: int) -> Iterator[Part]:
    """Rows on their way: taken by token, put in order by expert, and back, and summed by token.

    All by kernels that move each row once in and once out. One way's gradients go the other way.
    """
    size, hidden, tokens = run.element_bytes, run.shape.hidden_size, run.num_tokens
    slots = tokens * run.shape.moe_topk
    taken, summed, ordered = 2 * slots, slots + tokens, 2 * rows
    there, back = size * (taken + ordered), size * (ordered + summed)
    if weighs_inside(run):
        out = Part(Item.ROWS, moving(there, hidden, 31), moving(back, hidden, 5))
        home = Part(Item.ROWS, moving(back, hidden, 8), moving(there, hidden, 5), is_last=True)
    else:  # outputs are read to weigh their gradients; gradients of tokens are added up in place
        out = Part(Item.ROWS, moving(there, hidden, 38), moving(back + size * taken, hidden, 3))
        read = there + size * tokens + size * slots
        home = Part(Item.ROWS, moving(back, hidden, 4), moving(read, hidden, 2))
    yield replace(out, is_of_experts=True)
    yield replace(home, is_of_experts=True)


def decoding_parts(
    run: ResolvedRun, scheme: Scheme, inputs: int, outputs: int, rows: int
) -> Iterator[Part]:
    """What a projection of experts takes beside its product, if its weights are made of codes."""
    local, size = run.shape.num_experts // run.expert_size, run.element_bytes
    codes = local * scheme.num_bytes(outputs, inputs, scale_bytes=size)
    forward, backward = num_pieces(run, outputs, inputs)
    # One kernel a piece (model/decoding_kernel.py). Backward takes the same codes otherwise cut.
    moved = codes + size * local * inputs * outputs
    decoded = Work(forward, moved), Work(backward, moved)
    yield Part(Item.CODES, *decoded, is_of_experts=True, is_of_chunks=True)
    # Every piece reads all rows, and its product is laid beside the others.
    read = (
        moving(size, (forward - 1) * rows * inputs, forward - 1),
        moving(size, (backward - 1) * rows * outputs, backward - 1),
    )
    laid = (
        moving(2 * size, rows * outputs, forward) if forward > 1 else Work(),
        moving(2 * size, rows * inputs, backward) if backward > 1 else Work(),
    )
    yield Part(Item.EXPERTS, *read, is_of_experts=True)
    yield Part(Item.CODES, *laid, is_of_experts=True)


def base(run: ResolvedRun) -> list[Parameter]:
    """The parameters of the model itself, without adapters."""
    return [one for one in list_parameters(run) if "lora_" not in one.name]


def outer_parts(run: ResolvedRun) -> Iterator[Part]:
    """What comes once: the last norm, the output layer and its loss; the embedding looks up."""
    shape, tokens, size = run.shape, run.num_tokens, run.element_bytes
    hidden, logits = tokens * shape.hidden_size, tokens * shape.vocab_size
    yield norm_part(run, hidden, 1)
    head = multiplying(shape.hidden_size, shape.vocab_size, tokens, size)
    is_trained_here = any(one.kind in VOCABULARY and one.is_trained for one in base(run))
    # Logits are made again in backward, block by block (model/label_losses.py).
    yield Part(Item.DENSE, head, times(head, 2 + is_trained_here))
    yield Part(Item.LOSS, moving(24, logits, 59), moving(30.4, logits, 100))


def engine_parts(run: ResolvedRun) -> Iterator[Part]:
    """Copies of ZeRO: gathered weights taken out of buffers, gradients on their way."""
    size, gradients = run.element_bytes, 0
    steps = run.config.train.gradient_accumulation_steps
    collected = {one.name for one in reduced(run)}
    for one in trained(run):
        if one.name not in collected:  # scaled to their place, later added (own_gradients.py)
            gradients += round((3 - 1 / steps) * size) * one.total
        elif one.num_partitions == 1:  # into the bucket, divided, scaled, and to their place
            gradients += 8 * size * one.total
        elif one.in_layers:  # into the bucket, divided, laid in rows for the ranks
            gradients += 6 * size * one.total
        else:  # of the vocabulary: a sum of both its uses, zeros, divided
            gradients += 6 * size * one.total
    layers = run.shape.num_hidden_layers
    copied_forward, copied_backward = copied_elements(run)
    forward = moving(2 * size, copied_forward, 13 * layers)
    backward = moving(2 * size, copied_backward, 3 * layers)
    backward.add(moving(1, gradients, 45 * layers if gradients else 0))
    yield Part(Item.ZERO, forward, backward)
