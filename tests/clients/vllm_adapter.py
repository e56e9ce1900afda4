"""What vLLM makes of an adapter on a model: run by an interpreter of the `vllm` client.

    vllm_adapter.py MODEL ADAPTER OUTPUT [stacked]

Starts the engine on the model in float32, gives it the adapter as its server would, and reads what
then lies in the buffers of its layers. `stacked` is said of an adapter whose experts lie as PEFT
stacks them: vLLM is told so by the flags that `hunyuan-train serve` gives.

Writes OUTPUT, a safetensors file: the change [out, in] that each matrix of the model gets, by the
name under which the engine looks for it. Those that it found nothing for are zero. It fails where
vLLM refuses the adapter. Nothing is generated: vLLM's kernels for adapters on experts need a GPU.
"""

import sys
from collections.abc import Iterator

import vllm
from safetensors.torch import save_file
from torch import Tensor, nn
from vllm.lora.layers import FusedMoEWithLoRA, VocabParallelEmbeddingWithLoRA
from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA
from vllm.lora.request import LoRARequest


def main() -> None:
    """Start the engine, hand it the adapter, and read its buffers."""
    model, adapter, output, *kind = sys.argv[1:]
    engine = vllm.LLM(
        model,
        dtype="float32",
        skip_tokenizer_init=True,
        enforce_eager=True,
        max_model_len=256,
        max_num_seqs=4,
        enable_lora=True,
        max_loras=1,
        enable_mixed_moe_lora_format=bool(kind),
    )
    engine.llm_engine.add_lora(LoRARequest("adapter", 1, adapter, is_3d_lora_weight=bool(kind)))
    [changes] = engine.apply_model(read_buffers)
    save_file(changes, output)


def read_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Changes by the names that the engine looks for."""
    manager = model.lora_manager
    changes = {}
    for module, layer in manager.modules.items():
        if isinstance(layer, VocabParallelEmbeddingWithLoRA):
            continue  # no adapter of ours is there
        names = manager.packed_modules.get(module, [module])
        pairs = list(_read_pairs(layer))
        # Where experts have two lists of names, the second one has no buffers.
        assert len(names) % len(pairs) == 0, module
        for name, (lora_a, lora_b) in zip(names, pairs, strict=False):
            changes[name] = lora_b @ lora_a
    return changes


def _read_pairs(layer: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    """A [rank, in] and B [out, rank] of the first adapter, for every matrix of a layer.

    Experts come one behind the other, with gate, down and up of each, as their names do.
    """
    if isinstance(layer, BaseLinearLayerWithLoRA):
        for lora_a, lora_b in zip(layer.lora_a_stacked, layer.lora_b_stacked, strict=True):
            yield lora_a[0, 0], lora_b[0, 0]
        return
    assert isinstance(layer, FusedMoEWithLoRA), type(layer)
    gate_a, up_a = layer.w13_lora_a_stacked
    gate_b, up_b = layer.w13_lora_b_stacked
    down_a, down_b = layer.w2_lora_a_stacked[0], layer.w2_lora_b_stacked[0]
    for expert in range(layer.local_num_experts):
        for lora_a, lora_b in ((gate_a, gate_b), (down_a, down_b), (up_a, up_b)):
            yield lora_a[0, expert], lora_b[0, expert]


if __name__ == "__main__":
    main()
