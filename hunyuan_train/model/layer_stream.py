"""A model computed layer by layer from its disk: one layer in memory, whatever the model's size.

A source gives the weights (`weights.py`, or dequantised, `compressed_weights.py`). Each layer is
loaded once and sees all tokens before the next one is loaded. The tokens' hidden states lie in one
table, in memory or in a file that the system pages in and out. Everything is float32.

Shape letters:  T tokens of one row · N tokens of all rows · D hidden · K experts per token · E
experts · V vocabulary
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from hunyuan_train.data.batches.loader import Batch
from hunyuan_train.families.registry import family_of
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.families.tables import (
    LAYERS,
    fused_shapes,
    released_tensors,
    stored_tensors,
)
from hunyuan_train.families.tensors import Kind, StoredTensor
from hunyuan_train.model.attention import PER_DOCUMENT
from hunyuan_train.model.build import model_class, native_config
from hunyuan_train.model.compressed_weights import load_parameter
from hunyuan_train.model.weights import WeightSource
from hunyuan_train.progress import tell_progress

EMBEDDED_ROWS = 2**16  # of the vocabulary, read at once
Rounding = Callable[[Tensor], Tensor]  # what a server does to what goes into a projection


class LoopedExperts(nn.Module):
    """Routed experts under the names of Transformers' fused ones, computed one after the other.

    So that what goes into a single expert's projections can be rounded or looked at.
    """

    def __init__(self, num_experts: int, hidden_size: int, width: int) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.empty(num_experts, 2 * width, hidden_size))
        self.down_proj = nn.Parameter(torch.empty(num_experts, hidden_size, width))
        self.rounding: Rounding = lambda values: values

    def forward(self, hidden_TD: Tensor, experts_TK: Tensor, weights_TK: Tensor) -> Tensor:
        """The weighted sum of what each token's experts make of it: [tokens, hidden]."""
        return run_each_expert(self.rounding(hidden_TD), experts_TK, weights_TK, self._run)

    def _run(self, expert: int, hidden_TD: Tensor) -> Tensor:
        inner = self.rounding(self.compute_inner(expert, hidden_TD))
        return functional.linear(inner, self.down_proj[expert])

    def compute_inner(self, expert: int, hidden_TD: Tensor) -> Tensor:
        """What goes into an expert's last projection: [tokens, width]."""
        gate, up = functional.linear(hidden_TD, self.gate_up_proj[expert]).chunk(2, dim=-1)
        return functional.silu(gate) * up


def run_each_expert(
    hidden_TD: Tensor,
    experts_TK: Tensor,
    weights_TK: Tensor,
    run: Callable[[int, Tensor], Tensor],
) -> Tensor:
    """The weighted sum of what each token's experts make of it: [tokens, hidden].

    Args:
        hidden_TD: of the tokens.
        experts_TK: those of each token.
        weights_TK: of each of them.
        run: one expert, on the rows that are its own.
    """
    output_TD = torch.zeros_like(hidden_TD)
    for expert in experts_TK.unique().tolist():
        tokens, places = torch.where(experts_TK == expert)
        values = run(expert, hidden_TD[tokens]) * weights_TK[tokens, places, None]
        output_TD.index_add_(0, tokens, values.to(output_TD.dtype))
    return output_TD


class LayerStream:
    """One model: its embedding, its layers one after the other, its output layer."""

    def __init__(
        self,
        shape: ModelShape,
        source: WeightSource,
        *,
        device: str = "cpu",
        rounding: Rounding | None = None,
    ) -> None:
        self.shape = shape
        self.source = source
        self.device = device
        # One module for all layers that are alike: those with experts, and a model's dense ones.
        self.modules, self.rotary, self.norm = _build_modules(shape, device)
        self.layer = self.modules[-1]  # that which is loaded
        if rounding is not None:
            for module in self.modules:
                _round_inputs(module, shape, rounding)

    def embed(self, batches: Sequence[Batch], hidden_ND: Tensor) -> None:
        """Write the embedding of every token into the table: [tokens of all batches, hidden]."""
        tensor = self._outer(Kind.EMBEDDING)
        ids = torch.from_numpy(np.concatenate([batch.input_ids for batch in batches]))
        width = self.shape.hidden_size
        for first in range(0, self.shape.vocab_size, EMBEDDED_ROWS):
            last = min(first + EMBEDDED_ROWS, self.shape.vocab_size)
            inside = torch.nonzero((ids >= first) & (ids < last))[:, 0]
            if len(inside):
                rows = self.source.read(tensor, first * width, last * width).view(-1, width)
                hidden_ND[inside] = rows[ids[inside] - first].float()

    def layers(self) -> Iterator[tuple[int, nn.Module]]:
        """Load each layer in turn into the module that computes its like."""
        for number in range(self.shape.num_hidden_layers):
            yield number, self.load_layer(number)

    def load_layer(self, number: int) -> nn.Module:
        """Load one layer."""
        self.layer = self.modules[0 if number < self.shape.num_dense_layers else -1]
        for tensors, parameter in self.layer_parameters(number):
            load_parameter(parameter, tensors, self.source)
            tell_progress()
        return self.layer

    def layer_parameters(self, number: int) -> Iterator[tuple[list[StoredTensor], Tensor]]:
        """Each value of the module with the released tensors that it holds of the layer loaded."""
        family, known = family_of(self.shape), released_tensors(self.shape)
        for name, parameter in chain(self.layer.named_parameters(), self.layer.named_buffers()):
            whole = f"{LAYERS}{number}.{name}"
            tensors = stored_tensors(family, whole, tuple(parameter.shape))
            yield [known[tensor.name] for tensor in tensors], parameter

    @torch.no_grad()
    def run_layer(
        self, batches: Sequence[Batch], hidden_ND: Tensor, output_ND: Tensor | None = None
    ) -> None:
        """Let all rows through the layer that is loaded.

        Args:
            batches: the rows, with the bounds of their documents.
            hidden_ND: what goes in, [tokens of all rows, hidden].
            output_ND: where to put what comes out; may be the same table; None: nowhere, because
                hooks look on.
        """
        first = 0
        for batch in batches:
            rows = slice(first, first := first + len(batch.input_ids))
            hidden = hidden_ND[rows][None].to(self.device)
            positions = torch.from_numpy(batch.position_ids)[None].to(self.device)
            output = self.layer(
                hidden,
                attention_mask=None,
                position_ids=positions,
                position_embeddings=self.rotary(hidden, positions),
                document_lengths=np.diff(batch.cu_seqlens).tolist(),
                use_cache=False,
            )
            if output_ND is not None:
                output_ND[rows] = output[0].cpu()
            tell_progress()

    @torch.no_grad()
    def finish(self, hidden_TD: Tensor) -> Tensor:
        """Apply the norm behind the last layer: [tokens, hidden]."""
        load_parameter(next(self.norm.parameters()), [self._outer(Kind.NORM)], self.source)
        return self.norm(hidden_TD.to(self.device)).cpu()

    def load_head(self) -> Tensor:
        """The output layer's weight: [vocabulary, hidden], float32."""
        tied = self.shape.tie_word_embeddings
        tensor = self._outer(Kind.EMBEDDING if tied else Kind.HEAD)
        return self.source.read(tensor, 0, tensor.numel).view(tensor.shape).float().to(self.device)

    def _outer(self, kind: Kind) -> StoredTensor:
        """The only tensor of a kind outside of all layers."""
        tensors = released_tensors(self.shape).values()
        [found] = (one for one in tensors if one.kind is kind and not one.name.startswith(LAYERS))
        return found


def _build_modules(shape: ModelShape, device: str) -> tuple[list[nn.Module], nn.Module, nn.Module]:
    """A layer of each sort, the dense one first, the rope, and the last norm; none has values."""
    num_dense = min(shape.num_dense_layers, 1)
    few = replace(
        shape, num_hidden_layers=num_dense + 1, num_dense_layers=num_dense, num_mtp_layers=0
    )
    config = native_config(few, attention_dropout=0.0, use_cache=False)
    config._attn_implementation = PER_DOCUMENT
    with torch.device("meta"):
        model = model_class(shape)(config).eval().float()
        for name, (num_experts, columns, width) in fused_shapes(few).items():
            if name.endswith("down_proj"):
                experts = LoopedExperts(num_experts, columns, width)
                model.set_submodule(name.rpartition(".")[0], experts)
    layers = [layer.to_empty(device=device) for layer in model.model.layers]
    rotary = type(model.model.rotary_emb)(config).to(device)
    return layers, rotary, model.model.norm.to_empty(device=device)


def _round_inputs(layer: nn.Module, shape: ModelShape, rounding: Rounding) -> None:
    """Have what goes into each compressed projection rounded."""
    for projection in projections_of(layer, shape).values():
        projection.register_forward_pre_hook(lambda _, inputs: (rounding(inputs[0]), *inputs[1:]))
    for module in layer.modules():
        if isinstance(module, LoopedExperts):
            module.rounding = rounding


def projections_of(layer: nn.Module, shape: ModelShape) -> dict[str, nn.Linear]:
    """The linear modules of a layer, by name in it, but for routers and what lies in experts."""
    moe = family_of(shape).moe
    router = f"{moe.block}.{moe.router.module}." if moe is not None else " "
    return {
        name: module
        for name, module in layer.named_modules()
        if isinstance(module, nn.Linear) and not f"{name}.".startswith(router)
    }


def make_table(num_tokens: int, hidden_size: int, file: Path | None = None) -> Tensor:
    """Room for hidden states: [tokens, hidden], float32, in memory or in a file of the disk."""
    if file is None:
        return torch.empty(num_tokens, hidden_size)
    numel = num_tokens * hidden_size
    return torch.from_file(str(file), shared=True, size=numel).view(num_tokens, hidden_size)
