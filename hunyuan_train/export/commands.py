"""`hunyuan-train export`, `merge`, `convert_adapter` and `verify`: all about checkpoints."""

import argparse
from pathlib import Path

from hunyuan_train.checkpoint.errors import CheckpointError
from hunyuan_train.checkpoint.publish import check_vacant
from hunyuan_train.checkpoint.run_folder import check_stopped_run, find_best
from hunyuan_train.checkpoint.verify import checkpoints_of, verify_checkpoint
from hunyuan_train.deferred import Deferred
from hunyuan_train.export.lora_deltas import open_merge
from hunyuan_train.log import log_to_screen
from hunyuan_train.terminal import say

Arguments = argparse.Namespace
MOVED = ("model_name_or_path", "tokenizer_name_or_path")


def add_checkpoint_commands(
    subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]",
) -> None:
    """Add the commands; each sets `run`, which takes the parsed arguments."""
    export = subparsers.add_parser("export")
    export.description = (
        "Write the model of a stopped run in the released layout, or its adapter in PEFT's form. "
        "This needs one machine and no GPU."
    )
    export.add_argument(
        "checkpoint",
        type=Path,
        metavar="CHECKPOINT",
        help="RUN/checkpoints/STEP, or RUN for its last",
    )
    _add_output(export)
    export.add_argument(
        "--best",
        action="store_true",
        help="of a RUN the checkpoint of its best evaluation, which train --save_best keeps",
    )
    export.add_argument(
        "--dtype",
        choices=("bfloat16", "float32"),
        help="default: that of the base weights",
    )
    export.add_argument(
        "--model_name_or_path", metavar="DIR", help="current folder of the base model"
    )
    export.add_argument(
        "--tokenizer_name_or_path", metavar="DIR", help="current folder of the tokenizer"
    )
    export.set_defaults(run=run_export)

    _add_merge(subparsers)
    _add_convert_adapter(subparsers)
    _add_verify(subparsers)


def _add_merge(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    merge = subparsers.add_parser("merge")
    merge.description = (
        "Merge a PEFT LoRA adapter into its base, file by file, in the base's dtypes. A quantised "
        "base is merged by stochastic rounding. The share of the training that survives is then "
        "measured on the dialogues of its run. OUT appears if that is 95 % or more."
    )
    add = merge.add_argument
    add("base", type=Path, metavar="BASE", help="model folder, of either layout")
    add("adapter", type=Path, metavar="ADAPTER", help="folder with adapter_config.json")
    _add_output(merge)
    add("--train_data", metavar="FILE", help="dialogues it was trained on (default: its run's)")
    add(
        "--samples",
        type=int,
        default=64,
        metavar="N",
        help="number of these dialogues to measure on (default: %(default)s)",
    )
    add("--allow_loss", action="store_true", help="merge even if less than 95 %% survives")
    merge.set_defaults(run=run_merge)


def _add_convert_adapter(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    convert = subparsers.add_parser("convert_adapter")
    convert.description = (
        "Write a PEFT adapter in the layout of another client. Adapters on attention look "
        "the same to all clients. PEFT stores adapters on routed experts together, and "
        "SGLang expert by expert. The numbers stay the same, bit for bit. vLLM reads PEFT's "
        "layout if it starts with --enable-mixed-moe-lora-format and loads the adapter with "
        "is_3d_lora_weight. `hunyuan-train serve` does both."
    )
    convert.add_argument(
        "base", type=Path, metavar="BASE", help="model folder that it was trained on"
    )
    convert.add_argument(
        "adapter", type=Path, metavar="ADAPTER", help="folder with adapter_config.json"
    )
    _add_output(convert)
    convert.add_argument("--layout", required=True, choices=("peft", "vllm", "sglang"))
    convert.set_defaults(run=run_convert_adapter)


def _add_verify(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    verify = subparsers.add_parser("verify")
    verify.description = (
        "Read a checkpoint, or all checkpoints of a run, and compare every byte with the checksums "
        "from the time of writing. If anything differs, the file is named and the exit code is 1."
    )
    verify.add_argument(
        "checkpoint", type=Path, metavar="CHECKPOINT", help="RUN/checkpoints/STEP, or RUN for all"
    )
    verify.set_defaults(run=run_verify)


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "output", type=Path, metavar="OUT", help="new folder. It appears once it is complete"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace OUT once the new one is complete"
    )


def run_export(arguments: Arguments) -> Deferred:
    """Check what is to be exported, from which stopped run."""
    output = _find_output(arguments)
    places = {name: vars(arguments)[name] for name in MOVED}
    moved = {name: place for name, place in places.items() if place is not None}
    checkpoint = find_best(arguments.checkpoint) if arguments.best else arguments.checkpoint
    check_stopped_run(checkpoint, moved)
    log_to_screen()
    given = {"checkpoint": checkpoint, "moved": moved, "output": output, "dtype": arguments.dtype}
    return Deferred("export", given)


def run_verify(arguments: Arguments) -> int:
    """Verify one checkpoint or all of a run."""
    num_damaged = 0
    for folder in checkpoints_of(arguments.checkpoint):
        try:
            manifest = verify_checkpoint(folder)
        except CheckpointError as error:
            say(f"{folder.name} is damaged: {error}")
            num_damaged += 1
        else:
            size = sum(entry["size"] for entry in manifest["files"].values())
            say(f"{folder.name} is whole: {len(manifest['files'])} files, {size:,} bytes")
    return 1 if num_damaged else 0


def run_merge(arguments: Arguments) -> Deferred:
    """Check which adapter is merged into which base."""
    output = _find_output(arguments)
    if output in (arguments.base.resolve(), arguments.adapter.resolve()):
        raise CheckpointError(f"OUT is {output}, which is being read; give another folder")
    merge = open_merge(arguments.base, arguments.adapter, takes_quantised=True)
    log_to_screen()
    if merge.shape.stored_as:
        return Deferred("merge_quantised", {"arguments": arguments, "output": output})
    given = {"base": arguments.base, "adapter": arguments.adapter, "output": output}
    return Deferred("merge", given)


def run_convert_adapter(arguments: Arguments) -> Deferred:
    """Check which adapter is converted."""
    output = _find_output(arguments)
    if output in (arguments.base.resolve(), arguments.adapter.resolve()):
        raise CheckpointError(f"OUT is {output}, which is being read; give another folder")
    open_merge(arguments.base, arguments.adapter)
    log_to_screen()
    given = {"base": arguments.base, "adapter": arguments.adapter, "folder": output}
    return Deferred("convert_adapter", given | {"layout": arguments.layout})


def _find_output(arguments: Arguments) -> Path:
    output: Path = arguments.output.resolve()
    check_vacant(output, overwrite=arguments.overwrite)
    return output
