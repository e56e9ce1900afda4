"""All that is measured of a quantised model before its folder has its name."""

import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hunyuan_train.data.dataset import Dataset
from hunyuan_train.errors import ConfigError
from hunyuan_train.evaluation.scoring import choose_questions, score_answer, summarize
from hunyuan_train.export.check import MAX_CHECKED_PARAMETERS, load_source
from hunyuan_train.families.grammar.tokenizer import Tokenizer
from hunyuan_train.families.registry import PRESETS
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.families.tables import count_parameters, released_tensors
from hunyuan_train.model.compressed_values import round_activations
from hunyuan_train.model.compressed_weights import CompressedFolder, open_model
from hunyuan_train.model.weights import SeededWeights, WeightSource
from hunyuan_train.progress import tell_progress
from hunyuan_train.quantize.formats import Format
from hunyuan_train.quantize.gguf.types import TYPES
from hunyuan_train.quantize.inputs import Inputs
from hunyuan_train.quantize.job import Job
from hunyuan_train.quantize.measure import (
    Rows,
    choose_rows,
    compare_states,
    final_states,
    join_rows,
    summarize_loss,
    summarize_survival,
)
from hunyuan_train.quantize.verify import verify_values, verify_weights
from hunyuan_train.serve.generate import Sampling, ServedModel, generate

logger = logging.getLogger(__name__)
MAX_NEW_TOKENS = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Assessment:
    """What to judge with."""

    inputs: Inputs
    tokenizer: Tokenizer
    num_samples: int  # dialogues of each kind
    num_questions: int  # that both models answer; 0: none


@dataclass(frozen=True, kw_only=True, slots=True)
class Material:
    """What was found to judge with; each None where `left_out` says why."""

    questions: Dataset | None
    evaluation: Rows | None
    training: Rows | None
    base: WeightSource | None
    left_out: dict[str, str]


def assess(
    job: Job, chosen: Format, folder: Path, wanted: Assessment, material: Material
) -> dict[str, Any]:
    """Verify and measure a quantised model.

    Args:
        job: what was quantised.
        chosen: its format.
        folder: where it was written.
        wanted: what to judge with.
        material: found beforehand.

    Returns:
        the report: `weights`, `held_out`, `survival` and `answers`, each where it was measured,
        and in `left_out` why the others were not.

    Raises:
        CheckpointError: a weight is not what it was made of.
    """
    _, original, _ = open_model(job.source)
    written = chosen.open_weights(folder, job.shape)
    report: dict[str, Any] = {"left_out": dict(material.left_out)}
    if isinstance(written, CompressedFolder):
        report["weights"] = verify_weights(original, written, job.shape)
    else:
        most_error = TYPES[job.type].most_error
        report["weights"] = verify_values(original, written, job.shape, most_error=most_error)
    if material.evaluation is not None or material.training is not None:
        report |= _compare(job, original, written, material, scratch=folder)
    if material.questions is None or not wanted.num_questions:
        return report
    if count_parameters(job.shape).total > MAX_CHECKED_PARAMETERS:
        report["left_out"]["answers"] = "the model is too large to generate here"
        return report
    sources = {"before": original, "after": written}
    answers = {
        name: answer_questions(job.shape, one, material.questions, wanted)
        for name, one in sources.items()
    }
    return report | {"answers": answers}


def find_material(job: Job, wanted: Assessment) -> Material:
    """Read dialogues and open the base, before hours are spent on a model to be judged with them.

    Raises:
        ConfigError: the base is another model.
        DataError: a file of dialogues is missing or damaged.
    """
    left_out: dict[str, str] = {}
    evaluation = training = None
    dataset = wanted.inputs.eval_dataset(wanted.tokenizer)
    if dataset is None:
        left_out["held_out"] = left_out["answers"] = (
            "no held-out dialogues are known; give --eval_data FILE"
        )
    else:
        evaluation = choose_rows(dataset, wanted.num_samples)
    found = find_base(job, wanted.inputs)
    base = None if isinstance(found, str) else found
    open_training = wanted.inputs.train_dataset(wanted.tokenizer)
    if isinstance(found, str):
        left_out["survival"] = found
    elif open_training is None:
        left_out["survival"] = "no training dialogues are known; give --train_data FILE"
    else:
        training = choose_rows(open_training(), wanted.num_samples)
    return Material(
        questions=dataset,
        evaluation=evaluation,
        training=training,
        base=base,
        left_out=left_out,
    )


def find_base(job: Job, inputs: Inputs) -> WeightSource | str:
    """The weights that were tuned, or why they are not known."""
    name = inputs.base
    if name is None:
        return "no base model is known; give --base DIR"
    if name in PRESETS and inputs.run is not None:
        return SeededWeights(inputs.run.train.seed, job.shape.initializer_range)
    if not Path(name, "config.json").exists():
        return f"the base model {name}, which the export names, is not there; give --base DIR"
    if Path(name).resolve() == job.source.resolve():
        raise ConfigError(
            f"base is {name}, which is the model itself; give the one it was tuned from"
        )
    shape, source, _ = open_model(Path(name))
    tensors = [released_tensors(one) for one in (shape, job.shape)]
    if shape.family != job.shape.family or tensors[0] != tensors[1]:
        raise ConfigError(
            f"base is {name}, which is another model than {job.source}: their weights have not the "
            "same names and sizes; give the model that was tuned"
        )
    return source


def _compare(
    job: Job,
    original: WeightSource,
    written: WeightSource,
    material: Material,
    *,
    scratch: Path,
) -> dict[str, Any]:
    """Let all rows through each model once, and compare."""
    evaluation, training, base = material.evaluation, material.training, material.base
    parts = [one for one in (evaluation, training) if one is not None]
    rows = join_rows(parts)
    rounding = None
    if isinstance(written, CompressedFolder):
        rounding = partial(round_activations, scheme=written.scheme)
    run = partial(
        final_states,
        job.shape,
        rows=rows,
        device="cuda" if torch.cuda.is_available() else "cpu",
        scratch=scratch,
    )
    before = run(original, title="computing the model as it is")
    after = run(written, title="computing the quantised model", rounding=rounding)
    scores = compare_states(before, after, rows.labels)
    num_held_out = 0 if evaluation is None else len(evaluation.labels)
    report: dict[str, Any] = {}
    if evaluation is not None:
        report["held_out"] = summarize_loss(scores.part(slice(0, num_held_out)), evaluation)
    if training is not None and base is not None:
        untuned = run(base, title="computing the base model")
        tuned = scores.part(slice(num_held_out, None))
        states = [(one[0][num_held_out:], one[1]) for one in (before, untuned)]
        of_base = compare_states(states[0], states[1], training.labels).after
        report["survival"] = summarize_survival(of_base, tuned.before, tuned.after, training)
    return report


def answer_questions(
    shape: ModelShape, source: WeightSource, dataset: Dataset, wanted: Assessment
) -> dict[str, float | int]:
    """Let a small model answer held-out questions, greedily, and score what it says."""
    served = ServedModel(load_source(shape, source), shape, wanted.tokenizer)
    questions = choose_questions(dataset, wanted.tokenizer, wanted.num_questions)
    sampling = Sampling(max_new_tokens=MAX_NEW_TOKENS, temperature=0)
    outputs = []
    for question in questions:
        ids, _ = generate(served, question.prompt, sampling)
        outputs.append(wanted.tokenizer.decode(ids))
        tell_progress()
    return summarize([score_answer(*one) for one in zip(questions, outputs, strict=True)])
