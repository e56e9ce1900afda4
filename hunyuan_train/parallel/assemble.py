"""Put the engine together: the split model with its weights, adapters and optimizer.

Runs, the selftest, benchmarks and tests build their engines here and nowhere else.
"""

import logging
from typing import Any

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator

from hunyuan_train.config.deepspeed_config import build_deepspeed_config
from hunyuan_train.config.resolved_run import ResolvedRun
from hunyuan_train.config.schema import RunConfig
from hunyuan_train.data.compiled.cache import find_cache_dir
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.model.activations import recompute_layers
from hunyuan_train.model.attention import choose_attention, describe_attention
from hunyuan_train.model.build import freeze_parameters
from hunyuan_train.model.expert_cache import with_cache
from hunyuan_train.model.expert_codes import find_codes
from hunyuan_train.model.expert_microbatches import chunk_experts
from hunyuan_train.model.fused import fuse_or_warn
from hunyuan_train.model.weights import WeightSource
from hunyuan_train.parallel.engine import Sources, build_split_model, start_engine, training_dtype
from hunyuan_train.parallel.expert import moe_blocks
from hunyuan_train.parallel.expert_layer import take_over_layers
from hunyuan_train.parallel.optimizer import (
    engine_optimizer,
    optimizer_factory,
    prepare_optimizer_states,
)
from hunyuan_train.parallel.sequence import use_sequence_parallel

logger = logging.getLogger(__name__)


def assemble_engine(
    run: ResolvedRun,
    source: WeightSource,
    *,
    largest_gathered: int | None = None,
    adapters: WeightSource | None = None,
) -> deepspeed.DeepSpeedEngine:
    """The engine of a run, by its DeepSpeed file and with the attention of this machine.

    Args:
        run: what is trained, and how it is split.
        source: of the weights.
        largest_gathered: elements of a parameter that still stays whole on every rank under ZeRO-3,
            instead of what the DeepSpeed file says.
        adapters: of the adapters, where the run starts from trained ones.
    """
    settings, model = build_deepspeed_config(run), run.config.model
    if largest_gathered is not None:
        settings["zero_optimization"]["stage3_param_persistence_threshold"] = largest_gathered
    attention = choose_attention(
        model.use_flash_attn, is_bf16=run.is_bf16, dropout=model.attention_dropout
    )
    logger.info("attention: %s", describe_attention(attention))
    return build_engine(
        run.config, settings, run.shape, source, attention=attention, adapters=adapters
    )


def build_engine(
    config: RunConfig,
    settings: dict[str, Any],
    shape: ModelShape,
    source: WeightSource,
    *,
    attention: str,
    adapters: WeightSource | None = None,
) -> deepspeed.DeepSpeedEngine:
    """Build the model split over the ranks, with its weights and its optimizer.

    Args:
        config: how it is frozen, adapted, recomputed and optimised.
        settings: of the engine, no "auto" left: how it is split, and in which precision.
        shape: of the model.
        source: of its weights.
        attention: name of the attention implementation.
        adapters: values that adapters start from; otherwise they are drawn.
    """
    use_sequence_parallel(attention, config.parallel.sequence_parallel_size)
    device = torch.device(get_accelerator().current_device_name())
    dtype = training_dtype(settings)
    codes = find_codes(config.model.expert_weights, shape, source, dtype, device=device)
    codes = with_cache(codes, config.model, find_cache_dir(config.data), dtype)
    model = build_split_model(
        shape,
        settings,
        attention=attention,
        attention_dropout=config.model.attention_dropout,
        has_expert_weights=codes is None,
    )
    freeze_parameters(model, config.model)
    if config.model.use_liger_kernel:
        fuse_or_warn(model)
    if config.train.gradient_checkpointing:
        recompute_layers(
            model,
            is_selective=config.train.gradient_checkpointing == "selective",
            is_offloaded=config.train.activation_offload,
        )
    seed = config.train.seed
    factory = optimizer_factory(config.optimizer, seed=seed)
    engine = start_engine(
        model,
        shape,
        settings,
        Sources(source, adapters, codes),
        factory,
        lora=config.lora,
        seed=seed,
    )
    if engine_optimizer(engine).shares_masters:
        # Now, and not at the first update: made among what a step has just freed, they would keep
        # the allocator's large blocks apart for good.
        prepare_optimizer_states(engine, 0)
    blocks = moe_blocks(engine.module)
    take_over_layers(blocks)
    chunk_experts(blocks, config.train.moe_chunks)
    return engine
