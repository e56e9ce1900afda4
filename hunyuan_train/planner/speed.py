"""Bytes a rank sends, operations it does, and the time of a step that follows from them.

The model: a micro-step computes, exchanges tokens and moves layers' inputs to host memory and back
one after the other, while weights are gathered and gradients reduced beside it (`overlap_comm`);
what takes longer is what shows. Beside tokens on their way to experts the shared expert is computed
(`parallel/expert_layer.py`), which hides as much of the exchange. The update comes after.
What is computed is counted by item (`work.py`): an item takes as long as its operations or its
bytes do, whichever is more, and each of its kernels a little besides. Rates are data-sheet rates
times the shares of `machine.py`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from hunyuan_train.config.resolved_run import ResolvedRun
from hunyuan_train.families.tensors import Kind
from hunyuan_train.planner.activations import kept_on_host_bytes
from hunyuan_train.planner.crossing import crossing_weights, num_gathers
from hunyuan_train.planner.exchanges import can_be_skewed, hides_exchanges, weighs_inside
from hunyuan_train.planner.machine import (
    ATTENTION_SHARE,
    BANDWIDTH_SHARE,
    HOST_MEMORY_BANDWIDTH,
    KERNEL_SECONDS,
    GpuModel,
    Hardware,
)
from hunyuan_train.planner.parameters import list_parameters
from hunyuan_train.planner.states import updated_elements
from hunyuan_train.planner.work import Item, Part, Pass, Work, dense_parts, micro_step_work

# Of experts in a step whose speed is told: what training with a loss that balances them comes to.
USUAL_SKEW = 1.25
TOLD_SKEWS = (1.0, 2.0, 3.0)  # beside it


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes that one rank sends in one optimizer step."""

    tokens: int  # all-to-alls of expert parallelism
    heads: int  # all-to-alls around attention, of sequence parallelism
    gathers: int  # weights of ZeRO-3
    reduction: int  # gradients
    inputs: int  # of layers, to host memory and back (activation_offload)
    host: int  # to and from host memory, of an offloaded optimizer

    @property
    def total(self) -> int:
        """All of them."""
        between_ranks = self.tokens + self.heads + self.gathers + self.reduction
        return between_ranks + self.inputs + self.host


@dataclass(frozen=True, slots=True)
class Speed:
    """What one optimizer step takes, in seconds, and what it does."""

    traffic: Traffic
    flops: float  # of one rank
    items: dict[tuple[Pass, Item], float]  # seconds of what is computed
    token_seconds: float
    input_seconds: float  # of offloaded inputs of layers, copied in the computing stream
    weight_seconds: float  # gathers and reduction, hidden behind all above as far as they go
    update_seconds: float
    tokens: int  # of all ranks
    num_ranks: int

    @property
    def compute_seconds(self) -> float:
        """All that kernels take, the update's apart."""
        return sum(self.items.values())

    @property
    def seconds(self) -> float:
        """One optimizer step."""
        in_line = self.compute_seconds + self.token_seconds + self.input_seconds
        return max(in_line, self.weight_seconds) + self.update_seconds

    @property
    def tokens_per_second(self) -> float:
        """Of all ranks together."""
        return self.tokens / self.seconds

    @property
    def tokens_per_gpu(self) -> float:
        """In a second."""
        return self.tokens_per_second / self.num_ranks


def plan_speed(run: ResolvedRun, hardware: Hardware, *, imbalance: float = USUAL_SKEW) -> Speed:
    """Predict an optimizer step on GPUs.

    Args:
        run: what is trained.
        hardware: on what.
        imbalance: rows of the busiest rank's experts over an equal share, in each layer: all ranks
            wait for it.
    """
    steps = run.config.train.gradient_accumulation_steps
    traffic, gpu = plan_traffic(run), hardware.gpu
    work = micro_step_work(run, imbalance=imbalance)
    # A ring goes as fast as its slowest link, and all links of one are used at once.
    inside = (traffic.gathers + traffic.reduction) / gpu.node_bandwidth
    weight_seconds = max(inside, sum(crossing_weights(run)) / gpu.network_bandwidth)
    return Speed(
        traffic=traffic,
        flops=steps * sum(done.flops for done in work.values()),
        items={key: steps * item_seconds(key[1], done, hardware) for key, done in work.items()},
        token_seconds=exchange_seconds(
            run,
            hardware,
            imbalance=imbalance,
            token_bandwidth=link_bandwidth(run, gpu, run.expert_size),
            head_bandwidth=link_bandwidth(run, gpu, run.sequence_size),
        ),
        input_seconds=traffic.inputs / (gpu.host_bandwidth * BANDWIDTH_SHARE),
        weight_seconds=weight_seconds / BANDWIDTH_SHARE,
        update_seconds=update_seconds(run, hardware, traffic),
        tokens=steps * run.num_tokens * run.num_ranks,
        num_ranks=run.num_ranks,
    )


def exchange_seconds(
    run: ResolvedRun,
    hardware: Hardware,
    *,
    imbalance: float,
    token_bandwidth: float,
    head_bandwidth: float,
) -> float:
    """What all-to-alls of tokens and heads take in an optimizer step, over links of some speeds.

    Of the exchanges of tokens only what the shared expert does not hide.
    """
    steps = run.config.train.gradient_accumulation_steps
    skew = min(imbalance, run.expert_size) if can_be_skewed(run) else 1.0
    each = skew * exchange_bytes(run) / (token_bandwidth * BANDWIDTH_SHARE)
    hidden = sum(times * min(each, seconds) for times, seconds in hiding_seconds(run, hardware))
    tokens = num_expert_layers(run) * (num_exchanges(run) * each - hidden)
    return steps * (tokens + head_bytes(run) / (head_bandwidth * BANDWIDTH_SHARE))


def hiding_seconds(run: ResolvedRun, hardware: Hardware) -> Iterator[tuple[float, float]]:
    """How often a layer's shared expert is computed while tokens travel, and for how long."""
    if not hides_exchanges(run):
        return
    parts = list(dense_parts(run, frozenset({Kind.SHARED_EXPERT})))

    def last(works: Iterable[tuple[Part, Work]]) -> float:
        return sum(item_seconds(part.item, work, hardware) for part, work in works)

    recomputed = run.config.train.gradient_checkpointing
    again = [part for part in parts if recomputed is True or not part.is_kept]
    yield 1 + extra_passes(run), last((part, part.forward) for part in parts)
    yield num_forwards(run) - 1, last((part, part.forward) for part in again)
    yield 1, last((part, part.backward) for part in parts)


def item_seconds(item: Item, done: Work, hardware: Hardware) -> float:
    """How long work of an item takes."""
    gpu = hardware.gpu
    rate = gpu.bf16_flops * hardware.matmul_share
    if item is Item.ATTENTION:
        rate = gpu.bf16_flops * ATTENTION_SHARE
    if item is Item.FLOAT32:
        rate = gpu.float32_flops * hardware.matmul_share
    moved = done.num_bytes / (gpu.memory_bandwidth * BANDWIDTH_SHARE)
    return max(done.flops / rate, moved) + done.kernels * KERNEL_SECONDS


def link_bandwidth(run: ResolvedRun, gpu: GpuModel, group_size: int) -> float:
    """Of the links between the ranks of a group, which lies in one machine where it can."""
    in_node = group_size <= run.ranks_per_node
    return gpu.node_bandwidth if in_node else gpu.network_bandwidth


def extra_passes(run: ResolvedRun) -> float:
    """Forward passes of the MoE blocks beyond those of the rest (model/expert_microbatches.py)."""
    chunks = run.config.train.moe_chunks
    return (chunks - 1) / chunks


def plan_traffic(run: ResolvedRun) -> Traffic:
    """Bytes one rank sends in one optimizer step."""
    train = run.config.train
    steps, size = train.gradient_accumulation_steps, run.element_bytes
    gathers = reduction = 0
    for one in list_parameters(run):
        if one.num_partitions > 1:
            others = one.kept * (one.num_partitions - 1)
            gathers += num_gathers(run, one) * others * size
            reduction += steps * others * size if one.is_trained else 0
    return Traffic(
        tokens=steps * token_bytes(run),
        heads=steps * head_bytes(run),
        gathers=gathers,
        reduction=reduction,
        inputs=2 * steps * kept_on_host_bytes(run),
        host=2 * updated_elements(run) * size if run.optimizer.is_on_host else 0,
    )


def token_bytes(run: ResolvedRun) -> int:
    """Rows that a rank sends to other ranks' experts and back in a micro-step, with gradients."""
    return int(num_exchanges(run) * num_expert_layers(run) * exchange_bytes(run))


def exchange_bytes(run: ResolvedRun) -> int:
    """Rows that a rank sends to other ranks in one exchange of a layer."""
    if not run.splits_experts:
        return 0
    rows = run.num_tokens * run.shape.moe_topk * (run.expert_size - 1)
    return rows // run.expert_size * run.shape.hidden_size * run.element_bytes


def num_exchanges(run: ResolvedRun) -> float:
    """Of a layer in a micro-step: out and back, forward and again, and gradients backward.

    A run that is only for gradients may end before rows come back (parallel/row_order.py).
    """
    again = num_forwards(run) - 1
    back = 0 if weighs_inside(run) else again
    return 2 * (1 + extra_passes(run) + 1) + again + back


def num_expert_layers(run: ResolvedRun) -> int:
    """Layers that have routed experts."""
    return run.shape.num_hidden_layers - run.shape.num_dense_layers


def head_bytes(run: ResolvedRun) -> int:
    """What a rank sends around attention in a micro-step, with gradients (parallel/sequence.py)."""
    shape, size = run.shape, run.sequence_size
    key_heads = max(shape.num_key_value_heads, size)
    # Queries and results; keys and values, repeated where there are fewer heads than ranks.
    heads = 2 * shape.num_attention_heads + 2 * key_heads
    token = heads * shape.head_dim * run.element_bytes
    exchanges = shape.num_hidden_layers * (num_forwards(run) + 1)
    return exchanges * run.num_tokens * token * (size - 1) // size


def num_forwards(run: ResolvedRun) -> int:
    """Forward passes of a layer in a micro-step."""
    return 2 if run.config.train.gradient_checkpointing else 1


def update_seconds(run: ResolvedRun, hardware: Hardware, traffic: Traffic) -> float:
    """The optimizer's own time: it is bound by memory, on the GPU or, offloaded, on the host.

    On the GPU gradients are read before it for their norm, and, but for optimizers that share their
    masters, read and written to be clipped.
    """
    elements, size = updated_elements(run), run.element_bytes
    moved = run.optimizer.traffic_bytes * elements
    if not run.optimizer.is_on_host:
        clipping = (1 if run.optimizer.shares_masters else 3) * size * elements
        return (moved + clipping) / (hardware.gpu.memory_bandwidth * BANDWIDTH_SHARE)
    on_host = moved * run.ranks_per_node / HOST_MEMORY_BANDWIDTH
    return on_host + traffic.host / (hardware.gpu.host_bandwidth * BANDWIDTH_SHARE)
