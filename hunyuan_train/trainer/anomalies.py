"""Bad steps: what counts as one, and what is remembered of it.

A bad step is skipped on every rank alike, because it is judged by numbers that all ranks share. It
keeps its number: the learning rate and the data go on as if it had been done.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from math import isfinite
from statistics import median

import torch.distributed as dist

from hunyuan_train.config.run_files import QUARANTINE
from hunyuan_train.config.schema import TrainConfig
from hunyuan_train.data.batches.loader import Batch, BatchSampler
from hunyuan_train.json_lines import Lines
from hunyuan_train.log import SHARED
from hunyuan_train.trainer.state import Health, TrainerState
from hunyuan_train.trainer.step import Anomaly, StepResult, check_finite

logger = logging.getLogger(__name__)

MAX_RECENT = 64  # losses that a new one is compared with
MIN_RECENT = 16  # below, nothing is called a spike
MIN_RISE = 1.5  # a spike is this many times the median, however quiet the losses were
DEVIATION_BY_SPREAD = 1.4826  # standard deviation of normal numbers by their median deviation
MAX_ROLLBACKS = 3  # to a checkpoint, in one run


def find_anomaly(
    loss: float, *, health: Health, config: TrainConfig, least_spike: float = 0.0
) -> Anomaly | None:
    """What is wrong with a loss, seen beside the recent ones.

    Median and median deviation stand for mean and deviation: earlier spikes do not move them.

    Args:
        loss: of all ranks.
        health: with the recent losses.
        config: what counts as a spike.
        least_spike: a loss up to this is none, however small the recent ones were.
    """
    anomaly = check_finite(loss)
    is_looking = config.bad_steps != "off" and config.spike_deviations > 0
    if anomaly or not is_looking or len(health.recent_losses) < MIN_RECENT:
        return anomaly
    middle = median(health.recent_losses)
    deviation = DEVIATION_BY_SPREAD * median(abs(one - middle) for one in health.recent_losses)
    limit = max(middle + config.spike_deviations * deviation, MIN_RISE * middle, least_spike)
    if loss <= limit:
        return None
    reason = (
        f"loss {loss:.4g} is a spike: the median of the last {len(health.recent_losses)} good "
        f"steps is {middle:.4g}"
    )
    return Anomaly(reason, is_skipped=config.bad_steps == "act")


def remember(health: Health, result: StepResult) -> Health:
    """The health after one more step."""
    if result.anomaly and result.anomaly.is_skipped:
        return replace(health, num_bad_in_a_row=health.num_bad_in_a_row + 1)
    loss = result.loss + result.router_loss
    recent = (*health.recent_losses, loss)[-MAX_RECENT:]
    return replace(health, recent_losses=recent, num_bad_in_a_row=0)


def quarantine(
    kept: Lines,
    batches: BatchSampler,
    micro_batches: Sequence[Batch],
    result: StepResult,
    state: TrainerState,
) -> list[str]:
    """Note the samples of a bad step; called by every rank.

    Args:
        kept: rank 0's file of bad steps.
        batches: knows where samples come from.
        micro_batches: of this rank.
        result: of the bad step.
        state: before it.

    Returns:
        the samples of all ranks, as `file:line`.
    """
    assert result.anomaly
    ranks: list[list[str]] = [[]] * dist.get_world_size()
    dist.all_gather_object(ranks, batches.origins(micro_batches))
    samples = list(dict.fromkeys(origin for rank in ranks for origin in rank))
    logger.warning(
        "step %d is bad: %s. %s. Its %d samples are in %s",
        state.step + 1,
        result.anomaly.reason,
        "The update was skipped" if result.anomaly.is_skipped else "The update was made",
        len(samples),
        QUARANTINE,
        extra=SHARED,
    )
    entry = {
        "step": state.step + 1,
        "epoch": state.position.epoch,
        "row": state.position.row,
        "reason": result.anomaly.reason,
        "is_skipped": result.anomaly.is_skipped,
        "loss": _number_or_none(result.loss),
        "grad_norm": _number_or_none(result.grad_norm),
        "samples": samples,
    }
    if entry not in kept.read():  # a step that is done again after a resume is noted once
        kept.append(entry)
    return samples


def _number_or_none(value: float) -> float | None:
    """JSON has neither NaN nor infinity."""
    return value if isfinite(value) else None
