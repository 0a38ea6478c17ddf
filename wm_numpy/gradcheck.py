"""Is a hand-written backward the gradient of its forward? Central differences in float64, public and reusable.

    from wm_numpy.gradcheck import check_pair
    error = check_pair(my_forward, my_backward, x, w, rng=np.random.default_rng(0))
    assert error < 1e-6

Two modes. Element mode perturbs every entry and so says WHICH one is wrong; projection mode perturbs along random
directions, two forward passes each, and so reaches a whole network of any size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

STEP = 1e-5  # truncation ~ STEP^2, rounding ~ 1e-16 / STEP: both about 1e-10 here
TOLERANCE = 1e-6


def relative_error(a: np.ndarray, b: np.ndarray) -> float:
    """Largest |a - b| over the largest |a|, |b|: one scale for an array, so that entries near zero do not shout."""
    scale = max(np.abs(a).max(initial=0), np.abs(b).max(initial=0), 1e-8)
    return float(np.abs(a - b).max(initial=0) / scale)


def numerical_gradient(f: Callable[[], float], x: np.ndarray, step: float = STEP) -> np.ndarray:
    """Element mode: df/dx for every entry of x (float64, changed in place and put back), f() a scalar of x."""
    gradient = np.empty_like(x)
    for i in np.ndindex(x.shape):
        kept = x[i]
        x[i] = kept + step
        above = f()
        x[i] = kept - step
        below = f()
        x[i] = kept
        gradient[i] = (above - below) / (2 * step)
    return gradient


def check_pair(
    forward: Callable,
    backward: Callable,
    *inputs: np.ndarray,
    rng: np.random.Generator,
    constants: Sequence = (),
) -> float:
    """Check an op pair of core.py's contract in element mode, under a RANDOM upstream gradient.

    Args:
        forward: (*inputs, *constants) -> (y, cache); y an array, a scalar, or a tuple of arrays.
        backward: (dy, cache) -> one gradient per input, in order.
        inputs: float64 arrays to differentiate with respect to.
        rng: draws the upstream gradient.
        constants: further arguments of forward that have no gradient.

    Returns:
        The largest relative error over all inputs.

    Raises:
        ValueError: an input is not float64, or backward returns another number of gradients or another shape.
    """
    if any(x.dtype != np.float64 for x in inputs):
        raise ValueError("gradient checks need float64 inputs: float32 rounding hides real mistakes")
    y, cache = forward(*inputs, *constants)
    many = isinstance(y, tuple)
    dy = tuple(rng.standard_normal(np.shape(part)) for part in (y if many else (y,)))

    def projected() -> float:  # sum(dy * y) has the gradient backward(dy)
        out, _ = forward(*inputs, *constants)
        return float(sum(np.sum(d * part) for d, part in zip(dy, out if many else (out,), strict=True)))

    gradients = backward(dy if many else dy[0], cache)
    if len(gradients) < len(inputs):
        raise ValueError(f"{backward.__name__} returned {len(gradients)} gradients for {len(inputs)} inputs")
    worst = 0.0
    for x, dx in zip(inputs, gradients, strict=False):
        if dx.shape != x.shape:
            raise ValueError(f"{backward.__name__} returned a gradient of shape {dx.shape} for an input {x.shape}")
        worst = max(worst, relative_error(dx, numerical_gradient(projected, x)))
    return worst


def check_vector(
    f: Callable[[np.ndarray], float],
    x: np.ndarray,
    gradient: np.ndarray,
    rng: np.random.Generator,
    directions: int = 20,
    step: float = 1e-6,
) -> float:
    """Projection mode: compare gradient . v with the central difference of f along random directions v.

    A direction is a random unit vector, which sees what the gradient left out, plus one along the gradient with a
    random share of every entry: without it the difference drowns in the rounding of f when n is in the millions.

    Args:
        f: flat vector (n,) float64 -> scalar loss, deterministic. Far from the kinks of its ReLUs, please: an input
            of exactly zero, as zero biases make them, has no derivative.
        x: where, (n,).
        gradient: the claimed df/dx, (n,).
        rng: draws the directions.
        directions: how many.
        step: of the central difference.

    Returns:
        The largest relative error over the directions. Element mode names the entry that is wrong.
    """
    worst, scale = 0.0, max(np.linalg.norm(gradient), 1e-12)
    for _ in range(directions):
        v = rng.standard_normal(x.size)
        v /= np.linalg.norm(v)
        v += gradient * rng.random(x.size) / scale
        numerical = (f(x + step * v) - f(x - step * v)) / (2 * step)
        worst = max(worst, abs(numerical - gradient @ v) / max(abs(numerical), 1e-12))
    return worst
