"""Routers: their precision, and what they did.

Shape letters:  T tokens of this rank · E experts · K experts per token · L layers
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Float32Linear(nn.Linear):
    """A router's projection: computed in float32, with float32 weights.

    The engine's bf16 mode keeps every parameter in bfloat16. A rounded router sends 1 to 2 % of the
    tokens of a layer to other experts than the released one does (deepspeed#7747). So the float32
    values stand beside the parameter (1 MB a layer at the released size), which receives the
    gradient. Made from a plain linear layer by `pin`.
    """

    float32_weight: Tensor  # [experts, hidden], float32

    @classmethod
    def pin(cls, linear: nn.Linear, float32_weight: Tensor) -> None:
        """Turn a layer into this class, in place."""
        linear.__class__ = cls
        linear.register_buffer("float32_weight", float32_weight, persistent=False)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Project [tokens, hidden] to float32 logits [tokens, experts]."""
        weight = self.weight.float()
        # Rounding leaves a rest that float32 holds exactly, so the sum is the exact weight.
        weight = weight + (self.float32_weight - weight).detach()
        return nn.functional.linear(hidden_states.float(), weight)


class RouterWatch:
    """Sees what the routers of a model do in the forward passes that it is told to record.

    Recomputation under gradient checkpointing runs the routers a second time; those calls come
    while nothing is recorded.
    """

    def __init__(self, *, num_layers: int, num_experts: int, device: torch.device) -> None:
        self.load_LE = torch.zeros(num_layers, num_experts, dtype=torch.int64, device=device)
        self.counts_LE = torch.zeros_like(self.load_LE)  # of the last recorded pass
        # Of the last recorded pass: a layer's tokens may come in several chunks.
        self.logits_TE: list[list[Tensor]] = [[] for _ in range(num_layers)]
        self.is_recording = False

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record one forward pass."""
        self.logits_TE = [[] for _ in self.logits_TE]
        self.counts_LE.zero_()
        self.is_recording = True
        try:
            yield
        finally:
            self.is_recording = False
            self.load_LE += self.counts_LE

    def see_logits(self, layer: int, logits_TE: Tensor) -> None:
        """Take the logits of the next tokens of a layer: [tokens, experts], float32."""
        if self.is_recording:
            self.logits_TE[layer].append(logits_TE)

    def layer_logits(self) -> list[Tensor]:
        """Logits of all tokens of the last recorded pass: of each layer, [tokens, experts]."""
        return [torch.cat(chunks) for chunks in self.logits_TE]

    def see_choice(self, layer: int, counts_E: Tensor) -> None:
        """Take how many token slots a layer sent to each expert: [experts]."""
        if self.is_recording:
            self.counts_LE[layer] += counts_E

    def take_load(self) -> Tensor:
        """Token slots by layer and expert since the last call: [layers, experts], int64, local."""
        load_LE = self.load_LE.clone()
        self.load_LE.zero_()
        return load_LE

    def put_load(self, load_LE: Tensor) -> None:
        """Go on counting from what an earlier process counted: [layers, experts], local."""
        self.load_LE.copy_(load_LE)
