"""Compares a server's answers with our own reading of the model: prompt, mode, tokens, fields."""

import json
import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import Any

import torch
from torch import Tensor

from hunyuan_train.data.records.read_back import are_same_calls
from hunyuan_train.data.rendering.prompt import find_opening
from hunyuan_train.families.grammar.tokenizer import Tokenizer
from hunyuan_train.serve.check.client import ServerAnswer, ShownToken
from hunyuan_train.serve.check.questions import CheckQuestion

LARGEST_TO_MEAN = 10  # how many times the mean tolerance a single log-probability may be off
UNLIKELY = -10.0  # below, rounding alone moves a log-probability further than faults do elsewhere
TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d")  # as TIME_FORMAT writes it
HALF_CHARACTER = "\ufffd"  # how decoding shows bytes that are no whole character
TAIL_TOKENS = 24  # of prompts, shown where they differ


class Verdict(StrEnum):
    """What a comparison came to."""

    RIGHT = "right"
    WRONG = "wrong"
    UNKNOWN = "unknown"  # the server does not show what is needed


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One comparison."""

    what: str  # prompt, mode, tokens, log-probabilities, end or fields
    verdict: Verdict
    expected: str = ""
    answered: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Exchange:
    """A question and a server's answer to it."""

    question: CheckQuestion
    is_streamed: bool
    answer: ServerAnswer
    prompt: tuple[int, ...]  # ours; empty where it cannot be known, see `find_time`
    ids: tuple[int, ...]  # of the answer, its stop token included
    shows_all: bool = (
        True  # otherwise some ids are missing, or all are of the same answer elsewhere
    )
    breaks: tuple[str, ...] = ()  # errors with which the server ended this answer, once or more

    @property
    def name(self) -> str:
        """How a table calls it."""
        return f"{self.question.name}{', streamed' if self.is_streamed else ''}"


def find_time(answer: ServerAnswer, tokenizer: Tokenizer) -> str:
    """The time that a server has written into a prompt with tools; "" where it is not shown."""
    found = TIME.findall(tokenizer.decode(list(answer.prompt_ids)))
    return found[-1] if found else ""


def find_ids(answer: ServerAnswer, tokenizer: Tokenizer) -> tuple[int, ...]:
    """The ids of an answer: as shown, or by the bytes of its tokens; empty where those are none."""
    if answer.token_ids:
        return answer.token_ids
    ids = [find_id(one, tokenizer) for one in answer.tokens]
    return tuple(one for one in ids if one is not None) if None not in ids else ()


def find_id(token: ShownToken, tokenizer: Tokenizer) -> int | None:
    """The id of a token that a server shows; None where its bytes are no token's."""
    return _ids_of_bytes(tokenizer).get(token.text) if token.id is None else token.id


@cache
def _ids_of_bytes(tokenizer: Tokenizer) -> dict[bytes, int]:
    return {tokenizer.token_bytes(token): token for token in range(tokenizer.vocab_size)}


def read_text(exchange: Exchange, tokenizer: Tokenizer) -> str:
    """What the model wrote, without its stop token; behind the tags that its prompt ends in."""
    ids = list(exchange.ids)
    opening = find_opening(exchange.answer.prompt_ids or exchange.prompt, tokenizer)
    return opening + tokenizer.decode(ids[:-1] if ids and ids[-1] in tokenizer.stop_ids else ids)


def judge(
    exchange: Exchange, logprobs: Tensor | None, tokenizer: Tokenizer, tolerance: float
) -> list[Finding]:
    """Compare one answer.

    Args:
        exchange: what was asked and answered.
        logprobs: [answer tokens, vocabulary] by our reading; None where there is none.
        tokenizer: of the model.
        tolerance: how far log-probabilities may be off on average.
    """
    largest = LARGEST_TO_MEAN * tolerance
    prompt = judge_prompt(exchange, tokenizer)
    tokens = judge_tokens(exchange, logprobs, tokenizer, largest)
    return [
        prompt,
        judge_mode(exchange, tokenizer, tokens),
        tokens,
        judge_logprobs(exchange, logprobs, tokenizer, tolerance),
        judge_end(exchange),
        judge_fields(exchange, tokenizer),
    ]


def judge_prompt(exchange: Exchange, tokenizer: Tokenizer) -> Finding:
    """What the server fed the model, against what we would."""
    ours, theirs = exchange.prompt, exchange.answer.prompt_ids
    if not ours:
        return Finding(what="prompt", verdict=Verdict.UNKNOWN)
    if theirs:
        if ours == theirs:
            return Finding(what="prompt", verdict=Verdict.RIGHT)
        return Finding(
            what="prompt",
            verdict=Verdict.WRONG,
            expected=f"{len(ours)} tokens, {_show_from(ours, theirs, tokenizer)}",
            answered=f"{len(theirs)} tokens, {_show_from(theirs, ours, tokenizer)}",
        )
    num = exchange.answer.num_prompt_tokens
    if not num or len(ours) == num:
        verdict = Verdict.RIGHT if num else Verdict.UNKNOWN
        return Finding(what="prompt", verdict=verdict)
    return Finding(
        what="prompt",
        verdict=Verdict.WRONG,
        expected=f"{len(ours)} tokens",
        answered=f"{num} tokens",
    )


def _show_from(ids: Sequence[int], others: Sequence[int], tokenizer: Tokenizer) -> str:
    """The text from the first token in which two prompts differ."""
    pairs = zip(ids, others, strict=False)
    start = next((place for place, pair in enumerate(pairs) if pair[0] != pair[1]), len(others))
    shown = tokenizer.decode(list(ids[start : start + TAIL_TOKENS]))
    return f"from token {start} on {shown!r}" if start < len(ids) else f"ends at token {start}"


def judge_mode(exchange: Exchange, tokenizer: Tokenizer, tokens: Finding) -> Finding:
    """Whether the server lets the model think when it must, and only then.

    A model that thinks where it was asked not to, by its own weights, is no fault of its server.
    """
    text = read_text(exchange, tokenizer)
    answer = exchange.answer
    has_thoughts = tokenizer.grammar.parse_output(text).reasoning_content is not None
    thinks = has_thoughts or bool(answer.reasoning)
    must_think = exchange.question.mode == "slow"
    if thinks == must_think or tokens.verdict is Verdict.RIGHT:
        return Finding(what="mode", verdict=Verdict.RIGHT)
    if tokens.verdict is Verdict.UNKNOWN:
        return Finding(what="mode", verdict=Verdict.UNKNOWN)
    words = {True: "thoughts", False: "no thoughts"}
    return Finding(
        what="mode",
        verdict=Verdict.WRONG,
        expected=words[must_think],
        answered=f"{words[thinks]}: {text[:80]!r}",
    )


def judge_tokens(
    exchange: Exchange, logprobs: Tensor | None, tokenizer: Tokenizer, largest: float
) -> Finding:
    """Each token must be the likeliest one, or nearly so."""
    if logprobs is None:
        return Finding(what="tokens", verdict=Verdict.UNKNOWN)
    ids = torch.tensor(exchange.ids)
    best = logprobs.max(dim=-1)
    behind = best.values - logprobs[torch.arange(len(ids)), ids]
    wrong = torch.nonzero(behind > largest)[:, 0].tolist()
    if not wrong:
        return Finding(
            what="tokens", verdict=Verdict.RIGHT, answered=f"{len(ids)} of {len(ids)} are right"
        )
    first = wrong[0]
    expected = tokenizer.decode([int(best.indices[first])])
    answered = tokenizer.decode([exchange.ids[first]])
    return Finding(
        what="tokens",
        verdict=Verdict.WRONG,
        expected=f"{expected!r} as token {first}",
        answered=f"{answered!r}, less likely by {behind[first]:.2f}; {len(wrong)} of {len(ids)} "
        "tokens are wrong",
    )


def errors_of(exchange: Exchange, logprobs: Tensor, tokenizer: Tokenizer) -> Tensor:
    """How far each log-probability that the server shows is from ours: [number of them]."""
    errors = [torch.zeros(0)]
    for token, row in zip(exchange.answer.tokens, logprobs, strict=False):
        shown = [(find_id(one, tokenizer), one.logprob) for one in (token, *token.alternatives)]
        pairs = {one: value for one, value in shown if one is not None and one < len(row)}
        ours = row[list(pairs)]
        theirs = torch.tensor(list(pairs.values()))
        is_likely = (ours > UNLIKELY) | (theirs > UNLIKELY)
        errors.append((ours - theirs).abs()[is_likely])
    return torch.cat(errors)


def judge_logprobs(
    exchange: Exchange, logprobs: Tensor | None, tokenizer: Tokenizer, tolerance: float
) -> Finding:
    """Log-probabilities of the answer's tokens and of the likeliest others at each place."""
    what = "log-probabilities"
    errors = None if logprobs is None else errors_of(exchange, logprobs, tokenizer)
    if errors is None or not len(errors):
        return Finding(what=what, verdict=Verdict.UNKNOWN)
    mean, largest = float(errors.mean()), float(errors.max())
    is_right = mean <= tolerance and largest <= LARGEST_TO_MEAN * tolerance
    return Finding(
        what=what,
        verdict=Verdict.RIGHT if is_right else Verdict.WRONG,
        expected=f"off by {tolerance:g} on average, {LARGEST_TO_MEAN * tolerance:g} at most",
        answered=f"off by {mean:.4f} on average, {largest:.4f} at most, over {len(errors)}",
    )


def judge_end(exchange: Exchange) -> Finding:
    """Whether the answer came to its end each time that it was asked for."""
    if not exchange.breaks:
        return Finding(what="end", verdict=Verdict.RIGHT)
    num_tries = len(exchange.breaks) + (not exchange.answer.error)
    return Finding(
        what="end",
        verdict=Verdict.WRONG,
        expected="a whole answer",
        answered=f"an error, {len(exchange.breaks)} of {num_tries} times: {exchange.breaks[0]}",
    )


def judge_fields(exchange: Exchange, tokenizer: Tokenizer) -> Finding:
    """The fields of the message, against `parse_output` of the same tokens."""
    if not exchange.ids:
        return Finding(what="fields", verdict=Verdict.UNKNOWN)
    answered = _show_fields(_answered_fields(exchange.answer))
    if not find_wrong_fields(exchange, tokenizer):
        return Finding(what="fields", verdict=Verdict.RIGHT, answered=answered)
    expected = _show_fields(_expected_fields(exchange, tokenizer))
    return Finding(what="fields", verdict=Verdict.WRONG, expected=expected, answered=answered)


def find_wrong_fields(exchange: Exchange, tokenizer: Tokenizer) -> list[str]:
    """Which of thoughts, content and calls are not what the answer's tokens say."""
    expected, answered = _expected_fields(exchange, tokenizer), _answered_fields(exchange.answer)
    is_same = operator.eq if exchange.shows_all else _is_like
    wrong = [
        name
        for name, ours, theirs in zip(FIELDS, expected, answered, strict=True)
        if not is_same(_comparable(ours), _comparable(theirs))
    ]
    # A server reads a bare value by the schema of its tool, and `parse_output` has none.
    ours, theirs = _read_calls(expected[-1]), _read_calls(answered[-1])
    if tokenizer.grammar.tools.has_bare_values and are_same_calls(theirs, ours):
        wrong = [name for name in wrong if name != "calls"]
    return wrong


FIELDS = ("thoughts", "content", "calls")
Fields = tuple[str, str, tuple[tuple[str, str], ...]]  # one of each


def _expected_fields(exchange: Exchange, tokenizer: Tokenizer) -> Fields:
    text = read_text(exchange, tokenizer)
    parsed = tokenizer.grammar.parse_output(text, has_tools=bool(exchange.question.tools))
    calls = tuple((call.name, call.arguments) for call in parsed.tool_calls)
    return parsed.reasoning_content or "", parsed.content or "", calls


def _answered_fields(answer: ServerAnswer) -> Fields:
    return answer.reasoning or "", answer.content or "", answer.calls


def _comparable(field: object) -> object:
    """Texts without half a character at their end, and calls with their arguments read.

    vLLM shows the bytes of a character only once all are there, and an answer may be cut between
    them. JSON may be spaced and escaped in several ways.
    """
    if isinstance(field, str):
        return field.rstrip(HALF_CHARACTER)
    return _read_calls(field) if isinstance(field, tuple) else field


def _read_calls(calls: tuple[tuple[str, str], ...]) -> list[tuple[str, Any]]:
    return [(name, _read_arguments(arguments)) for name, arguments in calls]


def _is_like(expected: object, answered: object) -> bool:
    """Whether two fields are the same, where some bytes of the expected one are not known."""
    if isinstance(expected, str) and isinstance(answered, str):
        parts = [re.escape(one) for one in re.split(f"{HALF_CHARACTER}+", expected)]
        return re.fullmatch(".+?".join(parts), answered, re.DOTALL) is not None
    if isinstance(expected, list | tuple) and isinstance(answered, list | tuple):
        return len(expected) == len(answered) and all(map(_is_like, expected, answered))
    if isinstance(expected, dict) and isinstance(answered, dict):
        return expected.keys() == answered.keys() and all(
            _is_like(value, answered[name]) for name, value in expected.items()
        )
    return expected == answered


def _read_arguments(arguments: str) -> object:
    try:
        read: object = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    return read


def _show_fields(fields: Fields) -> str:
    thoughts, content, calls = fields
    parts = [f"thoughts {thoughts!r}"] if thoughts else []
    parts += [f"content {content!r}"] if content else []
    parts += [f"call {name}({arguments})" for name, arguments in calls]
    return ", ".join(parts) or "nothing"
