"""Frozen routed experts that live as codes and scales, and are dequantised where they are used.

They are buffers: ZeRO neither partitions nor gathers them, and optimizers and checkpoints do not
know them. Each rank has those of its own experts (AutoEP splits as ever). A projection is
dequantised in pieces (`model/expert_formats.py`), in the forward pass, when it is computed again,
and in the backward pass, which needs the gradient of its input only. Nothing dequantised outlives
its product. On GPUs one kernel makes a piece (`model/decoding_kernel.py`).
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from subprocess import SubprocessError
from typing import Any

import torch
from deepspeed.module_inject import auto_ep_layer
from deepspeed.module_inject.auto_ep_layer import AutoEPMoELayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from hunyuan_train.config.schema import LoraConfig
from hunyuan_train.families.registry import FAMILIES
from hunyuan_train.families.tables import stored_tensors
from hunyuan_train.families.tensors import StoredTensor
from hunyuan_train.model import expert_formats
from hunyuan_train.model.compressed_values import FLOAT8, decode
from hunyuan_train.model.compression_scheme import Scheme
from hunyuan_train.model.expert_cache import CachedExperts
from hunyuan_train.model.expert_codes import ExpertCodes
from hunyuan_train.parallel.expert_lora import (
    activate,
    has_adapters,
    register_adapters,
    run_adapted,
)
from hunyuan_train.progress import show_progress

logger = logging.getLogger(__name__)

TRIED_EXPERTS = 8  # that a kernel is tried on: torch's operators take memory for as many
# Codes and scales of experts, their scheme and the dtype of what they mean, to that: `decode`.
Decoder = Callable[[Tensor, Tensor, Scheme, torch.dtype | None], Tensor]


class CompressedWeights(nn.Module):
    """One projection of a rank's experts, compressed.

    Shape letters:  N tokens routed here · E local experts · I inputs · O outputs
    """

    codes: Tensor  # [experts, outputs, inputs], FP8 as bytes; or fewer, of more codes each
    scales: Tensor  # [experts, blocks of outputs, blocks of inputs]

    def __init__(self, shape_EOI: tuple[int, int, int], scheme: Scheme) -> None:
        super().__init__()
        self.shape_EOI = shape_EOI
        self.scheme = scheme
        self.decoder: Decoder = decode
        for name in ("codes", "scales"):
            self.register_buffer(name, None, persistent=False)

    def put(self, expert: int, codes: Tensor, scales: Tensor, device: torch.device) -> None:
        """Take over one expert's codes and scales; the first one makes room for all."""
        if codes.dtype == FLOAT8:
            codes = codes.view(torch.uint8)  # no cast of a module to a float dtype may touch them
        if self.codes is None:
            count = self.shape_EOI[0]
            self.codes = torch.empty((count, *codes.shape), dtype=codes.dtype, device=device)
            self.scales = torch.empty((count, *scales.shape), dtype=scales.dtype, device=device)
        self.codes[expert].copy_(codes)
        self.scales[expert].copy_(scales)

    def rows(self, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        """Dequantised outputs [start, stop) of all experts: [experts, stop - start, inputs]."""
        high = self.scheme.block_rows
        scales = self.scales
        if high:
            scales = scales[:, start // high : -(-stop // high)]
        return self._decode(self.codes[:, start:stop], scales, dtype)

    def columns(self, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        """Dequantised inputs [start, stop) of all experts: [experts, outputs, stop - start]."""
        wide, scales = self.scheme.block_columns, self.scales
        if wide:
            scales = scales[..., start // wide : -(-stop // wide)]
        per_unit = self.shape_EOI[2] // self.codes.shape[2]  # inputs in an element of codes
        return self._decode(self.codes[..., start // per_unit : stop // per_unit], scales, dtype)

    def _decode(self, codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
        if not self.scheme.is_4bit:
            codes = codes.view(FLOAT8)
        return self.decoder(codes, scales, self.scheme, dtype)

    def first_experts(self, decoder: Decoder) -> "CompressedWeights":
        """The first `TRIED_EXPERTS` of them, where they lie, to be decoded so."""
        experts, outputs, inputs = self.shape_EOI
        found = CompressedWeights((min(experts, TRIED_EXPERTS), outputs, inputs), self.scheme)
        found.codes, found.scales = self.codes[:TRIED_EXPERTS], self.scales[:TRIED_EXPERTS]
        found.decoder = decoder
        return found

    def row_piece(self, dtype: torch.dtype) -> int:
        """Outputs of all experts that are dequantised at once."""
        experts, outputs, inputs = self.shape_EOI
        return expert_formats.piece_length(outputs, experts * inputs * dtype.itemsize)

    def column_piece(self, dtype: torch.dtype) -> int:
        """Inputs of all experts that are dequantised at once."""
        experts, outputs, inputs = self.shape_EOI
        return expert_formats.piece_length(inputs, experts * outputs * dtype.itemsize)


class FrozenProduct(torch.autograd.Function):
    """A grouped product with compressed weights, of which only the input has a gradient."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 torch has no type for what is kept in it
        rows_NI: Tensor,
        weights: CompressedWeights,
        ends: Tensor,
    ) -> Tensor:
        """[rows, inputs], sorted by expert, to [rows, outputs] in the same dtype.

        Args:
            ctx: torch's place for what the backward pass needs.
            rows_NI: rows of all local experts, those of one expert side by side.
            weights: of all local experts.
            ends: [experts], int32: the row at which each expert's rows end.
        """
        ctx.weights, ctx.ends = weights, ends
        dtype = rows_NI.dtype

        def piece(start: int, stop: int) -> Tensor:
            return torch._grouped_mm(rows_NI, weights.rows(start, stop, dtype).mT, offs=ends)

        return lay_pieces(rows_NI, piece, weights.shape_EOI[1], weights.row_piece(dtype))

    @staticmethod
    def backward(
        ctx: Any,  # noqa: ANN401
        gradient_NO: Tensor,
    ) -> tuple[Tensor, None, None]:
        """[rows, outputs], the output's gradient, to that of the input: [rows, inputs]."""
        weights: CompressedWeights = ctx.weights
        ends: Tensor = ctx.ends
        dtype = gradient_NO.dtype
        gradient_NO = gradient_NO.contiguous()  # of a sum it is one number, expanded

        def piece(start: int, stop: int) -> Tensor:
            return torch._grouped_mm(gradient_NO, weights.columns(start, stop, dtype), offs=ends)

        length = weights.column_piece(dtype)
        return lay_pieces(gradient_NO, piece, weights.shape_EOI[2], length), None, None


def lay_pieces(
    rows: Tensor, make_piece: Callable[[int, int], Tensor], width: int, length: int
) -> Tensor:
    """A product made piece by piece of its columns: [rows, width].

    Args:
        rows: what is multiplied.
        make_piece: columns [start, stop) of the product.
        width: of the product.
        length: of a piece, but perhaps the last.
    """
    if length == width:
        return make_piece(0, width)
    product = rows.new_empty(rows.shape[0], width)
    for start in range(0, width, length):
        stop = min(start + length, width)
        product[:, start:stop] = make_piece(start, stop)
    return product


class QuantisedExperts(nn.Module):
    """Stands in for the engine's GroupedExperts: the same function of dequantised weights.

    Shape letters:  N tokens routed here · D hidden · I intermediate · E local experts
    """

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        num_experts: int,
        *,
        scheme: Scheme,
        rank: int,
        scaling: float,
        dtype: torch.dtype,
        **settings: Any,  # noqa: ANN401 as the engine hands them to its own experts
    ) -> None:
        super().__init__()
        self.activation = settings["activation"]
        self.activation_alpha = settings["activation_alpha"]
        self.activation_limit = settings["activation_limit"]
        self.num_experts = num_experts
        self.scaling = scaling
        self.is_adapted = True
        # As the engine calls gate, down and up.
        sizes = {"w1": (hidden_dim, dim), "w2": (dim, hidden_dim), "w3": (hidden_dim, dim)}
        self.compressed = nn.ModuleDict()
        for name, (rows, columns) in sizes.items():
            size = (num_experts, rows, columns)
            self.compressed[name] = CompressedWeights(size, scheme)
            # AutoEP copies placeholders here and marks them. They are no parameters and no memory.
            setattr(self, name, torch.empty(size, dtype=dtype, device="meta"))
        if rank:
            register_adapters(self, dim, hidden_dim, num_experts, rank=rank, dtype=dtype)

    def projections(self) -> Iterator[tuple[str, CompressedWeights]]:
        """The compressed weights, as the engine calls them."""
        for name, weights in self.compressed.items():
            assert isinstance(weights, CompressedWeights)
            yield name, weights

    def forward(self, x_ND: Tensor, num_tokens_per_expert: Tensor) -> Tensor:
        """Run each expert on its tokens.

        Args:
            x_ND: [tokens, hidden], grouped by local expert.
            num_tokens_per_expert: [local experts], int32, rows of each group.

        Returns:
            [tokens, hidden].
        """
        ends = torch.cumsum(num_tokens_per_expert, dim=0, dtype=torch.int32)

        def product(rows: Tensor, name: str) -> Tensor:
            return FrozenProduct.apply(rows, self.compressed[name], ends)

        if self.is_adapted and has_adapters(self):
            return run_adapted(self, x_ND, ends, product, scaling=self.scaling)
        return product(activate(self, product(x_ND, "w1"), product(x_ND, "w3")), "w2")


@contextmanager
def quantised_experts(
    scheme: Scheme, lora: LoraConfig, dtype: torch.dtype, *, is_adapted: bool
) -> Iterator[None]:
    """Let AutoEP build its layers with quantised experts, adapted or not."""
    original = auto_ep_layer.GroupedExperts
    auto_ep_layer.GroupedExperts = partial(
        QuantisedExperts,
        scheme=scheme,
        rank=lora.lora_rank if is_adapted else 0,
        scaling=lora.scaling,
        dtype=dtype,
    )
    try:
        yield
    finally:
        auto_ep_layer.GroupedExperts = original


def fill_experts(
    model: PreTrainedModel, source: ExpertCodes, device: torch.device, dtype: torch.dtype
) -> None:
    """Read the codes of this rank's experts, one projection of one expert after the other.

    Args:
        model: that the engine has split.
        source: of the codes.
        device: on which they are kept.
        dtype: of training.
    """
    found = list(local_experts(model))
    if isinstance(source, CachedExperts):
        source.compare([tensor for *_, tensor in found])
    with show_progress("quantised experts", sum(tensor.numel for *_, tensor in found)) as advance:
        for weights, expert, tensor in found:
            weights.put(expert, *source.read_experts(tensor), device)
            advance(tensor.numel)
    if isinstance(source, CachedExperts):
        source.keep([(one, kept.codes[at], kept.scales[at]) for kept, at, one in found])
    if device.type == "cuda":
        compile_or_warn(list(dict.fromkeys(weights for weights, *_ in found)), dtype)


def compile_or_warn(projections: list[CompressedWeights], dtype: torch.dtype) -> None:
    """Compile their decoding, or say why it stays as it is: right, but slow."""
    try:
        compile_decoding(projections, dtype)
    except (RuntimeError, OSError, ImportError, SubprocessError) as error:
        logger.warning(
            "experts are decoded by torch's operators, not by one kernel, which takes two to ten "
            "times as long and more memory than is planned; the kernel needs triton, a C compiler "
            "and Python's headers, and must give the same bits: %s",
            " ".join(str(error).split())[:300],
        )
    else:
        logger.info("experts are decoded by one kernel for each piece")


def compile_decoding(projections: list[CompressedWeights], dtype: torch.dtype) -> None:
    """Let one kernel decode a piece (`model/decoding_kernel.py`), compiled and tried now.

    It gives the same bits. That is seen on the first piece of each kind of projection, of some
    experts, as the forward and the backward pass take them, before it is used.

    Args:
        projections: of this rank, with their codes, on a GPU.
        dtype: of training.

    Raises:
        RuntimeError, OSError, ImportError, SubprocessError: triton is not there, or cannot compile
            here, or what it made gives another weight. Decoding then stays as it was.
    """
    from hunyuan_train.model.decoding_kernel import decode_piece  # noqa: PLC0415  with GPUs only

    for weights in {one.shape_EOI: one for one in projections}.values():
        of_rows, of_columns = weights.row_piece(dtype), weights.column_piece(dtype)
        plain, compiled = weights.first_experts(decode), weights.first_experts(decode_piece)
        compare_bits(plain.rows(0, of_rows, dtype), compiled.rows(0, of_rows, dtype))
        compare_bits(plain.columns(0, of_columns, dtype), compiled.columns(0, of_columns, dtype))
    for weights in projections:
        weights.decoder = decode_piece


def compare_bits(plain: Tensor, compiled: Tensor) -> None:
    """Refuse another decoding.

    Raises:
        RuntimeError: a weight has other bits; 0 and -0 differ.
    """
    whole = {2: torch.int16, 4: torch.int32}[plain.element_size()]
    differing = int((plain.view(whole) != compiled.view(whole)).sum())
    if differing:
        raise RuntimeError(f"compiled, it gives {differing:,} weights another value")


def local_experts(
    model: PreTrainedModel,
) -> Iterator[tuple[CompressedWeights, int, StoredTensor]]:
    """Each projection of this rank's experts: where it is kept, as which, and what it is."""
    family = FAMILIES[model.config.model_type]
    for name, module in model.named_modules():
        if not isinstance(module, AutoEPMoELayer) or not isinstance(
            module.experts, QuantisedExperts
        ):
            continue
        first = module.ep_rank * module.num_local_experts
        for projection, weights in module.experts.projections():
            stored = f"{name}.experts.{projection}"
            tensors = stored_tensors(family, stored, weights.shape_EOI, first_expert=first)
            for expert, tensor in enumerate(tensors):
                yield weights, expert, tensor


def dequantised_experts(model: PreTrainedModel) -> Iterator[tuple[StoredTensor, Tensor]]:
    """This rank's experts as they compute, one at a time: float32, flat."""
    for weights, expert, tensor in local_experts(model):
        yield tensor, weights.rows(0, tensor.shape[0], torch.float32)[expert].flatten()
