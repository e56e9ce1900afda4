"""The elements of one JSON array, cut out as its text comes in."""

import json
from collections.abc import Iterator
from typing import Literal

_SCAN = json.JSONDecoder().raw_decode
_BLANKS = " \t\r\n"
_CUT_MARGIN = 16  # characters: an error this near the end of the text may only be its end


class BrokenArrayError(ValueError):
    """Text that is not a JSON array."""


class ArrayScanner:
    """Feed it text; it gives each element with the line it starts on."""

    def __init__(self, *, max_element_length: int) -> None:
        self.max_element_length = max_element_length
        self.text = ""
        self.position = 0
        self.line = 1
        self.expected: Literal["open", "element", "comma", "nothing"] = "open"

    def feed(self, text: str, *, is_last: bool) -> Iterator[tuple[int, str]]:
        """Elements that are complete with this text."""
        self.text, self.position = self.text[self.position :] + text, 0
        while self._reach_element():
            end = self._find_end(is_last=is_last)
            if end is None:
                break
            yield self.line, self.text[self.position : end]
            self._advance(end)
            self.expected = "comma"
        if is_last and self.expected != "nothing":
            raise BrokenArrayError(f"the array that starts the file has no end (line {self.line})")

    def _reach_element(self) -> bool:
        """Pass blanks and punctuation; whether an element starts here."""
        while True:
            end = self.position
            while end < len(self.text) and self.text[end] in _BLANKS:
                end += 1
            self._advance(end)
            if end == len(self.text):
                return False
            char = self.text[end]
            if self.expected == "element" and char != "]":
                return True
            if (self.expected, char) in (("open", "["), ("comma", ",")):
                self.expected = "element"
            elif self.expected in ("element", "comma") and char == "]":
                self.expected = "nothing"
            else:
                raise BrokenArrayError(f"unexpected {char!r} on line {self.line} of the array")
            self._advance(end + 1)

    def _advance(self, position: int) -> None:
        self.line += self.text.count("\n", self.position, position)
        self.position = position

    def _find_end(self, *, is_last: bool) -> int | None:
        """Where the element ends; None while the text does not reach that far."""
        try:
            _, end = _SCAN(self.text, self.position)
        except json.JSONDecodeError as error:
            may_be_cut = error.pos > len(self.text) - _CUT_MARGIN or "Unterminated" in error.msg
            is_short = len(self.text) - self.position < self.max_element_length
            if may_be_cut and is_short and not is_last:
                return None
            line = self.line + self.text.count("\n", self.position, error.pos)
            raise BrokenArrayError(f"{error.msg} on line {line} of the array") from error
        except RecursionError as error:
            raise BrokenArrayError(f"nesting too deep on line {self.line}") from error
        return end
