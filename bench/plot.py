"""A plot of throughput against latency, as SVG: both axes logarithmic. Only text, so no library is needed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 760, 460
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 40, 60


@dataclass(frozen=True)
class Curve:
    """Points that belong together."""

    name: str
    color: str
    points: Sequence[tuple[float, float, str]]
    """(requests a second, milliseconds, what to write beside it); those that are not finite are left out."""
    dashed: bool = False


def svg(title: str, curves: Sequence[Curve]) -> str:
    """The picture. There must be a finite point."""
    shown = [[point for point in curve.points if all(map(math.isfinite, point[:2]))] for curve in curves]
    x_decades = _decades([x for points in shown for x, _, _ in points])
    y_decades = _decades([y for points in shown for _, y, _ in points])

    def place(x: float, y: float) -> tuple[float, float]:
        across = (math.log10(x) - x_decades[0]) / (x_decades[1] - x_decades[0])
        up = (math.log10(y) - y_decades[0]) / (y_decades[1] - y_decades[0])
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif"'
        ' font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="22" font-size="15">{title}</text>',
        f'<text x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 14}" text-anchor="middle">requests a second</text>',
        f'<text transform="translate(18 {HEIGHT / 2}) rotate(-90)" text-anchor="middle">milliseconds</text>',
    ]
    for x in _ticks(x_decades):
        at, _ = place(x, 10 ** y_decades[0])
        parts.append(f'<path d="M{at:.1f} {TOP}V{HEIGHT - BOTTOM}" stroke="#ddd"/>')
        parts.append(f'<text x="{at:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{x:,g}</text>')
    for y in _ticks(y_decades):
        _, at = place(10 ** x_decades[0], y)
        parts.append(f'<path d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{y:g}</text>')
    for number, (curve, points) in enumerate(zip(curves, shown, strict=True)):
        line = " ".join("{:.1f},{:.1f}".format(*place(x, y)) for x, y, _ in points)
        dash = ' stroke-dasharray="5 4"' if curve.dashed else ""
        parts.append(f'<polyline points="{line}" fill="none" stroke="{curve.color}" stroke-width="2"{dash}/>')
        for x, y, label in points:
            across, down = place(x, y)
            parts.append(f'<circle cx="{across:.1f}" cy="{down:.1f}" r="3" fill="{curve.color}"/>')
            parts.append(f'<text x="{across + 5:.1f}" y="{down - 5:.1f}" font-size="10" fill="#555">{label}</text>')
        legend = TOP + 16 + 18 * number
        parts.append(f'<path d="M{LEFT + 10} {legend}h24" stroke="{curve.color}" stroke-width="2"{dash}/>')
        parts.append(f'<text x="{LEFT + 40}" y="{legend + 4}">{curve.name}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _decades(values: Sequence[float]) -> tuple[int, int]:
    """The powers of ten that hold all of these between them."""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return low, max(high, low + 1)


def _ticks(decades: tuple[int, int]) -> list[float]:
    steps = (1, 2, 5) if decades[1] - decades[0] <= 3 else (1,)
    return [step * 10**power for power in range(*decades) for step in steps] + [10.0 ** decades[1]]
