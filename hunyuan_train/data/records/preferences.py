"""A record of preferences to its dialogues: a chosen and a rejected one, or one with a label.

Each side is written as an ordinary record and read like one, so that it is what supervised
fine-tuning would make of it: modes, tools, masks, findings. The layouts are those of TRL,
LLaMA-Factory, ms-swift, axolotl and of OpenAI's preference files.
"""

import re
from dataclasses import replace
from typing import Any, NamedTuple

from hunyuan_train.data.dataset import CHOSEN, REJECTED
from hunyuan_train.data.findings import Problem
from hunyuan_train.data.records.forms import ANSWER_FIELDS, QUESTION_FIELDS, TURN_FIELDS
from hunyuan_train.data.records.record import Reading, read_dialogue
from hunyuan_train.data.records.unread import is_about_a_record
from hunyuan_train.families.grammar.dialogue import DOCUMENT, Dialogue, Message
from hunyuan_train.families.grammar.interface import Grammar

_SIDE_FIELDS = {
    CHOSEN: ("chosen", "chosen_response", "preferred_output", "response_chosen"),
    REJECTED: (
        *("rejected", "rejected_response", "non_preferred_output", "response_rejected"),
        "rejected_messages",
    ),
}
_LABEL_FIELDS = ("label", "kto_tag")
_LABELS = {
    **dict.fromkeys(("true", "1", "1.0"), CHOSEN),  # a table with gaps makes numbers of labels
    **dict.fromkeys(("false", "0", "0.0"), REJECTED),
}
_SPEAKERS = {"Human": "user", "Assistant": "assistant"}  # of Anthropic's hh-rlhf
_TURN = re.compile(rf"(?:\A\s*|\n\n)({'|'.join(_SPEAKERS)}):")
_SIDE_WORD = re.compile(r"_?(chosen|rejected)_?")
_EXPECTED = {
    "pairs": "give prompt, chosen and rejected, or conversations with chosen and rejected",
    "judged": "give prompt, completion and label (true or false), or chosen and rejected",
}
_ANSWER_FIELD = "completion"  # under which a side's answer is read

Record = dict[str, Any]


class Side(NamedTuple):
    """One answer in its dialogue, and what people think of it."""

    dialogue: Dialogue
    verdict: int  # CHOSEN or REJECTED


def read_sides(value: object, reading: Reading, problems: list[Problem]) -> list[Side]:
    """The dialogues of a decoded record: two of a pair, one of a judged answer, or none.

    Args:
        value: the record.
        reading: how it is read; its `records` are "pairs" or "judged".
        problems: what is wrong is added.
    """
    if not isinstance(value, dict):
        problems.append(Problem("form", "", "no object", _EXPECTED[reading.records]))
        return []
    has_pair = any(value.get(name) is not None for name in _SIDE_FIELDS[REJECTED])
    labels = [field for field in _LABEL_FIELDS if field in value]
    label = next((field for field in labels if value[field] is not None or not has_pair), None)
    if reading.records == "judged" and label:
        return _read_judged(value, label, reading, problems)
    records = _split(value, reading.records, problems)
    return _read_pair(records, reading, problems) if records else []


def _read_judged(
    value: Record, label: str, reading: Reading, problems: list[Problem]
) -> list[Side]:
    verdict = _LABELS.get(str(value[label]).strip().lower())
    if verdict is None:
        reason = f"{label} is {value[label]!r}"
        problems.append(Problem("form", label, reason, "give true or false"))
        return []
    rest = {key: value[key] for key in value if key != label}
    dialogue = read_dialogue(rest, reading, problems)
    if dialogue is not None and dialogue.is_document:
        reason = "a plain text, of which preferences learn nothing"
        problems.append(Problem("form", DOCUMENT, reason, _EXPECTED["judged"]))
        return []
    if dialogue is None:
        return []
    questions = [index for index, one in enumerate(dialogue.messages) if one.role == "user"]
    _train_from(dialogue, questions[-1] if questions else 0)
    return [Side(dialogue, verdict)]


def _train_from(dialogue: Dialogue, first: int) -> None:
    """Leave loss on a side's own answers: whatever comes before them is prompt."""
    for message in dialogue.messages[:first]:
        message.is_trained = False
    dialogue.messages[-1].is_context = False  # be it bare in a dialogue that thinks


def _split(value: Record, records: str, problems: list[Problem]) -> list[Record]:
    """The two sides of a pair, each as a record of its own; none where it is no pair."""
    given = value.get("input")
    if isinstance(given, dict) and "messages" in given:  # OpenAI's
        value = {**{key: value[key] for key in value if key != "input"}, **given}
    fields = {
        side: next((name for name in names if value.get(name) is not None), None)
        for side, names in _SIDE_FIELDS.items()
    }
    rejected = fields[REJECTED]
    if rejected is None:
        problems.append(_name_missing(value, records))
        return []
    rest = {
        key: value[key]
        for key in value
        if key not in fields.values() and not _is_about_a_side(key, value[key])
    }
    if chosen := fields[CHOSEN]:
        texts = [value[name] for name in (chosen, rejected)]
        if _lacks_prompt(rest) and not all(
            isinstance(one, list) or _read_turns(one) for one in texts
        ):
            reason = "chosen and rejected are answers, and no prompt stands beside them"
            problems.append(Problem("form", "prompt", reason, _EXPECTED[records]))
            return []
        return [_make_record(rest, value[name]) for name in (chosen, rejected)]
    turns = next((field for field in TURN_FIELDS if isinstance(rest.get(field), list)), None)
    if not turns or not rest[turns]:
        problems.append(Problem("form", "chosen", "no chosen answer", _EXPECTED[records]))
        return []
    # ms-swift: the messages end with the answer that was chosen.
    asked = {**rest, turns: rest[turns][:-1]}
    return [rest, _make_record(asked, value[rejected])]


def _name_missing(value: Record, records: str) -> Problem:
    """What a record without a rejected answer lacks, for the objective that reads it."""
    found = ", ".join(list(value)[:8]) or "none"
    has_answer = any(value.get(name) is not None for name in ANSWER_FIELDS)
    if records == "judged" and has_answer:
        return Problem("form", "label", f"no label; keys found: {found}", _EXPECTED[records])
    fix = _EXPECTED[records]
    if records == "pairs" and has_answer and any(name in value for name in _LABEL_FIELDS):
        fix = f"train on single answers with a label with --objective kto, or {fix}"
    return Problem("form", "rejected", f"no rejected answer; keys found: {found}", fix)


def _is_about_a_side(name: str, value: object) -> bool:
    """Whether a field says something of one side, such as `score_chosen`, and not in it."""
    bare = _SIDE_WORD.sub("", name)
    is_flat = not isinstance(value, dict | list)
    return bare != name and is_flat and is_about_a_record(bare)


def _make_record(rest: Record, answer: object) -> Record:
    """A side's record: what both share, and its own answer or whole dialogue."""
    answer = _read_turns(answer) or answer
    turns = answer if isinstance(answer, list) else []
    first = turns[0] if turns and isinstance(turns[0], dict) else {}
    if first.get("role", first.get("from")) in ("system", "user", "human"):
        shared = {key: rest[key] for key in rest if key not in (*TURN_FIELDS, *ANSWER_FIELDS)}
        return {**shared, "messages": answer}
    return {**rest, _ANSWER_FIELD: answer}


def _lacks_prompt(rest: Record) -> bool:
    """Whether nothing that both sides share asks anything."""
    asking = ("instruction", "input", *QUESTION_FIELDS, *TURN_FIELDS)
    return all(rest.get(field) is None for field in asking)


def _read_turns(text: object) -> list[Record]:
    """The messages of a dialogue written as one text, `Human: … Assistant: …`; none in others."""
    if not isinstance(text, str) or not text.lstrip().startswith("Human:"):
        return []
    _, *parts = _TURN.split(text)
    return [
        {"role": _SPEAKERS[speaker], "content": said.strip()}
        for speaker, said in zip(parts[::2], parts[1::2], strict=True)
    ]


def _read_pair(records: list[Record], reading: Reading, problems: list[Problem]) -> list[Side]:
    found: list[list[Problem]] = [[], []]
    sides = [
        read_dialogue(record, reading, own) for record, own in zip(records, found, strict=True)
    ]
    _settle_untagged(records, sides, found, reading)
    for number, own in enumerate(found):  # what both have is said once
        problems += own if not number else [one for one in own if one not in found[0]]
    chosen, rejected = sides
    if chosen is None or rejected is None:
        return []
    _compare(chosen, rejected, reading.grammar, problems)
    return [Side(chosen, CHOSEN), Side(rejected, REJECTED)]


def _settle_untagged(
    records: list[Record],
    sides: list[Dialogue | None],
    found: list[list[Problem]],
    reading: Reading,
) -> None:
    """A bare answer beside one that shows its mode: fast beside fast; beside thoughts it is bare.

    Nothing need be asked then: the other side says how the prompt was put.
    """
    for number, other in ((0, sides[1]), (1, sides[0])):
        is_untagged = [problem.kind == "untagged" for problem in found[number]]
        if not any(is_untagged) or other is None:
            continue
        mode = other.messages[-1].mode
        if mode == "fast":
            found[number].clear()
            asked = replace(reading, mode="fast")
            sides[number] = read_dialogue(records[number], asked, found[number])
        elif mode == "slow":
            found[number][:] = [one for one in found[number] if one.kind != "untagged"]


def _compare(
    chosen: Dialogue, rejected: Dialogue, grammar: Grammar, problems: list[Problem]
) -> None:
    """Find where the sides part, and what of them is not as a pair ought to be."""
    num_shared = count_shared(chosen, rejected, grammar)
    rests = [chosen.messages[num_shared:], rejected.messages[num_shared:]]
    if not any(rests):
        problems.append(
            Problem("pair_identical", "rejected", "both answers are the same", "remove the pair")
        )
        return
    if any(not rest or rest[0].role != "assistant" for rest in rests) or (
        chosen.tools != rejected.tools
    ):
        reason = "chosen and rejected do not answer the same prompt"
        problems.append(Problem("pair_prompt", "rejected", reason, "give both the same prompt"))
        return
    _train_from(chosen, num_shared)
    _train_from(rejected, num_shared)
    rejected.now = chosen.now  # of tools: a part of the prompt
    modes = [rest[-1].mode for rest in rests]
    if modes[0] != modes[1]:
        reason = f"chosen is {modes[0]} and rejected is {modes[1]}"
        fix = "meant, where the way of answering is to be learned"
        problems.append(Problem("pair_mode", "rejected", reason, fix))


def count_shared(chosen: Dialogue, rejected: Dialogue, grammar: Grammar) -> int:
    """How many messages both sides begin with."""
    num_shared = 0
    for ours, theirs in zip(chosen.messages, rejected.messages, strict=False):
        if _key(ours, grammar) != _key(theirs, grammar):
            break
        num_shared += 1
    return num_shared


def _key(message: Message, grammar: Grammar) -> tuple[object, ...]:
    """What is said in a message; a question asked fast is no other question."""
    text = grammar.queries.strip(message.content) if message.role == "user" else message.content
    calls = [(call.name, call.arguments) for call in message.tool_calls or ()]
    return (message.role, text, message.thoughts or "", calls)


def asks_for_preferences(value: object) -> bool:
    """Whether a record that is no dialogue is a pair, to be trained on with another objective."""
    return isinstance(value, dict) and all(
        any(value.get(name) is not None for name in names) for names in _SIDE_FIELDS.values()
    )


def explain_labels(value: object, problems: list[Problem]) -> None:
    """Say of a label that fine-tuning does not read which objective would."""
    if not problems or not isinstance(value, dict):
        return
    labels = [name for name in _LABEL_FIELDS if isinstance(value.get(name), bool)]
    for number, one in enumerate(problems):
        if one.kind == "unread_text" and one.field in labels:
            fix = f"train with --objective kto to learn from it; otherwise {one.fix}"
            problems[number] = one._replace(fix=fix)
