"""GGUF, the format of llama.cpp and all that is built on it, by llama.cpp's own tools.

The converter gets a folder made for it: the weights, and a config.json and a vocabulary in the one
form that it reads. It writes the wanted type itself where it can. Others are made by the quantiser
from a file in the model's own dtype, so that nothing is rounded twice.
"""

import os
import shutil
import sys
from pathlib import Path

from hunyuan_train.checkpoint.publish import hash_files
from hunyuan_train.export.companions import check_inside
from hunyuan_train.progress import show_progress
from hunyuan_train.quantize.gguf.check import estimate_bytes, unrounded_type
from hunyuan_train.quantize.gguf.llama_cpp import SCRIPTS, LlamaCpp, find_llama_cpp, run_watched
from hunyuan_train.quantize.gguf.source import find_pre_tokenizer
from hunyuan_train.quantize.gguf.staging import stage
from hunyuan_train.quantize.gguf.types import TYPES
from hunyuan_train.quantize.job import Job

DESCRIPTIONS = ("config.json", "generation_config.json", "LICENSE*")  # that come along


def write_gguf(job: Job, folder: Path) -> dict[str, str]:
    """Convert and quantise into an empty folder; returns the SHA-256 of each file by name.

    Raises:
        CheckpointError: a tool failed; it says what the tool said.
    """
    tools = find_llama_cpp(job.llama_cpp)
    work = folder / "work"  # on the same disk, and gone before the folder is published
    stage(job.source, work / "staged", job.shape)
    target = folder / f"model-{job.type}.gguf"
    if TYPES[job.type].converted:
        _convert(tools, job, work / "staged", target, job.type)
    else:
        between = work / "unrounded.gguf"
        _convert(tools, job, work / "staged", between, unrounded_type(job))
        _quantise(tools, job, between, target)
    shutil.rmtree(work)
    for pattern in DESCRIPTIONS:
        for file in job.source.glob(pattern):
            shutil.copyfile(check_inside(file), folder / file.name)
    files = sorted(folder.iterdir())
    with show_progress("summing", sum(file.stat().st_size for file in files)) as advance:
        return hash_files(files, advance)


def _convert(tools: LlamaCpp, job: Job, staged: Path, target: Path, type_: str) -> None:
    bos = job.shape.bos_token_id if job.shape.bos_token_id is not None else job.shape.eos_token_id
    command = [
        tools.python,
        *(str(SCRIPTS / "convert.py"), tools.converter_folder),
        *(find_pre_tokenizer(job.source, job.shape), str(job.shape.vocab_size), str(bos or 0)),
        *("--outtype", TYPES[type_].converted, "--outfile", str(target)),
        *("--model-name", job.output.name, str(staged)),
    ]
    run_watched("converting", command, target, estimate_bytes(job.shape, type_))


def _quantise(tools: LlamaCpp, job: Job, source: Path, target: Path) -> None:
    command = [
        sys.executable,
        *(str(SCRIPTS / "quantise.py"), str(source), str(target)),
        *(job.type, str(TYPES[job.type].number), str(os.cpu_count() or 1), tools.quantiser),
    ]
    run_watched("quantising", command, target, estimate_bytes(job.shape, job.type))
