"""hy_v3 from its formulas, for the self-test: nothing of Transformers, of the engine, or of the
training path is in it.

Its parameters have the names of Transformers' class, so that adapters find them. One sample at a
time, every expert by itself, all in the dtype of the weights.

Shape letters:  T tokens · D hidden · E experts · K experts per token · H heads · W width of a head
"""

from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.nn import functional

from hunyuan_train.families.shape import ModelShape

HY_V3 = "hy_v3"  # the model type


class PlainHyV3(nn.Module):
    """The whole model: ids in, logits out."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.model = _Layers(shape)
        self.lm_head = nn.Linear(shape.hidden_size, shape.vocab_size, bias=False)
        if shape.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(self, input_ids: Tensor) -> SimpleNamespace:
        """[1, tokens] to `logits` [1, tokens, vocabulary]."""
        return SimpleNamespace(logits=self.lm_head(self.model(input_ids[0]))[None])


class _Layers(nn.Module):
    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(
            _Layer(shape, is_dense=layer < shape.num_dense_layers)
            for layer in range(shape.num_hidden_layers)
        )
        self.norm = _Norm(shape.hidden_size, shape.rms_norm_eps)

    def forward(self, ids_T: Tensor) -> Tensor:
        hidden_TD = self.embed_tokens(ids_T)
        for layer in self.layers:
            hidden_TD = layer(hidden_TD)
        return self.norm(hidden_TD)


class _Layer(nn.Module):
    def __init__(self, shape: ModelShape, *, is_dense: bool) -> None:
        super().__init__()
        self.self_attn = _Attention(shape)
        hidden = shape.hidden_size
        self.mlp = _Mlp(hidden, shape.intermediate_size) if is_dense else _Block(shape)
        self.input_layernorm = _Norm(hidden, shape.rms_norm_eps)
        self.post_attention_layernorm = _Norm(hidden, shape.rms_norm_eps)

    def forward(self, hidden_TD: Tensor) -> Tensor:
        hidden_TD = hidden_TD + self.self_attn(self.input_layernorm(hidden_TD))
        return hidden_TD + self.mlp(self.post_attention_layernorm(hidden_TD))


class _Norm(nn.Module):
    """Divides by the root of the mean square, then weighs."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, values: Tensor) -> Tensor:
        mean_square = values.pow(2).mean(dim=-1, keepdim=True)
        return self.weight * values / (mean_square + self.epsilon).sqrt()


class _Attention(nn.Module):
    """Causal attention; queries and keys are normed head by head, and then turned."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.width, self.theta = shape.head_dim, shape.rope_theta
        self.num_shared = shape.num_attention_heads // shape.num_key_value_heads
        inner, kept = shape.num_attention_heads * self.width, shape.num_key_value_heads * self.width
        has_bias = shape.attention_bias
        self.q_proj = nn.Linear(shape.hidden_size, inner, bias=has_bias)
        self.k_proj = nn.Linear(shape.hidden_size, kept, bias=has_bias)
        self.v_proj = nn.Linear(shape.hidden_size, kept, bias=has_bias)
        self.o_proj = nn.Linear(inner, shape.hidden_size, bias=has_bias)
        self.q_norm = _Norm(self.width, shape.rms_norm_eps)
        self.k_norm = _Norm(self.width, shape.rms_norm_eps)

    def forward(self, hidden_TD: Tensor) -> Tensor:
        query_HTW = self._turn(self.q_norm(self._heads(self.q_proj(hidden_TD))))
        key_HTW = self._turn(self.k_norm(self._heads(self.k_proj(hidden_TD))))
        value_HTW = self._heads(self.v_proj(hidden_TD))
        key_HTW, value_HTW = (
            one.repeat_interleave(self.num_shared, dim=0) for one in (key_HTW, value_HTW)
        )
        scores_HTT = query_HTW @ key_HTW.mT / self.width**0.5
        later_TT = torch.ones(scores_HTT.shape[1:], dtype=torch.bool).triu(1)
        shares_HTT = scores_HTT.masked_fill(later_TT, -torch.inf).softmax(dim=-1)
        return self.o_proj((shares_HTT @ value_HTW).transpose(0, 1).flatten(1))

    def _heads(self, values: Tensor) -> Tensor:
        return values.unflatten(1, (-1, self.width)).transpose(0, 1)

    def _turn(self, values_HTW: Tensor) -> Tensor:
        """Turn each pair (i, i + width / 2) of position t by t / theta^(2 i / width)."""
        half = self.width // 2
        rates = self.theta ** (-torch.arange(half, dtype=torch.float32) / half)
        angles_TW = torch.arange(values_HTW.shape[1])[:, None] * rates
        first, second = values_HTW.split(half, dim=-1)
        cos, sin = angles_TW.cos().to(first.dtype), angles_TW.sin().to(first.dtype)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class _Mlp(nn.Module):
    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden, width, bias=False)
        self.up_proj = nn.Linear(hidden, width, bias=False)
        self.down_proj = nn.Linear(width, hidden, bias=False)

    def forward(self, hidden_TD: Tensor) -> Tensor:
        return self.down_proj(functional.silu(self.gate_proj(hidden_TD)) * self.up_proj(hidden_TD))


class _Experts(nn.Module):
    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        num_experts, hidden = shape.num_experts, shape.hidden_size
        width = shape.moe_intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(num_experts, 2 * width, hidden))
        self.down_proj = nn.Parameter(torch.empty(num_experts, hidden, width))

    def forward(self, hidden_TD: Tensor, weights_TE: Tensor) -> Tensor:
        """The sum of the experts' outputs, each with its weight; those without one do not run."""
        total_TD = torch.zeros_like(hidden_TD)
        gate_up, down = self.gate_up_proj, self.down_proj
        for expert, weight_T in enumerate(weights_TE.T):
            rows = weight_T.nonzero()[:, 0]
            gate, up = (hidden_TD[rows] @ gate_up[expert].T).chunk(2, dim=-1)
            output = (functional.silu(gate) * up) @ down[expert].T
            total_TD = total_TD.index_add(0, rows, output * weight_T[rows, None])
        return total_TD


class _Block(nn.Module):
    """Routed experts and a shared one."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.top_k, self.scale = shape.moe_topk, shape.router_scale
        self.gate = nn.Linear(shape.hidden_size, shape.num_experts, bias=False)
        self.experts = _Experts(shape)
        self.shared_experts = _Mlp(shape.hidden_size, shape.shared_intermediate_size)
        self.register_buffer("e_score_correction_bias", torch.zeros(shape.num_experts))

    def forward(self, hidden_TD: Tensor) -> Tensor:
        scores_TE = self.gate(hidden_TD).sigmoid()
        # The bias has a part in the choice and none in the weights.
        experts_TK = (scores_TE + self.e_score_correction_bias).topk(self.top_k, dim=-1).indices
        is_chosen_TE = torch.zeros_like(scores_TE).scatter(1, experts_TK, 1.0)
        chosen_TE = scores_TE * is_chosen_TE
        weights_TE = self.scale * chosen_TE / (chosen_TE.sum(dim=-1, keepdim=True) + 1e-20)
        return self.experts(hidden_TD, weights_TE) + self.shared_experts(hidden_TD)
