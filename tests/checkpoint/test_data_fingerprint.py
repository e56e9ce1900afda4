from pathlib import Path

import pytest

from hunyuan_train.checkpoint.data_fingerprint import check_same_data
from hunyuan_train.checkpoint.errors import CheckpointError
from hunyuan_train.checkpoint.folder import write_manifest
from tests.manifests import make_manifest

IDENTITY = {
    "samples": "abc",
    "rows": {"seed": 1},
    "settings": {"mode": "auto"},
    "files": {"a.jsonl": {"sha256": "0", "weight": 1.0}},
    "tokenizer": "t",
}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    (tmp_path / "rank-00000.safetensors").touch()
    manifest = make_manifest({"rank-00000.safetensors": {}}, fingerprints={"data": IDENTITY})
    write_manifest(tmp_path, manifest)
    return tmp_path


def test_the_same_data_passes(checkpoint: Path) -> None:
    assert check_same_data(checkpoint, IDENTITY, ignores_change=False)


def test_other_data_is_refused_with_what_differs_and_the_way_around(checkpoint: Path) -> None:
    changed = {**IDENTITY, "rows": {"seed": 2}}
    with pytest.raises(CheckpointError, match=r"other data: seed was 1 and is 2.*--ignore_data"):
        check_same_data(checkpoint, changed, ignores_change=False)
    assert not check_same_data(checkpoint, changed, ignores_change=True)


def test_a_long_list_of_files_is_cut(checkpoint: Path) -> None:
    files = {f"{number}.jsonl": {"sha256": "1", "weight": 1.0} for number in range(20)}
    with pytest.raises(CheckpointError, match="; and 16 more"):
        check_same_data(
            checkpoint, {**IDENTITY, "samples": "d", "files": files}, ignores_change=False
        )
