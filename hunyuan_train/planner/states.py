"""What the engine holds for weights, gradients and optimizer, on the device and in host memory.

Every line names the code of DeepSpeed 0.19.8 or torch 2.13 that allocates it; the tests compare the
sums with the storages of real engines.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import lru_cache

from hunyuan_train.families.tables import model_parameters
from hunyuan_train.families.tensors import Kind
from hunyuan_train.planner.component import Component, Phase
from hunyuan_train.planner.layout import Layout
from hunyuan_train.planner.parameters import Parameter, list_parameters


def trained(layout: Layout) -> list[Parameter]:
    """The parameters that have gradients."""
    return [parameter for parameter in list_parameters(layout) if parameter.is_trained]


def updated_elements(layout: Layout) -> int:
    """Elements whose optimizer states this rank keeps."""
    if layout.stage == 3:
        return sum(parameter.kept for parameter in trained(layout))
    return -(-sum(parameter.total for parameter in trained(layout)) // layout.num_ranks)


def weight_bytes(layout: Layout) -> int:
    """This rank's weights, and the routers' float32 ones that stand beside bfloat16 (router.py)."""
    shape, size = layout.shape, layout.element_bytes
    parameters = list_parameters(layout)
    elements = sum(one.kept if layout.stage == 3 else one.total for one in parameters)
    routers = sum(one.numel for one in model_parameters(shape) if one.kind is Kind.ROUTER)
    return elements * size + (4 * routers if size == 2 else 0)


def kept_whole_bytes(layout: Layout) -> int:
    """Small parameters that stage 3 leaves gathered between steps."""
    threshold = layout.engine_number("stage3_param_persistence_threshold")
    small = [one for one in cut_parameters(layout) if one.numel <= threshold]
    return sum(one.kept * one.num_partitions for one in small) * layout.element_bytes


def gathered_bytes(layout: Layout) -> int:
    """Larger parameters gathered at one time: up to the engine's limit, or one module if larger."""
    threshold = layout.engine_number("stage3_param_persistence_threshold")
    large = [one for one in cut_parameters(layout) if one.numel > threshold]
    if not large:
        return 0
    experts = sum(one.numel for one in large if one.kind is Kind.EXPERT)
    largest = max(experts, *(one.numel for one in large))
    limit = max(layout.engine_number("stage3_max_live_parameters"), largest)
    return min(sum(one.total for one in large), limit) * layout.element_bytes


def cut_parameters(layout: Layout) -> list[Parameter]:
    """Parameters of which stage 3 leaves this rank only a part; experts of one group are whole."""
    if layout.stage < 3:
        return []
    return [one for one in list_parameters(layout) if one.num_partitions > 1]


def gradient_bytes(layout: Layout) -> int:
    """The gradients that a rank keeps until the update, in the training dtype.

    Under stage 2 a gradient that reaches beyond the rank's range is kept whole, because the range
    is a view of it (stage_1_and_2.py get_flat_partition); this is the rank that keeps most.
    """
    elements = updated_elements(layout)
    if layout.stage < 3:
        elements = max(overlapping_elements(layout, rank) for rank in range(layout.num_ranks))
    return elements * layout.element_bytes


def overlapping_elements(layout: Layout, rank: int) -> int:
    """Elements of the trained parameters that a rank's range of all matrices or vectors touches."""
    touched = 0
    for is_vector in (False, True):
        members = [one for one in in_model_order(trained(layout)) if one.is_vector == is_vector]
        share = -(-sum(one.numel for one in members) // layout.num_ranks)
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


def optimizer_bytes(layout: Layout) -> int:
    """Master weights and optimizer states of this rank, wherever they live."""
    optimizer = layout.optimizer
    if not optimizer.shares_masters:
        return optimizer.kept(updated_elements(layout)).total
    # Each parameter is a flat tensor of its own, so that each has blocks and padding of its own.
    num_parts = layout.num_ranks if layout.stage < 3 else 1  # stage 2 cuts what it updates
    return sum(
        one.count * optimizer.kept(-(-one.partition // num_parts), is_exact=one.is_exact).total
        for one in trained(layout)
    )


def bucket_bytes(layout: Layout) -> int:
    """The engine's buffer that gradients are reduced from; on CPU only what is written is real."""
    elements = layout.engine_number("reduce_bucket_size")
    if not layout.is_on_gpu:
        elements = min(elements, sum(one.total for one in trained(layout)))
    # Stage 2 fills one buffer while the other is on its way.
    num_buffers = 2 if layout.stage == 2 and layout.engine.get("overlap_comm") else 1
    return num_buffers * elements * layout.element_bytes


def gradients_in_flight_bytes(layout: Layout) -> int:
    """The largest gradient that backward makes, and the copy that is reduced from."""
    largest = max((one.numel for one in trained(layout)), default=0)
    bucket = min(
        layout.engine_number("reduce_bucket_size"), sum(one.total for one in trained(layout))
    )
    return (largest + max(largest, bucket)) * layout.element_bytes


def sub_groups(layout: Layout) -> tuple[int, ...]:
    """Elements of each piece that the optimizer is given at once."""
    if layout.stage < 3:
        return (updated_elements(layout),)
    return cut_sub_groups(tuple(trained(layout)), layout.engine_number("sub_group_size"))


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


def update_bytes(layout: Layout) -> int:
    """What the optimizer step takes beside the states, on the device."""
    optimizer = layout.optimizer
    if optimizer.is_on_host:
        return 0
    size, elements = layout.element_bytes, max(sub_groups(layout))
    temporaries = optimizer.temporary_bytes(elements, layout.is_on_gpu)
    if optimizer.shares_masters:
        return temporaries  # gradients are used where they lie
    float32_copy = 4 if size == 2 else 0
    return (size + float32_copy) * elements + temporaries


def device_states(layout: Layout) -> Iterator[Component]:
    """Lines of the plan for weights, gradients, optimizer and the engine's buffers."""
    yield Component(
        "weights", weight_bytes(layout), Phase.ALWAYS,
        "this rank's part of every parameter (partition_parameters.py), and float32 routers",
    )  # fmt: skip
    if layout.stage == 3:
        yield Component(
            "small weights kept whole", kept_whole_bytes(layout), Phase.ALWAYS,
            "parameters up to stage3_param_persistence_threshold stay gathered",
        )  # fmt: skip
        yield Component(
            "gathered weights", gathered_bytes(layout), Phase.BACKWARD,
            "parameters in use or prefetched, up to stage3_max_live_parameters",
        )  # fmt: skip
    if not layout.optimizer.is_on_host:
        yield Component(
            "gradients", gradient_bytes(layout), Phase.ALWAYS,
            "one buffer in the training dtype (stage3.py grad_partitions_flat_buffer)",
        )  # fmt: skip
        yield Component(
            "optimizer", optimizer_bytes(layout), Phase.ALWAYS,
            "master weights and states (stage3.py fp32_partitioned_groups_flat)",
        )  # fmt: skip
    yield Component(
        "engine buckets", bucket_bytes(layout), Phase.ALWAYS,
        "reduce_bucket_size elements that gradients are collected in (stage3.py ipg_buckets)",
    )  # fmt: skip
    yield Component(
        "gradients in flight", gradients_in_flight_bytes(layout), Phase.BACKWARD,
        "the largest gradient and the copy it is reduced from (reduce_scatter_coalesced)",
    )  # fmt: skip
    yield Component(
        "update", update_bytes(layout), Phase.STEP,
        f"float32 temporaries of the elements worked on at once ({layout.optimizer.code})"
        if layout.optimizer.shares_masters
        else "gradients of the largest sub-group (sub_group_size) joined, and in float32 "
        "(stage3.py _prepare_fp32_grad_for_sub_group)",
    )  # fmt: skip


def pinned(num_bytes: int, layout: Layout) -> int:
    """Page-locked bytes: torch rounds a block up to a power of two (CachingHostAllocator.h)."""
    section = layout.engine.get("offload_optimizer") or {}
    if not (layout.is_on_gpu and section.get("pin_memory", False) and num_bytes):
        return num_bytes
    return 1 << (num_bytes - 1).bit_length()


def host_states(layout: Layout) -> Iterator[Component]:
    """Lines of the plan for what an offloaded optimizer keeps in host memory, of one rank."""
    if not layout.optimizer.is_on_host:
        return
    elements = updated_elements(layout)
    yield Component(
        "optimizer", optimizer_bytes(layout), Phase.ALWAYS,
        f"float32 master weights and states ({layout.optimizer.code})",
    )  # fmt: skip
    yield Component(
        "gradients, pinned", pinned(elements * layout.element_bytes, layout), Phase.ALWAYS,
        "one buffer in the training dtype (stage3.py grad_partitions_flat_buffer)",
    )  # fmt: skip
    pieces = sum(pinned(4 * piece, layout) for piece in sub_groups(layout))
    yield Component(
        "float32 gradients, pinned", pieces, Phase.ALWAYS,
        "one buffer a sub-group (stage3.py initialize_optimizer_states)",
    )  # fmt: skip
