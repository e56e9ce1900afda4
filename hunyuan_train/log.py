"""Where log lines go: rank 0's to the screen, every rank's to a file of its own.

Call sites never ask for their rank: rank 0 informs, every rank warns. The libraries below us warn
on the screen and tell the rest to the file only.
"""

import logging
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.logging import RichHandler

OURS = "hunyuan_train"
FILE_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
# These print by handlers of their own, which they add when they are imported.
LIBRARIES = ("DeepSpeed", "transformers", "accelerate", "datasets", "peft")

# One console for log lines and progress bars, so that a line never tears the bar.
console = Console(stderr=True)


def start_logging(output_dir: Path) -> None:
    """Send log lines to the screen and to `output_dir/log/rank{N}.txt`.

    Call it once the libraries are imported: it replaces their handlers.
    """
    rank = int(os.environ.get("RANK", "0"))
    folder = output_dir / "log"
    folder.mkdir(parents=True, exist_ok=True)
    file = logging.FileHandler(folder / f"rank{rank}.txt", encoding="utf-8")
    file.setFormatter(logging.Formatter(FILE_FORMAT))
    log_to_screen(rank=rank, also=[file])
    sys.stdout = file.stream  # libraries also print; what is ours goes through the console
    for name in LIBRARIES:
        library = logging.getLogger(name)
        library.handlers.clear()
        library.propagate = True
        library.setLevel(logging.INFO)


def log_to_screen(*, rank: int = 0, also: Sequence[logging.Handler] = ()) -> None:
    """Send log lines to the screen; enough for a command that is no run.

    A terminal shares its lines with progress bars; in a file or a pipe each line is one line.
    """
    screen: logging.Handler = logging.StreamHandler(sys.stderr)
    if console.is_terminal:
        screen = RichHandler(console=console, show_time=False, show_level=False, show_path=False)
    prefix = "" if rank == 0 else f"rank {rank}: "
    logging.captureWarnings(capture=True)
    screen.setFormatter(logging.Formatter(f"{prefix}%(message)s"))
    screen.addFilter(partial(belongs_on_screen, rank=rank))
    logging.basicConfig(level=logging.INFO, handlers=[*also, screen], force=True)


def belongs_on_screen(record: logging.LogRecord, *, rank: int) -> bool:
    """Warnings of every rank and what our own code says on rank 0; Python's warnings never do."""
    if record.name == "py.warnings":
        return False
    is_ours = record.name.partition(".")[0] == OURS
    return record.levelno >= logging.WARNING or (is_ours and rank == 0)
