"""The training loop around a small engine, on batches of our own making."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hunyuan_train.checkpoint.background import Saver
from hunyuan_train.config.schema import RunConfig
from hunyuan_train.config.settings import with_settings
from hunyuan_train.data.batches.loader import Batch, Position, StepContent, join_samples
from hunyuan_train.instrumentation import open_logs
from hunyuan_train.objectives.sft import SFT
from hunyuan_train.trainer.loop import Trainer, TrainingResult, train
from hunyuan_train.trainer.memory_estimate import RunEstimate
from hunyuan_train.trainer.router_monitor import RouterMonitor
from hunyuan_train.trainer.state import TrainerState
from hunyuan_train.trainer.throughput import Throughput
from tests.batches import SHAPE, global_batch
from tests.engines import kept_weights, my_share, resume, router_terms, small_engine


@dataclass
class Rows:
    """A data set of one row a step; some of them are poisoned."""

    poisoned: Sequence[int] = ()
    seen: list[int] = field(default_factory=list)
    steps_per_epoch: int = 1000

    def step_batches(self, position: Position) -> tuple[list[Batch], Position]:
        self.seen.append(position.row)
        batches = my_share(global_batch(position.row, 4))
        # As in an epoch's last step: it keeps ranks in step, and its token is none of the data.
        batches.append(join_samples([], modes=[], sample_ids=[]))
        if position.row in self.poisoned and torch.distributed.get_rank() == 0:
            weights = np.full_like(batches[0].loss_weights, np.nan)
            batches[0] = replace(batches[0], loss_weights=weights)
        return batches, Position(0, position.row + 1)

    def step_content(self, position: Position) -> StepContent:
        lengths = [np.diff(batch.cu_seqlens) for batch in global_batch(position.row, 4)]
        num_tokens = int(np.concatenate(lengths).sum())
        return StepContent(
            num_rows=4,
            num_tokens=num_tokens,
            sum_of_squares=int((np.concatenate(lengths) ** 2).sum()),
            samples_by_source={"rows.jsonl": sum(map(len, lengths))},
            tokens_by_source={"rows.jsonl": num_tokens},
        )

    def origins(self, batches: Sequence[Batch]) -> list[str]:
        return [f"rows.jsonl:{self.seen[-1]}"]


@dataclass
class Looped:
    """What one rank saw."""

    result: TrainingResult
    weights: dict[tuple[str, int], Tensor]
    seen: list[int]
    stalled_seconds: float


def run_loop(
    output_dir: Path, settings: dict[str, object], poisoned: Sequence[int], start: Path | None
) -> Looped:
    """Train as a run does, from a checkpoint if one is given; called by every rank."""
    usual = {
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "router_guardian": "off",
        "report_to": "none",
        "record_batches": True,
    }
    config = with_settings(RunConfig(), output_dir=str(output_dir), **(usual | settings))
    engine = small_engine(stage=3, expert_size=2)
    routers = router_terms(engine, 0.0, 0.0)
    checkpointer = Saver(
        engine, routers.watch, output_dir, config.checkpoints, {}, {}, ranks_per_host=2
    )
    state = resume(engine, start) if start else TrainerState()
    (output_dir / "log").mkdir(parents=True, exist_ok=True)
    logs = open_logs(config, None, {})
    rows = Rows(poisoned)
    trainer = Trainer(
        engine=engine,
        objective=SFT,
        routers=routers,
        batches=rows,
        eval_batches=my_share(global_batch(999, 4)) if config.evaluation.eval_steps else [],
        config=config,
        logs=logs,
        checkpointer=checkpointer,
        estimate=RunEstimate(1.0, {}),
        num_restarts=0,
        report_progress=lambda step, what: None,
        router_monitor=RouterMonitor(
            engine, routers, config.guardian, logs.router_load, logs.metrics
        ),
        throughput=Throughput(
            shape=SHAPE, num_ranks=2, row_length=120, trains_all=True, peak_flops=None
        ),
    )
    result = train(trainer, state, started=time.monotonic())
    return Looped(result, kept_weights(engine.module), rows.seen, checkpointer.stalled_seconds)
