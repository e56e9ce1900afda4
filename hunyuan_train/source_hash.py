"""A hash of what Python code does: comments, docstrings and layout leave it as it is."""

import ast
import hashlib
from collections.abc import Collection
from pathlib import Path


def hash_source(folder: Path, *, left_out: Collection[str] = ()) -> str:
    """Hash the names and the syntax trees of all Python files below a folder.

    Python 3.11 and 3.13 hash the same code alike. Early versions of 3.12 read formats such as
    `{name:<{width}}` in an f-string otherwise, and hash only the files that hold one differently.

    Args:
        folder: of a package.
        left_out: files and folders that do not count, by their paths in the folder.
    """
    digest = hashlib.sha256()
    for path in list_source(folder, left_out=left_out):
        tree = ast.parse(path.read_bytes())
        digest.update(f"{path.relative_to(folder).as_posix()} {_describe(tree)}\n".encode())
    return digest.hexdigest()


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
