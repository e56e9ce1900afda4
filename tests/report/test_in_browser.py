"""The page in a real browser: live while a run goes on, frozen after it, one run and several."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hunyuan_train.config.run_files import ANSWERS, METRICS
from hunyuan_train.report.commands import make_report
from tests.clients.environments import client_python
from tests.conftest import REPOSITORY
from tests.launcher.conftest import network
from tests.launcher.network import Network
from tests.launcher.training import start as start_on_hosts
from tests.report.runs import change_line, make_run
from tests.report.test_server import serve

__all__ = ["network"]  # a fixture

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("chromium"), reason="needs Debian's chromium"),
]

SCRIPT = REPOSITORY / "tests" / "clients" / "browser_page.py"
SETTINGS = (
    *("--recipe", "tiny", "--num_processes", "1", "--max_steps", "400", "--logging_steps", "1"),
    *("--eval_steps", "5", "--save_steps", "0", "--no_export", "--sample_answers", "false"),
)


def look_at(url: str, shots: Path, **order: Any) -> dict[str, Any]:
    python = Path(client_python("browser"))
    axe = python.parents[1] / "share" / "axe.min.js"
    done = subprocess.run(
        [python, SCRIPT],
        input=json.dumps({"url": url, "axe": str(axe), "shots": str(shots)} | order),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=900,
    )
    return json.loads(done.stdout)


def check_looks(found: dict[str, Any]) -> None:
    assert found["console"] == []
    for one in found["looks"]:
        assert one["serious"] == [], (one["width"], one["scheme"])
        assert one["too_wide"] <= 0, (one["width"], one["scheme"])


def check_uses(uses: dict[str, str]) -> None:
    assert "step" in uses["hovered"]
    assert uses["hovered"] != uses["last"]
    assert uses["range"] == "zoom"
    assert uses["zoomed"] != uses["first"]
    assert uses["range_after_0"] == "all"
    assert uses["range_after_plus"] == "zoom"
    assert "step" in uses["spoken"]
    assert uses["smoothed"] != uses["plain"]
    assert uses["csv"].startswith('step,"')


@pytest.fixture
def training(tmp_path: Path) -> Iterator[Path]:
    """The folder of a run that goes on for as long as somebody looks."""
    folder = tmp_path / "runs" / "moving"
    command = [sys.executable, str(REPOSITORY / "train.py"), *SETTINGS]
    process = subprocess.Popen(
        [*command, "--output_dir", str(folder)],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout
    said = []
    for line in process.stdout:
        said.append(line)
        if line.startswith("step 2/"):
            break
    else:
        raise AssertionError("".join(said))
    assert any("to watch this run" in line and f"watch {folder}" in line for line in said)
    yield folder
    process.terminate()
    process.communicate(timeout=120)


def test_curves_move_while_a_run_goes_on(training: Path, tmp_path: Path) -> None:
    server = serve(training)
    try:
        url = f"http://127.0.0.1:{server.server_address[1]}/"
        found = look_at(url, tmp_path, name="during", moves=3)
    finally:
        server.shutdown()
        server.server_close()
    assert len(found["moves"]) > 3
    assert all("running" in one for one in found["moves"])
    assert "of 400" in found["moves"][0]
    assert "left" in found["moves"][-1]
    check_looks(found)
    check_uses(found["uses"])
    assert "127.0.0.1" in found["looks"][0]["text"]  # the host


def test_both_hosts_of_a_run_are_shown(network: Network, tmp_path: Path) -> None:
    flags = ("--max_steps", "400", "--eval_steps", "5", "--no_export", "--logging_steps", "1")
    training = start_on_hosts(network, tmp_path / "run", "--recipe", "tiny", *flags)
    try:
        training.wait_for("step 6/")
        server = serve(tmp_path / "run")
        url = f"http://127.0.0.1:{server.server_address[1]}/"
        found = look_at(url, tmp_path, name="two-hosts", moves=1)
        server.shutdown()
        server.server_close()
    finally:
        network.clear()
        training.end()
    check_looks(found)
    for host in (0, 1):
        words = rf"{re.escape(network.address(host))}\s+1\s+(training|evaluating|saving)\s+\d+"
        assert re.search(words, found["looks"][0]["text"])


@pytest.mark.parametrize("names", [["one"], ["one", "two"]], ids=["one run", "two runs"])
def test_a_frozen_page_works_from_a_file(tmp_path: Path, names: list[str]) -> None:
    folders = [make_run(tmp_path / name, rate=1e-5 * len(name)) for name in names]
    scores = ("valid_format", "exact_match", "set_f1", "mode_leak_fast", "mode_leak_slow")
    for folder in folders:  # a chart of many lines, and an answer that repeats itself
        for number in (50, 99):
            change_line(folder, METRICS, number, **{f"eval_{score}": 0.5 for score in scores})
        change_line(folder, ANSWERS, 1, output="again\n" * 100)
    make_report(folders, tmp_path / "page.html")
    found = look_at((tmp_path / "page.html").as_uri(), tmp_path, name=f"frozen-{len(names)}")
    check_looks(found)
    check_uses(found["uses"])
    text = found["looks"][0]["text"]
    assert "<script>alert(1)</script>" in text
    assert "all 101 lines" in text
    assert text.count("again") < 20
    assert "the disk is nearly full (3 times" in text
    assert ("2 runs" in text) == (len(names) == 2)
