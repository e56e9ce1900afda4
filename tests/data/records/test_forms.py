import pytest

from hunyuan_train.families.grammar.dialogue import ToolCall
from tests.data.dialogues import chat, kinds_of, problems_of, read

TURNS = [("user", "Q"), ("assistant", "A")]


def _turns(record, **reading):
    return [(message.role, message.content) for message in read(record, **reading).messages]


@pytest.mark.parametrize(
    ("record", "form"),
    [
        (chat("Q", "A"), "messages"),
        (chat("Q", "A")["messages"], "messages"),
        ({"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]}, None),
        ({"messages": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]}, None),
        ({"conversations": chat("Q", "A")["messages"]}, "conversations"),
        ({"messages": '[{"role":"user","content":"Q"},{"role":"assistant","content":"A"}]'}, None),
        ({"instruction": "Q", "input": "", "output": "A"}, "Alpaca"),
        ({"prompt": "Q", "completion": "A"}, "prompt/completion"),
        ({"question": "Q", "answer": "A"}, "question/answer"),
        (
            {
                "prompt": [{"role": "user", "content": "Q"}],
                "completion": [{"role": "assistant", "content": "A"}],
            },
            "prompt/completion",
        ),
    ],
)
def test_every_form_gives_the_same_dialogue(record, form):
    assert _turns(record) == TURNS
    if form:
        assert read(record).form == form


def test_a_converted_form_is_reported():
    assert "converted" in kinds_of({"prompt": "Q", "completion": "A"})
    assert "converted" not in kinds_of(chat("Q", "A"))


def test_alpaca_joins_instruction_and_input_and_keeps_system_and_history():
    record = {
        "system": "S",
        "instruction": "Translate.",
        "input": "bonjour",
        "output": "hello",
        "history": [["a", "b"]],
    }
    assert _turns(record) == [
        ("system", "S"),
        ("user", "a"),
        ("assistant", "b"),
        ("user", "Translate.\n\nbonjour"),
        ("assistant", "hello"),
    ]


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning", "thinking", "think"])
def test_thoughts_in_a_field_make_a_slow_answer(field):
    flat = read({"question": "Q", field: "r", "answer": "A"})
    message = {"role": "assistant", "content": "A", field: "r"}
    inside = read({"messages": [{"role": "user", "content": "Q"}, message]})
    beside = read({"messages": [{"role": "user", "content": "Q"}], field: "r", "answer": "A"})
    for dialogue in (flat, inside, beside):
        last = dialogue.messages[-1]
        assert (last.content, last.thoughts, last.mode) == ("A", "r", "slow")


def test_sharegpt_calls_and_observations_become_tool_turns():
    record = {
        "tools": '[{"name": "f", "parameters": {}}]',
        "system": "S",
        "conversations": [
            {"from": "human", "value": "Q"},
            {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
            {"from": "observation", "value": "R"},
            {"from": "gpt", "value": "A"},
        ],
    }
    dialogue = read(record)
    assert [m.role for m in dialogue.messages] == [
        "system",
        "user",
        "assistant",
        "tool",
        "assistant",
    ]
    assert dialogue.messages[2].tool_calls == [ToolCall("f", '{"x": 1}')]
    assert dialogue.tools == [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    assert kinds_of(record) == {"converted"}


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"foo": 1, "bar": 2}, "keys found: foo, bar"),
        ({"text": None}, "keys found: text"),
        ({}, "keys found: none"),
        ("a string", "this one is a string"),
        (7, "this one is a number"),
        (None, "this one is null"),
        ({"messages": 5}, "here it is a number"),
        ({"messages": "not json"}, "here it is a string"),
        ({"instruction": "Q"}, "without output"),
        ({"instruction": "Q", "output": "A", "history": "x"}, "pairs"),
    ],
)
def test_an_unknown_form_is_named_with_what_was_found(record, reason):
    problems = problems_of(record)
    assert [problem.kind for problem in problems] == ["form"]
    assert reason in problems[0].reason


def test_an_answer_beside_finished_messages_is_refused_unless_it_says_the_same():
    record = {**chat("Q", "A"), "answer": "B"}
    assert _turns(record) == TURNS
    assert {"unread_text"} == kinds_of(record)
    assert {"unused_field"} == kinds_of({**record, "answer": " A"})


@pytest.mark.parametrize("field", ["output", "completion", "answer"])
@pytest.mark.parametrize("empty", ["", None])
def test_an_empty_answer_is_called_so_in_every_form(field, empty):
    question = "instruction" if field == "output" else "question"
    assert kinds_of({question: "Q", field: empty}) >= {"empty_answer"}
    assert "form" not in kinds_of({question: "Q", field: empty})
    assert "form" in kinds_of({question: "Q"})  # no such column at all
    assert _turns({"messages": chat("Q", "A")["messages"], field: None}) == TURNS


@pytest.mark.parametrize(
    "extra",
    [
        {"parallel_tool_calls": False},
        {"margin": 1},
        {"margin": 0.5, "tool_choice": "auto"},
        {"stream": True, "n": 1, "top_k": 20, "presence_penalty": 0},
    ],
)
def test_options_of_a_request_are_about_the_record(extra):
    assert kinds_of({**chat("Q", "A"), **extra}) == kinds_of(chat("Q", "A")) | {"unused_field"}


@pytest.mark.parametrize(
    "extra", [{"margin": "a note"}, {"tool_choice": {"name": "f"}}, {"parallel_tool_call": [1]}]
)
def test_options_that_say_more_are_refused(extra):
    assert "unread_text" in kinds_of({**chat("Q", "A"), **extra})


def test_a_system_message_alone_has_one_error():
    record = {"messages": [{"role": "system", "content": "S"}]}
    (problem,) = problems_of(record)
    assert (problem.kind, problem.reason) == ("no_answer", "a system message and no more")
