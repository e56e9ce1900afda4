"""`serve --check` beside vLLM's own server: green on the right model, red where a fault is planted.

vLLM 0.32 has faults of its own, in its parsers of streams. So an exit code cannot tell a planted
one: what is compared are the findings, each by its name.
"""

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from hunyuan_train import cli
from tests.serve.faults import copy_model, forget_thinking, scale_tensor, state_old_rope
from tests.serve.real_servers import (
    CONTEXT_LENGTH,
    VLLM_ARGUMENTS,
    find_port,
    run_server,
    vllm_environment,
)
from tests.serve.served_models import ANSWERS, write_served_model

pytestmark = pytest.mark.slow
MOST_TOKENS = "96"
SHORT = (
    '{"mode": "fast", "messages": [{"role": "user", "content": "What do you call a baby sheep?"}]}'
)


@dataclass(frozen=True, slots=True)
class Servers:
    """Addresses, and the folders that are served there."""

    model: Path
    right: str
    broken: str  # states the old rope, and its template closes thoughts


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    folder = tmp_path_factory.mktemp("vllm")
    model = write_served_model(folder / "served")
    broken = copy_model(model, folder / "broken")
    state_old_rope(broken)
    forget_thinking(broken)
    with ExitStack() as stack:
        urls = [
            stack.enter_context(
                run_server(
                    make_command(one, model, port),
                    port,
                    folder / f"{one.name}.log",
                    vllm_environment(),
                )
            )
            for one, port in ((model, find_port()), (broken, find_port()))
        ]
        yield Servers(model, *urls)


def make_command(folder: Path, model: Path, port: int) -> list[str]:
    """Our own command; it refuses the old rope, so there vLLM is started with the same words."""
    words = ["--max_model_len", str(CONTEXT_LENGTH), "--port", str(port)]
    if folder == model:
        start = [sys.executable, "-m", "hunyuan_train", "serve", str(model), "--engine", "vllm"]
        return [*start, "--gpus", "0", *words, "--engine_args", VLLM_ARGUMENTS]
    program = shutil.which("vllm", path=vllm_environment()["PATH"])
    assert program is not None
    start = [program, "serve", str(folder), *(one.replace("_", "-") for one in words)]
    parsers = "--reasoning-parser hunyuan_a13b --tool-call-parser hunyuan_a13b"
    offered = "--enable-auto-tool-choice --max-logprobs 20"
    return [*start, *f"{parsers} {offered} {VLLM_ARGUMENTS}".split()]


def check(
    capsys: pytest.CaptureFixture[str], folder: Path, url: str, *flags: object
) -> dict[str, Any]:
    """What `serve --check` finds; its exit code says whether that is a fault."""
    words = ["serve", str(folder), "--check", url, "--json", "--max_new_tokens", MOST_TOKENS]
    code = cli.main([*words, *(str(one) for one in flags)])
    found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert code == (0 if found["is_right"] else 1)
    return found


def wrong(found: dict[str, Any]) -> dict[str, list[str]]:
    """Names of questions by what is wrong with their answers."""
    names: dict[str, list[str]] = {}
    for one in found["answers"]:
        way = ", streamed" if one["is_streamed"] else ""
        for finding in one["findings"]:
            assert finding["verdict"] != "unknown", one
            if finding["verdict"] == "wrong":
                names.setdefault(finding["what"], []).append(one["question"] + way)
    return names


def fields(found: dict[str, Any], question: str, *, is_streamed: bool) -> dict[str, str]:
    [row] = [
        one
        for one in found["answers"]
        if (one["question"], one["is_streamed"]) == (question, is_streamed)
    ]
    last: dict[str, str] = row["findings"][-1]
    return last


def test_right_model_is_right_but_for_what_is_known_of_streams(
    servers: Servers, capsys: pytest.CaptureFixture[str]
) -> None:
    found = check(capsys, servers.model, servers.right)
    assert {one["question"] for one in found["answers"]} == {*ANSWERS, "long"}
    assert wrong(found) == {"fields": [f"{name}, streamed" for name in ANSWERS]}
    [cause] = found["causes"]
    assert "tags leak into the content; arguments of calls are lost" in cause
    for name, answer in ANSWERS.items():
        said = fields(found, name, is_streamed=False)["answered"]
        assert ("thoughts" in said) == ("reasoning_content" in answer), said
        assert ("call book_table" in said) == ("tool_calls" in answer), said
    leaked = fields(found, "slow", is_streamed=True)
    assert leaked["answered"] == leaked["expected"][:-1] + "\\n</answer>'"


def test_old_rope_and_closed_thoughts_are_found_each_for_itself(
    servers: Servers, capsys: pytest.CaptureFixture[str]
) -> None:
    found = check(capsys, servers.model, servers.broken)
    slow = [name for name in ANSWERS if name.startswith("slow")]
    faults = wrong(found)
    assert set(faults["prompt"]) == {*slow, *(f"{name}, streamed" for name in slow)}
    assert set(faults["mode"]) <= set(faults["prompt"])
    assert set(faults["log-probabilities"]) - set(faults["prompt"]) == {"long"}
    assert any("chat template" in cause for cause in found["causes"])
    assert any("only the long prompt" in cause for cause in found["causes"])


def test_other_weights_are_found(
    servers: Servers, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scaled = copy_model(servers.model, tmp_path / "scaled")
    scale_tensor(scaled, "layers.1.self_attn.o_proj", 2.0)
    (tmp_path / "asked.jsonl").write_text(SHORT, encoding="utf-8")
    found = check(capsys, scaled, servers.right, "--questions", tmp_path / "asked.jsonl")
    assert len(wrong(found)["log-probabilities"]) == 2
    assert "prompt" not in wrong(found)
    assert "other weights" in found["causes"][0]


def test_server_that_lost_its_adapter_is_found(
    servers: Servers, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = AutoModelForCausalLM.from_pretrained(servers.model, dtype=torch.float32)
    settings = LoraConfig(r=8, target_modules=["q_proj", "o_proj"], init_lora_weights=False)
    torch.manual_seed(0)
    get_peft_model(model, settings).save_pretrained(tmp_path / "adapter")
    (tmp_path / "asked.jsonl").write_text(SHORT, encoding="utf-8")
    asked = ("--base", servers.model, "--questions", tmp_path / "asked.jsonl")
    found = check(capsys, tmp_path / "adapter", servers.right, *asked)
    assert "log-probabilities" in wrong(found)
    assert any("as the base model without the adapter" in cause for cause in found["causes"])
