"""Which line of code asked for something: the nearest one outside of torch and Python."""

import sys
import sysconfig
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import CodeType, FrameType, TracebackType

# Packages may lie in several folders: of an environment, of one that it builds on, of the system.
PACKAGES = tuple(
    f"{folder}/"
    for folder in dict.fromkeys([sysconfig.get_paths()["purelib"], *sys.path])
    if Path(folder).name in ("site-packages", "dist-packages")
)
STANDARD_LIBRARY = f"{sysconfig.get_paths()['stdlib']}/"
OWN_FOLDER = f"{Path(__file__).parent}/"
CODE_FOLDER = f"{Path(__file__).parents[2]}/"
# Packages whose lines say nothing: they were called by one that does.
SILENT = ("torch/", "numpy/", "triton/")
WRAPPERS = ("deepspeed/utils/nvtx.py", "deepspeed/comm/", "deepspeed/runtime/zero/linear.py")


@dataclass(frozen=True, slots=True)
class Place:
    """Where something was asked for."""

    line: str  # "hunyuan_train/model/loss.py:47 token_losses"
    files: tuple[str, ...]  # of the frames around it, innermost first


@lru_cache(maxsize=4096)
def short_name(code: CodeType) -> str:
    """A file as people know it, from its package on."""
    name = code.co_filename
    for folder in (*PACKAGES, STANDARD_LIBRARY, CODE_FOLDER):
        if name.startswith(folder):
            return name[len(folder) :]
    return name


@lru_cache(maxsize=4096)
def says_something(code: CodeType) -> bool:
    """Whether a line of this code tells a reader where he is."""
    name = code.co_filename
    if name.startswith(("<", OWN_FOLDER)):
        return False
    if name.startswith(PACKAGES):
        return not short_name(code).startswith((*SILENT, *WRAPPERS))
    return not name.startswith(STANDARD_LIBRARY)


def find_place(frame: FrameType | None = None) -> Place:
    """The nearest telling line of this thread, or of a frame, and the files around it."""
    frame = frame or sys._getframe(1)
    line = ""
    files: list[str] = []
    while frame is not None:
        code = frame.f_code
        name = short_name(code)
        if not files or files[-1] != name:
            files.append(name)
        if not line and says_something(code):
            line = f"{name}:{frame.f_lineno} {code.co_name}"
        frame = frame.f_back
    return Place(line or "torch", tuple(files))


def line_of_traceback(trace: TracebackType | None) -> str:
    """The innermost telling line of an error's traceback."""
    line = "torch"
    while trace is not None:
        code = trace.tb_frame.f_code
        if says_something(code):
            line = f"{short_name(code)}:{trace.tb_lineno} {code.co_name}"
        trace = trace.tb_next
    return line
