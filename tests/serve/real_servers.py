"""Starts real servers for tests, and ends them."""

import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile

from tests.clients.environments import client_python

START_SECONDS = 1800  # beside a full load; a minute on an idle machine
LAST_CHARACTERS = 3000
VLLM_SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_DO_NOT_TRACK": "1",
    "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",  # for the old form of the rope, which states 32,768
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
}
# Float32, so that tokens are those of our own reading; the rest makes the start short.
VLLM_ARGUMENTS = "--dtype float32 --enforce-eager --max-num-seqs 4 --no-enable-prefix-caching"


def vllm_environment() -> dict[str, str]:
    """Variables with which `vllm` is found, and runs on a CPU."""
    programs = str(Path(client_python("vllm")).parent)
    return os.environ | VLLM_SETTINGS | {"PATH": f"{os.environ['PATH']}:{programs}"}


def find_port() -> int:
    """A port that is free now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


@contextmanager
def run_server(command: Sequence[str], port: int, environment: dict[str, str]) -> Iterator[str]:
    """Start a server, wait until it lists its models, give its address, and end it."""
    url = f"http://127.0.0.1:{port}"
    with NamedTemporaryFile("w", prefix="server-", suffix=".log", delete=False) as log:
        server = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
    try:
        end = time.monotonic() + START_SECONDS
        while not _lists_models(url):
            said = Path(log.name).read_text(encoding="utf-8", errors="replace")[-LAST_CHARACTERS:]
            assert server.poll() is None, said
            assert time.monotonic() < end, said
            time.sleep(1)
        yield url
        Path(log.name).unlink()
    finally:
        server.terminate()
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _lists_models(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/v1/models", timeout=10) as answer:
            return bool(json.load(answer)["data"])
    except (OSError, urllib.error.URLError):
        return False
