"""Take an answer of the model apart, as the serving parsers for Hunyuan do.

    <think>\\n REASONING \\n</think>\\n<answer>\\n CONTENT \\n</answer>

with an empty REASONING in fast mode. Text that does not follow this grammar is all content, tags
and all, which is what a user of a server would then see.
"""

import re
from dataclasses import dataclass

OUTPUT = re.compile(
    r"<think>\n(?P<reasoning>.*?)\n</think>\n<answer>\n(?P<content>.*?)\n</answer>", re.DOTALL
)


@dataclass(frozen=True, slots=True)
class ParsedOutput:
    """An answer's parts."""

    reasoning: str | None  # None in fast mode and where the grammar is not followed
    content: str
    is_well_formed: bool


def parse_output(text: str) -> ParsedOutput:
    """Split generated text, special tokens removed, into reasoning and content."""
    match = OUTPUT.match(text)
    if match is None:
        return ParsedOutput(None, text, is_well_formed=False)
    return ParsedOutput(match["reasoning"] or None, match["content"], is_well_formed=True)
