"""ZeRO partitions as flat ranges.

Under stage 3 each rank keeps a contiguous flat range of every parameter: elements
[rank * n, (rank + 1) * n), the last range padded. Experts are partitioned over the ranks that hold
the same experts (expert data parallel group), everything else over all ranks. Stages 1 and 2 keep
whole parameters and partition only the optimizer's float32 state. Loading, checkpoints and export
speak of these ranges and never of how they came about.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.module_inject.auto_ep_layer import AutoEPMoELayer
from deepspeed.runtime.zero import partition_parameters, stage3, stage_1_and_2
from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
from deepspeed.utils import (
    groups,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from torch import Tensor, nn
from transformers import PreTrainedModel

from hunyuan_train.config.deepspeed_file import zero_stage
from hunyuan_train.families.family import Family
from hunyuan_train.families.registry import FAMILIES
from hunyuan_train.families.tables import stored_tensors
from hunyuan_train.families.tensors import StoredTensor, pieces_of_range
from hunyuan_train.model.lora import is_adapter
from hunyuan_train.model.weights import WeightSource
from hunyuan_train.optim.blockwise_states import BlockwiseState, code_range, scales_name
from hunyuan_train.optim.lean_memory import num_blocks
from hunyuan_train.optim.records import MASTER
from hunyuan_train.progress import show_progress


@dataclass(frozen=True, slots=True)
class Shard:
    """A flat range of one parameter that this rank keeps."""

    family: Family
    name: str
    parameter: nn.Parameter
    shape: tuple[int, ...]  # of the whole parameter (local experts only, where experts are split)
    first_expert: int
    start: int
    stop: int

    @property
    def stored(self) -> list[StoredTensor]:
        """Released tensors that the whole parameter lays end to end."""
        return stored_tensors(self.family, self.name, self.shape, first_expert=self.first_expert)


def partitioned_construction(deepspeed_config: dict[str, Any]) -> AbstractContextManager[Any]:
    """Context in which modules are built already partitioned, under stage 3."""
    if zero_stage(deepspeed_config) < 3:
        return nullcontext()
    return deepspeed.zero.Init(config_dict_or_path=deepspeed_config)


def is_partitioned(parameter: nn.Parameter) -> bool:
    """Whether this rank keeps only a range of the weights themselves (stage 3)."""
    return hasattr(parameter, "ds_tensor")


def num_dimensions(parameter: nn.Parameter) -> int:
    """Dimensions of the whole parameter."""
    return len(whole_shape(parameter))


def whole_shape(parameter: nn.Parameter) -> torch.Size:
    """The shape of the whole parameter; a ZeRO-3 partition is flat and remembers it."""
    return parameter.ds_shape if is_partitioned(parameter) else parameter.shape


def weight_shards(model: PreTrainedModel) -> Iterator[Shard]:
    """What this rank keeps of each parameter's weights, in the model's order."""
    family = FAMILIES[model.config.model_type]
    first_experts = {
        name: module.ep_rank * module.num_local_experts
        for name, module in model.named_modules()
        if isinstance(module, AutoEPMoELayer)
    }
    for name, parameter in model.named_parameters():
        first_expert = first_experts.get(name.rpartition(".experts.")[0], 0)
        shape, start, stop = tuple(parameter.shape), 0, parameter.numel()
        if is_partitioned(parameter):
            shape, size = tuple(parameter.ds_shape), parameter.ds_tensor.numel()
            start = min(dist.get_rank(parameter.ds_process_group) * size, parameter.ds_numel)
            stop = min(start + size, parameter.ds_numel)
        yield Shard(family, name, parameter, shape, first_expert, start, stop)


def weight_values(shard: Shard) -> Tensor:
    """The kept weights in the training dtype: [stop - start], a view."""
    if is_partitioned(shard.parameter):
        return shard.parameter.ds_tensor[: shard.stop - shard.start]
    return shard.parameter.data.view(-1)[shard.start : shard.stop]


def is_split_expert(parameter: nn.Parameter) -> bool:
    """Whether other ranks hold other experts in a parameter of this name."""
    return hasattr(parameter, "group_name")  # the engine's own mark


def is_primary(shard: Shard) -> bool:
    """Whether this rank speaks for the range: of ranks that keep the same one, the first does."""
    if is_partitioned(shard.parameter):
        return True
    if is_split_expert(shard.parameter):
        group = groups._get_expert_data_parallel_group(shard.parameter.group_name)
        return dist.get_rank(group) == 0
    return dist.get_rank() == 0


def fill_parameters(model: PreTrainedModel, source: WeightSource) -> None:
    """Read into each parameter's local range the elements it keeps, and nothing else.

    Adapters are in no checkpoint of a base model: they keep the values they were made with. The bar
    shows what rank 0 has of what it keeps; the other ranks keep as much.
    """
    owned = [shard for shard in weight_shards(model) if not is_adapter(shard.name)]
    _fill(owned, source, "loading weights")


def fill_adapters(model: PreTrainedModel, source: WeightSource) -> None:
    """Read into each adapter's local range the elements it keeps."""
    _fill([one for one in weight_shards(model) if is_adapter(one.name)], source, "loading adapters")


def adapter_names(model: PreTrainedModel) -> set[str]:
    """Released names of all adapters' tensors; of split experts, this rank's."""
    shards = (shard for shard in weight_shards(model) if is_adapter(shard.name))
    return {tensor.name for shard in shards for tensor in shard.stored}


def _fill(owned: list[Shard], source: WeightSource, title: str) -> None:
    num_bytes = sum(weight_values(shard).nbytes for shard in owned)
    with show_progress(title, num_bytes) as advance:
        for shard in owned:
            kept = weight_values(shard)
            for piece in pieces_of_range(shard.stored, shard.start, shard.stop):
                part = kept[piece.offset : piece.offset + piece.stop - piece.start]
                part.copy_(source.read(piece.tensor, piece.start, piece.stop))
                advance(part.nbytes)


def trained_shards(model: PreTrainedModel) -> Iterator[Shard]:
    """The ranges whose master weights and optimizer states this rank keeps."""
    for shard in weight_shards(model):
        parameter = shard.parameter
        if not parameter.requires_grad:
            continue
        if is_partitioned(parameter):
            yield shard
        elif parameter._hp_mapping is not None:
            address = parameter._hp_mapping.lp_fragment_address
            stop = address.start + address.numel
            yield replace(shard, start=address.start, stop=stop)


def state_kinds(engine: deepspeed.DeepSpeedEngine) -> list[str]:
    """What is kept per element of a trained shard: "master" and the optimizer's states."""
    states = engine.optimizer.optimizer.state
    elementwise = {
        kind
        for flat, kinds in states.items()
        for kind, value in kinds.items()
        if isinstance(value, BlockwiseState)
        or (torch.is_tensor(value) and value.shape == flat.shape)
    }
    return [MASTER, *sorted(elementwise)]


def read_state(engine: deepspeed.DeepSpeedEngine, shard: Shard, kind: str) -> Tensor:
    """One kind of state of a trained shard: [stop - start], coded ones as float32."""
    blockwise = blockwise_state(engine, shard.parameter, kind)
    if blockwise is not None:
        return blockwise.decode()[: shard.stop - shard.start]
    return _plain_state(engine, shard, kind)


def stored_state(engine: deepspeed.DeepSpeedEngine, shard: Shard, kind: str) -> dict[str, Tensor]:
    """The same in the form in which a checkpoint holds it: views by name, where they live.

    A coded state is its codes and, under `scales_name`, the scales of its blocks. Only the
    optimizer's step changes them: a forward or backward pass may run meanwhile.
    """
    name, size = f"{kind}:{shard.name}", shard.stop - shard.start
    blockwise = blockwise_state(engine, shard.parameter, kind)
    if blockwise is None:
        return {name: _plain_state(engine, shard, kind)}
    return {
        name: blockwise.codes[: code_range(blockwise.codes.dtype, 0, size)[1]],
        scales_name(name): blockwise.scales[: num_blocks(size)],
    }


def write_state(engine: deepspeed.DeepSpeedEngine, shard: Shard, kind: str, values: Tensor) -> None:
    """Replace one kind of state of a trained shard; `publish_weights` must follow.

    Args:
        engine: between two steps.
        shard: as `trained_shards` gives it.
        kind: one of `state_kinds`.
        values: [stop - start], float32; of any device.
    """
    parameter = shard.parameter
    blockwise = blockwise_state(engine, parameter, kind)
    if blockwise is not None:
        padded = values.new_zeros(blockwise.num_elements)
        padded[: len(values)] = values
        blockwise.encode(padded)
        return
    if not is_partitioned(parameter):
        _fragment(engine, parameter, kind).copy_(values)
        return
    padded = values.new_zeros(parameter.ds_tensor.numel())
    padded[: len(values)] = values
    if kind == MASTER:
        safe_set_local_fp32_param(parameter, padded)
        weight_values(shard).copy_(values)
    else:
        safe_set_local_optimizer_state(parameter, padded, kind)


def blockwise_state(
    engine: deepspeed.DeepSpeedEngine, parameter: nn.Parameter, kind: str
) -> BlockwiseState | None:
    """A coded state of a trained parameter; None if that kind has elements of its own.

    Its optimizer has one flat tensor for each parameter, so the state is that of the shard, padded.
    """
    if kind == MASTER:
        return None
    if is_partitioned(parameter):
        index, _, _ = engine.optimizer.grad_position[engine.optimizer.get_param_id(parameter)]
    else:
        index = parameter._hp_mapping.param_group_index
    state = engine.optimizer.optimizer.state[flat_masters(engine)[index]][kind]
    return state if isinstance(state, BlockwiseState) else None


def _plain_state(engine: deepspeed.DeepSpeedEngine, shard: Shard, kind: str) -> Tensor:
    parameter = shard.parameter
    if not is_partitioned(parameter):
        return _fragment(engine, parameter, kind)
    # DeepSpeed's public getter would copy states of host memory to the GPU.
    values, _ = engine.optimizer._get_fp32_opt_state_partition(
        parameter,
        release_swap_buffers=True,
        optim_state_key=None if kind == MASTER else kind,
    )
    return values.data[: shard.stop - shard.start]


def _fragment(engine: deepspeed.DeepSpeedEngine, parameter: nn.Parameter, kind: str) -> Tensor:
    """The part of a flat state that belongs to a parameter, under stages 1 and 2: a view."""
    mapping = parameter._hp_mapping
    flat = flat_masters(engine)[mapping.param_group_index]
    states = flat if kind == MASTER else engine.optimizer.optimizer.state[flat][kind]
    address = mapping.hp_fragment_address
    return states.data.narrow(0, address.start, address.numel)


def publish_weights(engine: deepspeed.DeepSpeedEngine) -> None:
    """Make written master weights the ones that the next forward pass computes with."""
    optimizer = engine.optimizer
    if engine.zero_optimization_partition_weights():
        if optimizer.persistent_parameters:  # small parameters that stay gathered between steps
            optimizer.persistent_parameters[0].partition(optimizer.persistent_parameters)
            optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)
    else:
        optimizer.update_lp_params()


def keep_whole_partitions_ready() -> None:
    """Let the CPU not wait for parameters that their own rank keeps whole: its experts.

    "Gathering" them makes a view. The engine still waits each time until the GPU has caught up with
    the stream that gathers others: three times a layer, with all of its experts' weights (no
    upstream issue is known). Partitions in host memory are copied, and are waited for as ever. The
    rehearsal counts waits, and `tests/rehearsal/test_waits.py` tells when this can go.
    """
    handles: tuple[Any, ...] = (
        partition_parameters.NoGatherHandle,
        partition_parameters.NoGatherCoalescedHandle,
    )
    for handle in handles:
        if handle.wait is not take_whole_partitions:
            handle.wait_for_copy = handle.wait
            handle.wait = take_whole_partitions


def take_whole_partitions(handle: Any, **options: object) -> None:  # noqa: ANN401 the engine's
    """The engine's wait for one or several such parameters, where they are copied."""
    members, prefix = vars(handle), f"_{type(handle).__name__}__"
    parameters = members.get(f"{prefix}params") or [members[f"{prefix}param"]]
    if any(one.ds_tensor.device != one.device for one in parameters):
        handle.wait_for_copy(**options)
    elif not members[f"{prefix}complete"]:
        for one in parameters:
            one.ds_status = ZeroParamStatus.AVAILABLE
        members[f"{prefix}complete"] = True


@contextmanager
def dropping_gradients() -> Iterator[None]:
    """Let the engine's step drop the gradients, as it does by itself when their norm is not finite.

    Without this patch it offers no way to end a step but to apply it (no upstream issue is known);
    the patch can go when it does. The reported gradient norm is infinity.
    """
    originals = stage3.is_invalid_grad_norm, stage_1_and_2.is_invalid_grad_norm
    stage3.is_invalid_grad_norm = stage_1_and_2.is_invalid_grad_norm = lambda _: True
    try:
        yield
    finally:
        stage3.is_invalid_grad_norm, stage_1_and_2.is_invalid_grad_norm = originals


def optimizer_step_count(engine: deepspeed.DeepSpeedEngine) -> int:
    """Updates the optimizer has counted, which its bias correction depends on; 0 without states."""
    counts = {int(state["step"]) for state in engine.optimizer.optimizer.state.values() if state}
    assert len(counts) <= 1, f"parameter groups disagree on the optimizer's step: {counts}"
    return counts.pop() if counts else 0


def flat_masters(engine: deepspeed.DeepSpeedEngine) -> list[Tensor]:
    """The flat tensors, [elements] each, that the wrapped optimizer updates: the engine's list."""
    if engine.zero_optimization_partition_weights():
        return engine.optimizer.fp32_partitioned_groups_flat
    return engine.optimizer.single_partition_of_fp32_groups
