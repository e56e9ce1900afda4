"""The server of the live page: what it answers, and to whom."""

import argparse
import csv
import http.client
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hunyuan_train import cli
from hunyuan_train.config.run_files import METRICS
from hunyuan_train.errors import ConfigError
from hunyuan_train.report import watched
from hunyuan_train.report.server import PageServer
from hunyuan_train.report.watch import describe_server, open_server
from tests.report.runs import make_run


def ask(server: PageServer, path: str, **headers: str) -> http.client.HTTPResponse:
    port = server.server_address[1]
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", path, headers={"Host": f"localhost:{port}"} | headers)
    return connection.getresponse()


def ask_json(server: PageServer, path: str) -> object:
    answer = ask(server, path)
    assert answer.status == 200, answer.read()
    return json.loads(answer.read())


def serve(*runs: Path, **options: object) -> PageServer:
    asked = {"runs": list(runs), "host": "127.0.0.1", "port": 0, "token_file": None} | options
    server = open_server(argparse.Namespace(**asked))
    server.runs.start()
    server.start()
    return server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_run(tmp_path / "runs" / "one")


@pytest.fixture
def server(folder: Path) -> Iterator[PageServer]:
    server = serve(folder.parent)
    yield server
    server.shutdown()
    server.server_close()


def test_a_page_and_the_parts_that_it_asks_for(server: PageServer, folder: Path) -> None:
    page = ask(server, "/").read().decode()
    assert '{"mode":"live"}' in page
    assert f"watching 1 run: http://127.0.0.1:{server.server_address[1]}/ " in describe_server(
        server
    )
    overview = ask_json(server, "/api/overview")
    assert [run["key"] for run in overview["runs"]] == ["one"]
    assert overview["charts"][0]["title"] == "Loss"
    curves = ask_json(server, "/api/curves?run=one&first=300&last=400&most=500")
    assert curves["loss"]["steps"] == list(range(290, 420, 10))
    for part in ("experts", "answers", "rest", "log"):
        assert ask_json(server, f"/api/{part}?run=one")
    make_run(folder.parent / "two")
    server.runs._find()
    assert [run["key"] for run in ask_json(server, "/api/overview")["runs"]] == ["two", "one"]


def test_the_table_holds_every_line(server: PageServer, folder: Path) -> None:
    answer = ask(server, "/csv?run=one")
    assert "attachment" in answer.headers["Content-Disposition"]
    rows = list(csv.DictReader(io.StringIO(answer.read().decode())))
    lines = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    assert [float(row["loss"]) for row in rows] == pytest.approx([line["loss"] for line in lines])
    assert rows[1]["grad_norm"] == "nan"
    assert rows[2]["grad_norm"] == "1"


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/config.yaml", 404),
        ("/../../etc/passwd", 404),
        ("/api/curves?run=../one", 404),
        ("/api/nothing?run=one", 404),
        ("/api/curves?run=one&first=x", 400),
        ("/api/curves?run=one&first=nan", 400),
        ("/api/curves?run=one&most=ten", 400),
    ],
)
def test_what_is_not_offered_is_refused(server: PageServer, path: str, status: int) -> None:
    assert ask(server, path).status == status


def test_nothing_can_be_changed_and_other_names_do_not_lead_here(server: PageServer) -> None:
    port = server.server_address[1]
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("POST", "/", b"{}")
    assert connection.getresponse().status == 501
    assert ask(server, "/", Host="evil.example").status == 403
    assert ask(server, "/", Host=f"[::1]:{port}").status == 200


def test_visitors_need_the_token_where_there_is_one(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("0123456789abcdef\n")
    server = serve(folder, token_file=file)
    try:
        assert ask(server, "/").status == 401
        assert ask(server, "/api/overview?token=0123456789abcdeg").status == 401
        assert "0123456789abcdef" in describe_server(server)
        answer = ask(server, "/?token=0123456789abcdef", Host="gpu-a:8765")
        assert (answer.status, answer.headers["Location"]) == (303, "/")
        cookie = answer.headers["Set-Cookie"].partition(";")[0]
        assert "HttpOnly; SameSite=Strict" in answer.headers["Set-Cookie"]
        assert ask(server, "/api/overview", Cookie=cookie, Host="gpu-a:8765").status == 200
    finally:
        server.shutdown()
        server.server_close()


def test_other_addresses_always_have_a_token(folder: Path) -> None:
    server = serve(folder, host="0.0.0.0")
    try:
        assert server.token
        assert ask(server, "/").status == 401
        assert "http://THIS_HOST:" in describe_server(server)
    finally:
        server.shutdown()
        server.server_close()


def test_mistakes_are_told(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["watch", str(tmp_path / "none")]) == 2
    assert "which is no folder; give the output_dir of a run" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert cli.main(["watch", str(tmp_path / "empty")]) == 2
    assert "there is no run in" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="with --host, and a port that is free with --port"):
        serve(folder, host="203.0.113.7", port=0)
    with pytest.raises(ConfigError, match="port 99999"):
        serve(folder, port=99999)
    short = tmp_path / "short"
    short.write_text("abc")
    with pytest.raises(ConfigError, match="openssl rand -hex 24"):
        serve(folder, token_file=short)


def test_who_comes_back_after_a_while_sees_what_is_there_now(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watched, "IDLE_SECONDS", 0.2)
    server = serve(folder)
    try:
        assert ask_json(server, "/api/overview")["runs"][0]["state"]["step"] == 1000
        deadline = time.monotonic() + 30
        while server.runs._is_fresh.is_set():  # until nobody has looked for a while
            assert time.monotonic() < deadline
            time.sleep(0.1)
        with (folder / METRICS).open("a") as file:
            file.write(json.dumps({"step": 1010, "loss": 2.0}) + "\n")
        assert ask_json(server, "/api/overview")["runs"][0]["state"]["step"] == 1010
    finally:
        server.shutdown()
        server.server_close()
