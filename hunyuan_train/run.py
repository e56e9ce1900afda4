"""One run, from configuration to exported model: the only place that assembles the parts.

They are built in the order in which they are used: processes, data, model, engine, loop, export.
"""

import logging
import os
import random
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import deepspeed
import numpy as np
import torch
import torch.distributed as dist

from hunyuan_train.checkpoint.background import Saver
from hunyuan_train.checkpoint.resume import Checkpoint, choose_checkpoint
from hunyuan_train.checkpoint.retention import delete_superfluous
from hunyuan_train.checkpoint.run_fingerprint import (
    check_changes,
    check_same_data,
    describe_run,
    identify_start,
)
from hunyuan_train.checkpoint.state import load_checkpoint
from hunyuan_train.checkpoint.user_commands import CheckpointCommands, fetch_checkpoints
from hunyuan_train.config import run_files
from hunyuan_train.config.load import dump_config, tokenizer_folder
from hunyuan_train.config.resolved_run import ResolvedRun
from hunyuan_train.config.schema import RunConfig
from hunyuan_train.data.batches.loader import Batch, BatchSampler, DataShard, Position, eval_by_file
from hunyuan_train.data.compiled.cache import find_cache_dir, prepare_dataset, prepare_evaluation
from hunyuan_train.data.compiled.fingerprint import Identity, identify_data
from hunyuan_train.data.dataset import Dataset
from hunyuan_train.ending import close, export_at_last, judge, wait_for_commands
from hunyuan_train.errors import ConfigError
from hunyuan_train.evaluation.samples import answer_at_last
from hunyuan_train.export.started_adapters import assemble_started
from hunyuan_train.families.grammar.find import load_tokenizer
from hunyuan_train.families.grammar.tokenizer import Tokenizer
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.families.vocabulary import check_vocabulary
from hunyuan_train.instrumentation import (
    make_answer_check,
    make_held_out_table,
    make_probe,
    make_profiler,
    make_router_monitor,
    make_throughput,
    note_after_training,
    note_before_training,
    open_logs,
)
from hunyuan_train.launcher.host.triton import check_triton
from hunyuan_train.launcher.machine import detect_machine
from hunyuan_train.launcher.rank.environment import deterministic_environment
from hunyuan_train.launcher.rank.heartbeat import Heartbeat, node_folder
from hunyuan_train.log import start_logging
from hunyuan_train.model.find_model import find_model
from hunyuan_train.model.weights import WeightSource
from hunyuan_train.objectives.choose import ask_reference, choose_objective
from hunyuan_train.objectives.router_losses import RouterTerms, watch_and_weigh
from hunyuan_train.parallel.determinism import compute_deterministically
from hunyuan_train.parallel.engine import read_recorders, start_process_group
from hunyuan_train.parallel.numa import bind_to_numa_node
from hunyuan_train.progress import listen_to_progress
from hunyuan_train.quantize.expert_loss import measure_expert_loss
from hunyuan_train.trainer.loop import Trainer, train
from hunyuan_train.trainer.memory_estimate import estimate_here
from hunyuan_train.trainer.metrics import Logs
from hunyuan_train.trainer.out_of_memory import explain_memory
from hunyuan_train.trainer.schedule import count_steps, in_whole_steps
from hunyuan_train.trainer.starts import count_starts, describe_start
from hunyuan_train.trainer.state import TrainerState, read_state

logger = logging.getLogger(__name__)


def run(resolved: ResolvedRun, heartbeat: Heartbeat) -> int:
    """Train, as one of the ranks that torchrun started, and export the result.

    What runs out of memory says where it went, and which settings take less.
    """
    try:
        return train_and_export(resolved, heartbeat)
    except (RuntimeError, MemoryError) as error:  # torch's own kinds are RuntimeErrors
        if words := explain_memory(error, resolved):
            error.add_note(words)
        raise


def train_and_export(resolved: ResolvedRun, heartbeat: Heartbeat) -> int:
    """Assemble the parts of a run in the order in which they are used, and let them work.

    Args:
        resolved: as every rank resolves it by itself.
        heartbeat: tells the node agent how far this rank is.

    Returns:
        the exit code: success, or that the run stopped on request and is to be resumed.
    """
    started, config = time.monotonic(), resolved.config
    check_triton(resolved)  # under a torchrun of the user's, who has asked no doctor
    meet_others(config, heartbeat)
    tokenizer = load_tokenizer(tokenizer_folder(config.model), config.model.add_tokens)
    dataset = prepare_dataset(config.data, tokenizer, records=config.preferences.records)
    shape, source = find_own_model(config, tokenizer)
    resolved = replace(resolved, shape=shape)  # with the tokenizer's vocabulary
    lost = measure_expert_loss(resolved, source, tokenizer)
    engine, checkpoint = assemble_started(resolved, source), find_start(config)
    objective, routers = choose_objective(config), watch_and_weigh(engine, shape, config.model)
    dataset = judge_data(config, engine, shape, dataset)
    batches = make_batches(config, dataset)
    made_of = describe_run(config, shape, rows_per_step=batches.rows_per_step)
    data = identify_data(dataset, config.data, seed=config.train.seed)
    estimate = estimate_here(resolved, num_data_tokens=dataset.summary.num_tokens)
    start = describe_start(made_of, data, dataset.summary, plan=estimate.to_json(), lost=lost)
    logs = open_logs(config, checkpoint, start)
    saver = make_saver(config, engine, routers, {**made_of, "data": data}, logs)
    trainer = Trainer(
        engine=engine,
        objective=objective,
        routers=routers,
        batches=batches,
        eval_batches=make_eval_batches(config, tokenizer, engine, shape),
        config=follow_length(config, batches),
        logs=logs,
        checkpointer=saver,
        router_monitor=make_router_monitor(config, engine, routers, logs),
        answer=make_answer_check(config, engine, tokenizer, logs),
        pair_table=make_held_out_table(config, tokenizer, logs),
        throughput=make_throughput(config, shape),
        profile=make_profiler(config),
        estimate=estimate,
        num_restarts=count_starts(Path(config.train.output_dir)),
        report_progress=heartbeat.report,
    )
    seed_generators(config.train.seed)
    state = start_state(config, trainer, checkpoint, made_of=made_of, data=data)
    probe = make_probe(config, engine, tokenizer, logs)
    note_before_training(trainer, probe, state, start)
    result = train(trainer, state, started=started)
    note_after_training(trainer, probe, result)
    if result.is_complete and config.checkpoints.export:
        export_at_last(resolved, trainer, source, result)
    heartbeat.report(result.step, "ending")
    wanted = result.is_complete and config.evaluation.sample_answers
    answers = answer_at_last(wanted, engine, dataset, tokenizer)
    uncopied = wait_for_commands(config, saver, heartbeat, result)
    close(config, trainer, result, answers)
    return judge(config, result, uncopied)


def follow_length(config: RunConfig, batches: BatchSampler) -> RunConfig:
    """The settings with shares of the run as numbers of steps."""
    steps_per_epoch = batches.steps_per_epoch
    return in_whole_steps(config, count_steps(config.train, steps_per_epoch=steps_per_epoch))


def find_own_model(config: RunConfig, tokenizer: Tokenizer) -> tuple[ModelShape, WeightSource]:
    """The model that is trained, whose vocabulary the tokenizer's is.

    Raises:
        ConfigError: see `find_model` and `check_vocabulary`.
    """
    shape, source = find_model(config.model, tokenizer, seed=config.train.seed)
    check_vocabulary(config.model.model_name_or_path, shape, tokenizer)
    return shape, source


def meet_others(config: RunConfig, heartbeat: Heartbeat) -> None:
    """Join the other ranks, and tell the agent from now on what this one does."""
    output_dir = Path(config.train.output_dir)
    logs = config.logs
    start_logging(output_dir, is_verbose=logs.verbose, is_quiet=logs.quiet, is_json=logs.json)
    if config.train.deterministic:
        os.environ.update(deterministic_environment(os.environ))
        compute_deterministically()
    if config.launch.numa_binding == "node":
        bind_to_numa_node(int(os.environ["LOCAL_RANK"]))
    start_process_group(config.parallel.timeout_minutes, os.environ)
    heartbeat.read_recorders = read_recorders
    listen_to_progress(heartbeat.moved_on)
    heartbeat.report(0, "loading")
    check_gpus()
    if dist.get_rank() == 0 and not (output_dir / run_files.CONFIG).exists():
        dump_config(config, output_dir / run_files.CONFIG)  # under a torchrun of the user's


def check_gpus() -> None:
    """Refuse to train on the CPU because torch cannot use the GPUs that are there.

    Raises:
        ConfigError: naming torch's CUDA version.
    """
    if detect_machine().num_gpus and not torch.cuda.is_available():
        raise ConfigError(
            f"this machine has GPUs, but torch {torch.__version__} (CUDA {torch.version.cuda}) "
            "cannot use them; install a torch that fits the driver (see nvidia-smi), or set "
            "DS_ACCELERATOR=cpu to train on the CPU"
        )


def seed_generators(seed: int) -> None:
    """Seed what dropout draws from, otherwise on each rank; resuming sets the saved states."""
    random.seed(seed + dist.get_rank())
    np.random.seed(seed + dist.get_rank())
    torch.manual_seed(seed + dist.get_rank())


def make_batches(config: RunConfig, dataset: Dataset) -> BatchSampler:
    """This rank's share of the training data."""
    return BatchSampler(
        dataset,
        make_shard(config, rows=config.train.per_device_train_batch_size),
        accumulation_steps=config.train.gradient_accumulation_steps,
        seed=config.train.seed,
        packing=config.data.packing,
    )


def make_eval_batches(
    config: RunConfig, tokenizer: Tokenizer, engine: deepspeed.DeepSpeedEngine, shape: ModelShape
) -> list[Batch]:
    """This rank's share of the held-out data; nothing where none is held out."""
    dataset = prepare_evaluation(config.data, tokenizer, records=config.preferences.records)
    if dataset is None:
        return []
    dataset = judge_data(config, engine, shape, dataset)
    return eval_by_file(
        dataset,
        make_shard(config, rows=config.evaluation.per_device_eval_batch_size),
        packing=config.data.packing,
    )


def judge_data(
    config: RunConfig, engine: deepspeed.DeepSpeedEngine, shape: ModelShape, dataset: Dataset
) -> Dataset:
    """The data with what a reference says of it, where the objective has one that is kept."""
    return ask_reference(
        config,
        engine,
        dataset,
        make_shard(config, rows=config.train.per_device_train_batch_size),
        model=identify_start(config, shape),
        cache_dir=find_cache_dir(config.data),
    )


def make_shard(config: RunConfig, *, rows: int) -> DataShard:
    """Which rows this rank reads, and which part of each."""
    return DataShard(
        rows=rows,
        num_ranks=dist.get_world_size(),
        rank=dist.get_rank(),
        sequence_size=config.parallel.sequence_parallel_size,
    )


def find_start(config: RunConfig) -> Checkpoint | None:
    """The checkpoint that the run goes on from, known to be good; None to start afresh."""
    wanted = config.checkpoints.resume_from_checkpoint
    if wanted is None:
        return None
    if node_folder() is None:  # under a torchrun of the user's; otherwise the launcher has done it
        fetch_together(config)
    checkpoint = choose_checkpoint(wanted, Path(config.train.output_dir))
    if checkpoint is None:
        logger.info("no complete checkpoint in %s: starting afresh", config.train.output_dir)
    return checkpoint


def fetch_together(config: RunConfig) -> None:
    """Run before_resume, once or on each host; called by every rank.

    Raises:
        ConfigError: it failed.
    """
    fault = None
    if runs_user_commands(config):
        try:
            fetch_checkpoints(config)
        except ConfigError as error:
            fault = str(error)
    faults: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(faults, fault)
    if any(faults):
        raise ConfigError(next(filter(None, faults)))


def make_saver(
    config: RunConfig,
    engine: deepspeed.DeepSpeedEngine,
    routers: RouterTerms,
    made_of: dict[str, Any],
    logs: Logs,
) -> Saver:
    """What writes checkpoints beside training."""
    command = config.checkpoints.after_checkpoint
    return Saver(
        engine,
        routers.watch,
        Path(config.train.output_dir),
        config.checkpoints,
        made_of,
        logs.metrics.notes(),
        ranks_per_host=int(config.parallel.num_processes),
        commands=CheckpointCommands(command) if command and runs_user_commands(config) else None,
    )


def runs_user_commands(config: RunConfig) -> bool:
    """Whether this rank runs the user's commands: the first of all, or of each host."""
    is_each = config.checkpoints.commands_on == "each_host"
    return int(os.environ["LOCAL_RANK"]) == 0 if is_each else dist.get_rank() == 0


def start_state(
    config: RunConfig,
    trainer: Trainer,
    checkpoint: Checkpoint | None,
    *,
    made_of: dict[str, Any],
    data: Identity,
) -> TrainerState:
    """Restore what the checkpoint holds, if the run is made of the same.

    Raises:
        CheckpointError: it is not.
    """
    state = TrainerState()
    if checkpoint:
        folder, manifest = checkpoint
        ignores_change = config.checkpoints.ignore_data_change
        is_same = check_same_data(folder, data, ignores_change=ignores_change)
        check_changes(manifest["fingerprints"], made_of, folder, config=config)
        load_checkpoint(trainer.engine, folder, manifest, trainer.routers.watch)
        logger.info("resumed from %s", folder)
        state = read_state(manifest["state"])
        if config.checkpoints.resume_from_checkpoint == "auto" and dist.get_rank() == 0:
            # What a kill behind the last save has left; a run at its end saves no more.
            delete_superfluous(Path(config.train.output_dir), config.checkpoints, state)
        if not is_same:
            logger.warning("the data is not what the checkpoint saw: it is read from its start")
            state = replace(state, position=Position(state.position.epoch))
    trainer.logs.forget_after(state.step or -1)  # a run from the start owes nothing to another
    return state
