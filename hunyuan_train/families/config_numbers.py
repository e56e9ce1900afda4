"""The numbers that the config.json of every family has: read within bounds, and written."""

from collections.abc import Mapping
from dataclasses import asdict
from math import isfinite
from typing import Any

from hunyuan_train.errors import ConfigError
from hunyuan_train.families.config_fields import Fields
from hunyuan_train.families.shape import ModelShape, stretch_rope
from hunyuan_train.plain_text import make_plain_name

# Bounds far beyond any model: what lies above is a mistake or an attack, and would take memory or
# time before anything else is found wrong.
MAX_LAYERS, MAX_EXPERTS = 2**12, 2**12
MAX_EXPERTS_IN_ALL = 2**16  # of all layers; the released model has 2,048
MAX_VOCABULARY, MAX_WIDTH, MAX_POSITIONS = 2**24, 2**20, 2**31
# Fields of a shape that Transformers' config class of every family has under the same name.
SAME_IN_TRANSFORMERS = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings"),
    *("rms_norm_eps", "initializer_range", "tie_word_embeddings", "attention_bias"),
    *("pad_token_id", "bos_token_id", "eos_token_id", "eod_token_id"),
)
# Of an object that describes a rope. Published files give the last four for a rope without them.
ROPE_FIELDS = {"rope_type", "type", "rope_theta", "factor"}
ROPE_FIELDS |= {"beta_fast", "beta_slow", "mscale", "mscale_all_dim"}


def read_common_numbers(fields: Fields) -> dict[str, Any]:
    """The fields of a `ModelShape` that no family reads in a way of its own.

    Raises:
        ConfigError: a value that no model has, a rope that is not computed here, or quantisation.
        KeyError: a missing field.
    """
    refuse_quantised(fields)
    rope_theta, rope_alpha = read_rope(fields)
    vocab_size = fields.whole("vocab_size", most=MAX_VOCABULARY)
    tokens = ("pad_token_id", "bos_token_id", "eos_token_id", "eod_token_id")
    numbers = {
        "vocab_size": vocab_size,
        "hidden_size": fields.whole("hidden_size", most=MAX_WIDTH),
        "num_hidden_layers": fields.whole("num_hidden_layers", most=MAX_LAYERS),
        **read_heads(fields),
        "max_position_embeddings": fields.whole("max_position_embeddings", most=MAX_POSITIONS),
        "rope_theta": rope_theta,
        "rope_alpha": rope_alpha,
        "rms_norm_eps": fields.number("rms_norm_eps", default=1e-5),
        "initializer_range": fields.number("initializer_range", default=0.02),
        "tie_word_embeddings": fields.flag("tie_word_embeddings"),
        "attention_bias": fields.flag("attention_bias"),
        **{name: fields.token_id(name, vocab_size=vocab_size) for name in tokens},
    }
    try:
        stretched = stretch_rope(numbers)
    except ArithmeticError:
        stretched = {"rope_theta": float("inf")}
    if not isfinite(stretched["rope_theta"]):
        raise ConfigError(
            f"{fields.source} has a rope with alpha = {rope_alpha:g}, which stretches rope_theta "
            f"{rope_theta:g} to no number: take the file published with the model"
        )
    return stretched


def read_heads(fields: Fields) -> dict[str, int]:
    """Numbers of heads and their width, which some files call `attention_head_dim` or leave out.

    Raises:
        ConfigError: heads that cannot share keys evenly, or a width that the rope cannot halve.
        KeyError: a missing field.
    """
    num_heads = fields.whole("num_attention_heads", most=MAX_WIDTH)
    num_shared = num_heads
    if fields.is_given("num_key_value_heads"):
        num_shared = fields.whole("num_key_value_heads", most=num_heads)
        if num_heads % num_shared:
            raise fields.refuse("num_key_value_heads", f"a divisor of {num_heads} attention heads")
    fields.refuse_difference("attention_head_dim", "head_dim")
    given = [name for name in ("head_dim", "attention_head_dim") if fields.is_given(name)]
    name = given[0] if given else "hidden_size"
    width = fields.whole(name, most=MAX_WIDTH)
    head_dim = width if given else width // num_heads
    if head_dim < 2 or head_dim % 2:
        raise fields.refuse(name, "such that a head has an even width, whose halves the rope turns")
    return {
        "num_attention_heads": num_heads,
        "num_key_value_heads": num_shared,
        "head_dim": head_dim,
    }


def read_rope(fields: Fields) -> tuple[float, float | None]:
    """Theta and alpha of the rope, in the words of Transformers 4, of 5, or of both.

    Readers differ in which of them wins, so they must say the same.

    Raises:
        ConfigError: they do not, or name a rope that is not computed here.
    """
    if fields.is_given("partial_rotary_factor"):
        raise fields.refuse("partial_rotary_factor", "left out, as all of a head is turned")
    ropes = {}
    for name in ("rope_parameters", "rope_scaling"):
        if not isinstance(fields.values.get(name), Mapping | None):
            raise fields.refuse(name, "null or an object with the type of the rope")
        if fields.values.get(name):
            rope = Fields(fields.values[name], f"{name} of {fields.source}")
            ropes[name] = (rope, _read_alpha(rope))
    if len({alpha for _, alpha in ropes.values()}) > 1:
        raise fields.refuse("rope_scaling", "the same rope as rope_parameters, or left out")
    places = [fields, *(rope for rope, _ in ropes.values())]
    given = [place for place in places if place.is_given("rope_theta")] or [fields]
    thetas = [place.number("rope_theta", default=10000.0) for place in given]
    if len(set(thetas)) > 1:
        listed = " and ".join(f"{theta:g}" for theta in thetas)
        raise ConfigError(
            f"{fields.source} has rope_theta {listed} in different places; leave the right one only"
        )
    return thetas[0], next((alpha for _, alpha in ropes.values()), None)


def _read_alpha(rope: Fields) -> float | None:
    """Alpha of one object that describes the rope; None: the default rope.

    Raises:
        ConfigError: it is another rope, or has fields that are not computed here.
    """
    types = [rope.values[name] for name in ("rope_type", "type") if rope.is_given(name)]
    rope_type = types[0] if types else "default"
    if any(one != rope_type for one in types):
        raise rope.refuse("type", f"the same as rope_type, {rope_type!r}")
    has_alpha = rope_type == "dynamic" and bool(rope.values.get("alpha"))
    if rope_type != "default" and not has_alpha:
        raise ConfigError(
            f"{rope.source} has rope type {make_plain_name(rope_type, most=80)!r} without alpha; "
            "this project computes the default rope and the published one (dynamic with alpha)"
        )
    known = ROPE_FIELDS | {"alpha"} if has_alpha else ROPE_FIELDS
    for name in rope.values:
        if name not in known and rope.is_given(name):
            raise rope.refuse(name, f"left out, as the {rope_type} rope here does not compute it")
    if rope.is_given("factor") and rope.number("factor", default=1.0) != 1.0:
        raise rope.refuse("factor", f"1.0, the only one that the {rope_type} rope here computes")
    return rope.number("alpha", default=0.0) if has_alpha else None


def refuse_quantised(fields: Fields) -> None:
    """Refuse a model whose weights other readers would unpack before they compute.

    Raises:
        ConfigError: it says that it is quantised.
    """
    for name in ("quantization_config", "compression_config"):
        if fields.is_given(name):
            raise fields.refuse(name, "left out, as only weights that are not quantised are read")


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


def write_common_numbers(shape: ModelShape) -> dict[str, Any]:
    """Fields for Transformers' config class.

    The published files name the rope type "dynamic" with an alpha. Transformers before 5.20, which
    servers pin, computes that rope anew beyond max_position_embeddings and drops alpha then. A
    static theta is the same rope in every version.
    """
    values = asdict(shape)
    return {
        **{name: values[name] for name in SAME_IN_TRANSFORMERS},
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_theta},
        "hidden_act": "silu",
        "attention_dropout": 0.0,
    }
