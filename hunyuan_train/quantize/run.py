"""One quantisation, once all is checked: written, verified, measured, published and shown."""

import argparse
import logging
import resource
import time
from typing import Any

from transformers.utils.logging import set_verbosity_error

from hunyuan_train.checkpoint.errors import CheckpointError
from hunyuan_train.checkpoint.publish import publish_summed, unfinished_until_published
from hunyuan_train.families.grammar.tokenizer import Tokenizer
from hunyuan_train.quantize.assess import Assessment, assess, find_material
from hunyuan_train.quantize.formats import Format
from hunyuan_train.quantize.inputs import Inputs
from hunyuan_train.quantize.job import Job
from hunyuan_train.quantize.model_folder import size_of_weights, write_json
from hunyuan_train.quantize.report import describe_sizes, find_nonsense, find_undone, make_tables
from hunyuan_train.terminal import PlainConsole, say

logger = logging.getLogger(__name__)
REPORT = "quantization_report.json"


def quantize_and_show(
    job: Job, chosen: Format, inputs: Inputs, tokenizer: Tokenizer, arguments: argparse.Namespace
) -> None:
    """Quantise as the command was asked to.

    Raises:
        CheckpointError: IN is damaged, or fine-tuning does not survive.
    """
    set_verbosity_error()  # it warns of the released RoPE's alpha, which it knows and uses
    wanted = Assessment(
        inputs=inputs,
        tokenizer=tokenizer,
        num_samples=arguments.samples,
        num_questions=arguments.questions,
    )
    report = quantize(job, chosen, wanted, allows_loss=arguments.allow_loss)
    show(report)
    chosen.finish(job)
    logger.info("quantised into %s", job.output)


def quantize(job: Job, chosen: Format, wanted: Assessment, *, allows_loss: bool) -> dict[str, Any]:
    """Write, verify, measure and publish; returns the report, which lies in OUT too.

    Raises:
        CheckpointError: too little of the fine-tuning survives; nothing is published.
    """
    material = find_material(job, wanted)
    with unfinished_until_published(job.output) as unfinished:
        started = time.monotonic()
        digests = chosen.write(job, unfinished)
        report: dict[str, Any] = {
            "format": chosen.name + (f":{job.type}" if job.type else ""),
            "source": str(job.source.resolve()),
            "bytes_before": size_of_weights(job.source),
            "bytes_after": size_of_weights(unfinished),
            "write_seconds": time.monotonic() - started,
            "write_memory_bytes": peak_memory(),
        }
        report |= assess(job, chosen, unfinished, wanted, material)
        report["peak_memory_bytes"] = peak_memory()
        _demand_worth(report, chosen, allows_loss=allows_loss)
        publish_summed(job.output, digests | write_json(unfinished / REPORT, report))
    return report


def _demand_worth(report: dict[str, Any], chosen: Format, *, allows_loss: bool) -> None:
    """Refuse to publish what computes no numbers, or has lost what was taught.

    Raises:
        CheckpointError: naming what was measured and a more accurate format.
    """
    nonsense, undone = find_nonsense(report), find_undone(report)
    if nonsense:
        show(report)
        raise CheckpointError(
            f"{nonsense}, so {report['source']} in {report['format']} computes NaN or infinity, or "
            f"did so before; if it did not, choose a more accurate format ({chosen.gentler}). "
            "Nothing was published"
        )
    if undone and not allows_loss:
        show(report)
        raise CheckpointError(
            f"only {undone} survives {report['format']}, and 95% should; choose a more accurate "
            f"format ({chosen.gentler}), calibrate on more dialogues, or accept the loss with "
            "--allow_loss. Nothing was published"
        )


def peak_memory() -> int:
    """The most memory that this process has held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def show(report: dict[str, Any]) -> None:
    """Print the report for people."""
    console = PlainConsole()
    for table in make_tables(report):
        console.print(table)
    for name, reason in report["left_out"].items():
        say(f"{name.replace('_', ' ')} left out: {reason}")
    say(describe_sizes(report))
