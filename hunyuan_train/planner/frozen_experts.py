"""Bytes of routed experts that are kept as codes, and of what is dequantised of them at a time."""

from collections.abc import Iterator
from math import ceil

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
        of_rows, of_columns = piece_lengths(run, rows, columns)
        elements = max(elements, of_rows * columns, of_columns * rows)
    return local * elements * (size if run.is_on_gpu else DECODING_BYTES[scheme.strategy][size])


def piece_lengths(run: ResolvedRun, rows: int, columns: int) -> tuple[int, int]:
    """Outputs of a projection that are dequantised at once, and inputs, which backward takes."""
    row_bytes = run.shape.num_experts // run.expert_size * run.element_bytes
    return piece_length(rows, row_bytes * columns), piece_length(columns, row_bytes * rows)


def num_pieces(run: ResolvedRun, rows: int, columns: int) -> tuple[int, int]:
    """Pieces of a projection, forward and backward."""
    of_rows, of_columns = piece_lengths(run, rows, columns)
    return ceil(rows / of_rows), ceil(columns / of_columns)


def working_lines(run: ResolvedRun) -> Iterator[Component]:
    """Lines of the plan for what quantised experts take while a layer runs."""
    if piece := dequantised_bytes(run):
        yield Component(
            "dequantised experts", piece, Phase.LAYER,
            "a piece of one projection while its product is made (parallel/quantised_experts.py)",
        )  # fmt: skip
