"""Convolution and transposed convolution, stride 2, no padding, forward and backward: those of plain.py, but fast.

They are matrix products over many patches at once. A patch is the K x K pixels that one entry of the smaller side sees.
The transposed convolution IS the transpose: its forward is the convolution's input gradient, and vice versa. So two
primitives serve both, in both directions: `_gather` copies every patch into a row, for one product; `_scatter`
computes patches by products and adds each into the image in its place.

Letters: N images; I channels of the larger side, H x W; O channels of the smaller side, h x w; K taps of a kernel
(K, K, I, O) along each axis, k = (K + 1) // 2; r, s = 0, 1 a pixel within a square of 2 x 2.
"""

from collections.abc import Iterator

import numpy as np
from numpy.lib.stride_tricks import as_strided

from .arrays import Array, require, scratch, small_buffer, sum_rows

BLOCK = 1 << 19  # numbers (2 MB): the patches of so many images at a time stay in cache


# ------------------------------------------------------------------------------------------------ convolution


def conv_forward(x: Array, w: Array, b: Array) -> tuple[Array, tuple]:
    """x (N, H, W, I), w (K, K, I, O), b (O,) -> y (N, h, w, O). H and W are at least K."""
    fits = x.ndim == w.ndim == 4 and w.shape[0] == w.shape[1] and x.shape[3] == w.shape[2]
    fits = fits and b.shape == w.shape[3:] and min(x.shape[1:3]) >= len(w)
    require(fits, "conv", x=x, w=w, b=b)
    K, _, _, O = w.shape
    y = np.empty((len(x), (x.shape[1] - K) // 2 + 1, (x.shape[2] - K) // 2 + 1, O), x.dtype)
    bias = np.tile(b, y.shape[1] * y.shape[2])  # of a whole image: short rows broadcast slowly
    for part in _blocks(y, w):
        np.matmul(_gather(x[part], K), w.reshape(-1, O), out=y[part].reshape(-1, O))
        y[part].reshape(-1, bias.size)[...] += bias
    return y, (x, w)


def conv_backward(dy: Array, cache: tuple, need_dx: bool = True) -> tuple:
    """dy (N, h, w, O) -> dx (N, H, W, I), or None if not needed, dw (K, K, I, O), db (O,)."""
    x, w = cache
    K, _, _, O = w.shape
    db = sum_rows(dy.reshape(-1, O))  # y = patches w + b
    dw = np.zeros((w.size // O, O), w.dtype)
    n, H, W, I = x.shape
    dx = np.zeros((n, H + K % 2, W + K % 2, I), x.dtype) if need_dx else None
    for part in _blocks(dy, w):
        _add_product(dw, _gather(x[part], K).T, dy[part].reshape(-1, O))
        if need_dx:
            _scatter(dy[part], w, dx[part])  # dpatches = dy w^T
    return dx[:, :H, :W] if need_dx else None, dw.reshape(w.shape), db


# ------------------------------------------------------------------------------------- transposed convolution


def conv_transpose_forward(x: Array, w: Array, b: Array) -> tuple[Array, tuple]:
    """x (N, h, w, O), w (K, K, I, O), b (I,) -> y (N, 2h + K - 2, 2w + K - 2, I)."""
    fits = x.ndim == w.ndim == 4 and w.shape[0] == w.shape[1] and x.shape[3] == w.shape[3]
    require(fits and b.shape == w.shape[2:3], "conv_transpose", x=x, w=w, b=b)
    n, height, width, _ = x.shape
    K, _, I, _ = w.shape
    H, W = 2 * height + K - 2, 2 * width + K - 2
    y = np.empty((n, H + K % 2, W + K % 2, I), x.dtype)
    for part in _blocks(x, w):
        _scatter(x[part], w, y[part], b)  # patches = x w^T
    return y[:, :H, :W], (x, w)


def conv_transpose_backward(dy: Array, cache: tuple) -> tuple:
    """dy (N, 2h + K - 2, 2w + K - 2, I) -> dx (N, h, w, O), dw (K, K, I, O), db (I,)."""
    x, w = cache
    K, _, I, O = w.shape
    db = sum_rows(dy.reshape(-1, I))
    dw = np.zeros((w.size // O, O), w.dtype)
    dx = np.empty(x.shape, x.dtype)
    for part in _blocks(x, w):
        dpatches = _gather(dy[part], K)  # (N h w, K K I)
        np.matmul(dpatches, w.reshape(-1, O), out=dx[part].reshape(-1, O))  # patches = x w^T
        _add_product(dw, dpatches.T, x[part].reshape(-1, O))
    return dx, dw.reshape(w.shape), db


# ------------------------------------------------------------------------------------------------- primitives


def _blocks(small: Array, w: Array) -> Iterator[slice]:
    """Cut the images into blocks whose patches hold about BLOCK numbers each."""
    n, height, width, _ = small.shape
    step = max(1, BLOCK // (height * width * w.size // w.shape[3]))
    return (slice(i, i + step) for i in range(0, n, step))


def _gather(x: Array, K: int) -> Array:
    """(N, H, W, I), in any layout -> its patches (N * h * w, K * K * I), in scratch space."""
    n, height, width, I = x.shape
    patches = scratch("patches", (n, (height - K) // 2 + 1, (width - K) // 2 + 1, K, K, I), x.dtype)
    s = x.strides
    patches[...] = as_strided(x, patches.shape, (s[0], 2 * s[1], 2 * s[2], s[1], s[2], s[3]))
    return patches.reshape(-1, K * K * I)


@small_buffer()
def _scatter(y: Array, w: Array, image: Array, b: Array | float = 0.0) -> None:
    """image (N, H, W, I) = b + the sum of patches y w^T, each in its place.  y (N, h, w, O), w (K, K, I, O).

    While it is summed the image is held in squares of 2 x 2 pixels. A patch begins with a square, so what one square
    of the kernel adds to a row of squares is one long run of memory (10 x faster on the decoder's last layers).
    For odd K the image has one row and column more than the patches; pixels beyond 2 (h + k - 1) are left alone.
    """
    n, height, width, O = y.shape
    K, _, I, _ = w.shape
    k = (K + 1) // 2
    squares = scratch("squares", (n, height + k - 1, width + k - 1, 2, 2, I), y.dtype)
    squares[...] = b
    rows = y.reshape(-1, O)
    for i, j in np.ndindex(k, k):
        taps = w[2 * i : 2 * i + 2, 2 * j : 2 * j + 2]  # (r, s, I, O), fewer at the end of an odd K
        r, s = taps.shape[:2]
        tap = scratch("tap", (len(rows), r * s * I), y.dtype)
        np.matmul(rows, taps.reshape(-1, O).T, out=tap)
        squares[:, i : i + height, j : j + width, :r, :s] += tap.reshape(n, height, width, r, s, I)
    H, W = height + k - 1, width + k - 1
    pixels = image[:, : 2 * H, : 2 * W].reshape(n, H, 2, W, 2, I)  # a view
    pixels[...] = squares.transpose(0, 1, 3, 2, 4, 5)


def _add_product(total: Array, a: Array, b: Array) -> None:
    """total += a b, without fresh memory."""
    total += np.matmul(a, b, out=scratch("product", total.shape, total.dtype))
