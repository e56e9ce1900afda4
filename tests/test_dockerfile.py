"""The Dockerfile: linted, and its steps run one after the other, with Debian as their base image.

What is not tried: the base image itself, its CUDA, and docker's own reading of the file.
"""

import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hunyuan_train.shipped import VERSION
from tests.conftest import REPOSITORY
from tests.disposable_root import DisposableRoot, registry_settings, why_impossible

DOCKERFILE = REPOSITORY / "Dockerfile"
HADOLINT = Path(sys.executable).with_name("hadolint")
LEFT_OUT = (".git", ".venv*", "runs", "__pycache__", ".*_cache", "build")
BIND, CACHE = re.compile(r"--mount=type=bind,target=(\S+)"), re.compile(r"--mount=type=cache,\S+")
OTHER_USER = "4242:0"


def read_instructions(text: str) -> list[tuple[str, str]]:
    """Each instruction with what follows it, on one line."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


@dataclass
class Image:
    """What the instructions so far have made."""

    root: DisposableRoot
    context: Path
    environment: dict[str, str] = field(default_factory=dict)
    user: str = "0:0"
    folder: str = "/"
    entrypoint: list[str] = field(default_factory=list)

    def step(self, instruction: str, words: str) -> None:
        getattr(self, f"do_{instruction.lower()}")(words)

    def do_from(self, words: str) -> None:
        assert re.fullmatch(r"nvidia/cuda:\d+\.\d+\.\d+-devel-ubuntu24\.04", words)
        self.environment = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}

    def do_run(self, words: str) -> None:
        targets = BIND.findall(words)
        for target in targets:
            self.root.bind(self.context, target)
        command = CACHE.sub("", BIND.sub("", words)).strip()
        environment = self.environment | registry_settings() | {"DEBIAN_FRONTEND": "noninteractive"}
        self.root.add(f"echo {shlex.quote(f'== {command[:60]}')}")
        self.root.add(self.command("sh", "-c", command, **environment))
        for target in targets:
            self.root.unbind(target)

    def do_copy(self, words: str) -> None:
        *sources, target = words.split()
        for source in sources:
            self.root.add(f"cp -r {self.context / source} {self.root.place(target)}")

    def do_env(self, words: str) -> None:
        for word in shlex.split(words):
            name, _, value = word.partition("=")
            self.environment[name] = value.replace("$PATH", self.environment["PATH"])

    def do_user(self, words: str) -> None:
        self.user = f"{words}:0"

    def do_workdir(self, words: str) -> None:
        self.folder = words

    def do_entrypoint(self, words: str) -> None:
        self.entrypoint = eval(words)  # a JSON list of strings

    def do_cmd(self, words: str) -> None:
        assert eval(words) == ["--help"]

    def command(self, *words: str, user: str | None = None, **environment: str) -> str:
        return self.root.command(
            words,
            environment=environment or self.environment,
            folder=self.folder,
            user=user or self.user,
        )


def lint(text: str) -> subprocess.CompletedProcess[str]:
    command = [str(HADOLINT), "--no-color", "-"]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False)


@pytest.mark.skipif(not HADOLINT.exists(), reason="pip install -r requirements-dev.txt")
def test_hadolint_finds_nothing_and_would() -> None:
    text = DOCKERFILE.read_text()
    found = lint(text)
    assert (found.returncode, found.stdout) == (0, "")
    assert "DL3008" in lint(text.replace("# hadolint ignore=DL3008\n", "")).stdout
    assert "DL3006" in lint(text.replace(":13.0.2-devel-ubuntu24.04", "")).stdout


def test_every_instruction_is_one_that_the_next_test_runs() -> None:
    instructions = {name for name, _ in read_instructions(DOCKERFILE.read_text())}
    assert instructions == {
        *("FROM", "RUN", "COPY", "ENV", "USER", "WORKDIR", "ENTRYPOINT", "CMD"),
    }


@pytest.mark.slow
@pytest.mark.skipif(bool(why := why_impossible()), reason=why)
def test_its_steps_make_what_works_for_any_user(tmp_path: Path) -> None:
    context = tmp_path / "context"
    shutil.copytree(REPOSITORY, context, ignore=shutil.ignore_patterns(*LEFT_OUT))
    image = Image(DisposableRoot.at(tmp_path / "disk"), context)
    for instruction in read_instructions(DOCKERFILE.read_text()):
        image.step(*instruction)
    image.root.add("echo BUILT")
    image.root.add(image.command(*image.entrypoint, "--version"))
    image.root.add(image.command(*image.entrypoint, "train", "--dry_run", user=OTHER_USER))
    write = 'mkdir -p "$TORCH_EXTENSIONS_DIR" runs/x && stat -c %u:%g "$HOME/.cache/hunyuan_train"'
    image.root.add(image.command("sh", "-c", write, user=OTHER_USER))
    done = image.root.run()
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    build, _, said = done.stdout.partition("BUILT\n")
    assert build.count("== ") == 4
    assert said.splitlines() == [f"hunyuan-train {VERSION}", OTHER_USER]
    assert "dry run: every check passed" in done.stderr
