import sys
from pathlib import Path

import pytest

from hunyuan_train import source_hash
from hunyuan_train.source_hash import hash_source

CODE = '''
"""Module."""

LIMITS = (1, "two", None)


class Kind:
    """Only a docstring."""


def add(one: int, two: int = 2) -> int:
    """Add."""
    return one + two
'''


def hash_text(folder: Path, text: str, name: str = "code.py") -> str:
    folder.mkdir(exist_ok=True)
    for file in folder.glob("*.py"):
        file.unlink()
    (folder / name).write_text(text)
    return hash_source(folder)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("LIMITS", "# A reason.\nLIMITS"),
        ('"""Module."""\n', ""),
        ('"""Only a docstring."""', '"""Said otherwise."""'),
        ('"""Add."""', '"""Add two numbers.\n\n    At length.\n    """'),
        ("one + two", "(\n        one\n        + two\n    )"),
        ('"two"', "'two'"),
    ],
)
def test_words_and_layout_change_nothing(tmp_path: Path, old: str, new: str) -> None:
    assert old in CODE
    assert hash_text(tmp_path / "code", CODE.replace(old, new)) == hash_text(
        tmp_path / "code", CODE
    )


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("one + two", "one - two"),
        ("= 2", "= 3"),
        ("= 2", "= 2.0"),
        ('"two"', '"Two"'),
        ("None)", "0)"),
        ("None)", "None, 0)"),
        ("def add", "async def add"),
        ("LIMITS", "BOUNDS"),
    ],
)
def test_what_runs_otherwise_has_another_hash(tmp_path: Path, old: str, new: str) -> None:
    assert old in CODE
    assert hash_text(tmp_path / "code", CODE.replace(old, new)) != hash_text(
        tmp_path / "code", CODE
    )


def test_names_of_files_count_and_what_is_left_out_does_not(tmp_path: Path) -> None:
    code = tmp_path / "code"
    assert hash_text(code, CODE, "other.py") != (before := hash_text(code, CODE))
    (code / "part").mkdir()
    (code / "part" / "more.py").write_text(CODE)
    (code / "single.py").write_text(CODE)
    assert hash_source(code) != before
    assert hash_source(code, left_out=("part", "single.py")) == before


def refuse_to_parse(_files: dict[str, bytes]) -> None:
    raise AssertionError("parsed again")


@pytest.fixture(autouse=True)
def _leaving_bytecode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)


@pytest.fixture
def hashed(tmp_path: Path) -> tuple[Path, str]:
    """A folder, and its hash, which is remembered now."""
    return tmp_path / "code", hash_text(tmp_path / "code", CODE)


def test_code_is_parsed_once(hashed: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, known = hashed
    monkeypatch.setattr(source_hash, "_hash_trees", refuse_to_parse)
    assert hash_source(folder) == known
    (folder / "code.py").write_text(CODE + "# A reason.")
    with pytest.raises(AssertionError, match="parsed again"):
        hash_source(folder)


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"hashes": 1, "seal": 2}', "edited"])
def test_what_was_remembered_wrongly_is_not_believed(hashed: tuple[Path, str], damage: str) -> None:
    folder, known = hashed
    [memo] = (folder / "__pycache__").iterdir()
    text = memo.read_text()
    memo.write_text(text.replace(known, "0" * len(known)) if damage == "edited" else damage)
    assert hash_source(folder) == known
    assert memo.read_text() == text


def test_a_folder_that_takes_no_bytecode_is_hashed_all_the_same(
    tmp_path: Path, hashed: tuple[Path, str]
) -> None:
    _, known = hashed
    other = tmp_path / "other"
    other.mkdir()
    (other / "code.py").write_text(CODE)
    (other / "__pycache__").write_text("no folder")
    assert hash_source(other) == known


def test_no_more_is_remembered_than_is_of_use(tmp_path: Path) -> None:
    folder = tmp_path / "code"
    folder.mkdir()
    for number in range(source_hash.MOST_MEMOS + 3):
        (folder / "code.py").write_text(f"NUMBER = {number}")
        hash_source(folder)
    [memo] = (folder / "__pycache__").iterdir()
    assert len(source_hash._read_memo(memo)) == source_hash.MOST_MEMOS
