"""Line charts, sparklines and bars as SVG, drawn on the server.

In: `Line`s of (x, y), values per bar. Out: SVG text. Colours are classes of the stylesheet, so that both themes hold;
what a chart shows is in its label, for screen readers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from fitune.web.figures import number

WIDTH, HEIGHT = 400, 196
LEFT, RIGHT, TOP, BOTTOM = 50, 10, 10, 24
COLOURS = 8  # classes c0 to c7
HOVERED = 80


@dataclass(frozen=True)
class Line:
    """One curve; x rises. low and high, where given, bound what was drawn together at each x."""

    label: str
    xs: Sequence[float]
    ys: Sequence[float]
    low: Sequence[float] = field(default=())
    high: Sequence[float] = field(default=())


@dataclass(frozen=True)
class Frame:
    """The ranges that a chart shows, and where a value lies in it."""

    x0: float
    x1: float
    y0: float
    y1: float

    def x(self, value: float) -> float:
        return LEFT + (value - self.x0) / ((self.x1 - self.x0) or 1) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return TOP + (self.y1 - value) / ((self.y1 - self.y0) or 1) * (HEIGHT - TOP - BOTTOM)


def line_chart(lines: Sequence[Line], title: str, key: str = "", x_label: str = "step", hover: bool = False) -> str:
    """A figure with its title, its curves and, for several, their names.

    Args:
        key: what a script asks for when a part is to be shown larger; empty for pages without script.
        hover: show values under the pointer without a script, at up to `HOVERED` points of each curve.
    """
    shown = [line for line in lines if len(line.xs)]
    if not shown:
        return ""
    frame = _frame(shown)
    parts = [*_grid(frame, x_label)]
    for place, line in enumerate(shown):
        parts += _curve(frame, line, f"c{place % COLOURS}")
        parts += _hovered(frame, line, x_label) if hover else []
    described = "; ".join(_described(line, x_label) for line in shown)
    names = _names(shown) if len(shown) > 1 else ""
    latest = f' <span class="latest">{number(shown[0].ys[-1])}</span>' if len(shown) == 1 else ""
    return (
        f'<figure class="chart"{_data(frame, shown, key)}><figcaption>{escape(title)}{latest}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(f"{title}: {described}", quote=True)}">'
        f"{''.join(parts)}</svg>{names}</figure>"
    )


def sparkline(ys: Sequence[float], label: str) -> str:
    """A small curve without axes, for a line of a table."""
    if len(ys) < 2:
        return ""
    low, high = min(ys), max(ys)
    points = " ".join(
        f"{place / (len(ys) - 1) * 116 + 2:.1f},{22 - (y - low) / ((high - low) or 1) * 20:.1f}"
        for place, y in enumerate(ys)
    )
    return (
        f'<svg class="spark" viewBox="0 0 120 24" role="img" aria-label="{escape(label, quote=True)}">'
        f'<polyline class="c0" points="{points}"/></svg>'
    )


def histogram(edges: Sequence[float], counts: Sequence[int], title: str, limit: float | None = None) -> str:
    """Bars between ``edges`` (one more than ``counts``); ``limit`` is a line, bars beyond it stand out."""
    if not counts:
        return ""
    most = max(*counts, 1)
    frame = Frame(edges[0], max(edges[-1], limit or edges[-1]), 0, most)
    parts = [*_grid(frame, "tokens")]
    for left, right, count in zip(edges, edges[1:], counts, strict=False):
        x, top = frame.x(left), frame.y(count)
        kind = "bar over" if limit is not None and left >= limit else "bar"
        wide = max(frame.x(right) - x - 1, 1)
        parts.append(
            f'<rect class="{kind}" x="{x:.1f}" y="{top:.1f}" width="{wide:.1f}" height="{frame.y(0) - top:.1f}">'
            f"<title>{number(left)} to {number(right)} tokens: {count:,} rows</title></rect>"
        )
    if limit is not None:
        at = frame.x(limit)
        parts.append(f'<line class="limit" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        parts.append(f'<text x="{at - 4:.1f}" y="{TOP + 10}" text-anchor="end">limit {limit:,.0f}</text>')
    said = f"{title}: {sum(counts):,} rows from {number(edges[0])} to {number(edges[-1])} tokens"
    return (
        f'<figure class="chart"><figcaption>{escape(title)}</figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(said, quote=True)}">{"".join(parts)}</svg></figure>'
    )


@dataclass(frozen=True)
class Piece:
    """A part of a bar; colour: a CSS colour."""

    name: str
    size: float
    colour: str
    told: str


def stacked_bar(pieces: Sequence[Piece], whole: float, label: str, limit: float | None = None, told: str = "") -> str:
    """Pieces beside each other on a bar of ``whole``; ``limit`` is a line with its name."""
    width, height, parts, done = 800.0, 44, list[str](), 0.0
    top = 20 if limit is not None else 0
    parts.append(f'<rect class="room" x="0" y="{top}" width="{width:.0f}" height="{height}"/>')
    for piece in pieces:
        x, wide = width * done / whole, width * piece.size / whole
        gap = 1 if wide > 3 else 0
        parts.append(
            f'<rect fill="{escape(piece.colour, quote=True)}" x="{x:.1f}" y="{top}" width="{max(wide - gap, 0.5):.1f}" '
            f'height="{height}"><title>{escape(f"{piece.name}: {piece.told}")}</title></rect>'
        )
        done += piece.size
    if limit is not None:
        at = width * limit / whole
        parts.append(f'<line class="limit" x1="{at:.1f}" x2="{at:.1f}" y1="14" y2="{top + height + 4}"/>')
        side = "end" if at > width / 2 else "start"
        parts.append(f'<text x="{at:.1f}" y="10" text-anchor="{side}">{escape(told)}</text>')
    return (
        f'<svg class="bar-chart chart" viewBox="0 0 800 {top + height + 6}" role="img" '
        f'aria-label="{escape(label, quote=True)}">{"".join(parts)}</svg>'
    )


def ticks(low: float, high: float, most: int = 4) -> list[float]:
    """Round values between two ends, 1, 2 or 5 times a power of ten apart."""
    span = high - low
    if span <= 0 or not math.isfinite(span):
        return [low]
    raw = span / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [place * step for place in range(first, math.floor(high / step + 1e-9) + 1)]


def _frame(lines: Sequence[Line]) -> Frame:
    xs = [x for line in lines for x in (line.xs[0], line.xs[-1])]
    lows = [min(line.low or line.ys) for line in lines]
    highs = [max(line.high or line.ys) for line in lines]
    low, high = min(lows), max(highs)
    room = (high - low) * 0.04 or abs(high) * 0.1 or 1.0
    bottom = 0.0 if low >= 0 and low - room < 0 else low - room
    return Frame(min(xs), max(xs), bottom, high + room)


def _grid(frame: Frame, x_label: str) -> list[str]:
    """Thin lines across at round values, and the numbers of both axes."""
    parts: list[str] = []
    for value in ticks(frame.y0, frame.y1):
        y = frame.y(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{number(value)}</text>')
    base = HEIGHT - BOTTOM
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{base}" y2="{base}"/>')
    for value in ticks(frame.x0, frame.x1, 5):
        x = frame.x(value)
        if x < WIDTH - 76:
            parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 7}" text-anchor="middle">{number(value)}</text>')
    parts.append(
        f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 7}" text-anchor="end">{escape(x_label)} {number(frame.x1)}</text>'
    )
    return parts


def _curve(frame: Frame, line: Line, colour: str) -> list[str]:
    points = [(frame.x(x), frame.y(y)) for x, y in zip(line.xs, line.ys, strict=True)]
    if len(points) == 1:
        return [f'<circle class="{colour}" cx="{points[0][0]:.1f}" cy="{points[0][1]:.1f}" r="3"/>']
    parts: list[str] = []
    if line.low and line.high:
        up = [f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in zip(line.xs, line.high, strict=True)]
        down = [f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in zip(line.xs, line.low, strict=True)]
        parts.append(f'<polygon class="band {colour}" points="{" ".join([*up, *reversed(down)])}"/>')
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return [*parts, f'<polyline class="{colour}" points="{path}"/>']


def _hovered(frame: Frame, line: Line, x_label: str) -> list[str]:
    """Unseen spots that tell their value when the pointer rests on them."""
    every = -(-len(line.xs) // HOVERED)
    words = f"{line.label}, " if line.label else ""
    return [
        f'<circle cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="7" fill-opacity="0">'
        f"<title>{escape(words)}{x_label} {number(x)}: {number(y)}</title></circle>"
        for x, y in list(zip(line.xs, line.ys, strict=True))[::every]
    ]


def _described(line: Line, x_label: str) -> str:
    words = f"{line.label} " if line.label else ""
    return (
        f"{words}from {number(line.ys[0])} at {x_label} {number(line.xs[0])} to {number(line.ys[-1])} at "
        f"{x_label} {number(line.xs[-1])}, lowest {number(min(line.low or line.ys))}, "
        f"highest {number(max(line.high or line.ys))}"
    )


def _names(lines: Sequence[Line]) -> str:
    items = "".join(
        f'<li><svg viewBox="0 0 12 12" aria-hidden="true"><rect class="c{place % COLOURS}" y="4" width="12" height="4"/>'
        f"</svg>{escape(line.label)}</li>"
        for place, line in enumerate(lines)
    )
    return f'<ul class="names">{items}</ul>'


def _data(frame: Frame, lines: Sequence[Line], key: str) -> str:
    """What a script needs to show values under the pointer."""
    if not key:
        return ""
    held = {
        "frame": [frame.x0, frame.x1, frame.y0, frame.y1],
        "box": [WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM],
        "lines": [[line.label, list(line.xs), [round_to(y) for y in line.ys]] for line in lines],
    }
    text = json.dumps(held, separators=(",", ":"))
    return f' data-key="{escape(key, quote=True)}" data-chart="{escape(text, quote=True)}"'


def round_to(value: float, digits: int = 6) -> float:
    """A value with so many significant digits."""
    return float(f"{value:.{digits}g}")
