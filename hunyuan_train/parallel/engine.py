"""Start the process group and wrap the model in the DeepSpeed engine."""

import importlib
import resource
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from types import MappingProxyType
from typing import Any
from unittest import mock

import deepspeed
import numpy as np
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime import compiler
from torch import Tensor, nn
from torch._C import _distributed_c10d
from torch.distributed import distributed_c10d
from torch.optim import Optimizer
from transformers import PreTrainedModel
from transformers.integrations import HfDeepSpeedConfig

from hunyuan_train.config.adapters import adapts_experts
from hunyuan_train.config.deepspeed_file import has_bf16_masters, splits_experts
from hunyuan_train.config.schema import LoraConfig
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.model.build import build_model, compute_rope_in_float32, model_class
from hunyuan_train.model.expert_codes import ExpertCodes
from hunyuan_train.model.lora import add_linear_adapters
from hunyuan_train.model.new_rows import train_new_rows
from hunyuan_train.model.router import fill_router_biases
from hunyuan_train.model.weights import WeightSource
from hunyuan_train.one_copy import copy_together
from hunyuan_train.parallel.expert import (
    check_split_routers,
    give_placeholders_shapes,
    placeholder_experts,
    register_families,
    show_router_weight,
)
from hunyuan_train.parallel.expert_lora import adapted_experts, start_expert_adapters
from hunyuan_train.parallel.meeting import (
    explaining_a_taken_port,
    meet_on_loopback,
    meets_on_loopback,
)
from hunyuan_train.parallel.own_gradients import use_gradients_where_they_lie
from hunyuan_train.parallel.quantised_experts import fill_experts, quantised_experts
from hunyuan_train.parallel.routers import keep_pinned_masters, pin_routers
from hunyuan_train.parallel.shared_masters import share_float32_masters, share_masters
from hunyuan_train.parallel.split_plans import make_plans_once
from hunyuan_train.parallel.zero import (
    fill_adapters,
    fill_parameters,
    keep_whole_partitions_ready,
    partitioned_construction,
)


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the values of a model come from."""

    weights: WeightSource
    adapters: WeightSource | None = None  # of adapters; otherwise they are drawn
    codes: ExpertCodes | None = None  # of the routed experts, where these are quantised


OptimizerFactory = Callable[[PreTrainedModel], Optimizer]


def start_process_group(
    timeout_minutes: float, environment: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Join the process group: NCCL where there are GPUs, gloo elsewhere.

    Args:
        timeout_minutes: of each collective.
        environment: tells ranks of one machine to meet there; by default torch decides where.

    The engine makes further groups without a timeout of its own and so gets torch's default, which
    is therefore set too (private names; a test fails when torch renames them).
    """
    timeout = timedelta(minutes=timeout_minutes)
    distributed_c10d.default_pg_timeout = timeout
    distributed_c10d.default_pg_nccl_timeout = timeout
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    with explaining_a_taken_port(environment):
        if meets_on_loopback(environment):
            meet_on_loopback(backend, timeout, environment)  # the engine takes the group over
        deepspeed.init_distributed(backend, timeout=timeout, verbose=False)
    # Before anything is allocated: collectives of objects, too, go through the current device.
    get_accelerator().set_device(deepspeed.comm.get_local_rank())


def read_recorders() -> list[bytes]:
    """What torch's flight recorders hold, as JSON: NCCL's own, and that of all other backends.

    May be called from any thread, also while another one hangs in a collective. (Private names; a
    test fails when torch renames them.)
    """
    reading = [_distributed_c10d._dump_fr_trace_json]
    if dist.is_nccl_available():  # a build without CUDA has no such recorder
        reading.insert(0, _distributed_c10d._dump_nccl_trace_json)
    traces = []
    for read in reading:
        with suppress(RuntimeError):  # of a GPU that is lost; the other recorder may still answer
            traces.append(read(includeCollectives=True))
    return traces


def build_split_model(
    shape: ModelShape,
    deepspeed_config: dict[str, Any],
    *,
    attention: str,
    attention_dropout: float,
    has_expert_weights: bool = True,
) -> PreTrainedModel:
    """Build the model without weights, each rank allocating its own part only.

    Args:
        shape: of the whole model.
        deepspeed_config: decides the ZeRO stage and whether experts are split.
        attention: name of the attention implementation.
        attention_dropout: on attention weights.
        has_expert_weights: whether split experts have weights of their own, and not codes.
    """
    is_split = splits_experts(deepspeed_config)
    # Transformers imports a model's module when its class is first asked for. Inside the engine's
    # context its classes would lose, at the end, what decorators have added to their constructors.
    model_class(shape)
    with ExitStack() as construction:
        construction.enter_context(partitioned_construction(deepspeed_config))
        if is_split:
            construction.enter_context(placeholder_experts(shape))
        model = build_model(shape, attention=attention, attention_dropout=attention_dropout)
    compute_rope_in_float32(model, get_accelerator().current_device_name())
    if is_split:
        dtype = training_dtype(deepspeed_config)
        give_placeholders_shapes(model, shape, dtype, has_memory=has_expert_weights)
    return model


def start_engine(
    model: PreTrainedModel,
    shape: ModelShape,
    deepspeed_config: dict[str, Any],
    sources: Sources,
    make_optimizer: OptimizerFactory,
    *,
    lora: LoraConfig,
    seed: int,
) -> deepspeed.DeepSpeedEngine:
    """Split the experts, partition the rest, read the weights, and build the optimizer.

    Args:
        model: without weights; its MoE blocks are replaced in place under expert parallelism.
        shape: of the whole model.
        deepspeed_config: complete, no "auto" left.
        sources: of the weights. They are read when every parameter has its final form and before
            the optimizer copies them, so each rank reads once, and only what it keeps.
        make_optimizer: called with the model in that form.
        lora: adapters to put on the model once its weights are in.
        seed: of the adapters' first values.
    """
    codes, dtype = sources.codes, training_dtype(deepspeed_config)

    def build_after_split(_: Iterable[nn.Parameter]) -> Optimizer:
        check_split_routers(model, shape)
        fill_parameters(model, sources.weights)
        if codes is not None:
            device = torch.device(get_accelerator().current_device_name())
            fill_experts(model, codes, device, dtype)
        fill_router_biases(model, sources.weights)
        pin_routers(model, sources.weights)
        if lora.use_lora:
            # While this object lives, PEFT gathers the weights it needs for DoRA's first values.
            hint = HfDeepSpeedConfig(deepspeed_config)
            start_adapters(model, shape, lora, seed=seed, values=sources.adapters)
            del hint
        return make_optimizer(model)

    register_families()
    import_muon()
    show_router_weight(model)
    model.config.routed_scaling_factor = shape.router_scale  # where AutoEP looks for it
    with ExitStack() as construction:
        if lora.use_lora:
            model.requires_grad_(requires_grad=False)
        train_new_rows(model, shape)
        construction.enter_context(kind_of_experts(shape, lora, codes, dtype))
        engine, _, _, _ = deepspeed.initialize(
            model=model,
            optimizer=build_after_split,
            # The optimizers here are tested against plain training, which the engine asks for.
            config=deepspeed_config | {"zero_allow_untested_optimizer": True},
            dist_init_required=False,
        )
    spare_copies(engine, deepspeed_config)
    keep_pinned_masters(engine)
    keep_whole_partitions_ready()
    make_plans_once()
    return engine


def spare_copies(engine: deepspeed.DeepSpeedEngine, deepspeed_config: dict[str, Any]) -> None:
    """Let weights be their own masters where they can, and gradients be used where they lie."""
    use_gradients_where_they_lie(engine)  # first: the optimizer of shared masters clips by itself
    if has_bf16_masters(deepspeed_config):
        share_masters(engine)
    elif training_dtype(deepspeed_config) == torch.float32:
        share_float32_masters(engine)


def kind_of_experts(
    shape: ModelShape, lora: LoraConfig, codes: ExpertCodes | None, dtype: torch.dtype
) -> AbstractContextManager[None]:
    """Let AutoEP build layers of quantised experts, of adapted ones, or its own."""
    is_adapted = adapts_experts(lora, shape)
    if codes is not None:
        return quantised_experts(codes.scheme, lora, dtype, is_adapted=is_adapted)
    return adapted_experts(lora, dtype) if is_adapted else nullcontext()


def start_adapters(
    model: PreTrainedModel,
    shape: ModelShape,
    lora: LoraConfig,
    *,
    seed: int,
    values: WeightSource | None,
) -> None:
    """Put adapters on a model whose weights are in: drawn ones, or those of a source."""
    add_linear_adapters(model, lora, shape, seed=seed)
    start_expert_adapters(model, seed=seed)
    if values is not None:
        fill_adapters(model, values)
    train_new_rows(model, shape)  # again: PEFT has frozen all but its adapters


def import_muon() -> None:
    """Import the Muon optimizer, which the engine asks whether it is ours, without compiling it.

    Its functions are compiled when it is imported: 2 s of every rank's start, for torch's compiler
    alone. No optimizer here is Muon.
    """
    with mock.patch.object(compiler, "compile", return_value=compiler.dummy_decorator):
        importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")


def training_dtype(deepspeed_config: dict[str, Any]) -> torch.dtype:
    """Dtype of weights and activations."""
    return torch.bfloat16 if deepspeed_config["bf16"]["enabled"] else torch.float32


def peak_memory_gib() -> float:
    """Most memory this process has held, in GiB: on the GPU, or of the host without one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def max_over_ranks(values: list[float], device: torch.device) -> list[float]:
    """The largest of each number over all ranks."""
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    if dist.is_initialized():
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return tensor.tolist()


def sum_over_ranks(values: list[float], device: torch.device) -> list[float]:
    """Add numbers up over all ranks, in float64 so that token counts stay exact."""
    [tensor] = copy_together([np.array(values, dtype=np.float64)], device)
    return sum_in_place(tensor).tolist()


def sum_in_place(tensor: Tensor) -> Tensor:
    """Add a tensor up over all ranks, where it lies; the CPU does not wait."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor
