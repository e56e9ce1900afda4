"""`hunyuan-train verify-resume RECIPE`: proof, on this machine, that resuming is exact.

A run is trained twice by the very commands a user would give: once without a break, and once killed
(SIGKILL to every process of it) beyond a checkpoint and resumed. Then every tensor of the last
checkpoints and every batch are compared, bit for bit.
"""

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from hunyuan_train.checkpoint.errors import CheckpointError
from hunyuan_train.checkpoint.folder import (
    MANIFEST,
    checkpoint_step,
    list_checkpoints,
    read_manifest,
)
from hunyuan_train.checkpoint.run_fingerprint import describe_code
from hunyuan_train.checkpoint.verify import verify_checkpoint
from hunyuan_train.config.load import dump_config, load_config
from hunyuan_train.config.run_files import METRICS, is_clocked
from hunyuan_train.config.schema import RunConfig
from hunyuan_train.config.settings import with_settings
from hunyuan_train.launcher.host.supervise import list_children
from hunyuan_train.launcher.rank.environment import own_environment
from hunyuan_train.log import console
from hunyuan_train.model.safetensors_header import TensorLocation, read_header
from hunyuan_train.shipped import TRAIN_SCRIPT
from hunyuan_train.terminal import say

Arguments = argparse.Namespace
DEFAULT_STEPS, DEFAULT_SAVES = 6, 2
POLL_SECONDS = 0.05
BLOCK_BYTES = 2**24


@dataclass(slots=True)
class Certificate:
    """What was done and what was found."""

    command: str
    code: dict[str, str]
    killed_after_step: int
    resumed_from_step: int
    last_step: int
    num_processes: int
    num_tensors: int = 0
    num_bytes: int = 0
    num_batches: int = 0
    sha256: str = ""  # of all compared tensors
    differences: list[str] = field(default_factory=list)


def add_verify_resume(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = subparsers.add_parser("verify-resume")
    parser.description = (
        f"Train a recipe for {DEFAULT_STEPS} steps without interruption. Train it again, kill it "
        "after a checkpoint and resume it. Then compare every tensor and every batch. Any setting "
        "of train may follow (--max_steps, --save_steps, --model_name_or_path ...). All files are "
        "in OUTPUT_DIR.verify-resume: at most two checkpoints of each run, and at the end only the "
        "certificate. Exit code 1 if anything differs."
    )
    parser.add_argument(
        "recipe", metavar="RECIPE", help="tiny, lora, one_gpu, full, long or a YAML file"
    )
    parser.add_argument("settings", nargs=argparse.REMAINDER, help="settings of train")
    parser.set_defaults(run=run_verify_resume)


def run_verify_resume(arguments: Arguments) -> int:
    """Prove it, print the certificate, and say in the exit code whether anything differs."""
    config = load_config(["--recipe", arguments.recipe, *with_defaults(arguments.settings)])
    save_steps, max_steps = config.checkpoints.save_steps, config.train.max_steps
    if not 0 < save_steps < max_steps:
        raise CheckpointError(
            f"save_steps is {save_steps} and max_steps {max_steps}; to be killed beyond a "
            "checkpoint, a run must save before its last step"
        )
    folder = Path(f"{config.train.output_dir}.verify-resume").absolute()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    whole, resumed = folder / "whole", folder / "resumed"
    console.print("1 of 3: training without a break")
    finish(start(config, whole, folder / "whole"))
    console.print("2 of 3: training again, to be killed beyond a checkpoint")
    killed_after = train_and_kill(start(config, resumed, folder / "killed"), resumed)
    resumed_from = checkpoint_step(list_checkpoints(resumed)[-1])
    console.print(
        f"3 of 3: killed after step {killed_after}, resuming from the checkpoint of {resumed_from}"
    )
    finish(start(config, resumed, folder / "resumed", resume="auto"))
    certificate = Certificate(
        command=" ".join(["verify-resume", arguments.recipe, *arguments.settings]),
        code=describe_code(),
        killed_after_step=killed_after,
        resumed_from_step=resumed_from,
        last_step=config.train.max_steps,
        num_processes=len(list((whole / "log").glob("batches-rank*.jsonl"))),
    )
    compare(whole, resumed, certificate)
    path = folder / "certificate.json"
    path.write_text(json.dumps(asdict(certificate), indent=1) + "\n", encoding="utf-8")
    show(certificate, path)
    if certificate.differences:
        return 1
    for done in (whole, resumed):
        shutil.rmtree(done)
    return 0


def with_defaults(settings: Sequence[str]) -> list[str]:
    """The settings given, with those that a proof needs where they are not."""
    wanted = {"max_steps": DEFAULT_STEPS, "save_steps": DEFAULT_SAVES}
    given = {word.lstrip("-").partition("=")[0].replace("-", "_") for word in settings}
    added = [f"--{name}={value}" for name, value in wanted.items() if name not in given]
    if "deterministic" not in given:  # on GPUs nothing is proven without it
        added.append("--deterministic")
    fixed = ["--record_batches", "--no_export", "--sample_answers=false"]
    return [*settings, *added, *fixed, "--logging_steps=1", "--save_total_limit=2"]


@dataclass(frozen=True, slots=True)
class Started:
    """A run that was started, and the file of what it says."""

    process: subprocess.Popen[bytes]
    log: Path

    def fail(self) -> CheckpointError:
        """What to raise where it should not have ended so."""
        exit_code = self.process.returncode
        return CheckpointError(f"a run ended with exit code {exit_code}; see {self.log}")


def start(config: RunConfig, output_dir: Path, name: Path, *, resume: str | None = None) -> Started:
    """Start a run as a user does; its settings and what it says are in NAME.yaml and NAME.txt."""
    settings = name.with_suffix(".yaml")
    changed = with_settings(config, output_dir=str(output_dir), resume_from_checkpoint=resume)
    dump_config(changed, settings)
    command = [sys.executable, str(TRAIN_SCRIPT), "--config", str(settings)]
    log = name.with_suffix(".txt")
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=own_environment())
    return Started(process, log)


def finish(run: Started) -> None:
    """Wait for the end of a run.

    Raises:
        CheckpointError: the run failed.
    """
    if run.process.wait():
        raise run.fail()


def train_and_kill(run: Started, output_dir: Path) -> int:
    """Kill every process of a run at once, when it is beyond a checkpoint; returns the step."""
    process = run.process
    while not is_beyond_a_checkpoint(output_dir):
        if process.poll() is not None:
            raise run.fail()
        time.sleep(POLL_SECONDS)
    for process_id in [*descendants(process.pid), process.pid]:
        with suppress(ProcessLookupError):
            os.kill(process_id, signal.SIGKILL)
    process.wait()
    return last_step(output_dir / METRICS)


def is_beyond_a_checkpoint(output_dir: Path) -> bool:
    """Whether a step was logged after the one that a checkpoint holds."""
    checkpoints = list_checkpoints(output_dir)
    newest = checkpoint_step(checkpoints[-1]) if checkpoints else None
    return newest is not None and last_step(output_dir / METRICS) > newest


def descendants(process_id: int) -> Iterator[int]:
    """All processes below one."""
    for child in list_children(process_id):
        yield from descendants(child)
        yield child


def last_step(metrics: Path) -> int:
    """The last step that a run has logged whole; 0 before the first."""
    if not metrics.exists():
        return 0
    lines = metrics.read_text(encoding="utf-8").splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]
    return int(json.loads(whole[-1])["step"]) if whole else 0


def compare(whole: Path, resumed: Path, certificate: Certificate) -> None:
    """Compare last checkpoints, batches and metrics, adding what differs to the certificate."""
    ours, theirs = list_checkpoints(resumed)[-1], list_checkpoints(whole)[-1]
    compare_tensors(theirs, ours, certificate)
    for path in sorted((whole / "log").glob("batches-rank*.jsonl")):
        certificate.num_batches += compare_lines(path, resumed / "log" / path.name, certificate)
    compare_lines(whole / METRICS, resumed / METRICS, certificate)


def compare_tensors(whole: Path, resumed: Path, certificate: Certificate) -> None:
    """Compare every tensor of two checkpoints, each checked against its own checksums first."""
    for folder in (whole, resumed):
        verify_checkpoint(folder)
    manifest, other = read_manifest(whole), read_manifest(resumed)
    if manifest["state"] != other["state"]:
        certificate.differences.append(f"{MANIFEST}: the runs stand elsewhere")
    digest = hashlib.sha256()
    for name in manifest["files"]:
        tensors, others = read_header(whole / name), read_header(resumed / name)
        if {one: replace(at, file=whole / name) for one, at in others.items()} != tensors:
            certificate.differences.append(f"{name}: other tensors")
            continue
        for tensor, at in tensors.items():
            certificate.num_tensors += 1
            certificate.num_bytes += at.num_bytes
            if not same_bytes(at, resumed / name, digest):
                certificate.differences.append(f"{name}: {tensor}")
    certificate.sha256 = digest.hexdigest()


def same_bytes(at: TensorLocation, other: Path, digest: "hashlib._Hash") -> bool:
    """Whether another file holds the same bytes in a tensor's place; adds them to a digest."""
    is_same, num_bytes = True, at.num_bytes
    with at.file.open("rb") as ours, other.open("rb") as theirs:
        ours.seek(at.byte_offset)
        theirs.seek(at.byte_offset)
        while num_bytes:
            block = ours.read(min(BLOCK_BYTES, num_bytes))
            is_same &= block == theirs.read(len(block))
            digest.update(block)
            num_bytes -= len(block)
    return is_same


def compare_lines(path: Path, other: Path, certificate: Certificate) -> int:
    """Compare two files of an object a step; returns how many the first holds."""
    ours, theirs = read_lines(path), read_lines(other)
    steps = [str(one["step"]) for one, two in zip(ours, theirs, strict=False) if one != two]
    if len(ours) != len(theirs):
        steps.append(f"{len(ours)} lines against {len(theirs)}")
    if steps:
        certificate.differences.append(f"{path.name}: step {', '.join(steps)}")
    return len(ours)


def read_lines(path: Path) -> list[dict[str, object]]:
    """The objects of a file, without what a clock says."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if not is_clocked(k)} for line in lines]


def show(certificate: Certificate, path: Path) -> None:
    """Print what was proven, or what differs."""
    say("CERTIFICATE OF RESUME" if not certificate.differences else "RESUME IS NOT EXACT")
    say(f"  command    {certificate.command}")
    say(f"  code       {', '.join(' '.join(pair) for pair in certificate.code.items())}")
    say(
        f"  run        {certificate.num_processes} processes, {certificate.last_step} steps; "
        f"killed (SIGKILL) after step {certificate.killed_after_step}, resumed from "
        f"{certificate.resumed_from_step}"
    )
    say(
        f"  compared   {certificate.num_tensors} tensors (weights, optimizer and random states, "
        f"{certificate.num_bytes:,} bytes) and {certificate.num_batches} batches, bit for bit"
    )
    say(f"  sha256     {certificate.sha256}")
    for difference in certificate.differences:
        say(f"  DIFFERS    {difference}")
    if not certificate.differences:
        say("  result     nothing differs")
    say(f"  written to {path}")
