"""The ways by which text gets to a terminal or a log: what stands in it is shown, never obeyed.

Names and texts of other people's files are in nearly every line: every console, log line, failure
and answer goes through one of these, so that no caller has to think of it.
"""

import argparse
import logging
import sys
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from hunyuan_train.plain_text import make_plain, make_plain_name


class PlainConsole(Console):
    """A console that shows control characters of texts, and takes no text for markup or emoji.

    Its own colours, bars and cursor moves are apart from the texts, and stay.
    """

    def __init__(self, **settings: Any) -> None:  # noqa: ANN401  rich's own
        super().__init__(**{"markup": False, "emoji": False, **settings})

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Take a text or drawing apart, for all ways of printing."""
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
            else:
                yield Segment(make_plain(segment.text), segment.style)


class PlainFormatter(logging.Formatter):
    """Log lines in which names and texts are shown, and the names of files keep to their line."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, or the lines of a traceback."""
        if isinstance(record.args, tuple):
            record.args = tuple(
                make_plain_name(one) if isinstance(one, Path) else one for one in record.args
            )
        return make_plain(super().format(record))


class PlainParser(argparse.ArgumentParser):
    """Shows what is wrong with arguments, and does not print what stands in them."""

    def _check_value(self, action: argparse.Action, value: Any) -> None:  # noqa: ANN401
        """Say which word was meant, too, as argparse itself does from Python 3.14 on."""
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            if close := get_close_matches(str(value), map(str, action.choices or ()), n=1):
                error.message += f"; did you mean {close[0]}?"
            raise

    def error(self, message: str) -> NoReturn:
        """End with the message."""
        super().error(make_plain(message))


def say(text: str) -> None:
    """Print an answer on stdout, for people or for a script. A line of JSON stays the same JSON."""
    sys.stdout.write(f"{make_plain(text)}\n")


def complain(text: str) -> None:
    """Print on stderr."""
    sys.stderr.write(f"{make_plain(text)}\n")
