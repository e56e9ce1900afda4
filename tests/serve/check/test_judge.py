"""What the check finds in answers that are wrong in one way."""

from dataclasses import replace

import pytest
import torch

from hunyuan_train.families.grammar.find import load_tokenizer
from hunyuan_train.serve.check.client import ServerAnswer, ShownToken
from hunyuan_train.serve.check.judge import Exchange, Finding, judge, judge_fields
from hunyuan_train.serve.check.questions import list_questions
from hunyuan_train.shipped import TINY_TOKENIZER

TOKENIZER = load_tokenizer(TINY_TOKENIZER)
CALL = '<tool_calls>[{"name": "f", "arguments": {"a": {"b": 1}}}]</tool_calls>'
TEXT = TOKENIZER.grammar.answers.write("", CALL)
IDS = (*TOKENIZER.encode(TEXT), TOKENIZER.eos_id)
PROMPT = (1, 2, 3)


@pytest.fixture
def logprobs() -> torch.Tensor:
    scores = torch.randn(len(IDS), TOKENIZER.vocab_size, generator=torch.Generator().manual_seed(0))
    scores[torch.arange(len(IDS)), torch.tensor(IDS)] += 9
    return scores.log_softmax(-1)


def answer_of(logprobs: torch.Tensor) -> ServerAnswer:
    shown = [
        ShownToken(text=TOKENIZER.token_bytes(one), logprob=float(row[one]))
        for one, row in zip(IDS, logprobs, strict=True)
    ]
    return ServerAnswer(
        reasoning=None,
        content=None,
        calls=(("f", '{"a":{"b":1}}'),),
        finish_reason="tool_calls",
        tokens=tuple(shown),
        token_ids=IDS,
        prompt_ids=PROMPT,
    )


def wrong(answer: ServerAnswer, logprobs: torch.Tensor) -> list[str]:
    [question] = [
        one for one in list_questions(TOKENIZER, num_long_tokens=0) if one.name == "fast, tools"
    ]
    exchange = Exchange(question=question, is_streamed=False, answer=answer, prompt=PROMPT, ids=IDS)
    found: list[Finding] = judge(exchange, logprobs, TOKENIZER, 0.01)
    return [one.what for one in found if one.verdict == "wrong"]


def test_the_right_answer_has_no_fault(logprobs: torch.Tensor) -> None:
    assert wrong(answer_of(logprobs), logprobs) == []


def test_each_fault_is_found_where_it_is(logprobs: torch.Tensor) -> None:
    right = answer_of(logprobs)
    empty = replace(right, calls=(("f", ""),))
    assert wrong(empty, logprobs) == ["fields"]
    assert wrong(replace(right, content="<answer>"), logprobs) == ["fields"]
    assert wrong(replace(right, prompt_ids=(1, 2)), logprobs) == ["prompt"]
    other = logprobs.roll(1, dims=-1)  # another model finds these tokens unlikely
    assert wrong(right, other) == ["tokens", "log-probabilities"]
    scaled = (2 * logprobs).log_softmax(-1)
    assert wrong(right, scaled) == ["log-probabilities"]
    assert wrong(replace(right, reasoning="r"), other)[0] == "mode"


def test_answer_that_is_cut_within_a_character_has_its_fields_right() -> None:
    half = TOKENIZER.encode("<answer>\nA 猫")[:-1]
    assert TOKENIZER.decode(half).endswith("A \ufffd")
    question = list_questions(TOKENIZER, num_long_tokens=0)[2]
    answer = ServerAnswer(reasoning=None, content="<answer>\nA ", calls=(), finish_reason="length")
    exchange = Exchange(
        question=question, is_streamed=False, answer=answer, prompt=PROMPT, ids=tuple(half)
    )
    assert judge_fields(exchange, TOKENIZER).verdict == "right"
    lost = replace(exchange, answer=replace(answer, content="<answer>\n"))
    assert judge_fields(lost, TOKENIZER).verdict == "wrong"
