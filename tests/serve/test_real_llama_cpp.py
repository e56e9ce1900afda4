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
from tests.serve.served_models import ANSWERS, write_served_model

pytestmark = pytest.mark.slow
SERVE = Path(__file__).parents[1] / "clients" / "llamacpp_serve.py"
CONTEXT_LENGTH = 8192
LONG_PROMPT = 4096
TOOLS = {"slow, tools", "fast, tools"}


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
def test_right_model_is_right(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serve(model, tmp_path / "out") as url:
        found = check(capsys, model, url, "--long_prompt", LONG_PROMPT)
    assert {one["question"] for one in found["answers"]} == {*ANSWERS, "long"}
    assert list_findings(found, "wrong") == {}
    assert found["is_right"]
    # It shows no prompt, and that of tools holds the time. So only fields are compared there.
    unknown = list_findings(found, "unknown")
    assert set(unknown) <= {"prompt", "mode", "tokens", "log-probabilities"}
    assert {
        name.removesuffix(", streamed") for names in unknown.values() for name in names
    } == TOOLS
    for name, answer in ANSWERS.items():
        said = fields_of(found, name, is_streamed=True)["answered"]
        assert ("thoughts" in said) == ("reasoning_content" in answer), said
        assert ("call book_table" in said) == ("tool_calls" in answer), said


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
    assert {"fast", "fast, dialogue"} <= set(faults["log-probabilities"])
    assert any("chat template" in cause for cause in found["causes"])
    assert any("other weights" in cause for cause in found["causes"])
