"""A hub on loopback that answers what the real clients of Hugging Face and ModelScope ask.

It serves folders as repositories: listings with sizes and checksums, files with byte ranges, gates,
and for uploads git-LFS and commits. Xet is not spoken: the clients fall back on plain HTTP.
"""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "a" * 40
LARGE_BYTES = 2000  # larger files are LFS
SECRET = "hf_secretsecretsecret"


@dataclass
class Hub:
    """What the server serves, and what was asked of it."""

    folder: Path  # models/OWNER/NAME, datasets/OWNER/NAME
    gated: set[str] = field(default_factory=set)
    wrong_bytes: set[str] = field(default_factory=set)  # paths that arrive damaged
    cut_after: dict[str, int] = field(default_factory=dict)  # once, after so many bytes
    sent: list[tuple[str, int]] = field(default_factory=list)  # path, first byte
    tokens: list[str] = field(default_factory=list)
    uploads: dict[str, bytes] = field(default_factory=dict)  # of LFS, by sha256
    url: str = ""

    def environment(self, home: Path) -> dict[str, str]:
        return {
            "HF_ENDPOINT": self.url,
            "MODELSCOPE_ENDPOINT": self.url,
            "HF_HOME": str(home / "hf"),
            "MODELSCOPE_HOME": str(home / "modelscope"),
            "MODELSCOPE_CACHE": str(home / "modelscope_cache"),
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }


def list_files(root: Path) -> list[tuple[str, bytes]]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return [(path.relative_to(root).as_posix(), path.read_bytes()) for path in files]


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def answer(self, status: int, body: object = b"", headers: dict[str, str] | None = None):
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def refuse(self, status: int, code: str) -> None:
        self.answer(status, {"error": code}, {"X-Error-Code": code, "X-Error-Message": code})

    def body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            content = b""
            while size := int(self.rfile.readline(), 16):
                content += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return content
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_GET(self) -> None:
        self.hub.tokens.append(self.headers.get("Authorization", ""))
        url = urlsplit(self.path)
        path, query = unquote(url.path), parse_qs(url.query)
        if match := re.fullmatch(r"/api/v1/(models|datasets)/([^/]+/[^/]+)/repo(/\w+)?", path):
            self.modelscope(*match.groups(), query)
        elif match := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(.+))?", path):
            self.describe(*match.groups())
        elif match := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            kind = "datasets" if match[1] else "models"
            self.resolve(kind, match[2], match[4])
        else:
            self.refuse(404, "EntryNotFound")

    do_HEAD = do_GET

    def is_barred(self, repo: str) -> bool:
        return repo in self.hub.gated and SECRET not in self.headers.get("Authorization", "")

    def describe(self, kind: str, repo: str, rest: str | None) -> None:
        root = self.hub.folder / kind / repo
        if not root.is_dir():
            return self.refuse(401, "RepoNotFound")  # as the hub tells those without a token
        action, _, revision = (rest or "revision/main").partition("/")
        if revision not in ("main", COMMIT):
            return self.refuse(404, "RevisionNotFound")
        if action == "revision":
            return self.answer(200, {"id": repo, "sha": COMMIT, "siblings": [], "private": False})
        entries = []
        for name, content in list_files(root):
            entry = {"type": "file", "path": name, "size": len(content), "oid": git_sha1(content)}
            if len(content) > LARGE_BYTES:
                sha256 = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 130}
            entries.append(entry)
        return self.answer(200, entries)

    def resolve(self, kind: str, repo: str, name: str) -> None:
        if self.is_barred(repo):
            return self.refuse(403 if self.headers.get("Authorization") else 401, "GatedRepo")
        file = self.hub.folder / kind / repo / name
        if not file.is_file():
            return self.refuse(404, "EntryNotFound")
        content = file.read_bytes()
        is_large = len(content) > LARGE_BYTES
        etag = hashlib.sha256(content).hexdigest() if is_large else git_sha1(content)
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
        if is_large:
            headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(content))}
        return self.send(name, content, headers)

    def send(self, name: str, content: bytes, headers: dict[str, str]) -> None:
        first = 0
        if wanted := re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first = int(wanted[1])
            last = int(wanted[2]) if wanted[2] else len(content) - 1
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        if name in self.hub.wrong_bytes:
            content = bytes(len(content))
        part = content[first:]
        if self.command == "HEAD":
            self.send_response(200)
            for key, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(key, value)
            self.end_headers()
            return
        self.hub.sent.append((name, first))
        most = self.hub.cut_after.pop(name, None)
        if most is None:
            self.answer(206 if wanted else 200, part, headers)
            return
        self.send_response(206 if wanted else 200)
        for key, value in {**headers, "Content-Length": str(len(part))}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(part[:most])
        self.close_connection = True

    def modelscope(self, kind: str, repo: str, action: str | None, query: dict) -> None:
        root = self.hub.folder / kind / repo
        if not root.is_dir():
            return self.answer(404, {"Code": 404, "Message": "record not found", "Success": False})
        if action in ("/files", "/tree"):
            files = [
                {
                    "Path": name,
                    "Name": name.rsplit("/", 1)[-1],
                    "Size": len(content),
                    "Sha256": hashlib.sha256(content).hexdigest(),
                    "Type": "blob",
                }
                for name, content in list_files(root)
            ]
            return self.answer(200, {"Code": 200, "Success": True, "Data": {"Files": files}})
        name = query["FilePath"][0]
        return self.send(name, (root / name).read_bytes(), {"Accept-Ranges": "bytes"})

    def do_POST(self) -> None:
        self.hub.tokens.append(self.headers.get("Authorization", ""))
        path, body = unquote(urlsplit(self.path).path), self.body()
        if SECRET not in self.headers.get("Authorization", ""):
            self.refuse(401, "Unauthorized")
        elif path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            (self.hub.folder / "models" / name).mkdir(parents=True, exist_ok=True)
            self.answer(200, {"url": f"{self.hub.url}/{name}", "name": name})
        elif path.endswith("/objects/batch"):
            self.answer(200, {"objects": [self.want(one) for one in json.loads(body)["objects"]]})
        elif "/preupload/" in path:
            files = [
                {
                    "path": one["path"],
                    "uploadMode": "lfs" if one["size"] > LARGE_BYTES else "regular",
                    "shouldIgnore": False,
                }
                for one in json.loads(body)["files"]
            ]
            self.answer(200, {"files": files})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            self.commit(match[1], [json.loads(line) for line in body.splitlines() if line])
        else:
            self.answer(200, {})

    def want(self, one: dict) -> dict:
        actions = {"upload": {"href": f"{self.hub.url}/put/{one['oid']}"}}
        known = one["oid"] in self.hub.uploads
        return {"oid": one["oid"], "size": one["size"], **({} if known else {"actions": actions})}

    def do_PUT(self) -> None:
        content = self.body()
        self.hub.uploads[self.path.rsplit("/", 1)[-1]] = content
        self.answer(200)

    def commit(self, repo: str, lines: list[dict]) -> None:
        root = self.hub.folder / "models" / repo
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                (root / value["path"]).write_bytes(base64.b64decode(value["content"]))
            elif line["key"] == "lfsFile":
                (root / value["path"]).write_bytes(self.hub.uploads[value["oid"]])
        url = f"{self.hub.url}/{repo}/commit/{COMMIT}"
        self.answer(200, {"commitUrl": url, "commitOid": COMMIT})


def start(folder: Path) -> tuple[Hub, ThreadingHTTPServer]:
    """A hub that serves a folder until its server is shut down."""
    hub = Hub(folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OneHub", (Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return hub, server
