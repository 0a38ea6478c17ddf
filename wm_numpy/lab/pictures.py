"""Pictures, still or moving, as PNG in true colour, by NumPy and zlib alone."""

import struct
import zlib
from collections.abc import Sequence

import numpy as np

GAP = 4  # between pictures


def png(frames: np.ndarray, fps: float = 0) -> bytes:
    """frames (T, height, width, 3) uint8 -> a PNG, an animated one if T > 1 (W3C, PNG third edition).

    With a fourth channel, 0 or 255: where it is 0, the frame before stays.
    """
    count, height, width, channels = frames.shape
    colour = {3: 2, 4: 6}[channels]  # RGB, RGBA

    def chunk(kind: bytes, form: str = "", *values: int, data: bytes = b"") -> bytes:
        body = kind + struct.pack(">" + form, *values) + data
        return struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))

    chunks = [b"\x89PNG\r\n\x1a\n"]
    chunks.append(chunk(b"IHDR", "IIBBBBB", width, height, 8, colour, 0, 0, 0))
    if count > 1:
        chunks.append(chunk(b"acTL", "II", count, 0))
    for t, frame in enumerate(frames):
        number = max(0, 2 * t - 1)  # of this chunk among those that an animation adds
        if count > 1:
            place = width, height, 0, 0, 100, round(100 * fps), 0, channels - 3
            chunks.append(chunk(b"fcTL", "IIIIIHHBB", number, *place))
        rows = np.insert(frame.reshape(height, -1), 0, 0, axis=1)  # 0: no filter
        data = zlib.compress(rows.tobytes(), 9)
        if t == 0:
            chunks.append(chunk(b"IDAT", data=data))
        else:
            chunks.append(chunk(b"fdAT", "I", number + 1, data=data))
    return b"".join(chunks) + chunk(b"IEND")


def animation(moments: Sequence[Sequence[np.ndarray]], fps: float, scale: int = 3) -> bytes:
    """Pictures of one size side by side, moment after moment -> an animated PNG, every pixel scale x scale.

    The two lowest bits of a colour are left out: nobody sees them move, and they are half of the file.
    """
    frames = []
    for pictures in moments:
        large = [(p & 0xFC).repeat(scale, axis=0).repeat(scale, axis=1) for p in pictures]
        gap = np.full((len(large[0]), GAP, 3), 255, np.uint8)
        frames.append(np.hstack([part for p in large for part in (gap, p)][1:]))
    return png(np.stack(frames), fps)
