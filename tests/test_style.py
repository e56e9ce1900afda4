"""Rules of the house that no linter knows: sizes, and files named by their subject."""

import ast
import re
from pathlib import Path

import pytest

from hunyuan_train.families.registry import FAMILIES

PACKAGE = Path(__file__).resolve().parents[1] / "hunyuan_train"
FILES = sorted(PACKAGE.rglob("*.py"))
MOST_LINES_OF_A_FUNCTION, MOST_LINES_OF_A_FILE = 60, 500
NAMES_OF_NO_SUBJECT = {"utils", "util", "common", "helpers", "helper", "misc"}
# Of a dialogue as a model sees it. The chat has a command named like one of them.
MARKERS = re.compile(r"</?(?:think|answer|tool_\w+)>|/no_think|<\|\w+\|>|[\u7528\u52a9]\w\uff1a")
COMMANDS = PACKAGE / "serve" / "commands.py"
# Model types and classes. What engines are known to do with a model is said by its type; the
# selftest's own model and the titles of its cases name what they judge.
ARCHITECTURES = re.compile("|".join([*FAMILIES, "HunYuan", "HYV3"]))
MAY_NAME_THEM = (
    "serve/known_pairs.py",
    "selftest/plain_hy_v3.py",
    "selftest/parity_cases.py",
)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_has_a_subject_and_a_readable_size(path):
    text = path.read_text(encoding="utf-8")
    names = {part.removesuffix(".py") for part in path.relative_to(PACKAGE).parts}
    assert not names & NAMES_OF_NO_SUBJECT
    assert path.name != "__init__.py" or not text
    assert len(text.splitlines()) <= MOST_LINES_OF_A_FILE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            num_lines = (node.end_lineno or node.lineno) - node.lineno + 1
            assert num_lines <= MOST_LINES_OF_A_FUNCTION, f"{node.name} has {num_lines} lines"


def test_only_a_grammar_spells_what_a_model_sees_between_texts():
    spelling = {path.parent for path in set(FILES) - {COMMANDS} if spells(path, MARKERS)}
    assert spelling == {PACKAGE / "families" / "grammar" / "hunyuan_a13b"}


def test_only_families_name_an_architecture():
    naming = {str(path.relative_to(PACKAGE)) for path in FILES if spells(path, ARCHITECTURES)}
    assert {one for one in naming if not one.startswith("families/")} == set(MAY_NAME_THEM)


def spells(path: Path, pattern: re.Pattern[str]) -> bool:
    """Whether a file has such a text, docstrings aside."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    texts = {node for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    texts -= {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings
    return any(isinstance(text.value, str) and pattern.search(text.value) for text in texts)
