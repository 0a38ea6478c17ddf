"""From an environment's picture to the 64 x 64 pixels that V sees. NumPy alone."""

from collections.abc import Callable

import numpy as np

BLOCK = 128  # pixels: a side of 256 or more is first averaged in blocks, down to at least 128


def resizer(height: int, width: int) -> Callable[[np.ndarray], np.ndarray]:
    """-> a function (height, width, 3) uint8 -> (64, 64, 3) uint8: blur by as much as is left out, then pick.

    A new pixel is the mean over its window of old ones, made by adding neighbours once (84 rows to 64) or
    twice (160 columns to 64). Integers: the same on every machine, 4 x faster than area weights by matmul.
    """
    tall, wide = max(1, height // BLOCK), max(1, width // BLOCK)  # of a block
    height, width = height // tall * tall, width // wide * wide  # whole blocks
    rows, columns = height // tall, width // wide

    def windows(size: int) -> tuple[int, np.ndarray]:
        times = max(0, -(-size // 64) - 1)  # that neighbours are added
        centre = (np.arange(64) + 0.5) * size / 64
        return times, np.round(centre - (times + 1) / 2).astype(int)  # where the 64 windows start

    down, top = windows(rows)
    across, left = windows(columns)
    row = 3 * columns  # in values
    pick = top[:, None, None] * row + left[:, None] * 3 + np.arange(3)  # (64, 64, 3)
    bits = np.uint16(down + across)  # each sum of two doubles the total
    half = np.uint16(1 << bits >> 1)  # to round
    area = tall * wide

    def resize(frame: np.ndarray) -> np.ndarray:
        if area > 1:
            blocks = (frame[i:height:tall, j:width:wide] for i, j in np.ndindex(tall, wide))
            frame = sum(blocks, start=np.uint32(area // 2)) // area  # rounded; (rows, columns, 3)
        line = frame.ravel().astype(np.uint16)  # sums over the end of a row are never picked
        for step in [row] * down + [3] * across:
            line = line[:-step] + line[step:]
        return ((line.take(pick) + half) >> bits).astype(np.uint8)

    return resize


def to_rgb(picture: np.ndarray) -> np.ndarray:
    """A picture (height, width, 3), or grey (height, width, 1) or (height, width) -> (height, width, 3) uint8.

    Floats are 0 to 1, integers 0 to 255. ValueError: it is no picture.
    """
    x = np.asarray(picture)
    x = x[..., None] if x.ndim == 2 else x
    if x.ndim != 3 or x.shape[2] not in (1, 3):
        hint = "declare `picture`, the other of observation and render"
        raise ValueError(f"a picture is (height, width, 3 or 1), not {x.shape}: {hint}")
    if x.dtype != np.uint8:
        most = 1 if x.dtype.kind in "fb" else 255
        low, high = x.min(), x.max()
        if not (low >= 0 and high <= most):  # false for NaN, too
            raise ValueError(f"a picture of {x.dtype} is 0 to {most}, not {low} to {high}")
        x = np.round(x * (255 / most)).astype(np.uint8)
    return x if x.shape[2] == 3 else np.repeat(x, 3, axis=2)
