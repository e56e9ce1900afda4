"""The question that untagged data asks: which mode it is to teach, each shown on one record."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

from hunyuan_train.data.findings import Finding, Problem
from hunyuan_train.data.reading.decode import decode_record
from hunyuan_train.data.reading.readers import read_chunks
from hunyuan_train.data.records.record import Reading, read_dialogue
from hunyuan_train.data.rendering.one_line import write_segments
from hunyuan_train.families.grammar.dialogue import Dialogue, Mode
from hunyuan_train.families.grammar.interface import Grammar

_MAX_PART = 120  # characters of a question or an answer, enough to see how it is laid out
_CHOICES = {
    "fast": "asked for and answered without thinking",
    "slow": "thoughts first; for records that have them",
    "plain": "neither asked for nor tagged: the model unlearns its answer format",
}
_THOUGHTS = "(the thoughts, which this record lacks)"


def ask_for_mode(findings: Sequence[Finding], num_untagged: int, grammar: Grammar) -> str:
    """The question, with the first untagged record laid out in every mode; "" where none is.

    Args:
        findings: among them the first that refuses a record for its lack of a mode.
        num_untagged: such records in all.
    """
    refusals = (one for one in findings if (one.kind, one.action) == ("untagged", "error"))
    first = next(refusals, None)
    if first is None:
        return ""
    lines = [
        f"{num_untagged:,} record(s) state no mode and show none by thoughts or tags. "
        "Say what they teach: for all of them with --mode, or in each with "
        '"mode": "fast", "slow" or "plain". With mode=fix in --data_policy (--policy of '
        "`data check`) records that show another mode keep it; untagged=drop leaves these out.",
        f"{first.path}:{first.line} in each mode, loss on [[ ]]:",
    ]
    dialogue = _find_dialogue(first, grammar)
    for mode, meaning in _CHOICES.items():
        shown = f"\n      {_lay_out(dialogue, mode, grammar)}" if dialogue else ""
        lines.append(f"  --mode {mode:5}  {meaning}{shown}")
    return "\n".join(lines)


def _find_dialogue(finding: Finding, grammar: Grammar) -> Dialogue | None:
    """The untagged dialogue of a line; None where the file has changed meanwhile."""
    for chunk in read_chunks(Path(finding.path)):
        for line, raw in zip(chunk.lines, chunk.records, strict=True):
            problems: list[Problem] = []
            if line != finding.line or (value := decode_record(raw, problems)) is None:
                continue
            dialogue = read_dialogue(value, Reading(grammar), problems)
            is_it = any(problem.kind == "untagged" for problem in problems)
            if dialogue and is_it and any(message.is_trained for message in dialogue.messages):
                return dialogue
    return None


def _lay_out(dialogue: Dialogue, mode: str, grammar: Grammar) -> str:
    """The last sample of a dialogue in a mode; slow with a place where thoughts would stand."""
    messages = [replace(message) for message in dialogue.messages]
    for message in messages:
        if message.role == "assistant":
            message.mode = cast(Mode, mode)
            message.thoughts = _THOUGHTS if mode == "slow" else None
        elif message.role == "user" and mode == "fast":
            message.content = grammar.queries.ask_fast(message.content)
    rendering = grammar.render(replace(dialogue, messages=messages))
    samples = len(rendering.targets)
    which = f"(the last of {samples} samples) " if samples > 1 else ""
    return which + write_segments(rendering.last_sample(), max_part=_MAX_PART)
