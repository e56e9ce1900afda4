"""Folders that other libraries quantise are trained on as they are: GPTQModel, llm-compressor.

The model knows some dialogues by heart, so that a code that is read wrongly shows in its loss.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file

from hunyuan_train.cli import main
from hunyuan_train.families.grammar.find import load_tokenizer
from hunyuan_train.families.tables import released_tensors
from hunyuan_train.model.base_folder import resolve_base
from hunyuan_train.model.find_model import open_base
from hunyuan_train.shipped import TINY_TOKENIZER
from tests.clients.environments import client_python
from tests.conftest import start_train
from tests.taught import CALL, FAST, SLOW, read_samples, write_taught_model

CLIENTS = Path(__file__).parents[1] / "clients"
# Groups of 128, which W4A16 has, and of 32 divide all widths.
SIZES = {"hidden_size": 256, "intermediate_size": 128}
KNOWN = 0.1  # nats a token: all that was learned by heart, after rounding to few bits
LLMCOMPRESSOR = ("llmcompressor", "llmcompressor_oneshot.py")
FOLDERS = {  # how each is called, and as what it is read
    "GPTQ by GPTQModel": (("gptqmodel", "gptqmodel_quantize.py"), "gptq:32"),
    "W4A16": ((*LLMCOMPRESSOR, "W4A16"), "group:128"),
    # One weight_scale and one input_scale for each tensor, as A13B and Hy3 are released in FP8.
    "FP8": ((*LLMCOMPRESSOR, "FP8"), "tensor"),
    "FP8_DYNAMIC": ((*LLMCOMPRESSOR, "FP8_DYNAMIC"), "channel"),
    "FP8_BLOCK": ((*LLMCOMPRESSOR, "FP8_BLOCK"), "block"),
}


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained model, the dialogues that it knows, and their tokens for calibration."""
    folder = tmp_path_factory.mktemp("taught")
    write_taught_model(folder / "plain", **SIZES)
    shutil.copytree(TINY_TOKENIZER, folder / "plain", dirs_exist_ok=True)
    records = [json.dumps(one, ensure_ascii=False) for one in (SLOW, FAST, CALL)]
    (folder / "train.jsonl").write_text("\n".join(records))
    tokenizer = load_tokenizer(TINY_TOKENIZER)
    samples = [one for record in (SLOW, FAST, CALL) for one, _ in read_samples(record, tokenizer)]
    (folder / "samples.json").write_text(json.dumps([one.tolist() for one in samples]))
    return folder


def write_foreign(taught: Path, out: Path, called: tuple[str, ...]) -> None:
    """Let a library quantise the trained model, in its own environment."""
    client, script, *scheme = called
    words = [client_python(client), CLIENTS / script, taught / "plain", out, *scheme]
    # GPTQModel lays out a thread for each two cores, and needs two.
    variables = {**os.environ, "GPTQMODEL_CPU_WORKERS": "2"}
    command = [*map(str, words), str(taught / "samples.json")]
    subprocess.run(command, check=True, env=variables, cwd=taught)  # where it leaves its logs
    shutil.copytree(TINY_TOKENIZER, out, dirs_exist_ok=True)


def check_numbers(base: Path, answer: Path) -> None:
    """Compare every weight of a GPTQ folder with what GPTQModel makes of its codes, bit for bit."""
    words = [client_python("gptqmodel"), CLIENTS / "gptqmodel_dequantise.py", base, answer]
    subprocess.run([*map(str, words)], check=True, cwd=answer.parent)
    shape, theirs = resolve_base(str(base)), load_file(answer)
    source, tensors = open_base(base, shape), released_tensors(shape)
    assert theirs.keys() == source.compressed
    for name, values in theirs.items():
        ours = source.read(tensors[name], 0, values.numel()).view(values.shape)
        assert torch.equal(ours, values), name


def read_losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_of_another_library_is_trained_resumed_exported_and_asked(
    name: str, taught: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command, title = FOLDERS[name]
    base, run, resumed = tmp_path / "base", tmp_path / "run", tmp_path / "resumed"
    write_foreign(taught, base, command)
    assert resolve_base(str(base)).stored_as == title
    if title.startswith("gptq"):
        check_numbers(base, tmp_path / "answer.safetensors")
    settings = [
        *("--recipe", "tiny", "--model_name_or_path", str(base), "--expert_weights", "base"),
        *("--use_lora", "--lora_target_modules", "all", "--lora_rank", "8"),
        *("--train_data_file", str(taught / "train.jsonl"), "--eval_steps", "0"),
        *("--max_steps", "4", "--save_steps", "2", "--logging_steps", "1"),
        *("--sample_answers", "false", "--bad_steps", "off"),
    ]
    finished = start_train(*settings, "--output_dir", str(run), cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert "train = serve" in finished.stderr
    losses = read_losses(run)
    assert losses[0] < KNOWN

    shutil.copytree(run, resumed, ignore=shutil.ignore_patterns("step-000004", "export"))
    again = ("--output_dir", str(resumed), "--resume_from_checkpoint", "auto")
    finished = start_train(*settings, *again, cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert read_losses(resumed) == losses
    whole, later = (peft.load_peft_weights(one / "export", device="cpu") for one in (run, resumed))
    assert whole.keys() == later.keys()
    assert all(torch.equal(values, later[key]) for key, values in whole.items())

    manifest = json.loads((run / "export/export_manifest.json").read_text())
    assert manifest["expert_weights"] == title
    asked = ["--engine", "vllm", "--print", "--gpus", "1", "--gpu_memory", "80"]
    assert main(["serve", str(run / "export"), *asked]) == 0
    assert str(base) in capsys.readouterr().out

    [question, answer] = SLOW["messages"]
    asked = ["--prompt", question["content"], "--temperature", "0", "--json"]
    for model in (run / "export", base):  # neither training nor rounding undid what it knows
        assert main(["chat", str(model), *asked]) == 0
        assert json.loads(capsys.readouterr().out)["content"] == answer["content"]
