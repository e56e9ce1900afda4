"""The grammar of Hunyuan-A13B, put together. The dense 7B models share it."""

import functools

from hunyuan_train.families.grammar.foreign_markers import find_foreign_markers
from hunyuan_train.families.grammar.hunyuan_a13b import output_parser, tags, template, tokens, tools
from hunyuan_train.families.grammar.hunyuan_a13b.chat_template import CHAT_TEMPLATE
from hunyuan_train.families.grammar.interface import (
    AnswerForm,
    ControlTokens,
    Grammar,
    QueryForm,
    ToolForm,
)

KNOWN_TEMPLATES = (
    "c9635ab946bc8f88301ddd90da091fe6f50ee3bcbea5f338d86a67099ffebc32",  # published
    "cf7e76d74b016ff7f0d6b9b855d39aeb02fdbf9dbdd512484c305eb660c35e8a",  # in our first exports
)
_OWN_MARKERS = (*tags.TAGS, tools.TOOL_CALLS_OPEN, tools.TOOL_CALLS_CLOSE)


def _is_own_marker(marker: str) -> bool:
    return marker in _OWN_MARKERS or tokens.find_control_token(marker) == marker


HUNYUAN_A13B = Grammar(
    name="hunyuan_a13b",
    controls=ControlTokens(
        written=(tokens.START, tokens.SYSTEM_END, tokens.USER_END, tokens.EOS),
        end=tokens.EOS,
        pad=tokens.PAD,
        stops=(tokens.EOS, tokens.ANSWER_STOP),
        ends=(tokens.TEXT_END, tokens.EOS, tokens.ANSWER_STOP),
        find=tokens.find_control_token,
    ),
    queries=QueryForm(
        fast_prefix=tags.NO_THINK_PREFIX,
        asks_fast=tags.has_no_think,
        ask_fast=tags.add_no_think,
        strip=tags.strip_no_think,
    ),
    answers=AnswerForm(
        write=tags.write_tags,
        read=tags.parse_tags,
        read_apart=tags.parse_apart,
        find_cut=tags.find_cut,
        find_foreign=functools.partial(find_foreign_markers, is_own=_is_own_marker),
        is_thinking=tags.is_thinking,
    ),
    tools=ToolForm(
        labels={"user": tools.USER_LABEL, "assistant": tools.ASSISTANT_LABEL},
        call_marks=(tools.TOOL_CALLS_OPEN, tools.TOOL_CALLS_CLOSE),
        result_marks=(tools.RESPONSE_OPEN, tools.RESPONSE_CLOSE),
        split_calls=tools.split_calls,
        find_cut=tools.find_cut,
        are_offered=tools.are_offered,
        read_offered=tools.read_offered,
    ),
    render=template.render,
    render_prompt=template.render_prompt,
    parse_output=output_parser.parse_output,
    stream_output=output_parser.OutputStream,
    chat_template=CHAT_TEMPLATE,
    known_templates=KNOWN_TEMPLATES,
)
