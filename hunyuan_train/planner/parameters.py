"""The parameters a rank meets: their names, sizes, how many ranks share each, which are trained."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from hunyuan_train.config.adapters import EXPERTS, LINEAR_PRESETS, target_names
from hunyuan_train.config.schema import LoraConfig, ModelConfig
from hunyuan_train.model.frozen import is_frozen
from hunyuan_train.model.shape import ModelShape
from hunyuan_train.planner.layout import Layout


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter as a rank sees it, or the same one in several layers."""

    name: str  # Transformers' name; of layers that are alike, the first one's
    count: int  # layers that have it
    numel: int  # elements of one, whole; of split experts, those of this rank's experts
    num_partitions: int  # ranks between which stage 3 cuts it
    is_trained: bool
    is_exact: bool  # a vector or a router: `lean` keeps its master weights in float32

    @property
    def partition(self) -> int:
        """Elements this rank keeps of one under stage 3; the last range is padded."""
        return -(-self.numel // self.num_partitions)

    @property
    def kept(self) -> int:
        """Elements this rank keeps of all of them under stage 3."""
        return self.count * self.partition

    @property
    def total(self) -> int:
        """Elements of all of them, before stage 3 cuts them."""
        return self.count * self.numel


def list_parameters(layout: Layout) -> tuple[Parameter, ...]:
    """Every parameter of the model and of its adapters."""
    return _list(
        layout.shape,
        layout.config.model,
        layout.config.lora,
        layout.num_ranks,
        layout.expert_size if layout.splits_experts else 0,
    )


@lru_cache(maxsize=64)
def _list(
    shape: ModelShape, model: ModelConfig, lora: LoraConfig, num_ranks: int, expert_size: int
) -> tuple[Parameter, ...]:
    parts = layer_parts(shape)
    found: dict[tuple[str, bool], list[str]] = {}
    for layer in range(shape.num_hidden_layers):
        for suffix in parts:
            name = f"model.layers.{layer}.{suffix}"
            found.setdefault((suffix, is_trained(name, model, lora)), []).append(name)
    parameters = [
        Parameter(name, 1, size, num_ranks, is_trained(name, model, lora), is_exact(name))
        for name, size in outer_parts(shape).items()
    ]
    for (suffix, trained), names in found.items():
        ranks = num_ranks // expert_size if is_expert(suffix) and expert_size else num_ranks
        parameters += [
            Parameter(names[0], len(names), numel, ranks, trained, is_exact(suffix))
            for numel in local_sizes(suffix, parts[suffix], shape, expert_size)
        ]
    return (*parameters, *list_adapters(shape, lora, num_ranks, expert_size))


def parameter_names(shape: ModelShape) -> list[str]:
    """The names of all parameters of Transformers' model."""
    layers, parts = range(shape.num_hidden_layers), layer_parts(shape)
    inner = [f"model.layers.{layer}.{suffix}" for layer in layers for suffix in parts]
    return [*outer_parts(shape), *inner]


def outer_parts(shape: ModelShape) -> dict[str, int]:
    """Elements of each parameter outside of the layers, by its name."""
    parts = {"model.embed_tokens.weight": shape.vocab_size * shape.hidden_size}
    parts["model.norm.weight"] = shape.hidden_size
    if not shape.tie_word_embeddings:
        parts["lm_head.weight"] = shape.vocab_size * shape.hidden_size
    return parts


def layer_parts(shape: ModelShape) -> dict[str, int]:
    """Elements of each parameter of one layer, by the end of its name, in the model's order."""
    hidden, width, head = shape.hidden_size, shape.intermediate_size, shape.head_dim
    query, key = shape.num_attention_heads * head, shape.num_key_value_heads * head
    outputs = {"q_proj": query, "k_proj": key, "v_proj": key, "o_proj": hidden}
    parts = {f"self_attn.{name}.weight": hidden * outputs[name] for name in outputs}
    parts["self_attn.o_proj.weight"] = hidden * query
    if shape.attention_bias:
        parts |= {f"self_attn.{name}.bias": size for name, size in outputs.items()}
    parts |= {"self_attn.query_layernorm.weight": head, "self_attn.key_layernorm.weight": head}
    parts["mlp.gate.wg.weight"] = hidden * shape.num_experts
    parts["mlp.experts.gate_up_proj"] = shape.num_experts * 2 * width * hidden
    parts["mlp.experts.down_proj"] = shape.num_experts * hidden * width
    for name in ("gate", "up", "down"):
        parts[f"mlp.shared_mlp.{name}_proj.weight"] = hidden * width
    parts |= {"input_layernorm.weight": hidden, "post_attention_layernorm.weight": hidden}
    return parts


def is_expert(name: str) -> bool:
    """Whether a parameter belongs to routed experts."""
    return ".experts." in f".{name}"


def is_exact(name: str) -> bool:
    """Whether a parameter is a vector or a router."""
    return name.endswith(("norm.weight", "bias", "wg.weight"))


def local_sizes(suffix: str, numel: int, shape: ModelShape, expert_size: int) -> list[int]:
    """Elements of what a parameter becomes: split experts have gate and up apart (w1 and w3)."""
    if not (is_expert(suffix) and expert_size):
        return [numel]
    local = shape.num_experts // expert_size * shape.hidden_size * shape.intermediate_size
    return [local, local] if suffix.endswith("gate_up_proj") else [local]


def is_trained(name: str, model: ModelConfig, lora: LoraConfig) -> bool:
    """Whether a parameter of the base model is trained."""
    return not lora.use_lora and not is_frozen(name, model)


def list_adapters(
    shape: ModelShape, lora: LoraConfig, num_ranks: int, expert_size: int
) -> Iterator[Parameter]:
    """The two matrices of each adapter; DoRA adds a vector of magnitudes."""
    if not lora.use_lora:
        return
    layers, rank = shape.num_hidden_layers, lora.lora_rank
    for name, (inputs, outputs) in adapted_linears(shape, lora).items():
        sizes = {"lora_A": rank * inputs, "lora_B": outputs * rank}
        if lora.use_dora:
            sizes["lora_magnitude_vector"] = outputs
        for part, numel in sizes.items():
            yield Parameter(f"{name}.{part}", layers, numel, num_ranks, True, "vector" in part)
    if EXPERTS in target_names(lora):
        hidden, width = shape.hidden_size, shape.intermediate_size
        experts, ranks = shape.num_experts // max(expert_size, 1), num_ranks // max(expert_size, 1)
        sizes = {
            "gate_up_lora_A": hidden,
            "gate_up_lora_B": 2 * width,
            "down_lora_A": width,
            "down_lora_B": hidden,
        }
        for part, length in sizes.items():
            yield Parameter(f"experts.{part}", layers, experts * rank * length, ranks, True, False)


def adapted_linears(shape: ModelShape, lora: LoraConfig) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of each linear layer of a layer that gets an adapter."""
    if not lora.use_lora:
        return {}
    hidden, width = shape.hidden_size, shape.intermediate_size
    query = shape.num_attention_heads * shape.head_dim
    key = shape.num_key_value_heads * shape.head_dim
    attention = {
        "q_proj": (hidden, query),
        "k_proj": (hidden, key),
        "v_proj": (hidden, key),
        "o_proj": (query, hidden),
    }
    shared = {
        "shared_mlp.gate_proj": (hidden, width),
        "shared_mlp.up_proj": (hidden, width),
        "shared_mlp.down_proj": (width, hidden),
    }
    groups = {"attention": attention, "shared_mlp": shared}
    groups["router"] = {"gate.wg": (hidden, shape.num_experts)}
    chosen: dict[str, tuple[int, int]] = {}
    for name in target_names(lora):
        if name in LINEAR_PRESETS:
            chosen |= groups[name]
        elif name != EXPERTS:
            chosen[name] = attention[name]
    return chosen
