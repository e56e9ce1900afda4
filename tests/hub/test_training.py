"""A whole run on a model and on data that a hub serves, with the real client."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from hunyuan_train.families.hunyuan_v1_moe import TINY
from hunyuan_train.shipped import TINY_TOKENIZER
from tests.conftest import start_train
from tests.hub.server import Hub
from tests.released import SHAPE, write_released

IDS = ("pad_token_id", "bos_token_id", "eos_token_id", "eod_token_id")
SHORT = (
    *("--max_steps", "2", "--eval_steps", "0", "--max_seq_length", "256", "--overlong", "drop"),
    *("--sample_answers", "false", "--num_processes", "2", "--recipe", "full", "--bf16", "false"),
    *("--optimizer", "adamw", "--learning_rate", "1e-4"),
    *("--gradient_accumulation_steps", "1"),
)


@pytest.mark.slow
def test_a_run_takes_its_model_and_data_by_name(hub: Hub, tmp_path: Path, repository: Path) -> None:
    model, talk = hub.folder / "models/me/tiny", hub.folder / "datasets/me/talk"
    ids = {name: getattr(TINY, name) for name in IDS}
    write_released(model, shape=replace(SHAPE, vocab_size=2210, **ids))
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": TINY.eos_token_id}))
    for file in TINY_TOKENIZER.iterdir():
        shutil.copy(file, model / file.name)
    talk.mkdir(parents=True)
    shutil.copy(repository / "data/practice_train.jsonl", talk / "train.jsonl")
    named = ("--model_name_or_path", "me/tiny", "--train_data_file", "hf:me/talk")
    folder = tmp_path / "run"
    done = start_train(
        *(*SHORT, *named, "--output_dir", str(folder)),
        *("--download_dir", str(tmp_path / "downloads")),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert (folder / "export/config.json").exists()
