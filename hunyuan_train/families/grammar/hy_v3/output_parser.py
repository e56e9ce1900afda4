"""Take an answer of Hy3 apart as its serving parsers do (`hy_v3` of vLLM).

    THOUGHTS </think> CONTENT <tool_calls> CALLS </tool_calls>

The prompt has opened the thoughts, or has closed them already: then all is content.
"""

from dataclasses import replace

from hunyuan_train.families.grammar.hy_v3.markers import Markers
from hunyuan_train.families.grammar.hy_v3.tools import read_calls
from hunyuan_train.families.grammar.interface import Delta, ParsedOutput
from hunyuan_train.families.grammar.marks import Incoming


def parse_output(text: str, markers: Markers, *, has_tools: bool = False) -> ParsedOutput:
    """Split a generated answer, its stop token removed.

    Args:
        text: from the first generated character, or from the mark with which the prompt ends.
        markers: of the tokenizer.
        has_tools: whether the prompt offered tools; calls are looked for only then.
    """
    is_opened = text.startswith(markers.think_open)
    text = text.removeprefix(markers.think_open)
    thoughts, closed, content = text.partition(markers.think_close)
    if not closed:
        thoughts, content = (text, "") if is_opened else ("", text)
    rest = thoughts + content
    is_well_formed = (bool(closed) or not is_opened) and not any(
        one in rest for one in (markers.think_open, markers.think_close)
    )
    parsed = ParsedOutput(thoughts or None, content or None, (), is_well_formed)
    return _take_calls(parsed, content, markers) if has_tools else parsed


def _take_calls(parsed: ParsedOutput, content: str, markers: Markers) -> ParsedOutput:
    before, opened, rest = content.partition(markers.calls_open)
    if not opened:
        return parsed
    inside, closed, after = rest.partition(markers.calls_close)
    calls = read_calls(inside, markers) if closed else None
    if calls is None:  # the server returns the text untouched
        return replace(parsed, is_well_formed=False)
    is_well_formed = parsed.is_well_formed and not after.strip()
    return replace(parsed, content=before or None, tool_calls=calls, is_well_formed=is_well_formed)


class OutputStream:
    """Parses an answer while it is generated, whatever pieces it comes in.

    Fed with the mark with which the prompt opens thoughts, it hands these out as such.
    """

    def __init__(self, markers: Markers, *, has_tools: bool = False) -> None:
        self.markers = markers
        self.has_tools = has_tools
        self._incoming = Incoming()
        self._is_thinking: bool | None = None  # None: not known yet
        self._is_over = False  # calls have begun, which `result` hands out

    def feed(self, piece: str) -> list[Delta]:
        """Take the next piece; return what it made certain."""
        self._incoming.add(piece)
        return self._advance(is_last=False)

    def finish(self) -> list[Delta]:
        """Say that nothing follows; return what is left."""
        return self._advance(is_last=True)

    def result(self) -> ParsedOutput:
        """What `parse_output` says of all that was fed."""
        return parse_output(self._incoming.text, self.markers, has_tools=self.has_tools)

    def _advance(self, *, is_last: bool) -> list[Delta]:
        markers, incoming = self.markers, self._incoming
        if self._is_thinking is None:
            if not is_last and incoming.may_begin(markers.think_open):
                return []
            self._is_thinking = incoming.drop(markers.think_open)
        deltas = []
        if self._is_thinking:
            text, is_closed = incoming.take_until(markers.think_close, is_last=is_last)
            deltas += [Delta("reasoning_content", text)] if text else []
            if not is_closed:
                return deltas
            self._is_thinking = False
        if not self._is_over:
            marks = (markers.think_close, markers.calls_open)[: 1 + self.has_tools]
            text, self._is_over = incoming.take_until(*marks, is_last=is_last)
            deltas += [Delta("content", text)] if text else []
        return deltas
