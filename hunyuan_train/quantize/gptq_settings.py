"""What GPTQ needs of a model and of the machine, known without torch."""

import shutil
import subprocess
from pathlib import Path

from hunyuan_train.errors import ConfigError
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.families.tables import released_tensors
from hunyuan_train.model.compression_scheme import is_compressed
from hunyuan_train.quantize.job import Job

GROUP_SIZES = (128, 64, 32)  # that servers have kernels for
WORKER = Path(__file__).with_name("gptq_worker.py")
PACKAGES = "llmcompressor==0.14.0.1 torch==2.13.0 transformers==5.17.0"
VARIABLE = "HUNYUAN_LLMCOMPRESSOR_PYTHON"
START_SECONDS = 60


def choose_group_size(shape: ModelShape) -> int:
    """The largest group that all compressed weights can be cut into.

    Raises:
        ConfigError: none.
    """
    widths = {one.shape[1] for one in released_tensors(shape).values() if is_compressed(one)}
    for size in GROUP_SIZES:
        if all(width % size == 0 for width in widths):
            return size
    raise ConfigError(
        f"format is w4a16, whose groups of {GROUP_SIZES[-1]} inputs or more do not divide the "
        f"widths {', '.join(map(str, sorted(widths)))} of this model; choose fp8"
    )


def check_gptq(job: Job) -> None:
    """Refuse what cannot be calibrated, or has nothing to run GPTQ.

    Raises:
        ConfigError: naming what is missing and how to get it.
    """
    choose_group_size(job.shape)
    if job.calibration.open_dataset is None:
        raise ConfigError(
            "format is w4a16, which is calibrated on training dialogues, and none are known; give "
            "--train_data FILE"
        )
    find_python(job.calibration.python)


def find_python(given: str | None) -> str:
    """The interpreter that has llm-compressor.

    Raises:
        ConfigError: saying how to make one.
    """
    how = (
        "its pins differ from ours, so it takes an environment of its own:\n"
        "  python3 -m venv ~/.venv-llmcompressor\n"
        f"  ~/.venv-llmcompressor/bin/pip install {PACKAGES}\n"
        f"and then --python ~/.venv-llmcompressor/bin/python, or {VARIABLE} in the environment"
    )
    if given is None:
        raise ConfigError(f"format is w4a16, which llm-compressor's GPTQ writes; {how}")
    found = shutil.which(str(Path(given).expanduser()))
    if found is None:
        raise ConfigError(f"python is {given}, which is no program; {how}")
    # Importing it takes many seconds; a missing part of it is seen when it starts.
    question = "from importlib.metadata import version; version('llmcompressor')"
    command = [found, "-c", question]
    try:
        ran = subprocess.run(
            command, capture_output=True, text=True, timeout=START_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"python is {given}, which does not start ({error}); {how}") from error
    if ran.returncode:
        last = (ran.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise ConfigError(f"python is {given}, which cannot run llm-compressor ({last}); {how}")
    return found
