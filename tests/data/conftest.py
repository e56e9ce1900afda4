"""Data, tokenizers and golden vectors for the tests of this folder."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from hunyuan_train.config.schema import DataConfig
from hunyuan_train.data.compiled.cache import prepare_dataset
from hunyuan_train.data.dataset import Dataset
from hunyuan_train.families.grammar.find import load_tokenizer
from hunyuan_train.families.grammar.tokenizer import Tokenizer

REPOSITORY = Path(__file__).resolve().parents[2]
SHARED = REPOSITORY.parent / "shared"  # the vendor's files, not part of this project


@pytest.fixture(scope="session")
def tiny_data() -> Path:
    return REPOSITORY / "data" / "tiny_train.jsonl"


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return load_tokenizer(REPOSITORY / "data" / "tokenizer_tiny")


@pytest.fixture(scope="session")
def reference() -> Path:
    folder = SHARED / "reference"
    if not folder.exists():
        pytest.skip("the vendor's tokenizer files are not beside the repository")
    return folder


@pytest.fixture(scope="session")
def vendor_tokenizer(reference: Path) -> Tokenizer:
    return load_tokenizer(reference)


@pytest.fixture(scope="session")
def golden() -> Path:
    folder = SHARED / "golden"
    if not folder.exists():
        pytest.skip("the golden vectors are not beside the repository")
    return folder


@pytest.fixture
def write_records(tmp_path: Path) -> Callable[..., Path]:
    """Write records, one JSON text a line, to a file of the given name."""

    def write(records: list, name: str = "data.jsonl") -> Path:
        path = tmp_path / name
        lines = [json.dumps(record, ensure_ascii=False) for record in records]
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return path

    return write


@pytest.fixture
def prepare(tmp_path: Path, tokenizer: Tokenizer) -> Callable[..., Dataset]:
    """Compile files with the tiny tokenizer into a cache of this test's own.

    Most tests have records without a mode, which is not what they are about.
    """

    def run(files: Path | str, split: str = "train", **settings) -> Dataset:
        policy = settings.pop("data_policy", None)
        if "untagged" not in (policy or ""):
            policy = f"untagged=note,{policy or ''}"
        config = DataConfig(
            train_data_file=str(files),
            cache_dir=str(tmp_path / "cache"),
            data_policy=policy,
            preprocessing_num_workers=settings.pop("num_workers", 1),
            **settings,
        )
        return prepare_dataset(config, tokenizer, split=split)

    return run
