"""Asks a live server by `serve --check`, and counts what was found."""

import sys
from pathlib import Path

from tests.clients.commands import SECONDS, read_json, run

OUR_COMMAND = [sys.executable, "-m", "hunyuan_train"]
MOST_TOKENS = 96  # of an answer; none that was taught has more


def check_server(model: Path, url: str, num_long_tokens: int, *flags: object) -> str:
    """What `serve --check` finds of a server, counted."""
    found = ask_server(model, url, num_long_tokens, *flags)
    counts = [count_verdicts(found, what) for what in ("prompt", "mode", "tokens")]
    counts += [count_verdicts(found, "log-probabilities"), count_verdicts(found, "fields")]
    broken = count_verdicts(found, "end").partition("wrong: ")[2].removesuffix(")")
    counts += [f"broken off once or more: {broken}"] if broken else []
    asked = describe_questions(found["answers"], num_long_tokens)
    return f"its server, by `serve --check` with {asked}: {', '.join(counts)}"


def describe_questions(answers: list[dict], num_long_tokens: int) -> str:
    """How many questions there were, and of which kinds."""
    modes = sorted({one["mode"] for one in answers})
    kinds = [f"{len(answers)} questions"]
    kinds += ["whole and streamed"] if len({one["is_streamed"] for one in answers}) > 1 else []
    kinds.append("both modes" if len(modes) > 1 else f"{modes[0]} mode")
    kinds += ["tools"] if any("tools" in one["question"] for one in answers) else []
    kinds += [f"one of {num_long_tokens:,} tokens"] if num_long_tokens else []
    return ", ".join(kinds)


def ask_server(model: Path, url: str, num_long_tokens: int, *flags: object) -> dict:
    """What `serve --check --json` prints."""
    words = ["serve", model, "--check", url, "--json", "--max_new_tokens", MOST_TOKENS]
    words += ["--long_prompt", num_long_tokens, "--timeout", SECONDS, *flags]
    return read_json(run([*OUR_COMMAND, *(str(one) for one in words)], accepted=(0, 1)))


def count_verdicts(found: dict, what: str) -> str:
    """How many answers are right in something, and which are wrong."""
    verdicts = {
        f"{one['question']}{', streamed' if one['is_streamed'] else ''}": finding["verdict"]
        for one in found["answers"]
        for finding in one["findings"]
        if finding["what"] == what
    }
    judged = [one for one in verdicts.values() if one != "unknown"]
    text = f"{what} right in {judged.count('right')} of {len(judged)}"
    if "unknown" in verdicts.values():
        text += f" (not shown in {len(verdicts) - len(judged)})"
    wrong = [name for name, verdict in verdicts.items() if verdict == "wrong"]
    return text + (f" (wrong: {'; '.join(wrong)})" if wrong else "")
