"""A dialogue as the segments the model sees: text or control token, who speaks, what carries loss.

The layout is the one of the model's own chat template (which servers use), with one difference: a
target is written in the grammar the serving parsers accept, also where tools are given, which the
template cannot do. Loss is decided here, segment by segment, and never looked for in token ids.
"""

from collections.abc import Sequence
from dataclasses import replace

from hunyuan_train.families.grammar.dialogue import Dialogue, Message
from hunyuan_train.families.grammar.hunyuan_a13b.tags import (
    ANSWER_CLOSE,
    THINK_CLOSE,
    THINK_OPEN,
    add_no_think,
)
from hunyuan_train.families.grammar.hunyuan_a13b.tokens import EOS, START, SYSTEM_END, USER_END
from hunyuan_train.families.grammar.hunyuan_a13b.tools import (
    ASSISTANT_LABEL,
    RESPONSE_CLOSE,
    RESPONSE_OPEN,
    TOOL_CALLS_CLOSE,
    TOOL_CALLS_OPEN,
    USER_LABEL,
    write_tools_prompt,
)
from hunyuan_train.families.grammar.segments import (
    SPAN_ANSWER,
    SPAN_MARKER,
    SPAN_NONE,
    SPAN_THINK,
    Rendering,
    Segment,
    Target,
)
from hunyuan_train.families.grammar.tokenizer import to_nfc

_REPLY_END = Segment(EOS, "assistant", is_special=True)
_QUERY_START = Segment(START, "user", is_special=True)
_QUERY_END = Segment(USER_END, "user", is_special=True)
_RESULT_END = Segment(USER_END, "tool", is_special=True)
_THINKING_OFF = "<think>\n\n</think>\n"  # what the template adds for enable_thinking=False


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
    if history == "keep" or all([answer.mode == "plain" for answer in answers]):
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
    if dialogue.template_options.get("enable_thinking") is False:
        segments.append(Segment(_THINKING_OFF, "assistant"))
    mode = trained[-1].mode if trained else "plain"
    return Rendering([], [Target(0, segments, mode)])


def _render_turns(dialogue: Dialogue) -> Rendering:
    history = _render_head(dialogue)
    targets = []
    for index, message in enumerate(dialogue.messages):
        bare = _render_message(index, message, dialogue)
        if message.role == "assistant" and message.is_trained and not message.is_context:
            target = _render_target(message, dialogue, message.weight)
            targets.append(Target(len(history), target, message.mode, index, len(bare)))
        history += bare
    return Rendering(history[: targets[-1].num_history], targets)


def render_prompt(dialogue: Dialogue, *, mode: str = "auto") -> list[Segment]:
    """What a server feeds the model: earlier answers bare, the last turn open.

    Args:
        mode: "fast" puts `/no_think` before each query; "slow" and "auto" add nothing.
    """
    segments = _render_head(dialogue)
    for index, message in enumerate(dialogue.messages):
        if mode == "fast" and message.role == "user":
            message = replace(message, content=add_no_think(message.content))
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
        return [Segment(text, "assistant"), _REPLY_END]
    if message.role == "system":
        if not dialogue.tools:
            return _close_system(message.content)
        prompt = write_tools_prompt(dialogue.tools, dialogue.now, system=message.content)
        return _close_system(prompt)
    if message.role == "tool":
        wrapped = f"{RESPONSE_OPEN}{message.content}{RESPONSE_CLOSE}"
        return [Segment(wrapped if dialogue.tools else message.content, "tool"), _RESULT_END]
    if dialogue.tools:
        return [Segment(USER_LABEL + message.content, "user"), _QUERY_END]
    if index == 1:  # the template's rule: the message after the first opens no turn
        return [Segment(message.content, "user"), _QUERY_END]
    return [_QUERY_START, Segment(message.content, "user"), _QUERY_END]


def _close_system(text: str) -> list[Segment]:
    return [
        Segment(START, "system", is_special=True),
        Segment(text, "system"),
        Segment(SYSTEM_END, "system", is_special=True),
    ]


def _render_target(message: Message, dialogue: Dialogue, weight: float) -> list[Segment]:
    """An answer in the served grammar, every token of it carrying loss."""
    segments = [
        Segment(text, "assistant", span if weight else SPAN_NONE, weight)
        for text, span in _mark_target(message, dialogue)
        if text
    ]
    end_span = SPAN_MARKER if weight else SPAN_NONE
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
