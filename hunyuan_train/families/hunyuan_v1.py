"""What the first generation of Hunyuan models has in common, with experts or without."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from hunyuan_train.errors import ConfigError
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.families.tensors import Kind, StoredTensor


def read_common_numbers(config: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The fields of a `ModelShape` that no family reads in a way of its own.

    Raises:
        ConfigError: a rope that is not computed here.
        KeyError: a missing field.
        TypeError: a field of another type.
    """
    rope_theta, rope_alpha = read_rope(config, source)
    return {
        "vocab_size": config["vocab_size"],
        "hidden_size": config["hidden_size"],
        "num_hidden_layers": config["num_hidden_layers"],
        "num_attention_heads": config["num_attention_heads"],
        "num_key_value_heads": config.get("num_key_value_heads") or config["num_attention_heads"],
        "head_dim": read_head_dim(config),
        "max_position_embeddings": config["max_position_embeddings"],
        "rope_theta": rope_theta,
        "rope_alpha": rope_alpha,
        "rms_norm_eps": config.get("rms_norm_eps", 1e-5),
        "initializer_range": config.get("initializer_range", 0.02),
        "tie_word_embeddings": config.get("tie_word_embeddings", False),
        "attention_bias": config.get("attention_bias", False),
        "pad_token_id": config.get("pad_token_id"),
        "bos_token_id": config.get("bos_token_id"),
        "eos_token_id": config.get("eos_token_id"),
        "eod_token_id": config.get("eod_token_id"),
    }


def read_uniform(config: Mapping[str, Any], name: str, source: str) -> int:
    """Read a number that the published config repeats once a layer."""
    value = config[name]
    if not isinstance(value, list):
        return int(value)
    if len(set(value)) != 1 or len(value) < config["num_hidden_layers"]:
        raise ConfigError(
            f"{source} has {name} = {value}: its layers differ or are not all listed, and the "
            "native class has one value for all layers"
        )
    return int(value[0])


def read_head_dim(config: Mapping[str, Any]) -> int:
    """`head_dim`, which some published files call `attention_head_dim` or leave out."""
    for name in ("head_dim", "attention_head_dim"):
        if config.get(name) is not None:
            return int(config[name])
    return int(config["hidden_size"]) // int(config["num_attention_heads"])


def read_rope(config: Mapping[str, Any], source: str) -> tuple[float, float | None]:
    """Theta and alpha of the rope, in the words of Transformers 4 or 5."""
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = float(scaling.get("rope_theta", config.get("rope_theta", 10000.0)))
    rope_type = scaling.get("rope_type", scaling.get("type", "default"))
    if rope_type == "default":
        return theta, None
    if rope_type == "dynamic" and scaling.get("alpha"):
        return theta, float(scaling["alpha"])
    raise ConfigError(
        f"{source} has rope type {rope_type!r} without alpha; this project computes the default "
        "rope and the published one (dynamic with alpha)"
    )


def refuse_switches(
    config: Mapping[str, Any], source: str, *, fixed: Mapping[str, Any], family: str
) -> None:
    """Refuse published switches that Transformers' class has no code for.

    Args:
        config: as published.
        source: its name, for the error.
        fixed: the only value that the class computes, by field.
        family: Transformers' model type.

    Raises:
        ConfigError: naming each such field and its value.
    """
    wrong = {
        name: config[name]
        for name, only in fixed.items()
        if config.get(name) is not None and config[name] != only
    }
    if config.get("hidden_act", "silu") != "silu":
        wrong["hidden_act"] = config["hidden_act"]
    if wrong:
        listed = ", ".join(f"{name}={value!r}" for name, value in wrong.items())
        raise ConfigError(
            f"{source} sets {listed}, which Transformers' {family} does not compute; this "
            "model cannot be trained here"
        )


def write_native_numbers(shape: ModelShape) -> dict[str, Any]:
    """Fields for Transformers' config class.

    The published files name the rope type "dynamic" with an alpha; the native class reads the same
    words, so an exported config.json stays readable by both.
    """
    fields = asdict(shape)
    theta, alpha = fields.pop("rope_theta"), fields.pop("rope_alpha")
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
    if alpha is not None:
        rope = {"rope_type": "dynamic", "rope_theta": theta, "alpha": alpha, "factor": 1.0}
    del fields["family"]
    return {**fields, "rope_parameters": rope, "hidden_act": "silu", "attention_dropout": 0.0}


def embedding_rows(shape: ModelShape) -> list[StoredTensor]:
    """What lies before the first layer."""
    size = (shape.vocab_size, shape.hidden_size)
    return [StoredTensor("model.embed_tokens.weight", size, Kind.EMBEDDING)]


def mlp_rows(shape: ModelShape, module: str, kind: Kind) -> list[StoredTensor]:
    """A gated MLP: of a dense layer, a shared expert, or each routed one."""
    hidden, width = shape.hidden_size, shape.intermediate_size
    sizes = {"gate_proj": (width, hidden), "up_proj": (width, hidden), "down_proj": (hidden, width)}
    return [StoredTensor(f"{module}.{name}.weight", size, kind) for name, size in sizes.items()]


def attention_rows(shape: ModelShape, module: str) -> list[StoredTensor]:
    """Projections of attention, and the norms of queries and keys behind the rope."""
    hidden = shape.hidden_size
    query = shape.num_attention_heads * shape.head_dim
    key_value = shape.num_key_value_heads * shape.head_dim
    sizes = {
        "q_proj": (query, hidden),
        "k_proj": (key_value, hidden),
        "v_proj": (key_value, hidden),
        "o_proj": (hidden, query),
    }
    rows = []
    for name, size in sizes.items():
        rows.append(StoredTensor(f"{module}.{name}.weight", size, Kind.ATTENTION))
        if shape.attention_bias:
            rows.append(StoredTensor(f"{module}.{name}.bias", size[:1], Kind.ATTENTION))
    return rows + [
        StoredTensor(f"{module}.{name}.weight", (shape.head_dim,), Kind.HEAD_NORM)
        for name in ("query_layernorm", "key_layernorm")
    ]


def norm_rows(shape: ModelShape, layer: str) -> list[StoredTensor]:
    """The two norms of a layer's hidden states."""
    return [
        StoredTensor(f"{layer}.{name}.weight", (shape.hidden_size,), Kind.NORM)
        for name in ("input_layernorm", "post_attention_layernorm")
    ]


def outer_rows(shape: ModelShape) -> list[StoredTensor]:
    """What lies behind the last layer; tied output weights are not stored."""
    rows = [StoredTensor("model.norm.weight", (shape.hidden_size,), Kind.NORM)]
    if not shape.tie_word_embeddings:
        size = (shape.vocab_size, shape.hidden_size)
        rows.append(StoredTensor("lm_head.weight", size, Kind.HEAD))
    return rows
