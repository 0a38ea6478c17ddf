"""Convolution and transposed convolution of stride 2, forward and backward, by matrix products.

An image of even sides is held with its 2x2 pixel squares folded into channels (space-to-depth):

    image (N, 2H, 2W, C)  ->  x (N, H, W, 4C),   x[n, h, w, (r, s, c)] = image[n, 2h + r, 2w + s, c]

There a kernel of 2k x 2k and stride 2 is a kernel of k x k and stride 1: the paper's 4x4 become 2x2, its
6x6 become 3x3, and its 5x5 become 3x3 with zeros at the end. All runs in memory are four times as long, and a
fold is k * k long adds instead of 4 * k * k short ones (10 x faster on the decoder's last layers).

The transposed convolution IS the transpose: its forward is the convolution's input gradient, and the other
way round. So two primitives serve both, in both directions: `_gather` (every patch copied into a row, for one
product) and `_scatter` (per kernel tap one product, added into a shifted window).

Letters: N images; H, W pixels of x; C channels of the image, 4C of x; O channels of the other, smaller side;
K taps of a kernel of stride 2, k = K / 2 of one of stride 1, along each axis; r, s the pixel within a square.
"""

import threading
from collections.abc import Iterator

import numpy as np

from .core import scratch, sum_rows

BLOCK = 1 << 19  # numbers (2 MB): patches are made for so few images at a time that they stay in cache
_local = threading.local()


# ---------------------------------------------------------------------------- layouts, each other's transpose


def space_to_depth(image: np.ndarray, h: int | None = None, w: int | None = None) -> np.ndarray:
    """(N, H, W, C) -> (N, h, w, 4C), H//2 and W//2 unless given; cut where H > 2h, zeros where H < 2h."""
    n, ih, iw, c = image.shape
    h, w = h or ih // 2, w or iw // 2
    image = image[:, : 2 * h, : 2 * w]
    if ih < 2 * h or iw < 2 * w:
        image = np.pad(image, [(0, 0), (0, max(0, 2 * h - ih)), (0, max(0, 2 * w - iw)), (0, 0)])
    squares = image.reshape(n, h, 2, w, 2 * c)  # (N, h, r, w, sC)
    return squares.transpose(0, 1, 3, 2, 4).reshape(n, h, w, 4 * c)


def depth_to_space(x: np.ndarray, h: int, w: int) -> np.ndarray:
    """(N, H, W, 4C) -> (N, h, w, C): space_to_depth transposed; cut where h < 2H, zeros where h > 2H."""
    n, xh, xw, c4 = x.shape
    image = np.empty((n, max(h, 2 * xh), max(w, 2 * xw), c4 // 4), x.dtype)
    image[:, 2 * xh :] = 0
    image[:, :, 2 * xw :] = 0
    squares = image[:, : 2 * xh, : 2 * xw].reshape(n, xh, 2, xw, c4 // 2)  # (N, H, r, W, sC), a view
    squares[...] = x.reshape(n, xh, xw, 2, c4 // 2).transpose(0, 1, 3, 2, 4)
    return image[:, :h, :w]


def fold_kernel(kernel: np.ndarray) -> np.ndarray:
    """(K, K, C, O) -> w (k, k, 4C, O): w[i, j, (r, s, c)] = kernel[2i+r, 2j+s, c]; an odd K gets zeros."""
    k = (len(kernel) + 1) // 2
    w = space_to_depth(kernel.reshape(1, *kernel.shape[:2], -1), k, k)  # (1, k, k, 4CO)
    return w.reshape(k, k, 4 * kernel.shape[2], kernel.shape[3])


def unfold_kernel(w: np.ndarray, size: int) -> np.ndarray:
    """(k, k, 4C, O) -> (size, size, C, O): fold_kernel's inverse and transpose: the zeros are dropped."""
    k, _, c4, o = w.shape
    return depth_to_space(w.reshape(1, k, k, c4 * o), size, size).reshape(size, size, c4 // 4, o)


# ------------------------------------------------------------------------------------------------- primitives


def _blocks(n: int, numbers: int) -> Iterator[slice]:
    """Cut n images, each of which makes so many numbers, into blocks."""
    step = max(1, BLOCK // numbers)
    return (slice(i, i + step) for i in range(0, n, step))


def _gather(x: np.ndarray, k: int) -> np.ndarray:
    """(N, H, W, C) -> patches (N * (H-k+1) * (W-k+1), k * k * C), in scratch memory."""
    n, h, w, c = x.shape
    h, w = h - k + 1, w - k + 1
    patches = scratch(vars(_local), "patches", (n, h, w, k, k * c), x.dtype)
    s = x.strides
    patches[...] = np.lib.stride_tricks.as_strided(x, patches.shape, (s[0], s[1], s[2], s[1], s[3]))
    return patches.reshape(n * h * w, k * k * c)


def _scatter(y: np.ndarray, w: np.ndarray, out: np.ndarray) -> None:
    """out (N, H, W, C) += patches y w^T, each in its place.  y (N, H-k+1, W-k+1, O), w (k, k, C, O)."""
    (n, h, wd, o), (k, _, c, _) = y.shape, w.shape
    tap = scratch(vars(_local), "tap", (n * h * wd, c), y.dtype)
    kept = np.setbufsize(256)  # NumPy copies runs shorter than this before it adds them: 0.5 -> 0.16 ns per number
    try:
        for i in range(k):
            for j in range(k):
                np.matmul(y.reshape(-1, o), w[i, j].T, out=tap)
                out[:, i : i + h, j : j + wd] += tap.reshape(n, h, wd, c)
    finally:
        np.setbufsize(kept)


# ------------------------------------------------------------------------------------------------ convolution


def conv_forward(x: np.ndarray, w: np.ndarray, b: np.ndarray):
    """y[n, h, w] = b + sum over i, j of x[n, h + i, w + j] w[i, j].

    x (N, H, W, 4C), w (k, k, 4C, O), b (O,) -> y (N, H-k+1, W-k+1, O).
    """
    (n, h, wd, _), (k, _, c4, o) = x.shape, w.shape
    h, wd = h - k + 1, wd - k + 1
    y = np.empty((n, h, wd, o), x.dtype)
    bias = np.tile(b, h * wd)  # of a whole image: broadcasting over short runs is slow
    for part in _blocks(n, h * wd * k * k * c4):
        patches = _gather(x[part], k)  # (N H' W', k k 4C)
        np.matmul(patches, w.reshape(-1, o), out=y[part].reshape(-1, o))
        y[part].reshape(-1, bias.size)[...] += bias
    return y, (x, w)


def conv_backward(dy: np.ndarray, cache, need_dx: bool = True):
    """-> dx (N, H, W, 4C) or None where it is not needed, dw (k, k, 4C, O), db (O,)."""
    x, w = cache
    (n, h, wd, o), (k, _, c4, _) = dy.shape, w.shape
    db = sum_rows(dy.reshape(-1, o))  # y = ... + b
    dw = np.zeros((k * k * c4, o), dy.dtype)
    dx = np.empty_like(x) if need_dx else None
    for part in _blocks(n, h * wd * k * k * c4):
        _add_product(dw, _gather(x[part], k).T, dy[part].reshape(-1, o))  # y = patches w
        if need_dx:
            dx[part] = 0
            _scatter(dy[part], w, dx[part])  # dpatches = dy w^T
    return dx, dw.reshape(w.shape), db


def conv_transpose_forward(x: np.ndarray, w: np.ndarray, b: np.ndarray):
    """y[n, h + i, w + j] += w[i, j] x[n, h, w] for every i, j, onto the bias: conv_forward transposed.

    x (N, H, W, O), w (k, k, 4C, O), b (C,) -> y (N, H+k-1, W+k-1, 4C).
    """
    (n, h, wd, _), (k, _, c4, _) = x.shape, w.shape
    y = np.empty((n, h + k - 1, wd + k - 1, c4), x.dtype)
    for part in _blocks(n, 2 * h * wd * c4):
        y[part] = np.tile(b, 4)  # the four pixels of a square share it
        _scatter(x[part], w, y[part])
    return y, (x, w)


def conv_transpose_backward(dy: np.ndarray, cache):
    """-> dx (N, H, W, O), dw (k, k, 4C, O), db (C,)."""
    x, w = cache
    (n, h, wd, o), (k, _, c4, _) = x.shape, w.shape
    db = sum_rows(dy.reshape(-1, c4)).reshape(4, -1).sum(axis=0)  # y = tile(b, 4)
    dw = np.zeros((k * k * c4, o), dy.dtype)
    dx = np.empty_like(x)
    for part in _blocks(n, h * wd * k * k * c4):
        dpatches = _gather(dy[part], k)  # (N H W, k k 4C)
        np.matmul(dpatches, w.reshape(-1, o), out=dx[part].reshape(-1, o))  # patches = x w^T
        _add_product(dw, dpatches.T, x[part].reshape(-1, o))
    return dx, dw.reshape(w.shape), db


def _add_product(total: np.ndarray, a: np.ndarray, b: np.ndarray) -> None:
    """total += a b, without fresh memory."""
    total += np.matmul(a, b, out=scratch(vars(_local), "product", total.shape, total.dtype))
