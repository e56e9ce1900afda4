"""The thinking mode of a dialogue: stated by the record or the run, or read off its messages.

A fast turn has an empty think block and is asked for before the query, in the words of the grammar;
a slow turn has thoughts. A bare answer of a slow dialogue is how a client sends history back: it is
context and no target. A dialogue with neither mark keeps its answers untagged; whether it is meant
to teach that, the user is asked: `plain` says yes.
"""

from typing import cast

from hunyuan_train.data.findings import POLICIES, Problem
from hunyuan_train.families.grammar.dialogue import Dialogue, Message, Mode
from hunyuan_train.families.grammar.interface import Grammar, QueryForm

_ASK = "say which with --mode fast, slow or plain, or with mode in the record"


def settle_modes(
    dialogue: Dialogue, run_mode: str, grammar: Grammar, problems: list[Problem]
) -> None:
    """Give every assistant turn its mode and have every fast query ask for it."""
    answers = [message for message in dialogue.messages if message.role == "assistant"]
    if not grammar.has_modes:
        _report_answers(answers, grammar, problems)
        return
    queries = [message for message in dialogue.messages if message.role == "user"]
    form = grammar.queries
    stated = dialogue.stated_mode or run_mode
    if reason := _find_contradiction(stated, queries, answers, form):
        if dialogue.stated_mode is None and _has_marks(queries, answers, form):
            fix = "read as its own thoughts, tags and queries say"
            problems.append(Problem("mode", "mode", reason, fix, True))
            stated = "auto"
        else:
            problems.append(Problem("mode", "mode", reason, _CONTRADICTION_FIXES[stated]))
    if stated == "auto":
        _read_modes(dialogue, queries, answers, form, problems)
    else:
        dialogue.has_run_mode = dialogue.stated_mode is None
        dialogue.stated_mode = stated
        _set_mode(stated, queries, answers, form)
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


_CONTRADICTION_FIXES = {
    "fast": "make it slow, or remove the thoughts",
    "slow": "make it fast, or write the thoughts",
    "plain": "make it fast or slow, or remove the tags and thoughts",
}


def _find_contradiction(
    mode: str, queries: list[Message], answers: list[Message], form: QueryForm
) -> str:
    """What in the messages does not go with a mode that was stated; "" where nothing does."""
    if mode == "auto":
        return ""
    # Lists in `any` here and below: to start a generator takes longer than a dialogue's few turns.
    has_thoughts = any([answer.thoughts for answer in answers])
    if mode == "fast" and has_thoughts:
        return "mode is fast and an answer has thoughts"
    if mode in ("slow", "plain") and any([form.asks_fast(query.content) for query in queries]):
        return f"mode is {mode} and a query starts with {form.fast_word}"
    if mode in ("slow", "plain") and any([answer.thoughts == "" for answer in answers]):
        return f"mode is {mode} and an answer has an empty think block"
    if mode == "slow" and answers and not has_thoughts:
        return "mode is slow and no answer has thoughts"
    if mode == "plain" and has_thoughts:
        return "mode is plain and an answer has thoughts"
    return ""


def _has_marks(queries: list[Message], answers: list[Message], form: QueryForm) -> bool:
    """Whether a dialogue says its modes by itself."""
    has_tags = any([answer.thoughts is not None for answer in answers])
    return has_tags or any([form.asks_fast(query.content) for query in queries])


def _set_mode(mode: str, queries: list[Message], answers: list[Message], form: QueryForm) -> None:
    for answer in answers:
        answer.mode = cast(Mode, mode)
    for query in queries if mode == "fast" else ():
        query.content = form.ask_fast(query.content)


def _read_modes(
    dialogue: Dialogue,
    queries: list[Message],
    answers: list[Message],
    form: QueryForm,
    problems: list[Problem],
) -> None:
    """Modes from the marks: thoughts, empty think blocks, queries that ask for fast mode."""
    is_slow = any([answer.thoughts for answer in answers])
    is_fast = any([answer.thoughts == "" for answer in answers]) or any(
        [form.asks_fast(query.content) for query in queries]
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
    elif answers and not any([_is_refused(problem) for problem in problems]):
        reason = "answers in neither mode: no thoughts, no tags, no mode"
        problems.append(Problem("untagged", "messages", reason, _ASK))


def _is_refused(problem: Problem) -> bool:
    """Whether a record with this problem is never used, so that nothing need be asked about it."""
    return not problem.is_repaired and "note" not in POLICIES[problem.kind].allowed


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
