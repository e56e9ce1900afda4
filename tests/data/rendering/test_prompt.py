import pytest

from hunyuan_train.data.rendering.prompt import encode_prompt, render_prompt
from hunyuan_train.errors import DataError
from hunyuan_train.families.grammar.hunyuan_a13b.grammar import HUNYUAN_A13B
from hunyuan_train.families.grammar.hunyuan_a13b.template import render
from hunyuan_train.families.grammar.hunyuan_a13b.tokens import START, USER_END
from tests.data.dialogues import NOW, TOOL_TURNS, TWO_SLOW_TURNS, WEATHER, chat, read


def _texts(record):
    rendering = render(read(record))
    return [
        "".join(segment.text for segment in rendering.sample(index))
        for index in range(len(rendering.targets))
    ]


def _prompt(messages, **options):
    return "".join(segment.text for segment in render_prompt(messages, HUNYUAN_A13B, **options))


def test_a_prompt_is_the_beginning_of_the_sample_that_teaches_its_answer():
    messages = TWO_SLOW_TURNS["messages"]
    for index, sample in ((2, 0), (4, 1)):
        text = _texts(TWO_SLOW_TURNS)[sample]
        prompt = _prompt(messages[:index], mode="slow")
        assert text.startswith(prompt)
        assert prompt.endswith("<|extra_0|>")
    fast = chat("a", "b", "c", "d", mode="fast")
    assert _texts(fast)[1].startswith(_prompt(fast["messages"][:3], mode="fast"))
    tools = TOOL_TURNS["messages"][:3]
    assert _texts(TOOL_TURNS)[1].startswith(_prompt(tools, tools=[WEATHER], now=NOW))


def test_a_prompt_keeps_the_mode_of_each_query_as_it_was_sent():
    turns = [
        {"role": "user", "content": "/no_think a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    assert _prompt(turns).endswith("b<|eos|><|startoftext|>c<|extra_0|>")
    turns[0]["content"], turns[2]["content"] = "a", "/no_think c"
    assert _prompt(turns).startswith("<|startoftext|>a<|extra_0|>")


def test_a_prompt_strips_tags_from_earlier_answers():
    messages = chat("a", "<think>\nr\n</think>\n<answer>\nb\n</answer>", "c")["messages"]
    assert "think" not in _prompt(messages)


@pytest.mark.parametrize(
    ("messages", "options", "message"),
    [
        (chat("a", "b")["messages"], {}, "last message of a prompt"),
        (chat("a")["messages"], {"tools": [WEATHER]}, "give now"),
        (chat("")["messages"], {}, "a question without text"),
        ([{"role": "gpt", "content": "a"}], {}, "unknown role"),
        ([], {}, "no messages"),
    ],
)
def test_a_prompt_that_cannot_be_rendered_is_refused(messages, options, message):
    with pytest.raises(DataError, match=message):
        render_prompt(messages, HUNYUAN_A13B, **options)


def test_a_prompt_ends_where_the_model_goes_on(tokenizer):
    ids = encode_prompt(chat("Hi", system="S")["messages"], tokenizer, mode="fast")
    assert ids[0] == tokenizer.special_id(START)
    assert ids[-1] == tokenizer.special_id(USER_END)
    assert tokenizer.decode(ids).endswith("/no_think Hi<|extra_0|>")


def test_a_prompt_takes_calls_and_results_as_a_server_does():
    function = {"name": "get_weather", "arguments": {}}
    tool = {"function": {**WEATHER["function"], "parameters": {"required": ["city"]}}}
    messages = [
        {"role": "user", "content": "Q", "audio": "x"},
        {
            "role": "assistant",
            "content": "",
            "refusal": "no",
            "tool_calls": [{"id": one, "function": function, "logprob": -1} for one in ("1", "2")],
        },
        {"role": "tool", "tool_call_id": "2", "content": "second"},
        {"role": "tool", "tool_call_id": "1", "content": "first"},
    ]
    text = _prompt(messages, tools=[tool], now=NOW)
    assert 0 < text.index("second") < text.index("first")
