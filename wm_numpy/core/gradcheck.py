"""Is a hand-written backward the gradient of its forward? Central differences in float64, public and reusable.

    from wm_numpy.core.gradcheck import check_pair
    error = check_pair(my_forward, my_backward, x, w, rng=np.random.default_rng(0))
    assert error < 1e-6
    print(error)  # 9.0e-01 at w[2, 0]: claimed 0.0132, numerical 0.132

Two modes. Element mode perturbs every entry and so says WHICH one is wrong; projection mode perturbs along random
directions, two forward passes each, and so reaches a whole network of any size.
"""

import inspect
import warnings
from collections.abc import Callable, Sequence
from copy import deepcopy

import numpy as np

STEP = 1e-5  # of an entry's scale: truncation ~ STEP^2, rounding ~ 1e-16 / STEP, both about 1e-10
TOLERANCE = 1e-6

Rng = np.random.Generator


class RelativeError(float):
    """The largest relative error of a gradient, as a number; it knows its entry, and prints as one line.

    `input` names the array and `index` the entry; `claimed` and `numerical` are its two derivatives. `changed` names
    what forward or backward changed in place. Whatever is not finite has an infinite error.
    """

    input: str = ""
    index: tuple[int, ...] = ()
    claimed: float = np.nan
    numerical: float = np.nan
    changed: tuple[str, ...] = ()

    def __str__(self) -> str:
        entry = f"{self.input}[{', '.join(map(str, self.index))}]" if self.index else self.input
        text = f"{self:.1e} at {entry}: claimed {self.claimed:.6g}, numerical {self.numerical:.6g}"
        return f"{text}; changed in place: {', '.join(self.changed)}" if self.changed else text

    __repr__ = __str__


def relative_error(claimed: np.ndarray, numerical: np.ndarray, name: str = "x") -> RelativeError:
    """Largest difference over the largest entry of either: one scale per array, or entries near zero would dominate.

    Infinite where anything is not finite; ValueError for arrays that are empty or of two shapes.
    """
    a = np.asarray(claimed)
    b = np.asarray(numerical)
    if a.shape != b.shape or not a.size:
        raise ValueError(f"{name}: gradients of shape {a.shape} and {b.shape} cannot be compared")
    finite = np.isfinite(a) & np.isfinite(b)
    if finite.all():
        difference = np.abs(a - b)
        at = np.unravel_index(np.argmax(difference), a.shape)
        scale = max(np.abs(a).max(), np.abs(b).max())
        error = RelativeError(difference[at] / scale if scale else 0)
    else:
        at = np.unravel_index(np.argmin(finite), a.shape)  # the first that is not
        error = RelativeError(np.inf)
    error.input = name
    error.index = tuple(map(int, at))
    error.claimed = float(a[at])
    error.numerical = float(b[at])
    return error


def numerical_gradient(f: Callable[[], float], x: np.ndarray, step: float = STEP) -> np.ndarray:
    """Element mode: df/dx for every entry of x (float64, changed in place and put back), f() a scalar of x."""
    steps = step * _scales(x)
    gradient = np.empty_like(x)
    for i in np.ndindex(x.shape):
        kept = x[i]
        try:
            x[i] = up = kept + steps[i]
            above = f()
            x[i] = down = kept - steps[i]
            gradient[i] = (above - f()) / (up - down)
        finally:
            x[i] = kept
    return gradient


def check_pair(
    forward: Callable, backward: Callable, *inputs: np.ndarray, rng: Rng, constants: Sequence = ()
) -> RelativeError:
    """Element mode: check an op pair under a RANDOM upstream gradient -> the largest error of any input.

    forward(*inputs, *constants) -> (y, cache), y an array, a scalar, or a tuple of arrays; backward(dy, cache) -> one
    gradient per input, in order. The inputs are float64, the constants need no gradient. Both functions are given
    copies; changes in place (to x, dy, cache) are named in a warning and in the result.

    Raises:
        ValueError: an input is not float64 or empty, or backward returns too few gradients or one of another shape.
    """
    who = getattr(backward, "__name__", "backward")
    inputs = tuple(map(deepcopy, inputs))
    given = (*inputs, *constants)
    names = _argument_names(forward, len(given))
    if not inputs:
        raise ValueError("there is no input to check")
    for name, x in zip(names, inputs, strict=False):
        _scales(x, name)  # raises

    handed = deepcopy(given)
    y, cache = forward(*handed)
    changed = [f"{name} by forward" for name in _changes(names, given, handed)]
    many = isinstance(y, tuple)
    dy = tuple(rng.standard_normal(np.shape(part)) for part in (y if many else (y,)))
    if not sum(d.size for d in dy):
        raise ValueError("forward returned nothing to check")

    handed = (deepcopy(dy if many else dy[0]), cache)
    before = deepcopy(handed)
    gradients = backward(*handed)
    changed += [f"{name} by backward" for name in _changes(("dy", "cache"), before, handed)]
    if len(gradients) < len(inputs):
        raise ValueError(f"{who} returned {len(gradients)} gradients for {len(inputs)} inputs")
    gradients = deepcopy(gradients)  # they may lie in memory that the next forward uses

    def projected() -> float:  # sum(dy * y) has the gradient backward(dy)
        y, _ = forward(*deepcopy(given))
        return sum(np.sum(d * part) for d, part in zip(dy, y if many else (y,), strict=True))

    errors = []
    for name, x, dx in zip(names, inputs, gradients, strict=False):
        if np.shape(dx) != x.shape:
            raise ValueError(f"{who} returned shape {np.shape(dx)} for {name} of shape {x.shape}")
        errors.append(relative_error(dx, numerical_gradient(projected, x), name))
    worst = max(errors)
    if changed:
        worst.changed = tuple(changed)
        warnings.warn(f"changed in place: {', '.join(changed)}", stacklevel=2)
    return worst


def check_vector(
    f: Callable,
    x: np.ndarray,
    gradient: np.ndarray,
    rng: Rng,
    directions: int = 20,
    step: float = 1e-6,
) -> RelativeError:
    """Projection mode: the claimed gradient (n,) at x (n,) of a loss f(x) -> its largest relative error.

    gradient . v is compared with the central difference of f along random directions v. Each is a random unit vector,
    which sees what the gradient left out, plus one along the gradient with a random share of every entry: without it
    the difference drowns in the rounding of f when n is in the millions. f must be deterministic, in float64, and away
    from the kinks of its ReLUs: an input of exactly zero, as zero biases give, has no derivative.

    Raises:
        ValueError: x is not float64 or empty, the gradient is of another shape, or there are no directions.
    """
    scales = _scales(x)
    if np.shape(gradient) != x.shape or x.ndim != 1:
        raise ValueError(f"x {x.shape}, gradient {np.shape(gradient)}: not of one length")
    if directions < 1:
        raise ValueError(f"directions {directions}: at least 1")
    x = x.copy()  # f may write to the original
    gradient = np.array(gradient)
    if not np.isfinite(gradient).all():
        return relative_error(gradient, gradient, "gradient")
    along = gradient * scales
    along /= max(np.linalg.norm(along), np.finfo(float).tiny)
    errors = []
    for i in range(directions):
        v = rng.standard_normal(x.size)
        v /= np.linalg.norm(v)
        v += along * rng.random(x.size)
        v *= scales
        numerical = (f(x + step * v) - f(x - step * v)) / (2 * step)
        errors.append(relative_error([gradient @ v], [numerical], "direction"))
        errors[-1].index = (i,)
    return max(errors)


def _scales(x: np.ndarray, name: str = "x") -> np.ndarray:
    """What each entry's step is a fraction of: its size, but at least min(1, the largest size); 1 if all are 0."""
    if getattr(x, "dtype", None) != np.float64:
        raise ValueError(f"{name}: gradient checks need float64: rounding would hide real mistakes")
    if not x.size:
        raise ValueError(f"{name} is empty: there is nothing to check")
    size = np.abs(x)
    return np.maximum(size, min(1.0, size.max()) or 1.0)


def _argument_names(function: Callable, count: int) -> list[str]:
    """Names of the first arguments of a function, "input 2" where it has none."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # written in C
        parameters = ()
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return [*names, *(f"input {i}" for i in range(len(names), count))][:count]


def _changes(names: Sequence[str], before: Sequence, after: Sequence) -> list[str]:
    """The names of the arrays that differ, those inside tuples and lists with their number."""
    found = []
    for name, a, b in zip(names, before, after, strict=True):
        if isinstance(a, np.ndarray):
            if a.tobytes() != b.tobytes():
                found.append(name)
        elif isinstance(a, (tuple, list)):
            found += _changes([f"{name}[{i}]" for i in range(len(a))], a, b)
    return found
