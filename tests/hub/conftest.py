from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub.server import Hub, start


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    served, server = start(tmp_path / "served")
    for name, value in served.environment(tmp_path / "home").items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    yield served
    server.shutdown()
    server.server_close()
