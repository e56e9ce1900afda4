"""Killed at any moment, an export or a merge leaves a whole folder or none."""

import hashlib
import multiprocessing
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import save_file

from hunyuan_train.checkpoint.publish import CHECKSUMS
from hunyuan_train.export.check import MAX_PARAMETERS_BESIDE
from hunyuan_train.export.from_checkpoint import export_stopped_run, open_stopped_run
from hunyuan_train.export.from_engine import export_model
from hunyuan_train.export.huggingface_folder import (
    Release,
    create_release,
    read_locations,
    write_weights,
)
from hunyuan_train.export.merge import merge_adapter
from hunyuan_train.families.tables import count_parameters
from tests.engines import small_engine
from tests.kill_moments import kill_at_work
from tests.measured import Repeated
from tests.ranks import PRELOADED, start_ranks
from tests.released import SHAPE, make_run, write_checkpoint

# Too large for the check of what it computes: what takes the time is the writing.
LARGE = replace(SHAPE, hidden_size=512, intermediate_size=512, num_experts=32, num_hidden_layers=4)
MEDIUM = replace(LARGE, num_experts=8)
NUM_KILLS = 10


def export(run: Path, output: Path) -> None:
    export_stopped_run(open_stopped_run(run, {}), output)


def write_base(folder: Path) -> None:
    folder.mkdir()
    create_release(folder, Release(shape=LARGE, dtype=torch.bfloat16, companions=()))
    write_weights(Repeated(), read_locations(folder), lambda _: None)


def write_adapter(folder: Path) -> None:
    """An adapter on every expert: all but a few bytes of the base change."""
    LoraConfig(
        r=2, target_parameters=["experts.gate_up_proj", "experts.down_proj"]
    ).save_pretrained(folder)
    tensors = {}
    for layer in range(LARGE.num_hidden_layers):
        name = f"base_model.model.model.layers.{layer}.mlp.experts"
        ranks = 2 * LARGE.num_experts
        for wrapper, out_size in (
            (".base_layer", 2 * LARGE.intermediate_size),
            ("", LARGE.hidden_size),
        ):
            in_size = LARGE.hidden_size if wrapper else LARGE.intermediate_size
            tensors[f"{name}{wrapper}.lora_A.weight"] = torch.randn(ranks, in_size)
            tensors[f"{name}{wrapper}.lora_B.weight"] = torch.randn(out_size, ranks)
    save_file(tensors, folder / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    assert count_parameters(LARGE).total > MAX_PARAMETERS_BESIDE
    folder = tmp_path_factory.mktemp("large")
    write_base(folder / "base")
    write_adapter(folder / "adapter")
    checkpoint = make_run(folder / "run", folder / "base")
    write_checkpoint(checkpoint, LARGE, Repeated(), num_ranks=2, expert_size=2)
    return folder


def start(function: Callable[..., None], *arguments: Path) -> multiprocessing.process.BaseProcess:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=function, args=arguments)
    process.start()
    return process


@pytest.mark.parametrize("command", [pytest.param("export", marks=pytest.mark.slow), "merge"])
def test_ctrl_c_ends_it_and_leaves_nothing_behind(
    inputs: Path, tmp_path: Path, command: str
) -> None:
    output = tmp_path / "out"
    sources = {"export": ["run"], "merge": ["base", "adapter"]}[command]
    arguments = [command, *(str(inputs / name) for name in sources), str(output)]
    process = subprocess.Popen([sys.executable, "-m", "hunyuan_train", *arguments])
    while not list(tmp_path.glob("out.incomplete/*.safetensors")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 128 + signal.SIGINT
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["export", pytest.param("merge", marks=pytest.mark.slow)])
def test_folder_is_whole_or_absent(inputs: Path, tmp_path: Path, command: str) -> None:
    output = tmp_path / "out"
    function, *arguments = {
        "export": (export, inputs / "run", output),
        "merge": (merge_adapter, inputs / "base", inputs / "adapter", output),
    }[command]
    seconds = 0.0
    for _ in range(2):  # the first one also starts the fork server
        delete(output)
        started = time.monotonic()
        process = start(function, *arguments)
        process.join()
        seconds = time.monotonic() - started
        assert process.exitcode == 0
    whole = (output / CHECKSUMS).read_text()

    def begin() -> multiprocessing.process.BaseProcess:
        delete(output)
        return start(function, *arguments)

    for kill in range(NUM_KILLS):
        kill_at_work(begin, kill * seconds / NUM_KILLS)
        assert kill or not output.exists()
        if output.exists():  # renamed, but for the end of the process
            assert (output / CHECKSUMS).read_text() == whole
            check_sums(output)
    delete(output)
    process = start(function, *arguments)  # over what the killed ones left behind
    process.join()
    assert (output / CHECKSUMS).read_text() == whole
    assert not list(tmp_path.glob("out.*"))


def export_again_and_again(folder: Path) -> None:
    """Export a running model under one name after the other, until somebody ends it."""
    engine = small_engine(
        stage=3, expert_size=2, optimizer="sgd", shape=MEDIUM, source=Repeated(), is_bf16=True
    )
    release = Release(shape=MEDIUM, dtype=torch.bfloat16, companions=())
    for number in count():
        export_model(engine, folder / str(number), release, Repeated())


@pytest.mark.slow
def test_export_of_running_ranks_is_whole_or_absent(tmp_path: Path) -> None:
    moments = random.Random(1)
    num_unfinished = 0
    for attempt in range(NUM_KILLS):
        folder = tmp_path / str(attempt)
        ranks = [process for process, _ in start_ranks(export_again_and_again, 2, folder)]
        while not list(folder.glob("*")):
            time.sleep(0.01)
            assert all(process.is_alive() for process in ranks)
        time.sleep(moments.uniform(0, 1.5))
        moments.shuffle(ranks)
        for process in ranks:  # the second has time to notice that the first is gone
            process.kill()
            time.sleep(moments.choice([0, 0.3]))
        for process in ranks:
            process.join()
        found = sorted(path.name for path in folder.iterdir())
        unfinished = [name for name in found if not name.isdecimal()]
        assert [f"{len(found) - 1}.incomplete"] * len(unfinished) == unfinished
        num_unfinished += len(unfinished)
        for name in found:
            if name.isdecimal():
                check_sums(folder / name)
        shutil.rmtree(folder)
    assert num_unfinished > NUM_KILLS / 2, "the kills must have come while it was at work"


def delete(folder: Path) -> None:
    for file in folder.glob("*"):
        file.unlink()
    if folder.exists():
        folder.rmdir()


def check_sums(folder: Path) -> None:
    lines = (folder / CHECKSUMS).read_text().splitlines()
    assert len(lines) == len(list(folder.iterdir())) - 1
    for line in lines:
        digest, name = line.split("  ")
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest, name
