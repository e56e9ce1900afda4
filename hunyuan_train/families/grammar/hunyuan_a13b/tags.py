"""The think and answer tags of an assistant message: written, read and repaired.

The grammar is the one the serving parsers accept, newline for newline:
`<think>\\n` thoughts `\\n</think>\\n<answer>\\n` answer `\\n</answer>`, with empty thoughts in fast
mode.
"""

import re

from hunyuan_train.families.grammar.interface import TaggedText

THINK_OPEN = "<think>\n"
THINK_CLOSE = "\n</think>\n<answer>\n"
ANSWER_CLOSE = "\n</answer>"

NO_THINK = "/no_think"
NO_THINK_PREFIX = NO_THINK + " "  # what we write before a query; without the blank is read too

_NO_THINK = re.compile(rf"\s*{NO_THINK}(?![A-Za-z0-9_-])")  # not /no_thinking

_TAG = re.compile(r"</?(?:think|answer)>")
_ANY_CASE = re.compile(_TAG.pattern, re.IGNORECASE)
_CAPITALS = re.compile(r"\s*<think>.*</think>", re.DOTALL | re.IGNORECASE)
_LOOSE = re.compile(r"\s*<think>(.*?)</think>\s*<answer>(.*?)</answer>\s*", re.DOTALL)
_UNWRAPPED = re.compile(r"\s*<think>(.*?)</think>(.*)", re.DOTALL)
_ANSWER_ONLY = re.compile(r"\s*<answer>(.*?)</answer>\s*", re.DOTALL)


def has_no_think(query: str) -> bool:
    """Whether a user message asks for fast mode."""
    return NO_THINK in query and _NO_THINK.match(query) is not None


def add_no_think(query: str) -> str:
    """A user message that asks for fast mode, once."""
    return query if has_no_think(query) else NO_THINK_PREFIX + query


def strip_no_think(query: str) -> str:
    """A user message without its wish for fast mode."""
    return query.lstrip().removeprefix(NO_THINK).lstrip() if has_no_think(query) else query


def write_tags(thoughts: str, answer: str) -> str:
    """An assistant message with its tags; no thoughts are an empty think block."""
    return f"{THINK_OPEN}{thoughts}{THINK_CLOSE}{answer}{ANSWER_CLOSE}"


def parse_tags(text: str) -> TaggedText:
    """Thoughts and answer of a message that may carry tags as text.

    Only what has a single reading is fixed: newlines and blanks around the tags, an answer without
    its wrapper. Anything else that looks like tags is an error. Tags talked about inside an
    untagged answer are text.
    """
    if "think>" not in text and "answer>" not in text:
        if _CAPITALS.match(text):
            tagged = parse_tags(_ANY_CASE.sub(lambda tag: tag[0].lower(), text))
            return tagged._replace(repair=tagged.repair or "tags in capitals")
        return TaggedText(None, text)
    # What a serving parser would read: up to the first closing tag of each.
    thoughts_end = text.find(THINK_CLOSE)
    answer_start = thoughts_end + len(THINK_CLOSE)
    answer_end = text.find(ANSWER_CLOSE, answer_start)
    is_whole = answer_end == len(text) - len(ANSWER_CLOSE)
    if text.startswith(THINK_OPEN) and thoughts_end >= len(THINK_OPEN) and is_whole:
        thoughts = text[len(THINK_OPEN) : thoughts_end]
        if "\n</think>\n" not in thoughts:  # one more on a line of its own is no mere mention
            blank = "blank think block emptied" if thoughts.isspace() else ""
            return TaggedText("" if blank else thoughts, text[answer_start:answer_end], blank)
    return _parse_loose(text, tags=_TAG.findall(text))


def _parse_loose(text: str, *, tags: list[str]) -> TaggedText:
    in_order = ["<think>", "</think>", "<answer>", "</answer>"]
    if tags == in_order and (match := _LOOSE.fullmatch(text)):
        return _fixed(match, "newlines around the tags")
    if tags == in_order[:2] and (match := _UNWRAPPED.fullmatch(text)):
        return _fixed(match, "answer put between <answer> tags")
    if tags == in_order[2:] and (match := _ANSWER_ONLY.fullmatch(text)):
        return TaggedText("", match[1].strip("\r\n"), repair="empty think block added")
    is_meant = text.lstrip().startswith(("<think>", "<answer>")) or "</think>" in tags
    if not is_meant:
        return TaggedText(None, text)
    found = " ".join(tags) if len(tags) <= 6 else f"{' '.join(tags[:6])} and {len(tags) - 6} more"
    return TaggedText(None, text, error=f"tags do not form one think and one answer: {found}")


def _fixed(match: re.Match[str], repair: str) -> TaggedText:
    thoughts, answer = (part.strip("\r\n") for part in match.groups())
    return TaggedText("" if thoughts.isspace() else thoughts, answer, repair=repair)


def find_cut(thoughts: str, answer: str) -> str:
    """Where the serving parsers, which stop at the first closing tag, cut too early; "" if not."""
    if "</think>" in thoughts and THINK_CLOSE in thoughts + THINK_CLOSE[:-1]:
        return "the thoughts hold the tags that close them"
    if "</answer" in answer and ANSWER_CLOSE in answer + ANSWER_CLOSE[:-1]:
        return "the answer holds the tag that closes it"
    return ""


def opens_thoughts(text: str) -> bool:
    """Whether a message begins with a think tag, well closed or not."""
    return text.lstrip().startswith("<think>")


def is_thinking(output: str) -> bool:
    """Whether there are thoughts in an answer, finished or not, in the right tags or nearly so."""
    _, opened, rest = output.partition("<think>")
    thoughts = rest.partition("</think>")[0]
    return bool(opened and thoughts.strip())
