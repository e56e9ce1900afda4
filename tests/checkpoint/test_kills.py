"""Killed at any moment, a run goes on from its newest good checkpoint to the very same end."""

import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hunyuan_train.checkpoint.folder import list_checkpoints
from hunyuan_train.checkpoint.verify import verify_checkpoint
from hunyuan_train.config.load import load_config
from hunyuan_train.launcher.host.extension import SHARED_MEMORY, extensions_folder
from hunyuan_train.launcher.machine import detect_machine
from hunyuan_train.launcher.rank.heartbeat import announce_rank
from hunyuan_train.launcher.start.resolve_here import resolve_here
from hunyuan_train.run import run
from tests.ranks import run_ranks, start_ranks

NUM_RANKS = 2
NUM_STEPS = 5
SETTINGS = (
    *("--recipe", "tiny", "--num_processes", str(NUM_RANKS), "--no_export"),
    *("--eval_data_file", "none", "--eval_steps", "0", "--sample_answers", "false"),
    *("--max_seq_length", "256", "--overlong", "drop", "--max_steps", str(NUM_STEPS)),
    *("--save_steps", "1", "--save_total_limit", "2", "--resume_from_checkpoint", "auto"),
)


# Each way to train keeps, sends or saves something else; 20 kills of each are 100.
WAYS = {
    "lean": ("--optimizer", "lean", "--bf16", "true"),
    "accumulation": ("--gradient_accumulation_steps", "3"),
    "sequence sharing": ("--sequence_parallel_size", "2", "--expert_parallel_size", "2"),
    "save_best": (
        *("--eval_fraction", "0.1", "--eval_steps", "1", "--save_best"),
        *("--save_total_limit", "1", "--save_steps", "2"),
    ),
    "LoRA on experts": ("--use_lora", "--lora_target_modules", "all"),
}


def settings_of(way: str | None) -> list[str]:
    """The flags of a way to train, which take the place of the usual ones."""
    flags = dict(pair for pair in pairwise_flags(SETTINGS))
    flags |= dict(pairwise_flags(WAYS[way] if way else ()))
    if "--eval_fraction" in flags:
        del flags["--eval_data_file"]
    return [word for pair in flags.items() for word in pair if word]


def pairwise_flags(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Flags with their values; a switch has none."""
    for position, word in enumerate(words):
        if word.startswith("--"):
            following = words[position + 1] if position + 1 < len(words) else "--"
            yield word, "" if following.startswith("--") else following


def train_as_rank(output_dir: Path, way: str | None) -> None:
    try:
        config = load_config([*settings_of(way), "--output_dir", str(output_dir)])
        exit_code = run(resolve_here(config, machine=detect_machine()), announce_rank())
    except BaseException:  # noqa: BLE001  shown with the test's output
        traceback.print_exc()
        exit_code = 1
    os._exit(exit_code)


def start(output_dir: Path, way: str | None) -> list[BaseProcess]:
    """Start all ranks of a run, as torchrun does."""
    return [process for process, _ in start_ranks(train_as_rank, NUM_RANKS, output_dir, way)]


def finish(output_dir: Path, way: str | None) -> float:
    """Run to the end; returns how long that took."""
    began = time.monotonic()
    processes = start(output_dir, way)
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * NUM_RANKS
    return time.monotonic() - began


@dataclass
class End:
    """How a start came to its end."""

    is_killed: bool  # False: the run was complete before
    was_saving: bool  # a checkpoint was being written


def kill_once(output_dir: Path, seconds: float, moments: random.Random, way: str | None) -> End:
    """Start, and kill all ranks after a while; every other time, during one of the next saves."""
    began = time.time()
    processes = start(output_dir, way)
    deadline = time.monotonic() + moments.uniform(0.2, 1.1) * seconds
    num_saves = moments.randrange(1, 4) if moments.random() < 0.5 else 0
    seen: set[str] = set()
    while any(one.is_alive() for one in processes):
        seen |= list_unfinished(output_dir, began)
        if len(seen) >= num_saves > 0:
            time.sleep(moments.uniform(0, 0.05))
            break
        if not num_saves and time.monotonic() > deadline:
            break
        time.sleep(0.002)
    for process in processes:
        process.kill()
    for process in processes:
        process.join()
    # Of ranks killed while they load the extension; a start would wait a minute for its owner.
    Path(extensions_folder(os.environ), SHARED_MEMORY.name, "lock").unlink(missing_ok=True)
    codes = {process.exitcode for process in processes}
    assert codes <= {0, -signal.SIGKILL}, "a killed run must not fail by itself when it resumes"
    return End(codes != {0}, bool(list_unfinished(output_dir, began)))


def list_unfinished(output_dir: Path, began: float) -> set[str]:
    """Checkpoints that are being written, without those that an earlier kill has left."""
    names = set()
    for folder in output_dir.glob("checkpoints/*.incomplete"):
        with suppress(FileNotFoundError):  # it was finished just now
            if folder.stat().st_mtime > began:
                names.add(folder.name)
    return names


@pytest.mark.parametrize(
    ("num_kills", "way"),
    [
        pytest.param(2, None, id="2"),
        pytest.param(200, None, id="200", marks=pytest.mark.slow),
        *(pytest.param(20, way, id=f"20, {way}", marks=pytest.mark.slow) for way in WAYS),
    ],
)
def test_a_killed_run_ends_as_the_uninterrupted_one(
    tmp_path: Path, num_kills: int, way: str | None
) -> None:
    whole = tmp_path / "whole"
    run_ranks(os.getpid, 1)  # the fork server takes long to start, once
    seconds = finish(whole, way)
    moments = random.Random(0)
    num_killed = num_unfinished = num_rounds = 0
    # Go on, if need be, until some of the kills have come during saves.
    while num_killed < num_kills or num_unfinished < num_kills / 20:
        assert num_killed < 3 * num_kills, "hardly a kill comes during a save"
        output_dir = tmp_path / f"killed-{num_rounds}"
        num_rounds += 1
        is_killed = True
        while is_killed:
            end = kill_once(output_dir, seconds, moments, way)
            is_killed = end.is_killed
            num_killed += is_killed
            num_unfinished += end.was_saving
            for folder in list_checkpoints(output_dir):
                verify_checkpoint(folder)  # whatever bears the name is whole
        finish(output_dir, way)
        compare(whole, output_dir)
        sys.stdout.write(f"{num_killed} kills, {num_unfinished} of them while saving\n")


def compare(whole: Path, killed: Path) -> None:
    """The last checkpoints and all that was logged are the same."""
    names = [folder.name for folder in list_checkpoints(whole)]
    assert [folder.name for folder in list_checkpoints(killed)] == names
    for rank in range(NUM_RANKS):
        file = Path("checkpoints", names[-1], f"rank-{rank:05d}.safetensors")
        ours, theirs = load_file(killed / file), load_file(whole / file)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
