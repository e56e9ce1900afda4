"""What is checked before a GGUF file is made, by headers and without torch."""

import importlib.util

from hunyuan_train.checkpoint.publish import check_room
from hunyuan_train.errors import ConfigError
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.families.tables import count_parameters
from hunyuan_train.model.released_files import locate_weights
from hunyuan_train.model.safetensors_header import largest
from hunyuan_train.quantize.gguf.llama_cpp import find_llama_cpp
from hunyuan_train.quantize.gguf.source import check_source, has_fused_experts
from hunyuan_train.quantize.gguf.types import TYPES
from hunyuan_train.quantize.job import Job

UNROUNDED = {"F64": "f32", "F32": "f32", "F16": "f16", "BF16": "bf16"}  # by stored dtype


def check_gguf(job: Job) -> None:
    """Refuse what could not be converted, before hours are lost.

    Raises:
        ConfigError: the model, or a tool that is not there; see `check_source`, `find_llama_cpp`.
        NoRoomError: the disk cannot hold the file and what it is made from.
    """
    check_source(job.source, job.shape)
    find_llama_cpp(job.llama_cpp)
    if importlib.util.find_spec("gguf") is None:
        raise ConfigError(
            "format gguf reads what it has written by the package gguf, which is not installed "
            "here; pip install 'gguf>=0.19,<0.20'"
        )
    num_bytes = estimate_bytes(job.shape, job.type)
    if not TYPES[job.type].converted:
        num_bytes += estimate_bytes(job.shape, unrounded_type(job))
    if has_fused_experts(job.source, job.shape):
        num_bytes += estimate_bytes(job.shape, unrounded_type(job))
    check_room(job.output, num_bytes)


def unrounded_type(job: Job) -> str:
    """The type that holds a model's weights as they are."""
    return UNROUNDED[largest(locate_weights(job.source, job.shape)).dtype]


def estimate_bytes(shape: ModelShape, type_: str) -> int:
    """Size of a file of a type, about."""
    return int(count_parameters(shape).total * TYPES[type_].bits / 8)
