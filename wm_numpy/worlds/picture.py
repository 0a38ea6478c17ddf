"""From an environment's picture to the 64 x 64 pixels that V sees. NumPy alone."""

from collections.abc import Callable

import numpy as np

BLOCK = 128  # rows or columns; where there are twice as many or more, whole blocks of them are averaged first


def resizer(height: int, width: int) -> Callable[[np.ndarray], np.ndarray]:
    """-> a function (height, width, 3) uint8 -> (64, 64, 3) uint8: blur by as much as is left out, then pick.

    A new pixel is the mean over its window of old ones, made by adding neighbours once (84 rows to 64) or
    twice (160 columns to 64). Integers: the same on every machine, 4 x faster than area weights by matmul.
    """
    tall, wide = max(1, height // BLOCK), max(1, width // BLOCK)  # of a block
    rows, columns = height // tall, width // wide  # of blocks

    def window(size: int) -> tuple[int, np.ndarray]:
        times = max(0, -(-size // 64) - 1)  # to add neighbours
        centre = (np.arange(64) + 0.5) * size / 64
        return times, np.round(centre - (times + 1) / 2).astype(int)  # where the 64 windows start

    down, top = window(rows)
    across, left = window(columns)
    row = 3 * columns  # in values
    pick = top[:, None, None] * row + left[:, None] * 3 + np.arange(3)  # (64, 64, 3)
    bits = np.uint16(down + across)  # each sum of two doubles the total
    half = np.uint16(1 << bits >> 1)  # to round

    def in_blocks(frame: np.ndarray) -> np.ndarray:
        frame = frame[: rows * tall, : columns * wide]
        total = np.uint32(tall * wide // 2)  # to round
        for i, j in np.ndindex(tall, wide):
            total = total + frame[i::tall, j::wide]
        return total // (tall * wide)  # (rows, columns, 3)

    def resize(frame: np.ndarray) -> np.ndarray:
        if tall * wide > 1:
            frame = in_blocks(frame)
        line = frame.ravel().astype(np.uint16)  # sums over the end of a row are never picked
        for step in [row] * down + [3] * across:
            line = line[:-step] + line[step:]
        return ((line.take(pick) + half) >> bits).astype(np.uint8)

    return resize


def in_colour(picture: np.ndarray) -> np.ndarray:
    """A picture (height, width, 3), grey (height, width, 1) or (height, width) -> (height, width, 3) uint8.

    Floats are 0 to 1, integers 0 to 255. ValueError: it is no picture.
    """
    x = np.asarray(picture)
    x = x[..., None] if x.ndim == 2 else x
    if x.ndim != 3 or x.shape[2] not in (1, 3):
        mend = "declare `picture`, the other of observation and render"
        raise ValueError(f"a picture is (height, width, 3 or 1), not {x.shape}: {mend}")
    if x.dtype != np.uint8:
        most = 1 if x.dtype.kind in "fb" else 255
        low, high = x.min(), x.max()
        if not (low >= 0 and high <= most):  # nor where one is NaN
            raise ValueError(f"a picture of {x.dtype} is 0 to {most}, not {low} to {high}")
        x = np.round(x * (255 / most)).astype(np.uint8)
    return x if x.shape[2] == 3 else np.repeat(x, 3, axis=2)
