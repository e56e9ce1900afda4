"""The same models and data sets by the real client of ModelScope."""

from pathlib import Path

import pytest

from hunyuan_train.errors import ConfigError
from hunyuan_train.hub import ask
from hunyuan_train.hub.datasets import fetch_data_names
from hunyuan_train.hub.download import is_whole
from hunyuan_train.hub.models import fetch_description, fetch_weights
from hunyuan_train.hub.names import parse_model_name
from tests.clients.environments import client_python

pytestmark = pytest.mark.slow


def test_models_and_data_come_from_modelscope(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(ask.sys, "executable", client_python("modelscope"))
    model = hub.folder / "models" / "me" / "model"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"w" * 300_000)
    talk = hub.folder / "datasets" / "me" / "talk"
    talk.mkdir(parents=True)
    (talk / "train.jsonl").write_text("{}\n")
    name = parse_model_name("me/model", hub="modelscope")
    folder, pending = fetch_description(name, tmp_path)
    fetch_weights(pending)
    assert is_whole(folder)
    assert (folder / "model.safetensors").read_bytes() == b"w" * 300_000
    data = Path(fetch_data_names("modelscope:me/talk", download_dir=tmp_path))
    assert (data / "train.jsonl").read_text() == "{}\n"
    missing = parse_model_name("me/modle", hub="modelscope")
    with pytest.raises(ConfigError, match="ModelScope shows no model me/modle"):
        fetch_description(missing, tmp_path)
