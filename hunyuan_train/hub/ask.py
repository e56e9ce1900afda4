"""Asks a hub by its own client, in a process of its own, and says in our words what went wrong."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hunyuan_train.errors import ConfigError
from hunyuan_train.hub.names import TITLES, RemoteName
from hunyuan_train.shipped import CODE_FOLDER

POLL_SECONDS = 0.25
LOGIN = {
    "huggingface": "`hf auth login`, or HF_TOKEN in the environment",
    "modelscope": "`modelscope login`, or MODELSCOPE_API_TOKEN in the environment",
}
ENDPOINTS = {"huggingface": "HF_ENDPOINT", "modelscope": "MODELSCOPE_ENDPOINT"}
OTHER_HUB = {"huggingface": "HUB=modelscope", "modelscope": "HUB=huggingface"}


def ask_hub(
    name: RemoteName, request: dict[str, Any], *, while_waiting: Callable[[], None] | None = None
) -> dict[str, Any]:
    """Send one request to the hub of a model or data set.

    Args:
        name: what it is about.
        request: the action and its arguments, see `client.py`.
        while_waiting: called again and again until the answer is there.

    Returns:
        the answer.

    Raises:
        ConfigError: the hub or the network did not give it; one paragraph with the remedy.
    """
    about = {"hub": name.hub, "repo": name.repo, "kind": name.kind, "revision": name.revision}
    process = subprocess.Popen(
        # -P: a folder of the user's beside the command must not shadow a library of the client's.
        [sys.executable, "-P", "-c", _START, str(CODE_FOLDER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        with process.stdin:
            process.stdin.write(json.dumps(about | request))
        while while_waiting is not None and process.poll() is None:
            time.sleep(POLL_SECONDS)
            while_waiting()
        text = process.stdout.read()
        process.wait()
    finally:
        process.kill()  # after Ctrl-C; what has arrived stays, and is gone on from
        process.wait()
    if not text:
        raise ConfigError(
            f"the client of {TITLES[name.hub]} ended with exit code {process.returncode} and "
            f"without a word while it was asked for {name.repo}; start again, and it goes on"
        )
    answer: dict[str, Any] = json.loads(text)
    if "failure" in answer:
        is_sent = request["action"] == "push"
        words = describe_failure(name, answer["failure"], answer["words"], is_sent=is_sent)
        raise ConfigError(words)
    return answer


# The package by its own place, and behind the libraries: it may lie beside others of any name.
_START = (
    "import sys; sys.path.append(sys.argv.pop(1)); "
    "from hunyuan_train.hub.client import main; main()"
)


def describe_failure(name: RemoteName, failure: str, words: str, *, is_sent: bool = False) -> str:
    """One paragraph about a request that failed, with what to do.

    Args:
        name: of the model or data set.
        failure: its kind, by `client.FAILURES`.
        words: of the client.
        is_sent: whether something was sent there, and not fetched.
    """
    title, login = TITLES[name.hub], LOGIN[name.hub]
    what = "model" if name.kind == "model" else "data set"
    sentences = {
        "missing": f"{title} shows no {what} {name.repo}; look at its spelling, which counts "
        f"capitals too, or give the path of a folder. One that is private needs a token: {login}",
        "revision": f"{title} has {name.repo}, but no revision {name.revision} of it; leave "
        "@REVISION out for its newest, or take a branch, tag or commit that its page lists",
        "gated": f"{name} is gated: accept its conditions on its page there, then give a token of "
        f"the same account: {login}",
        "unauthorized": f"{title} wants a token that may do this with {name.repo}, and got none or "
        f"another; log in with one that may: {login}",
        "offline": f"{title} could not be reached for {name.repo} ({words}); look at the network "
        f"and at proxies (HTTPS_PROXY), set {ENDPOINTS[name.hub]} to a mirror or take another hub "
        f"({OTHER_HUB[name.hub]}), or bring the folder here by other means and give its path. What "
        "has arrived is kept",
        "disk": f"the disk is full, and {name} could not be downloaded to its end ({words}); make "
        "room or give another folder with --download_dir, and start again: what has arrived is "
        "kept",
        "package": f"the client of {title} is not installed ({words}); "
        + f"pip install {'modelscope-hub' if name.hub == 'modelscope' else 'huggingface-hub'}",
    }
    if is_sent:
        sentences["offline"] = (
            f"{title} could not be reached to send {name.repo} ({words}); look at the network and "
            f"at proxies (HTTPS_PROXY, {ENDPOINTS[name.hub]}), and start the same command again: "
            "no file that has arrived is sent twice"
        )
        sentences["missing"] = (
            f"{title} shows no {name.repo}, and made none; look at its spelling, and whether your "
            f"token may write for {name.repo.partition('/')[0]}: {login}"
        )
    other = f"{title} refused what was asked about {name.repo}: {words}; start again later"
    return sentences.get(failure, other)


def bytes_below(folder: Path) -> int:
    """Bytes of all files in a folder, those that are not finished too."""
    total = 0
    for file in folder.rglob("*"):
        try:
            total += file.stat().st_size if file.is_file() else 0
        except OSError:  # renamed between the two looks
            continue
    return total
