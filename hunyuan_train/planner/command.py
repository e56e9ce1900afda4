"""`hunyuan-train plan`: will a run fit, what does it take, and what would fit instead."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path

from hunyuan_train.config.load import dump_config, load_command_line, read_value
from hunyuan_train.config.planned_machines import HELP, PlannedMachines, parse_machines
from hunyuan_train.config.resolve import choose_num_processes, resolve
from hunyuan_train.config.rules.listing import SETTINGS_ALONE
from hunyuan_train.config.schema import RunConfig
from hunyuan_train.config.settings import FIELDS
from hunyuan_train.errors import ConfigError
from hunyuan_train.families.registry import PRESETS
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.hub.models import fetch_config
from hunyuan_train.hub.names import DEFAULT_FOLDER, parse_model_name
from hunyuan_train.log import log_to_screen
from hunyuan_train.model.base_folder import resolve_base
from hunyuan_train.planner.estimate import Estimate, estimate_run
from hunyuan_train.planner.gentlest import describe_form, resolve_gentlest
from hunyuan_train.planner.machine import GPUS, as_hardware, as_machine
from hunyuan_train.planner.search import Nearest, find_nearest
from hunyuan_train.planner.text import (
    as_json,
    describe_estimate,
    describe_nearest,
    describe_shortage,
)
from hunyuan_train.terminal import PlainParser, say

EXIT_REFUSED = 1
RELEASED = "a13b"
RELEASED_FOLDER = "Hunyuan-A13B-Instruct"  # in the recipes; --fit must not write a preset
DESCRIPTION = """\
Estimate what a run needs, before it starts and without a GPU: memory of each GPU by purpose, host
memory, disk, bytes sent, and the time of a step. If the run does not fit, the plan says why and
names the nearest plan that does. The exit code is then 1.

You can add any setting of `train`, such as --max_seq_length 16384, and --recipe or --config.
Training makes the same plan before it starts, and rejects the same runs."""
EPILOG = """\
examples:
  full fine-tuning of the released model with AdamW. Eight 80 GB GPUs are too few, so the
  nearest plan that fits is named:
    hunyuan-train plan --model a13b --gpus 8 --gpu_memory 80 --method full \\
      --optimizer adamw
  the same, and write that plan's settings to a file for `train --config`:
    hunyuan-train plan --model a13b --gpus 8 --optimizer adamw --fit fits.yaml
  LoRA with longer rows on two machines:
    hunyuan-train plan --model a13b --method lora --nodes 2 --max_seq_length 32768

--gpu knows the speeds of {gpus}.
GB are 10^9 bytes. nvidia-smi shows what a card really has: an "80 GB" H100 has 85.5."""


def run_plan(arguments: Sequence[str]) -> int:
    """Print a plan.

    Returns:
        0 where the run fits, 1 where it does not.

    Raises:
        ConfigError: settings that do not go together.
    """
    parser = build_parser()
    options, settings = parser.parse_known_args(list(arguments))
    asked = read_settings(options, settings)
    given = {name: vars(options)[name] for name in HELP if vars(options)[name] is not None}
    machines = parse_machines(given)
    hardware = as_hardware(machines)
    machine = as_machine(machines)
    resolve_asked = partial(
        resolve,
        shape=find_shape(asked),
        machine=machine,
        slots=[choose_num_processes(asked, machine)] * machines.nodes,
        known=SETTINGS_ALONE,
    )
    run = resolve_gentlest(asked, resolve_asked, hardware)
    estimate = estimate_run(run, hardware)
    nearest = None if estimate.fits else find_nearest(asked, run, hardware)
    if options.json:
        say(json.dumps(as_json(estimate, nearest), indent=1))
    else:
        say("\n".join(answer(estimate, nearest)))
    if options.fit:
        fitting = asked if estimate.fits else nearest.config if nearest else None
        told = write_fit(options.fit, fitting)
        if not options.json:
            say(told)
    return 0 if estimate.fits else EXIT_REFUSED


def build_parser() -> argparse.ArgumentParser:
    """The command's own flags; all others are settings of a run."""
    parser = PlainParser(
        prog="hunyuan-train plan",
        description=DESCRIPTION,
        epilog=EPILOG.format(gpus=", ".join(GPUS)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--model", metavar="NAME",
        help="a13b (default), another preset, a model folder, or OWNER/NAME on a hub, from which "
        "only config.json is downloaded",
    )  # fmt: skip
    add("--method", choices=("full", "lora"), help="the recipe to start from (default: full)")
    for field in fields(PlannedMachines):
        default = "" if field.default is None else f" (default: {field.default})"
        add(f"--{field.name}", metavar="VALUE", help=field.metadata["help"] + default)
    add("--json", action="store_true", help="print the plan for programs: bytes and seconds")
    add("--fit", type=Path, metavar="YAML", help="write the settings that fit to a file")
    return parser


def read_settings(options: argparse.Namespace, settings: Sequence[str]) -> RunConfig:
    """The run that is asked about.

    Raises:
        ConfigError: an unknown setting, or two sources of settings.
    """
    names = [word.partition("=")[0] for word in settings]
    has_source = "--recipe" in names or "--config" in names
    if has_source and options.method:
        raise ConfigError(
            f"method is {options.method}, and a recipe or config is given too; each is a whole set "
            "of settings: give one of them"
        )
    words = list(settings) if has_source else ["--recipe", options.method or "full", *settings]
    if options.model:
        name = RELEASED_FOLDER if options.model == RELEASED else options.model
        words += ["--model_name_or_path", name]
    return load_command_line(words).config


def find_shape(config: RunConfig) -> ModelShape:
    """The shape of a run's model, of the released one also where it has not been downloaded.

    Raises:
        ConfigError: neither a preset nor a folder with a usable config.json, or a hub's own words.
    """
    name = config.model.model_name_or_path
    if name == RELEASED_FOLDER and not Path(name).is_dir():
        return PRESETS[RELEASED]
    remote = None if name in PRESETS else parse_model_name(name, hub=config.launch.hub)
    if remote:
        log_to_screen()
        name = str(fetch_config(remote, Path(config.launch.download_dir or DEFAULT_FOLDER)))
    return resolve_base(name)


def answer(estimate: Estimate, nearest: Nearest | None) -> list[str]:
    """The plan and the verdict on it."""
    form = describe_form(estimate.run)
    lines = [*describe_estimate(estimate), *([form] if form else []), ""]
    if estimate.fits:
        return [*lines, "fits"]
    refusals = [f"does not fit: {describe_shortage(one)}" for one in estimate.shortages]
    return [*lines, *refusals, describe_nearest(nearest, estimate)]


def write_fit(path: Path, config: RunConfig | None) -> str:
    """Write settings that fit, for `train --config`.

    The demo's dialogues, which stand for those that a plan needs none of, are left out: training
    then asks for the user's own.

    Returns:
        what was written, and how to train with it.

    Raises:
        ConfigError: none are known, or the file cannot be written.
    """
    if config is None:
        raise ConfigError("no plan near the one asked for fits, so there is nothing to write")
    demo = read_value("train_data_file", FIELDS["train_data_file"].default)
    left_out = ("train_data_file",) if config.data.train_data_file == demo else ()
    try:
        dump_config(config, path, left_out=left_out)
    except OSError as error:
        raise ConfigError(f"fit is {path}, which cannot be written: {error.strerror}") from error
    name = config.model.model_name_or_path
    has_model = (
        name in PRESETS or Path(name).is_dir() or parse_model_name(name, hub=config.launch.hub)
    )
    wanted = [] if has_model else ["--model_name_or_path FOLDER"]
    wanted += ["--train_data_file FILE"] if left_out else []
    command = " ".join(["hunyuan-train", "train", "--config", str(path), *wanted])
    return f"settings written to {path}; train with them: {command}"
