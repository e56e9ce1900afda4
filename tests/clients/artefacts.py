"""What the capabilities page shows to every client: a small model in each form that we write."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import peft
import torch
from transformers import AutoModelForCausalLM

from hunyuan_train.export.merge import merge_adapter
from hunyuan_train.families.grammar.find import load_tokenizer
from hunyuan_train.families.registry import read_shape
from hunyuan_train.model.compression_scheme import Scheme
from hunyuan_train.quantize.float8_writer import write_float8
from hunyuan_train.quantize.gguf.write import write_gguf
from hunyuan_train.quantize.gptq import forget_work, write_gptq
from hunyuan_train.quantize.inputs import find_inputs
from hunyuan_train.quantize.job import Calibration, Job
from hunyuan_train.shipped import TINY_TOKENIZER
from tests.clients.environments import client_python
from tests.quantize.gguf.llama_cpp import WIDE
from tests.serve.served_hy3 import write_served_hy3
from tests.serve.served_models import write_served_dense, write_served_model
from tests.taught import write_taught_model

ATTENTION, EXPERTS = "adapter on attention", "adapter on experts"
ADAPTERS = {
    ATTENTION: {"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]},
    EXPERTS: {"target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]},
}
COMPRESSED = ("FP8", "W4A16")
GGUF = ("GGUF f16", "GGUF Q8_0", "GGUF Q4_K_M")
HY3 = "Hy3"
ARTEFACTS = ("full", "merged", *ADAPTERS, *COMPRESSED, *GGUF, HY3)
# What servers are asked about, since they need the vendor's tokens; and a model without experts.
SERVED, DENSE, DENSE_ADAPTER = "served", "dense", "dense adapter"
DIALOGUES = Path(__file__).parents[2] / "data" / "practice_train.jsonl"
NUM_SAMPLES = 16  # dialogues that four bits are calibrated on


@dataclass(frozen=True, slots=True)
class Work:
    """Where the artefacts lie: each by its name, made when it is first asked for."""

    folder: Path

    def path(self, artefact: str) -> Path:
        """Where one lies, or will."""
        return self.folder / artefact.replace(" ", "_")

    def need(self, artefact: str) -> Path:
        """The folder of one that is there.

        Raises:
            Exception: whatever kept it from being made.
        """
        path = self.path(artefact)
        if not path.exists():
            unfinished = self.folder / "unfinished" / path.name
            shutil.rmtree(unfinished.parent, ignore_errors=True)
            unfinished.parent.mkdir(parents=True)
            MAKERS[artefact](self, unfinished)
            unfinished.rename(path)
        return path


def load(folder: Path) -> torch.nn.Module:
    """A model in float32, by Transformers."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def make_full(_: Work, path: Path) -> None:
    """The model that all but servers are asked about, with what reads its tokens everywhere."""
    write_taught_model(path, **WIDE)
    for file in TINY_TOKENIZER.iterdir():
        shutil.copyfile(file, path / file.name)


def make_adapter(base: Path, path: Path, **targets: list[str]) -> None:
    """An adapter of random matrices, large enough to be seen, as PEFT saves it."""
    torch.manual_seed(1)
    config = peft.LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **targets)
    model = peft.get_peft_model(load(base), config)
    for key, parameter in model.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(path)


def make_merged(work: Work, path: Path) -> None:
    """The adapter on experts, merged into its base."""
    merge_adapter(work.need("full"), work.need(EXPERTS), path)


def make_float8(work: Work, path: Path) -> None:
    """FP8, a scale for each channel."""
    job = make_job(work.need("full"), path)
    path.mkdir()
    write_float8(job, path, Scheme("channel"))


def make_four_bits(work: Work, path: Path) -> None:
    """Four bits, by llm-compressor's GPTQ."""
    full = work.need("full")
    given = {"train_data": str(DIALOGUES), "eval_data": None, "base": None}
    open_dataset = find_inputs(full, **given).train_dataset(load_tokenizer(full))
    python = client_python("llmcompressor")
    job = make_job(
        full,
        path,
        calibration=Calibration(num_samples=NUM_SAMPLES, python=python, open_dataset=open_dataset),
    )
    path.mkdir()
    write_gptq(job, path)
    forget_work(job)


def make_gguf(type_: str) -> Callable[[Work, Path], None]:
    """Makes a file for llama.cpp."""

    def make(work: Work, path: Path) -> None:
        job = make_job(work.need("full"), path, type_)
        path.mkdir()
        write_gguf(job, path)

    return make


def make_job(
    full: Path, path: Path, type_: str = "", calibration: Calibration | None = None
) -> Job:
    """Into what the full model is quantised."""
    return Job(
        source=full,
        shape=read_shape(full),
        output=path,
        type=type_,
        calibration=calibration or Calibration(num_samples=0, python=None),
        llama_cpp=client_python("llamacpp"),
    )


MAKERS: dict[str, Callable[[Work, Path], object]] = {
    "full": make_full,
    "merged": make_merged,
    ATTENTION: lambda work, path: make_adapter(work.need("full"), path, **ADAPTERS[ATTENTION]),
    EXPERTS: lambda work, path: make_adapter(work.need("full"), path, **ADAPTERS[EXPERTS]),
    "FP8": make_float8,
    "W4A16": make_four_bits,
    **{name: make_gguf(name.partition(" ")[2]) for name in GGUF},
    HY3: lambda _, path: write_served_hy3(path),
    SERVED: lambda _, path: write_served_model(path),
    DENSE: lambda _, path: write_served_dense(path),
    DENSE_ADAPTER: lambda work, path: make_adapter(work.need(DENSE), path, **ADAPTERS[ATTENTION]),
}
