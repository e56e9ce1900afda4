"""Runs clients as commands, and says in a line that a table holds what came of them."""

import json
import os
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
SECONDS = 3600  # of one command, beside a full load
LAST_WORDS = 300  # characters of a failed command's output
ONE_PROCESS = {
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB; otherwise vLLM takes half of the memory for its cache
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # so that its errors are its last words
}
# What Python says of an error; vLLM's own last words only say that there was one above.
ERROR = re.compile(r"\b(?:\w+\.)*\w*(?:Error|Exception)(?:: \S.*|$)", re.MULTILINE)
EMPTY_ERROR = "Engine core initialization failed"


class CommandError(Exception):
    """A command that failed: itself, and its last words."""


def run(command: list[str], asked: object = None, *, accepted: Iterable[int] = (0,)) -> str:
    """Run a command, and give what it prints.

    Raises:
        CommandError: it ended otherwise than it may.
    """
    environment = os.environ | ONE_PROCESS
    # Engines start programs that lie beside their interpreter.
    environment["PATH"] = os.pathsep.join([str(Path(command[0]).parent), os.environ["PATH"]])
    try:
        done = subprocess.run(
            command,
            input=json.dumps(asked),
            capture_output=True,
            text=True,
            check=False,
            timeout=SECONDS,
            env=environment,
        )
    except subprocess.TimeoutExpired as error:
        raise CommandError(f"`{name_command(command)}` took over {SECONDS} s") from error
    if done.returncode not in accepted:
        said = find_error(done.stdout + done.stderr)
        raise CommandError(f"`{name_command(command)}`: {said}")
    return done.stdout


def read_json(printed: str) -> dict:
    """The last line that is an object; engines say more behind it while they end."""
    lines = [line for line in printed.splitlines() if line[:1] == "{" and line[-1:] == "}"]
    found: dict = json.loads(lines[-1])
    return found


def find_error(printed: str) -> str:
    """The last error that a program's output names, and is more than a word about another.

    An error without words is said with the line of code above it.
    """
    lines = [line for line in printed.splitlines() if line.strip() and "^^" not in line]
    errors = [n for n, one in enumerate(lines) if ERROR.search(one) and EMPTY_ERROR not in one]
    if not errors:
        return shorten(lines[-1]) if lines else "it said nothing"
    found = ERROR.findall(lines[errors[-1]])[-1]
    is_bare = ":" not in found and errors[-1] > 0
    return shorten(f"{lines[errors[-1] - 1]}: {found}" if is_bare else found)


def name_command(command: list[str]) -> str:
    """A command for readers, without this machine's folders."""
    words = [one.removeprefix(f"{REPOSITORY}/") for one in command[1:]]
    return " ".join(["python", *(Path(one).name if one[:1] == "/" else one for one in words)])


def tidy(text: str) -> str:
    """A text on one line that a table holds, without this machine's folders."""
    line = " ".join(text.split()).replace("|", "/")
    return re.sub(r"(?<![\w.])/(?:[\w.+-]+/)+([\w.+-]+)", r"\1", line)


def shorten(text: str) -> str:
    """The end of a text; see `tidy`."""
    line = tidy(text)
    return line if len(line) <= LAST_WORDS else "…" + line[-LAST_WORDS:]
