"""Records of plain text, for continued pre-training: one document each, under `text`."""

from typing import Any

from hunyuan_train.data.findings import Problem
from hunyuan_train.data.records.forms import ANSWER_FIELDS, QUESTION_FIELDS, TURN_FIELDS
from hunyuan_train.data.records.messages import check_text
from hunyuan_train.data.records.texts import name_type, write_text
from hunyuan_train.data.records.turns import NOTHING
from hunyuan_train.data.records.unread import report_unread
from hunyuan_train.families.grammar.dialogue import DOCUMENT, Dialogue, Message
from hunyuan_train.families.grammar.foreign_markers import find_opened_turn
from hunyuan_train.families.grammar.interface import Grammar

Record = dict[str, Any]

# Where one of these says something, the record is a dialogue, and its text a field beside it.
_DIALOGUE_FIELDS = (*TURN_FIELDS, *QUESTION_FIELDS, *ANSWER_FIELDS, "instruction", "input")


def is_document(record: Record) -> bool:
    """Whether a record is plain text and nothing else."""
    has_text = record.get(DOCUMENT) is not None
    return has_text and all(record.get(field) in NOTHING for field in _DIALOGUE_FIELDS)


def read_document(record: Record, grammar: Grammar, problems: list[Problem]) -> Dialogue | None:
    """The document of a record of plain text; None where its text is none."""
    value = record[DOCUMENT]
    text = write_text(value)
    if text is None:
        reason = f"{DOCUMENT} is {name_type(value)}, not a string"
        problems.append(Problem("content_type", DOCUMENT, reason, "give one text a record"))
        return None
    if not isinstance(value, str):
        reason = f"{DOCUMENT} is {name_type(value)}, not a string"
        problems.append(Problem("content_type", DOCUMENT, reason, "read as its text", True))
    if not text.strip():
        problems.append(Problem("empty_text", DOCUMENT, "a document without text", "remove it"))
        return None
    own = grammar.controls.find(text)
    opened = find_opened_turn(text) or (own if own and text.lstrip().startswith(own) else "")
    if opened:
        reason = f"begins with {opened}: a dialogue that is already rendered"
        fix = "give its messages; foreign_markers=note teaches the marks as text"
        problems.append(Problem("foreign_markers", DOCUMENT, reason, fix))
    message = Message(DOCUMENT, check_text(text, DOCUMENT, grammar, problems), mode="text")
    extra = {key: record[key] for key in record if key != DOCUMENT}
    unread = {key: extra[key] for key in extra if key != "id" and extra[key] not in NOTHING}
    report_unread(unread, "", (DOCUMENT,), [{"content": text}], problems)
    return Dialogue([message], form=DOCUMENT, extra=extra)
