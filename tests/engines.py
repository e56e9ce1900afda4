"""A small model under the engine, split in any way, and what a rank of it keeps."""

from pathlib import Path
from typing import Any

import deepspeed
from torch import Tensor

from hunyuan_train.checkpoint.folder import read_manifest
from hunyuan_train.checkpoint.save import Job, write_checkpoint
from hunyuan_train.checkpoint.state import RankContent, collect_content, load_checkpoint
from hunyuan_train.config.schema import LoraConfig, ModelConfig, RunConfig
from hunyuan_train.config.settings import with_settings
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.model.attention import PER_DOCUMENT
from hunyuan_train.model.weights import WeightSource
from hunyuan_train.objectives.router_losses import RouterTerms, watch_and_weigh
from hunyuan_train.optim.records import find_optimizer
from hunyuan_train.parallel.assemble import build_engine
from hunyuan_train.parallel.engine import start_process_group
from hunyuan_train.selftest.training import kept_weights, my_share
from hunyuan_train.trainer.state import TrainerState, read_state
from tests.batches import SHAPE, WEIGHTS

__all__ = ["end_engines", "kept_weights", "my_share", "resume", "router_terms", "small_engine"]

LEARNING_RATES = {"sgd": 0.05, "adamw": 1e-3, "lean": 1e-3}
SHARED = {"bf16_master_weights_and_grads": True, "bf16_optimizer_states": True}
MAX_GRAD_NORM = 1.0
_started: list[deepspeed.DeepSpeedEngine] = []  # and not ended yet
WEIGHT_DECAY = 0.01


def small_engine(  # noqa: PLR0913 all that tests vary
    *,
    stage: int,
    expert_size: int,
    optimizer: str = "adamw",
    max_grad_norm: float = MAX_GRAD_NORM,
    model: ModelConfig | None = None,
    lora: LoraConfig | None = None,
    is_bf16: bool = False,
    shape: ModelShape = SHAPE,
    source: WeightSource = WEIGHTS,
    sequence_size: int = 1,
    moe_chunks: int = 1,
    is_recomputed: bool = True,
    adam_epsilon: float = 1e-8,
    attention: str = PER_DOCUMENT,
    expert_section: dict[str, Any] | None = None,
    cache_dir: Path | None = None,
) -> deepspeed.DeepSpeedEngine:
    """Start an engine on this rank; `expert_size` 0 leaves expert parallelism off."""
    start_process_group(timeout_minutes=2)
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_clipping": max_grad_norm,
        "bf16": {"enabled": is_bf16} | (SHARED if find_optimizer(optimizer).shares_masters else {}),
        "zero_optimization": {
            "stage": stage,
            "overlap_comm": False,
            "reduce_bucket_size": 10**6,
            # As in the released model only norms stay whole on every rank.
            "stage3_param_persistence_threshold": shape.hidden_size,
        },
    }
    if expert_size:
        settings["expert_parallel"] = {
            "enabled": True,
            "preset_model": shape.family,
            "autoep_size": expert_size,
            **(expert_section or {}),
        }
    config = with_settings(
        RunConfig(model=model or ModelConfig(), lora=lora or LoraConfig()),
        seed=0,
        optimizer=optimizer,
        weight_decay=WEIGHT_DECAY,
        adam_epsilon=adam_epsilon,
        gradient_checkpointing=is_recomputed,
        moe_chunks=moe_chunks,
        sequence_parallel_size=sequence_size,
        cache_dir=cache_dir and str(cache_dir),
    )
    engine = build_engine(config, settings, shape, source, attention=attention)
    engine.train()
    _started.append(engine)
    return engine


def end_engines() -> None:
    """Let go of what this rank's engines hold, and of their hooks."""
    while _started:
        _started.pop().destroy()


def router_terms(
    engine: deepspeed.DeepSpeedEngine, balance_coefficient: float, z_coefficient: float
) -> RouterTerms:
    """Watch the routers of an engine, and weigh their losses."""
    config = ModelConfig(router_aux_loss_coef=balance_coefficient, router_z_loss_coef=z_coefficient)
    return watch_and_weigh(engine, SHAPE, config)


def save_checkpoint(engine: deepspeed.DeepSpeedEngine, state: TrainerState, folder: Path) -> None:
    """Write a checkpoint while nothing else runs; called by every rank."""

    def in_order(content: RankContent) -> list[tuple[str, int, Tensor]]:
        return [(name, 0, values) for name, values in content.states.items()]

    job = Job(folder=folder, state=state, fingerprints={})
    fault = write_checkpoint(job, collect_content(engine, None), in_order, group=None)
    assert fault is None, fault


def resume(engine: deepspeed.DeepSpeedEngine, folder: Path) -> TrainerState:
    """Restore a checkpoint on this rank, and say where its run stood."""
    manifest = read_manifest(folder)
    load_checkpoint(engine, folder, manifest)
    return read_state(manifest["state"])
