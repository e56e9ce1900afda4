"""Routers: their precision, their biases, and what they did.

Shape letters:  T tokens of this rank · E experts · K experts per token · L layers
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hunyuan_train.families.registry import FAMILIES
from hunyuan_train.families.tables import kind_of, to_released
from hunyuan_train.families.tensors import Kind, StoredTensor
from hunyuan_train.model.weights import WeightSource


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


def pin_router(router: nn.Module, float32_weight: Tensor) -> None:
    """Let a router compute with float32 values beside its parameter, in place.

    A router that has the weight itself computes in float32 by its own code, as Transformers' does.

    Args:
        router: a linear layer, or such a router.
        float32_weight: [experts, hidden].
    """
    if isinstance(router, nn.Linear):
        Float32Linear.pin(router, float32_weight)
        return
    kind = type(router)
    members = {"weight": property(_exact_weight)}
    router.__class__ = type(f"Float32{kind.__name__}", (kind,), members)
    router.register_buffer("float32_weight", float32_weight, persistent=False)


def is_pinned(module: nn.Module) -> bool:
    """Whether it is a router with float32 values beside its parameter."""
    return "float32_weight" in module._buffers


def router_weight(router: nn.Module) -> nn.Parameter:
    """A router's own parameter, also where its attribute gives the exact values."""
    weight = router._parameters["weight"]
    assert weight is not None, "a router has a weight"
    return weight


def _exact_weight(router: nn.Module) -> Tensor:
    """As in `Float32Linear.forward`."""
    weight = router_weight(router).float()
    return weight + (router.get_buffer("float32_weight") - weight).detach()


def fill_router_biases(model: PreTrainedModel, source: WeightSource) -> None:
    """Read the biases that decide the choice of experts, split or not: buffers, kept in float32.

    A model built without memory, or in bfloat16, has zeros or rounded ones there, with which it
    trains without an error.
    """
    family = FAMILIES[model.config.model_type]
    for name, buffer in list(model.named_buffers()):
        if kind_of(family, name) is Kind.ROUTER_BIAS:
            stored = StoredTensor(to_released(family, name), tuple(buffer.shape), Kind.ROUTER_BIAS)
            values = source.read(stored, 0, stored.numel).to(buffer.device, torch.float32)
            module, _, own_name = name.rpartition(".")
            setattr(model.get_submodule(module), own_name, values)


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
        self.take_logits()
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

    def take_logits(self) -> list[list[Tensor]]:
        """Logits of the last recorded pass since the last call: of each layer, by chunks of tokens.

        They are held no longer: by them autograd would keep the whole pass until the next one, and
        above a frozen embedding its output and the gradient of that.
        """
        taken, self.logits_TE = self.logits_TE, [[] for _ in self.logits_TE]
        return taken

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
