"""The vendor's tokenizer and template, token for token."""

import json

import pytest

from hunyuan_train.data.findings import build_policies
from hunyuan_train.data.rendering.encode import encode_renderings
from hunyuan_train.families.grammar.hunyuan_a13b.template import render
from tests.data.dialogues import kinds_of, problems_of, read

DEFAULT_NOW = "2025-06-26 16:21:57"


def _load(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def _encode(record, tokenizer, loss):
    dialogue = read(record, now=DEFAULT_NOW, is_as_written=True)
    return encode_renderings([render(dialogue, history="keep", loss=loss)], tokenizer).sample(0)


@pytest.mark.parametrize(("loss", "key"), [("all", "loss_mask"), ("last", "loss_mask_last_turn")])
def test_ids_and_masks_of_all_vectors(golden, vendor_tokenizer, loss, key):
    vectors = _load(golden / "thinking_public.jsonl")
    assert len(vectors) >= 40
    for vector in vectors:
        sample = _encode(vector, vendor_tokenizer, loss)
        expected = vector.get("input_ids_sanitized", vector["input_ids"])
        assert sample.tokens.tolist() == expected, vector["name"]
        mask = vector.get("loss_mask_sanitized", vector[key]) if loss == "all" else vector[key]
        assert (sample.spans != 0).astype(int).tolist() == mask, vector["name"]


REFUSED = {
    "first_user_empty": "empty_user",
    "unknown_role_gpt": "role",
    "no_assistant": "no_answer",
    "assistant_first": "order",
    "whitespace_run_1e6": "size",
}
RENDERED = {
    "empty_system_string": "<|startoftext|>Hi<|extra_0|>Hello<|eos|>",
    "sharegpt_from_value": "<|startoftext|>Hi<|extra_0|>Hello<|eos|>",
    "sharegpt_under_messages_key": "<|startoftext|>Hi<|extra_0|>Hello<|eos|>",
    "content_parts_list": "<|startoftext|>Hi<|extra_0|>Hello<|eos|>",
}


@pytest.fixture
def errors(golden):
    records = {one["name"]: one["record"] for one in _load(golden / "errors.jsonl")}
    blanks = records["whitespace_run_1e6"]["messages"][0]
    blanks["content"] = "x" + " " * 1_000_000 + "y"
    return records


@pytest.mark.parametrize(("name", "kind"), REFUSED.items())
def test_bad_records_are_refused(errors, name, kind):
    policies = build_policies()
    refused = [one for one in problems_of(errors[name]) if policies.decide(one) == "error"]
    assert kind in {problem.kind for problem in refused}


@pytest.mark.parametrize(("name", "rendered"), RENDERED.items())
def test_fixable_records_are_rendered(errors, vendor_tokenizer, name, rendered):
    tokens = _encode(errors[name], vendor_tokenizer, "all").tokens
    assert vendor_tokenizer.decode(tokens.tolist()) == rendered


def test_a_tool_result_that_is_an_object_is_written_as_json(errors, vendor_tokenizer):
    tokens = _encode(errors["dict_tool_content"], vendor_tokenizer, "all").tokens
    text = vendor_tokenizer.decode(tokens.tolist())
    assert '<tool_response>{"t": 1}</tool_response>' in text
    assert kinds_of(errors["dict_tool_content"]) == {"content_type"}


@pytest.mark.parametrize("name", ["user_types_eos", "two_tool_messages"])
def test_loss_is_on_the_answers_and_nowhere_else(errors, vendor_tokenizer, name):
    record = errors[name]
    sample = _encode(record, vendor_tokenizer, "all")
    learned = vendor_tokenizer.decode(sample.tokens[sample.spans != 0].tolist())
    answers = [m["content"] for m in record["messages"] if m["role"] == "assistant"]
    assert learned == "".join(f"{answer}<|eos|>" for answer in answers)
