# ruff: noqa: RUF001  # marks in the brackets in which data sets have them
"""Thoughts, modes, marks and texts of another type, as public data sets have them."""

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hunyuan_train.data.compiled.compile import read_records
from hunyuan_train.data.findings import build_policies
from hunyuan_train.data.reading.readers import Chunk, read_chunks
from hunyuan_train.data.records.record import Reading
from hunyuan_train.families.grammar.hunyuan_a13b.grammar import HUNYUAN_A13B
from hunyuan_train.families.grammar.hunyuan_a13b.template import render
from hunyuan_train.families.grammar.tokenizer import to_nfc
from tests.data.dialogues import call, chat, plain_text

FOLDER = Path(__file__).resolve().parents[2] / "cases"


def slow(thoughts, answer):
    return f"<think>\n{thoughts}\n</think>\n<answer>\n{answer}\n</answer><|eos|>"


def fast(answer):
    return slow("", answer)


CALL = '<tool_calls>[{"name": "w", "arguments": {"c": "x"}}]</tool_calls>'
ASSISTANT = HUNYUAN_A13B.tools.labels["assistant"]
ASKED = {"untagged"}

# For each record of a file: what its answers teach, one text a sample, or why it is refused.
OUTCOMES = {
    "a08_thinking_tag": [{"foreign_markers", "untagged"}],
    "a11_missing_open": [{"unopened_think"}],
    "a12_two_blocks": [{"think_blocks"}],
    "a13_think_no_answer": [{"empty_answer"}],
    "a14_think_unclosed": [{"unclosed_tag", "empty_answer"}],
    "a15_reasoning_off": [[fast("4")]],
    "a16_reasoning_on_tags": [[slow("Add.", "4")]],
    "a18_kwargs_thinking_false": [[fast("4")]],
    "a43_hermes_xml": [{"foreign_markers", "tools"}],
    "a48_alpaca_numbers": [ASKED],
    "a49_alpaca_instruction_null": [ASKED],
    "a50_no_think_suffix": [{"mode"}, [slow("Add.", "4")]],
    "a56_mode_values": [{"mode"}],
    "a58_number_content": [ASKED],
    "a69_reasoning_content_and_answer_tag": [[slow("Add.", "4")]],
    "b01_response_list": [{"content_type"}],
    "b04_input_number": [ASKED],
    "b05_reasoning_has_tags": [[slow("Add.", "4")]],
    "b07_reasoning_answer_nl": [[slow("Add.", "4")]],
    "b10_think_in_user": [[slow("Add.", "4")]],
    "b11_text_after_think_before": [{"tags"}],
    "b35_think_unicode_ws": [{"tags"}],
    "b37_THINK_caps": [[slow("x", "y")]],
    "b39_escaped_newlines": [{"tags"}],
    "b43_boxed": [[slow("x", "\\boxed{4}")]],
    "b44_response_dict": [{"content_type"}],
    "b45_question_answer_thinking_list": [{"content_type"}],
    "b48_hunyuan_vendor": [[fast("b")]],
    "b49_think_false_record": [[fast("a")]],
    "d10_tool_calls_with_thinking_content_tags": [
        [slow("need tool", CALL), slow("ok", f"{ASSISTANT}S.")]
    ],
    "d11_calls_unclosed_think": [{"unclosed_tag"}],
    "d12_qwen_xml_call_no_result": [{"foreign_markers", "untagged"}],
    "d13_tools_answer_only_foreign": [{"foreign_markers", "untagged"}],
    "d14_vendor_tool_text": [[slow("need", CALL)]],
    "d18_history_think_last_only": [[slow("x", "d")]],
    "d19_multi_all_think": [[slow("y", "b"), slow("x", "d")]],
    "d20_think_first_only": [[slow("y", "b")]],
    "d21_fast_and_slow_mixed": [[fast("b"), slow("x", "d")]],
    "d22_user_no_think_answer_think": [{"mode"}],
    "d23_no_think_in_system": [ASKED],
    "d24_no_think_variant": [ASKED, ASKED, [fast("b")], [fast("b")]],
    "d25_mode_fast_user_suffix": [[fast("b")]],
    "d26_extra_think_in_answer": [ASKED],
    "d27_answer_mentions_answer_tag": [[fast("Use the <answer> tag.")]],
    "d28_answer_in_think": [[slow("I write <answer> later", "b")]],
    "d30_null_string_answer": [[fast("null")], [fast("nan")], [fast("None")]],
    "d37_query_answer_reasoning": [[slow("r", "a")]],
    "d40_unused_typo_mode": [{"unread_text", "untagged"}],
    "e06_prompt_msgs_think_str": [[slow("r", "a")]],
    "e07_multiple_answers_same_prompt": [{"content_type"}],
    "e08_content_parts_mixed_nl": [ASKED],
}


def _taught(dialogue):
    rendering = render(dialogue)
    return [
        "".join(segment.text for segment in target.segments if segment.weight)
        for target in rendering.targets
    ]


def _read(chunk, policy=None, **reading):
    findings = []
    policies = build_policies(policy)
    records = list(
        read_records(chunk, Reading(HUNYUAN_A13B, **reading), policies, findings, Counter())
    )
    return records, findings


def read_one(record, policy=None, **reading):
    """What a record teaches, or the kinds of finding that refuse it."""
    records, findings = _read(Chunk("f", [1], [json.dumps(record).encode()]), policy, **reading)
    refused = {one.kind for one in findings if one.action in ("error", "drop")}
    return _taught(records[0].dialogue) if records else refused


@pytest.mark.parametrize("name", OUTCOMES)
def test_a_given_file_has_its_right_outcome(name):
    outcomes = []
    for chunk in read_chunks(FOLDER / f"{name}.jsonl"):
        for raw in chunk.records:
            records, findings = _read(Chunk("f", [1], [raw]))
            refused = {one.kind for one in findings if one.action == "error"}
            outcomes.append(_taught(records[0].dialogue) if records else refused)
    assert outcomes == OUTCOMES[name]


def _questions(record, **reading):
    [one], _ = _read(Chunk("f", [1], [json.dumps(record).encode()]), **reading)
    return [message.content for message in one.dialogue.messages if message.role == "user"]


@pytest.mark.parametrize(
    ("record", "question", "answer"),
    [
        ({"instruction": "Double", "input": 21, "output": 42}, "Double\n\n21", "42"),
        ({"instruction": 7, "input": 0, "output": 0}, "7\n\n0", "0"),
        ({"instruction": 7, "input": "", "output": "x"}, "7", "x"),
        ({"instruction": ["Q"], "input": 2.5, "output": ["A"]}, "Q\n\n2.5", "A"),
        ({"prompt": 10**20, "completion": -1.5}, "100000000000000000000", "-1.5"),
        ({"question": 1, "answer": 2}, "1", "2"),
        ({"conversations": [{"from": "human", "value": 1}, {"from": "gpt", "value": 2}]}, "1", "2"),
        (
            chat([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], ["c"]),
            "a\nb",
            "c",
        ),
    ],
)
def test_another_type_with_one_reading_is_read(record, question, answer):
    assert read_one(record, mode="plain") == [f"{answer}<|eos|>"]
    assert _questions(record, mode="plain") == [question]


@pytest.mark.parametrize("value", [True, False, {"text": "x"}, ["a", "b"], [1], [None]])
@pytest.mark.parametrize(
    "make",
    [
        lambda value: {"instruction": "Q", "input": value, "output": "A"},
        lambda value: {"instruction": value, "input": "x", "output": "A"},
        lambda value: {"instruction": "Q", "output": value},
        lambda value: {"instruction": "Q", "output": "A", "system": value},
        lambda value: {"prompt": value, "completion": "A"},
        lambda value: {"prompt": "Q", "completion": value},
        lambda value: {"instruction": "Q", "output": "A", "history": [["q", value]]},
        lambda value: chat(value, "A"),
        lambda value: chat("Q", value),
    ],
)
def test_another_type_with_no_reading_or_several_is_refused(make, value):
    outcome = read_one(make(value), mode="plain")
    assert isinstance(outcome, set), "the value vanished or was guessed"
    assert outcome <= {"content_type", "form", "role", "repeated_role"}


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning", "thinking", "think"])
@pytest.mark.parametrize(
    ("flag", "mode"),
    [
        ("off", "fast"), (False, "fast"), ("False", "fast"), ("disabled", "fast"),
        ({"type": "disabled"}, "fast"), ("on", "slow"), (True, "slow"), ("enabled", "slow"),
        ("high", None), ("auto", None), (0, None), (1, None), ("N/A", None), ("nan", None),
        ("-", None), ("...", None), ("0", None), ("Disabled.", "fast"), ("No thinking", None),
        ("detailed thinking off", "fast"), ("detailed thinking on.", "slow"),
    ],
)  # fmt: skip
def test_a_flag_is_a_mode_or_refused_and_never_taught(field, flag, mode):
    beside = {**chat("Q", "<think>\nr\n</think>\nA" if mode == "slow" else "A"), field: flag}
    pair = {"prompt": "Q", "response": beside["messages"][1]["content"], field: flag}
    inside = chat("Q", "A", mode="fast")
    inside["messages"][1][field] = flag
    for record in (beside, pair):
        outcome = read_one(record)
        if mode is None:
            assert outcome & {"mode", "content_type", "untagged"}, outcome
        else:
            assert outcome == [slow("r", "A") if mode == "slow" else fast("A")]
    assert read_one(inside) & {"mode", "content_type"}


@pytest.mark.parametrize(
    "fields",
    [
        {"enable_thinking": False},
        {"thinking_enabled": "false"},
        {"no_think": True},
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"kwargs": {"thinking": False}},
    ],
)
def test_a_flag_of_a_server_is_the_mode_of_the_record(fields):
    assert read_one({**chat("Q", "A"), **fields}) == [fast("A")]
    assert read_one({**chat("Q", "<think>r</think>A"), **fields}) == {"mode"}
    assert read_one({**chat("Q", "A", mode="plain"), **fields}) == {"mode"}


@pytest.mark.parametrize(
    ("content", "kind", "thoughts", "answer"),
    [
        ("r\n</think>\n\nA", "unopened_think", "r", "A"),
        ("r</THINK>A", "unopened_think", "r", "A"),
        ("r\n</think>\n<answer>\nA\n</answer>", "unopened_think", "r", "A"),
        ("r with `code`</think>A with `</think>`", "unopened_think", "r with `code`",
         "A with `</think>`"),
        ("<think>\nr\n<answer>\nA\n</answer>", "unclosed_tag", "r", "A"),
        ("<think>\nr\n</think>\n<answer>\nA", "unclosed_tag", "r", "A"),
        ("<think>a</think><think>b</think>A", "think_blocks", "a\n\nb", "A"),
        ("<think>\n<think>\nr\n</think>\nA", "think_blocks", "r", "A"),
        ("<think>\n<think>\nr\n</think>\n<answer>\nA\n</answer>", "think_blocks", "r", "A"),
        ("<think>\n\n</think>\n<think>\nr\n</think>\nA", "think_blocks", "r", "A"),
    ],
)  # fmt: skip
def test_tags_with_one_reading_are_refused_or_mended_as_the_policy_says(
    content, kind, thoughts, answer
):
    assert read_one(chat("Q", content)) == {kind}
    assert read_one(chat("Q", content), {kind: "fix"}) == [slow(thoughts, answer)]


def test_thoughts_that_are_never_closed_belong_to_the_call_behind_them():
    message = call(content="<think>\nI need a tool")
    record = {"tools": [_weather()], "messages": [{"role": "user", "content": "Q"}, message]}
    [text] = read_one(record, {"unclosed_tag": "fix"})
    assert text.startswith("<think>\nI need a tool\n</think>\n<answer>\n<tool_calls>")


def _weather():
    return {"type": "function", "function": {"name": "get_weather", "parameters": {}}}


@pytest.mark.parametrize(
    ("thoughts", "content", "outcome"),
    [
        ("r", "<answer>\nA\n</answer>", [slow("r", "A")]),
        ("<think>r</think>", "A", [slow("r", "A")]),
        ("<think>\n<think>\nr\n</think>\n</think>\n", "<answer>A</answer>", [slow("r", "A")]),
        ("r\n</Think>", "A", [slow("r", "A")]),
        ("r", "<think>\nr\n</think>\nA", {"tags"}),
        ("r", "other\n</think>\nA", {"tags"}),
        ("r", "Sure. <think>x</think> A", {"tags"}),
        ("r", "<think>\n\n</think>\nA", {"tags"}),
        ("r", "<answer>A", {"tags"}),
        ("<think>r</think>\nA", "A", {"tags"}),
        ("r</think>A", "A", {"tags"}),
        ("a\n<think>\nb", "A", {"tags"}),
        ("a `</think>` b", "A", [slow("a `</think>` b", "A")]),
    ],
)
def test_thoughts_given_twice_never_nest(thoughts, content, outcome):
    record = chat("Q", content)
    record["messages"][1]["reasoning_content"] = thoughts
    assert read_one(record) == outcome


FOREIGN = [
    "<thinking>\nr\n</thinking>\nA", "<reasoning>r</reasoning>A", "<reflection>r</reflection>A",
    "A <scratchpad>r</scratchpad>", "<Thought>\nr\n</Thought>A", "＜think＞r＜/think＞A",
    "&lt;think&gt;r&lt;/think&gt;A", "&amp;lt;thinking&amp;gt;r", "\\u003cthink\\u003er",
    "<|begin_of_thought|>r<|end_of_thought|>A", "[THINK]r[/THINK]A", "[think]r[/think]A",
    "<|channel|>analysis<|message|>r<|end|>A", "<|channel>thought\nr<channel|>A",
    "◁think▷r◁/think▷A",
    "<seed:think>r</seed:think>A", "< think >r</ think >A", "<think time=1>r</think>A",
    "<think\u200b>r", "<tool_call>\n{}\n</tool_call>", "<function_calls><invoke name='f'>",
    "<function=f><parameter=x>", "[TOOL_CALLS] [{}]", "<｜tool▁calls▁begin｜>",
    "A<|im_end|>", "A</s>",
    "Thought: r\nAction: f\nAction Input: {}", "Action: f\nAction Input: {}",
    "**Thought:** r\n**Final Answer:** A", "思考：r\n行动：f",
    "## Thinking\nr\n## Final Response\nA",
    "<thinking_process>r</thinking_process>A", "<ｔｈｉｎｋ>r", "【思考】r【/思考】A",
    "<思考>r</思考>A",
    "Thought: r\nAnswer: A", "<analysis>\nr\n</analysis>A", "<tool>f</tool>",
    "THOUGHT: r\nACTION: f", "A<|endoftext|>", "A <|eos|>\n", "A<eoa>", "A<pad><pad>", "<think\\>r",
    ">>>f\n{}", '<｜DSML｜invoke name="f">', "<\\/thinking>A", "A<｜end▁of▁sentence｜>",
    "Here is my thought process: r\n\nHere is my response: A",
    "✿FUNCTION✿: f", "<final_answer>A</final_answer>", "A<end_of_turn>",
]  # fmt: skip


@pytest.mark.parametrize("text", FOREIGN)
def test_marks_of_other_models_are_named_and_taught_only_where_asked_for(text):
    record = chat("Q", text, mode="fast")
    outcome = read_one(record)
    assert outcome & {"foreign_markers", "tags"}, outcome
    if outcome == {"foreign_markers"}:
        assert read_one(record, {"foreign_markers": "note"}) == [fast(text)]
    beside = chat("Q", "A")
    beside["messages"][1]["reasoning_content"] = text
    assert read_one(beside) & {"foreign_markers", "tags"}


@pytest.mark.parametrize(
    "text",
    [
        "use `<thinking>` tags", "```\n<tool_call>\n```\nis how", "if a<b and c>d", "x &lt;b&gt; y",
        "Map<String, Reason>",
        "Question: x\nAnswer: y", "《思考的快与慢》",
        "The action: run", "Action: a noun.", "a <| f |> b", "[1] [answer]",
        "<br> <s>x</s> y", "Observation: it rains.", "<div class='thinking'>x</div>", "1 < 2 > 0",
        "the <answer> and <think> tags", "what <|eos|> is", ">>> f(x)\n1", "a <|f|x",
        "use <pad> here",
        "Here is my thought process: r", "ends with `<|endoftext|>`",
    ],
)  # fmt: skip
def test_what_only_looks_like_a_mark_is_text(text):
    assert read_one(chat("Q", text, mode="fast")) == [fast(text)]


def test_questions_may_hold_any_mark():
    assert read_one(chat("<thinking>\nAction: f\nAction Input: x", "A", mode="fast")) == [fast("A")]


def test_a_mode_that_the_run_states_gives_way_to_marks_only_where_told_to():
    record = chat("Q", "<think>r</think>A")
    for mode in ("fast", "plain"):
        assert read_one(record, mode=mode) == {"mode"}
        assert read_one(record, {"mode": "fix"}, mode=mode) == [slow("r", "A")]
    assert read_one({**record, "mode": "fast"}, {"mode": "fix"}) == {"mode"}
    assert read_one(chat("Q", "A"), {"mode": "fix"}, mode="slow") == {"mode"}


@given(
    thoughts=plain_text | st.sampled_from(FOREIGN),
    answer=plain_text | st.sampled_from(FOREIGN),
    field=st.sampled_from(["reasoning_content", "reasoning", "thinking", "think"]),
    tags=st.sampled_from(
        ["{t}\n</think>\n{a}", "<think>{t}</think>{a}", "<think>\n{t}", "<think>{t}</think>",
         "<THINK>{t}</THINK>{a}", "<think>{t}</think><answer>{a}", "{a}"]
    ),
    policy=st.sampled_from(["fix", "error"]),
)  # fmt: skip
def test_every_thought_and_answer_is_taught_or_a_finding_names_its_place(
    thoughts, answer, field, tags, policy
):
    content = tags.format(t=thoughts, a=answer)
    record = chat("Q", content)
    if tags == "{a}":
        record["messages"][1][field] = thoughts
    policies = dict.fromkeys(("unopened_think", "unclosed_tag", "think_blocks"), policy)
    outcome = read_one(record, policies)
    if isinstance(outcome, set):
        assert outcome
        return
    wanted = [part for part, name in ((thoughts, "{t}"), (answer, "{a}")) if name in tags]
    for part in wanted:
        assert to_nfc(part).strip() in "".join(outcome)  # which some characters are not yet
