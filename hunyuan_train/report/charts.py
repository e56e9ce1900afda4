"""Curves and heat maps as SVG that takes its colours from the page, so that both schemes fit."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10

Points = Sequence[tuple[float, float]]

WIDTH, HEIGHT = 340, 190  # about the width of a phone, on which text keeps its size
LEFT, RIGHT, TOP, BOTTOM = 44, 8, 8, 22
MAX_POINTS = 300
NUM_TICKS = 4
ROUND_SIZES = (1, 2, 2.5, 5, 10)
DASHES = ("", "5 3", "1 3", "8 3 2 3")  # tell runs apart; colours tell numbers apart
NUM_COLOURS = 6
CELL = 6  # pixels of a heat map's expert


@dataclass(frozen=True, slots=True)
class Curve:
    """One line of a chart."""

    label: str
    points: Points
    colour: int
    run: int = 0


def draw_chart(title: str, curves: Sequence[Curve]) -> str:
    """A chart with its legend, as a figure; nothing where no curve has a point."""
    shown = [curve for curve in curves if curve.points]
    if not shown:
        return ""
    values = [value for curve in shown for _, value in curve.points]
    steps = [step for curve in shown for step, _ in curve.points]
    frame = _Frame(min(steps), max(steps), choose_marks(min(values), max(values)))
    body = frame.draw_axes() + "".join(frame.draw_curve(curve) for curve in shown)
    legend = "".join(_describe(curve) for curve in shown)
    return (
        f"<figure><figcaption>{escape(title)}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{body}</svg>'
        f'<div class="legend">{legend}</div></figure>'
    )


@dataclass(frozen=True, slots=True)
class _Frame:
    """From steps and values to places."""

    first: float
    last: float
    # Of the grid, lowest first; the chart reaches from the first to the last.
    marks: Sequence[float]

    def x(self, step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (step - self.first) / ((self.last - self.first) or 1)

    def y(self, value: float) -> float:
        low, high = self.marks[0], self.marks[-1]
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low)

    def draw_axes(self) -> str:
        lines = "".join(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{self.y(mark):.1f}" '
            f'y2="{self.y(mark):.1f}"/><text x="{LEFT - 4}" y="{self.y(mark) + 3:.1f}" '
            f'text-anchor="end">{short(mark)}</text>'
            for mark in self.marks
        )
        return lines + (
            f'<text x="{LEFT}" y="{HEIGHT - 6}">{short(self.first)}</text>'
            f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 6}" text-anchor="end">step {short(self.last)}'
            "</text>"
        )

    def draw_curve(self, curve: Curve) -> str:
        points = thin_out(curve.points)
        style = f'class="c{curve.colour % NUM_COLOURS}" stroke-dasharray="{DASHES[curve.run % 4]}"'
        if len(points) == 1:
            ((step, value),) = points
            return f'<circle {style} cx="{self.x(step):.1f}" cy="{self.y(value):.1f}" r="3"/>'
        places = " ".join(f"{self.x(step):.1f},{self.y(value):.1f}" for step, value in points)
        return f'<polyline {style} points="{places}"/>'


def thin_out(points: Points) -> list[tuple[float, float]]:
    """At most `MAX_POINTS` points, each the mean of those it stands for."""
    size = -(-len(points) // MAX_POINTS)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [
        (sum(step for step, _ in group) / len(group), sum(value for _, value in group) / len(group))
        for group in groups
    ]


def short(value: float) -> str:
    """A number in at most about six characters."""
    if not value:
        return "0"
    exponent = floor(log10(abs(value)))
    if -2 <= exponent < 3:
        return f"{value:.3g}"
    for limit, letter in ((9, "G"), (6, "M"), (3, "k")):
        if exponent >= limit:
            return f"{value / 10**limit:.3g}{letter}"
    return f"{value:.1e}".replace("e-0", "e-")


def choose_marks(low: float, high: float) -> list[float]:
    """Round values, as far apart as a grid of about `NUM_TICKS` lines wants, that enclose two."""
    if low >= 0 and low < 0.3 * high:
        low = 0.0  # what is small beside its range is read best from zero
    room = (high - low) or abs(high) or 1.0
    power = 10.0 ** floor(log10(room / NUM_TICKS))
    width = next(size * power for size in ROUND_SIZES if size * power * NUM_TICKS >= room * 0.999)
    first, last = floor(low / width + 1e-9), ceil(high / width - 1e-9)
    return [number * width for number in range(first, max(last, first + 1) + 1)]


def _describe(curve: Curve) -> str:
    colour, dash = curve.colour % NUM_COLOURS, DASHES[curve.run % 4]
    line = (
        f'<svg class="key" viewBox="0 0 24 8"><line class="c{colour}" stroke-dasharray="{dash}" '
        f'x1="0" x2="24" y1="4" y2="4"/></svg>'
    )
    return f"<span>{line}{escape(curve.label)} {short(curve.points[-1][1])}</span>"


def draw_heat_map(title: str, shares: Sequence[Sequence[float]]) -> str:
    """Layers down, experts across; the darker, the more of the layer's tokens an expert gets.

    Args:
        title: of the map.
        shares: by layer and expert; a row sums to 1.
    """
    num_layers, num_experts = len(shares), len(shares[0])
    busiest = max(max(row) for row in shares) * num_experts
    cells = "".join(
        f'<rect x="{expert * CELL}" y="{layer * CELL}" width="{CELL}" height="{CELL}" '
        f'fill-opacity="{min(1.0, share * num_experts / max(busiest, 2.0)):.3f}">'
        f"<title>layer {layer}, expert {expert}: {share * num_experts:.2f} equal shares</title>"
        "</rect>"
        for layer, row in enumerate(shares)
        for expert, share in enumerate(row)
    )
    return (
        f"<figure><figcaption>{escape(title)}</figcaption>"
        f'<svg class="heat" viewBox="0 0 {num_experts * CELL} {num_layers * CELL}" role="img" '
        f'aria-label="{escape(title)}">{cells}</svg>'
        f'<div class="legend"><span>{num_layers} layers down, {num_experts} experts across; the '
        f"busiest (strongest colour) has {busiest:.1f} times an equal share</span></div></figure>"
    )
