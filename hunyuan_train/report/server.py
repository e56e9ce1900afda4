"""Serves the live page: read-only, and only to whom it is meant for.

It answers GET for a handful of names and nothing else; no file is served by its path. On loopback,
a request must name this machine (so that no other site's page can read it by a name of its own that
leads here); elsewhere, it needs the token.
"""

import gzip
import hmac
import ipaddress
import json
import threading
import time
from collections.abc import Callable, Iterator
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import AF_INET, AF_INET6
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np

from hunyuan_train.report.content import (
    describe_answers,
    describe_curves,
    describe_experts,
    describe_rest,
)
from hunyuan_train.report.metric_table import Columns
from hunyuan_train.report.page import describe_overview, write_page
from hunyuan_train.report.record import RunRecord
from hunyuan_train.report.watched import WatchedRuns

COOKIE = "hunyuan_train_token"
TIMEOUT_SECONDS = 30.0  # for a visitor to send a request
MAX_BUCKETS = 4000
MIN_ZIPPED = 2000  # bytes
CSV_ROWS = 5000  # written at once
NO_TOKEN = (
    "This page needs its token: open the link that `hunyuan-train watch` has printed. It ends in "
    "?token=...\n"
)


class PageServer(ThreadingHTTPServer):
    """The server of one page about some runs."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, host: str, port: int, runs: WatchedRuns, token: str | None) -> None:
        self.address_family = AF_INET6 if ":" in host else AF_INET
        self.runs = runs
        self.token = token
        self.named_host = host
        super().__init__((host, port), Visit)

    def start(self) -> None:
        """Serve from a thread of its own."""
        threading.Thread(target=self.serve_forever, daemon=True, name="page").start()

    def handle_error(self, request: object, client_address: object) -> None:
        """A visitor that goes away is no error."""


class Visit(BaseHTTPRequestHandler):
    """One connection."""

    server: PageServer
    protocol_version = "HTTP/1.1"
    server_version = "hunyuan-train"
    sys_version = ""
    timeout = TIMEOUT_SECONDS

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: ANN401  its own
        """Keep the terminal quiet."""

    def do_HEAD(self) -> None:
        """Answer as GET, without the content."""
        self.do_GET()

    def do_GET(self) -> None:
        """Answer a request for the page or a part of its data."""
        address = urlsplit(self.path)
        query = {name: values[-1] for name, values in parse_qs(address.query).items()}
        if not self._is_meant_for_us():
            self._send_text(HTTPStatus.FORBIDDEN, "This name does not lead to this page.\n")
        elif not self._has_token(query):
            self._send_text(HTTPStatus.UNAUTHORIZED, NO_TOKEN)
        elif "token" in query:
            self._take_token()
        elif address.path == "/":
            page = write_page("Runs", {"mode": "live"})
            self._send(HTTPStatus.OK, page.encode(), "text/html; charset=utf-8")
        else:
            self._send_data(address.path, query)

    def _is_meant_for_us(self) -> bool:
        """Whether the name by which we were asked is ours, where no token proves it."""
        if self.server.token:
            return True
        name = urlsplit(f"//{self.headers.get('Host', '')}").hostname or ""
        return name in ("localhost", self.server.named_host) or is_loopback(name)

    def _has_token(self, query: dict[str, str]) -> bool:
        if not self.server.token:
            return True
        try:
            cookie = SimpleCookie(self.headers.get("Cookie", "")).get(COOKIE)
        except CookieError:
            cookie = None
        given = query.get("token") or (cookie.value if cookie else "")
        return hmac.compare_digest(given.encode(), self.server.token.encode())

    def _take_token(self) -> None:
        """Keep the token in a cookie, and out of the address, which others may see."""
        self.send_response(HTTPStatus.SEE_OTHER)
        self.send_header("Location", "/")
        cookie = f"{COOKIE}={self.server.token}; HttpOnly; SameSite=Strict; Path=/"
        self.send_header("Set-Cookie", cookie)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send_data(self, path: str, query: dict[str, str]) -> None:
        runs = self.server.runs.current()
        if path == "/api/overview":
            self._send_json(describe_overview(runs, time.time()))
            return
        run, answer = runs.get(query.get("run", "")), ANSWERS.get(path)
        if run is None or (answer is None and path != "/csv"):
            self._send_text(HTTPStatus.NOT_FOUND, "There is no such thing here.\n")
            return
        if answer is None:
            self._send_csv(run)
            return
        try:
            content = answer(run, query)
        except ValueError as error:
            self._send_text(HTTPStatus.BAD_REQUEST, f"That cannot be asked: {error}\n")
            return
        self._send_json(content)

    def _send_json(self, content: object) -> None:
        text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        self._send(HTTPStatus.OK, text.encode("utf-8", "replace"), "application/json")

    def _send_text(self, status: HTTPStatus, text: str) -> None:
        self._send(status, text.encode(), "text/plain; charset=utf-8")

    def _send(self, status: HTTPStatus, content: bytes, kind: str) -> None:
        is_zipped = len(content) > MIN_ZIPPED and "gzip" in self.headers.get("Accept-Encoding", "")
        if is_zipped:
            content = gzip.compress(content, compresslevel=1)
        self.send_response(status)
        self._send_common_headers(kind)
        if is_zipped:
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _send_common_headers(self, kind: str) -> None:
        self.send_header("Content-Type", kind)
        for name, value in (
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
            ("X-Frame-Options", "DENY"),
            ("Referrer-Policy", "no-referrer"),
            ("Cross-Origin-Resource-Policy", "same-origin"),
        ):
            self.send_header(name, value)

    def _send_csv(self, run: RunRecord) -> None:
        """Every line as a table: as long as it is, so that its length is not known beforehand."""
        if run.metrics.sample is not None:
            words = "The run is still being read; try again in a few seconds.\n"
            self._send_text(HTTPStatus.SERVICE_UNAVAILABLE, words)
            return
        self.send_response(HTTPStatus.OK)
        self._send_common_headers("text/csv; charset=utf-8")
        name = "".join(one if one.isalnum() or one in "-_." else "_" for one in run.name)
        name = name.encode("ascii", "replace").decode().replace("?", "_")
        self.send_header("Content-Disposition", f'attachment; filename="{name}.csv"')
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        if self.command != "HEAD":
            for part in write_csv(run.metrics.read):
                self.wfile.write(part.encode("utf-8", "replace"))


def write_csv(columns: Columns) -> Iterator[str]:
    """The metrics as a table, some lines at a time; empty where a line has no such number."""
    num_rows, names = columns.num_rows, columns.names()
    arrays = [columns.by_name[name] for name in names]
    quoted = ['"' + name.replace('"', '""') + '"' for name in names]
    yield ",".join(["step", *quoted]) + "\n"
    for start in range(0, num_rows, CSV_ROWS):
        end = min(num_rows, start + CSV_ROWS)
        steps = columns.steps[start:end].tolist()
        values = [array[start:end].tolist() for array in arrays]
        lines = [
            ",".join([str(step), *map(_as_cell, row)])
            for step, row in zip(steps, zip(*values, strict=True), strict=True)
        ] if values else list(map(str, steps))  # fmt: skip
        yield "\n".join(lines) + "\n"


def _as_cell(value: float) -> str:
    if value != value:
        return ""
    return "nan" if value == float("inf") else f"{value:.10g}"


def is_loopback(host: str) -> bool:
    """Whether an address leads to this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def answer_curves(run: RunRecord, query: dict[str, str]) -> dict[str, Any]:
    """Curves between two steps.

    Raises:
        ValueError: the steps or the number of buckets are no numbers.
    """
    first, last = float(query.get("first", "-inf")), float(query.get("last", "inf"))
    most = min(MAX_BUCKETS, max(2, int(query.get("most", "500"))))
    if np.isnan(first) or np.isnan(last):
        raise ValueError("first and last are steps")
    return describe_curves(run, first=first, last=last, most=most)


ANSWERS: dict[str, Callable[[RunRecord, dict[str, str]], object]] = {
    "/api/curves": answer_curves,
    "/api/experts": lambda run, _: describe_experts(run),
    "/api/answers": lambda run, _: describe_answers(run),
    "/api/rest": lambda run, _: describe_rest(run),
    "/api/log": lambda run, _: run.log.tail(),
}
