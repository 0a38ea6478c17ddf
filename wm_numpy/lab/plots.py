"""Curves, bars and boxes as SVG: text that every browser draws, sharp at any size, on paper too."""

from collections.abc import Sequence
from dataclasses import dataclass
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


def text(x: float, y: float, words: str, anchor="middle", size=12, fill="#222", more="") -> str:
    style = f'text-anchor="{anchor}" font-size="{size}" fill="{fill}" {more}'
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


def ticks(low: float, high: float) -> np.ndarray:
    """About five round values between low and high."""
    step = 10 ** np.floor(np.log10((high - low) / 4))
    step *= next(k for k in (1, 2, 5, 10) if (high - low) / (k * step) <= 6)
    values = np.arange(np.ceil(low / step), np.floor(high / step) + 1) * step
    return np.round(values, 10) + 0.0  # no -0


def padded(low: float, high: float, share: float) -> tuple[float, float]:
    """The ends of an axis, a share of its length beyond what is on it."""
    margin = share * max(high - low, 1e-9 + 1e-3 * abs(high))
    return low - margin, high + margin


def chart(
    title: str,
    x_name: str,
    y_name: str,
    lines: Sequence[Line],
    levels: dict[str, float] = {},  # noqa: B006 it is only read
) -> str:
    """Lines over two named axes; levels: horizontal lines to compare with, by name."""
    xs = np.concatenate([np.asarray(line.x, float) for line in lines])
    drawn = [np.asarray(y) for li in lines for y in (li.y, li.low, li.high) if y is not None]
    # the first few values of a loss would flatten all the rest
    high = max(*levels.values(), *(np.quantile(y, 0.98, method="higher") for y in drawn), -np.inf)
    low = min(*levels.values(), *(y.min() for y in drawn), np.inf)
    (x0, x1), (y0, y1) = padded(xs.min(), xs.max(), 0.02), padded(low, high, 0.06)
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM

    def at(x, y) -> tuple[np.ndarray, np.ndarray]:
        across = LEFT + (np.asarray(x, float) - x0) / (x1 - x0) * (right - LEFT)
        up = (np.clip(y, y0, y1) - y0) / (y1 - y0) * (bottom - TOP)
        return across, bottom - up

    parts = [text((LEFT + right) / 2, 18, title, size=15), text(right, HEIGHT - 8, x_name, "end")]
    parts.append(text(LEFT - 50, 18, y_name, "start", fill="#666"))
    for value in ticks(y0, y1):
        _, y = at(x0, value)
        parts.append(stroke((LEFT, right), (y, y), "#e4e4e4", 1))
        parts.append(text(LEFT - 6, y + 4, f"{value:g}", "end", 11))
    for value in ticks(x0, x1):
        x, _ = at(value, y0)
        parts.append(text(x, bottom + 16, f"{value:g}", size=11))
    for k, (name, level) in enumerate(levels.items()):
        _, y = at(x0, level)
        parts.append(stroke((LEFT, right), (y, y), "#555", 1, 'stroke-dasharray="5 4"'))
        name = f"{name} {short(level)}"
        parts.append(text(right - 4 - 90 * (k % 3), y - 4, name, "end", 11, "#555"))
    across = (right - LEFT) / max(len(lines), 3)
    for k, line in enumerate(lines):
        colour = COLOURS[k % len(COLOURS)]
        x, y = at(line.x, line.y)
        if line.low is not None:
            for ends in zip(x, at(line.x, line.low)[1], at(line.x, line.high)[1], strict=True):
                parts.append(stroke((ends[0], ends[0]), ends[1:], colour, 1.2))
        if line.smooth > 1 and len(y) > line.smooth:
            parts.append(stroke(x, y, colour, 0.7, 'opacity="0.35"'))
            kernel = np.ones(line.smooth)
            y = np.convolve(y, kernel, "same") / np.convolve(np.ones(len(y)), kernel, "same")
        if not line.dots:
            parts.append(stroke(x, y, colour))
        if line.dots or len(x) <= 40:
            for a, b in zip(x, y, strict=True):
                parts.append(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="2.6" fill="{colour}"/>')
        parts.append(text(LEFT + across * k, TOP - 10, line.name, "start", 12, colour))
    frame = 'stroke="#222"'
    return svg(WIDTH, HEIGHT, *parts, box(LEFT, TOP, right - LEFT, bottom - TOP, "none", frame))


def bars(rows: dict[str, tuple[float, float, float]], colours: Sequence[int] = (0,)) -> str:
    """A bar by name: its value, with the number beside it, and the ends of its interval; colours in turns."""
    left, right = 230, 640
    low = min(0, np.nanmin([*rows.values()]))
    high = max(1e-9, np.nanmax([*rows.values()]))
    parts = []
    for k, (name, ends) in enumerate(rows.items()):
        y = 26 * k
        parts.append(text(left - 8, y + 16, name, "end"))
        if np.isfinite(ends[0]):
            zero, x, *bar = left + (np.array([0, *ends]) - low) / (high - low) * (right - left)
            colour = COLOURS[colours[k % len(colours)]]
            parts.append(box(min(zero, x), y + 3, abs(x - zero), 18, colour, 'opacity="0.8"'))
            parts.append(stroke(bar, (y + 12, y + 12), "#222", 1.2))
            parts.append(text(max(zero, *bar) + 5, y + 16, short(ends[0]), "start"))
    return svg(700, 26 * len(rows), *parts)
