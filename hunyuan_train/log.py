"""Where log lines go: rank 0's to the screen, every rank's to a file of its own.

Call sites never ask for their rank: rank 0 informs, every rank warns, of the same thing once. What
all ranks know alike they all log with `extra=SHARED`, and the screen shows rank 0's line. The
libraries below us warn on the screen and tell the rest to the file only, unless asked for.
"""

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.logging import RichHandler

from hunyuan_train.json_screen import JsonFormatter, JsonStream, write_json_to_screen
from hunyuan_train.screen import open_log
from hunyuan_train.terminal import PlainConsole, PlainFormatter

OURS = "hunyuan_train"
PYTHON_WARNINGS = "py.warnings"  # the logger of `logging.captureWarnings`
FILE_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
# These print by handlers of their own, which they add when they are imported.
LIBRARIES = ("DeepSpeed", "transformers", "accelerate", "datasets", "peft")

# What a library warns of and everybody knows who called us: a command that needs no GPU.
COMMONPLACE = ("Setting accelerator to CPU",)

SHARED = {"is_shared": True}  # `extra` of a warning that every rank gives alike

# One console for log lines and progress bars, so that a line never tears the bar. Only rank 0 may
# take it for a terminal: bars are drawn there and nowhere else.
console = PlainConsole(
    stderr=True, force_terminal=None if os.environ.get("RANK", "0") == "0" else False
)


def start_logging(
    output_dir: Path, *, is_verbose: bool = False, is_quiet: bool = False, is_json: bool = False
) -> None:
    """Send log lines to the screen and to `output_dir/log/rank{N}.txt`.

    Call it once the libraries are imported: it replaces their handlers.

    Args:
        output_dir: of the run.
        is_verbose: rank 0 shows all that the libraries say.
        is_quiet: the screen shows warnings and errors only.
        is_json: the screen gets JSON, an object a line.
    """
    set_screen(is_quiet=is_quiet, is_json=is_json)
    rank = int(os.environ.get("RANK", "0"))
    folder = output_dir / "log"
    folder.mkdir(parents=True, exist_ok=True)
    file = logging.StreamHandler(open_log(folder / f"rank{rank}.txt"))
    file.setFormatter(PlainFormatter(FILE_FORMAT))
    log_to_screen(rank=rank, is_verbose=is_verbose, also=[file])
    # torch warns of a name at each collective, which would fill the file.
    logging.getLogger(PYTHON_WARNINGS).addFilter(OnceFilter())
    sys.stdout = file.stream  # libraries also print; what is ours goes through the console
    for name in LIBRARIES:
        library = logging.getLogger(name)
        library.handlers.clear()
        library.propagate = True
        library.setLevel(logging.INFO)


def set_screen(*, is_quiet: bool, is_json: bool) -> None:
    """Let this process keep its bars and answers to itself, or write JSON; before it logs."""
    console.quiet = is_quiet
    if is_json:
        write_json_to_screen()


def log_to_screen(
    *, rank: int = 0, is_verbose: bool = False, also: Sequence[logging.Handler] = ()
) -> None:
    """Send log lines to the screen; enough for a command that is no run.

    A terminal shares its lines with progress bars; in a file or a pipe each line is one line.
    """
    screen: logging.Handler = logging.StreamHandler(sys.stderr)
    is_json = isinstance(sys.stderr, JsonStream)
    if console.is_terminal and not console.quiet:
        screen = RichHandler(console=console, show_time=False, show_level=False, show_path=False)
    prefix = "" if rank == 0 else f"rank {rank}: "
    logging.captureWarnings(capture=True)
    for name in LIBRARIES:  # before they are imported, when they add handlers of their own
        logging.getLogger(name).addFilter(says_news)
    screen.setFormatter(JsonFormatter() if is_json else PlainFormatter(f"{prefix}%(message)s"))
    screen.addFilter(ScreenFilter(rank, is_verbose=is_verbose))
    if console.quiet:
        screen.setLevel(logging.WARNING)
    logging.basicConfig(level=logging.INFO, handlers=[*also, screen], force=True)


def says_news(record: logging.LogRecord) -> bool:
    """Whether a library's line is more than a commonplace."""
    return not record.getMessage().startswith(COMMONPLACE)


class OnceFilter(logging.Filter):
    """Lets each text through once."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Decide about one line."""
        text = record.getMessage()
        is_new = text not in self.texts
        self.texts.add(text)
        return is_new


class ScreenFilter(logging.Filter):
    """Lets through warnings of every rank, each once, and what our own code says on rank 0."""

    def __init__(self, rank: int, *, is_verbose: bool) -> None:
        super().__init__()
        self.rank = rank
        self.is_verbose = is_verbose
        self.once = OnceFilter()

    def filter(self, record: logging.LogRecord) -> bool:
        """Decide about one line; Python's own warnings belong to the file."""
        if self.is_verbose and self.rank == 0:
            return True
        if record.name == PYTHON_WARNINGS:
            return False
        if record.levelno >= logging.WARNING:
            is_anothers = self.rank != 0 and "is_shared" in record.__dict__
            return not is_anothers and self.once.filter(record)
        return self.rank == 0 and record.name.partition(".")[0] == OURS
