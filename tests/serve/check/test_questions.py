"""How each mode is asked for: by the query itself, or by what its model's template is told."""

import json
from pathlib import Path

import pytest

from hunyuan_train.data.records.record import Reading, read_dialogue
from hunyuan_train.data.rendering.encode import encode_renderings
from hunyuan_train.data.rendering.prompt import encode_prompt, find_opening
from hunyuan_train.families.grammar.find import load_tokenizer
from hunyuan_train.families.grammar.tokenizer import Tokenizer
from hunyuan_train.serve.check.client import ServerAnswer
from hunyuan_train.serve.check.judge import Exchange, find_wrong_fields
from hunyuan_train.serve.check.questions import list_questions, read_questions
from hunyuan_train.serve.check.run import write_prompt
from hunyuan_train.shipped import TINY_TOKENIZER
from tests.families.grammar.test_new_tokens import without_gaps

EFFORTS = {"slow": "high", "fast": "no_think"}


@pytest.fixture(scope="module")
def hy3(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(without_gaps(tmp_path_factory.mktemp("hy3") / "words"))


def test_a_query_asks_or_the_template_is_told(hy3: Tokenizer) -> None:
    for question in list_questions(load_tokenizer(TINY_TOKENIZER), num_long_tokens=9):
        request = question.to_request(max_new_tokens=9, num_alternatives=0)
        assert "chat_template_kwargs" not in request
        is_asked = "/no_think" in question.messages[-1]["content"]
        assert is_asked == (question.mode == "fast")
    for question in list_questions(hy3, num_long_tokens=9):
        request = question.to_request(max_new_tokens=9, num_alternatives=0)
        assert request["chat_template_kwargs"] == {"reasoning_effort": EFFORTS[question.mode]}
        assert "/no_think" not in str(question.messages)


def test_what_of_an_answer_stands_in_its_prompt(hy3: Tokenizer) -> None:
    for question in list_questions(hy3, num_long_tokens=0):
        answer = ServerAnswer(reasoning=None, content=None, calls=(), finish_reason="stop")
        prompt = write_prompt(question, answer, hy3)  # which shows no time, tools or not
        opened = "<think:opensource>"
        expected = opened if question.mode == "slow" else f"{opened}</think:opensource>"
        assert find_opening(prompt, hy3) == expected
        assert find_opening(prompt[:-1], hy3) == (opened if question.mode == "fast" else "")
    tiny = load_tokenizer(TINY_TOKENIZER)
    messages = [{"role": "user", "content": "Hello"}]
    assert find_opening(encode_prompt(messages, tiny), tiny) == ""


@pytest.mark.parametrize(
    ("arguments", "wrong"), [('{"day": "5"}', []), ('{"day": 5}', []), ('{"day": "6"}', ["calls"])]
)
def test_a_server_reads_bare_values_by_their_schema(
    arguments: str, wrong: list[str], hy3: Tokenizer
) -> None:
    tools = next(one for one in list_questions(hy3, num_long_tokens=0) if one.name == "fast, tools")
    calls = [{"function": {"name": "book_table", "arguments": {"day": "5"}}}]
    answer = {"role": "assistant", "content": "", "tool_calls": calls}
    record = {"messages": [*tools.messages, answer], "tools": tools.tools, **tools.options}
    dialogue = read_dialogue(record, Reading(hy3.grammar), [])
    sample = encode_renderings([hy3.grammar.render(dialogue)], hy3).sample(0)
    served = ServerAnswer(
        reasoning=None, content=None, calls=(("book_table", arguments),), finish_reason="tool_calls"
    )
    exchange = Exchange(
        question=tools,
        is_streamed=False,
        answer=served,
        prompt=tuple(sample.tokens[sample.spans == 0].tolist()),
        ids=tuple(sample.tokens[sample.spans != 0].tolist()),
    )
    assert find_wrong_fields(exchange, hy3) == wrong


@pytest.mark.parametrize(
    ("fields", "effort"),
    [
        ({"mode": "slow"}, "high"),
        ({"mode": "fast"}, "no_think"),
        ({"reasoning_effort": "low"}, "low"),
        ({"effort": "high"}, "high"),
        ({}, "no_think"),
    ],
)
def test_a_record_says_how_much_to_think(
    fields: dict[str, str], effort: str, hy3: Tokenizer, tmp_path: Path
) -> None:
    record = {"messages": [{"role": "user", "content": "Hello"}], **fields}
    (tmp_path / "asked.jsonl").write_text(json.dumps(record))
    [question] = read_questions(tmp_path / "asked.jsonl", hy3.grammar)
    assert question.options == {"reasoning_effort": effort}
    assert question.mode == ("fast" if effort == "no_think" else "slow")
