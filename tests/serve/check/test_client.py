"""A server of the standard library's: which of its models is asked, and what it is told."""

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from hunyuan_train.serve.check.client import find_server
from hunyuan_train.serve.errors import ServeError


class Listing(BaseHTTPRequestHandler):
    """Lists a base model before its adapter, as vLLM does."""

    def do_GET(self) -> None:
        body = json.dumps({"data": [{"id": "export-base", "max_model_len": 9}, {"id": "export"}]})
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        """Nothing is written to the screen."""


@pytest.fixture
def url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Listing) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def test_the_adapter_is_asked_and_not_its_base(url: str) -> None:
    def find(**names: str) -> str:
        return find_server(url, timeout_seconds=9, **{"model": "", **names}).model

    assert find(usual_name="export") == "export"
    assert find(usual_name="elsewhere") == "export-base"
    assert find(usual_name="export", model="export-base") == "export-base"
    with pytest.raises(ServeError, match="serves export-base, export; name one of them"):
        find(model="gone")
