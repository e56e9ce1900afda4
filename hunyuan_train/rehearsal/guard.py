"""Compiles the guard of pretended devices (guard.cpp), once for each version of torch.

Without torch: the library has to be there, and loaded, before torch is.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from hunyuan_train.errors import ConfigError

SOURCE = Path(__file__).with_name("guard.cpp")
COMPILER_SECONDS = 600


def torch_folder() -> Path:
    """Where torch is installed; it is not imported.

    Raises:
        ConfigError: it is not.
    """
    found = find_spec("torch")
    if found is None or found.origin is None:
        raise ConfigError("torch is not installed, which a rehearsal runs: see requirements.txt")
    return Path(found.origin).parent


def prepare_guard(folder: Path, *, compiler: str = "g++") -> Path:
    """The compiled guard.

    Args:
        folder: for compiled libraries, shared with DeepSpeed's extensions.
        compiler: of C++20.

    Raises:
        ConfigError: it cannot be compiled here.
    """
    torch = torch_folder()
    made_of = f"{version('torch')} {torch} {sys.version} {SOURCE.read_text(encoding='utf-8')}"
    digest = hashlib.sha256(made_of.encode()).hexdigest()[:12]
    library = folder / "pretended_devices" / f"guard-{digest}.so"
    if library.exists():
        return library
    if shutil.which(compiler) is None:
        raise ConfigError(
            f"a rehearsal compiles a small library once, for which {compiler} is needed: "
            "apt-get install g++ (or your system's C++ compiler)"
        )
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"the library for pretended devices cannot be written to {library.parent} "
            f"({error.strerror}); set TORCH_EXTENSIONS_DIR to a folder of yours"
        ) from error
    compile_guard(torch, library, compiler)
    return library


def compile_guard(torch: Path, library: Path, compiler: str) -> None:
    """Compile it; it appears whole or not at all.

    Raises:
        ConfigError: with the compiler's last lines.
    """
    unfinished = library.with_suffix(f".{os.getpid()}")
    command = [
        *(compiler, "-std=c++20", "-O0", "-shared", "-fPIC", "-I", str(torch / "include")),
        *(str(SOURCE), "-o", str(unfinished), "-L", str(torch / "lib")),
        *("-ltorch_cpu", "-lc10", f"-Wl,-rpath,{torch / 'lib'}"),
    ]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=COMPILER_SECONDS, check=False
        )
        if done.returncode:
            last = "\n".join(done.stderr.strip().splitlines()[-15:])
            raise ConfigError(f"{SOURCE.name} could not be compiled; the compiler's words:\n{last}")
        unfinished.rename(library)
    finally:
        unfinished.unlink(missing_ok=True)
