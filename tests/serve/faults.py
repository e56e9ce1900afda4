"""Faults planted into copies of a served model, as real folders had them."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

TEMPLATE = "chat_template.jinja"


def copy_model(model: Path, folder: Path) -> Path:
    """A copy to break."""
    shutil.copytree(model, folder)
    return folder


def state_old_rope(folder: Path, limit: int) -> None:
    """The rope as exports once stated it: the reader of vLLM 0.32 loses alpha beyond the limit."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "alpha": 1000.0, "factor": 1.0}
    config |= {"rope_theta": 10000.0, "rope_parameters": rope, "max_position_embeddings": limit}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def forget_thinking(folder: Path) -> None:
    """A template that closes the thoughts of every prompt that does not ask for fast mode."""
    path = folder / TEMPLATE
    closed = "{{- '' if '/no_think' in messages[-1].content else '<think>\\n\\n</think>\\n' }}"
    path.write_text(path.read_text(encoding="utf-8") + closed, encoding="utf-8")


def scale_tensor(folder: Path, part: str, factor: float) -> None:
    """Multiply every tensor whose name holds `part`."""
    [file] = folder.glob("*.safetensors")
    tensors: dict[str, torch.Tensor] = load_file(file)
    scaled = {name: value * factor if part in name else value for name, value in tensors.items()}
    assert any(part in name for name in tensors)
    save_file(scaled, file, metadata={"format": "pt"})
