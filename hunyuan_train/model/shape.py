"""The shape of a Hunyuan MoE model, read from its config.json without torch.

Two dialects exist: the published one (`model_type: hunyuan`, per-layer lists, `attention_head_dim`)
and Transformers' native one (`model_type: hunyuan_v1_moe`). Both become one `ModelShape`, and
`native_config_dict` writes the native dialect for the class that trains. What the native class
cannot express (layers that differ, more than one shared expert) is refused, never ignored.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hunyuan_train.errors import ConfigError

MODEL_TYPES = ("hunyuan", "hunyuan_v1_moe")

# Published switches the native class has no code for, with the only value it computes.
FIXED_SWITCHES = {
    "use_mixed_mlp_moe": True,
    "use_qk_norm": True,
    "use_rotary_pos_emb": True,
    "norm_topk_prob": True,
    "norm_type": "rms",
    "use_cla": False,
    "use_mla": False,
    "mlp_bias": False,
    "moe_layer_num_skipped": 0,
    "group_limited_greedy": False,
    "position_embedding_xdrope": False,
    "routed_scaling_factor": 1.0,
}


LONG_CONTEXT = 2**18  # tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelShape:
    """Everything that decides the tensors of a model and what they compute."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int  # of each expert, routed or shared
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    num_experts: int
    moe_topk: int
    max_position_embeddings: int
    rope_theta: float = 10000.0
    rope_alpha: float | None = None  # stretches rope_theta: theta * alpha ** (d / (d - 2))
    rms_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True
    attention_bias: bool = False
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    eod_token_id: int | None = None

    @property
    def context_length(self) -> int:
        """Tokens that the model can read.

        A stretched theta has no bound of its own, and max_position_embeddings does not enter it:
        the released model states 32,768 and is made for 256K.
        """
        bound = self.max_position_embeddings
        return bound if self.rope_alpha is None else max(bound, LONG_CONTEXT)

    @property
    def num_expert_parameters(self) -> int:
        """Parameters of one routed expert in one layer (gate, up and down projections)."""
        return 3 * self.hidden_size * self.intermediate_size

    @property
    def num_routed_parameters(self) -> int:
        """Parameters in routed experts, all layers."""
        return self.num_hidden_layers * self.num_experts * self.num_expert_parameters

    @property
    def num_dense_parameters(self) -> int:
        """Parameters outside the routed experts: these act on every token."""
        query_size = self.num_attention_heads * self.head_dim
        key_value_size = self.num_key_value_heads * self.head_dim
        attention = self.hidden_size * (2 * query_size + 2 * key_value_size) + 2 * self.head_dim
        if self.attention_bias:
            attention += query_size + 2 * key_value_size + self.hidden_size
        router = self.hidden_size * self.num_experts
        norms = 2 * self.hidden_size
        layer = attention + router + self.num_expert_parameters + norms
        num_embeddings = 1 if self.tie_word_embeddings else 2
        vocabulary = num_embeddings * self.vocab_size * self.hidden_size
        return self.num_hidden_layers * layer + vocabulary + self.hidden_size

    @property
    def num_parameters(self) -> int:
        """All parameters; tied embeddings count once."""
        return self.num_routed_parameters + self.num_dense_parameters

    @property
    def num_active_parameters(self) -> int:
        """Parameters that act on one token: the dense ones and `moe_topk` experts a layer."""
        active_experts = self.num_hidden_layers * self.moe_topk * self.num_expert_parameters
        return self.num_dense_parameters + active_experts


def parse_shape(config: dict[str, Any], *, source: str) -> ModelShape:
    """Turn a config.json of either dialect into a shape.

    Args:
        config: the parsed config.json.
        source: what an error names, usually the file.

    Raises:
        ConfigError: another architecture, a missing field, or one the native class cannot express.
    """
    if config.get("model_type") not in MODEL_TYPES:
        raise ConfigError(
            f"{source} has model_type {config.get('model_type')!r}; this project trains Hunyuan "
            f"MoE models ({' or '.join(MODEL_TYPES)})"
        )
    _check_switches(config, source)
    rope_theta, rope_alpha = _read_rope(config, source)
    try:
        return ModelShape(
            vocab_size=config["vocab_size"],
            hidden_size=config["hidden_size"],
            intermediate_size=_read_expert_width(config, source),
            num_hidden_layers=config["num_hidden_layers"],
            num_attention_heads=config["num_attention_heads"],
            num_key_value_heads=config.get("num_key_value_heads") or config["num_attention_heads"],
            head_dim=_read_head_dim(config),
            num_experts=_read_uniform(config, "num_experts", source),
            moe_topk=_read_uniform(config, "moe_topk", source),
            max_position_embeddings=config["max_position_embeddings"],
            rope_theta=rope_theta,
            rope_alpha=rope_alpha,
            rms_norm_eps=config.get("rms_norm_eps", 1e-5),
            initializer_range=config.get("initializer_range", 0.02),
            tie_word_embeddings=config.get("tie_word_embeddings", False),
            attention_bias=config.get("attention_bias", False),
            pad_token_id=config.get("pad_token_id"),
            bos_token_id=config.get("bos_token_id"),
            eos_token_id=config.get("eos_token_id"),
            eod_token_id=config.get("eod_token_id"),
        )
    except TypeError as error:
        raise ConfigError(
            f"{source} has a field of another type than it is published with ({error})"
        ) from error
    except KeyError as missing:
        raise ConfigError(
            f"{source} has no field {missing}; take the config.json published with the model"
        ) from missing


def read_shape(model_folder: Path) -> ModelShape:
    """Read the shape of a model folder.

    Raises:
        ConfigError: no config.json there, not JSON, or see `parse_shape`.
    """
    path = model_folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("it holds no object")
    except FileNotFoundError as error:
        raise ConfigError(
            f"{model_folder} is no model folder: it holds no config.json; give the path of a "
            "downloaded Hugging Face model"
        ) from error
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON ({error}); download it again") from error
    return parse_shape(config, source=str(path))


def native_config_dict(shape: ModelShape) -> dict[str, Any]:
    """Fields for Transformers' `HunYuanMoEV1Config`.

    The published files name the rope type "dynamic" with an alpha; the native class reads the same
    words, so an exported config.json stays readable by both.
    """
    fields = asdict(shape)
    theta, alpha = fields.pop("rope_theta"), fields.pop("rope_alpha")
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
    if alpha is not None:
        rope = {"rope_type": "dynamic", "rope_theta": theta, "alpha": alpha, "factor": 1.0}
    return {**fields, "rope_parameters": rope, "hidden_act": "silu", "attention_dropout": 0.0}


def _check_switches(config: dict[str, Any], source: str) -> None:
    wrong = {
        name: config[name]
        for name, only in FIXED_SWITCHES.items()
        if config.get(name) is not None and config[name] != only
    }
    if config.get("hidden_act", "silu") != "silu":
        wrong["hidden_act"] = config["hidden_act"]
    if config.get("num_shared_expert") is not None:
        shared = _read_uniform(config, "num_shared_expert", source)
        if shared != 1:
            wrong["num_shared_expert"] = shared
    if wrong:
        listed = ", ".join(f"{name}={value!r}" for name, value in wrong.items())
        raise ConfigError(
            f"{source} sets {listed}, which Transformers' hunyuan_v1_moe does not compute; this "
            "model cannot be trained here"
        )


def _read_uniform(config: dict[str, Any], name: str, source: str) -> int:
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


def _read_expert_width(config: dict[str, Any], source: str) -> int:
    """`moe_intermediate_size` wins in the published model; the native class reads the other."""
    width = int(config["intermediate_size"])
    if config.get("moe_intermediate_size") is None:
        return width
    routed = _read_uniform(config, "moe_intermediate_size", source)
    if routed != width:
        raise ConfigError(
            f"{source} has moe_intermediate_size {routed} and intermediate_size {width}; the "
            "native class has one width for routed and shared experts"
        )
    return width


def _read_head_dim(config: dict[str, Any]) -> int:
    for name in ("head_dim", "attention_head_dim"):
        if config.get(name) is not None:
            return int(config[name])
    return int(config["hidden_size"]) // int(config["num_attention_heads"])


def _read_rope(config: dict[str, Any], source: str) -> tuple[float, float | None]:
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
