"""A dialogue as the segments the model sees: text or control token, who speaks, what carries loss.

The layout is the one of the model's own chat template (which servers use), with one difference: a
target is written in the grammar the serving parsers accept, also where tools are given, which the
template cannot do. Loss is decided here, segment by segment, and never looked for in token ids.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from hunyuan_train.data.findings import DataError, Problem, build_policies
from hunyuan_train.data.records.dialogue import Dialogue, Message, Mode
from hunyuan_train.data.records.record import Reading, read_dialogue
from hunyuan_train.data.records.tags import ANSWER_CLOSE, THINK_CLOSE, THINK_OPEN
from hunyuan_train.data.rendering.tokenizer import EOS, START, SYSTEM_END, USER_END, to_nfc
from hunyuan_train.data.rendering.tools_prompt import (
    ASSISTANT_LABEL,
    TOOL_CALLS_CLOSE,
    TOOL_CALLS_OPEN,
    USER_LABEL,
    write_tools_prompt,
)

# Kinds of loss a token can carry; their numbers are those in the cache and in batches.
SPAN_NONE, SPAN_THINK, SPAN_ANSWER, SPAN_MARKER = range(4)
SPANS = ("none", "think", "answer", "marker")

_RESPONSE_OPEN, _RESPONSE_CLOSE = "<tool_response>", "</tool_response>"
_THINKING_OFF = "<think>\n\n</think>\n"  # what the template adds for enable_thinking=False


class Segment(NamedTuple):
    """A stretch of the rendered dialogue."""

    text: str
    role: str
    span: int = SPAN_NONE
    weight: float = 0.0  # 0 carries no loss
    is_special: bool = False


class Target(NamedTuple):
    """One sample: the first `num_history` segments of the history, then its own."""

    num_history: int
    segments: list[Segment]
    mode: Mode
    message: int | None = None  # index of the one answer it trains; None: every answer


@dataclass(slots=True)
class Rendering:
    """All samples of a dialogue. They share one history, which is tokenized and stored once."""

    history: list[Segment]
    targets: list[Target]

    def sample(self, index: int) -> list[Segment]:
        """The segments of one sample in reading order."""
        target = self.targets[index]
        return self.history[: target.num_history] + target.segments


def render(dialogue: Dialogue, *, history: str = "strip", loss: str = "all") -> Rendering:
    """Lay out the samples of a dialogue.

    Args:
        history: "strip": one sample per trained answer, earlier answers bare, loss on that answer;
            "keep": one sample, every answer as a target.
        loss: "last" leaves loss on the last answer only.
    """
    answers = [message for message in dialogue.messages if message.role == "assistant"]
    # Where no answer has tags a bare answer is the target itself, so one sample teaches the same
    # as one for each: the prefixes are equal and attention never looks ahead.
    if history == "keep" or all(answer.mode == "plain" for answer in answers):
        return _render_whole(dialogue, answers if loss == "all" else answers[-1:])
    rendering = _render_turns(dialogue)
    return rendering if loss == "all" else Rendering(rendering.history, rendering.targets[-1:])


def _render_whole(dialogue: Dialogue, trained: Sequence[Message]) -> Rendering:
    segments = _render_head(dialogue)
    trained_ids = {id(message) for message in trained}
    for index, message in enumerate(dialogue.messages):
        if message.role == "assistant":
            is_trained = message.is_trained and id(message) in trained_ids
            segments += _render_target(message, dialogue, message.weight if is_trained else 0.0)
        else:
            segments += _render_message(index, message, dialogue)
    if dialogue.is_thinking_off:
        segments.append(Segment(_THINKING_OFF, "assistant"))
    mode = trained[-1].mode if trained else "plain"
    return Rendering([], [Target(0, segments, mode)])


def _render_turns(dialogue: Dialogue) -> Rendering:
    history = _render_head(dialogue)
    targets = []
    for index, message in enumerate(dialogue.messages):
        if message.role == "assistant" and message.is_trained and not message.is_context:
            target = _render_target(message, dialogue, message.weight)
            targets.append(Target(len(history), target, message.mode, index))
        history += _render_message(index, message, dialogue)
    return Rendering(history[: targets[-1].num_history], targets)


def render_prompt(
    messages: list[dict[str, Any]],
    *,
    mode: str = "auto",
    tools: list[dict[str, Any]] | None = None,
    now: str = "",
) -> list[Segment]:
    """What a server feeds the model for `messages`: earlier answers bare, the last turn open.

    Args:
        mode: "fast" puts `/no_think` before each query; "slow" and "auto" add nothing.
        now: the time that a tools prompt shows; needed with tools.
    """
    if tools and not now:
        raise DataError("a prompt with tools shows the time; give now, like 2026-03-02 09:15:00")
    problems: list[Problem] = []
    record = {"messages": messages, "tools": tools}
    reading = Reading(mode="fast" if mode == "fast" else "auto", now=now, is_prompt=True)
    dialogue = read_dialogue(record, reading, problems)
    policies = build_policies({"tools": "drop", "mode": "drop", "empty_answer": "drop"})
    wrong = [problem for problem in problems if policies.decide(problem) == "error"]
    if dialogue is None or wrong:
        raise DataError(f"the prompt has {wrong[0].reason} ({wrong[0].field}); {wrong[0].fix}")
    if not dialogue.messages or dialogue.messages[-1].role not in ("user", "tool"):
        raise DataError("the last message of a prompt must be of role user or tool")
    segments = _render_head(dialogue)
    for index, message in enumerate(dialogue.messages):
        segments += _render_message(index, message, dialogue)
    return segments


def _render_head(dialogue: Dialogue) -> list[Segment]:
    """What comes before the first message: the tools prompt, when the first is not a system."""
    if not dialogue.tools or dialogue.messages[0].role == "system":
        return []
    return _close_system(write_tools_prompt(dialogue.tools, dialogue.now))


def _render_message(index: int, message: Message, dialogue: Dialogue) -> list[Segment]:
    """A message that is context: a prompt, a result, or an answer as clients send it back."""
    if message.role == "assistant":
        text = _write_reply(message, dialogue)
        return [Segment(text, "assistant"), Segment(EOS, "assistant", is_special=True)]
    if message.role == "system":
        if not dialogue.tools:
            return _close_system(message.content)
        prompt = write_tools_prompt(dialogue.tools, dialogue.now, system=message.content)
        return _close_system(prompt)
    end = Segment(USER_END, message.role, is_special=True)
    if message.role == "tool":
        wrapped = f"{_RESPONSE_OPEN}{message.content}{_RESPONSE_CLOSE}"
        return [Segment(wrapped if dialogue.tools else message.content, "tool"), end]
    if dialogue.tools:
        return [Segment(USER_LABEL + message.content, "user"), end]
    if index == 1:  # the template's rule: the message after the first opens no turn
        return [Segment(message.content, "user"), end]
    return [Segment(START, "user", is_special=True), Segment(message.content, "user"), end]


def _close_system(text: str) -> list[Segment]:
    return [
        Segment(START, "system", is_special=True),
        Segment(text, "system"),
        Segment(SYSTEM_END, "system", is_special=True),
    ]


def _render_target(message: Message, dialogue: Dialogue, weight: float) -> list[Segment]:
    """An answer in the served grammar, every token of it carrying loss."""
    marked = [(text, span) for text, span in _mark_target(message, dialogue) if text]
    if not weight:
        marked = [(text, SPAN_NONE) for text, _ in marked]
    end_span = SPAN_MARKER if weight else SPAN_NONE
    segments = [Segment(text, "assistant", span, weight) for text, span in marked]
    return [*segments, Segment(EOS, "assistant", end_span, weight, is_special=True)]


def _mark_target(message: Message, dialogue: Dialogue) -> list[tuple[str, int]]:
    reply = _write_reply(message, dialogue)
    if message.mode == "plain":
        return [(reply, SPAN_ANSWER)]
    return [
        (THINK_OPEN, SPAN_MARKER),
        (message.thoughts or "", SPAN_THINK),
        (THINK_CLOSE, SPAN_MARKER),
        (reply, SPAN_ANSWER),
        (ANSWER_CLOSE, SPAN_MARKER),
    ]


def _write_reply(message: Message, dialogue: Dialogue) -> str:
    """An answer without its thoughts, as the template writes it."""
    if not dialogue.tools:
        return message.content
    if message.tool_calls is None:
        return ASSISTANT_LABEL + message.content
    calls = ", ".join(
        f'{{"name": "{call.name}", "arguments": {call.arguments}}}' for call in message.tool_calls
    )
    return to_nfc(f"{message.content}{TOOL_CALLS_OPEN}[{calls}]{TOOL_CALLS_CLOSE}")
