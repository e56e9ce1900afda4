"""The worked examples do what they say: every command is run as it is written."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.conftest import REPOSITORY

EXAMPLE = "examples/entity_extraction.md"
LEFT_OUT = (
    ".git",
    ".venv*",
    "runs",
    "wandb",
    "__pycache__",
    "*.egg-info",
    ".*_cache",
    ".hypothesis",
)
NUMBER = 24  # of questions, as the page asks


def copy_repository(folder: Path) -> Path:
    """The repository as someone has it who has installed it: `train.sh` finds our packages."""
    shutil.copytree(REPOSITORY, folder, ignore=shutil.ignore_patterns(*LEFT_OUT))
    programs = folder / ".venv" / "bin"
    programs.mkdir(parents=True)
    python = programs / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    command = programs / "hunyuan-train"
    command.write_text(
        f'#!/bin/sh\nPYTHONPATH={folder} exec {sys.executable} -m hunyuan_train "$@"\n'
    )
    command.chmod(0o755)
    (programs / "activate").write_text(f"PATH={programs}:$PATH\n")
    stamp = "cat requirements.txt requirements.txt pyproject.toml | sha256sum"
    command = f"{stamp} > .venv/installed-requirements.txt"
    subprocess.run(["bash", "-c", command], cwd=folder, check=True)
    return folder


def run_block(block: str, folder: Path) -> str:
    """What a block of commands prints on stdout, all of which must succeed."""
    path = os.pathsep.join([str(folder / ".venv" / "bin"), os.environ["PATH"]])
    finished = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block],
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert finished.returncode == 0, f"{block}\n{finished.stdout}\n{finished.stderr}"
    return finished.stdout


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The folder after every block of the page, and what each block printed."""
    folder = copy_repository(tmp_path_factory.mktemp("example") / "repository")
    blocks = re.findall(r"^```bash\n(.*?)^```", (folder / EXAMPLE).read_text(), re.S | re.M)
    assert len(blocks) == 10
    return folder, [run_block(block, folder) for block in blocks]


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def read_questions(path: Path) -> set[str]:
    """What users ask in a file of dialogues."""
    messages = [message for record in read_lines(path) for message in record["messages"]]
    return {message["content"] for message in messages if message["role"] == "user"}


def read_f1(table: str) -> float:
    """Of all answers, out of the last table that `evaluate` printed."""
    assert f"{NUMBER} answers" in table
    return float(re.findall(r"^set F1 +([\d.]+)", table, re.M)[-1])


@pytest.mark.slow
def test_the_trained_model_extracts_what_the_base_does_not(done: tuple[Path, list[str]]) -> None:
    folder, printed = done
    base, adapter, merged = (read_f1(printed[index]) for index in (3, 6, 8))
    assert base < 0.1
    assert adapter > 0.7
    assert merged == pytest.approx(adapter, abs=0.05)
    metrics = {line["step"]: line for line in read_lines(folder / "runs/entities/metrics.jsonl")}
    assert metrics[0]["eval_set_f1"] < 0.1
    assert metrics[150]["eval_set_f1"] == pytest.approx(adapter, abs=0.05)


@pytest.mark.slow
def test_scripts_get_answers_in_the_grammar(done: tuple[Path, list[str]]) -> None:
    _, printed = done
    assert re.fullmatch(r"(\w+(; )?)+\n", printed[7])
    message = json.loads(printed[8].splitlines()[-1])
    assert message["finish_reason"] == "stop"
    assert message["reasoning_content"].startswith("The note ")
    assert message["content"]


@pytest.mark.slow
def test_reports_and_an_earlier_adapter_are_written(done: tuple[Path, list[str]]) -> None:
    folder, _ = done
    for page in ("entities/report.html", "both.html"):
        assert "answers to held-out questions" in (folder / "runs" / page).read_text()
    early, late = (
        load_file(folder / "runs/entities" / name / "adapter_model.safetensors")
        for name in ("step-100", "export")
    )
    assert early.keys() == late.keys()
    assert any((early[name] != late[name]).any() for name in early)


@pytest.mark.slow
def test_preferences_are_learned_from_pairs(tmp_path: Path) -> None:
    folder = copy_repository(tmp_path / "repository")
    page = (folder / "examples/preferences.md").read_text()
    blocks = re.findall(r"^```bash\n(.*?)^```", page, re.S | re.M)
    assert len(blocks) == 4
    printed = [run_block(block, folder) for block in blocks]
    assert "length alone tells the sides apart" in printed[1]
    assert "rejected" in printed[1]
    assert re.search(r"pairs right (9[5-9]|100)%, margin 0\.[1-9]", printed[3])
    assert "Rewards of answers" in (folder / "runs/short/report.html").read_text()
    assert all(row["chosen"] for row in read_lines(folder / "runs/short/pairs.jsonl"))


@pytest.mark.slow
def test_tool_calls_are_learned(tmp_path: Path) -> None:
    folder = copy_repository(tmp_path / "repository")
    page = (folder / "examples/tool_use.md").read_text()
    blocks = re.findall(r"^```bash\n(.*?)^```", page, re.S | re.M)
    assert len(blocks) == 5
    printed = [run_block(block, folder) for block in blocks]
    names = ("tools.jsonl", "basics.jsonl", "tools_eval.jsonl")
    trained, basics, held_out = (read_questions(folder / name) for name in names)
    assert len(held_out) == 40
    assert held_out.isdisjoint(trained | basics)
    assert "no errors" in printed[1]
    shares = re.findall(r"calls right (\d+)%, where one is due (\d+)%", printed[3])
    before, after = ([int(share) for share in line] for line in shares)
    assert before[1] <= 5
    assert min(after) >= 95
    assert "30 trajectories" in printed[4]
    for name in ("without a mistake", "turns right"):
        assert float(re.search(rf"^{name} +([\d.]+)", printed[4], re.M)[1]) >= 0.95
    assert "right calls of each tool" in (folder / "runs/tools/report.html").read_text().lower()
