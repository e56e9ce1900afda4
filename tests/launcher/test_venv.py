"""train.sh and its .venv, in a copy of the repository that needs no package."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

STUB = "import json, sys; print(json.dumps([sys.prefix, *sys.argv[1:]]))\n"
VARIABLES = (
    *("RECIPE", "MODEL_PATH", "TOKENIZER_PATH", "TRAIN_FILE", "EVAL_FILE", "OUTPUT_DIR"),
    *("NUM_PROCESSES", "HOST_GPU_NUM", "PYTHON"),
)


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    repository = Path(__file__).resolve().parents[2]
    copy = tmp_path_factory.mktemp("with blank") / "my repo"
    (copy / "hunyuan_train/launcher").mkdir(parents=True)
    for name in ("train.sh", "hunyuan_train/launcher/venv.sh"):
        shutil.copy(repository / name, copy / name)
    (copy / "train.py").write_text(STUB)
    (copy / "hunyuan_train/__main__.py").write_text(STUB)
    (copy / "requirements.txt").write_text("# nothing ==\n")
    (copy / "pyproject.toml").touch()
    return copy


def start(copy: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    home = copy.parent.with_name("home")
    home.mkdir(exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    return subprocess.run(
        ["bash", str(copy / "train.sh"), *arguments],
        cwd=copy.parent,
        env=environment | {"HOME": str(home)} | variables,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )


def last_arguments(result: subprocess.CompletedProcess[str]) -> list[str]:
    return json.loads(result.stdout.splitlines()[-1])[1:]


def test_a_start_installs_once_and_again_only_for_other_requirements(copy):
    first = start(copy)
    assert "making .venv" in first.stdout
    assert " " not in json.loads(first.stdout.splitlines()[-1])[0], "torch cannot link there"
    assert len(start(copy).stdout.splitlines()) == 1
    (copy / "requirements.txt").write_text("# something else ==\n")
    changed = start(copy).stdout
    assert "installing requirements.txt" in changed
    assert "making .venv" not in changed


def test_the_command_works_from_any_folder_and_takes_nothing_from_it(copy, tmp_path):
    start(copy)
    (tmp_path / "json.py").write_text("raise RuntimeError('of another folder')\n")
    done = subprocess.run(
        [copy / ".venv/bin/hunyuan-train", "plan", "it's mine"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    prefix, *arguments = json.loads(done.stdout)
    assert Path(prefix).samefile(copy / ".venv")
    assert arguments == ["plan", "it's mine"]


def test_an_interrupted_installation_starts_afresh(copy):
    start(copy)
    (copy / ".venv/installing").touch()
    (copy / ".venv/installed-requirements.txt").unlink()
    (copy / ".venv/half a package").touch()
    assert "making .venv" in start(copy).stdout
    assert not (copy / ".venv/half a package").exists()
    assert not (copy / ".venv/installing").exists()


@pytest.mark.parametrize(
    ("variables", "arguments", "expected"),
    [
        ({}, [], ["--recipe", "tiny"]),
        ({}, ["--seed", "1"], ["--recipe", "tiny", "--seed", "1"]),
        ({"MODEL_PATH": "/a b"}, [], ["--recipe", "lora", "--model_name_or_path", "/a b"]),
        ({"RECIPE": "full"}, [], ["--recipe", "full"]),
        ({}, ["--recipe", "full"], ["--recipe", "full"]),
        ({}, ["--config", "run.yaml"], ["--config", "run.yaml"]),
        (
            {},
            ["--model_name_or_path=/m"],
            ["--recipe", "lora", "--model_name_or_path=/m"],
        ),
        (
            {"TRAIN_FILE": "t", "EVAL_FILE": "e", "OUTPUT_DIR": "o", "TOKENIZER_PATH": "k"},
            [],
            [
                *("--tokenizer_name_or_path", "k", "--train_data_file", "t"),
                *("--eval_data_file", "e", "--output_dir", "o"),
            ],
        ),
        (
            {"TRAIN_FILE": "t", "RECIPE": "tiny"},
            [],
            ["--recipe", "tiny", "--train_data_file", "t"],
        ),
        (
            {"TRAIN_FILE": "t", "MODEL_PATH": "m"},
            [],
            ["--recipe", "lora", "--model_name_or_path", "m", "--train_data_file", "t"],
        ),
        ({}, ["--train_data_file", "t"], ["--train_data_file", "t"]),
        ({}, ["my.yaml", "--seed", "1"], ["my.yaml", "--seed", "1"]),
        ({"HOST_GPU_NUM": "8"}, [], ["--recipe", "tiny", "--num_processes", "8"]),
    ],
)
def test_variables_become_flags_and_arguments_follow(copy, variables, arguments, expected):
    assert last_arguments(start(copy, *arguments, **variables)) == expected
