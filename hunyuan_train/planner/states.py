"""What the engine holds for weights, gradients and optimizer, on the device and in host memory.

Every line names the code of DeepSpeed 0.19.8 or torch 2.13 that allocates it; the tests compare the
sums with the storages of real engines.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import lru_cache

from hunyuan_train.config.resolved_run import ResolvedRun
from hunyuan_train.families.tables import model_parameters
from hunyuan_train.families.tensors import Kind
from hunyuan_train.planner.component import Component, Phase, gigabytes
from hunyuan_train.planner.frozen_experts import code_bytes
from hunyuan_train.planner.parameters import Parameter, list_parameters

NORM_ELEMENTS = 250_000_000  # whose norm the engine computes at once (_constant_buffered_norm2)


def trained(run: ResolvedRun) -> list[Parameter]:
    """The parameters that have gradients."""
    return [parameter for parameter in list_parameters(run) if parameter.is_trained]


def updated_elements(run: ResolvedRun) -> int:
    """Elements whose optimizer states this rank keeps."""
    if run.stage == 3:
        return sum(parameter.kept for parameter in trained(run))
    return -(-sum(parameter.total for parameter in trained(run)) // run.num_ranks)


def weight_bytes(run: ResolvedRun) -> int:
    """This rank's weights, codes of experts, and float32 routers beside bfloat16 (router.py)."""
    shape, size = run.shape, run.element_bytes
    parameters = list_parameters(run)
    elements = sum(one.kept if run.stage == 3 else one.total for one in parameters)
    routers = sum(one.numel for one in model_parameters(shape) if one.kind is Kind.ROUTER)
    return elements * size + (4 * routers if size == 2 else 0) + code_bytes(run)


def kept_whole_bytes(run: ResolvedRun) -> int:
    """Small parameters that stage 3 leaves gathered between steps."""
    threshold = run.zero_number("stage3_param_persistence_threshold")
    small = [one for one in cut_parameters(run) if one.numel <= threshold]
    return sum(one.kept * one.num_partitions for one in small) * run.element_bytes


def large_parameters(run: ResolvedRun) -> list[Parameter]:
    """Parameters that are gathered where they are used."""
    threshold = run.zero_number("stage3_param_persistence_threshold")
    return [one for one in cut_parameters(run) if one.numel > threshold]


def cut_parameters(run: ResolvedRun) -> list[Parameter]:
    """Parameters of which stage 3 leaves this rank only a part; experts of one group are whole."""
    if run.stage < 3:
        return []
    return [one for one in list_parameters(run) if one.num_partitions > 1]


def gradient_bytes(run: ResolvedRun) -> int:
    """The gradients that a rank keeps until the update, in the training dtype.

    Under stage 2 a gradient that reaches beyond the rank's range is kept whole, because the range
    is a view of it (stage_1_and_2.py get_flat_partition); this is the rank that keeps most.
    """
    elements = updated_elements(run)
    if run.stage < 3:
        elements = max(overlapping_elements(run, rank) for rank in range(run.num_ranks))
    return elements * run.element_bytes


def overlapping_elements(run: ResolvedRun, rank: int) -> int:
    """Elements of the trained parameters that a rank's range of all matrices or vectors touches."""
    touched = 0
    for is_vector in (False, True):
        members = [one for one in in_model_order(trained(run)) if one.is_vector == is_vector]
        share = -(-sum(one.numel for one in members) // run.num_ranks)
        start = 0
        for one in members:
            is_touched = start < (rank + 1) * share and start + one.numel > rank * share
            touched += one.numel if is_touched else 0
            start += one.numel
    return touched


def in_model_order(members: Sequence[Parameter]) -> list[Parameter]:
    """Parameters one by one: those before the layers, layer after layer, those behind."""
    outside = [one for one in members if not one.in_layers]
    before = [one for one in outside if one.kind is Kind.EMBEDDING]
    behind = [one for one in outside if one.kind is not Kind.EMBEDDING]
    inside = [one for one in members if one.in_layers]
    layers = range(max((one.count for one in inside), default=0))
    return [*before, *(one for layer in layers for one in inside if layer < one.count), *behind]


def optimizer_bytes(run: ResolvedRun) -> int:
    """Master weights and optimizer states of this rank, wherever they live."""
    optimizer = run.optimizer
    if not optimizer.shares_masters:
        kept = optimizer.kept(updated_elements(run))
        return kept.states if updates_float32_weights(run) else kept.total
    # Each parameter is a flat tensor of its own, so that each has blocks and padding of its own.
    num_parts = run.num_ranks if run.stage < 3 else 1  # stage 2 cuts what it updates
    return sum(
        one.count * optimizer.kept(-(-one.partition // num_parts), is_exact=one.is_exact).total
        for one in trained(run)
    )


def updates_float32_weights(run: ResolvedRun) -> bool:
    """Whether float32 weights are their own masters (parallel/shared_masters.py)."""
    return run.stage == 3 and run.element_bytes == 4 and not run.optimizer.is_on_host


def reduced(run: ResolvedRun) -> list[Parameter]:
    """Trained parameters whose gradients the engine collects, to reduce them over ranks.

    The others are whole on this rank, and theirs are added up at once (parallel/own_gradients.py).
    """
    if run.stage < 3 or run.optimizer.is_on_host:
        return trained(run)
    return [one for one in trained(run) if one.num_partitions > 1]


def bucket_bytes(run: ResolvedRun) -> int:
    """The engine's buffer that gradients are reduced from; on CPU only what is written is real."""
    collected = sum(one.total for one in reduced(run))
    elements = run.zero_number("reduce_bucket_size") if collected else 0
    if not run.is_on_gpu:
        elements = min(elements, collected)
    # Stage 2 fills one buffer while the other is on its way.
    num_buffers = 2 if run.stage == 2 and run.zero_section.get("overlap_comm") else 1
    return num_buffers * elements * run.element_bytes


def gradients_in_flight_bytes(run: ResolvedRun) -> int:
    """Gradients that wait to be reduced: that of the output layer is the first, and the last.

    It is larger than the engine's bucket and waits until that is emptied. So do whole experts of
    a layer, which are not split. Under stage 2 the copy that is reduced from lies beside the
    largest. Where nothing is reduced, there is only the gradient.
    """
    largest, size = largest_gradient(run), run.element_bytes
    if run.splits_experts or not reduced(run):
        return largest * size
    if run.stage == 3:
        bucket = run.zero_number("reduce_bucket_size")
        waiting = [one for one in trained(run) if one.numel > bucket]
        outside = max((one.numel for one in waiting if not one.in_layers), default=0)
        inside = sum(one.numel for one in waiting if one.in_layers)
        return max(outside + inside, largest) * size
    bucket = min(run.zero_number("reduce_bucket_size"), sum(one.total for one in reduced(run)))
    return (largest + max(largest, bucket)) * size


def chunk_gradients_bytes(run: ResolvedRun) -> int:
    """Gradients of one layer's experts, which all chunks of tokens add to, and the newest to add.

    Experts in one chunk have theirs when the layer holds little else.
    """
    if run.config.train.moe_chunks == 1 or not run.splits_experts:
        return 0
    experts = [one.numel for one in trained(run) if one.kind is Kind.EXPERT]
    return (sum(experts) + max(experts, default=0)) * run.element_bytes


def moved_gradient_bytes(run: ResolvedRun) -> int:
    """What a gradient of experts takes on its way to an optimizer in host memory, beside itself.

    This rank's part of it, a copy, and as many elements in float64, for the norm, as the engine
    takes at once (stage3.py partition_grads, _constant_buffered_norm2).
    """
    if not run.optimizer.is_on_host:
        return 0
    experts = (one.partition for one in trained(run) if one.kind is Kind.EXPERT)
    elements = max(experts, default=0)
    return 2 * elements * run.element_bytes + 8 * min(elements, NORM_ELEMENTS)


def largest_gradient(run: ResolvedRun) -> int:
    """Elements of the largest parameter that has a gradient."""
    return max((one.numel for one in trained(run)), default=0)


def last_gradients_bytes(run: ResolvedRun) -> int:
    """The embedding, its gradient, the output layer's, and the copy that is reduced from.

    On one GPU the embedding is not gathered, and the copy is the sum of both gradients.
    """
    if run.stage < 3 or (run.shape.num_experts and not run.splits_experts):
        return 0
    embeddings = [one for one in trained(run) if one.kind is Kind.EMBEDDING]
    is_tied = not any(one.kind is Kind.HEAD for one in list_parameters(run))
    has_two = is_tied or any(one.kind is Kind.HEAD for one in trained(run))
    return sum(
        (2 + has_two + (one.num_partitions > 1)) * one.numel * run.element_bytes
        for one in embeddings
    )


def sub_groups(run: ResolvedRun) -> tuple[int, ...]:
    """Elements of each piece that the optimizer is given at once."""
    if run.stage < 3:
        return (updated_elements(run),)
    return cut_sub_groups(tuple(trained(run)), run.zero_number("sub_group_size"))


@lru_cache(maxsize=64)
def cut_sub_groups(members: tuple[Parameter, ...], limit: int) -> tuple[int, ...]:
    """Cut parameters into pieces as stage 3 does (stage3.py _create_fp16_sub_groups).

    A piece is closed by the parameter that makes it reach the limit. Matrices and vectors, and
    parameters that other ranks share, are never in one piece.
    """
    groups: dict[tuple[bool, int], list[int]] = defaultdict(lambda: [0])
    for one in in_model_order(members):
        pieces = groups[one.is_vector, one.num_partitions]
        if pieces[-1] >= limit:
            pieces.append(0)
        pieces[-1] += one.partition
    return tuple(piece for pieces in groups.values() for piece in pieces)


def update_bytes(run: ResolvedRun) -> int:
    """What the optimizer step takes beside the states, on the device."""
    optimizer = run.optimizer
    if optimizer.is_on_host:
        return 0
    size, elements = run.element_bytes, max(sub_groups(run))
    temporaries = optimizer.temporary_bytes(elements, run.is_on_gpu)
    if optimizer.shares_masters:  # gradients are used where they lie; their norm is float32
        return max(temporaries, 4 * max((one.partition for one in trained(run)), default=0))
    # Under stage 3 they lie side by side already (parallel/own_gradients.py).
    joined = 0 if run.stage == 3 else size
    float32_copy = 4 if size == 2 else 0
    return (joined + float32_copy) * elements + temporaries


def device_states(run: ResolvedRun) -> Iterator[Component]:
    """Lines of the plan for weights, gradients, optimizer and the engine's buffers."""
    codes = code_bytes(run)
    yield Component(
        "weights", weight_bytes(run), Phase.ALWAYS,
        "this rank's part of every parameter (partition_parameters.py)"
        + (", and float32 routers" if run.shape.num_experts else "")
        + (f", and {gigabytes(codes)} of experts' codes" if codes else ""),
    )  # fmt: skip
    if run.stage == 3:
        yield Component(
            "small weights kept whole", kept_whole_bytes(run), Phase.ALWAYS,
            "parameters up to stage3_param_persistence_threshold stay gathered",
        )  # fmt: skip
    if not run.optimizer.is_on_host:
        yield Component(
            "gradients", gradient_bytes(run), Phase.ALWAYS,
            "one buffer in the training dtype (stage3.py grad_partitions_flat_buffer)",
        )  # fmt: skip
        yield Component(
            "optimizer", optimizer_bytes(run), Phase.ALWAYS,
            "master weights and states (stage3.py fp32_partitioned_groups_flat)",
        )  # fmt: skip
    yield Component(
        "engine buckets", bucket_bytes(run), Phase.ALWAYS,
        "reduce_bucket_size elements that gradients are collected in (stage3.py ipg_buckets)",
    )  # fmt: skip
    yield Component(
        "gradients in flight", gradients_in_flight_bytes(run), Phase.BACKWARD,
        "the largest gradient, which waits to be reduced (stage3.py ipg_buckets)",
    )  # fmt: skip
    if summed := chunk_gradients_bytes(run):
        yield Component(
            "gradients of chunks", summed, Phase.LAYER,
            "of one layer's experts, which all chunks add to (model/expert_microbatches.py)",
        )  # fmt: skip
    if last := last_gradients_bytes(run):
        yield Component(
            "embedding's gradient", last, Phase.END,
            "that of the output layer, their weight and the copy that is reduced from",
        )  # fmt: skip
    yield Component(
        "update", update_bytes(run), Phase.STEP,
        f"float32 temporaries of the elements worked on at once ({run.optimizer.code})"
        if run.optimizer.shares_masters
        else "gradients of the largest sub-group (sub_group_size) in float32 "
        "(stage3.py _prepare_fp32_grad_for_sub_group)",
    )  # fmt: skip


def pinned(num_bytes: int, run: ResolvedRun) -> int:
    """Page-locked bytes: torch rounds a block up to a power of two (CachingHostAllocator.h)."""
    section = run.zero_section.get("offload_optimizer") or {}
    if not (run.is_on_gpu and section.get("pin_memory", False) and num_bytes):
        return num_bytes
    return 1 << (num_bytes - 1).bit_length()


def host_states(run: ResolvedRun) -> Iterator[Component]:
    """Lines of the plan for what an offloaded optimizer keeps in host memory, of one rank."""
    if not run.optimizer.is_on_host:
        return
    elements = updated_elements(run)
    yield Component(
        "optimizer", optimizer_bytes(run), Phase.ALWAYS,
        f"float32 master weights and states ({run.optimizer.code})",
    )  # fmt: skip
    yield Component(
        "gradients, pinned", pinned(elements * run.element_bytes, run), Phase.ALWAYS,
        "one buffer in the training dtype (stage3.py grad_partitions_flat_buffer)",
    )  # fmt: skip
    pieces = sum(pinned(4 * piece, run) for piece in sub_groups(run))
    yield Component(
        "float32 gradients, pinned", pieces, Phase.ALWAYS,
        "one buffer a sub-group (stage3.py initialize_optimizer_states)",
    )  # fmt: skip
