"""Curves, bars and boxes as SVG: text that every browser draws, sharp at any size, on paper too."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape

import numpy as np

from .statistics import short

COLOURS = ("#1f6fb4", "#d6601a", "#2c8c3c", "#943ca0", "#8a6d00", "#666666")
WIDTH, HEIGHT = 470, 300  # of a panel
LEFT, TOP, RIGHT, BOTTOM = 62, 54, 16, 44  # and its margins


@dataclass
class Line:
    """Points (n,) joined by a line, or single ones with the ends of their bars (n,) if `low` and `high` are given."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    smooth: int = 1  # points averaged; the raw ones are drawn faint behind
    dots: bool = False


def text(x: float, y: float, words: str, anchor="middle", size=12, fill="#222") -> str:
    style = f'text-anchor="{anchor}" font-size="{size}" fill="{fill}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(words)}</text>'


def stroke(x, y, colour="#222", width=1.6, more="") -> str:
    """A line through points."""
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
    style = f'fill="none" stroke="{colour}" stroke-width="{width}" {more}'
    return f'<polyline points="{points}" {style}/>'


def box(x: float, y: float, width: float, height: float, fill="#fff", more="") -> str:
    size = f'width="{width:.1f}" height="{height:.1f}"'
    return f'<rect x="{x:.1f}" y="{y:.1f}" {size} fill="{fill}" {more}/>'


def svg(width: float, height: float, *parts: str) -> str:
    """A drawing of its own."""
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}"'
    font = f'width="{width:.0f}" height="{height:.0f}" font-family="Helvetica, Arial, sans-serif"'
    return "\n".join([f"{head} {font}>", box(0, 0, width, height), *parts, "</svg>\n"])


def beside(panels: Sequence[str], columns: int = 2) -> str:
    """Panels of one size as one drawing."""
    moved = []
    for i, panel in enumerate(panels):
        place = f"translate({i % columns * WIDTH},{i // columns * HEIGHT})"
        moved.append(f'<g transform="{place}">{panel}</g>')
    rows = -(-len(panels) // columns)
    return svg(min(columns, len(panels)) * WIDTH, rows * HEIGHT, *moved)


def axis(low: float, high: float, start: float, stop: float, margin: float) -> tuple:
    """-> values, clipped to low ... high and a margin (a share) beyond, to pixels; about five round values."""
    margin *= max(high - low, 1e-9 + 1e-3 * abs(high))
    low, high = low - margin, high + margin
    step = 10 ** np.floor(np.log10((high - low) / 4))
    step *= next(k for k in (1, 2, 5, 10) if (high - low) / (k * step) <= 6)
    ticks = np.arange(np.ceil(low / step), np.floor(high / step) + 1) * step
    pixels = partial(np.interp, xp=(low, high), fp=(start, stop))
    return pixels, np.round(ticks, 10) + 0.0  # no -0


def chart(
    title: str,
    x_name: str,
    y_name: str,
    lines: Sequence[Line],
    levels: dict[str, float] = {},  # noqa: B006 it is only read
) -> str:
    """Lines over two named axes; levels: horizontal lines to compare with, by name."""
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    xs = np.concatenate([np.asarray(line.x, float) for line in lines])
    ys = [np.asarray(y) for li in lines for y in (li.y, li.low, li.high) if y is not None]
    # the first few values of a loss would flatten all the rest
    high = max(*levels.values(), *(np.quantile(y, 0.98, method="higher") for y in ys), -np.inf)
    low = min(*levels.values(), *(y.min() for y in ys), np.inf)
    x, x_ticks = axis(xs.min(), xs.max(), LEFT, right, 0.02)
    y, y_ticks = axis(low, high, bottom, TOP, 0.06)
    parts = [text((LEFT + right) / 2, 18, title, size=15), text(right, HEIGHT - 8, x_name, "end")]
    parts.append(text(LEFT - 50, 18, y_name, "start", fill="#666"))
    for value in y_ticks:
        parts.append(stroke((LEFT, right), (y(value), y(value)), "#e4e4e4", 1))
        parts.append(text(LEFT - 6, y(value) + 4, f"{value:g}", "end", 11))
    parts += [text(x(value), bottom + 16, f"{value:g}", size=11) for value in x_ticks]
    for k, (name, level) in enumerate(levels.items()):
        dashed = 'stroke-dasharray="5 4"'
        parts.append(stroke((LEFT, right), (y(level), y(level)), "#555", 1, dashed))
        place = right - 4 - 90 * (k % 3), y(level) - 4
        parts.append(text(*place, f"{name} {short(level)}", "end", 11, "#555"))
    for k, line in enumerate(lines):
        colour = COLOURS[k % len(COLOURS)]
        parts += _drawn(line, x, y, colour)
        place = LEFT + (right - LEFT) / max(len(lines), 3) * k, TOP - 10
        parts.append(text(*place, line.name, "start", 12, colour))
    frame = box(LEFT, TOP, right - LEFT, bottom - TOP, "none", 'stroke="#222"')
    return svg(WIDTH, HEIGHT, *parts, frame)


def _drawn(line: Line, x: Callable, y: Callable, colour: str) -> list[str]:
    """A line with its dots and bars."""
    parts, xs, ys = [], x(line.x), y(line.y)
    if line.low is not None:
        for at, *ends in zip(xs, y(line.low), y(line.high), strict=True):
            parts.append(stroke((at, at), ends, colour, 1.2))
    if line.smooth > 1 and len(ys) > line.smooth:
        parts.append(stroke(xs, ys, colour, 0.7, 'opacity="0.35"'))
        kernel = np.ones(line.smooth)
        ys = np.convolve(ys, kernel, "same") / np.convolve(np.ones(len(ys)), kernel, "same")
    if not line.dots:
        parts.append(stroke(xs, ys, colour))
    if line.dots or len(xs) <= 40:
        for a, b in zip(xs, ys, strict=True):
            parts.append(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="2.6" fill="{colour}"/>')
    return parts


def bars(rows: dict[str, tuple[float, float, float]], colours: int = 1) -> str:
    """A bar for each name: its value, written beside it, and the ends of its interval; so many colours in turn."""
    low, high = min(0, np.nanmin([*rows.values()])), max(1e-9, np.nanmax([*rows.values()]))
    place, _ = axis(low, high, 230, 640, 0)
    parts = []
    for k, (name, ends) in enumerate(rows.items()):
        y = 26 * k
        parts.append(text(222, y + 16, name, "end"))
        if np.isfinite(ends[0]):
            zero, x, *bar = place([0, *ends])
            shade = COLOURS[k % colours], 'opacity="0.8"'
            parts.append(box(min(zero, x), y + 3, abs(x - zero), 18, *shade))
            parts.append(stroke(bar, (y + 12, y + 12), "#222", 1.2))
            parts.append(text(max(zero, *bar) + 5, y + 16, short(ends[0]), "start"))
    return svg(700, 26 * len(rows), *parts)
