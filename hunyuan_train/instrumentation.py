"""What watches a run: logs, routers, answers, rates, traces; what is noted before and after it.

`run.py` hands each to where it is used.
"""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import deepspeed
import torch.distributed as dist

from hunyuan_train.checkpoint.resume import Checkpoint
from hunyuan_train.config import run_files
from hunyuan_train.config.rules.evaluation import needle_lengths
from hunyuan_train.config.rules.logs import profiled_steps
from hunyuan_train.config.schema import RunConfig
from hunyuan_train.data.compiled.cache import prepare_dataset, prepare_evaluation
from hunyuan_train.errors import ConfigError
from hunyuan_train.evaluation.answers import AnswerCheck, ask_nothing
from hunyuan_train.evaluation.losses import list_sources
from hunyuan_train.evaluation.needle_in_a_haystack import (
    NEEDLE_SEED,
    describe_needle_scores,
    make_needles,
)
from hunyuan_train.evaluation.needle_probe import NeedleProbe
from hunyuan_train.evaluation.pair_table import PairTable, make_pair_table
from hunyuan_train.evaluation.scoring import choose_questions
from hunyuan_train.families.grammar.tokenizer import Tokenizer
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.json_lines import JsonLines, Lines, NoLines, Numbers
from hunyuan_train.objectives.preference_warnings import find_warnings
from hunyuan_train.objectives.router_losses import RouterTerms
from hunyuan_train.trainer.describe import describe_evaluation
from hunyuan_train.trainer.loop import Trainer, TrainingResult, evaluate_all
from hunyuan_train.trainer.memory_estimate import find_gpu
from hunyuan_train.trainer.metrics import Logs, open_metrics
from hunyuan_train.trainer.profiler import StepProfiler, profile_nothing
from hunyuan_train.trainer.router_monitor import NoRouters, RouterMonitor
from hunyuan_train.trainer.state import TrainerState
from hunyuan_train.trainer.throughput import Throughput

logger = logging.getLogger(__name__)

Asked = Callable[[int], Numbers]  # scores of answers, after so many steps; every rank takes part


def open_logs(config: RunConfig, checkpoint: Checkpoint | None, start: dict[str, Any]) -> Logs:
    """Open the run's files and trackers: rank 0's, and each rank's own list of batches."""
    output_dir, rank = Path(config.train.output_dir), dist.get_rank()

    def lines(name: str) -> Lines:
        return NoLines() if rank else JsonLines(output_dir / name)

    metrics = open_metrics(
        output_dir,
        lines(run_files.METRICS),
        report_to="none" if rank else config.logs.report_to,
        run_name=config.logs.run_name or output_dir.name,
        settings=asdict(config) | {"start": start},
        notes=checkpoint[1]["notes"] if checkpoint else {},
    )
    batches = JsonLines(output_dir / "log" / f"batches-rank{rank}.jsonl")
    return Logs(
        metrics=metrics,
        answers=lines(run_files.ANSWERS),
        pairs=lines(run_files.PAIRS),
        needles=lines(run_files.NEEDLES),
        batches=batches if config.logs.record_batches else NoLines(),
        router_load=lines(run_files.ROUTER_LOAD),
        quarantine=lines(run_files.QUARANTINE),
        starts=lines(run_files.STARTS),
    )


def make_router_monitor(
    config: RunConfig,
    engine: deepspeed.DeepSpeedEngine,
    routers: RouterTerms,
    logs: Logs,
) -> RouterMonitor | NoRouters:
    """What sees routers collapse or drift, where the model has any."""
    if not routers.watch.load_LE.numel():
        return NoRouters()
    return RouterMonitor(engine, routers, config.guardian, logs.router_load, logs.metrics)


def make_answer_check(
    config: RunConfig,
    engine: deepspeed.DeepSpeedEngine,
    tokenizer: Tokenizer,
    logs: Logs,
) -> Asked:
    """Questions of the held-out data, where answers are to be scored."""
    num_prompts = config.evaluation.eval_generate
    if not num_prompts:
        return ask_nothing
    records = config.preferences.records
    dataset = prepare_dataset(config.data, tokenizer, split="eval", records=records)
    questions = choose_questions(dataset, tokenizer, num_prompts)
    if not questions:
        raise ConfigError(
            f"eval_generate is {num_prompts}, but the evaluation data has no fast or "
            "slow answer; set --eval_generate 0, or give records with a mode"
        )
    answer_check = AnswerCheck(
        engine,
        questions,
        tokenizer,
        logs.answers,
        logs.metrics.log_table,
        max_new_tokens=config.evaluation.eval_max_new_tokens,
        metric=config.evaluation.eval_metric,
    )
    answer_check.load_metric()
    return answer_check.run


def make_held_out_table(config: RunConfig, tokenizer: Tokenizer, logs: Logs) -> PairTable:
    """Held-out pairs to be shown with their rewards, where the objective learns from pairs."""
    records = config.preferences.records
    is_paired = records == "pairs"
    dataset = prepare_evaluation(config.data, tokenizer, records=records) if is_paired else None
    return make_pair_table(dataset, tokenizer, logs.pairs) if dataset else PairTable()


def make_probe(
    config: RunConfig, engine: deepspeed.DeepSpeedEngine, tokenizer: Tokenizer, logs: Logs
) -> Asked:
    """What is looked for in long texts, where that is asked for."""
    lengths = needle_lengths(config.evaluation.needle_lengths)
    if not lengths:
        return ask_nothing
    number = config.evaluation.needle_number
    needles = make_needles(tokenizer, lengths, number=number, seed=NEEDLE_SEED)
    return NeedleProbe(engine, needles, tokenizer, logs.needles).run


def make_throughput(config: RunConfig, shape: ModelShape) -> Throughput:
    """What rates are measured by."""
    gpu = find_gpu()
    return Throughput(
        shape=shape,
        num_ranks=dist.get_world_size(),
        row_length=config.data.max_seq_length,
        trains_all=not config.lora.use_lora,
        peak_flops=gpu.bf16_flops if gpu else None,
    )


def make_profiler(config: RunConfig) -> Callable[[int], AbstractContextManager[None]]:
    """What traces steps, where that is asked for."""
    steps = profiled_steps(config.logs.profile)
    return StepProfiler(*steps, Path(config.train.output_dir)).step if steps else profile_nothing


def note_before_training(
    trainer: Trainer, probe: Asked, state: TrainerState, start: dict[str, Any]
) -> None:
    """Note the start and, for comparison, what the base model answers."""
    total_steps = trainer.total_steps
    trainer.logs.starts.append({"step": state.step, "total_steps": total_steps, **start})
    trainer.report_progress(state.step, "evaluating before training")
    trainer.router_monitor.start(state.step)
    if state.step:
        return
    numbers: Numbers = {}
    if trainer.config.evaluation.eval_generate or len(list_sources(trainer.eval_batches)) > 1:
        numbers = evaluate_all(trainer, 0)
        logger.info("before training  %s", describe_evaluation(numbers))
    numbers |= look_for_needles(probe, 0, "before training")
    if numbers:
        trainer.logs.metrics.log(numbers, 0)


def note_after_training(trainer: Trainer, probe: Asked, result: TrainingResult) -> None:
    """Note what is found in long texts now."""
    if not result.is_complete:
        return
    for text in find_warnings(trainer.logs.metrics.lines.read()):
        logger.warning("%s", text)
    trainer.report_progress(result.step, "evaluating after training")
    found = look_for_needles(probe, result.step, "after training")
    if found:
        trainer.logs.metrics.amend(found, result.step)


def look_for_needles(probe: Asked, step: int, when: str) -> Numbers:
    """Ask for what is hidden in long texts, and say what was found."""
    found = probe(step)
    if found:
        logger.info("%s  %s", when, describe_needle_scores(found))
    return found
