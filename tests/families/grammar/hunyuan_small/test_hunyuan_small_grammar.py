# ruff: noqa: RUF001  # the bars of these markers are wide ones
"""The small dense models: A13B's answers between their own markers; tools are refused."""

import pytest

from hunyuan_train.data.records.record import Reading, read_dialogue
from hunyuan_train.data.rendering.encode import encode_renderings
from hunyuan_train.errors import DataError
from hunyuan_train.families.grammar.find import load_tokenizer
from hunyuan_train.families.grammar.tokenizer import Tokenizer
from tests.families.grammar.hy_v3.stand_in import write_stand_in

NAMES = {
    "120000": "<｜hy_begin▁of▁sentence｜>",
    "120002": "<｜hy_▁pad▁｜>",
    "120006": "<｜hy_User｜>",
    "120007": "<｜hy_Assistant｜>",
    "120020": "<｜hy_place▁holder▁no▁2｜>",
    "120021": "<｜hy_place▁holder▁no▁3｜>",
    "120029": "<think>",
    "120030": "</think>",
}
B, U, A, E, C = (NAMES[number] for number in ("120000", "120006", "120007", "120020", "120021"))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("small")
    return load_tokenizer(write_stand_in(folder, NAMES, pad_token=NAMES["120002"]))


def test_samples_are_those_of_a13b_between_other_markers(tokenizer) -> None:
    record = {
        "mode": "slow",
        "messages": [
            {"role": "system", "content": "S"},
            {"role": "user", "content": "Q1"},
            {"role": "assistant", "content": "A1", "reasoning_content": "T1"},
            {"role": "user", "content": f"<think> {U}"},
            {"role": "assistant", "content": "A2", "reasoning_content": "T2"},
        ],
    }
    dialogue = read_dialogue(record, Reading(tokenizer.grammar), [])
    encoded = encode_renderings([tokenizer.grammar.render(dialogue)], tokenizer)
    texts = [tokenizer.decode(encoded.sample(one).tokens.tolist()) for one in range(2)]
    first = f"{B}S{C}{U}Q1{A}"
    answer = "<think>\nT{}\n</think>\n<answer>\nA{}\n</answer>" + E
    asked = f"{U}<think> {U}{A}"
    assert texts == [first + answer.format(1, 1), f"{first}A1{E}{asked}{answer.format(2, 2)}"]
    special = [one for one in encoded.sample(1).tokens.tolist() if one >= tokenizer.num_ranks]
    # The question's own words are no markers; those around the thoughts are.
    assert [tokenizer.decode([one]) for one in special] == [
        *(B, C, U, A, E, U, A, "<think>", "</think>", E)
    ]
    parsed = tokenizer.grammar.parse_output(answer.format(2, 2).removesuffix(E))
    assert (parsed.reasoning_content, parsed.content) == ("T2", "A2")
    assert tokenizer.stop_ids == (120020,)


def test_tools_are_refused(tokenizer) -> None:
    record = {
        "mode": "fast",
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
        "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
    }
    dialogue = read_dialogue(record, Reading(tokenizer.grammar), [])
    with pytest.raises(DataError, match="leave tools out"):
        tokenizer.grammar.render(dialogue)


def test_a_folder_of_another_model_is_refused(tmp_path) -> None:
    with pytest.raises(DataError, match="none of the markers"):
        load_tokenizer(write_stand_in(tmp_path / "t", {"400": "<|im_start|>"}))
