"""What the check says is behind the faults that it finds."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from hunyuan_train.families.grammar.find import load_tokenizer
from hunyuan_train.serve.check.client import ServerAnswer, ShownToken
from hunyuan_train.serve.check.judge import HALF_CHARACTER, Exchange, judge, judge_fields
from hunyuan_train.serve.check.questions import list_questions
from hunyuan_train.serve.check.reference import Reference
from hunyuan_train.serve.check.run import (
    Checked,
    CheckSettings,
    ask,
    borrow_ids,
    explain,
    explain_adapter,
)
from hunyuan_train.serve.errors import ServeError
from hunyuan_train.shipped import TINY_TOKENIZER

TOKENIZER = load_tokenizer(TINY_TOKENIZER)
TOLERANCE = 0.01
QUESTIONS = {one.name: one for one in list_questions(TOKENIZER, num_long_tokens=64)}
IDS = (*TOKENIZER.encode(TOKENIZER.grammar.answers.write("", "A lamb.")), TOKENIZER.eos_id)


def make_logprobs(seed: int) -> Tensor:
    """A model's, for which the answer is certain, and other tokens are as it thinks."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(len(IDS), TOKENIZER.vocab_size, generator=generator)
    scores[torch.arange(len(IDS)), torch.tensor(IDS)] = 9.0
    return scores.log_softmax(-1)


def make_exchange(name: str, served: Tensor, prompt: tuple[int, ...] = (1, 2)) -> Exchange:
    """An answer of a server that computes those log-probabilities, and shows the best five."""
    shown = []
    for token, row in zip(IDS, served, strict=True):
        others = [
            ShownToken(text=TOKENIZER.token_bytes(int(one)), logprob=float(row[one]), id=int(one))
            for one in row.topk(5).indices
        ]
        shown.append(
            ShownToken(text=b"", logprob=float(row[token]), id=token, alternatives=tuple(others))
        )
    answer = ServerAnswer(
        reasoning=None,
        content="A lamb.",
        calls=(),
        finish_reason="stop",
        tokens=tuple(shown),
        token_ids=IDS,
        prompt_ids=prompt,
    )
    return Exchange(
        question=QUESTIONS[name], is_streamed=False, answer=answer, prompt=(1, 2), ids=IDS
    )


def causes(own: Tensor, *exchanges: Exchange) -> list[str]:
    checked = [Checked(one, judge(one, own, TOKENIZER, TOLERANCE)) for one in exchanges]
    return explain(checked, TOKENIZER)


@pytest.fixture
def own() -> Tensor:
    return make_logprobs(0)


def test_right_answers_need_no_cause(own: Tensor) -> None:
    assert causes(own, make_exchange("fast", own), make_exchange("long", own)) == []


def test_what_is_wrong_in_the_long_prompt_alone_is_the_rope(own: Tensor) -> None:
    other = make_exchange("long", make_logprobs(1))
    [cause] = causes(own, make_exchange("fast", own), other)
    assert "export the model again, so that config.json states a static rope" in cause
    [cause] = causes(own, make_exchange("fast", make_logprobs(1)), other)
    assert "other weights" in cause


def test_another_prompt_is_the_template_and_no_other_weights(own: Tensor) -> None:
    [cause] = causes(own, make_exchange("fast", make_logprobs(1), prompt=(1, 2, 3)))
    assert "chat template" in cause


def test_an_answer_of_which_tokens_are_missing_is_judged_by_its_fields(own: Tensor) -> None:
    whole = make_exchange("fast, tools", own)
    bare = replace(whole.answer, tokens=(), token_ids=(), prompt_ids=())
    stream = replace(whole, is_streamed=True, answer=bare, ids=(), shows_all=False)
    for said, verdict in (("A lamb.", "right"), ("A", "wrong")):
        asked = replace(stream, answer=replace(bare, content=said))
        _, borrowed = borrow_ids([whole, asked])
        found = {one.what: one.verdict for one in judge(borrowed, None, TOKENIZER, TOLERANCE)}
        unknown = dict.fromkeys(("prompt", "tokens", "log-probabilities"), "unknown")
        assert found == {**unknown, "mode": "right", "end": "right", "fields": verdict}


@pytest.mark.parametrize(
    ("arguments", "verdict"),
    [
        ('{"city": "🦙", "day": 1}', "right"),
        ('{"city": "", "day": 1}', "wrong"),
        ('{"city": "🦙"}', "wrong"),
    ],
)
def test_what_is_left_of_characters_stands_for_any(arguments: str, verdict: str) -> None:
    call = '<tool_calls>[{"name": "f", "arguments": {"city": "🦙", "day": 1}}]</tool_calls>'
    tokens = TOKENIZER.encode(TOKENIZER.grammar.answers.write("", call))
    *hidden, _ = [i for i, one in enumerate(tokens) if HALF_CHARACTER in TOKENIZER.decode([one])]
    assert hidden
    answer = ServerAnswer(
        reasoning=None, content=None, calls=(("f", arguments),), finish_reason="tool_calls"
    )
    exchange = Exchange(
        question=QUESTIONS["fast, tools"],
        is_streamed=False,
        answer=answer,
        prompt=(),
        ids=tuple(one for i, one in enumerate(tokens) if i not in hidden),
        shows_all=False,
    )
    assert judge_fields(exchange, TOKENIZER).verdict == verdict


def test_a_server_that_refuses_log_probabilities_is_asked_without() -> None:
    class LlamaServer:
        """As llama.cpp's."""

        def ask(self, request: dict[str, Any], *, is_streamed: bool) -> ServerAnswer:
            if is_streamed and "tools" in request and "logprobs" in request:
                raise ServeError("refuses with 400: logprobs is not supported with tools + stream")
            return ServerAnswer(reasoning=None, content="A", calls=(), finish_reason="stop")

    settings = CheckSettings(max_new_tokens=9, num_long_tokens=0, questions=None, tolerance=0.1)
    for name in ("fast", "fast, tools"):
        given = (QUESTIONS[name], TOKENIZER, settings, lambda _: None)
        assert ask(LlamaServer(), *given, is_streamed=True).answer.content == "A"


class Breaking:
    """Ends an answer with an error, so many times."""

    def __init__(self, num_breaks: int) -> None:
        self.num_breaks = num_breaks

    def ask(self, _: object, *, is_streamed: bool) -> ServerAnswer:
        assert is_streamed
        self.num_breaks -= 1
        answer = make_exchange("fast", make_logprobs(0)).answer
        if self.num_breaks < 0:
            return answer
        return replace(answer, content="A", token_ids=IDS[:3], error="BadRequestError")


@pytest.mark.parametrize(("num_breaks", "tokens"), [(0, "right"), (2, "right"), (9, "unknown")])
def test_an_answer_that_breaks_off_is_asked_again_and_told(
    num_breaks: int, tokens: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hunyuan_train.serve.check.run.PAUSE_SECONDS", 0.0)
    settings = CheckSettings(max_new_tokens=9, num_long_tokens=0, questions=None, tolerance=0.1)
    given = (QUESTIONS["fast"], TOKENIZER, settings, lambda _: None)
    exchange = ask(Breaking(num_breaks), *given, is_streamed=True)
    [_, borrowed] = borrow_ids([make_exchange("fast", make_logprobs(0)), exchange])
    own = make_logprobs(0) if exchange.shows_all else None
    checked = Checked(borrowed, judge(borrowed, own, TOKENIZER, TOLERANCE))
    found = {one.what: one for one in checked.findings}
    assert found["tokens"].verdict == tokens
    assert found["end"].verdict == ("wrong" if num_breaks else "right")
    assert found["fields"].verdict == ("right" if tokens == "right" else "wrong")
    causes = [one for one in explain([checked], TOKENIZER) if "chat template" not in one]
    assert any("broke off 1 of 1 answers" in one for one in causes) == bool(num_breaks)
    if num_breaks == 2:
        assert found["end"].answered == "an error, 2 of 3 times: BadRequestError"


def explained(own: Tensor, base: Tensor, served: Tensor) -> list[str]:
    exchange = make_exchange("fast", served)
    return explain_adapter([exchange], Reference([own], [base]), TOKENIZER, TOLERANCE)


def test_a_server_that_lost_its_adapter_is_told_from_one_that_serves_it(own: Tensor) -> None:
    base = make_logprobs(1)  # as certain of the answer: only the other tokens tell the two apart
    assert explained(own, base, own) == []
    [cause] = explained(own, base, base)
    assert "as the base model without the adapter" in cause


def test_an_adapter_that_changes_nothing_cannot_be_told(own: Tensor) -> None:
    [cause] = explained(own, own, own)
    assert "nothing shows whether it is served" in cause
