"""The formats of `hunyuan-train quantize`: one row each, and all that the command knows of them.

A format is a `Format`: what may stand behind its colon, a check that answers before torch is
imported, and two functions that do the work. The command makes the unfinished folder, calls
`write`, measures what was lost through `open_weights`, writes the report and publishes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from hunyuan_train.errors import ConfigError
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.model.compression_scheme import Scheme
from hunyuan_train.quantize.gguf.types import TYPES
from hunyuan_train.quantize.gptq_settings import check_gptq
from hunyuan_train.quantize.job import Job

if TYPE_CHECKING:
    from hunyuan_train.model.weights import WeightSource


@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    """One format."""

    name: str  # as it is written behind --format, before a colon
    help: str
    # Refuses a job that cannot be done, by ConfigError, within a moment and without torch.
    check: Callable[[Job], None]
    # Fills an empty folder with all that is served, and returns the SHA-256 of each file by name.
    # Shows its progress itself; on an exception the command removes the folder.
    write: Callable[[Job, Path], dict[str, str]]
    # Gives the written weights, dequantised, by released name.
    open_weights: Callable[[Path, ModelShape], "WeightSource"]
    types: tuple[str, ...] = ()  # that must stand behind the colon
    gentler: str = ""  # the format to name where this one loses too much
    # Clears away, once the folder is published, what was kept to go on from.
    finish: Callable[[Job], None] = lambda _: None


def find_format(text: str) -> tuple[Format, str]:
    """The format that `--format` names, and its type.

    Raises:
        ConfigError: there is none, or a type that it does not have.
    """
    name, colon, type_ = text.partition(":")
    known = {one.name: one for one in FORMATS}
    listed = ", ".join(one.name + (":TYPE" if one.types else "") for one in FORMATS)
    if name not in known:
        raise ConfigError(f"format is {text}, which is none of {listed}")
    found = known[name]
    if bool(colon) != bool(found.types) or (colon and type_ not in found.types):
        types = f"one of {', '.join(found.types)} behind a colon" if found.types else "no type"
        raise ConfigError(f"format is {text}; {name} takes {types}")
    return found, type_


def accept(job: Job) -> None:
    """A check of what can always be done."""


def open_compressed(folder: Path, shape: ModelShape) -> "WeightSource":
    """The weights of a folder in compressed-tensors' formats."""
    from hunyuan_train.model.compressed_weights import open_model

    found, source, _ = open_model(folder)
    assert found == shape
    return source


def write_float8_by(strategy: Literal["channel", "block"]) -> Callable[[Job, Path], dict[str, str]]:
    """A writer of FP8."""

    def write(job: Job, folder: Path) -> dict[str, str]:
        from hunyuan_train.quantize.float8_writer import write_float8

        return write_float8(job, folder, Scheme(strategy))

    return write


def write_w4a16(job: Job, folder: Path) -> dict[str, str]:
    """Four-bit weights by GPTQ."""
    from hunyuan_train.quantize.gptq import write_gptq

    return write_gptq(job, folder)


def forget_gptq(job: Job) -> None:
    """Remove the layers that GPTQ kept."""
    from hunyuan_train.quantize.gptq import forget_work

    forget_work(job)


def check_gguf(job: Job) -> None:
    """What llama.cpp's converter needs of a model, and its tools."""
    from hunyuan_train.quantize.gguf.check import check_gguf

    check_gguf(job)


def write_gguf(job: Job, folder: Path) -> dict[str, str]:
    """A file for llama.cpp, by its own tools."""
    from hunyuan_train.quantize.gguf.write import write_gguf

    return write_gguf(job, folder)


def open_gguf(folder: Path, shape: ModelShape) -> "WeightSource":
    """The weights of a file for llama.cpp."""
    from hunyuan_train.quantize.gguf.weights import open_gguf

    return open_gguf(folder, shape)


FORMATS: tuple[Format, ...] = (
    Format(
        name="fp8",
        help="8 bits, a scale per output channel, with activations in FP8, scaled per token",
        check=accept,
        write=write_float8_by("channel"),
        open_weights=open_compressed,
        gentler="fp8-block",
    ),
    Format(
        name="fp8-block",
        help="8 bits, a scale per block of 128 x 128, with activations in groups of 128",
        check=accept,
        write=write_float8_by("block"),
        open_weights=open_compressed,
        gentler="none: serve the model as it is, in bfloat16",
    ),
    Format(
        name="w4a16",
        help="4 bits by GPTQ, calibrated on training dialogues, with activations unchanged",
        check=check_gptq,
        write=write_w4a16,
        open_weights=open_compressed,
        gentler="fp8",
        finish=forget_gptq,
    ),
    Format(
        name="gguf",
        help=f"for llama.cpp, by its own converter and quantiser. TYPE: {', '.join(TYPES)}",
        check=check_gguf,
        write=write_gguf,
        open_weights=open_gguf,
        types=tuple(TYPES),
        gentler="gguf:Q8_0",
    ),
)
