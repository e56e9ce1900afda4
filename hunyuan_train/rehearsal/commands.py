"""`hunyuan-train rehearse`: the run itself, at its true size, on GPUs that are not there.

Without torch: what pretends to be a GPU runs in a process of its own (`process.py`).
"""

import argparse
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from hunyuan_train.config.planned_machines import HELP, parse_machines
from hunyuan_train.config.resolve import choose_num_processes, resolve
from hunyuan_train.config.resolved_run import ResolvedRun
from hunyuan_train.config.rules.engine_file import uses_deepep
from hunyuan_train.config.rules.listing import SETTINGS_ALONE
from hunyuan_train.errors import ConfigError
from hunyuan_train.launcher.host.extension import extensions_folder
from hunyuan_train.planner.activations import possible_skew
from hunyuan_train.planner.command import find_shape, read_settings
from hunyuan_train.planner.gentlest import resolve_gentlest
from hunyuan_train.planner.machine import as_hardware, as_machine
from hunyuan_train.planner.memory import SKEWED, plan_memory
from hunyuan_train.rehearsal.guard import prepare_guard
from hunyuan_train.rehearsal.question import Question
from hunyuan_train.rehearsal.text import as_json, describe_rehearsal
from hunyuan_train.shipped import python_path
from hunyuan_train.terminal import PlainParser, say

EXIT_FAULTY = 1
PARTS = ("save", "evaluation", "generation")
MOST_SKEW = 8.0
DESCRIPTION = """\
Run a training as one of its ranks would, on a machine without a GPU: the same engine, optimizer,
attention, adapters, checkpoint and evaluation, at the model's true size. Tensors have shapes and
devices, but no data. The other ranks do not exist. The rank trains two steps, collects and resumes
a checkpoint, evaluates a row and generates an answer.

The output shows the memory of the GPU, by purpose (beside the plan) and by line of code. It shows
what torch's allocator would reserve, the bytes of every collective operation, every place where the
CPU waits for the GPU, and the kernels of a step. Code that mixes devices or leaks memory is an
error with its line. The output also says what a rehearsal cannot show. The exit code is 1 if
something is wrong.

You can add any setting of `train`, such as --max_seq_length 16384, and --recipe or --config."""
EPILOG = """\
examples:
  full fine-tuning of the released model on eight 80 GB GPUs (some minutes):
    hunyuan-train rehearse --method full
  LoRA on all modules, with two layers only (the same per layer, but sooner):
    hunyuan-train rehearse --method lora --lora_target_modules all --layers 2
  rows of 262,144 tokens on four machines, as JSON:
    hunyuan-train rehearse --recipe long --nodes 4 --json

`hunyuan-train plan` gives the totals in a fraction of a second. `train --dry_run --gpus 8` checks
the real data and settings, but runs no step."""


def run_rehearse(arguments: Sequence[str]) -> int:
    """Rehearse a run and print what was seen.

    Returns:
        0, or 1 where something is wrong with the run.

    Raises:
        ConfigError: settings that do not go together, or nothing to compile with.
    """
    parser = build_parser()
    options, settings = parser.parse_known_args(list(arguments))
    run = resolve_rehearsed(options, settings)
    skew = possible_skew(run, read_skew(options.skew))
    micro_steps = read_micro_steps(options.micro_steps, run)
    guard = prepare_guard(extensions_folder(os.environ), compiler=os.environ.get("CXX", "g++"))
    question = Question(
        run=run,
        skew=skew,
        gpu_memory=run.machine.gpu_memory,
        parts=frozenset() if options.steps_only else frozenset(PARTS),
        guard=str(guard),
        micro_steps=micro_steps,
    )
    seen = ask_process(question)
    plan = plan_memory(run, imbalance=skew)
    if options.json:
        say(json.dumps(as_json(seen, plan, run, skew), indent=1))
    else:
        say("\n".join(describe_rehearsal(seen, plan, run, skew)))
    return EXIT_FAULTY if seen["errors"] or seen.get("leaks") else 0


def build_parser() -> argparse.ArgumentParser:
    """The command's own flags; all others are settings of a run."""
    parser = PlainParser(
        prog="hunyuan-train rehearse",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model", metavar="NAME", help="a13b (default), another preset, or a model folder")
    add("--method", choices=("full", "lora"), help="the recipe to start from (default: full)")
    for name in ("gpus", "nodes", "gpu", "gpu_memory"):
        add(f"--{name}", metavar="VALUE", help=HELP[name])
    add(
        *("--skew", "--imbalance"), metavar="TIMES", default=f"{SKEWED:g}",
        help="load of this rank's experts, in equal shares, at most as many as ranks share the "
        "experts (default: %(default)s, as in a plan)",
    )  # fmt: skip
    add(
        "--layers",
        type=int,
        metavar="N",
        help="number of layers, for a cheaper rehearsal (default: the model's)",
    )
    add(
        "--micro_steps", type=int, metavar="N", default=1,
        help="micro-steps of the counted step, which are all alike (default: %(default)s)",
    )  # fmt: skip
    add("--steps_only", action="store_true", help="skip checkpoint, evaluation and generation")
    add("--json", action="store_true", help="print everything as JSON, for programs")
    return parser


def resolve_rehearsed(options: argparse.Namespace, settings: Sequence[str]) -> ResolvedRun:
    """The run that is rehearsed, on the machines that flags describe.

    Raises:
        ConfigError: settings that do not go together.
    """
    asked = read_settings(options, settings)
    given = {name: vars(options).get(name) for name in HELP}
    machines = parse_machines({name: one for name, one in given.items() if one is not None})
    machine, shape = as_machine(machines), find_shape(asked)
    if options.layers is not None:
        if not 1 <= options.layers <= shape.num_hidden_layers:
            raise ConfigError(
                f"layers is {options.layers}; set it to a number from 1 to "
                f"{shape.num_hidden_layers}, as many as the model has"
            )
        shape = replace(shape, num_hidden_layers=options.layers)
    slots = [choose_num_processes(asked, machine)] * machines.nodes
    there = partial(resolve, shape=shape, machine=machine, slots=slots, known=SETTINGS_ALONE)
    run = resolve_gentlest(asked, there, as_hardware(machines))
    if not run.is_bf16:
        raise ConfigError("bf16 is false, and GPUs are rehearsed in bfloat16; leave it at auto")
    if uses_deepep(run):
        raise ConfigError(
            f"{run.engine_path} sets expert_parallel.comm_backend to deepep, of which a rehearsal "
            'knows nothing; rehearse the run with "comm", the engine\'s own exchange'
        )
    return run


def read_skew(text: str) -> float:
    """How uneven experts are.

    Raises:
        ConfigError: no number, or one that cannot be.
    """
    try:
        skew = float(text)
    except ValueError:
        skew = float("nan")
    if not 1 <= skew <= MOST_SKEW:
        raise ConfigError(
            f"skew is {text}; it takes a number from 1, where all experts get as much, to "
            f"{MOST_SKEW:g}, where one rank of eight gets all"
        )
    return skew


def read_micro_steps(number: int, run: ResolvedRun) -> int:
    """How many micro-steps the counted step has.

    Raises:
        ConfigError: none, or more than a step of the run has.
    """
    most = run.config.train.gradient_accumulation_steps
    if not 1 <= number <= most:
        raise ConfigError(
            f"micro_steps is {number}; it takes a number from 1 to {most}, as many as a step of "
            "this run has (gradient_accumulation_steps)"
        )
    return number


def ask_process(question: Question) -> dict[str, Any]:
    """What the rehearsing process saw; its progress shows on stderr.

    Raises:
        ConfigError: it ended without an answer.
    """
    done = subprocess.run(
        [sys.executable, "-m", "hunyuan_train.rehearsal.process"],
        input=pickle.dumps(question),
        stdout=subprocess.PIPE,
        env=process_environment(os.environ),
        check=False,
    )
    if done.returncode:
        raise ConfigError(
            f"the rehearsing process ended with exit code {done.returncode}; what it said is above"
        )
    seen: dict[str, Any] = json.loads(done.stdout)
    return seen


def process_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """That of the process: no real GPU, one thread, and this package."""
    ours = {name: value for name, value in environment.items() if name != "DS_ACCELERATOR"}
    ours["PYTHONPATH"] = python_path(ours.get("PYTHONPATH"))
    ours["TORCH_EXTENSIONS_DIR"] = str(Path(extensions_folder(environment)))
    ours["CUDA_VISIBLE_DEVICES"] = ""
    ours["DS_ACCELERATOR"] = "cuda"
    ours.setdefault("OMP_NUM_THREADS", "1")
    return ours
