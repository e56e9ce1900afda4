"""Where the files lie that come along with this package, in a checkout and in an installed wheel.

A checkout holds them at its top level. A wheel carries a copy of that level in `shipped_files/`,
under the same names; `pyproject.toml` maps them there when the wheel is built.
"""

import os
import shlex
import site
import sys
from pathlib import Path

VERSION = "0.1.0"  # pyproject.toml reads it from here: a checkout knows it without being installed

COMMAND = "hunyuan-train"  # its script, beside the interpreter it was installed for
PACKAGE = Path(__file__).resolve().parent
CODE_FOLDER = PACKAGE.parent  # holds the package: the checkout, site-packages, or pip's --target
_IN_WHEEL = PACKAGE / "shipped_files"
IS_INSTALLED = (_IN_WHEEL / "train.py").is_file()
TOP_LEVEL = _IN_WHEEL if IS_INSTALLED else CODE_FOLDER

TRAIN_SCRIPT = TOP_LEVEL / "train.py"
REQUIREMENTS = TOP_LEVEL / "requirements.txt"
DS_CONFIGS = TOP_LEVEL / "ds_configs"
TINY_TOKENIZER = TOP_LEVEL / "data" / "tokenizer_tiny"
RECIPES = PACKAGE / "config" / "recipes"


def python_path(given: str | None) -> str:
    """PYTHONPATH for other processes, so that they find this package before another of its name.

    Where Python looks for packages anyway, nothing is added: PYTHONPATH comes before the standard
    library, and a package there may have the name of one of its modules.

    Args:
        given: our own PYTHONPATH.
    """
    looked_at = {Path(folder).resolve() for folder in site.getsitepackages()}
    looked_at.add(Path(site.getusersitepackages()).resolve())
    ours = [] if CODE_FOLDER in looked_at else [str(CODE_FOLDER)]
    folders = [*ours, *(given or "").split(os.pathsep)]
    return os.pathsep.join(filter(None, dict.fromkeys(folders)))


def render_command(*words: str | Path) -> str:
    """A command of this package as it works when pasted into a shell, whatever its folder.

    By the interpreter that runs now, in the present folder: settings hold paths relative to it.

    Args:
        words: the command and its arguments, such as "chat" and a folder.
    """
    command = Path(sys.executable).with_name(COMMAND)
    is_ours = command.is_relative_to(CODE_FOLDER) or not python_path(None)
    start = [str(command)] if is_ours and command.is_file() else _python_words()
    return f"cd {shlex.quote(str(Path.cwd()))} && {shlex.join([*start, *map(str, words)])}"


def _python_words() -> list[str]:
    """The command where it has no script beside the interpreter."""
    folders = python_path(None)
    path = ["env", f"PYTHONPATH={folders}"] if folders else []
    return [*path, sys.executable, "-P", "-m", PACKAGE.name]
