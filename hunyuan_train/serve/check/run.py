"""`hunyuan-train serve MODEL --check URL`: ask, read, judge, explain."""

import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from hunyuan_train.data.rendering.prompt import encode_prompt
from hunyuan_train.families.grammar.dialogue import TIME_FORMAT
from hunyuan_train.families.grammar.find import load_tokenizer
from hunyuan_train.families.grammar.tokenizer import Tokenizer
from hunyuan_train.serve.check.client import Server, ServerAnswer
from hunyuan_train.serve.check.judge import (
    Exchange,
    Finding,
    Verdict,
    errors_of,
    find_ids,
    find_time,
    find_wrong_fields,
    judge,
)
from hunyuan_train.serve.check.questions import CheckQuestion, list_questions, read_questions
from hunyuan_train.serve.check.reference import AskedText, Reference, score
from hunyuan_train.serve.errors import ServeError

NUM_TRIES = 5  # of an answer that the server breaks off: what else it is should be seen, too
PAUSE_SECONDS = 0.5  # before the second try, and so much more before each other: load may pass
NUM_ALTERNATIVES = 5  # shown beside each token; OpenAI's interface allows 20
TOLERANCES = {"float32": 0.01, "bfloat16": 0.1, "compressed": 0.3}  # mean, by the weights on disk
ANY_TIME = "2025-01-31 08:07:56"
TAG = re.compile(r"</?\w+>")
LONG_PROMPT = 33_792  # tokens: beyond the 32,768 that the released config.json states


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckSettings:
    """What is asked of a server, and how close it must come."""

    max_new_tokens: int
    num_long_tokens: int  # of the long prompt; 0: none is asked
    questions: Path | None  # of the user's own, instead of the fixed ones
    tolerance: float


@dataclass(frozen=True, slots=True)
class Checked:
    """One answer and what was found in it."""

    exchange: Exchange
    findings: list[Finding]


@dataclass(frozen=True, slots=True)
class CheckResult:
    """All answers, and what explains the faults in them."""

    checked: list[Checked]
    causes: list[str]
    tolerance: float

    @property
    def num_wrong(self) -> int:
        """Comparisons that came out wrong."""
        found = [finding for one in self.checked for finding in one.findings]
        return sum(one.verdict is Verdict.WRONG for one in found)

    @property
    def is_right(self) -> bool:
        """Whether the server serves the model."""
        return not self.num_wrong and not self.causes

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        rows = [
            {
                "question": one.exchange.question.name,
                "mode": one.exchange.question.mode,
                "is_streamed": one.exchange.is_streamed,
                "findings": [
                    {
                        "what": finding.what,
                        "verdict": str(finding.verdict),
                        "expected": finding.expected,
                        "answered": finding.answered,
                    }
                    for finding in one.findings
                ],
            }
            for one in self.checked
        ]
        return {
            "is_right": self.is_right,
            "num_wrong": self.num_wrong,
            "causes": self.causes,
            "tolerance": self.tolerance,
            "answers": rows,
        }


def check_server(
    server: Server,
    folder: Path,
    base: Path | None,
    settings: CheckSettings,
    tell: Callable[[str], None],
) -> CheckResult:
    """Ask a server all questions, and compare its answers with the model on disk.

    Args:
        server: that was found.
        folder: of the model, or of the adapter, that it should serve.
        base: of the adapter's base model; None for a model.
        settings: what to ask, and the tolerance.
        tell: told how far the work is.

    Raises:
        ServeError: the server does not answer a question.
    """
    tokenizer = load_tokenizer(base or folder)
    if settings.questions is not None:
        questions = read_questions(settings.questions, tokenizer.grammar)
    else:
        questions = list_questions(tokenizer, num_long_tokens=settings.num_long_tokens)
    exchanges = [
        ask(server, question, tokenizer, settings, tell, is_streamed=is_streamed)
        for question in questions
        for is_streamed in question.ways
    ]
    exchanges = borrow_ids(exchanges)
    readable = [one for one in exchanges if one.prompt and one.ids and one.shows_all]
    texts = [AskedText(one.prompt, one.ids) for one in readable]
    if not texts and exchanges[0].breaks:
        raise ServeError(
            f"{server.url} breaks off its answers with an error ({exchanges[0].breaks[0]}), so "
            "nothing can be compared; its log says why"
        )
    if not texts:
        raise ServeError(
            f"{server.url} shows no tokens of its answers, so nothing can be compared; start it "
            "with log-probabilities allowed (vLLM: --max-logprobs 20)"
        )
    reference = score(folder, base, texts, tell)
    scores = {id(one): row for one, row in zip(readable, reference.logprobs, strict=True)}
    checked = [
        Checked(one, judge(one, scores.get(id(one)), tokenizer, settings.tolerance))
        for one in exchanges
    ]
    causes = explain(checked, tokenizer)
    causes += explain_adapter(readable, reference, tokenizer, settings.tolerance)
    return CheckResult(checked, causes, settings.tolerance)


def ask(
    server: Server,
    question: CheckQuestion,
    tokenizer: Tokenizer,
    settings: CheckSettings,
    tell: Callable[[str], None],
    *,
    is_streamed: bool,
) -> Exchange:
    """Put one question; its own prompt is laid out with the time that the server has written."""
    tell(f"asking {question.name}{', streamed' if is_streamed else ''}")
    answer = _put(server, question, settings, is_streamed=is_streamed)
    breaks = [answer.error] if answer.error else []
    while answer.error and len(breaks) < NUM_TRIES:
        time.sleep(PAUSE_SECONDS * len(breaks))
        answer = _put(server, question, settings, is_streamed=is_streamed)
        breaks += [answer.error] if answer.error else []
    ids = find_ids(answer, tokenizer)
    return Exchange(
        question=question,
        is_streamed=is_streamed,
        answer=answer,
        prompt=tuple(write_prompt(question, answer, tokenizer)),
        ids=ids,
        # llama.cpp leaves out tokens that end within a character, and in streams others, too.
        shows_all=bool(ids) and not answer.error and answer.num_answer_tokens in (0, len(ids)),
        breaks=tuple(breaks),
    )


def _put(
    server: Server, question: CheckQuestion, settings: CheckSettings, *, is_streamed: bool
) -> ServerAnswer:
    write = partial(question.to_request, max_new_tokens=settings.max_new_tokens)
    try:
        return server.ask(write(num_alternatives=NUM_ALTERNATIVES), is_streamed=is_streamed)
    except ServeError as error:
        # llama.cpp gives no log-probabilities with tools in a stream, and refuses to be asked.
        if not (is_streamed and question.tools and "logprobs" in str(error)):
            raise
        return server.ask(write(num_alternatives=0), is_streamed=is_streamed)


def write_prompt(question: CheckQuestion, answer: ServerAnswer, tokenizer: Tokenizer) -> list[int]:
    """What the server should have fed the model; empty where the time in it cannot be known."""
    write = partial(
        encode_prompt, question.messages, tokenizer, tools=question.tools, options=question.options
    )
    if not question.tools:
        return write()
    if now := find_time(answer, tokenizer):
        return write(now=now)
    ours = write(now=datetime.now().strftime(TIME_FORMAT))
    # It left out the tools, whose prompt would show the time; or no time stands in such a prompt.
    return ours if answer.prompt_ids or ours == write(now=ANY_TIME) else []


def borrow_ids(exchanges: Sequence[Exchange]) -> list[Exchange]:
    """Give answers of which tokens are missing those of the same question, asked the other way.

    Both are greedy. So their fields can be judged, but nothing else of them.
    """
    most: dict[str, tuple[int, ...]] = {}
    for one in exchanges:
        most[one.question.name] = max(most.get(one.question.name, ()), one.ids, key=len)
    return [
        one if one.shows_all else replace(one, ids=most[one.question.name]) for one in exchanges
    ]


def explain(checked: Sequence[Checked], tokenizer: Tokenizer) -> list[str]:
    """What is behind the faults, where they say it."""
    wrong = {
        (one.exchange.name, finding.what)
        for one in checked
        for finding in one.findings
        if finding.verdict is Verdict.WRONG
    }
    by_what = {what: [name for name, one in wrong if one == what] for _, what in wrong}
    causes = []
    if "prompt" in by_what:
        causes.append(
            "the server writes other prompts than the model was trained on: its chat template or "
            "its tokenizer is not the model's; start it on the exported folder, without "
            "--chat-template"
        )
    numbers = set(by_what.get("log-probabilities", ())) | set(by_what.get("tokens", ()))
    numbers -= set(by_what.get("prompt", ()))
    if numbers == {"long"}:
        causes.append(
            "only the long prompt is read wrongly: the server computes the rope otherwise beyond "
            "some position; export the model again, so that config.json states a static rope"
        )
    elif numbers:
        causes.append(
            "the server computes another model than the one on disk: other weights, another rope, "
            "a quantisation that is not the model's, or a missing adapter"
        )
    if "end" in by_what:
        causes.append(
            f"the server broke off {len(by_what['end'])} of {len(checked)} answers with an error, "
            "so its clients get parts of them; its log says why, and docs/serving.md what is known "
            "of each engine"
        )
    if "fields" in by_what:
        causes.append(_explain_fields(checked, tokenizer))
    return causes


def _explain_fields(checked: Sequence[Checked], tokenizer: Tokenizer) -> str:
    marks = [mark.strip() for mark in tokenizer.grammar.tools.call_marks]
    marks += TAG.findall(tokenizer.grammar.answers.write("", ""))
    faults = []
    answers = [one.exchange.answer for one in checked]
    if any(mark in (one.content or "") for one in answers for mark in marks):
        faults.append("tags leak into the content")
    for one in checked:
        is_wrong = one.findings[-1].verdict is Verdict.WRONG
        if is_wrong and "calls" in find_wrong_fields(one.exchange, tokenizer):
            has_calls = bool(one.exchange.answer.calls)
            faults.append("arguments of calls are lost" if has_calls else "calls are lost")
    listed = "; ".join(dict.fromkeys(faults)) or "parts of answers lie in the wrong field"
    return (
        f"the server's parsers read answers wrongly: {listed}; see docs/serving.md for what is "
        "known of each engine's parsers"
    )


def explain_adapter(
    exchanges: Sequence[Exchange], reference: Reference, tokenizer: Tokenizer, tolerance: float
) -> list[str]:
    """Whether the server answers as the base model does, and whether one could tell."""
    if reference.base_logprobs is None:
        return []
    tuned, plain, change = [], [], []
    for one, own, base in zip(exchanges, reference.logprobs, reference.base_logprobs, strict=True):
        tuned.append(_mean(errors_of(one, own, tokenizer)))
        plain.append(_mean(errors_of(one, base, tokenizer)))
        change.append(_change(one, own, base, tokenizer))
    if max(change) <= tolerance:
        return [
            f"the adapter changes log-probabilities by {max(change):.4f} at most on these "
            "questions, so nothing shows whether it is served; give --questions FILE with "
            "dialogues like those that it was trained on, or a smaller --tolerance"
        ]
    if sum(plain) < sum(tuned) and max(tuned) > tolerance:
        return [
            "the server answers as the base model without the adapter; name the adapter with "
            "--served_name, or merge it with `hunyuan-train merge`"
        ]
    return []


def _mean(errors: Tensor) -> float:
    return float(errors.mean()) if len(errors) else 0.0


def _change(one: Exchange, own: Tensor, base: Tensor, tokenizer: Tokenizer) -> float:
    """How far the adapter moves the log-probabilities that the server shows, on average.

    Those of the others beside each token, too: the tokens themselves may be certain either way.
    """
    moved = [_mean(errors_of(one, row, tokenizer)) for row in (own, base)]
    ids = list(one.ids)
    places = list(range(len(ids)))
    return max(abs(moved[0] - moved[1]), float((own[places, ids] - base[places, ids]).abs().mean()))


def dump_result(result: CheckResult) -> str:
    """One JSON object."""
    return json.dumps(result.to_json(), ensure_ascii=False)
