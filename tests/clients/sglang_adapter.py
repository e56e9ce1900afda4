"""What SGLang's loader makes of an adapter: run by an interpreter of the `vllm` client.

    sglang_adapter.py FOLDER NUM_LAYERS OUT

SGLang's package cannot be imported without torchvision and kernels for GPUs. So what reads an
adapter's names is taken out of its source files, as it stands there, and run by itself. Writes the
tensors as its buffers get them to OUT, and as JSON the buffer of each. It fails where SGLang
refuses the adapter.
"""

import ast
import json
import logging
import re
import sys
import typing
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file, save_file

PACKAGE = Path(str(find_spec("sglang").origin)).parent / "srt"
ANNOTATIONS = ("LoadConfig", "AutoConfig", "BaseLoRABackend", "DefaultModelLoader")


def take(namespace: dict[str, Any], file: str, *names: str) -> None:
    """Define functions, classes and constants of a source file in a namespace."""
    tree = ast.parse((PACKAGE / file).read_text(encoding="utf-8"))
    wanted = [node for node in tree.body if name_of(node) in names]
    assert len(wanted) == len(names), f"{file} of this SGLang has not all of {names}"
    exec(compile(ast.Module(wanted, []), file, "exec"), namespace)


def name_of(node: ast.stmt) -> str:
    """What a statement defines."""
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
        return node.targets[0].id
    return getattr(node, "name", "")


def main() -> None:
    """Load the adapter, and say where its tensors are."""
    folder, num_layers, output = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    loader: dict[str, Any] = {"torch": torch, "nn": torch.nn, "re": re, "json": json}
    loader |= {"logger": logging.getLogger(), **dict.fromkeys(ANNOTATIONS, object)}
    loader |= {name: getattr(typing, name) for name in ("Dict", "List", "Optional", "Set", "Union")}
    loader["Iterable"] = Iterable
    take(loader, "layers/utils/common.py", "get_layer_id")
    take(loader, "lora/lora_config.py", "LoRAConfig")
    take(loader, "lora/utils.py", "get_normalized_target_modules", "get_target_module_name")
    take(loader, "lora/lora.py", "_ROUTED_EXPERT_PATTERN", "LoRALayer", "LoRAAdapter")
    # The class imports this one function where it uses it.
    names = ModuleType("sglang.srt.lora.utils")
    vars(names)["get_normalized_target_modules"] = loader["get_normalized_target_modules"]
    sys.modules[names.__name__] = names

    settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    config = loader["LoRAConfig"](config_dict=settings)
    model = SimpleNamespace(num_hidden_layers=num_layers, architectures=[])
    adapter = loader["LoRAAdapter"]("ours", config, model, None, None)
    adapter.initialize_weights_from_tensors(load_file(folder / "adapter_model.safetensors"))
    weights = {name: one for layer in adapter.layers for name, one in layer.weights.items()}
    targets = loader["get_normalized_target_modules"](config.target_modules)
    buffers = {name: loader["get_target_module_name"](name, targets) for name in weights}
    save_file({name: one.contiguous() for name, one in weights.items()}, output)
    print(json.dumps(buffers))


if __name__ == "__main__":
    main()
