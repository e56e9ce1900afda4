"""The think and answer tags of an assistant message: written, read and repaired.

The grammar is the one the serving parsers accept, newline for newline:
`<think>\\n` thoughts `\\n</think>\\n<answer>\\n` answer `\\n</answer>`, with empty thoughts in fast
mode.
"""

import re

from hunyuan_train.families.grammar.interface import TaggedText
from hunyuan_train.families.grammar.quoted_code import mask_code

THINK_OPEN = "<think>\n"
THINK_CLOSE = "\n</think>\n<answer>\n"
ANSWER_CLOSE = "\n</answer>"

NO_THINK = "/no_think"
NO_THINK_PREFIX = NO_THINK + " "  # what we write before a query; without the blank is read too

_NO_THINK = re.compile(rf"\s*{NO_THINK}(?![A-Za-z0-9_-])")  # not /no_thinking

TAGS = _OPEN, _CLOSE, _ANSWER_OPEN, _ANSWER_END = "<think>", "</think>", "<answer>", "</answer>"
_TAG = re.compile(r"</?(?:think|answer)>")
_ANY_CASE = re.compile(_TAG.pattern, re.IGNORECASE)
_NEWLINE_WORDS = re.compile(r"\\n\s*</(?:think|answer)>")  # JSON that was escaped twice
_OWN_LINE = re.compile(rf"^[ \t]*{_TAG.pattern}[ \t]*$", re.MULTILINE)  # meant, not mentioned
_LONE_CLOSER = re.compile(rf"^[ \t]*{_CLOSE}[ \t]*$", re.MULTILINE)
_BLOCK_ADDED = "empty think block added"


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

    What has a single reading is repaired: newlines and blanks around the tags, an answer without
    its wrapper, capitals; and, as kinds of their own, a tag without its counterpart and several
    think blocks. Anything else that looks like tags is an error. Tags talked about inside an
    untagged answer, or quoted as code, are text.
    """
    if "<" not in text:
        return TaggedText(None, text)
    tagged = _parse_lower_case(text)
    if tagged.thoughts is not None:
        return tagged
    lower_case = _ANY_CASE.sub(lambda tag: tag[0].lower(), text)
    if lower_case == text:
        return tagged
    lowered = _parse_lower_case(lower_case)
    if lowered.thoughts is None:
        return lowered._replace(answer=text)
    return lowered._replace(repair=lowered.repair or "tags in capitals")


def _parse_lower_case(text: str) -> TaggedText:
    if "think>" not in text and "answer>" not in text:
        return TaggedText(None, text)
    # What a serving parser would read: up to the first closing tag of each.
    thoughts_end = text.find(THINK_CLOSE)
    answer_start = thoughts_end + len(THINK_CLOSE)
    answer_end = text.find(ANSWER_CLOSE, answer_start)
    is_whole = answer_end == len(text) - len(ANSWER_CLOSE)
    if text.startswith(THINK_OPEN) and thoughts_end >= len(THINK_OPEN) and is_whole:
        thoughts = text[len(THINK_OPEN) : thoughts_end]
        answer = text[answer_start:answer_end]
        if not (_nests(thoughts) or _nests(answer)):
            blank = "blank think block emptied" if thoughts.isspace() else ""
            return TaggedText("" if blank else thoughts, answer, blank)
    return _parse_loose(text)


def _nests(text: str) -> bool:
    """Whether thoughts or an answer hold tags that are more than a mention."""
    if "think>" not in text and "answer>" not in text:
        return False
    masked = mask_code(text)
    return masked.lstrip().startswith((_OPEN, _ANSWER_OPEN)) or bool(_OWN_LINE.search(masked))


def _parse_loose(text: str) -> TaggedText:
    masked = mask_code(text)
    tags, parts = _split(text, masked)
    if _NEWLINE_WORDS.search(masked):
        error = "the newlines beside its tags are written as a backslash and an n"
        return TaggedText(None, text, error=error)
    # First with what is quoted, as a lone backtick may reach over a tag that is meant.
    whole = _read_parts(*_split(text, text))
    if whole and whole.kind == "tags":
        return whole
    is_meant = _nests(text) or _CLOSE in tags or _ANSWER_END in tags
    if not (is_meant or _closes_alone(text)):
        return TaggedText(None, text)
    if repaired := _read_parts(tags, parts):
        return repaired
    found = " ".join(tags) if len(tags) <= 6 else f"{' '.join(tags[:6])} and {len(tags) - 6} more"
    return TaggedText(None, text, error=f"tags do not form one think and one answer: {found}")


def _closes_alone(text: str) -> bool:
    """Whether thoughts end on a line of their own that seems to lie in code, for a lone fence."""
    return _OPEN not in text and _LONE_CLOSER.search(text) is not None


def _split(text: str, masked: str) -> tuple[list[str], list[str]]:
    """The tags that are not masked, and the N + 1 parts of the text before, between and behind."""
    matches = list(_TAG.finditer(masked))
    starts = [0, *(match.end() for match in matches)]
    ends = [*(match.start() for match in matches), len(text)]
    parts = [text[start:end] for start, end in zip(starts, ends, strict=True)]
    return [match[0] for match in matches], parts


def _read_parts(tags: list[str], parts: list[str]) -> TaggedText | None:
    """The one reading of some tags; None where there is none, or more than one."""
    num_think = tags.index(_ANSWER_OPEN) if _ANSWER_OPEN in tags else len(tags)
    think_tags, answer_tags = tags[:num_think], tags[num_think:]
    kind, repair = _name_repair(think_tags, answer_tags)
    if not kind:
        return None
    is_unclosed = think_tags[-1:] == [_OPEN]
    is_unopened = think_tags[:1] == [_CLOSE]
    thoughts, blank = ([parts[0]], []) if is_unopened else ([], [parts[0]])
    for tag, following, part in zip(think_tags, [*think_tags[1:], ""], parts[1:], strict=False):
        (thoughts if tag == _OPEN != following else blank).append(part)
    answer = "" if is_unclosed else parts[num_think]
    if answer_tags:
        answer = parts[num_think + 1]
        blank += parts[num_think + 2 :]
    elif not is_unclosed:
        blank.pop()  # the answer itself
    if any(part.strip() for part in blank):
        return None
    joined = "\n\n".join(part.strip("\r\n") for part in thoughts if part.strip())
    return TaggedText(joined, answer.strip("\r\n"), repair=repair, kind=kind)


def _name_repair(think_tags: list[str], answer_tags: list[str]) -> tuple[str, str]:
    """The kind of finding of some tags and what is done about them; "" where nothing can be."""
    is_whole = think_tags == [_OPEN, _CLOSE]
    if answer_tags == [_ANSWER_OPEN] and is_whole:
        return "unclosed_tag", f"{_ANSWER_OPEN} is not closed; what follows it is the answer"
    if answer_tags not in ([], [_ANSWER_OPEN, _ANSWER_END]):
        return "", ""
    if is_whole:
        repair = "newlines around the tags" if answer_tags else "answer put between <answer> tags"
        return "tags", repair
    if not think_tags:
        return ("tags", _BLOCK_ADDED) if answer_tags else ("", "")
    if think_tags == [_CLOSE]:
        return "unopened_think", f"{_CLOSE} without {_OPEN}; what stands before it are the thoughts"
    if think_tags == [_OPEN]:
        return "unclosed_tag", f"{_OPEN} is not closed; what follows it are the thoughts"
    if think_tags[0] == _OPEN and think_tags[-1] == _CLOSE:
        return "think_blocks", "several think blocks; their thoughts are joined"
    return "", ""


def parse_apart(thoughts: str, answer: str) -> TaggedText:
    """Thoughts and an answer that were given apart, where either carries tags all the same."""
    tagged = parse_tags(answer)
    is_wrapped = tagged.repair == _BLOCK_ADDED
    if tagged.error or (tagged.thoughts is not None and not is_wrapped):
        error = tagged.error or "thoughts both as a field and as tags"
        return TaggedText(thoughts, answer, error=error)
    bare = _strip_think(thoughts)
    if _CLOSE in (masked := mask_code(bare).lower()) or _nests(masked):
        return TaggedText(thoughts, answer, error="thoughts that hold tags of their own")
    repairs = ["think tags around the thoughts taken off"] if bare != thoughts else []
    repairs += ["answer tags around the answer taken off"] if is_wrapped else []
    return TaggedText(bare, tagged.answer, repair=", ".join(repairs))


def _strip_think(thoughts: str) -> str:
    """Thoughts without the tags that open and close them; as they are where there are none."""
    outer = bare = thoughts.strip()
    while bare[: len(_OPEN)].lower() == _OPEN:
        bare = bare[len(_OPEN) :].lstrip()
    while bare[-len(_CLOSE) :].lower() == _CLOSE:
        bare = bare[: -len(_CLOSE)].rstrip()
    return thoughts if bare == outer else bare


def find_cut(thoughts: str, answer: str) -> str:
    """Where the serving parsers, which stop at the first closing tag, cut too early; "" if not."""
    if "</think>" in thoughts and THINK_CLOSE in thoughts + THINK_CLOSE[:-1]:
        return "the thoughts hold the tags that close them"
    if "</answer" in answer and ANSWER_CLOSE in answer + ANSWER_CLOSE[:-1]:
        return "the answer holds the tag that closes it"
    return ""


def is_thinking(output: str) -> bool:
    """Whether there are thoughts in an answer, finished or not, in the right tags or nearly so."""
    _, opened, rest = output.partition("<think>")
    thoughts = rest.partition("</think>")[0]
    return bool(opened and thoughts.strip())
