"""One request to a hub, by the hub's own client, as a process of its own.

`python -m hunyuan_train.hub.client` reads the request from stdin, as JSON, and writes one line of
JSON to stdout: what was asked for, or what went wrong in words of ours. In a process, the clients
and their threads can be ended at any moment, and what they print stays out of the terminal. They
read their tokens themselves; no token is an argument or in an answer.
"""

import errno
import json
import logging
import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from typing import Any

WORKERS = 8  # files at a time, as both clients take by default
TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "MODELSCOPE_API_TOKEN")
TOKENS = re.compile(r"\b(?:hf|ms)[_-][A-Za-z0-9-]{8,}|(?<=[Bb]earer )\S+")
MOST_WORDS = 600  # characters of a client's own error

Request = dict[str, Any]
Answer = dict[str, Any]

# By the names of a client's exceptions, and of those below them, what went wrong; the first counts.
FAILURES = {
    "GatedRepoError": "gated",
    "DisabledRepoError": "missing",
    "RevisionNotFoundError": "revision",
    "RepositoryNotFoundError": "missing",
    "NotExistError": "missing",
    "AuthenticationError": "unauthorized",
    "PermissionDeniedError": "gated",
    "OfflineModeIsEnabled": "offline",
    "TransportError": "offline",  # of httpx and httpx2
    "NetworkError": "offline",
    "ConnectionError": "offline",
    "LocalEntryNotFoundError": "offline",
    "Timeout": "offline",
    "TimeoutError": "offline",
    "ImportError": "package",
}


def list_huggingface(request: Request) -> Answer:
    """The commit behind a revision, and its files with sizes and checksums."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    api, repo, kind = HfApi(), request["repo"], request["kind"]
    commit = api.repo_info(repo, repo_type=kind, revision=request["revision"]).sha
    tree = api.list_repo_tree(repo, repo_type=kind, revision=commit, recursive=True)
    files = [
        {
            "path": entry.path,
            "size": entry.lfs.size if entry.lfs else entry.size,
            "sha256": entry.lfs.sha256 if entry.lfs else None,
            "git_sha1": None if entry.lfs else entry.blob_id,
        }
        for entry in tree
        if isinstance(entry, RepoFile)
    ]
    return {"commit": commit, "files": files}


def download_huggingface(request: Request) -> Answer:
    """Bring files into a folder; what is there already, in whole or in part, is gone on from."""
    from huggingface_hub import hf_hub_download

    def download(file: dict[str, Any]) -> None:
        hf_hub_download(
            request["repo"],
            file["path"],
            repo_type=request["kind"],
            revision=request["commit"],
            local_dir=request["folder"],
        )

    _download_all(download, request["files"])
    return {}


def list_modelscope(request: Request) -> Answer:
    """The same of ModelScope, whose listings name no commit."""
    from modelscope_hub import HubApi

    revision = request["revision"] or "master"
    entries = HubApi().list_repo_files(request["repo"], request["kind"], revision=revision)
    files = [
        {"path": entry.path, "size": entry.size, "sha256": entry.sha256, "git_sha1": None}
        for entry in entries
        if not entry.is_dir
    ]
    return {"commit": revision, "files": files}


def download_modelscope(request: Request) -> Answer:
    """The same from ModelScope."""
    from modelscope_hub import HubApi

    api = HubApi()

    def download(file: dict[str, Any]) -> None:
        api.download_file(
            request["repo"],
            request["kind"],
            file["path"],
            revision=request["commit"],
            local_dir=request["folder"],
            expected_sha256=file["sha256"],
            file_size=file["size"],
        )

    _download_all(download, request["files"])
    return {}


def push_huggingface(request: Request) -> Answer:
    """Make a repository where there is none, and add the files of a folder in one commit.

    Files that an interrupted push has sent already are not sent again: the hub knows their hashes.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi()
    repo = api.create_repo(request["repo"], private=request["private"], exist_ok=True).repo_id
    operations = [
        CommitOperationAdd(path_in_repo=name, path_or_fileobj=path)
        for name, path in request["paths"].items()
    ]
    operations += [
        CommitOperationAdd(path_in_repo=name, path_or_fileobj=text.encode())
        for name, text in request["texts"].items()
    ]
    commit = api.create_commit(repo, operations, commit_message=request["message"])
    return {"commit": commit.oid, "url": str(api.endpoint) + "/" + repo}


def _download_all(download: Any, files: list[dict[str, Any]]) -> None:  # noqa: ANN401
    with ThreadPoolExecutor(WORKERS) as pool:
        for done in [pool.submit(download, file) for file in files]:
            done.result()


ACTIONS = {
    ("huggingface", "list"): list_huggingface,
    ("huggingface", "download"): download_huggingface,
    ("huggingface", "push"): push_huggingface,
    ("modelscope", "list"): list_modelscope,
    ("modelscope", "download"): download_modelscope,
}


def describe_failure(error: BaseException) -> Answer:
    """What went wrong, for the process that asked: its kind, and the client's words."""
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) and cause not in causes:
        causes.append(cause)
    if any(isinstance(one, OSError) and one.errno == errno.ENOSPC for one in causes):
        return {"failure": "disk", "words": hide_tokens(str(error))}
    names = [base.__name__ for one in causes for base in type(one).__mro__]
    kind = next((failure for name, failure in FAILURES.items() if name in names), "other")
    if kind == "other" and getattr(getattr(error, "response", None), "status_code", 0) in (
        401,
        403,
    ):
        kind = "unauthorized"  # an error of any request, whose class says no more
    return {"failure": kind, "words": hide_tokens(f"{type(error).__name__}: {error}")}


def hide_tokens(text: str) -> str:
    """A client's words in one line, without what looks like a token or is one of ours."""
    for name in TOKEN_VARIABLES:
        if value := os.environ.get(name):
            text = text.replace(value, "***")
    return " ".join(TOKENS.sub("***", text).split())[:MOST_WORDS]


def main() -> None:
    """Answer one request."""
    # Xet keeps pieces of files in a cache of its own: what an interruption leaves could not be
    # seen, and each byte would be on the disk twice. Whoever sets the variable decides.
    os.environ.setdefault("HF_HUB_DISABLE_XET", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    logging.disable(logging.WARNING)
    request = json.load(sys.stdin)
    with redirect_stdout(sys.stderr):
        try:
            answer = ACTIONS[request["hub"], request["action"]](request)
        except Exception as error:  # noqa: BLE001 whatever it is, the asker tells it to the user
            answer = describe_failure(error)
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
