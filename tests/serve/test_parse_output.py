"""The grammar of answers, as the serving parsers read it."""

import pytest

from hunyuan_train.serve.parse_output import ParsedOutput, parse_output


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>\nr\n</think>\n<answer>\nA\n</answer>", ParsedOutput("r", "A", True)),
        ("<think>\n\n</think>\n<answer>\nA\n</answer>", ParsedOutput(None, "A", True)),
        (
            "<think>\na</think>b\n</think>\n<answer>\nA\n</answer>",
            ParsedOutput("a</think>b", "A", True),
        ),
        ("<think>\nr\n</think>\n<answer>\nA\n</answer>\n</answer>", ParsedOutput("r", "A", True)),
        ("plain text", ParsedOutput(None, "plain text", False)),
        ("<think>\nr.</think>\n<answer>\nA\n</answer>", None),
        ("<think>\nr\n</think>\n<answer>A</answer>", None),
        ("<think>\nr\n</think>\n<answer>\nA", None),
    ],
)
def test_output_is_split_only_where_it_follows_the_grammar(
    text: str, expected: ParsedOutput | None
) -> None:
    assert parse_output(text) == (expected or ParsedOutput(None, text, False))
