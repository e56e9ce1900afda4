"""A screen for schedulers: one JSON object a line, whoever prints."""

import io
import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from hunyuan_train import log
from hunyuan_train.config.load import load_config
from hunyuan_train.errors import ConfigError
from hunyuan_train.json_screen import NUMBERS, JsonStream, as_object, write_json_to_screen
from hunyuan_train.terminal import PlainConsole


@contextmanager
def screen() -> Iterator[io.StringIO]:
    """Takes what is written; no fixture, because pytest sets stderr anew before a test's call."""
    written = io.StringIO()
    handlers, level = logging.root.handlers[:], logging.root.level
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", written)
        patch.setattr(log.console, "quiet", False)
        yield written
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


def objects(screen: io.StringIO) -> list[dict]:
    return [json.loads(line) for line in screen.getvalue().splitlines()]


def test_logs_prints_and_consoles_become_objects() -> None:
    with screen() as shown:
        write_json_to_screen()
        write_json_to_screen()  # twice is once
        log.log_to_screen()
        logger = logging.getLogger("hunyuan_train.trainer.loop")
        logger.info(
            "step 3/9  loss 1.5", extra={NUMBERS: {"step": 3, "loss": 1.5, "grad_norm": None}}
        )
        PlainConsole(stderr=True, soft_wrap=True).print("model      tiny\ndata       a \x1b[31mred")
        sys.stderr.write('{"message": "one ')
        sys.stderr.write('more"}\n\n')
        step, model, data, one = objects(shown)
        assert (step["step"], step["loss"], step["grad_norm"], step["level"]) == (
            3,
            1.5,
            None,
            "info",
        )
        assert step["message"] == "step 3/9  loss 1.5"
        assert model["message"] == "model      tiny"
        assert "\x1b" not in shown.getvalue()
        assert data["message"].startswith("data       a ")
        assert one == {"message": "one more"}


def test_a_relayed_line_gets_its_host() -> None:
    assert json.loads(as_object('{"step": 3}', host="a", rank=1)) == {
        "step": 3,
        "host": "a",
        "rank": 1,
    }
    assert json.loads(as_object("[W] native", host="a"))["message"] == "[W] native"
    assert not JsonStream(io.StringIO()).isatty()


def test_quiet_shows_warnings_only() -> None:
    with screen() as shown:
        log.set_screen(is_quiet=True, is_json=False)
        log.log_to_screen()
        logger = logging.getLogger("hunyuan_train.x")
        logger.info("chatter")
        logger.warning("the disk is full")
        log.console.print("an answer")
        assert shown.getvalue() == "the disk is full\n"


def test_quiet_and_verbose_contradict() -> None:
    with pytest.raises(ConfigError, match="quiet and verbose"):
        load_config(["--recipe", "tiny", "--quiet", "--verbose"])
