"""What is installed from a wheel works without the repository, from any folder."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from hunyuan_train.checkpoint.run_fingerprint import describe_code
from hunyuan_train.shipped import PACKAGE, RECIPES, VERSION
from tests.conftest import REPOSITORY

LEFT_OUT = (".git", ".venv*", "runs", "wandb", "__pycache__", "*.egg-info", ".*_cache", "build")
SHIPPED = (
    *("train.py", "requirements.txt", "ds_configs/*"),
    *("data/practice_*.jsonl", "data/tiny_*", "data/tokenizer_tiny/*"),
)
BUILD_SDIST = "import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])"


@dataclass(frozen=True)
class Installed:
    """A folder that holds our package from a wheel and nothing else, and an empty one."""

    folder: Path
    empty: Path

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run words in the empty folder, where Python finds our package in the other one."""
        environment = {**os.environ, "PYTHONPATH": str(self.folder)}
        return subprocess.run(
            words,
            cwd=self.empty,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )

    def command(self, *arguments: str) -> str:
        """What `hunyuan-train` says, which must succeed."""
        done = self.run(str(self.folder / "bin" / "hunyuan-train"), *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr


def build_wheel(source: Path, folder: Path) -> Path:
    flags = ("--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir")
    command = [sys.executable, "-m", "pip", "wheel", *flags, str(folder), str(source)]
    subprocess.run(command, check=True)
    [wheel] = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository: a build leaves folders beside what it builds."""
    folder = tmp_path_factory.mktemp("source") / "repository"
    shutil.copytree(REPOSITORY, folder, ignore=shutil.ignore_patterns(*LEFT_OUT))
    return folder


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(source, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    folder = tmp_path_factory.mktemp("installed")
    flags = ("--quiet", "--no-deps", "--target", str(folder))
    subprocess.run([sys.executable, "-m", "pip", "install", *flags, str(wheel)], check=True)
    return Installed(folder, tmp_path_factory.mktemp("empty"))


def test_a_wheel_holds_the_package_and_what_it_needs_of_the_repository(wheel: Path) -> None:
    ours = [*REPOSITORY.glob("hunyuan_train/**/*.py"), *RECIPES.glob("*.yaml")]
    ours += [PACKAGE / "shipped_files/README.md", PACKAGE / "rehearsal/guard.cpp"]
    ours += (PACKAGE / "report/web").iterdir()  # what a browser reads
    expected = {path.relative_to(REPOSITORY).as_posix() for path in ours}
    for pattern in SHIPPED:
        names = [path.relative_to(REPOSITORY).as_posix() for path in REPOSITORY.glob(pattern)]
        assert names
        expected |= {f"hunyuan_train/shipped_files/{name}" for name in names}
    information = f"hunyuan_train-{VERSION}.dist-info"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        assert {name for name in names if not name.startswith(information)} == expected
        license = archive.read(f"{information}/licenses/LICENSE")
        assert license == (REPOSITORY / "LICENSE").read_bytes()
        scripts = archive.read(f"{information}/entry_points.txt").decode()
    assert re.findall(r"^(\S+) =", scripts, re.MULTILINE) == ["hunyuan-train", "hunyuan_train"]


def test_the_source_distribution_builds_the_same_wheel(
    source: Path, wheel: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", BUILD_SDIST, str(tmp_path)]
    subprocess.run(command, cwd=source, check=True, stdout=subprocess.DEVNULL)
    [archive] = tmp_path.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as one, zipfile.ZipFile(build_wheel(archive, tmp_path)) as other:
        assert sorted(one.namelist()) == sorted(other.namelist())
        assert all(one.read(name) == other.read(name) for name in one.namelist())


def test_commands_answer_from_an_empty_folder(installed: Installed) -> None:
    assert installed.command("--version") == f"hunyuan-train {VERSION}\n"
    assert "fine-tune a model" in installed.command("--help")
    plan = json.loads(installed.command("plan", "--model", "a13b", "--gpus", "8", "--json"))
    assert plan["fits"] is True
    data = installed.folder / "hunyuan_train/shipped_files/data/tiny_train.jsonl"
    assert "no errors" in installed.command("data", "check", str(data))
    assert "127.0.0.1" in installed.command("doctor", "--recipe", "tiny")
    flags = ("--recipe", "tiny", "--deepspeed", "ds_configs/zero2.json", "--dry_run")
    assert "ZeRO stage 2" in installed.command("train", *flags)


def test_two_steps_are_trained_and_exported(installed: Installed) -> None:
    installed.command(
        *("train", "--recipe", "tiny", "--num_processes", "1", "--max_steps", "2"),
        *("--output_dir", "run", "--eval_steps", "0", "--sample_answers", "false"),
    )
    lines = (installed.empty / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["step"] == 2
    [start] = (installed.empty / "run" / "starts.jsonl").read_text().splitlines()
    assert json.loads(start)["git"] is None
    assert json.loads(start)["versions"] == describe_code(), "the same code as the repository's"
    assert all(
        path.startswith(str(installed.folder)) for path in json.loads(start)["data"]["files"]
    )
    assert (installed.empty / "run" / "export" / "model.safetensors.index.json").exists()
    installed.command("report", "run")


def test_other_hosts_get_the_package_alone(installed: Installed) -> None:
    code = (
        "from hunyuan_train.config.load import load_config\n"
        "from hunyuan_train.launcher.cluster.sync import paths_to_sync\n"
        "print(*paths_to_sync(load_config(['--recipe', 'tiny'])), sep='\\n')"
    )
    done = installed.run(sys.executable, "-c", code)
    assert done.stdout.splitlines() == [
        str(installed.folder / "hunyuan_train"),
        str(installed.empty),
    ]
