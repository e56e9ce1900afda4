"""Compiles DeepSpeed's C++ extensions once, before the ranks start, where the user can see it.

Left to the ranks, the first start of an environment is silent for half a minute, and a compilation
that was killed leaves a lock file for which every later start waits for ever, without a message.
"""

import fcntl
import hashlib
import json
import os
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from rich.console import Console

from hunyuan_train.config.schema import RunConfig
from hunyuan_train.errors import ConfigError
from hunyuan_train.launcher.exit_codes import SUCCESS, USER_ERROR
from hunyuan_train.launcher.host.probe import find_holder, identify_file
from hunyuan_train.launcher.host.supervise import INTERRUPTED, run_supervised
from hunyuan_train.optim.records import find_optimizer
from hunyuan_train.screen import outlive_the_screen
from hunyuan_train.terminal import PlainConsole
from hunyuan_train.whole_file import open_lock

POLL_SECONDS = 0.5
SOON_SECONDS = 5.0  # a lock that goes by then is not worth a word
# A rank of another host, or of another container, that loads what is built holds torch's lock for
# about a second, and cannot be seen from here.
UNSEEN_SECONDS = 60.0
USERS = "ranks.lock"  # which each rank that may load what is built holds together with others
MARK = "compiling"  # a file that is there while we compile, and after we were killed
# What decides, beside the versions, which commands ninja is given: where one of them differs, a
# rank would compile again, unseen and beneath those that have it loaded.
DECIDING = ("CXX", "CC", "CFLAGS", "CXXFLAGS", "LDFLAGS", "CUDA_HOME", "TORCH_CUDA_ARCH_LIST")
COMPILE = (
    "from deepspeed.accelerator import get_accelerator as accelerator\n"
    "accelerator().create_op_builder({builder!r}).load(verbose=False)\n"
)


@dataclass(frozen=True, slots=True)
class Extension:
    """One of DeepSpeed's extensions: its name on disk, its builder, and what it is for."""

    name: str
    builder: str
    purpose: str


SHARED_MEMORY = Extension(
    "deepspeed_shm_comm", "ShareMemCommBuilder", "for talk between CPU processes"
)
CPU_ADAM = Extension("cpu_adam", "CPUAdamBuilder", "for the optimizer step in host memory")
EXTENSIONS = {extension.name: extension for extension in (SHARED_MEMORY, CPU_ADAM)}


def needed_extensions(config: RunConfig, *, num_gpus: int) -> list[Extension]:
    """What a run loads: on the CPU always one, and those of its optimizer once it is decided."""
    on_cpu = [] if num_gpus else [SHARED_MEMORY]
    optimizer = config.optimizer.optimizer
    names = () if optimizer == "auto" else find_optimizer(optimizer).extensions
    return [*on_cpu, *(EXTENSIONS[name] for name in names)]


def main(names: Sequence[str]) -> int:
    """Compile extensions on the host of a run, before its ranks start."""
    console = PlainConsole(stderr=True, soft_wrap=True)
    folder = extensions_folder(os.environ)
    environment = {**os.environ, "TORCH_EXTENSIONS_DIR": str(folder)}  # where torch is to write
    try:
        for name in names:
            prepare_extension(
                EXTENSIONS[name], folder=folder, environment=environment, console=console
            )
    except ConfigError as error:
        console.print(f"error: {error}", markup=False, soft_wrap=True)
        return USER_ERROR
    return SUCCESS


def extensions_folder(environment: Mapping[str, str]) -> Path:
    """Where they are kept: one folder for each path by which an environment is reached.

    Environments that share a folder compile over each other's files, in the middle of their runs:
    ninja takes the other's paths for a change. So do two checkouts with links to one environment.
    Asking again from inside of a run changes nothing.
    """
    given = Path(environment.get("TORCH_EXTENSIONS_DIR") or Path(sys.prefix, "torch_extensions"))
    name = f"environment-{hashlib.sha256(sys.prefix.encode()).hexdigest()[:8]}"
    return given if given.name == name else given / name


def prepare_extension(
    extension: Extension, *, folder: Path, environment: Mapping[str, str], console: Console
) -> None:
    """Compile an extension unless it is there, and clear away what a killed compilation left.

    Raises:
        ConfigError: no compiler, no ninja, no place to write, or the compiler's own error.
    """
    build_folder = folder / extension.name
    with _only_one_launch(build_folder, console):
        _remove_stale_lock(build_folder / "lock", console)
        if _is_built(build_folder, extension, environment):
            return
        _check_tools(environment)
        console.print(f"compiling {extension.name} ({extension.purpose}): once, about 30 s")
        started = time.monotonic()
        # No spinner: the launcher writes on the same terminal, and would do so in its line.
        _compile(extension, build_folder, environment)
        console.print(f"compiled in {time.monotonic() - started:.0f} s")


@contextmanager
def _only_one_launch(build_folder: Path, console: Console) -> Iterator[None]:
    """Hold a lock that the kernel drops with its process, so that it can never be stale."""
    try:
        build_folder.mkdir(parents=True, exist_ok=True)
        handle = open_lock(build_folder / "launch.lock")
    except OSError as error:
        raise ConfigError(
            f"DeepSpeed's extensions cannot be written to {build_folder} ({error.strerror}); set "
            "TORCH_EXTENSIONS_DIR to a folder of yours"
        ) from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            console.print(f"waiting for another start that compiles {build_folder.name}")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _remove_stale_lock(lock: Path, console: Console) -> None:
    """Wait for whoever holds torch's lock file, and remove it once that process has ended.

    Called by the only start that may compile here.
    """
    said = ""
    while found := identify_file(lock):
        holder = find_holder(found)
        if holder is None and _is_left_behind(lock):
            if identify_file(lock) == found:  # not one that somebody has taken since
                lock.unlink(missing_ok=True)
                console.print(f"removed {lock}, left behind by a compilation that was killed")
            return
        who = f"process {holder}" if holder else "a process of another host or container"
        words = f"waiting for {who}, which compiles or loads {lock.parent}"
        if not holder:
            words += (
                f"; if there is none, its lock goes {UNSEEN_SECONDS:.0f} s after it was made, or "
                f"at once by `rm {shlex.quote(str(lock))}`"
            )
        if words != said and (holder or _age_seconds(lock) > SOON_SECONDS):
            console.print(words)
            said = words
        time.sleep(POLL_SECONDS)


def _is_left_behind(lock: Path) -> bool:
    """Whether a lock that no process here has open is not one of another host or container."""
    if (lock.parent / MARK).exists() or _age_seconds(lock) > UNSEEN_SECONDS:
        return True
    try:
        with open_lock(lock.with_name(USERS)) as users:
            fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # a rank somewhere holds it, or this disk knows no locks
        return False
    return True


def hold_extensions(environment: Mapping[str, str]) -> None:
    """Let starts elsewhere know, as long as this rank lives, that it may load an extension."""
    for build_folder in extensions_folder(environment).glob("*"):
        with suppress(OSError), open_lock(build_folder / USERS) as users:
            descriptor = os.dup(users.fileno())  # which is closed with the process alone
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)


def _age_seconds(lock: Path) -> float:
    """Seconds since a lock was made."""
    try:
        return time.time() - lock.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _is_built(build_folder: Path, extension: Extension, environment: Mapping[str, str]) -> bool:
    """Whether it was compiled for what is installed now, and as it would be now."""
    stamp = build_folder / "compiled_for"
    wanted = describe_build(environment)
    is_current = stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted
    return is_current and (build_folder / f"{extension.name}.so").is_file()


def describe_build(environment: Mapping[str, str]) -> str:
    """What the commands of a compilation follow from: versions, paths and the user's variables."""
    values = {name: environment[name] for name in DECIDING if name in environment}
    return (
        f"torch {version('torch')}, deepspeed {version('deepspeed')}\n"
        f"python {sys.version.split()[0]} in {sys.prefix}\n"
        f"{json.dumps(values, sort_keys=True)}\n"
    )


def _check_tools(environment: Mapping[str, str]) -> None:
    """Refuse to start a compilation that has no compiler, or that torch could not link."""
    if any(letter.isspace() for letter in sys.prefix):
        raise ConfigError(
            f"this environment lies in {sys.prefix}, and torch cannot compile against a path with "
            "a blank in it; start with `bash train.sh`, which finds a way around, or move it"
        )
    tools = {
        environment.get("CXX", "g++"): "apt-get install g++ (or your system's C++ compiler)",
        "ninja": "pip install ninja",
    }
    for program, remedy in tools.items():
        if shutil.which(program, path=environment.get("PATH")) is None:
            raise ConfigError(f"{program} is needed to compile DeepSpeed's extensions: {remedy}")


def _compile(extension: Extension, build_folder: Path, environment: Mapping[str, str]) -> None:
    """Compile in a process of its own; a failed or interrupted one leaves no lock."""
    (build_folder / MARK).touch()
    command = [sys.executable, "-c", COMPILE.format(builder=extension.builder)]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as output:
        exit_code = run_supervised(command, environment, output=output)
        output.seek(0)
        lines = output.read().strip().splitlines()
    if exit_code:
        (build_folder / "lock").unlink(missing_ok=True)
    (build_folder / MARK).unlink()
    if exit_code in INTERRUPTED:
        raise SystemExit(exit_code)
    if exit_code:
        raise ConfigError(
            f"{extension.name} could not be compiled; the compiler's last lines:\n"
            + "\n".join(lines[-15:])
        )
    description = describe_build(environment)
    (build_folder / "compiled_for").write_text(description, encoding="utf-8")


if __name__ == "__main__":
    outlive_the_screen(is_rank=True)
    sys.exit(main(sys.argv[1:]))
