"""A hash of what Python code does: comments, docstrings and layout leave it as it is."""

import ast
import hashlib
import importlib.util
import json
import sys
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path

from hunyuan_train.whole_file import open_whole

MOST_MEMOS = 8  # of a folder: one for each way to leave something out, and a few edits


def hash_source(folder: Path, *, left_out: Collection[str] = ()) -> str:
    """Hash the names and the syntax trees of all Python files below a folder.

    Python 3.11 and 3.13 hash the same code alike. Early versions of 3.12 read formats such as
    `{name:<{width}}` in an f-string otherwise, and hash only the files that hold one differently.

    Args:
        folder: of a package.
        left_out: files and folders that do not count, by their paths in the folder.
    """
    files = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in list_source(folder, left_out=left_out)
    }
    # Parsing takes a second of every process; the bytes of all files are hashed in milliseconds.
    content, memo = _hash_content(files), _memo_of(folder)
    known = _read_memo(memo)
    if content not in known:
        known = {content: _hash_trees(files), **known}
        _write_memo(memo, dict(list(known.items())[:MOST_MEMOS]))
    return known[content]


def _hash_trees(files: Mapping[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name, source in files.items():
        digest.update(f"{name} {_describe(ast.parse(source))}\n".encode())
    return digest.hexdigest()


def _hash_content(files: Mapping[str, bytes]) -> str:
    """A hash of names and bytes, and of the version of Python, which may parse them otherwise."""
    digest = hashlib.sha256(sys.version.encode())
    for name, source in files.items():
        digest.update(f"{name} {len(source)}\n".encode() + source)
    return digest.hexdigest()


def _memo_of(folder: Path) -> Path:
    """A file beside the folder's bytecode, which is trusted as much and made anew as easily."""
    bytecode = importlib.util.cache_from_source(str(folder / "code.py"))
    return Path(bytecode).with_name("source_hash.json")


def _read_memo(path: Path) -> dict[str, str]:
    """Hashes of trees by those of content; none where the file is damaged or not there."""
    try:
        memo = json.loads(path.read_bytes())
        is_ours = memo["seal"] == _seal(memo["hashes"])
        return dict(memo["hashes"]) if is_ours else {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}


def _write_memo(path: Path, hashes: dict[str, str]) -> None:
    """Remember them, where Python may leave bytecode."""
    if sys.dont_write_bytecode:
        return
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open_whole(path, is_ours=True) as file:
            file.write(json.dumps({"hashes": hashes, "seal": _seal(hashes)}).encode())


def _seal(hashes: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()


def list_source(folder: Path, *, left_out: Collection[str] = ()) -> list[Path]:
    """The Python files of `hash_source`, in a fixed order."""
    skipped = {folder / one for one in left_out}
    return sorted(
        path for path in folder.rglob("*.py") if skipped.isdisjoint({path, *path.parents})
    )


def _describe(node: object) -> str:
    """Write a part of a syntax tree as text, without the places of its lines.

    `ast.dump` does the same, but each version of Python adds fields to it, which are empty for code
    that older versions read as well. So empty fields are left out.
    """
    if isinstance(node, ast.AST):
        fields = ast.iter_fields(node)
        kept = (f"{name}={_describe(one)}" for name, one in fields if one is not None and one != [])
        return f"{type(node).__name__}({','.join(kept)})"
    if isinstance(node, list):
        return f"[{','.join(_describe(one) for one in node if not _is_text(one))}]"
    return repr(node)


def _is_text(node: object) -> bool:
    """Whether a statement is a docstring, or another text that nothing reads."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )
