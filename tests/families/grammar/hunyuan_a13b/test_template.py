import re

from hypothesis import given, settings

from hunyuan_train.families.grammar.hunyuan_a13b.output_parser import parse_output
from hunyuan_train.families.grammar.hunyuan_a13b.template import render
from hunyuan_train.families.grammar.hunyuan_a13b.tools import ASSISTANT_LABEL, USER_LABEL
from hunyuan_train.families.grammar.segments import SPANS
from tests.data.dialogues import NOW, TOOL_TURNS, TWO_SLOW_TURNS, chat, hard_text, read, records


def _texts(record, **layout):
    rendering = render(read(record), **layout)
    return [
        "".join(segment.text for segment in rendering.sample(index))
        for index in range(len(rendering.targets))
    ]


def _learned(segments):
    return "".join(segment.text for segment in segments if segment.weight)


def test_strip_makes_a_sample_of_each_answer_with_bare_history():
    assert _texts(TWO_SLOW_TURNS) == [
        "<|startoftext|>S<|extra_4|>Q1<|extra_0|><think>\nT1\n</think>\n<answer>\nA1\n</answer><|eos|>",
        "<|startoftext|>S<|extra_4|>Q1<|extra_0|>A1<|eos|><|startoftext|>Q2<|extra_0|>"
        "<think>\nT2\n</think>\n<answer>\nA2\n</answer><|eos|>",
    ]


def test_strip_puts_loss_on_the_last_answer_only():
    rendering = render(read(TWO_SLOW_TURNS))
    for index, learned in enumerate(("T1", "T2")):
        assert _learned(rendering.sample(index)).startswith(f"<think>\n{learned}")
        assert _learned(rendering.sample(index)).count("<|eos|>") == 1


def test_keep_makes_one_sample_with_loss_on_every_answer():
    [text] = _texts(TWO_SLOW_TURNS, history="keep")
    assert text.count("<think>") == 2
    learned = _learned(render(read(TWO_SLOW_TURNS), history="keep").sample(0))
    assert learned.count("<|eos|>") == 2
    last = _learned(render(read(TWO_SLOW_TURNS), history="keep", loss="last").sample(0))
    assert last == "<think>\nT2\n</think>\n<answer>\nA2\n</answer><|eos|>"


def test_loss_on_the_last_answer_tells_equal_answers_apart():
    segments = render(read(chat("a", "ok", "b", "ok")), history="keep", loss="last").sample(0)
    assert _learned(segments) == "ok<|eos|>"


def test_a_plain_dialogue_is_one_sample_under_strip_too():
    assert _texts(chat("a", "b", "c", "d")) == _texts(chat("a", "b", "c", "d"), history="keep")


def test_fast_and_slow_follow_the_served_grammar():
    [fast] = _texts(chat("a", "b", mode="fast"))
    assert fast == (
        "<|startoftext|>/no_think a<|extra_0|><think>\n\n</think>\n<answer>\nb\n</answer><|eos|>"
    )


def test_context_answers_and_untrained_ones_are_no_samples():
    record = chat("a", "b", "c", "<think>\nr\n</think>\n<answer>\nd\n</answer>")
    assert len(_texts(record)) == 1
    record = chat("a", "b", "c", "d", mode="fast")
    record["messages"][1]["train"] = False
    assert len(_texts(record)) == 1
    kept = render(read(record), history="keep").sample(0)
    assert _learned(kept) == "<think>\n\n</think>\n<answer>\nd\n</answer><|eos|>"


def test_weights_reach_the_segments():
    record = chat("a", "b", "c", "d", mode="fast")
    record["messages"][1]["weight"] = 0.25
    weights = [
        {segment.weight for segment in render(read(record)).sample(index) if segment.weight}
        for index in range(2)
    ]
    assert weights == [{0.25}, {1.0}]


def test_spans_name_thoughts_answer_and_markers():
    segments = render(read(TWO_SLOW_TURNS)).targets[0].segments
    assert [(segment.text, SPANS[segment.span]) for segment in segments] == [
        ("<think>\n", "marker"),
        ("T1", "think"),
        ("\n</think>\n<answer>\n", "marker"),
        ("A1", "answer"),
        ("\n</answer>", "marker"),
        ("<|eos|>", "marker"),
    ]


def test_tool_targets_are_served_grammar_and_history_is_as_a_server_writes_it():
    first, second = _texts(TOOL_TURNS)
    calls = '<tool_calls>[{"name": "get_weather", "arguments": {"city": "Paris"}}]</tool_calls>'
    assert first.endswith(
        f"{USER_LABEL}Q<|extra_0|><think>\nT1\n</think>\n<answer>\n{calls}\n</answer><|eos|>"
    )
    assert second.endswith(
        f"{USER_LABEL}Q<|extra_0|>{calls}<|eos|><tool_response>sunny</tool_response><|extra_0|>"
        f"<think>\nT2\n</think>\n<answer>\n{ASSISTANT_LABEL}A\n</answer><|eos|>"
    )
    assert f"{NOW} 星期一<|extra_4|>" in first


@settings(max_examples=80)
@given(record=records(text=hard_text))
def test_loss_is_exactly_on_the_trained_answers(record):
    answers = [m for m in record["messages"] if m["role"] == "assistant"]
    trained = [m for m in answers if m.get("train", True)]
    if record.get("mode"):
        rendering = render(read(record))
        assert len(rendering.targets) == len(trained)
    for history in ("strip", "keep"):
        rendering = render(read(record), history=history)
        for index in range(len(rendering.targets)):
            for segment in rendering.sample(index):
                assert not segment.weight or segment.role == "assistant"
                assert (segment.span != 0) == (segment.weight > 0)
    ends = [s for s in render(read(record), history="keep").sample(0) if s.text == "<|eos|>"]
    assert sum(s.weight > 0 for s in ends if s.is_special) == len(trained)


@settings(max_examples=80)
@given(record=records())
def test_a_serving_parser_recovers_thoughts_and_answer(record):
    dialogue = read(record)
    targets = [t for t in render(dialogue).targets if t.message is not None]
    for target in targets:
        message = dialogue.messages[target.message]
        text = "".join(segment.text for segment in target.segments if not segment.is_special)
        parsed = parse_output(text)
        assert parsed.is_well_formed
        assert (parsed.reasoning_content or "") == (message.thoughts or "")
        if message.tool_calls:
            assert re.fullmatch(r"<tool_calls>\[\{.*\}\]</tool_calls>", parsed.content, re.DOTALL)
        else:
            label = ASSISTANT_LABEL if dialogue.tools else ""
            assert parsed.content == f"{label}{message.content}"
