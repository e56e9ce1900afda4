"""Trackers by their own clients; `tests/test_tracking.py` reads wandb and TensorBoard back."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from matplotlib import pyplot

from hunyuan_train.trainer.trackers import open_trackers
from tests.clients.environments import client_python


def run_client(script: str, *arguments: object, repository: Path) -> dict[str, Any]:
    """What a script of the trackers' environment prints last."""
    plain = {name: value for name, value in os.environ.items() if "MLFLOW" not in name}
    finished = subprocess.run(
        [client_python("trackers"), repository / "tests/clients" / script, *map(str, arguments)],
        env={**plain, "PYTHONPATH": str(repository), "HOME": str(arguments[0])},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    found: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
def test_swanlab_and_mlflow_hold_what_was_logged_and_a_resumed_run_goes_on(
    tmp_path: Path, repository: Path
) -> None:
    pyplot.imsave(tmp_path / "load.png", [[0.0, 1.0]])
    notes = run_client("trackers_write.py", tmp_path, 1, "{}", repository=repository)
    again = run_client("trackers_write.py", tmp_path, 3, json.dumps(notes), repository=repository)
    assert again == notes
    found = run_client("trackers_read.py", tmp_path, notes["mlflow_run_id"], repository=repository)
    assert found["name"] == "one"
    assert found["status"] == "FINISHED"
    assert found["settings"]["setting_149"] == "149"
    assert found["metrics"]["loss"] == [[step, 1 / step] for step in (1, 2, 3, 4)]
    for name in ("rewards/chosen", "seen_my.jsonl", "router_drift"):
        assert [step for step, _ in found["metrics"][name]] == [1, 2, 3, 4]
    assert found["tags"]["routers"] == "they have collapsed"
    assert "answers/step-000001.json" in found["files"]
    # SwanLab has no key here and goes offline; its own `swanlab sync` sends these files.
    written = list((tmp_path / "swanlab").glob(f"run-*-{notes['swanlab_run_id']}/*.swanlab"))
    assert written
    content = b"".join(file.read_bytes() for file in written)
    assert all(name in content for name in (b"loss", b"rewards/chosen", b"router_drift"))


def test_a_tracker_that_cannot_be_opened_is_told_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "swanlab", None)
    (tmp_path / "tensorboard").write_text("a file where a folder belongs")
    trackers = open_trackers(
        ["swanlab", "tensorboard"], folder=tmp_path, run_name="one", settings={}, notes={}
    )
    assert trackers == []
    assert "swanlab cannot be opened" in caplog.text
    assert "tensorboard cannot be opened" in caplog.text
