"""What is left when training has ended: export, the user's commands, samples, the exit code."""

import logging
import time
from functools import partial
from pathlib import Path

import deepspeed
import torch.distributed as dist

from hunyuan_train.checkpoint.background import Saver
from hunyuan_train.checkpoint.errors import NoRoomError, NotCopiedError
from hunyuan_train.config import run_files
from hunyuan_train.config.load import tokenizer_folder
from hunyuan_train.config.resolved_run import ResolvedRun
from hunyuan_train.config.schema import RunConfig
from hunyuan_train.evaluation.samples import keep_samples
from hunyuan_train.evaluation.show_answer import Answer, show_answer
from hunyuan_train.export.adapter import export_adapter
from hunyuan_train.export.check import check_adapter, check_model
from hunyuan_train.export.from_engine import export_model, read_prompts
from hunyuan_train.export.huggingface_folder import describe_release, trained_dtype
from hunyuan_train.families.grammar.find import load_tokenizer
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.launcher.exit_codes import RESUME, SUCCESS
from hunyuan_train.launcher.rank.heartbeat import Heartbeat
from hunyuan_train.log import console
from hunyuan_train.model.expert_codes import as_computed
from hunyuan_train.model.weights import WeightSource
from hunyuan_train.parallel.engine import max_over_ranks
from hunyuan_train.progress import tell_progress
from hunyuan_train.report.closing import describe_export, report_at_end, show_closing
from hunyuan_train.trainer.interrupt import agree_that_signalled, heeding_signals
from hunyuan_train.trainer.loop import Trainer, TrainingResult
from hunyuan_train.trainer.room import Patience, write_at_last

logger = logging.getLogger(__name__)

COMMAND_POLL_SECONDS = 2.0
COMMAND_REMINDER_SECONDS = 60.0


def export_at_last(
    resolved: ResolvedRun, trainer: Trainer, source: WeightSource, result: TrainingResult
) -> None:
    """Write the model, or its adapters, waiting for room on the disk if need be.

    Raises:
        NoRoomError: there was none to the end.
    """
    trainer.report_progress(result.step, "exporting")
    config, device = resolved.config, trainer.engine.device
    folder = Path(config.train.output_dir, run_files.EXPORT)
    attempt = partial(export, config, trainer.engine, resolved.shape, source, folder=folder)
    is_waited_for = result.is_saved and not result.is_signalled  # or it has waited
    minutes = config.checkpoints.wait_for_room_minutes if is_waited_for else 0
    with heeding_signals(time.monotonic(), max_hours=0) as request:
        patience = Patience(
            minutes=minutes, is_asked_to_end=lambda: agree_that_signalled(request, device)
        )
        fault = write_at_last(attempt, str(folder), patience)
    if fault and result.is_saved:
        raise NoRoomError(
            f"the run is complete and its last checkpoint is written, but not its export: {fault}; "
            f"make room, then {describe_export(config)}"
        )


def export(
    config: RunConfig,
    engine: deepspeed.DeepSpeedEngine,
    shape: ModelShape,
    source: WeightSource,
    *,
    folder: Path,
) -> str | None:
    """Write the model, or its adapters, in the form that servers load; check what they compute.

    Returns:
        None, or what the disk did not take.
    """
    if config.lora.use_lora:
        trained = read_prompts(engine, shape, written_dtype=trained_dtype(config))
        name = config.model.model_name_or_path
        base = as_computed(config.model.expert_weights, shape, source, trained_dtype(config))
        check = partial(check_adapter, trained, base)
        tokenizer = load_tokenizer(tokenizer_folder(config.model), config.model.add_tokens)
        return export_adapter(
            engine,
            folder,
            config.lora,
            shape,
            base_model=name,
            expert_weights=config.model.expert_weights,
            new_tokens=tokenizer.new_tokens,
            check=check,
        )
    release = describe_release(config, shape, source)
    trained = read_prompts(engine, shape, written_dtype=release.dtype)
    return export_model(engine, folder, release, source, check=partial(check_model, trained))


def close(
    config: RunConfig, trainer: Trainer, result: TrainingResult, answers: list[Answer]
) -> None:
    """Leave the process group; on rank 0, show what the run has led to."""
    trainer.logs.flush()
    trainer.logs.metrics.finish()  # before any rank ends: one that fails stops the others
    is_first = dist.get_rank() == 0
    dist.barrier()
    dist.destroy_process_group()
    if not (is_first and result.is_complete):
        return
    keep_samples(Path(config.train.output_dir), answers, result.step)
    for answer in answers:
        show_answer(answer, console)
    report_at_end(Path(config.train.output_dir))
    show_closing(config, console)


def wait_for_commands(
    config: RunConfig, saver: Saver, heartbeat: Heartbeat, result: TrainingResult
) -> str | None:
    """Wait until the user's commands have seen to all checkpoints; called by every rank.

    Returns:
        how one failed for the last checkpoint, the same on every rank; None: none did.
    """
    command = config.checkpoints.after_checkpoint
    if not command:
        return None
    heartbeat.report(result.step, "waiting for after_checkpoint")
    commands, said_at = saver.commands, time.monotonic()
    logger.info("waiting for the end of after_checkpoint: %s", command)
    while max_over_ranks([len(commands.in_use()) if commands else 0], saver.engine.device)[0]:
        waits_for = commands.describe() if commands else None
        if waits_for and time.monotonic() > said_at + COMMAND_REMINDER_SECONDS:
            logger.warning("the run is over and waits: %s", waits_for)
            said_at = time.monotonic()
        tell_progress()
        time.sleep(COMMAND_POLL_SECONDS)
    saver.delete_what_was_in_use()
    faults: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(faults, commands.fault if commands else None)
    return next(filter(None, faults), None)


def judge(config: RunConfig, result: TrainingResult, uncopied: str | None) -> int:
    """The exit code of a run that has left all it should.

    Args:
        config: of the run.
        result: how it ended.
        uncopied: how after_checkpoint failed for the last checkpoint.

    Raises:
        NoRoomError: its last checkpoint is missing.
        NotCopiedError: it is complete, and that is not where the user wants it.
    """
    if not result.is_saved:
        end = "complete" if result.is_complete else f"stopped after step {result.step}"
        raise NoRoomError(
            f"the run is {end}, but the disk of {config.train.output_dir} did not take its last "
            "checkpoint: make room there; --wait_for_room_minutes says how long a run waits for it"
        )
    if uncopied and result.is_complete:
        raise NotCopiedError(
            "the run is complete, but after_checkpoint failed for its last checkpoint: "
            f"{uncopied}. All of it lies in {config.train.output_dir}"
        )
    return SUCCESS if result.is_complete else RESUME
