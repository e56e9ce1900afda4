"""What a text quotes as code: marks in it are talked about and not meant."""

import re

_CODE = re.compile(r"```.*?```|`[^`\n]+`", re.DOTALL)


def mask_code(text: str) -> str:
    """The text with its code blanked out, of the same length.

    A text that is nothing but code stays as it is: there the code is the answer.
    """
    if "`" not in text:
        return text
    masked = _CODE.sub(lambda code: " " * len(code[0]), text)
    return masked if masked.strip() else text
