"""What is done once, before the ranks start: tokenized data, and the folder of the run."""

import fcntl
import logging
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from hunyuan_train.checkpoint.errors import CheckpointError
from hunyuan_train.checkpoint.folder import (
    checkpoint_step,
    find_checkpoint,
    list_checkpoints,
    read_manifest,
)
from hunyuan_train.checkpoint.run_fingerprint import check_changes, check_same_data, describe_run
from hunyuan_train.config.load import dump_config, tokenizer_folder
from hunyuan_train.config.resolved_run import ResolvedRun
from hunyuan_train.config.run_files import CONFIG
from hunyuan_train.config.schema import RunConfig
from hunyuan_train.data.batches.loader import BatchSampler, DataShard
from hunyuan_train.data.compiled.cache import holds_out_share, prepare_dataset, prepare_evaluation
from hunyuan_train.data.compiled.fingerprint import identify_data
from hunyuan_train.data.dataset import Dataset
from hunyuan_train.errors import ConfigError
from hunyuan_train.families.grammar.find import load_tokenizer
from hunyuan_train.families.grammar.tokenizer import Tokenizer
from hunyuan_train.families.registry import fit_vocabulary
from hunyuan_train.families.vocabulary import check_vocabulary
from hunyuan_train.trainer.schedule import count_steps
from hunyuan_train.whole_file import make_folders, open_lock

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunLength:
    """How long a run is on its data."""

    num_steps: int
    steps_per_epoch: int
    rows_per_step: int


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedRun:
    """A run with its tokenized dialogues."""

    run: ResolvedRun  # its model has the vocabulary of the tokenizer
    tokenizer: Tokenizer
    train: Dataset
    evaluation: Dataset | None
    length: RunLength


def prepare_run(run: ResolvedRun) -> PreparedRun:
    """Tokenize the data once, so that every rank finds it done.

    Raises:
        DataError: a record, a file or a tokenizer that cannot be used.
    """
    config = run.config
    tokenizer = load_tokenizer(tokenizer_folder(config.model), config.model.add_tokens)
    shape = fit_vocabulary(
        config.model.model_name_or_path,
        run.shape,
        vocab_size=tokenizer.vocab_size,
        pad_id=tokenizer.pad_id,
        eos_id=tokenizer.eos_id,
        num_new_tokens=tokenizer.num_added,
    )
    check_vocabulary(config.model.model_name_or_path, shape, tokenizer)
    for remark in tokenizer.remarks:
        logger.warning("%s", remark)
    records = config.preferences.records
    train = prepare_dataset(config.data, tokenizer, records=records)  # says what is wrong in them
    evaluation = prepare_evaluation(config.data, tokenizer, records=records)
    if evaluation is None and holds_out_share(config.data):
        say_nothing_is_held_out(config)
    return PreparedRun(
        run=replace(run, shape=shape),
        tokenizer=tokenizer,
        train=train,
        evaluation=evaluation,
        length=measure_length(run, train),
    )


def measure_length(run: ResolvedRun, dataset: Dataset) -> RunLength:
    """Lay the rows of an epoch, and count the steps."""
    train = run.config.train
    shard = DataShard(
        rows=train.per_device_train_batch_size,
        num_ranks=run.num_ranks,
        rank=0,
        sequence_size=run.sequence_size,
    )
    batches = BatchSampler(
        dataset,
        shard,
        accumulation_steps=train.gradient_accumulation_steps,
        seed=train.seed,
        packing=run.config.data.packing,
    )
    steps_per_epoch = batches.steps_per_epoch
    return RunLength(
        num_steps=count_steps(train, steps_per_epoch=steps_per_epoch),
        steps_per_epoch=steps_per_epoch,
        rows_per_step=batches.rows_per_step,
    )


def say_nothing_is_held_out(config: RunConfig) -> None:
    """Say that there is no evaluation, although a share is to be held out.

    Raises:
        ConfigError: a setting cannot do without one.
    """
    reason = (
        f"the samples of {config.data.train_data_file} have one question only, so no share of them "
        f"can be held out (eval_fraction is {config.data.eval_fraction:g})"
    )
    wanting = {
        "eval_generate": config.evaluation.eval_generate,
        "save_best": config.checkpoints.save_best,
        "early_stopping_patience": config.evaluation.early_stopping_patience,
    }
    for name, value in wanting.items():
        if value:
            raise ConfigError(
                f"{name} is {value}, but {reason}; give more dialogues, or --eval_data_file"
            )
    logger.warning("there is no evaluation: %s", reason)


def check_resume(prepared: PreparedRun) -> None:
    """Refuse to go on from a checkpoint of another run, before anything of that one changes.

    Raises:
        CheckpointError: it is of other data, settings or code, or damaged, or not the newest.
    """
    config = prepared.run.config
    wanted, output_dir = config.checkpoints.resume_from_checkpoint, Path(config.train.output_dir)
    if wanted is None:
        return
    folder = find_checkpoint(wanted, output_dir)
    if folder:
        manifest = read_manifest(folder)
        if wanted != "auto":
            check_newest(folder, manifest["state"]["step"], output_dir)
        current = identify_data(prepared.train, config.data, seed=config.train.seed)
        ignores_change = config.checkpoints.ignore_data_change
        check_same_data(folder, current, ignores_change=ignores_change)
        made_of = describe_run(config, prepared.run.shape)
        check_changes(manifest["fingerprints"], made_of, folder, config=config)


def check_whose_checkpoints(config: RunConfig, file: Path | None) -> None:
    """Refuse to start afresh where a stopped run was to go on in another folder.

    Args:
        config: of the new run.
        file: its settings were read from; that of a run lies beside its checkpoints.

    Raises:
        CheckpointError: naming the checkpoint that was probably meant.
    """
    output_dir, settings = Path(config.train.output_dir), config.checkpoints
    if settings.resume_from_checkpoint != "auto" or settings.before_resume:
        return
    if file is None or file.name != CONFIG or file.parent.resolve() == output_dir.resolve():
        return
    theirs = list_checkpoints(file.parent)
    if theirs and not list_checkpoints(output_dir):
        flag = shlex.join(["--resume_from_checkpoint", str(theirs[-1])])
        raise CheckpointError(
            f"resume_from_checkpoint is auto, which looks in output_dir, and {output_dir} has no "
            f"checkpoint; the run of {file} has {theirs[-1].name}. To go on from it in the new "
            f"folder, give {flag}; to start afresh, --resume_from_checkpoint none"
        )


def check_newest(folder: Path, step: int, output_dir: Path) -> None:
    """Refuse to go on from an earlier point of a run beside what came of it the first time.

    Raises:
        CheckpointError: a later start by "auto" would take those checkpoints for this run's.
    """
    newest = list_checkpoints(output_dir)[-1:]
    if newest and checkpoint_step(newest[0]) > step:
        raise CheckpointError(
            f"resume_from_checkpoint is {folder}, of step {step}, and {output_dir} goes on to "
            f"{newest[0].name}, which a later start would take for this run's; give another "
            "--output_dir, or delete the checkpoints that are newer"
        )


@contextmanager
def lock_output_folder(config: RunConfig) -> Iterator[None]:
    """Keep a second run out of the folder for as long as this one lasts.

    Raises:
        ConfigError: another run is in it, or the folder cannot be made.
    """
    folder = Path(config.train.output_dir).resolve()  # by whatever name it is given
    try:
        make_folders(folder.parent)
        lock = open_lock(folder.with_name(f".{folder.name}.lock"))
    except OSError as error:
        raise ConfigError(
            f"output_dir is {folder}, where nothing can be written ({error.strerror}); give a "
            "folder that can be made"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(
                f"output_dir is {folder}, in which another run is going on; wait for it, or give "
                "another folder"
            ) from error
        yield


def prepare_output_folder(config: RunConfig, console: Console) -> Path:
    """Make the folder of a run, move an earlier run aside where asked to, write config.yaml.

    Raises:
        ConfigError: the disk is full, or nothing may be written there.
    """
    folder = Path(config.train.output_dir).absolute()
    is_resumed = config.checkpoints.resume_from_checkpoint is not None
    if config.train.overwrite_output_dir and not is_resumed and (folder / CONFIG).exists():
        previous = folder.with_name(f"{folder.name}.previous")
        if list_checkpoints(folder):
            has_older = previous.exists()
            shutil.rmtree(previous, ignore_errors=True)
            folder.rename(previous)
            older = ", in place of the one before it, which is deleted" if has_older else ""
            console.print(f"the earlier run in {folder} moved to {previous}{older}")
        else:  # it reached no checkpoint, and must not push out one that did
            shutil.rmtree(folder)
    config_file = folder / CONFIG
    try:
        make_folders(folder)
        dump_config(config, config_file)
    except OSError as error:
        raise ConfigError(
            f"output_dir is {folder}, and {config_file.name} cannot be written there "
            f"({error.strerror}); make room, or give a folder on another disk"
        ) from error
    return config_file
