"""Bytes of routed experts that are kept as codes, and of what is dequantised of them at a time."""

from collections.abc import Iterator

from hunyuan_train.config.resolved_run import ResolvedRun
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.families.tables import model_parameters
from hunyuan_train.families.tensors import FUSED, Kind
from hunyuan_train.model.compression_scheme import Scheme
from hunyuan_train.model.expert_formats import DECODING_BYTES, piece_length, scheme_of
from hunyuan_train.planner.component import Component, Phase


def quantised_as(run: ResolvedRun) -> Scheme | None:
    """How a run keeps its experts; None: as weights."""
    return scheme_of(run.config.model.expert_weights, run.shape)


def projections(shape: ModelShape) -> Iterator[tuple[int, int, int]]:
    """Layers, outputs and inputs of each projection of a routed expert."""
    for name, parts in FUSED.items():
        members = [
            one
            for one in model_parameters(shape)
            if one.kind is Kind.EXPERT and one.name.endswith(name)
        ]
        _, rows, columns = members[0].shape
        for _ in parts:
            yield len(members), rows // len(parts), columns


def code_bytes(run: ResolvedRun) -> int:
    """Codes and scales of this rank's experts, which ZeRO does not cut."""
    scheme = quantised_as(run)
    if scheme is None:
        return 0
    local, size = run.shape.num_experts // run.expert_size, run.element_bytes
    return local * sum(
        layers * scheme.num_bytes(rows, columns, scale_bytes=size)
        for layers, rows, columns in projections(run.shape)
    )


def dequantised_bytes(run: ResolvedRun) -> int:
    """The largest piece of a projection while it is dequantised (parallel/quantised_experts.py)."""
    scheme = quantised_as(run)
    if scheme is None:
        return 0
    local, size = run.shape.num_experts // run.expert_size, run.element_bytes
    elements = 0
    for _, rows, columns in projections(run.shape):
        for length, other in ((rows, columns), (columns, rows)):  # forward, backward
            elements = max(elements, piece_length(length, local * other * size) * other)
    return local * elements * DECODING_BYTES[scheme.strategy][size]


def working_lines(run: ResolvedRun) -> Iterator[Component]:
    """Lines of the plan for what quantised experts take while a layer runs."""
    if piece := dequantised_bytes(run):
        yield Component(
            "dequantised experts", piece, Phase.LAYER,
            "a piece of one projection while its product is made (parallel/quantised_experts.py)",
        )  # fmt: skip
