"""GGUF, the format of llama.cpp and all that is built on it, by llama.cpp's own tools.

The converter gets a folder made for it: the weights, and a config.json and a vocabulary in the one
form that it reads. It writes the wanted type itself where it can. Others are made by the quantiser
from a file in the model's own dtype, so that nothing is rounded twice.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hunyuan_train.checkpoint.publish import check_room, hash_files
from hunyuan_train.export.companions import check_inside
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.families.tables import count_parameters
from hunyuan_train.model.released_files import locate_weights
from hunyuan_train.model.safetensors_header import largest
from hunyuan_train.quantize.formats import Format, Job
from hunyuan_train.quantize.gguf.llama_cpp import SCRIPTS, LlamaCpp, find_llama_cpp, run_watched
from hunyuan_train.quantize.gguf.source import (
    RANK_FILE,
    check_source,
    find_vocabulary,
    has_fused_experts,
)

if TYPE_CHECKING:
    from hunyuan_train.model.weights import WeightSource


@dataclass(frozen=True, slots=True)
class GgufType:
    """How llama.cpp writes most weights of a file."""

    number: int  # in llama.h: LLAMA_FTYPE_MOSTLY_...
    bits: float  # of a weight, about; what is small is stored wider
    converted: str = ""  # what the converter calls it; "": made by the quantiser


# Below 3.5 bits llama.cpp asks for a file of importances, which is not made here.
TYPES = {
    "f32": GgufType(0, 32.0, "f32"),
    "f16": GgufType(1, 16.0, "f16"),
    "bf16": GgufType(32, 16.0, "bf16"),
    "Q8_0": GgufType(7, 8.5, "q8_0"),
    "Q6_K": GgufType(18, 6.6),
    "Q5_K_M": GgufType(17, 5.7),
    "Q5_K_S": GgufType(16, 5.6),
    "Q4_K_M": GgufType(15, 4.9),
    "Q4_K_S": GgufType(14, 4.6),
    "Q4_0": GgufType(2, 4.6),
    "IQ4_XS": GgufType(30, 4.3),
    "Q3_K_M": GgufType(12, 3.9),
}
UNROUNDED = {"F64": "f32", "F32": "f32", "F16": "f16", "BF16": "bf16"}  # by stored dtype
PRE_TOKENIZER = "hunyuan"  # llama.cpp's name of how text is split before ranks are looked up
DESCRIPTIONS = ("config.json", "generation_config.json", "LICENSE*")  # that come along


def check_gguf(job: Job) -> None:
    """Refuse what could not be converted, before hours are lost.

    Raises:
        ConfigError: the model, or a tool that is not there; see `check_source`, `find_llama_cpp`.
        NoRoomError: the disk cannot hold the file and what it is made from.
    """
    check_source(job.source, job.shape)
    find_llama_cpp(job.llama_cpp)
    between = "" if TYPES[job.type].converted else _unrounded(job)
    num_bytes = _num_bytes(job.shape, job.type) + (_num_bytes(job.shape, between) if between else 0)
    if has_fused_experts(job.source, job.shape):
        num_bytes += _num_bytes(job.shape, _unrounded(job))
    check_room(job.output, num_bytes)


def write_gguf(job: Job, folder: Path) -> dict[str, str]:
    """Convert and quantise into an empty folder; returns the SHA-256 of each file by name.

    Raises:
        CheckpointError: a tool failed; it says what the tool said.
    """
    from hunyuan_train.quantize.gguf.staging import stage

    tools = find_llama_cpp(job.llama_cpp)
    work = folder / "work"  # on the same disk, and gone before the folder is published
    stage(job.source, work / "staged", job.shape)
    target = folder / f"model-{job.type}.gguf"
    if TYPES[job.type].converted:
        _convert(tools, job, work / "staged", target, job.type)
    else:
        between = work / "unrounded.gguf"
        _convert(tools, job, work / "staged", between, _unrounded(job))
        _quantise(tools, job, between, target)
    shutil.rmtree(work)
    for pattern in DESCRIPTIONS:
        for file in job.source.glob(pattern):
            shutil.copyfile(check_inside(file), folder / file.name)
    return hash_files(sorted(folder.iterdir()), lambda _: None)


def _convert(tools: LlamaCpp, job: Job, staged: Path, target: Path, type_: str) -> None:
    has_ranks = find_vocabulary(job.source) == RANK_FILE
    bos = job.shape.bos_token_id if job.shape.bos_token_id is not None else job.shape.eos_token_id
    command = [
        tools.python,
        *(str(SCRIPTS / "convert.py"), tools.converter_folder),
        *(PRE_TOKENIZER if has_ranks else "", str(job.shape.vocab_size), str(bos or 0)),
        *("--outtype", TYPES[type_].converted, "--outfile", str(target)),
        *("--model-name", job.output.name, str(staged)),
    ]
    run_watched("converting", command, target, _num_bytes(job.shape, type_))


def _quantise(tools: LlamaCpp, job: Job, source: Path, target: Path) -> None:
    command = [
        tools.python,
        *(str(SCRIPTS / "quantise.py"), str(source), str(target)),
        *(job.type, str(TYPES[job.type].number), str(os.cpu_count() or 1)),
        *([tools.quantiser] if tools.quantiser else []),
    ]
    run_watched("quantising", command, target, _num_bytes(job.shape, job.type))


def _unrounded(job: Job) -> str:
    """The type that holds a model's weights as they are."""
    return UNROUNDED[largest(locate_weights(job.source, job.shape)).dtype]


def _num_bytes(shape: ModelShape, type_: str) -> int:
    """Size of a file of a type, about."""
    return int(count_parameters(shape).total * TYPES[type_].bits / 8)


def open_gguf(folder: Path, shape: ModelShape) -> "WeightSource":
    """The weights of a written folder, dequantised, by released name.

    Raises:
        ConfigError: the package `gguf` is not installed.
    """
    from hunyuan_train.quantize.gguf.weights import GgufWeights

    [file] = folder.glob("model-*.gguf")
    return GgufWeights.open(file, shape)


GGUF = Format(
    name="gguf",
    help="for llama.cpp, by its own converter and quantiser",
    check=check_gguf,
    write=write_gguf,
    open_weights=open_gguf,
    types=tuple(TYPES),
    gentler="gguf:Q8_0",
)
