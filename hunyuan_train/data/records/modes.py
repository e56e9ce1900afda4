"""The thinking mode of a dialogue: stated by the record or the run, or read off its messages.

A fast turn has an empty think block and is asked for by `/no_think` before the query; a slow turn
has thoughts. A bare answer of a slow dialogue is how a client sends history back: it is context
and no target. A dialogue with neither mark is plain and keeps its answers untagged.
"""

from hunyuan_train.data.findings import Problem
from hunyuan_train.families.grammar.dialogue import Dialogue, Message
from hunyuan_train.families.grammar.hunyuan_a13b.tags import (
    NO_THINK,
    NO_THINK_PREFIX,
    find_cut,
    has_no_think,
)


def settle_modes(dialogue: Dialogue, run_mode: str, problems: list[Problem]) -> None:
    """Give every assistant turn its mode and every fast query its `/no_think`."""
    stated = dialogue.stated_mode or run_mode
    answers = [message for message in dialogue.messages if message.role == "assistant"]
    queries = [message for message in dialogue.messages if message.role == "user"]
    if stated == "auto":
        _read_modes(dialogue, queries, answers, problems)
    elif stated == "fast":
        _set_fast(queries, answers, problems)
    else:
        _set_slow(queries, answers, problems)
    for answer in answers:
        if answer.mode == "slow" and not answer.thoughts:
            answer.is_context, answer.mode = True, "plain"
    _report_answers(answers, problems)


def _report_answers(answers: list[Message], problems: list[Problem]) -> None:
    num_context = sum([answer.is_context for answer in answers])
    if num_context:
        reason = f"{num_context} answer(s) of a slow dialogue without thoughts"
        problems.append(Problem("history_only", "messages", reason, "context under strip"))
    is_target = [answer.is_trained and not answer.is_context for answer in answers]
    if num_context < len(answers) and not any(is_target):
        reason = "no assistant message that carries loss"
        problems.append(Problem("no_answer", "messages", reason, "train one of them"))
    for answer in answers:
        cut = "" if answer.mode == "plain" else find_cut(answer.thoughts or "", answer.content)
        if cut:
            reason = f"a server would cut this answer: {cut}"
            problems.append(Problem("tags", "messages", reason, "reword it"))


def _set_fast(queries: list[Message], answers: list[Message], problems: list[Problem]) -> None:
    if any(answer.thoughts for answer in answers):
        reason = "mode is fast and an answer has thoughts"
        problems.append(Problem("mode", "mode", reason, "make it slow, or remove the thoughts"))
    for answer in answers:
        answer.mode = "fast"
    _add_no_think(queries)


def _set_slow(queries: list[Message], answers: list[Message], problems: list[Problem]) -> None:
    if any(has_no_think(query.content) for query in queries):
        reason = f"mode is slow and a query starts with {NO_THINK}"
        problems.append(Problem("mode", "mode", reason, f"make it fast, or remove {NO_THINK}"))
    if any(answer.thoughts == "" for answer in answers):
        reason = "mode is slow and an answer has an empty think block"
        problems.append(Problem("mode", "mode", reason, "make it fast, or write the thoughts"))
    elif answers and not any(answer.thoughts for answer in answers):
        reason = "mode is slow and no answer has thoughts"
        problems.append(Problem("mode", "mode", reason, "make it fast, or write the thoughts"))
    for answer in answers:
        answer.mode = "slow"


def _read_modes(
    dialogue: Dialogue, queries: list[Message], answers: list[Message], problems: list[Problem]
) -> None:
    """Modes from the marks: thoughts, empty think blocks, `/no_think`."""
    is_slow = any(answer.thoughts for answer in answers)
    is_fast = any(answer.thoughts == "" for answer in answers) or any(
        has_no_think(query.content) for query in queries
    )
    if is_slow and is_fast:
        _read_turn_modes(dialogue, problems)
    elif is_slow:
        for answer in answers:
            answer.mode = "slow"
    elif is_fast:
        for answer in answers:
            answer.mode = "fast"
        _complete_no_think(queries, problems)
    elif answers:
        reason = "answers in neither mode"
        problems.append(Problem("untagged", "messages", reason, "state a mode, for instance fast"))


def _read_turn_modes(dialogue: Dialogue, problems: list[Problem]) -> None:
    """A dialogue in which the user switches: each answer goes by its own query."""
    query: Message | None = None
    for message in dialogue.messages:
        if message.role == "user":
            query = message
        if message.role != "assistant" or query is None:
            continue
        is_asked_fast = has_no_think(query.content)
        if message.thoughts and is_asked_fast:
            reason = f"an answer with thoughts to a query that starts with {NO_THINK}"
            problems.append(Problem("mode", "messages", reason, "remove one of the two"))
        message.mode = "fast" if message.thoughts == "" or is_asked_fast else "slow"
        if message.mode == "fast" and not is_asked_fast:
            _complete_no_think([query], problems)


def _complete_no_think(queries: list[Message], problems: list[Problem]) -> None:
    missing = [query for query in queries if not has_no_think(query.content)]
    if missing:
        reason = f"a fast dialogue with {len(missing)} query(s) without {NO_THINK}"
        problems.append(Problem("mode", "messages", reason, f"{NO_THINK} added", True))
        _add_no_think(missing)


def _add_no_think(queries: list[Message]) -> None:
    for query in queries:
        if not has_no_think(query.content):
            query.content = NO_THINK_PREFIX + query.content
