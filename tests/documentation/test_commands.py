"""Every command of the documentation is run as it is written, or says what it needs.

A training that needs GPUs is run dry: by every rule, with its data and its plan, on the machines
that the page names.
"""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from documentation.pages import DOCS, README, REPOSITORY, read_blocks, task_pages
from hunyuan_train.cli import main
from tests.documentation.test_pages import name_of
from tests.test_examples import copy_repository, run_block

LAPTOP = DOCS / "laptop.md"
RUN: list[str] = []  # what several pages have is run once


def blocks_of(page, *marks):
    return [one.text for one in read_blocks(page.read_text()) if one.is_shell and one.mark in marks]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return copy_repository(tmp_path_factory.mktemp("documentation") / "repository")


@pytest.mark.parametrize("page", task_pages(), ids=name_of)
def test_commands_that_need_nothing(page, folder):
    lines = "".join(blocks_of(page, "")).replace("\\\n", " ").splitlines()
    new = [line for line in lines if line not in RUN]
    if not new:
        pytest.skip("every command of this page needs something, or another page has it, too")
    run_block("\n".join(new), folder)
    RUN.extend(new)


@pytest.fixture(scope="module")
def trained(folder):
    """The path of a laptop, every command of it; its run is what other pages speak of."""
    for block in blocks_of(LAPTOP, "", "slow"):
        run_block(block, folder)
    return folder


@pytest.mark.slow
def test_the_path_of_a_laptop_leads_to_a_model(trained):
    assert list((trained / "runs/tiny/export").glob("*.safetensors"))
    assert (trained / "runs/tiny/report.html").exists()


@pytest.mark.slow
@pytest.mark.parametrize("page", [one for one in task_pages() if one != LAPTOP], ids=name_of)
def test_slow_commands(page, trained):
    blocks = [one for one in blocks_of(page, "slow") if one not in RUN]
    if not blocks:
        pytest.skip("no slow command that another page has not")
    for block in blocks:
        run_block(block, trained)
        RUN.append(block)


def test_readme_begins_with_a_command_that_is_run():
    assert blocks_of(README, "slow")[0] == "bash train.sh\n"


def trainings() -> dict[str, str]:
    """Each command that trains on GPUs, and what it needs."""
    found = {}
    for page in task_pages():
        for block in read_blocks(page.read_text()):
            lines = block.text.replace("\\\n", " ").splitlines() if "GPU" in block.mark else []
            ours = [one for one in lines if re.search(r"bash train\.sh|train --recipe", one)]
            found |= dict.fromkeys(ours, block.mark)
    return found


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Pairs of answers, for trainings by preference."""
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    subprocess.run(
        [sys.executable, "examples/make_preferences.py", path], cwd=REPOSITORY, check=True
    )
    return path


def dry_words(command: str, needs: str, pairs: Path) -> list[str]:
    """The same training as a dry run, of the model before it is downloaded, on demo data."""
    words = shlex.split(command.partition(" > ")[0])
    given = dict(word.split("=", 1) for word in words if re.match(r"[A-Z_]+=", word))
    place = words.index("train.sh" if "train.sh" in words else "train")
    rest = [word for word in words[place + 1 :] if word not in ("--print_slurm", "--dry_run")]
    for flag, value in (
        ("--model_name_or_path", "MODEL_PATH"),
        ("--train_data_file", "TRAIN_FILE"),
    ):
        if flag in rest:
            given[value] = rest.pop(rest.index(flag) + 1)
            rest.remove(flag)
    if "--recipe" not in rest:
        rest = ["--recipe", given.get("RECIPE", "lora"), *rest]
    nodes = given.get("NODE_IP_LIST", "one").count(",") + 1
    gpus = re.search(r"(\d+) GPU", needs)
    assert gpus
    models = {"Hunyuan-7B": "hunyuan-7b", "Hy3": "hy3"}
    found = [preset for name, preset in models.items() if name in given["MODEL_PATH"]]
    model = found[0] if found else "a13b"
    assert given["TRAIN_FILE"].endswith(".jsonl")
    data = str(pairs) if "--objective" in rest else "data/tiny_train.jsonl"
    words = ["--model_name_or_path", model, "--train_data_file", data]
    return [*rest, *words, "--dry_run", "--gpus", gpus[1], "--nodes", str(nodes)]


def test_each_path_has_a_training():
    marks = " ".join(trainings().values())
    assert len(trainings()) >= 8
    assert "1 GPU of 80 GB" in marks
    assert "two hosts with 8 GPUs" in marks


@pytest.mark.parametrize(("command", "needs"), trainings().items())
def test_a_training_on_gpus_passes_every_check_and_fits(command, needs, pairs, capsys, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    if "mine.yaml" in command:
        pytest.skip("its file is the reader's own")
    words = dry_words(command, needs, pairs)
    assert main(["train", *words, "--gpu_memory", "80"]) == 0, words
    assert "every check passed" in capsys.readouterr().err
