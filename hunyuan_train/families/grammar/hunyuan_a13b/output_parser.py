"""Take an answer of the model apart as the serving parsers for Hunyuan do.

Mirrored are those of vLLM 0.32.0 (`hunyuan_a13b`), for whole answers. SGLang 0.5.23 splits thoughts
off alike, but for the tags. Where they are wrong (a leading label kept, text behind calls dropped,
tags left in, streams), this is right; docs/serving.md lists the differences.

    <think>\\n REASONING \\n</think>\\n<answer>\\n CONTENT \\n</answer>

REASONING is empty in fast mode. Where the prompt had tools, CONTENT is a text that may begin with
`助手：`, or calls: `<tool_calls>[{"name": ..., "arguments": {...}}]</tool_calls>`. Text that leaves
this grammar is read as those parsers read it, so that what is seen here is what a user is served.

`parse_output` takes a whole answer, `OutputStream` one that is still being written. Neither needs
torch.
"""  # noqa: RUF002  the model writes these very characters

import json
import re
from collections.abc import Callable

from hunyuan_train.families.grammar.dialogue import ToolCall
from hunyuan_train.families.grammar.hunyuan_a13b.tags import ANSWER_CLOSE, THINK_CLOSE, THINK_OPEN
from hunyuan_train.families.grammar.hunyuan_a13b.tools import (
    ASSISTANT_LABEL,
    TOOL_CALLS_CLOSE,
    TOOL_CALLS_OPEN,
)
from hunyuan_train.families.grammar.interface import Delta, ParsedOutput
from hunyuan_train.families.grammar.marks import Incoming

_CALLS = re.compile(f"{TOOL_CALLS_OPEN}.*?{TOOL_CALLS_CLOSE}", re.DOTALL)


def parse_output(text: str, *, has_tools: bool = False) -> ParsedOutput:
    """Split a generated answer, its stop token removed.

    Args:
        text: from the first generated character.
        has_tools: whether the prompt offered tools; calls are looked for only then.
    """
    reasoning, content = _split_reasoning(text)
    frame = THINK_OPEN + (reasoning or "") + THINK_CLOSE + content + ANSWER_CLOSE
    parsed = ParsedOutput(reasoning or None, content or None, is_well_formed=frame == text)
    return _take_calls(parsed, content) if has_tools else parsed


def _split_reasoning(text: str) -> tuple[str | None, str]:
    """Thoughts and answer, by the first closing tag of each; what follows the answer is lost."""
    thoughts_end = text.find(THINK_CLOSE, len(THINK_OPEN)) if text.startswith(THINK_OPEN) else -1
    if thoughts_end >= 0:
        answer_start = thoughts_end + len(THINK_CLOSE)
        answer_end = text.find(ANSWER_CLOSE, answer_start)
        if answer_end >= 0:
            return text[len(THINK_OPEN) : thoughts_end], text[answer_start:answer_end]
    answer_end = text.find(ANSWER_CLOSE)
    if answer_end >= 0:
        return None, text[:answer_end]
    return _split_unfinished(text)


def _split_unfinished(text: str) -> tuple[str | None, str]:
    """An answer that ends before its closing tag: what comes before the thoughts is lost."""
    thoughts_start = text.find(THINK_OPEN) + len(THINK_OPEN)
    thoughts_end = text.find(THINK_CLOSE, thoughts_start)
    if thoughts_start < len(THINK_OPEN) or thoughts_end < 0:
        return None, text
    return text[thoughts_start:thoughts_end], text[thoughts_end + len(THINK_CLOSE) :]


def _take_calls(parsed: ParsedOutput, content: str) -> ParsedOutput:
    """Move calls from the content to `tool_calls`; where there are none, drop the first label."""
    _, opened, rest = content.partition(TOOL_CALLS_OPEN)
    listing, closed, after = rest.partition(TOOL_CALLS_CLOSE)
    is_call = bool(opened and closed)
    try:
        listed = json.loads(listing.strip()) if is_call else None
    except (ValueError, RecursionError):
        is_call, listed = False, None
    is_well_formed = parsed.is_well_formed and is_call == bool(opened) and not after
    if not is_call:
        text = content.replace(ASSISTANT_LABEL, "", 1)
        return ParsedOutput(parsed.reasoning_content, text or None, (), is_well_formed)
    calls = _read_calls(listed)
    if calls is None:  # the server fails over such a list and returns the text untouched
        return ParsedOutput(parsed.reasoning_content, content, (), is_well_formed=False)
    remaining = _CALLS.sub("", content)
    if "</think>" in remaining:
        remaining = remaining[: remaining.rindex("</think>") + len("</think>")]
    left = remaining if remaining.strip() else ("" if calls else content)
    is_well_formed = is_well_formed and isinstance(listed, list) and len(calls) == len(listed) > 0
    return ParsedOutput(parsed.reasoning_content, left or None, calls, is_well_formed)


def _read_calls(listed: object) -> tuple[ToolCall, ...] | None:
    """Calls out of the JSON between the tags; None where one could not be sent on.

    Entries without a name or arguments are passed over, as is anything that is no list.
    """
    calls = []
    for entry in listed if isinstance(listed, list) else []:
        if not isinstance(entry, dict) or "name" not in entry or "arguments" not in entry:
            continue
        name, arguments = entry["name"], entry["arguments"]
        if isinstance(arguments, dict):
            arguments = json.dumps(arguments, ensure_ascii=False)
        if not isinstance(name, str) or not isinstance(arguments, str):
            return None
        calls.append(ToolCall(name, arguments))
    return tuple(calls)


class OutputStream:
    """Parses an answer while it is generated, whatever pieces it comes in.

    What `feed` hands out is certain: for an answer in the grammar all deltas of a field make up
    that field of `result`, and no tag is ever among them. Where an answer leaves the grammar only
    the end can tell, and `result` alone is what is served.
    """

    def __init__(self, *, has_tools: bool = False) -> None:
        self.has_tools = has_tools
        self._incoming = Incoming()
        self._step: Callable[[bool], list[Delta]] = self._see_start

    def feed(self, piece: str) -> list[Delta]:
        """Take the next piece; return what it made certain."""
        self._incoming.add(piece)
        return self._advance(is_last=False)

    def finish(self) -> list[Delta]:
        """Say that nothing follows; return what is left."""
        return self._advance(is_last=True)

    def result(self) -> ParsedOutput:
        """What `parse_output` says of all that was fed."""
        return parse_output(self._incoming.text, has_tools=self.has_tools)

    def _advance(self, *, is_last: bool) -> list[Delta]:
        deltas: list[Delta] = []
        step = None
        while step != self._step:  # until nothing more becomes certain
            step = self._step
            deltas += step(is_last)
        return deltas

    def _see_start(self, is_last: bool) -> list[Delta]:
        if not is_last and self._incoming.may_begin(THINK_OPEN):
            return []
        is_thinking = self._incoming.drop(THINK_OPEN)
        self._step = self._see_thoughts if is_thinking else self._see_answer_start
        return []

    def _see_thoughts(self, is_last: bool) -> list[Delta]:
        text, is_closed = self._take_until(THINK_CLOSE, is_last=is_last)
        if is_closed:
            self._step = self._see_answer_start
        return [Delta("reasoning_content", text)] if text else []

    def _see_answer_start(self, is_last: bool) -> list[Delta]:
        if self.has_tools:
            if not is_last and self._incoming.may_begin(ASSISTANT_LABEL):
                return []
            self._incoming.drop(ASSISTANT_LABEL)
        self._step = self._see_answer
        return []

    def _see_answer(self, is_last: bool) -> list[Delta]:
        end = ANSWER_CLOSE
        if self.has_tools and TOOL_CALLS_OPEN in self._incoming.pending.partition(ANSWER_CLOSE)[0]:
            end = TOOL_CALLS_OPEN
        text, is_closed = self._take_until(end, is_last=is_last)
        if is_closed:
            self._step = self._see_rest
        return [Delta("content", text)] if text else []

    def _see_rest(self, is_last: bool) -> list[Delta]:
        """Calls, which `result` hands out, or what a server cuts off."""
        self._incoming.pending = ""
        return []

    def _take_until(self, tag: str, *, is_last: bool) -> tuple[str, bool]:
        calls = [TOOL_CALLS_OPEN] if self.has_tools else []
        return self._incoming.take_until(tag, is_last=is_last, heeding=calls)
