"""The numbers of a model that its config.json states, whatever its family."""

from dataclasses import dataclass

LONG_CONTEXT = 2**18  # tokens
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
    intermediate_size: int  # of each MLP; of each expert, routed or shared
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    num_experts: int = 0
    moe_topk: int = 0
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
