"""The load of experts as a picture, for trackers."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

INCHES_PER_EXPERT, INCHES_PER_LAYER, MARGIN_INCHES = 0.12, 0.14, 1.2


def draw_heat_map(path: Path, shares: Sequence[Sequence[float]], *, step: int) -> None:
    """Write a PNG: layers down, experts across, the colour in equal shares.

    Args:
        path: of the file.
        shares: by layer and expert; a row sums to 1.
        step: for the title.
    """
    num_layers, num_experts = len(shares), len(shares[0])
    size = (
        MARGIN_INCHES + INCHES_PER_EXPERT * num_experts + 1,
        MARGIN_INCHES + INCHES_PER_LAYER * num_layers,
    )
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    equal = [[share * num_experts for share in row] for row in shares]
    drawn = axes.imshow(equal, aspect="auto", cmap="magma", vmin=0, interpolation="nearest")
    axes.set(xlabel="expert", ylabel="layer", title=f"load at step {step}, in equal shares")
    figure.colorbar(drawn)
    figure.savefig(path, dpi=100)
