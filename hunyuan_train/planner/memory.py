"""Bytes of one rank: on its device, and in host memory."""

from collections.abc import Iterator
from dataclasses import dataclass

from hunyuan_train.config.resolved_run import ResolvedRun
from hunyuan_train.planner.activations import (
    after_bytes,
    first_bytes,
    kept_on_host_bytes,
    loss_bytes,
    recomputed_bytes,
    saved_bytes,
)
from hunyuan_train.planner.component import Component, Phase, peak_bytes, total_of
from hunyuan_train.planner.disk import plan_disk
from hunyuan_train.planner.exchanges import can_be_skewed
from hunyuan_train.planner.frozen_experts import working_lines
from hunyuan_train.planner.gathered import gathered_lines
from hunyuan_train.planner.layer_moments import (
    again_bytes,
    dispatch_bytes,
    entered_bytes,
    norm_gradient_bytes,
    running_bytes,
)
from hunyuan_train.planner.states import device_states, host_states, trained

# Rows of the busiest rank's experts over an equal share; metrics.jsonl logs the real ones. Real
# fine-tuning of mixtures of experts had 2.6 to 3.0, and 5.1 at worst (deepspeed#8213).
BALANCED = 1.0
SKEWED = 3.0  # what a plan must survive
# Of what comes and goes. Rehearsals of 1 to 32 layers with skewed experts, replayed in a model of
# torch's allocator with expandable segments, reserved 23 to 49 % of it more than was allocated: the
# streams of ZeRO have blocks of their own, and rows of experts differ from layer to layer.
FRAGMENTATION = 0.5
# What nvidia-smi calls a GPU's memory and CUDA does not offer: 81,559 MiB and 79.1 GiB of an H100.
DRIVER_BYTES = 600_000_000
# Of eight H100, beside what torch holds: 1.06 GB before the first all-to-all and 4.34 GB after it,
# because NCCL connects every pair of ranks by up to 32 channels (NVIDIA/nccl#1685).
CONTEXT_BYTES = 1_060_000_000
ALL_TO_ALL_BYTES = 3_280_000_000
GPU_PROCESS = 4_000_000_000  # a rank's own host memory: interpreter, libraries, CUDA's host side
CPU_PROCESS = 550_000_000  # the same without CUDA, as the demo has it once all is imported
DATA_BYTES = 9  # a token of the data cache: id, span and weight (data/dataset.py)


ALLOWANCES = (
    *("fragmentation allowance", "driver's share", "CUDA context and NCCL"),
    "NCCL's all-to-all",
)


@dataclass(frozen=True, slots=True)
class Memory:
    """The lines of one rank."""

    device: tuple[Component, ...]
    host: tuple[Component, ...]

    @property
    def device_peak(self) -> int:
        """Bytes of the device that must be free."""
        return peak_bytes(self.device)

    @property
    def allocated_peak(self) -> int:
        """What the allocator will report as its peak: no context, no holes."""
        return peak_bytes(line for line in self.device if line.name not in ALLOWANCES)

    @property
    def process_peak(self) -> int:
        """What a process without a GPU will hold at its peak, itself included."""
        return self.device_peak + self.host_peak

    @property
    def host_peak(self) -> int:
        """Bytes of host memory that one rank takes."""
        return peak_bytes(self.host)


def plan_memory(run: ResolvedRun, *, imbalance: float = SKEWED, num_data_tokens: int = 0) -> Memory:
    """Every component of one rank.

    Args:
        run: what is trained.
        imbalance: rows of the busiest rank's experts over an equal share.
        num_data_tokens: of all data that is trained on, where known.
    """
    lines = (
        *device_states(run),
        *gathered_lines(run, imbalance=imbalance),
        *device_work(run, imbalance),
        *working_lines(run),
    )
    if run.is_on_gpu:
        lines = (*lines, *device_allowances(run, lines))
    return Memory(lines, tuple(host_lines(run, num_data_tokens)))


def device_work(run: ResolvedRun, imbalance: float) -> list[Component]:
    """Lines for what the micro-step itself takes."""
    is_recomputed = run.config.train.gradient_checkpointing
    how = "each layer's input" if is_recomputed else "all that the layers save"
    if is_recomputed == "selective":
        how = "each layer's input and the results of dense products"
    lines = [
        Component(
            "activations", saved_bytes(run, imbalance=imbalance), Phase.SAVED,
            f"{how} for backward, tensor by tensor (planner/activations.py)",
        ),
        Component(
            "first layer's activations", first_bytes(run, imbalance=imbalance), Phase.FIRST,
            "what is left of them when backward comes to it",
        ),
        Component(
            "final norm and labels", after_bytes(run), Phase.LOSS,
            "what lies behind the last layer, until its backward begins",
        ),
        Component(
            "logits and loss", loss_bytes(run), Phase.LOSS,
            "blocks of logits, and the gradient of hidden states (model/loss.py)",
        ),
    ]  # fmt: skip
    return [*lines, *layer_lines(run, imbalance)]


def layer_lines(run: ResolvedRun, imbalance: float) -> Iterator[Component]:
    """Lines for what one layer takes while it runs, forward, again and backward."""
    num_chunks, has_experts = run.config.train.moe_chunks, run.shape.num_experts > 0
    chunks = f", experts in {num_chunks} chunks" if num_chunks > 1 else ""
    is_skewed = can_be_skewed(run)
    skew = f"; {imbalance:g} times an equal share of rows for its experts" if is_skewed else ""
    if run.config.train.gradient_checkpointing:
        for name, num_bytes, phase, source in (
            (
                "recomputed layer", recomputed_bytes(run, imbalance=imbalance), Phase.LAYER,
                f"what one layer saves, while it is run a second time{chunks}{skew}",
            ),
            (
                "layer in its second run", again_bytes(run, imbalance=imbalance), Phase.AGAIN,
                f"what it has saved by the end of its experts, and their rows{skew}",
            ),
            (
                "layer and gradient of norm", norm_gradient_bytes(run), Phase.NORM,
                "what it saves before its MLP, and gradients of the norm there in float32",
            ),
            (
                "a layer's experts, forward", running_bytes(run, imbalance=imbalance),
                Phase.FORWARD, "rows and all that is made of them, until the function returns",
            ),
        ):  # fmt: skip
            if num_bytes:
                yield Component(name, num_bytes, phase, source)
    yield Component(
        "layer and gradient within", entered_bytes(run, imbalance=imbalance), Phase.ENTERED,
        f"what it saves, when a gradient comes to its experts or its MLP{chunks}{skew}",
    )  # fmt: skip
    source = f"rows on their way to experts and back, and gradients inside of these{chunks}"
    yield Component(
        "dispatch buffers" if has_experts else "gradients of a layer",
        dispatch_bytes(run, imbalance=imbalance), Phase.LAYER,
        source if has_experts else "of its output and of its input",
    )  # fmt: skip


def device_allowances(run: ResolvedRun, lines: tuple[Component, ...]) -> list[Component]:
    """Lines for what torch's allocator does not count."""
    moving = peak_bytes(lines) - total_of(lines, Phase.ALWAYS)
    allowances = [
        Component(
            "fragmentation allowance", int(FRAGMENTATION * moving), Phase.ALWAYS,
            f"{FRAGMENTATION:.0%} of what comes and goes in a step, with expandable segments",
        ),
        Component(
            "driver's share", DRIVER_BYTES, Phase.ALWAYS,
            "what nvidia-smi counts as the GPU's and CUDA does not offer",
        ),
        Component(
            "CUDA context and NCCL", CONTEXT_BYTES, Phase.ALWAYS,
            "kernels and NCCL's own buffers: measured on H100 (NVIDIA/nccl#1685)",
        ),
    ]  # fmt: skip
    if uses_all_to_all(run):
        allowances.append(
            Component(
                "NCCL's all-to-all", ALL_TO_ALL_BYTES, Phase.ALWAYS,
                "channels between every pair of ranks, from the first all-to-all on (same place)",
            )
        )  # fmt: skip
    return allowances


def uses_all_to_all(run: ResolvedRun) -> bool:
    """Whether ranks exchange tokens or heads."""
    return run.sequence_size > 1 or (run.splits_experts and run.expert_size > 1)


def host_lines(run: ResolvedRun, num_data_tokens: int) -> list[Component]:
    """Lines of host memory beside the device; without a GPU the device is host memory as well."""
    process = GPU_PROCESS if run.is_on_gpu else CPU_PROCESS
    lines = list(host_states(run))
    if kept_on_host_bytes(run):
        lines.append(
            Component(
                "layers' inputs, pinned", kept_on_host_bytes(run), Phase.PASSES,
                "activation_offload: what gradient checkpointing keeps (model/activations.py)",
            )
        )  # fmt: skip
    lines.append(
        Component("process", process, Phase.ALWAYS, "interpreter and libraries: an allowance")
    )
    if run.config.checkpoints.snapshot_gib != "auto":  # which takes of what is free only
        copies = min(
            int(float(run.config.checkpoints.snapshot_gib) * 2**30),
            plan_disk(run).checkpoint // run.num_ranks,
        )
        lines.append(
            Component(
                "copies for saving", copies, Phase.ALWAYS,
                "states that are written while training goes on, up to snapshot_gib",
            )
        )  # fmt: skip
    if num_data_tokens:
        cached = DATA_BYTES * num_data_tokens // run.ranks_per_node
        lines.append(
            Component(
                "data cache", cached, Phase.ALWAYS,
                "mapped from its files, shared by the ranks of a machine; the kernel may drop it",
            )
        )  # fmt: skip
    if run.stage == 3:
        passing = sum(one.kept for one in trained(run)) * run.element_bytes
        passing = max(0, passing - total_of(lines, Phase.ALWAYS))  # an optimizer here comes later
        lines.append(
            Component(
                "weights passing through", passing, Phase.START,
                "the engine lays trained weights end to end by way of host memory "
                "(zero/utils.py defragment)",
            )
        )  # fmt: skip
    return lines
