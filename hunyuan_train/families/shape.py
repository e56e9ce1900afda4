"""The numbers of a model that its config.json states, whatever its family."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LONG_CONTEXT = 2**18  # tokens that a model with a stretched rope is made for
FIRST_FAMILY = "hunyuan_v1_moe"  # the only one when shapes did not name theirs yet


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelShape:
    """Everything that decides the tensors of a model and what they compute.

    What a family lacks is 0: a dense model has no experts. Nothing but its family reads a number
    to find out which tensors there are: `families/registry.py` lists those, by kind.
    """

    family: str = FIRST_FAMILY  # Transformers' model type
    vocab_size: int
    hidden_size: int
    intermediate_size: int  # of each MLP; of each expert, where these have no width of their own
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    num_experts: int = 0
    moe_topk: int = 0
    moe_intermediate_size: int = 0  # of each routed expert; 0: as intermediate_size
    shared_intermediate_size: int = 0  # of the shared expert; 0: as intermediate_size
    num_dense_layers: int = 0  # the first ones, which have an MLP in place of experts
    router_scale: float = 1.0  # of the weights with which experts are summed
    num_mtp_layers: int = 0  # stored behind the others, for multi-token prediction
    leaves_out_mtp: bool = False  # they are neither read nor exported
    num_new_tokens: int = 0  # that a run adds: their rows have other values than the base has
    first_new_token: int = 0  # id of the first; the others follow
    stored_as: str = ""  # form of a base's compressed weights (model/compression_scheme.py)
    max_position_embeddings: int
    rope_theta: float = 10000.0  # already stretched, where a config.json states an alpha
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
        """Tokens that the model can read."""
        return self.max_position_embeddings


def stretch_rope(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """Replace an alpha, which some readers lose, by what it makes of theta and of the context.

    The frequencies are the same to the last bit, as every reader computes them from this very
    product. A stretched theta has no bound of its own: the released model states 32,768 positions
    and is made for 256K.

    Args:
        numbers: fields of a shape, with `rope_alpha` (or None there) beside them.

    Raises:
        ArithmeticError: an alpha that no theta can be stretched by.
    """
    stretched = {name: value for name, value in numbers.items() if name != "rope_alpha"}
    alpha, head_dim = numbers.get("rope_alpha"), numbers.get("head_dim", 0)
    if alpha is not None:
        stretched["rope_theta"] = numbers["rope_theta"] * alpha ** (head_dim / (head_dim - 2))
        bound = numbers["max_position_embeddings"]
        stretched["max_position_embeddings"] = max(bound, LONG_CONTEXT)
    return stretched
