"""Models by name, with the real client of Hugging Face against a hub on loopback."""

import json

import pytest

from hunyuan_train.errors import ConfigError
from hunyuan_train.hub import download
from hunyuan_train.hub.download import MARKER, is_whole
from hunyuan_train.hub.models import fetch_description, fetch_weights
from hunyuan_train.hub.names import parse_model_name
from tests.hub.server import COMMIT, SECRET

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def name(text="me/model"):
    return parse_model_name(text, hub="huggingface")


@pytest.fixture
def model(hub):
    folder = hub.folder / "models" / "me" / "model"
    (folder / "original").mkdir(parents=True)
    for shard, byte in zip(SHARDS, (b"a", b"b"), strict=True):
        (folder / shard).write_bytes(byte * 300_000)
    index = {"weight_map": {"x": SHARDS[0], "y": SHARDS[1]}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text("{}")
    for other in ("pytorch_model.bin", "consolidated.safetensors", "picture.png"):
        (folder / other).write_bytes(bytes(100))
    (folder / "original" / "x.safetensors").write_bytes(bytes(100))
    (folder / "LICENSE.txt").write_text("as published")
    return folder


def test_only_what_is_needed_comes_and_weights_come_last(hub, model, tmp_path, monkeypatch):
    folder, pending = fetch_description(name(), tmp_path)
    assert not list(folder.glob("*.safetensors"))
    assert pending.num_bytes == 600_000
    assert not is_whole(folder)
    fetch_weights(pending)
    files = {path.name for path in folder.iterdir() if path.is_file()}
    described = {"config.json", "model.safetensors.index.json", "LICENSE.txt"}
    assert files == {*SHARDS, *described}
    assert (folder / SHARDS[1]).read_bytes() == b"b" * 300_000
    assert json.loads((folder / MARKER).read_text())["commit"] == COMMIT
    # A second start asks no hub.
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert fetch_description(name(), tmp_path) == (folder, None)


@pytest.mark.slow
def test_an_interrupted_download_goes_on_where_it_was(hub, model, tmp_path):
    (model / SHARDS[0]).write_bytes(bytes(25_000_000))
    _, pending = fetch_description(name(), tmp_path)
    hub.cut_after[SHARDS[0]] = 12_000_000
    fetch_weights(pending)
    starts = [first for path, first in hub.sent if path == SHARDS[0]]
    assert starts == [0, 10 * 2**20]  # the client writes pieces of 10 MiB


@pytest.mark.slow
def test_damage_on_the_way_is_noticed_and_only_that_file_comes_again(hub, model, tmp_path):
    folder, pending = fetch_description(name(), tmp_path)
    hub.wrong_bytes.add(SHARDS[1])
    with pytest.raises(
        ConfigError, match=r"1 of 2 files of me/model .*00002-of-00002.*start again"
    ):
        fetch_weights(pending)
    assert not is_whole(folder)
    hub.wrong_bytes.clear()
    hub.sent.clear()
    fetch_weights(fetch_description(name(), tmp_path)[1])
    assert [path for path, _ in hub.sent] == [SHARDS[1]]
    assert is_whole(folder)


def test_a_misspelt_name_is_one_paragraph(hub, model, tmp_path):
    with pytest.raises(ConfigError, match="shows no model me/modle; look at its spelling"):
        fetch_description(name("me/modle"), tmp_path)


@pytest.mark.slow
def test_a_revision_that_is_not_there_is_one_paragraph(hub, model, tmp_path):
    with pytest.raises(ConfigError, match="no revision v9 of it"):
        fetch_description(name("me/model@v9"), tmp_path)


@pytest.mark.slow
def test_a_gated_model_takes_a_token_that_nobody_sees(hub, model, tmp_path, monkeypatch):
    hub.gated.add("me/model")
    with pytest.raises(ConfigError, match="is gated: accept its conditions") as caught:
        fetch_description(name(), tmp_path)
    assert "HF_TOKEN" in str(caught.value)
    monkeypatch.setenv("HF_TOKEN", "hf_wrongwrongwrong")
    with pytest.raises(ConfigError) as caught:
        fetch_description(name(), tmp_path)
    assert "wrongwrong" not in str(caught.value)
    monkeypatch.setenv("HF_TOKEN", SECRET)
    folder, pending = fetch_description(name(), tmp_path)
    fetch_weights(pending)
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(f"Bearer {SECRET}" == token for token in hub.tokens)
    assert not any(SECRET.encode() in path.read_bytes() for path in kept)
    assert is_whole(folder)


@pytest.mark.slow
def test_no_network_is_one_paragraph(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ConfigError, match=r"could not be reached for me/model .*HF_ENDPOINT"):
        fetch_description(name(), tmp_path)


@pytest.mark.slow
def test_no_room_is_refused_before_the_first_byte(hub, model, tmp_path, monkeypatch):
    _, pending = fetch_description(name(), tmp_path)
    hub.sent.clear()
    monkeypatch.setattr(download, "SPARE_BYTES", 10**18)
    with pytest.raises(
        ConfigError, match=r"takes 0.00 GB .*--download_dir. Nothing was downloaded"
    ):
        fetch_weights(pending)
    assert not hub.sent


@pytest.mark.slow
def test_what_is_no_model_is_refused(hub, model, tmp_path):
    for shard in (*SHARDS, "consolidated.safetensors"):
        (model / shard).unlink()
    with pytest.raises(ConfigError, match=r"holds no \.safetensors weights"):
        fetch_description(name(), tmp_path)
    (model / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"holds no config\.json"):
        fetch_description(name(), tmp_path)
