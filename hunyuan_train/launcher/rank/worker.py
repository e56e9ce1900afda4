"""What a process knows of how it was started, and how it tells the launcher why it ended."""

import json
import os
import sys
import traceback
from pathlib import Path
from types import TracebackType

from hunyuan_train.config.schema import RunConfig
from hunyuan_train.errors import ConfigError
from hunyuan_train.launcher.host.extension import (
    extensions_folder,
    hold_extensions,
    needed_extensions,
    prepare_extension,
)
from hunyuan_train.launcher.machine import detect_machine
from hunyuan_train.launcher.rank.environment import library_defaults
from hunyuan_train.launcher.rank.heartbeat import FAILURE_REPORT, is_worker, node_folder
from hunyuan_train.terminal import PlainConsole, complain

# Under DeepSpeed's launcher: a folder that all hosts share. Ranks find their environment there, and
# leave a mark at their end, because that launcher's word cannot be trusted.
SHARED_VARIABLE = "HUNYUAN_TRAIN_SHARED"

# Which rank this is, torchrun says together with these; a part of them is left from something else.
PLACE = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def check_place() -> None:
    """Refuse to be a rank of a job that nobody started.

    Raises:
        ConfigError: some of what makes a process a rank is set, and some is not.
    """
    if missing := [name for name in PLACE if not os.environ.get(name)]:
        raise ConfigError(
            "RANK and LOCAL_RANK are set, as torchrun sets them for each process, without "
            f"{', '.join(missing)}; if they are left over from something else, "
            "`unset RANK LOCAL_RANK`, and the run starts its own processes"
        )


def started_slots(config: RunConfig) -> tuple[int, ...]:
    """Processes that torchrun started on each machine; a rank takes others to be like its own.

    Raises:
        ConfigError: the settings ask for another number.
    """
    everywhere = int(os.environ["WORLD_SIZE"])
    here = int(os.environ.get("LOCAL_WORLD_SIZE", everywhere))
    if config.parallel.num_processes not in ("auto", here):
        raise ConfigError(
            f"num_processes is {config.parallel.num_processes}, but torchrun started {here} on "
            "this machine; leave --num_processes out, or start without torchrun"
        )
    num_alike, rest = divmod(everywhere, here)
    return (here,) * num_alike + ((rest,) if rest else ())


def report_failure(text: str) -> None:
    """Leave this rank's failure report to the launcher, or print it where there is none.

    A failing rank takes others with it, whose reports would hide the cause: the launcher prints
    only the one that was written first, and prints it last.
    """
    folder = node_folder()
    if folder and is_worker():
        (folder / f"{os.environ['RANK']}{FAILURE_REPORT}").write_text(text, encoding="utf-8")
    else:
        complain(text)


def environment_file(folder: Path, node_rank: int) -> Path:
    """Where the ranks of a host find their environment."""
    return folder / f"environment-{node_rank}.json"


def take_environment() -> None:
    """Read this rank's environment from the file of its host, where it did not come by itself.

    From then on others know what the rank may load.
    """
    folder = os.environ.get(SHARED_VARIABLE)
    if folder:
        node_rank = int(os.environ["CROSS_RANK"])  # DeepSpeed's name for it
        text = environment_file(Path(folder), node_rank).read_text(encoding="utf-8")
        os.environ.update(json.loads(text))
    machine = detect_machine()  # for a torchrun of the user's, which knows none of what we set
    cores_per_rank = max(1, machine.num_cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    os.environ.update(
        library_defaults(os.environ, num_gpus=machine.num_gpus, cores_per_rank=cores_per_rank)
    )
    hold_extensions(os.environ)


def prepare_extensions(config: RunConfig, *, num_gpus: int) -> None:
    """Compile what a run loads, where nobody has done it before the ranks started.

    Under a torchrun of the user's, each rank would compile by itself, in a folder that all
    environments share. There, one that was killed leaves a lock that all others wait for.

    Raises:
        ConfigError: it cannot be compiled.
    """
    if node_folder() is not None:  # our launcher has
        return
    folder = extensions_folder(os.environ)
    bin_folder = str(Path(sys.executable).parent)  # of the ninja that torch asks whether all is new
    os.environ["PATH"] = f"{bin_folder}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    os.environ["TORCH_EXTENSIONS_DIR"] = str(folder)
    console = PlainConsole(stderr=True, soft_wrap=True)
    for extension in needed_extensions(config, num_gpus=num_gpus):
        prepare_extension(extension, folder=folder, environment=os.environ, console=console)
    hold_extensions(os.environ)


def mark_done() -> None:
    """Say that this rank has come to its end, where somebody counts."""
    folder = os.environ.get(SHARED_VARIABLE)
    if folder:
        Path(folder, f"rank-{os.environ['RANK']}.done").touch()


def count_marks(folder: Path) -> int:
    """Ranks that have come to their end."""
    return len(list(folder.glob("rank-*.done")))


def report_crash(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """A `sys.excepthook` that leaves the traceback to the launcher."""
    lines = "".join(traceback.format_exception(kind, error, trace)).rstrip()
    report_failure(f"rank {os.environ['RANK']} failed:\n{lines}")
