"""What an adapter changes, by its own files and in the buffers of vLLM's engine."""

from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from hunyuan_train.export.adapter_layouts import split_experts
from hunyuan_train.json_file import read_json_object
from tests.clients.commands import run
from tests.clients.environments import client_python

SCRIPT = Path(__file__).with_name("vllm_adapter.py")
PREFIX = "base_model.model."


def changes_by_name(adapter: Path, num_experts: int) -> dict[str, Tensor]:
    """What is added to each matrix [out, in], by the module's name, experts singly."""
    settings = read_json_object(adapter / "adapter_config.json")
    scaling = settings["lora_alpha"] / settings["r"]
    tensors = split_experts(load_file(adapter / "adapter_model.safetensors"), num_experts)
    names = {key.removeprefix(PREFIX).partition(".lora_")[0] for key in tensors}
    return {
        name: scaling
        * tensors[f"{PREFIX}{name}.lora_B.weight"]
        @ tensors[f"{PREFIX}{name}.lora_A.weight"]
        for name in names
    }


def changes_in_vllm(base: Path, adapter: Path, output: Path, *kind: str) -> dict[str, Tensor]:
    """The same of the running engine, by the names that it looks for; see `vllm_adapter.py`.

    Raises:
        CommandError: vLLM refuses the adapter, or ends.
    """
    command = [client_python("vllm"), SCRIPT, base, adapter, output, *kind]
    run([str(one) for one in command])
    return load_file(output)


def compare_changes(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """The largest difference, where both change the same matrices.

    Raises:
        AssertionError: they do not, or one of them is no change.
    """
    changed = {name for name, values in theirs.items() if values.any()}
    assert changed == ours.keys(), sorted(changed ^ ours.keys())
    return max(float((theirs[name] - values).abs().max()) for name, values in ours.items())
