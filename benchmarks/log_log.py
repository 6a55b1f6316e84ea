"""A small figure without a plotting library: lines with error bars on two logarithmic axes, as SVG text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 720, 420
LEFT, RIGHT, TOP, BOTTOM = 70, 190, 20, 50


@dataclass(frozen=True)
class Line:
    """Points (x, y, standard error of y) with x, y > 0, in the order of x."""

    label: str
    points: Sequence[tuple[float, float, float]]
    colour: str
    dashed: bool = False


def draw(lines: Sequence[Line], *, x: str, y: str) -> str:
    """The SVG document; decades are marked on both axes, error bars are cut at the axis."""
    xs = [point[0] for line in lines for point in line.points]
    ys = [point[1] for line in lines for point in line.points]
    across = _Axis(min(xs) / 1.3, max(xs) * 1.3, LEFT, WIDTH - RIGHT)
    up = _Axis(min(ys) / 1.6, max(ys) * 1.6, HEIGHT - BOTTOM, TOP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for value in across.decades():
        at = across(value)
        parts += [
            f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" stroke="#ddd"/>',
            f'<text x="{at:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{value:g}</text>',
        ]
    for value in up.decades():
        at = up(value)
        parts += [
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}" stroke="#ddd"/>',
            f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{value:g}</text>',
        ]
    parts += [
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 12}" text-anchor="middle">{escape(x)}</text>',
        f'<text transform="translate(16 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)" text-anchor="middle">'
        f"{escape(y)}</text>",
    ]
    for index, line in enumerate(lines):
        style = f'stroke="{line.colour}" fill="none" stroke-width="2"' + (
            ' stroke-dasharray="6 4"' if line.dashed else ""
        )
        path = " ".join(f"{across(a):.1f},{up(b):.1f}" for a, b, _ in line.points)
        parts.append(f'<polyline points="{path}" {style}/>')
        for a, b, error in line.points:
            low, high = up(max(b - error, up.low)), up(b + error)
            at = across(a)
            parts += [
                f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{low:.1f}" y2="{high:.1f}" stroke="{line.colour}"/>',
                f'<circle cx="{at:.1f}" cy="{up(b):.1f}" r="3" fill="{line.colour}"/>',
            ]
        row = TOP + 14 + 20 * index
        parts += [
            f'<line x1="{WIDTH - RIGHT + 12}" x2="{WIDTH - RIGHT + 42}" y1="{row}" y2="{row}" {style}/>',
            f'<text x="{WIDTH - RIGHT + 48}" y="{row + 4}">{escape(line.label)}</text>',
        ]
    return "\n".join([*parts, "</svg>", ""])


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.start + share * (self.end - self.start)

    def decades(self) -> list[float]:
        first, last = math.ceil(math.log10(self.low)), math.floor(math.log10(self.high))
        return [10.0**power for power in range(first, last + 1)]
