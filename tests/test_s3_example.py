"""The example for S3 against a server on loopback, in an environment of its own."""

import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from hunyuan_train.checkpoint.user_commands import CheckpointCommands, fetch_checkpoints
from hunyuan_train.config.schema import RunConfig
from hunyuan_train.config.settings import with_settings
from hunyuan_train.launcher.host.probe import free_port
from tests.checkpoint.test_user_commands import make_checkpoint, wait_until
from tests.conftest import REPOSITORY

SCRIPT = REPOSITORY / "examples" / "s3_copies.py"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def s3_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with an S3 client and a server; skips where they cannot be installed."""
    folder = tmp_path_factory.mktemp("s3") / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "-q", "boto3", "moto[server]"]
    if subprocess.run(install, capture_output=True, check=False).returncode:
        pytest.skip("boto3 and moto cannot be installed here")
    return python


@pytest.fixture
def bucket(s3_python: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket on loopback."""
    url = f"http://127.0.0.1:{free_port()}"
    variables = {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "any",
        "AWS_SECRET_ACCESS_KEY": "any",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    command = [str(s3_python), "-m", "moto.server", "-H", "127.0.0.1", "-p", url.split(":")[-1]]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_until(lambda: answers(url))
    make = "import boto3; boto3.resource('s3').create_bucket(Bucket='copies')"
    subprocess.run([str(s3_python), "-c", make], check=True)
    yield "s3://copies/my/run"
    server.terminate()
    server.wait()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url):
            return True
    except OSError:
        time.sleep(0.2)
        return False


def test_the_newest_whole_copy_comes_back(tmp_path: Path, s3_python: Path, bucket: str) -> None:
    run = tmp_path / "run"
    commands = CheckpointCommands(f"{s3_python} {SCRIPT} up {bucket}")
    for step in (1, 2):
        folder = make_checkpoint(run, step)
        (folder / "rank-00000.safetensors").write_bytes(os.urandom(2**20))
        commands.start(folder)
    wait_until(lambda: not commands.in_use())
    assert commands.fault is None
    cut_off = run / "checkpoints" / "step-000003"  # a machine that vanished in the middle
    shutil.copytree(folder, cut_off)
    (cut_off / "manifest.json").unlink()
    up = [str(s3_python), str(SCRIPT), "up", bucket, str(cut_off)]
    subprocess.run(up, check=True)
    kept = {file.name: file.read_bytes() for file in folder.iterdir()}
    shutil.rmtree(run)
    config = with_settings(
        RunConfig(),
        output_dir=str(run),
        resume_from_checkpoint="auto",
        before_resume=f"{s3_python} {SCRIPT} down {bucket}",
    )
    for _ in range(2):  # what is there is not brought again
        fetch_checkpoints(config)
        [found] = (run / "checkpoints").iterdir()
        assert found.name == "step-000002"
        assert {file.name: file.read_bytes() for file in found.iterdir()} == kept


def test_nothing_to_bring_is_no_failure(tmp_path: Path, s3_python: Path, bucket: str) -> None:
    down = [str(s3_python), str(SCRIPT), "down", bucket, str(tmp_path)]
    assert subprocess.run(down, check=False).returncode == 0
