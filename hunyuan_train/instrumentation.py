"""What watches a run: numbers, routers, answers, rates, traces; asked before it and after it.

`run.py` hands each to where it is used.
"""

import logging
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
from hunyuan_train.data.compiled.cache import prepare_dataset
from hunyuan_train.errors import ConfigError
from hunyuan_train.evaluation.answers import AnswerCheck
from hunyuan_train.evaluation.needle_in_a_haystack import (
    NEEDLE_SEED,
    describe_needle_scores,
    make_needles,
)
from hunyuan_train.evaluation.needle_probe import RetentionProbe
from hunyuan_train.evaluation.scoring import choose_questions
from hunyuan_train.families.grammar.tokenizer import Tokenizer
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.json_lines import JsonLines, Numbers
from hunyuan_train.trainer.loop import Ending, Trainer, describe_evaluation, evaluate_all
from hunyuan_train.trainer.memory_estimate import find_gpu
from hunyuan_train.trainer.metrics import MetricsLog, open_metrics
from hunyuan_train.trainer.profiler import StepProfiler
from hunyuan_train.trainer.router_monitor import RouterGuardian, profile_batches
from hunyuan_train.trainer.state import TrainerState
from hunyuan_train.trainer.step import RouterTerms
from hunyuan_train.trainer.throughput import Throughput

logger = logging.getLogger(__name__)


def make_metrics(
    config: RunConfig, checkpoint: Checkpoint | None, start: dict[str, Any]
) -> MetricsLog | None:
    """Rank 0 keeps the numbers."""
    if dist.get_rank():
        return None
    output_dir = Path(config.train.output_dir)
    return open_metrics(
        output_dir,
        report_to=config.logs.report_to,
        run_name=config.logs.run_name or output_dir.name,
        settings=asdict(config) | {"start": start},
        notes=checkpoint[1]["notes"] if checkpoint else {},
    )


def make_guardian(
    config: RunConfig,
    engine: deepspeed.DeepSpeedEngine,
    routers: RouterTerms,
    metrics: MetricsLog | None,
) -> RouterGuardian:
    """What sees routers go astray; rank 0 tells the tracker."""
    folder = Path(config.train.output_dir)
    if not metrics:
        return RouterGuardian(engine, routers, config.guardian, folder, lambda title, text: None)
    return RouterGuardian(
        engine, routers, config.guardian, folder, metrics.alert, metrics.show_load
    )


def make_answer_check(
    config: RunConfig,
    engine: deepspeed.DeepSpeedEngine,
    tokenizer: Tokenizer,
    metrics: MetricsLog | None,
) -> AnswerCheck | None:
    """Questions of the held-out data, where answers are to be judged."""
    num_prompts = config.evaluation.eval_generate
    if not num_prompts:
        return None
    dataset = prepare_dataset(config.data, tokenizer, split="eval")
    questions = choose_questions(dataset, tokenizer, num_prompts)
    if not questions:
        raise ConfigError(
            f"eval_generate is {num_prompts}, but the evaluation data has no fast or "
            "slow answer; set --eval_generate 0, or give records with a mode"
        )
    return AnswerCheck(
        engine,
        questions,
        tokenizer,
        JsonLines(Path(config.train.output_dir, run_files.ANSWERS)) if metrics else None,
        metrics.log_table if metrics else None,
        max_new_tokens=config.evaluation.eval_max_new_tokens,
    )


def make_probe(
    config: RunConfig, engine: deepspeed.DeepSpeedEngine, tokenizer: Tokenizer
) -> RetentionProbe | None:
    """What is looked for in long texts, where that is asked for."""
    lengths = needle_lengths(config.evaluation.needle_lengths)
    if not lengths:
        return None
    number = config.evaluation.needle_number
    needles = make_needles(tokenizer, lengths, number=number, seed=NEEDLE_SEED)
    is_first = dist.get_rank() == 0
    log = JsonLines(Path(config.train.output_dir, run_files.NEEDLES)) if is_first else None
    return RetentionProbe(engine, needles, tokenizer, log)


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


def make_profiler(config: RunConfig) -> StepProfiler | None:
    """What traces steps, where that is asked for."""
    steps = profiled_steps(config.logs.profile)
    return StepProfiler(*steps, Path(config.train.output_dir)) if steps else None


def make_batch_log(config: RunConfig) -> JsonLines | None:
    """Each rank keeps its own list of batches, where that is asked for."""
    if not config.logs.record_batches:
        return None
    return JsonLines(Path(config.train.output_dir, "log", f"batches-rank{dist.get_rank()}.jsonl"))


def look_before_training(
    trainer: Trainer, probe: RetentionProbe | None, state: TrainerState, start: dict[str, Any]
) -> None:
    """Note the start, the base model's routing and, for comparison, what it answers."""
    if trainer.metrics:
        path = Path(trainer.config.train.output_dir, run_files.STARTS)
        JsonLines(path).append({"step": state.step, **start})
    trainer.report_progress(state.step, "evaluating before training")
    trainer.guardian.start(state.step, profile_batches(trainer.batches))
    if probe and probe.log:
        probe.log.forget_after(state.step or -1)
    if state.step:
        return
    numbers: Numbers = {}
    if trainer.answers:
        numbers = evaluate_all(trainer, 0)
        logger.info("before training  %s", describe_evaluation(numbers))
    if probe:
        found = probe.run(0)
        logger.info("before training  %s", describe_needle_scores(found))
        numbers |= found
    if trainer.metrics and numbers:
        trainer.metrics.log(numbers, 0)


def look_after_training(trainer: Trainer, probe: RetentionProbe | None, ending: Ending) -> None:
    """Note what is found in long texts now."""
    if probe is None or not ending.is_complete:
        return
    trainer.report_progress(ending.step, "evaluating after training")
    found = probe.run(ending.step)
    logger.info("after training  %s", describe_needle_scores(found))
    if trainer.metrics:
        trainer.metrics.amend(found, ending.step)
