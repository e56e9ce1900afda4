"""A newcomer's first hour: a wheel, an empty folder, and no flag: train, watch, report, chat."""

import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from tests.test_wheel import Installed, installed, source, wheel

__all__ = ["installed", "source", "wheel"]

pytestmark = pytest.mark.slow

PATIENCE_SECONDS = 1200
STEPS = 125  # of the demo
PAGE = re.compile(r"http://127\.0\.0\.1:\d+/")


class Started:
    """A command that goes on in the newcomer's folder, and what it has said so far."""

    def __init__(self, newcomer: Installed, log: Path, command: str) -> None:
        self.log = log
        with log.open("wb") as said:
            self.process = subprocess.Popen(
                ["bash", "-c", command],
                cwd=newcomer.empty,
                env=environment(newcomer),
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def said(self) -> str:
        return self.log.read_text()

    def wait_for(self, pattern: str) -> str:
        return wait(lambda: found[0] if (found := re.search(pattern, self.said)) else None, self)

    def end(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, 15)
        self.process.wait(timeout=120)


def environment(newcomer: Installed) -> dict[str, str]:
    path = f"{newcomer.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PYTHONPATH": str(newcomer.folder), "PATH": path}


def wait(find: Callable[[], Any], started: Started) -> Any:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        if (found := find()) is not None:
            return found
        assert started.process.poll() in (None, 0), started.said
        time.sleep(0.5)
    raise AssertionError(started.said)


def ask(url: str) -> Any:
    with urlopen(url, timeout=60) as answer:
        return json.loads(answer.read())


@pytest.fixture(scope="module")
def training(installed: Installed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    log = tmp_path_factory.mktemp("logs") / "train.txt"
    started = Started(installed, log, "hunyuan-train train")
    yield started
    started.end()


@pytest.fixture(scope="module")
def page(
    installed: Installed, training: Started, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The address of the page, by the very line that training has printed."""
    line = training.wait_for(r"to watch this run, in another terminal: (.*)\n")
    command = line.partition("terminal: ")[2].strip()
    log = tmp_path_factory.mktemp("logs") / "watch.txt"
    started = Started(installed, log, f"{command} --port 0")
    yield started.wait_for(PAGE.pattern)
    started.end()


def test_the_page_moves_while_the_demo_trains(training: Started, page: str) -> None:
    assert "so this is the demo" in training.said
    with urlopen(page) as answer:
        assert b"<title>" in answer.read()
    seen: dict[int, dict] = {}

    def look() -> bool | None:
        [run] = ask(f"{page}api/overview")["runs"]
        if run["state"]["phase"] == "running" and run["state"]["step"] is not None:
            seen[run["state"]["step"]] = run
        return True if len(seen) > 2 else None

    wait(look, training)
    steps = sorted(seen)
    first, last = (
        ask(f"{page}api/curves?run={seen[steps[0]]['key']}&last={step}") for step in steps[::2]
    )
    assert len(last["loss"]["steps"]) > len(first["loss"]["steps"])
    assert steps[2] in last["loss"]["steps"]
    assert seen[steps[-1]]["state"]["total_steps"] == STEPS
    assert any(host["name"] == "127.0.0.1" for host in seen[steps[-1]]["hosts"])


def test_page_report_and_chat_know_the_run_when_it_is_over(
    installed: Installed, training: Started, page: str
) -> None:
    assert training.process.wait(timeout=PATIENCE_SECONDS) == 0, training.said
    assert "Traceback" not in training.said
    [run] = ask(f"{page}api/overview")["runs"]
    assert (run["state"]["phase"], run["state"]["step"]) == ("done", STEPS)
    abouts = {one["about"]: one["text"] for one in run["verdict"]}
    assert "improved by" in abouts["held-out loss"]
    answers = ask(f"{page}api/answers?run={run['key']}")
    assert {one["mode"] for one in answers["samples"]} == {"fast", "slow"}
    with urlopen(f"{page}csv?run={run['key']}") as answer:
        assert len(answer.read().splitlines()) == 1 + STEPS // 5
    said = installed.command("report", "runs/tiny")
    assert (installed.empty / "runs/tiny/report.html").stat().st_size > 50_000
    assert "report" in said
    line = next(one for one in training.said.splitlines() if one.startswith("talk to it"))
    command = line.removeprefix("talk to it").strip()
    question = "--prompt 'List the fruits: Ann bought rice, pears, apples and soap.' --no_think"
    done = subprocess.run(
        ["bash", "-c", f"{command} {question} --temperature 0"],
        env=environment(installed),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert ";" in done.stdout, "a list of fruits, as it was taught"
    assert done.stderr == "", "nothing that the newcomer did not ask for"
    assert [one.name for one in installed.empty.iterdir()] == ["runs"], "no litter beside the run"
