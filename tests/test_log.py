"""What reaches the screen."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hunyuan_train.log import SHARED, ScreenFilter, says_news

WARN_OFTEN = """
import logging, sys, warnings
from pathlib import Path
from hunyuan_train.log import start_logging
start_logging(Path(sys.argv[1]))
warnings.simplefilter("always")
for number in range(50):
    warnings.warn("old name")
    logging.getLogger("hunyuan_train.x").warning("step")
"""


COMMONPLACE = """
import logging, sys
from hunyuan_train.log import log_to_screen
log_to_screen()
from deepspeed.utils import logger
logger.warning("Setting accelerator to CPU. If you have GPU ...")
logger.warning("news")
"""


def line(level: int, name: str, text: str) -> logging.LogRecord:
    return logging.LogRecord(name, level, "", 0, text, (), None)


@pytest.mark.parametrize("rank", [0, 3])
def test_a_warning_is_shown_once_on_each_rank(rank: int) -> None:
    screen = ScreenFilter(rank, is_verbose=False)
    warning = line(logging.WARNING, "transformers.x", "beware")
    assert [screen.filter(warning) for _ in range(3)] == [True, False, False]
    assert screen.filter(line(logging.WARNING, "transformers.x", "beware again"))


def test_what_all_ranks_warn_of_alike_is_shown_by_the_first(
    caplog: pytest.LogCaptureFixture,
) -> None:
    logging.getLogger("hunyuan_train.x").warning("step %d is bad", 3, extra=SHARED)
    [shared] = caplog.records
    screens = [ScreenFilter(rank, is_verbose=False) for rank in (0, 1, 2)]
    assert [screen.filter(shared) for screen in screens] == [True, False, False]


@pytest.mark.parametrize(("rank", "is_terminal"), [("0", True), ("1", False)])
def test_only_the_first_rank_has_a_terminal_for_bars(rank: str, is_terminal: bool) -> None:
    found = subprocess.run(
        [sys.executable, "-c", "from hunyuan_train.log import console; print(console.is_terminal)"],
        env=os.environ | {"RANK": rank, "FORCE_COLOR": "1"},  # rich takes it for a terminal's
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == str(is_terminal)


def test_libraries_inform_only_where_it_is_asked_for() -> None:
    theirs = line(logging.INFO, "DeepSpeed", "hello")
    ours = line(logging.INFO, "hunyuan_train.run", "hello")
    python = line(logging.WARNING, "py.warnings", "deprecated")
    quiet = [ScreenFilter(rank, is_verbose=False) for rank in (0, 1)]
    assert [screen.filter(ours) for screen in quiet] == [True, False]
    assert [screen.filter(theirs) for screen in quiet] == [False, False]
    assert [screen.filter(python) for screen in quiet] == [False, False]
    verbose = [ScreenFilter(rank, is_verbose=True) for rank in (0, 1)]
    for record in (theirs, python):
        assert [screen.filter(record) for screen in verbose] == [True, False]


def test_the_file_keeps_every_line_but_a_python_warning_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WARN_OFTEN, str(tmp_path)]
    finished = subprocess.run(command, capture_output=True, text=True, check=True)
    written = (tmp_path / "log" / "rank0.txt").read_text()
    assert written.count("old name") == 1
    assert written.count("WARNING hunyuan_train.x: step") == 50
    assert finished.stderr == "step\n"


def test_commonplaces_are_no_news() -> None:
    assert not says_news(line(logging.WARNING, "DeepSpeed", "Setting accelerator to CPU. If"))
    assert says_news(line(logging.WARNING, "DeepSpeed", "something else"))


@pytest.mark.slow
def test_a_commonplace_of_a_library_is_not_shown() -> None:
    done = subprocess.run(
        [sys.executable, "-c", COMMONPLACE], capture_output=True, text=True, check=True
    )
    said = done.stdout + done.stderr
    assert "news" in said
    assert "Setting accelerator" not in said
