"""`hunyuan-train quantize`: a smaller model folder for servers, with what that cost it."""

import argparse
import os
from pathlib import Path

from hunyuan_train.checkpoint.errors import CheckpointError
from hunyuan_train.checkpoint.publish import check_vacant
from hunyuan_train.deferred import Deferred
from hunyuan_train.errors import ConfigError
from hunyuan_train.families.registry import read_shape
from hunyuan_train.json_file import read_json_object
from hunyuan_train.log import log_to_screen
from hunyuan_train.quantize.formats import FORMATS, find_format
from hunyuan_train.quantize.gptq_settings import VARIABLE
from hunyuan_train.quantize.job import Calibration, Job
from hunyuan_train.serve.errors import ServeError
from hunyuan_train.serve.folder import find_model_folder, is_adapter

EPILOG = """formats:
{formats}

OUT appears once it is complete, verified and measured. Measuring needs dialogues and the base
model. An export inside its run (RUN/export) uses the dialogues of the run. Its manifest, or that
of a merge, names the base model. For any other model, give --train_data, --eval_data and --base.

examples:
  hunyuan-train quantize runs/mine/export served --format fp8
  hunyuan-train quantize merged served --format w4a16 --python ~/.venv-llmcompressor/bin/python \\
      --train_data train.jsonl --eval_data eval.jsonl --base Hunyuan-A13B-Instruct
"""


def add_quantize_command(
    subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]",
) -> None:
    """Add the command; it sets `run`, which takes the parsed arguments."""
    width = max(len(one.name) for one in FORMATS)
    listed = "\n".join(f"  {one.name:{width}}  {one.help}" for one in FORMATS)
    command = subparsers.add_parser(
        "quantize",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EPILOG.format(formats=listed),
    )
    command.description = (
        "Write an exported, merged or released model in a smaller format that servers load, and\n"
        "measure the loss: perplexity, KL divergence and equal tokens on held-out dialogues, the\n"
        "answers of small models, and how much of the fine-tuning survives."
    )
    add = command.add_argument
    add("model", type=Path, metavar="IN", help="model folder, of either layout, not quantised")
    add("output", type=Path, metavar="OUT", help="new folder. It appears once it is complete")
    add("--format", required=True, metavar="FORMAT", help="see below")
    add("--overwrite", action="store_true", help="replace OUT once the new one is complete")
    add("--train_data", metavar="FILE", help="dialogues it was tuned on (default: its run's)")
    add("--eval_data", metavar="FILE", help="held-out dialogues (default: its run's)")
    add(
        "--base",
        type=Path,
        metavar="DIR",
        help="model it was tuned from (default: the one that export_manifest.json names)",
    )
    numbers = {
        "--samples": (64, "dialogues of each file to measure on"),
        "--questions": (16, "questions that both models answer, if they are small, 0 for none"),
        "--calibration_samples": (256, "training dialogues for the calibration of w4a16"),
    }
    for flag, (usual, text) in numbers.items():
        add(flag, type=int, default=usual, metavar="N", help=f"{text} (default: {usual})")
    add(
        "--python",
        metavar="PROGRAM",
        default=os.environ.get(VARIABLE),
        help=f"interpreter that has llm-compressor, for w4a16 (default: {VARIABLE})",
    )
    add("--llama_cpp", metavar="PATH", help="llama.cpp's folder, or an interpreter that has it")
    add(
        "--allow_loss",
        action="store_true",
        help="write OUT even if less than 95 %% of the fine-tuning survives",
    )
    command.set_defaults(run=run_quantize)


def run_quantize(arguments: argparse.Namespace) -> Deferred:
    """Check what is quantised, how, and by which dialogues it is measured.

    Raises:
        ConfigError: what is given does not fit.
        CheckpointError: OUT exists, or IN is damaged.
    """
    from hunyuan_train.families.grammar.find import load_tokenizer
    from hunyuan_train.quantize.inputs import find_inputs

    output = _check(arguments)
    chosen, type_ = find_format(arguments.format)
    inputs = find_inputs(
        arguments.model,
        train_data=arguments.train_data,
        eval_data=arguments.eval_data,
        base=arguments.base,
    )
    tokenizer = load_tokenizer(arguments.model)
    job = Job(
        source=arguments.model,
        shape=read_shape(arguments.model),
        output=output,
        type=type_,
        llama_cpp=arguments.llama_cpp,
        calibration=Calibration(
            num_samples=arguments.calibration_samples,
            python=arguments.python,
            open_dataset=inputs.train_dataset(tokenizer),
        ),
    )
    chosen.check(job)
    log_to_screen()
    given = {"job": job, "chosen": chosen, "inputs": inputs, "tokenizer": tokenizer}
    return Deferred("quantize", given | {"arguments": arguments})


def _check(arguments: argparse.Namespace) -> Path:
    """Refuse what cannot be meant, and return the final folder."""
    for name, least in {"samples": 1, "questions": 0, "calibration_samples": 1}.items():
        if vars(arguments)[name] < least:
            raise ServeError(f"{name} is {vars(arguments)[name]}; set it to {least} or more")
    output: Path = arguments.output.resolve()
    check_vacant(output, overwrite=arguments.overwrite)
    source = arguments.model.resolve()
    if output == source or output in source.parents:
        raise CheckpointError(f"OUT is {output}, which holds what is read; give another folder")
    if is_adapter(source):
        raise ConfigError(
            f"{arguments.model} is an adapter, which is served beside its base; merge it with "
            f"`hunyuan-train merge BASE {arguments.model} MERGED`, and quantise MERGED"
        )
    _refuse_quantised(arguments.model, find_model_folder(source, base=None) / "config.json")
    return output


def _refuse_quantised(model: Path, config: Path) -> None:
    try:
        fields = read_json_object(config)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{config} cannot be read ({error}); export the model again") from error
    if fields.get("quantization_config"):
        raise ConfigError(
            f"{model} is quantised already, as its config.json says, and quantising it again would "
            "lose twice; give the model that it was made from"
        )
