"""A dialogue as the segments Hy3 sees, in the layout of its own chat template.

Every answer has its thoughts between two tags, empty where there are none; the prompt says how much
to think by one word behind the system's text. Earlier thoughts are dropped once the user has spoken
again, except where tools are offered. What a prompt holds already carries no loss: the tag that
opens thoughts, and the empty pair where none are wanted.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from hunyuan_train.errors import DataError
from hunyuan_train.families.grammar.dialogue import Dialogue, Message, Mode
from hunyuan_train.families.grammar.hy_v3.markers import Markers
from hunyuan_train.families.grammar.hy_v3.tools import write_arguments, write_tools_prompt
from hunyuan_train.families.grammar.segments import (
    SPAN_ANSWER,
    SPAN_MARKER,
    SPAN_NONE,
    SPAN_THINK,
    Rendering,
    Segment,
    Target,
)

EFFORT = "reasoning_effort"
EFFORTS: Mapping[str, Mode] = {"no_think": "fast", "low": "slow", "high": "slow"}
# What a client may hand the template beside messages and tools.
OPTIONS = (EFFORT, "is_training", "raw_last_assistant", "preserved_thinking", "fallback_strategy")
RETRY = "reasoning_toolcall_retry"


@dataclass(frozen=True, slots=True)
class Writer:
    """Writes dialogues with the markers of one tokenizer."""

    markers: Markers

    def render(self, dialogue: Dialogue, *, history: str = "strip", loss: str = "all") -> Rendering:
        """Lay out the samples of a dialogue (see `interface.Render`)."""
        answers = [one for one in dialogue.messages if one.role == "assistant"]
        trained = [one for one in answers if one.is_trained and not one.is_context]
        if history == "keep":
            trained = [one for one in answers if one.is_trained]
        trained = trained if loss == "all" else trained[-1:]
        efforts = {_effort_of(one, dialogue) for one in trained} or {_effort(dialogue, "fast")}
        has_thoughts = any(one.thoughts for one in answers)
        if history == "keep" or (len(efforts) == 1 and (dialogue.tools or not has_thoughts)):
            return self._render_whole(dialogue, trained, max(efforts, key=_by_depth))
        return self._render_turns(dialogue, trained)

    def _render_whole(self, dialogue: Dialogue, trained: list[Message], effort: str) -> Rendering:
        """One sample: what follows an answer sees it as it was written."""
        segments = self._head(dialogue, effort)
        weights = {id(one): one.weight for one in trained}
        for index, message in enumerate(dialogue.messages):
            if message.role == "assistant":
                weight = weights.get(id(message), 0.0)
                segments += self._answer(message, effort, weight=weight)
            else:
                segments += self._context(index, message, dialogue)
        return Rendering([], [Target(0, segments, trained[-1].mode if trained else "plain")])

    def _render_turns(self, dialogue: Dialogue, trained: list[Message]) -> Rendering:
        """A sample for each answer, with what a server would send before it."""
        targets = []
        for index, message in enumerate(dialogue.messages):
            if not any(message is one for one in trained):
                continue
            effort = _effort_of(message, dialogue)
            segments = self._head(dialogue, effort)
            keeps = _keeps_thoughts(dialogue.messages[:index], is_kept=bool(dialogue.tools))
            for number, earlier in enumerate(dialogue.messages[:index]):
                segments += self._turn(number, earlier, dialogue, effort, keeps=keeps)
            segments += self._answer(message, effort, weight=message.weight)
            targets.append(Target(0, segments, message.mode, index))
        return Rendering([], targets)

    def render_prompt(self, dialogue: Dialogue, *, mode: str = "auto") -> list[Segment]:
        """What a server feeds the model, the next answer open."""
        effort = _effort(dialogue, mode)
        return self._serve(dialogue, effort, adds_prompt=True)

    def write_served(self, dialogue: Dialogue, *, adds_prompt: bool) -> list[Segment]:
        """What the model's own template makes of a dialogue and of its options.

        Raises:
            DataError: an effort that it does not know.
        """
        is_stated = EFFORT in dialogue.template_options
        effort = _effort(dialogue, "auto" if is_stated else dialogue.stated_mode or "auto")
        if dialogue.template_options.get("fallback_strategy") == RETRY:
            return self._serve(dialogue, "high", adds_prompt=False)
        return self._serve(dialogue, effort, adds_prompt=adds_prompt)

    def _serve(self, dialogue: Dialogue, effort: str, *, adds_prompt: bool) -> list[Segment]:
        options, messages = dialogue.template_options, dialogue.messages
        is_training = options.get("is_training") is True
        is_kept = is_training or options.get("preserved_thinking", bool(dialogue.tools))
        keeps = _keeps_thoughts(messages, is_kept=bool(is_kept))
        segments = self._head(dialogue, effort)
        for index, message in enumerate(messages):
            turn = self._turn(index, message, dialogue, effort, keeps=keeps)
            is_last = index == len(messages) - 1
            if is_last and message.role == "assistant" and not message.tool_calls:
                if options.get("raw_last_assistant"):
                    turn = [turn[0], Segment(message.content, "assistant")]
                elif not is_training:
                    turn = turn[:-1]  # a client may want it to go on
            segments += turn
        if adds_prompt and not (messages and messages[-1].role == "assistant"):
            segments += self._opening(effort)
        return segments

    def _head(self, dialogue: Dialogue, effort: str) -> list[Segment]:
        """What comes before the first turn."""
        system = "".join(one.content for one in dialogue.messages if one.role == "system")
        segments = [self._mark(self.markers.begin, "system")]
        if system:
            segments.append(Segment(system, "system"))
        if dialogue.tools:
            before, listed, after = write_tools_prompt(dialogue.tools, self.markers)
            segments.append(Segment(("\n\n" if system else "") + before, "system"))
            segments += [Segment(listed, "system"), *self._split(after)]
        segments.append(self._mark(self.markers.reasoning_mode, "system"))
        return [*segments, Segment(f"{EFFORT}:{effort}", "system")]

    def _turn(
        self,
        index: int,
        message: Message,
        dialogue: Dialogue,
        effort: str,
        *,
        keeps: Callable[[int], bool],
    ) -> list[Segment]:
        """A turn that is context."""
        if message.role == "assistant":
            return self._answer(message, effort, keeps=keeps(index))
        return self._context(index, message, dialogue)

    def _context(self, index: int, message: Message, dialogue: Dialogue) -> list[Segment]:
        """A question, or a result, of which those in a row share one pair of tags."""
        if message.role == "system":
            return []  # in the head
        text = Segment(message.content, message.role)
        if message.role == "user":
            return [self._mark(self.markers.user, "user"), text]
        before, after = dialogue.messages[:index], dialogue.messages[index + 1 :]
        following = next((one.role for one in after if one.role != "system"), "")
        markers, newline = self.markers, Segment("\n", "tool")
        opened = [self._mark(markers.results_open, "tool"), newline] * _opens_results(before)
        inner = [self._mark(markers.result_open, "tool"), newline, text, newline]
        closed = [self._mark(markers.results_close, "tool")] * (following != "tool")
        return [*opened, *inner, self._mark(markers.result_close, "tool"), newline, *closed]

    def _opening(self, effort: str) -> list[Segment]:
        """Where the model goes on: in its thoughts, or behind an empty pair."""
        marks = [self.markers.assistant, self.markers.think_open]
        if EFFORTS[effort] == "fast":
            marks.append(self.markers.think_close)
        return [self._mark(mark, "assistant") for mark in marks]

    def _answer(
        self, message: Message, effort: str, *, weight: float = 0.0, keeps: bool = True
    ) -> list[Segment]:
        """A whole answer; with a weight, what the model writes of it carries loss."""

        def add(text: str, span: int, *, is_special: bool = False) -> None:
            if text:
                kind = span if weight else SPAN_NONE
                segments.append(Segment(text, "assistant", kind, weight, is_special))

        segments = self._opening(effort)
        if EFFORTS[effort] == "slow" or message.thoughts:
            segments = segments[:2]
            add((message.thoughts or "") if keeps else "", SPAN_THINK)
            add(self.markers.think_close, SPAN_MARKER, is_special=True)
        add(message.content, SPAN_ANSWER)
        for text, is_special in self._calls(message):
            add(text, SPAN_MARKER if is_special else SPAN_ANSWER, is_special=is_special)
        add(self.markers.end, SPAN_MARKER, is_special=True)
        return segments

    def _calls(self, message: Message) -> list[tuple[str, bool]]:
        """The calls of an answer: texts, and whether each is a marker."""
        marks, parts = self.markers, []
        for call in message.tool_calls or ():
            parts += [(marks.call_open, True), (call.name, False)]
            parts += [(marks.separator, True), ("\n", False)]
            try:
                pairs = write_arguments(call)
            except ValueError as error:
                raise DataError(f"a call of {call.name} has no JSON object as arguments") from error
            for key, value in pairs:
                parts += [(marks.key_open, True), (key, False)]
                parts += [(marks.key_close, True), ("\n", False), (marks.value_open, True)]
                parts += [(value, False), (marks.value_close, True), ("\n", False)]
            parts += [(marks.call_close, True), ("\n", False)]
        if not parts:
            return []
        return [(marks.calls_open, True), ("\n", False), *parts, (marks.calls_close, True)]

    def _mark(self, marker: str, role: str) -> Segment:
        return Segment(marker, role, is_special=True)

    def _split(self, text: str) -> list[Segment]:
        """A part of the tools prompt that is the template's own, so that its tags are markers."""
        pattern = "|".join(re.escape(tag) for tag in self.markers.tags)
        parts = re.split(f"({pattern})", text)
        return [
            Segment(part, "system", is_special=bool(index % 2))
            for index, part in enumerate(parts)
            if part
        ]


def _effort(dialogue: Dialogue, mode: str) -> str:
    """The word of a prompt: the dialogue's own, or that of a mode.

    Raises:
        DataError: it has another one.
    """
    stated = dialogue.template_options.get(EFFORT)
    if stated is not None and stated not in EFFORTS:
        raise DataError(f"{EFFORT} is {stated!r}; give one of {', '.join(EFFORTS)}")
    if stated is not None and (mode == "auto" or EFFORTS[stated] == mode):
        return str(stated)
    return "high" if mode == "slow" else "no_think"


def _effort_of(answer: Message, dialogue: Dialogue) -> str:
    return _effort(dialogue, "slow" if answer.mode == "slow" else "fast")


def _opens_results(before: list[Message]) -> bool:
    """Whether a result opens the tags that results share: the first one behind some calls does.

    So it is in the template, also where results follow no call.
    """
    for message in reversed(before):
        if message.role == "tool":
            return False
        if message.role == "assistant" and message.tool_calls:
            return True
    return True


def _by_depth(effort: str) -> int:
    return list(EFFORTS).index(effort)


def _keeps_thoughts(messages: list[Message], *, is_kept: bool) -> Callable[[int], bool]:
    """Whether the answer at an index is written with its thoughts."""
    users = [index for index, message in enumerate(messages) if message.role == "user"]
    last = users[-1] if users else -1
    return lambda index: is_kept or index > last
