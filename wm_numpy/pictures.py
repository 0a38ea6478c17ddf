"""Pictures and curves as PNG, drawn with pygame (it comes with the environments); no display is needed.

Pictures are uint8 arrays (height, width, 3).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")

PAPER, INK, FAINT = (255, 255, 255), (40, 40, 40), (225, 225, 225)
COLOURS = ((31, 119, 180), (214, 96, 20), (44, 140, 60), (148, 60, 160))


def _pygame():
    try:
        import pygame
    except ImportError as error:
        raise ImportError(f"pictures need pygame ({error}): run `pip install pygame-ce`") from error
    pygame.font.init()
    return pygame


def surface(picture: np.ndarray, scale: int = 1):
    """A picture as a pygame surface, every pixel scale x scale."""
    pygame = _pygame()
    image = pygame.surfarray.make_surface(np.ascontiguousarray(picture.swapaxes(0, 1)))
    return pygame.transform.scale_by(image, scale) if scale > 1 else image


def text(target, words: str, at: tuple[int, int], size: int = 18, colour=INK, centre: bool = False) -> None:
    """Write on a surface, from `at` to the right, or around it."""
    pygame = _pygame()
    image = pygame.font.Font(None, size).render(words, True, colour)
    target.blit(image, (at[0] - image.get_width() // 2, at[1]) if centre else at)


def save(target, path: Path) -> None:
    """Write a surface as PNG, beside its place first."""
    pygame = _pygame()
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.stem}.{os.getpid()}.png")
    pygame.image.save(target, str(beside))
    os.replace(beside, path)


def strips(rows: Sequence[tuple[str, Sequence[np.ndarray]]], captions: Sequence[str] = (), scale: int = 2):
    """Rows of pictures of one size, each with its name at the left, captions under the columns -> surface."""
    pygame = _pygame()
    height, width = (side * scale for side in rows[0][1][0].shape[:2])
    columns, left = max(len(pictures) for _, pictures in rows), 92
    target = pygame.Surface((left + columns * (width + 4), len(rows) * (height + 4) + (20 if captions else 0)))
    target.fill(PAPER)
    for r, (name, pictures) in enumerate(rows):
        text(target, name, (6, r * (height + 4) + height // 2 - 8))
        for k, picture in enumerate(pictures):
            target.blit(surface(picture, scale), (left + k * (width + 4), r * (height + 4)))
    for k, words in enumerate(captions):
        text(target, words, (left + k * (width + 4) + width // 2, target.get_height() - 18), centre=True)
    return target


def curves(panels: Sequence[tuple[str, str, dict[str, tuple[Sequence[float], Sequence[float]]]]]):
    """Panels side by side -> surface. A panel: title, name of the x axis, {name of a line: (x, y)}."""
    pygame = _pygame()
    width, height, left, right, top, bottom = 420, 310, 62, 14, 52, 44
    target = pygame.Surface((width * len(panels), height))
    target.fill(PAPER)
    for p, (title, x_name, lines) in enumerate(panels):
        box = pygame.Rect(p * width + left, top, width - left - right, height - top - bottom)
        text(target, title, (box.centerx, 10), 22, centre=True)
        text(target, x_name, (box.centerx, height - 20), centre=True)
        xs, ys = (np.concatenate([np.asarray(line[i], float) for line in lines.values()]) for i in (0, 1))
        x0, x1, y0, y1 = xs.min(), max(xs.max(), xs.min() + 1e-9), *_range(ys)
        for value in _ticks(y0, y1):
            y = box.bottom - (value - y0) / (y1 - y0) * box.height
            pygame.draw.line(target, FAINT, (box.left, y), (box.right, y))
            text(target, f"{value:g}", (p * width + 8, int(y) - 7), 17)
        for value in _ticks(x0, x1):
            x = box.left + (value - x0) / (x1 - x0) * box.width
            text(target, f"{value:g}", (int(x), box.bottom + 6), 17, centre=True)
        for k, (name, (x, y)) in enumerate(lines.items()):
            x = box.left + (np.asarray(x, float) - x0) / (x1 - x0) * box.width
            y = box.bottom - (np.clip(y, y0, y1) - y0) / (y1 - y0) * box.height
            colour = COLOURS[k % len(COLOURS)]
            if len(x) > 1:
                pygame.draw.aalines(target, colour, False, np.stack([x, y], axis=1).tolist())
            for point in zip(x, y, strict=True) if len(x) <= 60 else ():
                pygame.draw.circle(target, colour, point, 2)
            text(target, name, (box.left + box.width // max(len(lines), 3) * k, box.top - 18), 18, colour)
        pygame.draw.rect(target, INK, box, 1)
    return target


def _range(y: np.ndarray) -> tuple[float, float]:
    """What of the y axis to show: the first few values of a loss would flatten all that follows."""
    low, high = float(y.min()), float(np.quantile(y, 0.98))
    margin = 0.06 * max(high - low, 1e-9 + 1e-3 * abs(high))
    return low - margin, high + margin


def _ticks(low: float, high: float) -> np.ndarray:
    """About five round values between low and high."""
    step = 10 ** np.floor(np.log10((high - low) / 4))
    step *= next(k for k in (1, 2, 5, 10) if (high - low) / (k * step) <= 6)
    return np.round(np.arange(np.ceil(low / step), np.floor(high / step) + 1) * step, 10) + 0.0  # no -0
