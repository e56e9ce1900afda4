"""Which checkpoints are kept, and how the others go: never half of one under its name."""

import logging
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path

from hunyuan_train.checkpoint.folder import checkpoint_step, list_checkpoints
from hunyuan_train.checkpoint.publish import INCOMPLETE, REPLACED, unfinished_folder
from hunyuan_train.config.checkpoint_schema import CheckpointConfig
from hunyuan_train.trainer.state import TrainerState

logger = logging.getLogger(__name__)


def superfluous_steps(
    steps: Sequence[int], config: CheckpointConfig, *, best_step: int | None
) -> list[int]:
    """The steps whose checkpoints may go.

    Args:
        steps: of all checkpoints, oldest first.
        config: how many are kept, and which for ever.
        best_step: the one of the best evaluation so far, if that is kept.
    """
    if not config.save_total_limit:
        return []
    every = config.save_keep_every
    return [
        step
        for step in steps[: -config.save_total_limit]
        if step != best_step and not (every and step % every == 0)
    ]


def delete_superfluous(
    output_dir: Path,
    config: CheckpointConfig,
    state: TrainerState,
    *,
    spared: Collection[Path] = (),
) -> None:
    """Delete what is too much; called once a checkpoint is published, or known to be good.

    Args:
        output_dir: of the run.
        config: how many are kept.
        state: of that checkpoint. Those of later steps count for nothing and stay: a run that went
            on from an earlier one did so because they are damaged.
        spared: those in use, which may go another time.
    """
    folders = {
        checkpoint_step(folder): folder
        for folder in list_checkpoints(output_dir)
        if checkpoint_step(folder) <= state.step
    }
    best_step = state.best_step if config.save_best else None
    for step in superfluous_steps(list(folders), config, best_step=best_step):
        if folders[step] in spared:
            continue
        logger.info("deleting %s (save_total_limit %d)", folders[step], config.save_total_limit)
        doomed = unfinished_folder(folders[step])
        try:
            folders[step].rename(doomed)  # killed while deleting, it must not pass for a checkpoint
            shutil.rmtree(doomed)
        except OSError as error:
            logger.warning("%s cannot be deleted: %s", folders[step], error.strerror)


def delete_leftovers(checkpoints: Path) -> None:
    """Delete what killed saves and deletions left behind; nobody else may be writing there."""
    for suffix in (INCOMPLETE, REPLACED):
        for folder in checkpoints.glob(f"step-*{suffix}"):
            shutil.rmtree(folder, ignore_errors=True)
