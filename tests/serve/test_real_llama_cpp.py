"""`serve --check` beside llama.cpp's own server, on files that `quantize` writes."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hunyuan_train.cli import main
from tests.clients.environments import client_python
from tests.quantize.gguf.llama_cpp import reader_folder
from tests.serve.faults import TEMPLATE, copy_model, forget_thinking, scale_tensor
from tests.serve.findings import check, fields_of, list_findings
from tests.serve.real_servers import find_port, run_server
from tests.serve.served_models import ANSWERS, ARGUMENTS, write_served_model

pytestmark = pytest.mark.slow
SERVE = Path(__file__).parents[1] / "clients" / "llamacpp_serve.py"
CONTEXT_LENGTH = 8192
LONG_PROMPT = 4096


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_served_model(tmp_path_factory.mktemp("llama") / "served")


@pytest.fixture
def _reads_gguf(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package `gguf`, where it is not installed here, from llama.cpp's own tree."""
    monkeypatch.setattr(sys, "path", [*sys.path, reader_folder()])


@contextmanager
def serve(model: Path, output: Path, *template: Path) -> Iterator[str]:
    """llama.cpp's server on a model, converted by our own command, without rounding."""
    words = ["--format", "gguf:f32", "--llama_cpp", client_python("llamacpp"), "--questions", "0"]
    assert main(["quantize", str(model), str(output), *words]) == 0
    port = find_port()
    command = [client_python("llamacpp"), SERVE, output / "model-f32.gguf", port, CONTEXT_LENGTH]
    with run_server([str(one) for one in (*command, *template)], port, dict(os.environ)) as url:
        yield url


@pytest.mark.usefixtures("_reads_gguf")
def test_right_model_is_right_but_for_what_is_known_of_its_parser(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serve(model, tmp_path / "out") as url:
        found = check(capsys, model, url, "--long_prompt", LONG_PROMPT)
    assert {one["question"] for one in found["answers"]} == {*ANSWERS, "long"}
    wrong, right = list_findings(found, "wrong"), list_findings(found, "right")
    assert set(wrong) == {"fields"}  # it leaves the tags of answers in the content
    assert all("tags leak into the content" in cause for cause in found["causes"])
    plain = {"slow", "fast"}  # whose tokens are all whole characters, so that it shows them all
    assert plain <= set(right["tokens"]) & set(right["log-probabilities"])
    ways = {f"{name}{way}" for name in ANSWERS for way in ("", ", streamed")}
    assert ways <= set(right["mode"])
    assert {one for one in ways if "tools" not in one} | {"long"} == set(right["prompt"])
    for name, answer in ANSWERS.items():
        for is_streamed in (False, True):
            said = fields_of(found, name, is_streamed=is_streamed)["answered"]
            assert ("thoughts" in said) == ("reasoning_content" in answer), said
            if "tool_calls" in answer:
                assert said.endswith(f"call book_table({ARGUMENTS})"), said


@pytest.mark.usefixtures("_reads_gguf")
def test_scaled_tensor_and_closed_thoughts_are_found_each_for_itself(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scaled = copy_model(model, tmp_path / "scaled")
    scale_tensor(scaled, "layers.1.self_attn.o_proj", 2.0)
    forget_thinking(scaled)
    with serve(scaled, tmp_path / "out", scaled / TEMPLATE) as url:
        found = check(capsys, model, url, "--long_prompt", "0")
    faults = list_findings(found, "wrong")
    slow = {"slow", "slow, Chinese"}
    assert set(faults["prompt"]) == slow | {f"{name}, streamed" for name in slow}
    assert "fast" in faults["log-probabilities"]
    assert any("chat template" in cause for cause in found["causes"])
    assert any("other weights" in cause for cause in found["causes"])
