"""Pictures, still or moving, and curves as PNG, drawn without a display by pygame (it comes with the environments).

Pictures are uint8 arrays (height, width, 3), drawn on pygame surfaces.
"""

import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
try:
    import pygame
except ImportError as error:
    raise ImportError(f"pictures need pygame ({error}): run `pip install pygame-ce`") from error

PAPER, INK, FAINT = (255, 255, 255), (40, 40, 40), (225, 225, 225)
COLOURS = ((31, 119, 180), (214, 96, 20), (44, 140, 60), (148, 60, 160))
SCALE = 2  # of strips: pixels per pixel
NAME = 92  # width of the names
GAP = 4  # between pictures
WIDTH, HEIGHT = 420, 310  # of a panel of curves
LEFT, TOP, RIGHT, BOTTOM = 62, 52, 14, 44  # and its margins


def surface(picture: np.ndarray, scale: int) -> pygame.Surface:
    """A picture as a surface, every pixel scale x scale."""
    return pygame.transform.scale_by(pygame.surfarray.make_surface(picture.swapaxes(0, 1)), scale)


def text(target, words: str, at: tuple[int, int], size=18, colour=INK, centre=False) -> None:
    """Write on a surface, to the right of `at` or centred on it."""
    pygame.font.init()
    image = pygame.font.Font(None, size).render(words, True, colour)
    target.blit(image, (at[0] - image.get_width() // 2, at[1]) if centre else at)


def save(target: pygame.Surface | bytes, path: Path) -> None:
    """Write a surface, or bytes that are PNG already; first beside its place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.stem}.{os.getpid()}.png")
    if isinstance(target, bytes):
        beside.write_bytes(target)
    else:
        pygame.image.save(target, str(beside))
    os.replace(beside, path)


def animation(moments: Sequence[dict[str, np.ndarray]], fps: int, scale: int = 3) -> bytes:
    """Pictures of one size by name, side by side -> an animated PNG (W3C, PNG third edition) in 256 colours.

    At scale 3, two rows of three repeat the one above: filter 2 stores them as zeros.
    """
    height, width, _ = next(iter(moments[0].values())).shape
    across = width * scale + GAP
    target = pygame.Surface((len(moments[0]) * across - GAP, 24 + height * scale))
    target.fill(PAPER)
    for k, name in enumerate(moments[0]):
        text(target, name, (k * across + width * scale // 2, 4), 22, centre=True)
    empty = pygame.surfarray.array3d(target).swapaxes(0, 1)
    frames = np.stack([empty] * len(moments))  # (T, height, width, 3)
    for frame, pictures in zip(frames, moments, strict=True):
        for k, picture in enumerate(pictures.values()):
            large = picture.repeat(scale, axis=0).repeat(scale, axis=1)
            frame[24:, k * across : k * across + width * scale] = large
    colours, indices = _in_256_colours(frames)

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    size = frames.shape[2:0:-1]
    chunks = [chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 8, 3, 0, 0, 0))]
    chunks.append(chunk(b"PLTE", colours.tobytes()))
    chunks.append(chunk(b"acTL", struct.pack(">II", len(frames), 0)))
    for t, rows in enumerate(indices):
        repeats = np.append(False, (rows[1:] == rows[:-1]).all(axis=1))[:, None]
        filtered = np.hstack([2 * repeats, rows * ~repeats]).astype(np.uint8)
        data = zlib.compress(filtered.tobytes(), 9)
        number = max(0, 2 * t - 1)  # of this chunk among those that an animation adds
        chunks.append(chunk(b"fcTL", struct.pack(">IIIIIHHBB", number, *size, 0, 0, 1, fps, 0, 0)))
        if t == 0:
            chunks.append(chunk(b"IDAT", data))
        else:
            chunks.append(chunk(b"fdAT", struct.pack(">I", number + 1) + data))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks) + chunk(b"IEND", b"")


def _in_256_colours(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """frames (..., 3) -> 256 colours for all of them (256, 3) uint8, found by k-means; their indices (...)."""
    code = (frames >> 2) @ np.array([1 << 12, 1 << 6, 1], np.int32)  # (...), 6 bits a channel
    count = np.bincount(code.ravel(), minlength=1 << 18)
    found = count.nonzero()[0]
    points = (found[:, None] >> np.array([12, 6, 0]) & 63) * 4.0 + 2  # (n, 3)
    weight = np.sqrt(count[found])  # or walls would leave no colour for fire
    colours = points[np.linspace(0, len(points) - 1, 256).astype(int)]
    for _ in range(8):
        nearest = np.argmin((colours**2).sum(axis=1) - 2 * points @ colours.T, axis=1)  # (n,)
        total = np.bincount(nearest, weight, 256)
        sums = np.stack([np.bincount(nearest, weight * x, 256) for x in points.T], axis=1)
        colours = np.where(total[:, None] > 0, sums / np.maximum(total, 1e-9)[:, None], colours)
    table = np.zeros(1 << 18, np.uint8)
    table[found] = nearest
    return np.round(colours).astype(np.uint8), table[code]


def strips(rows: dict[str, Sequence[np.ndarray]], captions: Sequence[str] = ()) -> pygame.Surface:
    """Rows of pictures of one size, the row's name at the left, captions under the columns."""
    columns = max(map(len, rows.values()))
    height, width, _ = next(iter(rows.values()))[0].shape
    across = width * SCALE + GAP
    down = height * SCALE + GAP
    target = pygame.Surface((NAME + columns * across, len(rows) * down + (20 if captions else 0)))
    target.fill(PAPER)
    for r, (name, pictures) in enumerate(rows.items()):
        text(target, name, (6, r * down + height * SCALE // 2 - 8))
        for k, picture in enumerate(pictures):
            target.blit(surface(picture, SCALE), (NAME + k * across, r * down))
    for k, words in enumerate(captions):
        middle = NAME + k * across + width * SCALE // 2
        text(target, words, (middle, len(rows) * down + 2), centre=True)
    return target


def curves(panels: Sequence[tuple], width: int = WIDTH, left: int = LEFT) -> pygame.Surface:
    """Panels side by side, each `width` wide with its curves from `left` on.

    A panel: title, name of the x axis, {name of a line: (x, y)}.
    """
    target = pygame.Surface((width * len(panels), HEIGHT))
    target.fill(PAPER)
    for p, panel in enumerate(panels):
        box = pygame.Rect(p * width + left, TOP, width - left - RIGHT, HEIGHT - TOP - BOTTOM)
        _panel(target, p * width, box, *panel)
    return target


def stacked(*parts: pygame.Surface) -> pygame.Surface:
    """Surfaces under one another."""
    heights = np.cumsum([0, *(part.get_height() for part in parts)])
    target = pygame.Surface((max(part.get_width() for part in parts), int(heights[-1])))
    target.fill(PAPER)
    for part, y in zip(parts, heights, strict=False):
        target.blit(part, (0, int(y)))
    return target


def _panel(target, left: int, box: pygame.Rect, title: str, x_name: str, lines: dict) -> None:
    text(target, title, (box.centerx, 10), 22, centre=True)
    text(target, x_name, (box.centerx, HEIGHT - 20), centre=True)
    xs = np.concatenate([np.asarray(x, float) for x, _ in lines.values()])
    ys = [np.asarray(y, float) for _, y in lines.values()]
    x0 = xs.min()
    x1 = max(xs.max(), x0 + 1e-9)
    low = min(y.min() for y in ys)
    # the first few values of a loss would flatten all the rest
    high = max(np.quantile(y, 0.98, method="higher") for y in ys)
    margin = 0.06 * max(high - low, 1e-9 + 1e-3 * abs(high))
    y0 = low - margin
    y1 = high + margin

    def place(x, y):
        across = (x - x0) / (x1 - x0) * box.width
        up = (y - y0) / (y1 - y0) * box.height
        return box.left + across, box.bottom - up

    for value in _ticks(y0, y1):
        _, y = place(x0, value)
        pygame.draw.line(target, FAINT, (box.left, y), (box.right, y))
        text(target, f"{value:g}", (left + 8, int(y) - 7), 17)
    for value in _ticks(x0, x1):
        x, _ = place(value, y0)
        text(target, f"{value:g}", (int(x), box.bottom + 6), 17, centre=True)
    for k, (name, (x, y)) in enumerate(lines.items()):
        points = np.stack(place(np.asarray(x), np.clip(y, y0, y1)), axis=1).tolist()
        colour = COLOURS[k % len(COLOURS)]
        if len(points) > 1:
            pygame.draw.aalines(target, colour, False, points)
        for point in points if len(points) <= 60 else ():
            pygame.draw.circle(target, colour, point, 2)
        across = box.width // max(len(lines), 3) * k
        text(target, name, (box.left + across, box.top - 18), 18, colour)
    pygame.draw.rect(target, INK, box, 1)


def _ticks(low: float, high: float) -> np.ndarray:
    """About five round values between low and high."""
    step = 10 ** np.floor(np.log10((high - low) / 4))
    step *= next(k for k in (1, 2, 5, 10) if (high - low) / (k * step) <= 6)
    ticks = np.arange(np.ceil(low / step), np.floor(high / step) + 1) * step
    return np.round(ticks, 10) + 0.0  # no -0
