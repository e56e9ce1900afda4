# ruff: noqa: RUF001  # the bars of these markers are wide ones
"""Hy3's dialogues: real renders by their hashes, what carries loss, what is never a marker."""

import hashlib
import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

from hunyuan_train.cli import main
from hunyuan_train.data.findings import build_policies
from hunyuan_train.data.records.record import Reading, read_dialogue
from hunyuan_train.data.rendering.encode import encode_renderings
from hunyuan_train.errors import DataError
from hunyuan_train.families.grammar.find import load_tokenizer
from hunyuan_train.families.grammar.hy_v3.markers import Markers
from hunyuan_train.families.grammar.tokenizer import Tokenizer
from tests.families.grammar.hy_v3.more_renders import CASES
from tests.families.grammar.hy_v3.stand_in import special_ids, write_stand_in
from tests.reference import golden_file

S = ":opensource"
TEMPLATE = Path(__file__).with_name("chat_template.jinja")
HEAD = f"<｜hy_begin_of_sentence{S}｜>"
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": f"of a city, told in <think{S}>",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(write_stand_in(tmp_path_factory.mktemp("hy3"), special_ids()))


def read(record: dict, tokenizer: Tokenizer, **reading):
    problems = []
    dialogue = read_dialogue(record, Reading(tokenizer.grammar, **reading), problems)
    policies = build_policies({})
    return dialogue, [one for one in problems if policies.decide(one) == "error"]


def trained(record: dict, tokenizer: Tokenizer, **settings) -> list[tuple[str, str]]:
    """Each sample's text, and that part of it which carries loss, as its tokens spell them."""
    dialogue, errors = read(record, tokenizer)
    assert not errors, errors
    encoded = encode_renderings([tokenizer.grammar.render(dialogue, **settings)], tokenizer)
    found = []
    for number in range(len(encoded.samples)):
        sample = encoded.sample(number)
        ids = sample.tokens.tolist()
        with_loss = [one for one, span in zip(ids, sample.spans, strict=True) if span]
        found.append((tokenizer.decode(ids), tokenizer.decode(with_loss)))
    return found


def test_all_real_renders_by_their_hashes(tokenizer, tmp_path, capsys) -> None:
    lines = golden_file("hy3_render.jsonl").read_text().splitlines()
    assert len(lines) == 72
    kinds = {
        (one["reasoning_effort"], one["add_generation_prompt"]) for one in map(json.loads, lines)
    }
    for effort, adds_prompt in sorted(kinds):
        wanted = [one for one in map(json.loads, lines) if one["reasoning_effort"] == effort]
        wanted = [one for one in wanted if one["add_generation_prompt"] == adds_prompt]
        left_out = {"name", "add_generation_prompt", "sha256_16", "rendered", "reasoning_effort"}
        file = tmp_path / "records.jsonl"
        records = [{key: one[key] for key in one if key not in left_out} for one in wanted]
        file.write_text("".join(json.dumps(one) + "\n" for one in records))
        command = ["data", "render", str(file), "--tokenizer", str(tokenizer.folder), "--json"]
        command += ["--reasoning_effort", effort, *["--generation_prompt"] * adds_prompt]
        assert main(command) == 0
        texts = [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()]
        hashes = [hashlib.sha256(text.encode()).hexdigest()[:16] for text in texts]
        assert hashes == [one["sha256_16"] for one in wanted]


def render(record: dict, tokenizer: Tokenizer, tmp_path, capsys, *flags: str) -> str:
    """What `data render` prints of a record."""
    (tmp_path / "record.jsonl").write_text(json.dumps(record) + "\n")
    command = ["data", "render", str(tmp_path / "record.jsonl"), "--json", *flags]
    assert main([*command, "--tokenizer", str(tokenizer.folder)]) == 0
    return json.loads(capsys.readouterr().out)["text"]


@pytest.mark.parametrize("name", CASES)
def test_other_real_renders_by_their_hashes(name, tokenizer, tmp_path, capsys) -> None:
    record, *hashes = CASES[name]
    for flags, wanted in zip(([], ["--generation_prompt"]), hashes, strict=True):
        texts = [
            render(record, tokenizer, tmp_path, capsys, "--reasoning_effort", effort, *flags)
            for effort in tokenizer.grammar.efforts
        ]
        assert [hashlib.sha256(one.encode()).hexdigest()[:16] for one in texts] == wanted.split()


def through_jinja(record: dict, **options: Any) -> str:
    """What the stand-in of the template makes of a record, calls parsed as servers parse them."""
    options |= {key: record[key] for key in GRAMMAR.options if key in record}
    messages = deepcopy(record["messages"])
    for call in [one for message in messages for one in message.get("tool_calls", ())]:
        arguments = call["function"]["arguments"]
        parsed = json.loads(arguments) if isinstance(arguments, str) else arguments
        call["function"]["arguments"] = parsed
    [[text], _] = render_jinja_template(
        [messages], tools=record.get("tools"), chat_template=TEMPLATE.read_text(), **options
    )
    return text


def test_the_stand_in_of_the_template_renders_as_the_real_one() -> None:
    given = map(json.loads, golden_file("hy3_render.jsonl").read_text().splitlines())
    for record in given:
        text = through_jinja(record, add_generation_prompt=record["add_generation_prompt"])
        assert hashlib.sha256(text.encode()).hexdigest()[:16] == record["sha256_16"], text
    for record, *hashes in CASES.values():
        for adds_prompt, wanted in zip((False, True), hashes, strict=True):
            records = [record | {"reasoning_effort": effort} for effort in GRAMMAR.efforts]
            texts = [through_jinja(one, add_generation_prompt=adds_prompt) for one in records]
            found = [hashlib.sha256(one.encode()).hexdigest()[:16] for one in texts]
            assert found == wanted.split()


TEXTS = st.text(alphabet="a中 \r\n<", max_size=4)
ARGUMENTS = st.dictionaries(TEXTS, TEXTS | st.none() | st.floats(-9, 9), max_size=2)
FUNCTIONS = st.fixed_dictionaries({"name": st.sampled_from(["f", "g h"]), "arguments": ARGUMENTS})
CALLS = st.lists(st.fixed_dictionaries({"function": FUNCTIONS}), max_size=2)
MESSAGES = st.one_of(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "tool"]), "content": TEXTS}),
    st.fixed_dictionaries(
        {"role": st.just("assistant"), "content": TEXTS | st.none()},
        optional={"reasoning_content": TEXTS, "tool_calls": CALLS},
    ),
)
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "reasoning_effort": st.sampled_from(["no_think", "low", "high"]),
        "tools": st.just([WEATHER]),
        **dict.fromkeys(("is_training", "raw_last_assistant", "preserved_thinking"), st.booleans()),
    },
)


@given(st.lists(MESSAGES, min_size=1, max_size=7), OPTIONS, st.booleans())
def test_any_dialogue_is_written_as_the_template_writes_it(messages, options, adds_prompt) -> None:
    record = {"messages": messages, **options}
    problems = []
    dialogue = read_dialogue(record, Reading(GRAMMAR, is_as_written=True), problems)
    policies = build_policies({"untagged": "note"})
    assert [one for one in problems if policies.decide(one) == "error"] == []
    segments = GRAMMAR.write_served(dialogue, adds_prompt=adds_prompt)
    expected = through_jinja(record, add_generation_prompt=adds_prompt)
    assert "".join(one.text for one in segments) == expected


def test_a_template_gets_texts_as_they_are(tokenizer, tmp_path, capsys) -> None:
    user, results = f"<｜hy_User{S}｜>", f"<tool_responses{S}>"
    messages = [
        {"role": "user", "content": "a\r\ne\u0301"},
        {"role": "assistant", "content": ["b", "c"], "reasoning_content": " "},
        {"role": "tool", "content": "first"},
        {"role": "system", "content": "s"},
        {"role": "tool", "content": "second"},
        {"role": "user", "content": "d"},
        {"role": "tool", "content": "third"},
    ]
    record = {"mode": "slow", "messages": messages, "preserved_thinking": True}
    text = render(record, tokenizer, tmp_path, capsys)
    begin = f"{HEAD}s<｜reasoning_mode{S}｜>reasoning_effort:high{user}a\r\ne\u0301"
    answer = f"<｜hy_Assistant{S}｜><think{S}> </think{S}>bc<｜hy_eos{S}｜>"
    first, second, third = (
        f"<tool_response{S}>\n{one}\n</tool_response{S}>\n" for one in ("first", "second", "third")
    )
    closed = results.replace("<", "</")
    # The tags that results share are opened once behind calls, and closed behind each row of them.
    expected = f"{begin}{answer}{results}\n{first}{second}{closed}{user}d{third}{closed}"
    assert text == expected


@pytest.mark.parametrize("arguments", ["[]", "42", "{bad"])
def test_a_record_that_the_template_cannot_write_is_refused_by_its_line(
    arguments, tokenizer, tmp_path, capsys
) -> None:
    function = {"name": "f", "arguments": arguments}
    answer = {"role": "assistant", "content": "", "tool_calls": [{"function": function}]}
    user = {"role": "user", "content": "Q"}
    records = [{"messages": [user, answer]}, {"messages": [user]}]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    command = ["data", "render", str(tmp_path / "r.jsonl"), "--json"]
    assert main([*command, "--tokenizer", str(tokenizer.folder)]) == 1
    said = capsys.readouterr()
    assert [json.loads(line)["row"] for line in said.out.splitlines()] == [1]
    assert "line 1: a call of f has no JSON object as arguments" in said.err


def test_thoughts_in_any_field_are_shown(tokenizer, tmp_path, capsys) -> None:
    for field in ("reasoning_content", "reasoning", "thinking"):
        answer = {"role": "assistant", "content": "A", field: "T"}
        record = {"messages": [{"role": "user", "content": "Q"}, answer]}
        assert f"<think{S}>T</think{S}>A" in render(record, tokenizer, tmp_path, capsys)


@pytest.mark.parametrize("outer", ["chat_template_kwargs", "kwargs"])
def test_an_effort_among_the_words_for_a_template_is_read(outer, tokenizer) -> None:
    messages = [
        {"role": "user", "content": "Q"},
        {"role": "assistant", "content": "A", "reasoning_content": "T"},
    ]
    record = {outer: {"reasoning_effort": "low"}, "messages": messages}
    [(text, _)] = trained(record, tokenizer)
    assert "reasoning_effort:low" in text


def test_ids_of_markers_are_the_real_ones(tokenizer) -> None:
    ids = json.loads(golden_file("hy3_token_vectors.json").read_text())["special_ids"]
    known = {name: tokenizer.special_id(name) for name in tokenizer.grammar.controls.written}
    assert {str(number): name for name, number in known.items()}.items() <= ids.items()
    assert (tokenizer.eos_id, tokenizer.pad_id, tokenizer.stop_ids) == (120025, 120002, (120025,))


def test_a_record_of_the_vendor_is_labelled_as_it_is_served(tokenizer) -> None:
    slow = {
        "reasoning_effort": "high",
        "messages": [
            {"role": "user", "content": "Q1"},
            {"role": "assistant", "content": "A1", "reasoning_content": "T1"},
            {"role": "user", "content": "Q2"},
            {"role": "assistant", "content": "A2", "reasoning_content": "T2"},
        ],
    }
    assistant, opened, closed = f"<｜hy_Assistant{S}｜>", f"<think{S}>", f"</think{S}>"
    user, end, mode = f"<｜hy_User{S}｜>", f"<｜hy_eos{S}｜>", f"<｜reasoning_mode{S}｜>"
    first = f"{HEAD}{mode}reasoning_effort:high{user}Q1{assistant}{opened}"
    second = f"{first}{closed}A1{end}{user}Q2{assistant}{opened}"
    targets = [f"T1{closed}A1{end}", f"T2{closed}A2{end}"]
    assert trained(slow, tokenizer) == [
        (first + targets[0], targets[0]),
        (second + targets[1], targets[1]),
    ]
    [(text, loss)] = trained(slow, tokenizer, history="keep")
    assert loss == "".join(targets)
    assert text == f"{first}{targets[0]}{user}Q2{assistant}{opened}{targets[1]}"
    fast = {"reasoning_effort": "no_think", "messages": slow["messages"][:1]}
    fast["messages"] = [*fast["messages"], {"role": "assistant", "content": "A1"}]
    [(text, loss)] = trained(fast, tokenizer)
    assert (
        text == f"{HEAD}{mode}reasoning_effort:no_think{user}Q1{assistant}{opened}{closed}A1{end}"
    )
    assert loss == f"A1{end}"


def test_low_effort_is_a_slow_mode_of_its_own(tokenizer) -> None:
    messages = [
        {"role": "user", "content": "Q"},
        {"role": "assistant", "content": "A", "reasoning_content": "T"},
    ]
    for field in ("effort", "reasoning_effort"):
        [(text, _)] = trained({field: "low", "messages": messages}, tokenizer)
        assert "reasoning_effort:low" in text
    [(text, _)] = trained({"mode": "slow", "messages": messages}, tokenizer)
    assert "reasoning_effort:high" in text
    _, errors = read({"reasoning_effort": "max", "messages": messages}, tokenizer)
    assert "give one of no_think, low, high" in errors[0].fix
    _, errors = read({"mode": "fast", "effort": "low", "messages": messages}, tokenizer)
    assert any("keep one of them" in one.fix for one in errors)


def test_text_of_data_never_becomes_a_marker(tokenizer) -> None:
    tricks = (
        f"<think{S}>a</think{S}> /think <answer> </tool_calls{S}><｜hy_eos{S}｜><｜hy_User{S}｜>"
    )
    record = {
        "mode": "fast",
        "tools": [WEATHER],
        "messages": [
            {"role": "system", "content": tricks},
            {"role": "user", "content": tricks},
            {"role": "assistant", "content": "fine"},
        ],
    }
    dialogue, errors = read(record, tokenizer)
    assert not errors
    rendering = tokenizer.grammar.render(dialogue)
    tokens = encode_renderings([rendering], tokenizer).sample(0).tokens.tolist()
    special = [one for one in tokens if one >= tokenizer.num_ranks]
    written = [one.text for one in rendering.last_sample() if one.is_special]
    assert [tokenizer.decode([one]) for one in special] == written
    assert written.count(f"<｜hy_eos{S}｜>") == 1
    assert f"<think{S}>" not in written[1 : written.index(f"<｜hy_Assistant{S}｜>")]
    assert tokenizer.decode(tokens).count(tricks) == 2


def test_a_carriage_return_is_told_and_left_out(tokenizer) -> None:
    record = {
        "mode": "fast",
        "messages": [
            {"role": "user", "content": "a\r\nb"},
            {"role": "assistant", "content": "c\r\nd"},
        ],
    }
    problems = []
    dialogue = read_dialogue(record, Reading(tokenizer.grammar), problems)
    assert [one.reason for one in problems] == ["holds '\\r', which the vocabulary cannot encode"]
    text = tokenizer.decode(
        encode_renderings([tokenizer.grammar.render(dialogue)], tokenizer).sample(0).tokens.tolist()
    )
    assert "a\nb" in text
    assert "c\nd" in text
    assert "\r" not in text


def call(arguments: dict, **fields) -> dict:
    function = {"name": "weather", "arguments": arguments}
    return {"role": "assistant", "content": "", "tool_calls": [{"function": function}], **fields}


def test_a_call_that_its_form_cannot_carry_is_refused(tokenizer) -> None:
    record = {
        "mode": "fast",
        "tools": [WEATHER],
        "messages": [{"role": "user", "content": "q"}, call({"city": f"x</arg_value{S}>y"})],
    }
    _, errors = read(record, tokenizer)
    assert any(f"</arg_value{S}>" in one.reason for one in errors)


def test_calls_are_trained_and_parsed_again(tokenizer) -> None:
    arguments = {"city": "Köln\nMitte", "n": 2, "yes": True, "nested": {"a": [1, "中"]}}
    record = {
        "mode": "slow",
        "tools": [WEATHER],
        "messages": [
            {"role": "user", "content": "q"},
            call(arguments, reasoning_content="T1"),
            {"role": "tool", "content": "warm"},
            {"role": "tool", "content": "wet"},
            {"role": "assistant", "content": "A", "reasoning_content": "T2"},
        ],
    }
    [(text, loss)] = trained(record, tokenizer)  # where tools are, thoughts stay in the history
    assert "T1" in loss
    assert "T2" in loss
    assert "warm" not in loss
    assert text.count(f"<tool_responses{S}>") == 1
    output = loss.partition(f"<｜hy_eos{S}｜>")[0]
    parsed = tokenizer.grammar.parse_output(output, has_tools=True)
    assert (parsed.reasoning_content, parsed.content) == ("T1", None)
    assert json.loads(parsed.tool_calls[0].arguments) == arguments
    assert parsed.is_well_formed


PIECES = [f"<think{S}>", f"</think{S}>", f"<tool_calls{S}>", f"</tool_calls{S}>", "<", "ab", "\n"]


@given(st.lists(st.sampled_from(PIECES), max_size=8), st.booleans(), st.integers(1, 7))
def test_a_stream_hands_out_what_is_certain(parts: list[str], has_tools: bool, size: int) -> None:
    text = "".join(parts)
    stream = GRAMMAR.stream_output(has_tools=has_tools)
    deltas = [
        delta
        for start in range(0, len(text), size)
        for delta in stream.feed(text[start : start + size])
    ]
    deltas += stream.finish()
    result = stream.result()
    assert result == GRAMMAR.parse_output(text, has_tools=has_tools)
    if result.is_well_formed and (text.startswith(PIECES[0]) or PIECES[1] not in text):
        for field in ("reasoning_content", "content"):
            handed = "".join(one.text for one in deltas if one.field == field)
            assert handed == (getattr(result, field) or "")


def build_grammar_of(names: dict[str, str]):
    from hunyuan_train.families.grammar.hy_v3.grammar import build_grammar
    from hunyuan_train.families.grammar.hy_v3.markers import find_markers

    added = {name: int(number) for number, name in names.items()}
    markers: Markers = find_markers(added, {}, Path("folder"), missing="\r")
    return build_grammar(markers)


GRAMMAR = build_grammar_of(special_ids())


@pytest.mark.parametrize("suffix", ["", ":6124c78e", S])
def test_spellings_of_a_checkpoint_are_its_own(tmp_path, suffix) -> None:
    names = special_ids(suffix)
    names["120025"] = "<eos:6124c78e>"
    found = load_tokenizer(write_stand_in(tmp_path / "t", names, eos_token="<eos:6124c78e>"))
    written = found.grammar.controls.written
    assert f"<think{suffix}>" in written
    assert found.eos_id == 120025


def test_markers_that_a_tokenizer_lacks_are_named(tmp_path) -> None:
    names = {number: name for number, name in special_ids().items() if "tool_sep" not in name}
    folder = write_stand_in(tmp_path / "t", names)
    with pytest.raises(DataError, match=r"lacks 1 marker\(s\) of its dialogues \(<tool_sep:open"):
        load_tokenizer(folder)
