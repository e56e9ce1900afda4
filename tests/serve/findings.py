"""What `serve --check` finds of a live server, by the names of its findings."""

import json
from pathlib import Path
from typing import Any

import pytest

from hunyuan_train import cli

MOST_TOKENS = 96  # more than any taught answer has


def check(
    capsys: pytest.CaptureFixture[str], folder: Path, url: str, *flags: object
) -> dict[str, Any]:
    """What the command prints for programs; its exit code says whether there is a fault."""
    words = ["serve", folder, "--check", url, "--json", "--max_new_tokens", MOST_TOKENS, *flags]
    code = cli.main([str(one) for one in words])
    found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert code == (0 if found["is_right"] else 1)
    return found


def list_findings(found: dict[str, Any], verdict: str) -> dict[str, list[str]]:
    """Names of questions by what has that verdict in their answers."""
    names: dict[str, list[str]] = {}
    for one in found["answers"]:
        way = ", streamed" if one["is_streamed"] else ""
        for finding in one["findings"]:
            if finding["verdict"] == verdict:
                names.setdefault(finding["what"], []).append(one["question"] + way)
    return names


def fields_of(found: dict[str, Any], question: str, *, is_streamed: bool) -> dict[str, str]:
    """The finding on an answer's fields."""
    [row] = [
        one
        for one in found["answers"]
        if (one["question"], one["is_streamed"]) == (question, is_streamed)
    ]
    last: dict[str, str] = row["findings"][-1]
    return last
