"""The grammar of Hy3, for the markers of one tokenizer."""

import re
from functools import partial

from hunyuan_train.families.grammar.foreign_markers import find_foreign_markers
from hunyuan_train.families.grammar.hy_v3 import output_parser, tools
from hunyuan_train.families.grammar.hy_v3.markers import Markers
from hunyuan_train.families.grammar.hy_v3.template import EFFORTS, OPTIONS, Writer
from hunyuan_train.families.grammar.interface import (
    AnswerForm,
    ControlTokens,
    Grammar,
    QueryForm,
    TaggedText,
    ToolForm,
)
from hunyuan_train.families.grammar.marks import make_finder


def build_grammar(markers: Markers) -> Grammar:
    """The grammar with these markers."""
    writer = Writer(markers)
    own = {*markers.written, *markers.others}
    return Grammar(
        name="hy_v3",
        controls=ControlTokens(
            written=markers.written,
            end=markers.end,
            pad=markers.pad,
            stops=(markers.end,),
            ends=markers.ends,
            find=make_finder(own, ("<", "/")),
        ),
        queries=QueryForm(  # the system's part says the mode
            fast_prefix="", asks_fast=lambda _: False, ask_fast=str, strip=str
        ),
        answers=AnswerForm(
            write=lambda thoughts, answer: (
                f"{markers.think_open}{thoughts}{markers.think_close}{answer}"
            ),
            read=partial(_read, markers),
            read_apart=partial(_read_apart, markers),
            find_cut=partial(_find_cut, markers),
            find_foreign=partial(find_foreign_markers, is_own=own.__contains__),
            is_thinking=partial(_is_thinking, markers),
        ),
        tools=ToolForm(
            labels={},
            call_marks=(markers.calls_open, markers.calls_close),
            result_marks=(markers.result_open, markers.result_close),
            split_calls=partial(tools.split_calls, markers=markers),
            find_cut=partial(tools.find_cut, markers=markers),
            are_offered=lambda answer: markers.calls_open in answer,
            read_offered=partial(tools.read_offered, markers=markers),
            has_bare_values=True,
        ),
        render=writer.render,
        render_prompt=writer.render_prompt,
        parse_output=partial(output_parser.parse_output, markers=markers),
        stream_output=partial(output_parser.OutputStream, markers),
        chat_template="",  # that of the model's own folder
        write_served=writer.write_served,
        options=OPTIONS,
        efforts=EFFORTS,
        opens_thoughts=markers.think_open,
        missing=markers.missing,
        joins_systems="",
        joins_parts="",
    )


def _tag(markers: Markers) -> re.Pattern[str]:
    """Tags of thoughts, in this spelling or bare, as clients and data sets write them."""
    suffix = markers.think_open.removeprefix("<think").removesuffix(">")
    return re.compile(rf"<(/?)think(?:{re.escape(suffix)})?>")


def _read(markers: Markers, text: str) -> TaggedText:
    """Thoughts and answer of a message that may begin with tags."""
    tags = list(_tag(markers).finditer(text)) if "think" in text else []
    if not tags or text[: tags[0].start()].strip():
        return TaggedText(None, text)  # talked about
    if [one[1] for one in tags] != ["", "/"]:
        found = " ".join(one[0] for one in tags[:6])
        return TaggedText(None, text, error=f"tags do not form one pair of thoughts: {found}")
    opened, closed = tags
    thoughts, answer = text[opened.end() : closed.start()], text[closed.end() :]
    is_own = (opened[0], closed[0]) == (markers.think_open, markers.think_close)
    if is_own and opened.start() == 0:
        return TaggedText(thoughts, answer)
    repair = "tags of thoughts in another spelling, or blanks before them"
    return TaggedText(thoughts.strip("\r\n"), answer.strip("\r\n"), repair=repair)


def _read_apart(markers: Markers, thoughts: str, answer: str) -> TaggedText:
    tagged = _read(markers, answer)
    if tagged.error or tagged.thoughts is not None:
        error = tagged.error or "thoughts both as a field and as tags"
        return TaggedText(thoughts, answer, error=error)
    if _tag(markers).search(thoughts):
        return TaggedText(thoughts, answer, error="thoughts that hold tags of their own")
    return TaggedText(thoughts, answer)


def _is_thinking(markers: Markers, output: str) -> bool:
    """Whether an output, behind what its prompt has opened, holds more than an empty pair."""
    rest = output.removeprefix(markers.think_open + markers.think_close)
    return markers.think_open in rest or markers.think_close in rest


def _find_cut(markers: Markers, thoughts: str, answer: str) -> str:
    """Where the serving parsers would cut thoughts or answer too early; "" if nowhere."""
    if markers.think_close in thoughts:
        return "the thoughts hold the tag that closes them"
    if markers.calls_open in answer or markers.think_close in answer:
        return "the answer holds a tag of thoughts or calls"
    return ""
