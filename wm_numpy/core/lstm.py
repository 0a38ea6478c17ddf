"""LSTM over sequences (Graves 2013, (7)-(11), without peepholes), with carried state and restarts.

    [i f o g] = [x_t h_{t-1}] w + b                         gates in this order, each H wide
    c_t = sigmoid(f + 1) c_{t-1} + sigmoid(i) tanh(g)       forget bias +1, a constant (authors' rnn.py)
    h_t = sigmoid(o) tanh(c_t)

One function for everything: training runs it over T steps, acting and dreaming over T = 1. Its definition, step by
step, is in plain.py.

Letters: T time, B batch, I inputs, H hidden; G = 4H gates.
"""

import numpy as np

from .arrays import Array, require, scratch, small_buffer, sum_rows

FORGET_BIAS = 1.0
BLOCK = 800  # rows (steps x batch) of gate gradients that backward holds at a time


@small_buffer()
def lstm_forward(
    x: Array, h0: Array, c0: Array, w: Array, b: Array, restart: Array | None = None, reuse=False
) -> tuple[tuple[Array, Array], tuple]:
    """T steps from (h0, c0) -> (h (T, B, H), c_last (B, H)), cache. (h[-1], c_last) is the next state.

    x (T, B, I), h0 and c0 (B, H), w (I+H, G) with the rows for x above those for h, b (G,). restart (T, B), 0 or 1: the
    state is set to zero BEFORE a step where it is 1. reuse: results and cache lie in this thread's scratch space, until
    its next call with reuse (saves 5 % of an update).
    """
    H = len(b) // 4
    fits = x.ndim == 3 and h0.shape == c0.shape == (x.shape[1], H)
    fits = fits and w.shape == (x.shape[2] + H, 4 * H) and b.shape == (4 * H,)
    inputs = {"x": x, "h0": h0, "c0": c0, "w": w, "b": b}
    if restart is not None:
        inputs["restart"] = np.asarray(restart, x.dtype)
        fits = fits and inputs["restart"].shape == x.shape[:2]
        restart = inputs["restart"] == 1
    require(fits, "lstm", **inputs)
    T, B, I = x.shape
    bias = b.copy()
    bias[H : 2 * H] += FORGET_BIAS

    # [x h] in one row, for one product per step (two products and their sum: 4 % slower).
    xh = scratch("xh", (T, B, I + H), x.dtype, reuse)
    xh[:, :, :I] = x
    gates = scratch("gates", (T, B, 4 * H), x.dtype, reuse)
    h = scratch("h", (T, B, H), x.dtype, reuse)
    c = scratch("c", (T + 1, B, H), x.dtype, reuse)  # c[t] is what step t starts from
    c[0] = c0
    for t in range(T):
        xh[t, :, I:] = h[t - 1] if t else h0
        if restart is not None:
            xh[t, restart[t], I:] = 0
        a = np.matmul(xh[t], w, out=gates[t])  # (B, G)
        a += bias
        ifo = a[:, : 3 * H]
        ifo *= 0.5  # sigmoid(a) = 0.5 + 0.5 tanh(0.5 a): one tanh serves the four gates
        np.tanh(a, out=a)
        ifo *= 0.5
        ifo += 0.5
        i, f, o, g = _split(a)  # (B, H) each
        np.multiply(f, c[t], out=c[t + 1])
        if restart is not None:
            c[t + 1, restart[t]] = 0
        c[t + 1] += i * g
        np.tanh(c[t + 1], out=h[t])
        h[t] *= o
    return (h, c[T]), (xh, gates, c, restart, w, reuse)


@small_buffer()
def lstm_backward(dy: tuple[Array, Array], cache: tuple, need_dx: bool = True) -> tuple:
    """dy = (dh (T, B, H), dc_last (B, H)) -> dx (T, B, I) if needed, dh0, dc0 (B, H), dw (I+H, G), db (G,)."""
    dh_all, dc = dy
    xh, gates, c, restart, w, reuse = cache
    T, B, H = dh_all.shape
    I = len(w) - H
    dx = np.empty((T, B, I), w.dtype) if need_dx else None
    dw = np.zeros_like(w)
    db = np.zeros(4 * H, w.dtype)
    dh_prev = np.zeros_like(dc)
    # Gate gradients of a few steps at a time: those of all steps would double the memory.
    span = max(1, BLOCK // max(1, B))
    for last in range(T, 0, -span):
        first = max(0, last - span)
        da_block = scratch("da", (last - first, B, 4 * H), w.dtype, reuse)
        for t in reversed(range(first, last)):
            da = da_block[t - first]  # (B, G)
            dh = dh_prev + dh_all[t]  # (B, H): from the next step, and from above
            dc = _step_backward(dh, dc, gates[t], c[t], c[t + 1], da)
            if restart is not None:
                da[restart[t], H : 2 * H] = 0  # of f: it met no c
                dc[restart[t]] = 0
            dh_prev = da @ w[I:].T  # a = [x h_prev] w + b, the part of h_prev
            if restart is not None:
                dh_prev[restart[t]] = 0
        da = da_block.reshape(-1, 4 * H)
        dw += xh[first:last].reshape(-1, I + H).T @ da  # a = [x h_prev] w + b, all the rest of it
        db += sum_rows(da)
        if need_dx:
            np.matmul(da, w[:I].T, out=dx[first:last].reshape(-1, I))
    return dx, dh_prev, dc, dw, db


def _step_backward(dh: Array, dc: Array, gates: Array, c_prev: Array, c: Array, da: Array) -> Array:
    """dh, dc (B, H) of one step -> dc of c_prev; writes da (B, G), of the gates before sigmoid and tanh."""
    H = dc.shape[1]
    i, f, o, g = _split(gates)
    di, df, do, dg = _split(da)
    tanh_c = np.tanh(c)
    np.multiply(dh, tanh_c, out=do)  # h = o tanh(c)
    dh *= o
    dc = dc + dh
    tanh_c *= tanh_c
    dh *= tanh_c
    dc -= dh  # d tanh(c) = (1 - tanh(c)^2) dc
    np.multiply(dc, g, out=di)  # c = f c_prev + i g
    np.multiply(dc, i, out=dg)
    np.multiply(dc, c_prev, out=df)
    dc *= f
    ifo = gates[:, : 3 * H]  # y = sigmoid(a): da = dy y (1 - y)
    slope = 1 - ifo
    slope *= ifo
    da[:, : 3 * H] *= slope
    dg *= 1 - g * g  # g = tanh(a)
    return dc


def _split(a: Array) -> list[Array]:
    """(B, G) -> views i, f, o, g, (B, H) each."""
    H = a.shape[1] // 4
    return [a[:, k * H : (k + 1) * H] for k in range(4)]
