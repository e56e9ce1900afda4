import io

import pytest
from rich.console import Console

from hunyuan_train.data.inspection.show import TOKEN_BORDER, show_samples, write_sample, write_token
from hunyuan_train.data.rendering.encode import encode_renderings
from hunyuan_train.families.grammar.hunyuan_a13b.template import render
from tests.data.dialogues import chat, read

RECORD = chat("question", "[bold]answer[/bold] 请", mode="fast")


def _print(record, tokenizer, *, with_tokens=False):
    console = Console(width=200, file=io.StringIO())
    for panel in show_samples(render(read(record)), tokenizer, with_tokens=with_tokens):
        console.print(panel)
    return console.file.getvalue()


def test_texts_are_shown_as_they_are():
    assert "[bold]answer[/bold] 请" in _print(RECORD, None)


def test_the_title_counts_tokens_and_labels(tokenizer):
    sample = encode_renderings([render(read(RECORD))], tokenizer).sample(0)
    num_labels = int((sample.spans != 0).sum())
    title = f"sample 1 of 1, fast, {len(sample.tokens)} tokens, {num_labels} with loss"
    assert title in _print(RECORD, tokenizer)


def test_every_token_ends_in_a_border(tokenizer):
    sample = encode_renderings([render(read(RECORD))], tokenizer).sample(0)
    shown = _print(RECORD, tokenizer, with_tokens=True)
    assert shown.count(TOKEN_BORDER) == len(sample.tokens)


@pytest.mark.parametrize(
    ("token", "text"), [(b"a\n", "a\\n\n"), (b"\xe8\xaf", "\\xe8\\xaf"), (b"\t", "\\t")]
)
def test_bytes_that_are_no_text_are_visible(token, text):
    assert write_token(token) == text


def test_a_sample_for_the_log_marks_what_carries_loss(tokenizer):
    encoded = encode_renderings([render(read(chat("a", "b", "c", "d")))], tokenizer)
    assert write_sample(encoded.sample(0), tokenizer, max_part=99) == (
        "<|startoftext|>a<|extra_0|>[[b<|eos|>]]<|startoftext|>c<|extra_0|>[[d<|eos|>]]"
    )


def test_a_sample_for_the_log_is_one_short_line(tokenizer):
    encoded = encode_renderings([render(read(chat("a\nb", "c" * 200)))], tokenizer)
    line = write_sample(encoded.sample(0), tokenizer, max_part=40)
    assert line.startswith("<|startoftext|>a\\nb<|extra_0|>[[cccc")
    assert " … ccc" in line
    assert "\n" not in line
    assert len(line) < 90
