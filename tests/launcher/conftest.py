"""Fixtures of tests over several hosts."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launcher.network import Network, wait_until_empty, why_impossible
from tests.launcher.training import RUN, start


@pytest.fixture(scope="session")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    """Three hosts with sshd, for all tests."""
    if reason := why_impossible():
        pytest.skip(reason)
    made = Network(Path(tmp_path_factory.mktemp("network")), num_hosts=3)
    try:
        made.up()
        yield made
    finally:
        made.down()


@pytest.fixture
def training(network, tmp_path):
    """Starts training on hosts; ends whatever is left of it."""
    started = []

    def begin(*flags, folder="run", **settings):
        started.append(start(network, tmp_path / folder, *flags, **settings))
        return started[-1]

    yield begin
    network.clear()
    for one in started:
        one.process.send_signal(signal.SIGCONT)
        one.process.stdout.close()
        one.process.wait(timeout=20)


@pytest.fixture(scope="session")
def undisturbed(network, tmp_path_factory) -> Path:
    """The same run on the same two hosts, left alone."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    made = start(network, folder, *RUN)
    assert made.end() == 0, made.text()
    wait_until_empty(network, 0, 1)
    return folder
