"""Commands that take a model by its name: what they download of it, and what they refuse first."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from hunyuan_train import cli
from hunyuan_train.serve.folder import read_base_name
from tests.hub.server import Hub
from tests.released import SHAPE, write_released

Screen = pytest.CaptureFixture[str]
WEIGHTS = "adapter_model.safetensors"


def run(screen: Screen, *words: str) -> tuple[int, str, str]:
    code = cli.main(words)
    said = screen.readouterr()
    return code, said.out, said.err


def add_model(hub: Hub, name: str, **config: object) -> Path:
    folder = hub.folder / "models" / name
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(bytes(100_000))
    return folder


def test_a_split_is_of_a_data_set(capsys: Screen) -> None:
    code, _, err = run(capsys, "download", "hf:me/data:train")
    assert (code, "add --data" in err) == (2, True)


def test_plan_downloads_the_shape_alone(hub: Hub, tmp_path: Path, capsys: Screen) -> None:
    folder = hub.folder / "models/me/model"
    write_released(folder, shape=SHAPE)
    kept = ("--download_dir", str(tmp_path / "kept"))
    code, out, _ = run(capsys, "plan", "--model", "me/model", "--gpus", "1", "--json", *kept)
    assert code == 0
    assert json.loads(out)["fits"]
    assert {path for path, _ in hub.sent} == {"config.json"}
    code, _, err = run(capsys, "plan", "--model", "me/modle", *kept)
    assert code == 2
    assert "error: Hugging Face shows no model me/modle" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("words", [["chat"], ["evaluate", "--needle_lengths", "256"]])
def test_a_model_of_another_family_costs_no_download(
    words: list[str], hub: Hub, tmp_path: Path, capsys: Screen
) -> None:
    add_model(hub, "me/other", model_type="llama")
    code, _, err = run(capsys, words[0], "me/other", *words[1:], "--download_dir", str(tmp_path))
    assert code == 2
    assert "llama" in err
    assert "model.safetensors" not in {path for path, _ in hub.sent}


def test_an_adapter_by_name_brings_the_base_that_it_names(
    hub: Hub, tmp_path: Path, capsys: Screen
) -> None:
    folder = hub.folder / "models/me/adapter"
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "me/base"}')
    (folder / WEIGHTS).write_bytes(b"x" * 10)
    words = ("chat", "me/adapter", "--download_dir", str(tmp_path))
    code, _, err = run(capsys, *words)
    assert code == 2
    kept = tmp_path / "huggingface/models/me--adapter"
    assert f"{kept} belongs on the base model me/base, which is no folder here" in err
    assert "--base DIR. As a name on a hub: Hugging Face shows no model me/base" in err
    add_model(hub, "me/base", model_type="llama")
    code, _, err = run(capsys, *words)
    assert code == 2
    assert "llama" in err
    assert read_base_name(kept) == "me/base"
    assert (kept / WEIGHTS).read_bytes() == b"x" * 10


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("misspelt", "shows no model me/modle; look at its spelling"),
        pytest.param("gated", "is gated: accept its conditions", marks=pytest.mark.slow),
        pytest.param("offline", "could not be reached for me/model", marks=pytest.mark.slow),
        pytest.param("no room", "make room, or give a folder", marks=pytest.mark.slow),
    ],
)
def test_train_says_in_one_paragraph_why_a_name_is_not_had(
    fault: str,
    words: str,
    hub: Hub,
    tmp_path: Path,
    capsys: Screen,
    monkeypatch: pytest.MonkeyPatch,
    make_disk: Callable[[float], Path],
) -> None:
    write_released(hub.folder / "models/me/model", shape=SHAPE)
    kept = make_disk(1) if fault == "no room" else tmp_path / "kept"
    if fault == "gated":
        hub.gated.add("me/model")
    if fault == "offline":
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    name = "me/modle" if fault == "misspelt" else "me/model"
    flags = ("--model_name_or_path", name, "--train_data_file", "data/practice_train.jsonl")
    code, out, err = run(capsys, "train", *flags, "--download_dir", str(kept))
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert words in err
    assert err.count("\n") == 1
    assert not hub.sent or fault == "gated"
