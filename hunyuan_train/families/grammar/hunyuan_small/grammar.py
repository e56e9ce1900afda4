"""The grammar of the small dense Hunyuans: A13B's answers between markers of their own.

What it is written from are descriptions and ports, not renders of the real template. Their form of
tools is not known so, and dialogues with tools are refused.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from hunyuan_train.errors import DataError
from hunyuan_train.families.grammar.dialogue import Dialogue, Message
from hunyuan_train.families.grammar.foreign_markers import find_foreign_markers
from hunyuan_train.families.grammar.hunyuan_a13b import tags
from hunyuan_train.families.grammar.hunyuan_a13b.grammar import HUNYUAN_A13B
from hunyuan_train.families.grammar.hunyuan_small.markers import Markers
from hunyuan_train.families.grammar.interface import ControlTokens, Grammar
from hunyuan_train.families.grammar.marks import make_finder
from hunyuan_train.families.grammar.segments import (
    SPAN_ANSWER,
    SPAN_MARKER,
    SPAN_NONE,
    SPAN_THINK,
    Rendering,
    Segment,
    Target,
)


@dataclass(frozen=True, slots=True)
class Writer:
    """Writes dialogues with the markers of one tokenizer."""

    markers: Markers
    tags: tuple[str, ...]  # of thoughts and answers, as far as they are tokens of their own

    def render(self, dialogue: Dialogue, *, history: str = "strip", loss: str = "all") -> Rendering:
        """Lay out the samples of a dialogue (see `interface.Render`)."""
        answers = [one for one in dialogue.messages if one.role == "assistant"]
        is_whole = history == "keep" or all(one.mode == "plain" for one in answers)
        trained = [one for one in answers if one.is_trained and (is_whole or not one.is_context)]
        trained = trained if loss == "all" else trained[-1:]
        segments, targets = self._head(dialogue), []
        for index, message in enumerate(dialogue.messages):
            is_target = any(message is one for one in trained)
            if is_target and not is_whole:
                target = self._target(message, message.weight)
                bare = self._turn(message)
                targets.append(Target(len(segments), target, message.mode, index, len(bare)))
            if is_whole and message.role == "assistant":
                segments += self._target(message, message.weight if is_target else 0.0)
            else:
                segments += self._turn(message)
        if is_whole:
            mode = trained[-1].mode if trained else "plain"
            return Rendering([], [Target(0, segments, mode)])
        return Rendering(segments[: targets[-1].num_history], targets)

    def render_prompt(self, dialogue: Dialogue, *, mode: str = "auto") -> list[Segment]:
        """What a server feeds the model; "fast" asks for that mode before each query."""
        segments = self._head(dialogue)
        for message in dialogue.messages:
            if mode == "fast" and message.role == "user":
                message = replace(message, content=tags.add_no_think(message.content))
            segments += self._turn(message)
        return segments

    def _head(self, dialogue: Dialogue) -> list[Segment]:
        if dialogue.tools:
            raise DataError(
                "the tokenizer is that of a small dense Hunyuan, and how it is told of tools is "
                "not known here from its own template; leave tools out, or use another model"
            )
        return [Segment(self.markers.begin, "system", is_special=True)]

    def _turn(self, message: Message) -> list[Segment]:
        """A turn that is context; answers are bare."""
        text = Segment(message.content, message.role)
        marks = {
            "system": ("", self.markers.system_end),
            "user": (self.markers.user, self.markers.assistant),
            "tool": (self.markers.user, self.markers.assistant),
            "assistant": ("", self.markers.end),
        }
        before, after = marks[message.role]
        role = message.role
        opened = [Segment(before, role, is_special=True)] if before else []
        return [*opened, text, Segment(after, role, is_special=True)]

    def _target(self, message: Message, weight: float) -> list[Segment]:
        """An answer in the served grammar, every token of it carrying loss."""
        parts: Sequence[tuple[str, int]] = [(message.content, SPAN_ANSWER)]
        if message.mode != "plain":
            parts = [
                (tags.THINK_OPEN, SPAN_MARKER),
                (message.thoughts or "", SPAN_THINK),
                (tags.THINK_CLOSE, SPAN_MARKER),
                (message.content, SPAN_ANSWER),
                (tags.ANSWER_CLOSE, SPAN_MARKER),
            ]
        segments = []
        for text, kind in (*parts, (self.markers.end, SPAN_MARKER)):
            span = kind if weight else SPAN_NONE
            known = (*self.tags, self.markers.end) if kind == SPAN_MARKER else ()
            pattern = "|".join(map(re.escape, known)) or "(?!)"
            for index, part in enumerate(re.split(f"({pattern})", text)):
                if part:
                    special = bool(index % 2)
                    segments.append(Segment(part, "assistant", span, weight, is_special=special))
        return segments


def build_grammar(markers: Markers) -> Grammar:
    """The grammar with these markers."""
    own_tags = tuple(one for one in tags.TAGS if one in markers.others)
    writer = Writer(markers, own_tags)
    own = {*markers.turns, *markers.others, *tags.TAGS}
    return Grammar(
        name="hunyuan_small",
        controls=ControlTokens(
            written=(*markers.turns, *own_tags),
            end=markers.end,
            pad=markers.pad,
            stops=(markers.end,),
            ends=tuple(dict.fromkeys((markers.end, markers.pad))),
            find=make_finder(own, ("<｜",)),  # noqa: RUF001
        ),
        queries=HUNYUAN_A13B.queries,
        answers=replace(
            HUNYUAN_A13B.answers,
            find_foreign=partial(find_foreign_markers, is_own=own.__contains__),
        ),
        tools=replace(
            HUNYUAN_A13B.tools,
            labels={},
            split_calls=lambda _: None,
            are_offered=lambda _: False,
            read_offered=lambda _: [],
        ),
        render=writer.render,
        render_prompt=writer.render_prompt,
        parse_output=HUNYUAN_A13B.parse_output,
        stream_output=HUNYUAN_A13B.stream_output,
        chat_template="",
        missing=markers.missing,
    )
