"""Real libraries beside what is written: llm-compressor's GPTQ, and Transformers."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hunyuan_train.cli import main
from hunyuan_train.families.registry import family_of
from hunyuan_train.families.tables import kind_of, released_tensors, stored_tensors
from hunyuan_train.families.tensors import Kind
from hunyuan_train.model.compressed_weights import open_model
from hunyuan_train.model.compression_scheme import is_compressed
from hunyuan_train.quantize.float8_writer import write_float8
from hunyuan_train.quantize.gptq import layer_file, work_folder
from hunyuan_train.shipped import TINY_TOKENIZER
from tests.clients.environments import client_python
from tests.families.hy_v3_folder import SHAPE as HY_V3
from tests.families.hy_v3_folder import write_hy_v3
from tests.quantize.killed import kill_ten_times
from tests.quantize.models import BLOCK, CHANNEL, WIDE, make_job, write_quantized
from tests.quantize.planted import check_red, plant_in_gptq
from tests.released import write_released

# Transformers unpacks experts into bfloat16, whatever the weights were: half of its last bit.
BFLOAT16_ERROR = 2**-8
QUADS = replace(WIDE, hidden_size=128, intermediate_size=96)  # whose widths groups of 32 divide


def check_reading(folder: Path, answer: Path) -> None:
    """Compare each weight that Transformers reads with ours."""
    script = Path(__file__).with_name("read_by_transformers.py")
    python = client_python("llmcompressor")
    subprocess.run([python, str(script), str(folder), str(answer)], check=True)
    shape, source, _ = open_model(folder)
    family, num_compared = family_of(shape), 0
    for name, theirs in load_file(answer).items():
        tensors = stored_tensors(family, name, tuple(theirs.shape))
        ours = torch.cat([source.read(one, 0, one.numel) for one in tensors]).float()
        error = BFLOAT16_ERROR if kind_of(family, name) is Kind.EXPERT else 0.0
        torch.testing.assert_close(ours.view(theirs.shape), theirs, rtol=error, atol=0)
        num_compared += 1
    assert num_compared > 10 * shape.num_hidden_layers


@pytest.mark.slow
def test_transformers_reads_the_same_float8_weights(tmp_path: Path) -> None:
    write_quantized(tmp_path, CHANNEL)
    check_reading(tmp_path / "out", tmp_path / "answer")


@pytest.mark.slow
def test_transformers_reads_the_same_float8_weights_of_hy_v3(tmp_path: Path) -> None:
    write_hy_v3(tmp_path / "in")
    (tmp_path / "out").mkdir()
    write_float8(make_job(tmp_path / "in", tmp_path / "out", HY_V3), tmp_path / "out", CHANNEL)
    check_reading(tmp_path / "out", tmp_path / "answer")


@pytest.mark.slow
def test_compressed_tensors_reads_the_same_blocks(tmp_path: Path) -> None:
    _, source = write_quantized(tmp_path, BLOCK)
    script = Path(__file__).with_name("read_by_compressed_tensors.py")
    command = [client_python("llmcompressor"), script, tmp_path / "out", tmp_path / "answer"]
    subprocess.run(command, check=True)
    theirs = load_file(tmp_path / "answer")
    assert theirs.keys() == source.compressed
    for name, values in theirs.items():
        ours = source.read(released_tensors(WIDE)[name], 0, values.numel())
        assert torch.equal(ours.float().view(values.shape), values), name


def quantize_command(folder: Path, repository: Path) -> list[str]:
    """A command that quantises a small model to four bits; the model is there or made."""
    if not (folder / "in").exists():
        write_released(folder / "in", shape=QUADS, is_native=True)
    (folder / "in/hy.tiktoken").write_bytes((TINY_TOKENIZER / "hy.tiktoken").read_bytes())
    data = str(repository / "data/practice_train.jsonl")
    command = ["quantize", str(folder / "in"), str(folder / "out"), "--format", "w4a16"]
    command += ["--calibration_samples", "8", "--questions", "0", "--train_data", data]
    return [*command, "--python", client_python("llmcompressor")]


@pytest.mark.slow
def test_gptq_goes_on_where_it_was_ended_and_gives_the_same(
    tmp_path: Path, repository: Path
) -> None:
    command = quantize_command(tmp_path, repository)
    assert main(command) == 0
    check_reading(tmp_path / "out", tmp_path / "answer")
    whole = (tmp_path / "out/SHA256SUMS").read_text().splitlines()

    work = work_folder(tmp_path / "out")
    assert not work.exists()
    process = subprocess.Popen([sys.executable, "-m", "hunyuan_train", *command, "--overwrite"])
    while not layer_file(work, 0).exists():
        assert process.poll() is None
        time.sleep(0.1)
    process.kill()
    process.wait()
    assert (tmp_path / "out/SHA256SUMS").read_text().splitlines() == whole
    assert main([*command, "--overwrite"]) == 0
    again = (tmp_path / "out/SHA256SUMS").read_text().splitlines()
    changed = {line.split()[1] for line in set(whole) ^ set(again)}
    assert changed <= {"quantization_report.json"}  # which holds times
    assert not work.exists()


@pytest.mark.slow
def test_gptq_takes_layers_of_two_sorts_and_carries_the_one_behind(
    tmp_path: Path, repository: Path
) -> None:
    shape = replace(  # groups of 32 divide all widths
        HY_V3, intermediate_size=96, moe_intermediate_size=64, shared_intermediate_size=128
    )
    before = write_hy_v3(tmp_path / "in", shape=shape)
    assert main(quantize_command(tmp_path, repository)) == 0
    check_reading(tmp_path / "out", tmp_path / "answer")
    _, source, _ = open_model(tmp_path / "out")
    for name, tensor in released_tensors(shape).items():
        if not is_compressed(tensor):
            after = source.read(tensor, 0, tensor.numel).view(tensor.shape)
            assert torch.equal(after, before[name]), name


@pytest.mark.slow
def test_gptq_with_a_tensor_scaled_twice_turns_the_command_red(
    tmp_path: Path,
    repository: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plant_in_gptq(monkeypatch)
    check_red(quantize_command(tmp_path, repository), tmp_path / "out", capsys)


@pytest.mark.slow
def test_ten_kills_leave_the_folder_whole_or_absent(tmp_path: Path) -> None:
    write_released(tmp_path / "in", shape=replace(WIDE, num_hidden_layers=16), is_native=True)
    (tmp_path / "in/hy.tiktoken").write_bytes((TINY_TOKENIZER / "hy.tiktoken").read_bytes())
    output = tmp_path / "out"
    command = [sys.executable, "-m", "hunyuan_train", "quantize", str(tmp_path / "in")]
    command += [str(output), "--format", "fp8", "--overwrite"]
    kill_ten_times(command, output, open_model, os.environ)
    assert json.loads((output / "quantization_report.json").read_text())["weights"]
