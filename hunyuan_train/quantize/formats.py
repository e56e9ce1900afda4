"""The formats of `hunyuan-train quantize`: one row each, and all that the command knows of them.

A format is a `Format`: what may stand behind its colon, a check that answers before torch is
imported, and two functions that do the work. The command makes the unfinished folder, calls
`write`, measures what was lost through `open_weights`, writes the report and publishes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hunyuan_train.errors import ConfigError
from hunyuan_train.families.shape import ModelShape

if TYPE_CHECKING:
    from hunyuan_train.model.weights import WeightSource


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """Which dialogues a format that looks at activations is calibrated on, and by what."""

    data_file: str | None  # in any form that training reads; None: not given
    num_samples: int
    max_seq_length: int
    python: str | None  # interpreter with llm-compressor; None: not given


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What is to be quantised into what."""

    source: Path  # a model folder, checked: an export, a merged model or a released one
    shape: ModelShape
    output: Path  # the final folder, which the command publishes
    type: str  # what stands behind the format's colon; "" where nothing does
    calibration: Calibration


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


FORMATS: tuple[Format, ...] = ()
