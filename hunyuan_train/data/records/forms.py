"""The forms of record that exist in the wild, each turned into the chat form with `messages`.

Only the outer shape is changed here: which field is the question, who speaks. What the messages
hold is read and checked in record.py.
"""

from typing import Any

from hunyuan_train.data.findings import Problem
from hunyuan_train.data.reading.decode import parse_json

Record = dict[str, Any]

# Field names seen for the thoughts, the question and the answer; the first is ours.
THOUGHT_FIELDS = ("reasoning_content", "reasoning", "thinking", "think")
_QUESTION_FIELDS = ("prompt", "question", "query", "problem")
_ANSWER_FIELDS = ("completion", "response", "answer", "output")
_EXPECTED = (
    "messages, conversations (ShareGPT), instruction/output (Alpaca), prompt/completion "
    "or question/think/answer"
)

_SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
    "observation": "tool",
    "tool": "tool",
    "function_response": "tool",
}


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
    if isinstance(value.get("messages"), list) and _is_chat(value["messages"]):
        return _attach_answer(value), "messages"
    return _convert(value, problems)


def _convert(record: Record, problems: list[Problem]) -> tuple[Record | None, str]:
    for field in ("messages", "conversations", "conversation"):
        if field in record:
            return _from_turns(record, field, problems)
    if "instruction" in record:
        return _from_alpaca(record, problems)
    question = _first_field(record, _QUESTION_FIELDS)
    answer = _first_field(record, _ANSWER_FIELDS)
    if question and answer:
        return _from_question(record, question, answer), f"{question}/{answer}"
    found = ", ".join(list(record)[:8]) or "none"
    problems.append(Problem("form", "", f"no known form; keys found: {found}", f"give {_EXPECTED}"))
    return None, ""


def _is_chat(turns: list[Any]) -> bool:
    return not (turns and isinstance(turns[0], dict) and "from" in turns[0])


def _attach_answer(record: Record) -> Record:
    """Move a `think` and `answer` beside `messages` into a last assistant message."""
    if "answer" not in record or not _first_field(record, THOUGHT_FIELDS):
        return record
    last = record["messages"][-1:]
    if not (last and isinstance(last[0], dict) and last[0].get("role") == "user"):
        return record
    return {
        **{key: value for key, value in record.items() if key not in (*THOUGHT_FIELDS, "answer")},
        "messages": [*record["messages"], _answer_message(record, "answer")],
    }


def _from_turns(record: Record, field: str, problems: list[Problem]) -> tuple[Record | None, str]:
    turns = record[field]
    rest = {key: value for key, value in record.items() if key != field}
    if isinstance(turns, str):
        turns = parse_json(turns)
    if not isinstance(turns, list):
        reason = f"{field} must be a list of messages, here it is {name_type(record[field])}"
        problems.append(Problem("form", field, reason, "give a list of role and content"))
        return None, ""
    if _is_chat(turns):
        return {**rest, "messages": turns}, "messages" if field == "messages" else field
    messages = [_from_sharegpt_turn(turn) for turn in turns]
    if isinstance(rest.get("system"), str):
        messages.insert(0, {"role": "system", "content": rest.pop("system")})
    return {**rest, "messages": messages}, "ShareGPT"


def _from_sharegpt_turn(turn: object) -> object:
    if not isinstance(turn, dict) or not isinstance(turn.get("from"), str):
        return turn
    rest = {key: value for key, value in turn.items() if key not in ("from", "value")}
    speaker, value = turn["from"], turn.get("value")
    if speaker.lower() == "function_call":
        return {**rest, "role": "assistant", "content": "", "tool_calls": value}
    role = _SHAREGPT_ROLES.get(speaker.lower(), speaker)
    return {**rest, "role": role, "content": value}


def _from_alpaca(record: Record, problems: list[Problem]) -> tuple[Record | None, str]:
    answer = _first_field(record, _ANSWER_FIELDS)
    if answer is None:
        problems.append(
            Problem("form", "output", "an Alpaca record without output", f"give {_EXPECTED}")
        )
        return None, ""
    question = record["instruction"]
    if isinstance(record.get("input"), str) and record["input"].strip():
        question = f"{question}\n\n{record['input']}" if question else record["input"]
    history = record.get("history") or []
    if not (isinstance(history, list) and all(_is_pair(turn) for turn in history)):
        problems.append(
            Problem("form", "history", "history must be pairs of question and answer", "fix it")
        )
        return None, ""
    turns = [
        {"role": role, "content": text}
        for pair in history
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    used = {"instruction", "input", "history"}
    return _single_answer(record, turns, question, answer, used=used), "Alpaca"


def _is_pair(turn: object) -> bool:
    return isinstance(turn, list | tuple) and len(turn) == 2


def _from_question(record: Record, question: str, answer: str) -> Record:
    prompt = record[question]
    if isinstance(prompt, list):  # a prompt of messages, as TRL writes it
        reply = record[answer] if isinstance(record[answer], list) else None
        rest = {key: value for key, value in record.items() if key not in (question, answer)}
        messages = [*prompt, *reply] if reply else [*prompt, _answer_message(record, answer)]
        return {**rest, "messages": messages}
    return _single_answer(record, [], prompt, answer, used={question})


def _single_answer(
    record: Record, turns: list[Record], question: object, answer: str, *, used: set[str]
) -> Record:
    messages = [*turns, {"role": "user", "content": question}, _answer_message(record, answer)]
    if isinstance(record.get("system"), str):
        messages.insert(0, {"role": "system", "content": record["system"]})
    used = {*used, answer, "system", *THOUGHT_FIELDS}
    return {**{key: record[key] for key in record if key not in used}, "messages": messages}


def _answer_message(record: Record, answer: str) -> Record:
    thoughts = {field: record[field] for field in THOUGHT_FIELDS if record.get(field) is not None}
    return {"role": "assistant", "content": record[answer], **thoughts}


def _first_field(record: Record, fields: tuple[str, ...]) -> str | None:
    return next((field for field in fields if record.get(field) is not None), None)


def name_type(value: object) -> str:
    """What JSON calls a value."""
    names = {dict: "an object", list: "a list", str: "a string", type(None): "null", bool: "a bool"}
    return names.get(type(value), "a number")
