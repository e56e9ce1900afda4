"""A whole run on a model and on data that a hub serves, with the real client."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from hunyuan_train import cli
from hunyuan_train.families.hunyuan_v1_moe import TINY
from hunyuan_train.shipped import TINY_TOKENIZER
from tests.conftest import REPOSITORY, start_train
from tests.hub.server import Hub
from tests.released import SHAPE, write_released

IDS = ("pad_token_id", "bos_token_id", "eos_token_id", "eod_token_id")
SHORT = (
    *("--max_steps", "2", "--eval_steps", "0", "--max_seq_length", "256", "--overlong", "drop"),
    *("--sample_answers", "false", "--num_processes", "2", "--recipe", "full", "--bf16", "false"),
    *("--optimizer", "adamw", "--learning_rate", "1e-4"),
    *("--gradient_accumulation_steps", "1"),
)


@pytest.fixture
def served(hub: Hub, repository: Path) -> None:
    """A hub with a tiny model and dialogues for it."""
    model, talk = hub.folder / "models/me/tiny", hub.folder / "datasets/me/talk"
    ids = {name: getattr(TINY, name) for name in IDS}
    write_released(model, shape=replace(SHAPE, vocab_size=2210, **ids))
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": TINY.eos_token_id}))
    for file in TINY_TOKENIZER.iterdir():
        shutil.copy(file, model / file.name)
    talk.mkdir(parents=True)
    shutil.copy(repository / "data/practice_train.jsonl", talk / "train.jsonl")


@pytest.mark.slow
@pytest.mark.usefixtures("served")
def test_a_run_takes_its_model_and_data_by_name(tmp_path: Path) -> None:
    named = ("--model_name_or_path", "me/tiny", "--train_data_file", "hf:me/talk")
    folder = tmp_path / "run"
    done = start_train(
        *(*SHORT, *named, "--output_dir", str(folder)),
        *("--download_dir", str(tmp_path / "downloads")),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert (folder / "export/config.json").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("served")
def test_chat_and_evaluate_take_a_model_and_data_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = ("--download_dir", str(tmp_path / "downloads"))
    few = ("--max_new_tokens", "3", "--json")
    assert cli.main(["chat", "me/tiny", *kept, *few, "--prompt", "Why?", "--temperature", "0"]) == 0
    assert json.loads(capsys.readouterr().out)["role"] == "assistant"
    assert cli.main(["evaluate", "hf:me/tiny", "hf:me/talk", *kept, *few, "--number", "2"]) == 0
    assert json.loads(capsys.readouterr().out)["eval_answers"] == 2


@pytest.mark.slow
@pytest.mark.usefixtures("served")
def test_resume_is_verified_of_a_model_by_name(tmp_path: Path) -> None:
    flags = ["--eval_steps", "0", "--max_seq_length", "256", "--overlong", "drop"]
    flags += ["--num_processes", "1", "--bf16", "false", "--optimizer", "adamw"]
    flags += ["--gradient_accumulation_steps", "1", "--max_steps", "3", "--save_steps", "1"]
    named = ["--model_name_or_path", "me/tiny", "--train_data_file", "hf:me/talk"]
    folders = ["--download_dir", str(tmp_path / "downloads"), "--output_dir", str(tmp_path / "run")]
    command = [sys.executable, "-P", "-m", "hunyuan_train", "verify-resume", "full"]
    done = subprocess.run(
        [*command, *flags, *named, *folders],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing differs" in done.stdout
