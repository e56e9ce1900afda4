"""One model to be quantised: what every format is told."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hunyuan_train.families.shape import ModelShape

if TYPE_CHECKING:
    from hunyuan_train.data.dataset import Dataset


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """Which dialogues a format that looks at activations is calibrated on, and by what."""

    num_samples: int
    python: str | None  # interpreter with llm-compressor; None: not given
    # The dialogues of the training data, tokenized; None where none are given.
    open_dataset: Callable[[], "Dataset"] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What is to be quantised into what."""

    source: Path  # a model folder, checked: an export, a merged model or a released one
    shape: ModelShape
    output: Path  # the final folder, which the command publishes
    type: str  # what stands behind the format's colon; "" where nothing does
    calibration: Calibration
    llama_cpp: str | None = None  # llama.cpp's folder, or an interpreter that has its packages
