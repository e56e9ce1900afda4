"""Bytes a rank sends, operations it does, and the time of a step that follows from them.

The model: a micro-step computes, exchanges tokens and moves layers' inputs to host memory and back
one after the other, while weights are gathered and gradients reduced beside it (`overlap_comm`);
what takes longer is what shows. The update comes after. Rates are data-sheet rates times the shares
of `machine.py`.
"""

from dataclasses import dataclass

from hunyuan_train.config.resolved_run import ResolvedRun
from hunyuan_train.families.tables import count_kind, count_parameters
from hunyuan_train.families.tensors import Kind
from hunyuan_train.planner.activations import all_layers_bytes, kept_on_host_bytes
from hunyuan_train.planner.crossing import crossing_weights
from hunyuan_train.planner.machine import (
    BANDWIDTH_SHARE,
    HOST_MEMORY_BANDWIDTH,
    GpuModel,
    Hardware,
)
from hunyuan_train.planner.parameters import list_parameters
from hunyuan_train.planner.states import updated_elements

# A layer's saved bytes are written and read forward, and read with as many gradients backward.
TOUCHES_OF_SAVED = 4


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
    compute_seconds: float
    token_seconds: float
    input_seconds: float  # of offloaded inputs of layers, copied in the computing stream
    weight_seconds: float  # gathers and reduction, hidden behind all above as far as they go
    update_seconds: float
    tokens: int  # of all ranks

    @property
    def seconds(self) -> float:
        """One optimizer step."""
        in_line = self.compute_seconds + self.token_seconds + self.input_seconds
        return max(in_line, self.weight_seconds) + self.update_seconds

    @property
    def tokens_per_second(self) -> float:
        """Of all ranks together."""
        return self.tokens / self.seconds


def plan_speed(run: ResolvedRun, hardware: Hardware) -> Speed:
    """Predict an optimizer step on GPUs."""
    steps = run.config.train.gradient_accumulation_steps
    traffic, gpu = plan_traffic(run), hardware.gpu
    flops = steps * micro_step_flops(run)
    saved = all_layers_bytes(run, imbalance=1.0)
    passes = TOUCHES_OF_SAVED + (2 if run.config.train.gradient_checkpointing else 0)
    compute = flops / (gpu.bf16_flops * hardware.matmul_share)
    compute += steps * passes * saved / (gpu.memory_bandwidth * BANDWIDTH_SHARE)
    # A ring goes as fast as its slowest link, and all links of one are used at once.
    inside = (traffic.gathers + traffic.reduction) / gpu.node_bandwidth
    weight_seconds = max(inside, sum(crossing_weights(run)) / gpu.network_bandwidth)
    exchange_seconds = (
        traffic.tokens / link_bandwidth(run, gpu, run.expert_size)
        + traffic.heads / link_bandwidth(run, gpu, run.sequence_size)
    )  # fmt: skip
    return Speed(
        traffic=traffic,
        flops=flops,
        compute_seconds=compute,
        token_seconds=exchange_seconds / BANDWIDTH_SHARE,
        input_seconds=traffic.inputs / (gpu.host_bandwidth * BANDWIDTH_SHARE),
        weight_seconds=weight_seconds / BANDWIDTH_SHARE,
        update_seconds=update_seconds(run, hardware, traffic),
        tokens=steps * run.num_tokens * run.num_ranks,
    )


def link_bandwidth(run: ResolvedRun, gpu: GpuModel, group_size: int) -> float:
    """Of the links between the ranks of a group, which lies in one machine where it can."""
    in_node = group_size <= run.ranks_per_node
    return gpu.node_bandwidth if in_node else gpu.network_bandwidth


def extra_passes(run: ResolvedRun) -> float:
    """Forward passes of the MoE blocks beyond those of the rest (model/expert_microbatches.py)."""
    chunks = run.config.train.moe_chunks
    return (chunks - 1) / chunks


def micro_step_flops(run: ResolvedRun) -> float:
    """Operations of one rank: two for each weight and token, for each product it takes part in.

    Forward is one product; backward has one for the gradient of the input, and one for that of the
    weight where it is trained. Recomputation repeats forward: all layers in full, or selectively
    the routed experts alone; experts in chunks a second time. Attention is causal: a token sees
    half of its row on average, in two products forward and four backward.
    """
    shape, recomputed = run.shape, run.config.train.gradient_checkpointing
    counts, embedding = count_parameters(shape), shape.vocab_size * shape.hidden_size
    # An embedding is looked up, not multiplied; where it is tied, its weight is that of the head.
    weights = counts.active - (0 if shape.tie_word_embeddings else embedding)
    experts = counts.active - counts.dense
    repeated = {False: 0, True: weights - embedding, "selective": experts}[recomputed]
    chunked = experts + count_kind(shape, Kind.SHARED_EXPERT)
    repeated += round(extra_passes(run) * chunked)
    products = 2 if run.config.lora.use_lora else 3
    query = shape.num_attention_heads * shape.head_dim
    seen = run.config.data.max_seq_length / 2
    attention = shape.num_hidden_layers * 2 * query * seen * (4 if recomputed is True else 3)
    return 2.0 * run.num_tokens * (products * weights + repeated + attention)


def plan_traffic(run: ResolvedRun) -> Traffic:
    """Bytes one rank sends in one optimizer step."""
    train = run.config.train
    steps, size = train.gradient_accumulation_steps, run.element_bytes
    gathers = reduction = 0
    for one in list_parameters(run):
        if one.num_partitions > 1:
            others = one.kept * (one.num_partitions - 1)
            gathers += 2 * steps * others * size if run.stage == 3 else others * size
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
    if not run.splits_experts:
        return 0
    rows = run.num_tokens * run.shape.moe_topk * (run.expert_size - 1)
    row = run.shape.hidden_size * run.element_bytes
    num_layers = run.shape.num_hidden_layers - run.shape.num_dense_layers
    # Out and back, forward and as often as it is repeated, and their gradients backward.
    exchanges = 2 * (num_forwards(run) + extra_passes(run) + 1)
    return int(exchanges * num_layers * (rows // run.expert_size) * row)


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
    """The optimizer's own time: it is bound by memory, on the GPU or, offloaded, on the host."""
    moved = run.optimizer.traffic_bytes * updated_elements(run)
    if not run.optimizer.is_on_host:
        return moved / (hardware.gpu.memory_bandwidth * BANDWIDTH_SHARE)
    on_host = moved * run.ranks_per_node / HOST_MEMORY_BANDWIDTH
    return on_host + traffic.host / (hardware.gpu.host_bandwidth * BANDWIDTH_SHARE)
