"""A server of the standard library's: which of its models is asked, and what it is told."""

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest

from hunyuan_train.serve.check.client import Server, find_server
from hunyuan_train.serve.errors import ServeError

TOKEN = {"choices": [{"delta": {"content": "A"}, "token_ids": [7], "finish_reason": None}]}
END = {"choices": [{"delta": {"content": "."}, "token_ids": [8], "finish_reason": "stop"}]}
# As vLLM ends a stream when its parser raises an error without words.
ERROR = {"error": {"message": "", "type": "BadRequestError", "code": 400}}
STREAMS: dict[str, list[Any]] = {  # by the model that is asked
    "whole": [TOKEN, END],
    "broken": [TOKEN, ERROR],
    "ended": [TOKEN],
    "cut": [TOKEN, "{"],
}


class Listing(BaseHTTPRequestHandler):
    """Lists a base model before its adapter, as vLLM does, and streams what is asked for."""

    def do_GET(self) -> None:
        body = json.dumps({"data": [{"id": "export-base", "max_model_len": 9}, {"id": "export"}]})
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body.encode())

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert asked["stream"]
        self.send_response(200)
        self.end_headers()
        for event in STREAMS[asked["model"]]:
            text = event if isinstance(event, str) else json.dumps(event)
            self.wfile.write(f"data: {text}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")

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


@pytest.mark.parametrize(
    ("model", "content", "error"),
    [("whole", "A.", ""), ("broken", "A", "BadRequestError"), ("ended", "A", "no finish_reason")],
)
def test_an_answer_that_the_server_breaks_off_says_so(
    url: str, model: str, content: str, error: str
) -> None:
    server = Server(url=f"http://{url}/v1", model=model, timeout_seconds=9)
    answer = server.ask({}, is_streamed=True)
    assert (answer.content, answer.error) == (content, error)
    assert answer.token_ids[0] == 7


def test_what_is_no_answer_is_refused_in_one_paragraph(url: str) -> None:
    server = Server(url=f"http://{url}/v1", model="cut", timeout_seconds=9)
    with pytest.raises(ServeError, match="answers, but not as the OpenAI interface says"):
        server.ask({}, is_streamed=True)
    nobody = Server(url="http://127.0.0.1:1/v1", model="", timeout_seconds=9)
    with pytest.raises(ServeError, match=r"^http://127.0.0.1:1/v1/chat/completions cannot be reac"):
        nobody.ask({}, is_streamed=True)
