import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hunyuan_train.data.rendering.encode import encode_renderings, encode_segments
from hunyuan_train.families.grammar.hunyuan_a13b.template import render
from hunyuan_train.families.grammar.hunyuan_a13b.tokens import START, SYSTEM_END, USER_END
from hunyuan_train.families.grammar.segments import SPANS
from tests.data.dialogues import HARD_PIECES, chat, hard_text, read, records


def _encode(record, tokenizer, **layout):
    return encode_renderings([render(read(record), **layout)], tokenizer)


@settings(max_examples=80)
@given(record=records(text=hard_text), history=st.sampled_from(["strip", "keep"]))
def test_tokens_decode_to_the_rendering_and_masks_to_the_answers(tokenizer, record, history):
    rendering = render(read(record), history=history)
    encoded = encode_renderings([rendering], tokenizer)
    for index in range(len(rendering.targets)):
        segments = rendering.sample(index)
        sample = encoded.sample(index)
        assert tokenizer.decode(sample.tokens.tolist()) == "".join(s.text for s in segments)
        learned = tokenizer.decode(sample.tokens[sample.spans != 0].tolist())
        assert learned == "".join(s.text for s in segments if s.weight)
        assert encoded.samples[index]["num_labels"] == np.count_nonzero(sample.spans)
        assert len(sample.tokens) == encoded.sample_lengths()[index]


@settings(max_examples=50)
@given(some=st.lists(records(text=hard_text), min_size=1, max_size=5))
def test_a_chunk_gives_what_its_dialogues_give_alone(tokenizer, some):
    renderings = [render(read(record)) for record in some]
    together = encode_renderings(renderings, tokenizer)
    alone = [encode_renderings([rendering], tokenizer) for rendering in renderings]
    number = 0
    for record, chunk in enumerate(alone):
        for index in range(len(chunk.samples)):
            for mine, other in zip(together.sample(number), chunk.sample(index), strict=True):
                assert np.array_equal(mine, other)
            assert together.samples[number]["record"] == record
            number += 1
    assert number == len(together.samples)
    assert together.num_tokens_once == sum(chunk.num_tokens_once for chunk in alone)


@settings(max_examples=50)
@given(text=hard_text)
def test_segments_are_tokenized_as_one_run_of_text(tokenizer, text):
    segments = render(read(chat(f"q{text}", f"a{text}", mode="fast"))).sample(0)
    runs = [[]]
    for segment in segments:
        if segment.is_special:
            runs += [[segment], []]
        else:
            runs[-1].append(segment)
    expected = []
    for run in runs:
        is_special = bool(run) and run[0].is_special
        joined = "".join(segment.text for segment in run)
        ids = [tokenizer.special_id(joined)] if is_special else tokenizer.encode(joined)
        expected += ids
    assert encode_segments(segments, tokenizer)[0].tolist() == expected


def test_typed_control_tokens_and_marks_never_become_control_tokens(tokenizer):
    text = "".join((*HARD_PIECES, *tokenizer.marks, *tokenizer.marks.values()))
    encoded = _encode(chat(text, text, system=text), tokenizer)
    specials = [tokenizer.special_id(token) for token in (START, SYSTEM_END, USER_END)]
    tokens = encoded.sample(0).tokens
    found = tokens[tokens >= tokenizer.num_ranks].tolist()
    assert found == [*specials, tokenizer.eos_id]


def test_shared_history_is_stored_once(tokenizer):
    record = chat(*["question and answer " * 20] * 8, mode="fast")
    encoded = _encode(record, tokenizer)
    assert len(encoded.samples) == 4
    assert len(encoded.tokens) < 0.7 * encoded.sample_lengths().sum()


def test_growth_is_measured_against_one_sample_per_dialogue(tokenizer):
    record = chat("a", "b", "c", "d", "e", "f", mode="fast")
    once = _encode(record, tokenizer, history="keep")
    assert _encode(record, tokenizer).num_tokens_once == once.sample_lengths().sum()
    assert once.num_tokens_once == once.sample_lengths().sum()


def test_weights_appear_only_where_some_differ(tokenizer):
    record = chat("a", "b", mode="fast")
    assert _encode(record, tokenizer).weights is None
    record["messages"][1]["weight"] = 0.5
    sample = _encode(record, tokenizer).sample(0)
    assert set(sample.weights[sample.spans != 0].tolist()) == {0.5}
    assert set(sample.weights[sample.spans == 0].tolist()) == {0.0}


def test_a_token_over_two_spans_belongs_to_the_first(vendor_tokenizer):
    record = chat("a", "<think>\nr.\n</think>\n<answer>\nb\n</answer>")
    sample = _encode(record, vendor_tokenizer).sample(0)
    [place] = np.flatnonzero(sample.tokens == 627)  # ".\n", the stop of the thoughts and a newline
    assert SPANS[sample.spans[place]] == "think"
