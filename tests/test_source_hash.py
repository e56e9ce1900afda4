from pathlib import Path

import pytest

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
    for file in folder.iterdir():
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
