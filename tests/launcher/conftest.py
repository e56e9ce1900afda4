"""Fixtures of tests over several hosts."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launcher.network import Network, why_impossible


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
