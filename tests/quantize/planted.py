"""A tensor scaled twice, planted where each format is written; the command must then fail."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hunyuan_train.cli import main
from hunyuan_train.launcher.exit_codes import USER_ERROR
from hunyuan_train.quantize import float8_writer, gptq
from hunyuan_train.quantize.gguf import write

FACTOR = 1.25


def plant_in_float8(monkeypatch: pytest.MonkeyPatch) -> None:
    """The codes of one block of rows are those of weights that were scaled before."""
    encode, calls = float8_writer.encode_float8, iter(range(10**6))

    def encode_wrongly(block: torch.Tensor, scales: torch.Tensor, scheme: Any) -> torch.Tensor:
        return encode(block * FACTOR if next(calls) == 2 else block, scales, scheme)

    monkeypatch.setattr(float8_writer, "encode_float8", encode_wrongly)


def plant_in_gptq(monkeypatch: pytest.MonkeyPatch) -> None:
    """What llm-compressor gives back has other scales than it was found with."""
    start = gptq.start_worker

    @contextmanager
    def start_wrongly(*arguments: Any) -> Iterator[Callable[..., dict[str, torch.Tensor]]]:
        with start(*arguments) as worker:

            def quantize(*tensors: torch.Tensor) -> dict[str, torch.Tensor]:
                answer = worker(*tensors)
                return answer | {"weight_scale": answer["weight_scale"] * FACTOR}

            yield quantize

    monkeypatch.setattr(gptq, "start_worker", start_wrongly)


def plant_in_gguf(monkeypatch: pytest.MonkeyPatch) -> None:
    """The converter is given a model with one tensor that was scaled before."""
    stage = write.stage

    def stage_wrongly(source: Path, staged: Path, *shape: Any) -> None:
        stage(source, staged, *shape)
        file = min(staged.glob("*.safetensors"))
        tensors = load_file(file)
        name = next(name for name in sorted(tensors) if "o_proj" in name)
        tensors[name] = tensors[name] * FACTOR
        file.unlink()  # a link to the model's own file
        save_file(tensors, file, metadata={"format": "pt"})

    monkeypatch.setattr(write, "stage", stage_wrongly)


def check_red(command: list[str], output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command names a tensor, and leaves nothing that could be taken for a model."""
    assert main(command) == USER_ERROR
    said = " ".join(capsys.readouterr().err.split())
    assert "once it is read back, so nothing was published" in said
    assert ".weight is not near" in said or ".weight has scales that are not" in said
    assert not output.exists()
    assert not output.with_name(output.name + ".incomplete").exists()
