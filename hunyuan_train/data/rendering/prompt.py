"""Messages as a server's client sends them, to the prompt that the model goes on from."""

from collections.abc import Mapping, Sequence
from typing import Any

from hunyuan_train.data.findings import Problem, build_policies
from hunyuan_train.data.records.record import Reading, read_dialogue
from hunyuan_train.data.rendering.encode import encode_segments
from hunyuan_train.errors import DataError
from hunyuan_train.families.grammar.interface import Grammar
from hunyuan_train.families.grammar.segments import Segment
from hunyuan_train.families.grammar.tokenizer import Tokenizer

# A server takes calls as they come, and shows nothing of fields that it does not know.
_SERVED = {"tools": "drop", "empty_answer": "drop"} | dict.fromkeys(
    ("missing_argument", "call_field", "unread_text", "prompt_loss", "foreign_markers"), "note"
)


def encode_prompt(
    messages: list[dict[str, Any]],
    tokenizer: Tokenizer,
    *,
    mode: str = "auto",
    tools: list[dict[str, Any]] | None = None,
    now: str = "",
    options: Mapping[str, str] | None = None,
) -> list[int]:
    """Ids of a prompt, ending where the model goes on (see `render_prompt`)."""
    grammar = tokenizer.grammar
    segments = render_prompt(messages, grammar, mode=mode, tools=tools, now=now, options=options)
    ids: list[int] = encode_segments(segments, tokenizer)[0].tolist()
    return ids


def find_opening(prompt: Sequence[int], tokenizer: Tokenizer) -> str:
    """What of an answer its prompt holds already; "" where that is nothing.

    It is the tag that opens thoughts, or an empty pair of tags where none are wanted. Readers of
    the answer, which goes on behind it, need it before them.
    """
    grammar = tokenizer.grammar
    if not grammar.opens_thoughts:
        return ""
    empty_pair = grammar.answers.write("", "")
    end = tokenizer.decode(list(prompt[-2:]))
    return next((one for one in (empty_pair, grammar.opens_thoughts) if end.endswith(one)), "")


def render_prompt(
    messages: list[dict[str, Any]],
    grammar: Grammar,
    *,
    mode: str = "auto",
    tools: list[dict[str, Any]] | None = None,
    now: str = "",
    options: Mapping[str, str] | None = None,
) -> list[Segment]:
    """What a server feeds the model for `messages`: earlier answers bare, the last turn open.

    Args:
        mode: "fast" or "slow" asks for that mode; "auto" adds nothing to what is sent.
        now: the time that a tools prompt shows; needed with tools.
        options: what a client hands the model's own template beside the messages; a word of
            `Grammar.efforts` for one.
    """
    if tools and not now:
        raise DataError("a prompt with tools shows the time; give now, like 2026-03-02 09:15:00")
    problems: list[Problem] = []
    record = {**(options or {}), "messages": messages, "tools": tools}
    dialogue = read_dialogue(record, Reading(grammar, now=now, is_prompt=True), problems)
    policies = build_policies(_SERVED)
    wrong = [problem for problem in problems if policies.decide(problem) == "error"]
    if dialogue is None or wrong:
        raise DataError(f"the prompt has {wrong[0].reason} ({wrong[0].field}); {wrong[0].fix}")
    if not dialogue.messages or dialogue.messages[-1].role not in ("user", "tool"):
        raise DataError("the last message of a prompt must be of role user or tool")
    return grammar.render_prompt(dialogue, mode=mode)
