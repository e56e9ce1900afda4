"""`serve --check` beside vLLM's own server: green on the right model, red where a fault is planted.

vLLM 0.32 has faults of its own, in its parsers of streams. So an exit code cannot tell a planted
one: what is compared are the findings, each by its name.
"""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from hunyuan_train.families.grammar.find import load_tokenizer
from hunyuan_train.serve.check.client import find_server
from hunyuan_train.serve.check.questions import list_questions
from tests.serve.faults import copy_model, forget_thinking, scale_tensor, state_old_rope
from tests.serve.findings import check, fields_of, list_findings
from tests.serve.real_servers import VLLM_ARGUMENTS, find_port, run_server, vllm_environment
from tests.serve.served_hy3 import write_served_hy3
from tests.serve.served_models import ANSWERS, write_served_dense, write_served_model

pytestmark = pytest.mark.slow
CONTEXT_LENGTH = 40_000
LONG_PROMPT = 33_000  # beyond the 32,768 that released config.json files state
SECONDS = 3600  # for the long prompt, beside a full load
SHORT_TOKENS = 400  # of Hy3's stand-in, which are hardly more than letters
INDEX, MAP = "model.safetensors.index.json", "weight_map"
OLD_LIMIT = 1024  # of positions in the old form of the rope; it shows as well as 32,768, and sooner
ASKED = (
    '{"mode": "fast", "messages": [{"role": "user", "content": "What do you call a baby sheep?"}]}'
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_served_model(tmp_path_factory.mktemp("experts") / "served")


@pytest.fixture(scope="module")
def right(model: Path) -> Iterator[str]:
    """A server of that model, started by our own command."""
    port = find_port()
    with run_server(serve_command(model, port), port, vllm_environment()) as url:
        yield url


@pytest.fixture(scope="module")
def broken(model: Path) -> Iterator[str]:
    """A server of a copy that states the old rope, and whose template closes thoughts.

    Our own command refuses that rope, so vLLM is started with the same words.
    """
    folder, port = copy_model(model, model.with_name("broken")), find_port()
    state_old_rope(folder, OLD_LIMIT)
    forget_thinking(folder)
    program = shutil.which("vllm", path=vllm_environment()["PATH"])
    assert program is not None
    words = f"--max-model-len 4096 --port {port} --reasoning-parser hunyuan_a13b"
    words += " --tool-call-parser hunyuan_a13b --enable-auto-tool-choice --max-logprobs 20"
    command = [program, "serve", str(folder), *words.split(), *VLLM_ARGUMENTS.split()]
    with run_server(command, port, vllm_environment()) as url:
        yield url


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter on the attention of a dense model: for experts vLLM has no adapters on a CPU."""
    folder = tmp_path_factory.mktemp("dense")
    base = write_served_dense(folder / "served")
    (folder / "asked.jsonl").write_text(ASKED, encoding="utf-8")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    torch.manual_seed(0)
    settings = LoraConfig(r=8, target_modules=targets, init_lora_weights=False)
    get_peft_model(model, settings).save_pretrained(folder / "adapter")
    return folder / "adapter"


@pytest.fixture(scope="module")
def adapted(adapter: Path) -> Iterator[str]:
    """A server of base and adapter, each under a name."""
    port = find_port()
    with run_server(serve_command(adapter, port), port, vllm_environment()) as url:
        yield url


def serve_command(folder: Path, port: int) -> list[str]:
    """Our own command."""
    words = f"--engine vllm --gpus 0 --max_model_len {CONTEXT_LENGTH} --port {port} --engine_args"
    start = [sys.executable, "-m", "hunyuan_train", "serve", str(folder)]
    return [*start, *words.split(), VLLM_ARGUMENTS]


def test_right_model_is_right_but_for_what_is_known_of_streams(
    model: Path, right: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = check(capsys, model, right, "--long_prompt", LONG_PROMPT, "--timeout", SECONDS)
    assert {one["question"] for one in found["answers"]} == {*ANSWERS, "long"}
    streamed = [f"{name}, streamed" for name in ANSWERS]
    assert list_findings(found, "unknown") == {}
    faults = list_findings(found, "wrong")
    broken = faults.pop("end", [])  # once or more, where the machine was busy
    assert set(broken) <= set(streamed)
    assert faults == {"fields": streamed}
    *ends, cause = found["causes"]
    assert [one for one in ends if f"broke off {len(broken)} of 13 answers" in one] == ends
    assert len(ends) == bool(broken)
    assert "tags leak into the content; see" in cause
    for name, answer in ANSWERS.items():
        said = fields_of(found, name, is_streamed=False)["answered"]
        assert ("thoughts" in said) == ("reasoning_content" in answer), said
        assert ("call book_table" in said) == ("tool_calls" in answer), said
    leaked = fields_of(found, "fast", is_streamed=True)
    assert leaked["answered"] == leaked["expected"][:-1] + "\\n</answer>'"


def test_two_tokens_in_one_piece_break_a_stream_off_and_no_whole_answer(
    model: Path, right: str
) -> None:
    """vLLM sends two together where it is busy, and where a request says so."""
    questions = list_questions(load_tokenizer(model), num_long_tokens=0)
    [question] = [one for one in questions if one.name == "fast"]
    request = question.to_request(max_new_tokens=96, num_alternatives=0) | {"stream_interval": 2}
    server = find_server(right, model="", timeout_seconds=SECONDS)
    assert server.ask(request, is_streamed=True).error == "InternalServerError"
    whole = server.ask(request, is_streamed=False)
    assert (whole.error, whole.content) == ("", ANSWERS["fast"]["content"])


def test_hy3_is_served_in_both_modes_with_its_calls(
    tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, port = write_served_hy3(tmp_path_factory.mktemp("hy3") / "served"), find_port()
    assert any("layers.3.eh_proj" in name for name in json.loads((folder / INDEX).read_text())[MAP])
    with run_server(serve_command(folder, port), port, vllm_environment()) as url:
        flags = ("--long_prompt", 2 * OLD_LIMIT, "--max_new_tokens", SHORT_TOKENS)
        found = check(capsys, folder, url, *flags)
    assert found["is_right"], found
    assert list_findings(found, "unknown") == {}
    assert {one["question"] for one in found["answers"]} == {*ANSWERS, "long"}
    for name, answer in ANSWERS.items():
        for is_streamed in (False, True):
            said = fields_of(found, name, is_streamed=is_streamed)["answered"]
            assert ("thoughts" in said) == ("reasoning_content" in answer), said
            assert ("call book_table" in said) == ("tool_calls" in answer), said


def test_other_weights_are_found(
    model: Path, right: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scaled = copy_model(model, tmp_path / "scaled")
    scale_tensor(scaled, "layers.1.self_attn.o_proj", 2.0)
    (tmp_path / "asked.jsonl").write_text(ASKED, encoding="utf-8")
    found = check(capsys, scaled, right, "--questions", tmp_path / "asked.jsonl")
    assert len(list_findings(found, "wrong")["log-probabilities"]) == 2
    assert "prompt" not in list_findings(found, "wrong")
    assert "other weights" in found["causes"][0]


def test_old_rope_and_closed_thoughts_are_found_each_for_itself(
    model: Path, broken: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = check(capsys, model, broken, "--long_prompt", 2 * OLD_LIMIT)
    slow = [name for name in ANSWERS if name.startswith("slow")]
    faults = list_findings(found, "wrong")
    assert set(faults["prompt"]) == {*slow, *(f"{name}, streamed" for name in slow)}
    assert set() < set(faults["mode"]) <= set(faults["prompt"])
    assert set(faults["log-probabilities"]) - set(faults["prompt"]) == {"long"}
    assert any("chat template" in cause for cause in found["causes"])
    assert any("only the long prompt" in cause for cause in found["causes"])


def test_adapter_is_served_and_a_server_that_lost_it_is_found(
    adapter: Path, adapted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("--questions", adapter.with_name("asked.jsonl"))
    found = check(capsys, adapter, adapted, *asked)
    assert set(list_findings(found, "wrong")) <= {"fields"}  # vLLM's own, of streams
    assert not any("adapter" in cause for cause in found["causes"])
    found = check(capsys, adapter, adapted, *asked, "--served_name", "adapter-base")
    assert len(list_findings(found, "wrong")["log-probabilities"]) == 2
    assert any("as the base model without the adapter" in cause for cause in found["causes"])
