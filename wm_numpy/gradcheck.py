"""Is a hand-written backward the gradient of its forward? Central differences in float64, public and reusable.

    from wm_numpy.gradcheck import check_pair
    error = check_pair(my_forward, my_backward, x, w, rng=np.random.default_rng(0))
    assert error < 1e-6

Two modes. Element mode perturbs every entry and so says WHICH one is wrong; projection mode perturbs along random
directions, two forward passes each, and so reaches a whole network of any size.
"""

from collections.abc import Callable, Sequence

import numpy as np

STEP = 1e-5  # truncation ~ STEP^2, rounding ~ 1e-16 / STEP: both about 1e-10 here
TOLERANCE = 1e-6

Rng = np.random.Generator


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
        gradient[i] = (above - f()) / (2 * step)
        x[i] = kept
    return gradient


def check_pair(forward: Callable, backward: Callable, *inputs: np.ndarray, rng: Rng, constants: Sequence = ()) -> float:
    """Element mode: check an op pair under a RANDOM upstream gradient -> the largest relative error of any input.

    forward(*inputs, *constants) -> (y, cache), y an array, a scalar, or a tuple of arrays; backward(dy, cache) -> one
    gradient per input, in order. The inputs are float64, the constants need no gradient.

    Raises:
        ValueError: an input is not float64, or backward returns too few gradients or one of another shape.
    """
    if any(x.dtype != np.float64 for x in inputs):
        raise ValueError("gradient checks need float64 inputs: float32 rounding hides real mistakes")
    y, cache = forward(*inputs, *constants)
    many = isinstance(y, tuple)
    dy = tuple(rng.standard_normal(np.shape(part)) for part in (y if many else (y,)))
    gradients = backward(dy if many else dy[0], cache)
    if len(gradients) < len(inputs):
        raise ValueError(f"{backward.__name__} returned {len(gradients)} gradients for {len(inputs)} inputs")

    def projected() -> float:  # sum(dy * y) has the gradient backward(dy)
        y, _ = forward(*inputs, *constants)
        return sum(np.sum(d * part) for d, part in zip(dy, y if many else (y,), strict=True))

    worst = 0.0
    for x, dx in zip(inputs, gradients, strict=False):
        if dx.shape != x.shape:
            raise ValueError(f"{backward.__name__} returned a gradient of shape {dx.shape} for an input {x.shape}")
        worst = max(worst, relative_error(dx, numerical_gradient(projected, x)))
    return worst


def check_vector(
    f: Callable, x: np.ndarray, gradient: np.ndarray, rng: Rng, directions: int = 20, step: float = 1e-6
) -> float:
    """Projection mode: the claimed gradient (n,) at x (n,) of a loss f(x) -> its largest relative error.

    gradient . v is compared with the central difference of f along random directions v. Each is a random unit vector,
    which sees what the gradient left out, plus one along the gradient with a random share of every entry: without it
    the difference drowns in the rounding of f when n is in the millions. f is deterministic, in float64, and far from
    the kinks of its ReLUs, please: an input of exactly zero, as zero biases make them, has no derivative.
    """
    worst, scale = 0.0, max(np.linalg.norm(gradient), 1e-12)
    for _ in range(directions):
        v = rng.standard_normal(x.size)
        v /= np.linalg.norm(v)
        v += gradient * rng.random(x.size) / scale
        numerical = (f(x + step * v) - f(x - step * v)) / (2 * step)
        worst = max(worst, abs(numerical - gradient @ v) / max(abs(numerical), 1e-12))
    return worst
