"""A tiny model of each family as its user has it: trained, killed, resumed, merged, asked."""

import json
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from safetensors.torch import save_file

from hunyuan_train.cli import main
from hunyuan_train.families.grammar.find import load_tokenizer
from hunyuan_train.families.registry import PRESETS, family_of, read_shape
from hunyuan_train.shipped import TINY_TOKENIZER
from tests.conftest import REPOSITORY, start_train
from tests.families.grammar.test_new_tokens import without_gaps, write_words
from tests.families.hy_v3_folder import SHAPE as HY_V3
from tests.families.hy_v3_folder import write_hy_v3
from tests.released import SHAPE as A13B
from tests.released import random_tensors, write_released

FAMILIES = ("hunyuan_v1_moe", "hunyuan_v1_dense", "hy_v3")
LORA = ("--use_lora", "--lora_target_modules", "all", "--lora_rank", "8")


def write_base(folder: Path, family: str) -> Path:
    """A model folder as this family is released, with its tokenizer."""
    is_hy_v3 = family == "hy_v3"
    words = without_gaps(folder.with_name("words")) if is_hy_v3 else TINY_TOKENIZER
    tokenizer = load_tokenizer(words)
    ids = dict.fromkeys(("eos_token_id", "eod_token_id"), min(tokenizer.end_ids))
    shape = replace(
        {"hunyuan_v1_moe": A13B, "hunyuan_v1_dense": PRESETS["tiny-dense"], "hy_v3": HY_V3}[family],
        **(ids | {"vocab_size": tokenizer.vocab_size, "pad_token_id": tokenizer.pad_id}),
        max_position_embeddings=4096,
    )
    if is_hy_v3:
        write_hy_v3(folder, shape=shape)
    elif family == "hunyuan_v1_moe":
        write_released(folder, shape=shape)
    else:
        folder.mkdir()
        save_file(random_tensors(shape), folder / "model.safetensors")
        config = family_of(shape).native_config(shape) | {"model_type": family}
        (folder / "config.json").write_text(json.dumps(config))
    shutil.copytree(words, folder, dirs_exist_ok=True)
    return folder


def kill_after_a_checkpoint(arguments: list[str], run: Path) -> None:
    """Start a run, and kill all of its processes at once, as a machine that goes dark does."""
    started = subprocess.Popen([sys.executable, str(REPOSITORY / "train.py"), *arguments])
    deadline = time.monotonic() + 240
    while not (run / "checkpoints" / "step-000002").exists():
        assert started.poll() is None, "it ended before it wrote a checkpoint"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    for process in psutil.Process(started.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            process.kill()
    started.kill()
    assert started.wait() == -signal.SIGKILL


@pytest.mark.parametrize("family", FAMILIES)
def test_a_killed_run_goes_on_and_its_adapter_is_merged_and_asked(
    family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, run, merged = write_base(tmp_path / "base", family), tmp_path / "run", tmp_path / "merged"
    settings = ["--recipe", "tiny", "--model_name_or_path", str(base), *LORA]
    settings += ["--train_data_file", str(REPOSITORY / "data/practice_train.jsonl")]
    settings += ["--add_tokens", str(write_words(tmp_path))] if family == "hy_v3" else []
    settings += ["--max_steps", "6", "--save_steps", "2", "--output_dir", str(run)]
    kill_after_a_checkpoint(settings, run)
    assert not (run / "export").exists()
    resume = ("--resume_from_checkpoint", "auto", "--sample_answers", "false")
    finished = start_train(*settings, *resume, cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert "resumed from" in finished.stderr
    assert "train = serve" in finished.stderr
    assert main(["export", str(run), str(tmp_path / "later")]) == 0
    sums = [(folder / "SHA256SUMS").read_text() for folder in (run / "export", tmp_path / "later")]
    assert sums[0] == sums[1]
    assert main(["merge", str(base), str(run / "export"), str(merged)]) == 0
    assert read_shape(merged).family == family
    assert main(["plan", "--model", str(merged), "--gpus", "1", "--gpu_memory", "80"]) == 0
    capsys.readouterr()
    asked = ["chat", str(merged), "--prompt", "Hello?", "--max_new_tokens", "3", "--json"]
    assert main(asked) == 0
    assert json.loads(capsys.readouterr().out)["usage"]["completion_tokens"] in (1, 2, 3)
