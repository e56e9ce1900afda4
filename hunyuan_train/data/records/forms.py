"""The forms of record that exist in the wild, each turned into the chat form with `messages`.

Only the outer shape is changed here: which field is the question, who speaks. What the messages
hold is read and checked in record.py.
"""

from typing import Any

from hunyuan_train.data.findings import Problem
from hunyuan_train.data.reading.decode import parse_json
from hunyuan_train.data.records.texts import UNREADABLE, name_type, write_text
from hunyuan_train.data.records.turns import NOTHING, are_sharegpt, read_turns

Record = dict[str, Any]

# Field names seen for the thoughts, the question and the answer; the first is ours.
THOUGHT_FIELDS = ("reasoning_content", "reasoning", "thinking", "think")
QUESTION_FIELDS = ("prompt", "question", "query", "problem")
ANSWER_FIELDS = ("completion", "response", "answer", "output")
_EXPECTED = (
    "messages, conversations (ShareGPT), instruction/output (Alpaca), prompt/completion, "
    "question/think/answer, or text alone (plain text)"
)

TURN_FIELDS = ("messages", "conversations", "conversation")
_SYSTEM_FIELDS = ("system", "system_prompt", "system_message")
_BESIDE = frozenset((*ANSWER_FIELDS, *THOUGHT_FIELDS))  # what may complete a list of messages


def to_chat_form(value: object, problems: list[Problem]) -> tuple[Record | None, str]:
    """The record with a list under `messages`, and the name of the form it came in.

    Returns None, the reason in `problems`, where no form fits.
    """
    if isinstance(value, list):
        value = {"messages": value}
    if not isinstance(value, dict):
        reason = f"a record must be an object, this one is {name_type(value)}"
        problems.append(Problem("form", "", reason, f"give {_EXPECTED}"))
        return None, ""
    record, form = _convert(value, problems)
    if record is not None:
        record = _put_system(record, form, problems)
    return record, form


def _convert(record: Record, problems: list[Problem]) -> tuple[Record | None, str]:
    """The first form that has something to say: a field of nulls does not hide another one."""
    turns = next((field for field in TURN_FIELDS if record.get(field) not in NOTHING), None)
    if turns:
        return _from_turns(record, turns, problems)
    answer = _first_field(record, ANSWER_FIELDS)
    has_instruction = record.get("instruction") not in NOTHING
    if has_instruction or ("instruction" in record and record.get("input") not in NOTHING):
        return _from_alpaca(record, answer, problems)
    question = _first_field(record, QUESTION_FIELDS)
    answer = answer or _null_field(record, ANSWER_FIELDS)
    if question and answer:
        return _from_question(record, question, answer, problems), f"{question}/{answer}"
    if turns := next((field for field in TURN_FIELDS if field in record), None):
        return _from_turns(record, turns, problems)
    found = ", ".join(list(record)[:8]) or "none"
    problems.append(Problem("form", "", f"no known form; keys found: {found}", f"give {_EXPECTED}"))
    return None, ""


def _put_system(record: Record, form: str, problems: list[Problem]) -> Record:
    """The record with its system text, which may stand beside the messages, at their head."""
    fields = [field for field in _SYSTEM_FIELDS if field in record]
    if not fields:
        return record
    messages = list(record["messages"])
    for field in reversed(fields):
        text = record[field]
        if text in NOTHING or any(_is_system(message, text) for message in messages):
            continue
        if not isinstance(text, list) and write_text(text) is None:
            reason = f"{field} is {name_type(text)}, not a string"
            problems.append(Problem("content_type", field, reason, "give the text as a string"))
            continue
        messages.insert(0, {"role": "system", "content": text})
        if form == "messages":
            reason = f"{field} beside the messages"
            problems.append(Problem("converted", field, reason, "read as their system message"))
    rest = {key: value for key, value in record.items() if key not in fields}
    return {**rest, "messages": messages}


def _is_system(message: object, text: object) -> bool:
    if not isinstance(message, dict):
        return False
    return message.get("role") == "system" and message.get("content") == text


def _from_turns(record: Record, field: str, problems: list[Problem]) -> tuple[Record | None, str]:
    turns = record[field]
    if isinstance(turns, str):
        turns = parse_json(turns)
    if not isinstance(turns, list):
        reason = f"{field} must be a list of messages, here it is {name_type(record[field])}"
        problems.append(Problem("form", field, reason, "give a list of role and content"))
        return None, ""
    messages = read_turns(turns, field, problems)
    form = "ShareGPT" if messages is not turns and are_sharegpt(turns) else field
    if messages is not record.get("messages"):
        record = {**{key: record[key] for key in record if key != field}, "messages": messages}
    if record.keys() & _BESIDE:
        return _attach_answer(record, form, problems)
    return record, form


def _attach_answer(record: Record, form: str, problems: list[Problem]) -> tuple[Record | None, str]:
    """Move an answer and thoughts that stand beside the messages into them."""
    messages = record["messages"]
    answers = [one for one in messages if isinstance(one, dict) and one.get("role") == "assistant"]
    answer = _first_field(record, ANSWER_FIELDS)
    is_open = bool(messages) and messages[-1] not in answers
    if is_open and answer:
        reply, rest = _take_answer(record, answer, problems)
        return {**rest, "messages": [*messages, *reply]}, f"{form}/{answer}"
    thoughts = _take_thoughts(record)
    if thoughts and len(answers) == 1 and not _take_thoughts(answers[0]):
        messages = [{**one, **thoughts} if one is answers[0] else one for one in messages]
        rest = {key: record[key] for key in record if key not in thoughts}
        return {**rest, "messages": messages}, form
    return record, form


def _from_alpaca(
    record: Record, answer: str | None, problems: list[Problem]
) -> tuple[Record | None, str]:
    answer = answer or _null_field(record, ANSWER_FIELDS)
    if answer is None:
        problems.append(
            Problem("form", "output", "an Alpaca record without output", f"give {_EXPECTED}")
        )
        return None, ""
    parts = [_read_text(record, field, problems) for field in ("instruction", "input")]
    question = "\n\n".join(part for part in parts if part.strip())
    return _single_answer(record, question, answer, {"instruction", "input"}, problems), "Alpaca"


def _read_history(record: Record, problems: list[Problem]) -> list[Any] | None:
    """Earlier turns of a record of one question: pairs of question and answer, or messages."""
    history = record.get("history") or []
    if isinstance(history, str):
        history = parse_json(history)
    if isinstance(history, list) and all(isinstance(turn, dict) for turn in history):
        return read_turns(history, "history", problems)
    if not (isinstance(history, list) and all(_is_pair(turn) for turn in history)):
        problems.append(
            Problem("form", "history", "history must be pairs of question and answer", "fix it")
        )
        return None
    return [
        {"role": role, "content": text}
        for pair in history
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]


def _read_text(record: Record, field: str, problems: list[Problem]) -> str:
    """The text of a field that becomes a part of a message."""
    value = record.get(field)
    if isinstance(value, str):
        return value
    if value in NOTHING:
        return ""
    text, reason = write_text(value), f"{field} is {name_type(value)}, not a string"
    fix = "give the text as a string" if text is None else "read as its text"
    problems.append(Problem("content_type", field, reason, fix, text is not None))
    return UNREADABLE if text is None else text


def _is_pair(turn: object) -> bool:
    return isinstance(turn, list | tuple) and len(turn) == 2


def _from_question(
    record: Record, question: str, answer: str, problems: list[Problem]
) -> Record | None:
    prompt = record[question]
    if isinstance(prompt, dict) and "content" in prompt:
        prompt = [prompt]
    if isinstance(prompt, list):  # a prompt of messages, as TRL writes it
        reply, rest = _take_answer(record, answer, problems)
        rest.pop(question)
        return {**rest, "messages": [*read_turns(prompt, question, problems), *reply]}
    return _single_answer(record, prompt, answer, {question}, problems)


def _single_answer(
    record: Record, question: object, answer: str, used: set[str], problems: list[Problem]
) -> Record | None:
    history = _read_history(record, problems)
    if history is None:
        return None
    reply, rest = _take_answer(record, answer, problems)
    rest = {key: rest[key] for key in rest if key not in (*used, "history")}
    return {**rest, "messages": [*history, {"role": "user", "content": question}, *reply]}


def _take_answer(record: Record, answer: str, problems: list[Problem]) -> tuple[list[Any], Record]:
    """The messages of an answer, or one of its text and the thoughts; and what is left beside."""
    rest = {key: record[key] for key in record if key != answer}
    if messages := _list_messages(record[answer]):
        return read_turns(messages, answer, problems), rest
    thoughts = _take_thoughts(record)
    message = {"role": "assistant", "content": record[answer], **thoughts}
    return [message], {key: rest[key] for key in rest if key not in thoughts}


def _list_messages(value: object) -> list[Any]:
    """The messages that a value is made of; none where it is a text or parts of one."""
    turns = value if isinstance(value, list) else [value]
    is_turns = all(isinstance(turn, dict) and ("role" in turn or "from" in turn) for turn in turns)
    return turns if is_turns else []


def _take_thoughts(record: Record) -> Record:
    return {field: record[field] for field in THOUGHT_FIELDS if record.get(field) is not None}


def _first_field(record: Record, fields: tuple[str, ...]) -> str | None:
    """The first field that says something; else the first that says an empty text."""
    said = (field for field in fields if record.get(field) not in NOTHING)
    return next(said, next((field for field in fields if record.get(field) is not None), None))


def _null_field(record: Record, fields: tuple[str, ...]) -> str | None:
    """The first field that is there and null: in a table, a cell with nothing in it."""
    return next((field for field in fields if field in record and record[field] is None), None)
