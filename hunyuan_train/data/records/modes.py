"""The thinking mode of a dialogue: stated by the record or the run, or read off its messages.

A fast turn has an empty think block and is asked for before the query, in the words of the grammar;
a slow turn has thoughts. A bare answer of a slow dialogue is how a client sends history back: it is
context and no target. A dialogue with neither mark is plain and keeps its answers untagged.
"""

from hunyuan_train.data.findings import Problem
from hunyuan_train.families.grammar.dialogue import Dialogue, Message
from hunyuan_train.families.grammar.interface import Grammar, QueryForm


def settle_modes(
    dialogue: Dialogue, run_mode: str, grammar: Grammar, problems: list[Problem]
) -> None:
    """Give every assistant turn its mode and have every fast query ask for it."""
    stated = dialogue.stated_mode or run_mode
    answers = [message for message in dialogue.messages if message.role == "assistant"]
    queries = [message for message in dialogue.messages if message.role == "user"]
    if stated == "auto":
        _read_modes(dialogue, queries, answers, grammar.queries, problems)
    elif stated == "fast":
        _set_fast(queries, answers, grammar.queries, problems)
    else:
        _set_slow(queries, answers, grammar.queries, problems)
    for answer in answers:
        if answer.mode == "slow" and not answer.thoughts:
            answer.is_context, answer.mode = True, "plain"
    _report_answers(answers, grammar, problems)


def _report_answers(answers: list[Message], grammar: Grammar, problems: list[Problem]) -> None:
    num_context = sum([answer.is_context for answer in answers])
    if num_context:
        reason = f"{num_context} answer(s) of a slow dialogue without thoughts"
        problems.append(Problem("history_only", "messages", reason, "context under strip"))
    is_target = [answer.is_trained and not answer.is_context for answer in answers]
    if num_context < len(answers) and not any(is_target):
        reason = "no assistant message that carries loss"
        problems.append(Problem("no_answer", "messages", reason, "train one of them"))
    for answer in answers:
        if answer.mode == "plain":
            continue
        if cut := grammar.answers.find_cut(answer.thoughts or "", answer.content):
            reason = f"a server would cut this answer: {cut}"
            problems.append(Problem("tags", "messages", reason, "reword it"))


def _set_fast(
    queries: list[Message], answers: list[Message], form: QueryForm, problems: list[Problem]
) -> None:
    if any(answer.thoughts for answer in answers):
        reason = "mode is fast and an answer has thoughts"
        problems.append(Problem("mode", "mode", reason, "make it slow, or remove the thoughts"))
    for answer in answers:
        answer.mode = "fast"
    for query in queries:
        query.content = form.ask_fast(query.content)


def _set_slow(
    queries: list[Message], answers: list[Message], form: QueryForm, problems: list[Problem]
) -> None:
    if any(form.asks_fast(query.content) for query in queries):
        reason = f"mode is slow and a query starts with {form.fast_word}"
        fix = f"make it fast, or remove {form.fast_word}"
        problems.append(Problem("mode", "mode", reason, fix))
    if any(answer.thoughts == "" for answer in answers):
        reason = "mode is slow and an answer has an empty think block"
        problems.append(Problem("mode", "mode", reason, "make it fast, or write the thoughts"))
    elif answers and not any(answer.thoughts for answer in answers):
        reason = "mode is slow and no answer has thoughts"
        problems.append(Problem("mode", "mode", reason, "make it fast, or write the thoughts"))
    for answer in answers:
        answer.mode = "slow"


def _read_modes(
    dialogue: Dialogue,
    queries: list[Message],
    answers: list[Message],
    form: QueryForm,
    problems: list[Problem],
) -> None:
    """Modes from the marks: thoughts, empty think blocks, queries that ask for fast mode."""
    is_slow = any(answer.thoughts for answer in answers)
    is_fast = any(answer.thoughts == "" for answer in answers) or any(
        form.asks_fast(query.content) for query in queries
    )
    if is_slow and is_fast:
        _read_turn_modes(dialogue, form, problems)
    elif is_slow:
        for answer in answers:
            answer.mode = "slow"
    elif is_fast:
        for answer in answers:
            answer.mode = "fast"
        _ask_where_missing(queries, form, problems)
    elif answers:
        reason = "answers in neither mode"
        problems.append(Problem("untagged", "messages", reason, "state a mode, for instance fast"))


def _read_turn_modes(dialogue: Dialogue, form: QueryForm, problems: list[Problem]) -> None:
    """A dialogue in which the user switches: each answer goes by its own query."""
    query: Message | None = None
    for message in dialogue.messages:
        if message.role == "user":
            query = message
        if message.role != "assistant" or query is None:
            continue
        is_asked_fast = form.asks_fast(query.content)
        if message.thoughts and is_asked_fast:
            reason = f"an answer with thoughts to a query that starts with {form.fast_word}"
            problems.append(Problem("mode", "messages", reason, "remove one of the two"))
        message.mode = "fast" if message.thoughts == "" or is_asked_fast else "slow"
        if message.mode == "fast" and not is_asked_fast:
            _ask_where_missing([query], form, problems)


def _ask_where_missing(queries: list[Message], form: QueryForm, problems: list[Problem]) -> None:
    missing = [query for query in queries if form.ask_fast(query.content) != query.content]
    if missing:
        reason = f"a fast dialogue with {len(missing)} query(s) without {form.fast_word}"
        problems.append(Problem("mode", "messages", reason, f"{form.fast_word} added", True))
    for query in missing:
        query.content = form.ask_fast(query.content)
