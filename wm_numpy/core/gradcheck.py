"""Is a hand-written backward the gradient of its forward? Central differences in float64, public and reusable.

    from wm_numpy.core.gradcheck import TOLERANCE, check_pair
    error = check_pair(my_forward, my_backward, x, w, rng=np.random.default_rng(0))
    assert error <= TOLERANCE
    print(error)  # WRONG, 9.0e-01 > 1e-06 at w[2, 0]: claimed 0.0132, numerical 0.132

check_pair perturbs every entry, and so names the wrong one. check_vector perturbs along random directions, two
forward passes each, and so reaches a whole network of any size.
"""

import inspect
import pickle
from collections.abc import Callable, Sequence
from contextlib import suppress
from copy import deepcopy

import numpy as np

STEP = 1e-5  # of an entry's scale: truncation ~ STEP^2, rounding ~ 1e-16 / STEP, both about 1e-10
VECTOR_STEP = 1e-6
TOLERANCE = 1e-6
EPSILON = np.finfo(float).eps

Rng = np.random.Generator


class RelativeError(float):
    """The largest relative error of a gradient, infinite if anything is not finite; it prints as one line.

    `input` names the array and `index` the entry; `claimed` and `numerical` are its two derivatives. `hidden`: y is
    so large that its rounding hides an error of this size.
    """

    input: str = ""
    index: tuple[int, ...] = ()
    claimed: float = np.nan
    numerical: float = np.nan
    hidden: bool = False

    @property
    def ok(self) -> bool:
        """Whether the gradient is right, to TOLERANCE."""
        return self <= TOLERANCE

    def __str__(self) -> str:
        verdict = "ok" if self.ok else "cannot tell" if self.hidden else "WRONG"
        limit = f"{'<=' if self.ok else '>'} {TOLERANCE:g}"
        entry = f"{self.input}[{', '.join(map(str, self.index))}]" if self.index else self.input
        both = f"claimed {self.claimed:.6g}, numerical {self.numerical:.6g}"
        hidden = "; y is so large that its rounding hides such errors" * self.hidden
        return f"{verdict}, {self:.1e} {limit} at {entry}: {both}{hidden}"

    __repr__ = __str__


def relative_error(claimed, numerical, name: str = "x", noise: float = 0.0) -> RelativeError:
    """The largest difference of two gradients over the largest entry of either: entries near zero do not dominate.

    noise: the rounding error of a numerical entry. If it exceeds the tolerance it hides differences of its order.

    Raises:
        ValueError: the arrays are empty, complex, or of two shapes.
    """
    a, b = np.asarray(claimed), np.asarray(numerical)
    if a.shape != b.shape or not a.size or "c" in a.dtype.kind + b.dtype.kind:
        both = f"{a.dtype} {a.shape} and {b.dtype} {b.shape}"
        raise ValueError(f"{name}: gradients {both} cannot be compared")
    a, b = a.astype(float), b.astype(float)  # integers would wrap
    with np.errstate(invalid="ignore"):
        difference = np.abs(a - b)
    at = np.unravel_index(np.argmax(difference), a.shape)  # a nan counts as the largest
    worst, hidden = np.inf, False
    if np.isfinite(difference[at]):
        scale = max(np.abs(a).max(), np.abs(b).max()) or 1.0
        hidden = bool(noise > TOLERANCE * scale and difference[at] < 10 * noise)
        worst = (noise if hidden else difference[at]) / scale
    error = RelativeError(worst)
    error.input, error.index, error.hidden = name, tuple(map(int, at)), hidden
    error.claimed, error.numerical = float(a[at]), float(b[at])
    return error


def numerical_gradient(f: Callable[[], float], x: np.ndarray) -> np.ndarray:
    """df/dx for every entry of x (float64, changed in place and put back), f() a scalar that depends on x."""
    return _differences(f, x)[0]


def check_pair(
    forward: Callable, backward: Callable, *inputs: np.ndarray, rng: Rng, constants: Sequence = ()
) -> RelativeError:
    """Check every entry of an op's gradients under a RANDOM upstream gradient -> the largest error of any input.

    forward(*inputs, *constants) -> (y, cache), y an array, a number, or a tuple of them; backward(dy, cache) -> a
    tuple, one gradient per input, in order. The constants, such as integer labels, need no gradient.

    Raises:
        ValueError: an input, output or gradient is not float64 or empty, a result has another form, or a function
            changes an argument in place.
    """
    names = [*inspect.signature(forward).parameters]
    names += [f"input {i}" for i in range(len(names), len(inputs) + len(constants))]  # of *args
    inputs = [np.array(_float64(x, name)) for name, x in zip(names, inputs, strict=False)]
    given = (*inputs, *constants)

    result = _pure(forward, "forward", names, deepcopy(given))
    if not isinstance(result, tuple) or len(result) != 2:
        raise ValueError("forward must return a tuple of two: y, cache")
    y, cache = result
    many = isinstance(y, (tuple, list))
    dy = tuple(rng.standard_normal(_float64(part, "y").shape) for part in (y if many else (y,)))

    upstream = deepcopy(dy if many else dy[0])
    gradients = _pure(backward, "backward", ("dy", "cache"), (upstream, cache))
    if not isinstance(gradients, (tuple, list)):
        raise ValueError("backward must return a tuple, one gradient per input: `return (dx,)`")
    if len(gradients) < len(inputs):
        raise ValueError(f"backward returned {len(gradients)} gradients for {len(inputs)} inputs")
    gradients = deepcopy(gradients)  # the next forward may reuse their memory

    def weighted() -> np.ndarray:  # the gradient of its sum is backward(dy)
        y, _ = forward(*deepcopy(given))
        pairs = zip(dy, y if many else (y,), strict=True)
        return np.concatenate([np.ravel(d * part) for d, part in pairs])

    errors = []
    for name, x, dx in zip(names, inputs, gradients, strict=False):
        if np.shape(dx) != x.shape:
            raise ValueError(f"backward returned shape {np.shape(dx)} for {name} of {x.shape}")
        numerical, noise = _differences(weighted, x)
        errors.append(relative_error(_float64(dx, f"d{name}"), numerical, name, noise))
    return max(errors)


def check_vector(
    f: Callable, x: np.ndarray, gradient: np.ndarray, rng: Rng, directions: int = 20
) -> RelativeError:
    """Compare the claimed gradient (n,) of a loss f(x) at x (n,) with differences along random directions.

    A direction is a random unit vector, which sees what the gradient left out, plus one along the gradient with a
    random share of every entry: without it the difference drowns in the rounding of f when n is in the millions.
    f must be deterministic, and x away from the kinks of its ReLUs, such as the zero inputs that zero biases give.

    Raises:
        ValueError: x or f(x) is not float64, x is empty, or the gradient is of another shape.
    """
    x = np.array(_float64(x, "x"))  # f may write to the original
    if np.shape(gradient) != x.shape or x.ndim != 1:
        raise ValueError(f"x {x.shape}, gradient {np.shape(gradient)}: not of one length")
    gradient = np.array(gradient)
    if not np.isfinite(gradient).all():
        return relative_error(gradient, gradient, "gradient")
    scales = _scales(x)
    along = gradient * scales
    along /= max(np.linalg.norm(along), np.finfo(float).tiny)
    errors = []
    for i in range(directions):
        v = rng.standard_normal(x.size)
        v /= np.linalg.norm(v)
        v += along * rng.random(x.size)
        v *= scales
        above = _float64(f(x + VECTOR_STEP * v), "f(x)")
        below = _float64(f(x - VECTOR_STEP * v), "f(x)")
        slope = (above - below) / (2 * VECTOR_STEP)
        noise = EPSILON * abs(above) / (2 * VECTOR_STEP)
        errors.append(relative_error([gradient @ v], [slope], "direction", noise))
        errors[-1].index = (i,)
    return max(errors)


def _differences(f: Callable, x: np.ndarray) -> tuple[np.ndarray, float]:
    """The gradient of sum(f()) at x, and the largest rounding error of one of its entries."""
    steps = STEP * _scales(x)
    gradient, noise = np.empty_like(x), 0.0
    for i in np.ndindex(x.shape):
        kept = x[i]
        x[i] = up = kept + steps[i]
        above = _float64(f(), "y")
        x[i] = down = kept - steps[i]
        below = _float64(f(), "y")
        x[i] = kept
        gradient[i] = (above - below).sum() / (up - down)
        moved = above != below  # the rest is exact, or hidden if it is all
        rounding = EPSILON * np.linalg.norm(above[moved] if moved.any() else above)
        noise = max(noise, rounding / (up - down))
    return gradient, noise


def _scales(x: np.ndarray) -> np.ndarray:
    """What each entry's step is a fraction of: its size, but at least min(1, the largest size); 1 if all are 0."""
    size = np.abs(_float64(x, "x"))
    return np.maximum(size, min(1.0, size.max()) or 1.0)


def _float64(x, name: str) -> np.ndarray:
    """x as an array; ValueError unless it is an array or a number in float64, and not empty."""
    kind = getattr(x, "dtype", type(x).__name__)
    if kind != np.float64 and not isinstance(x, float):
        mend = "pass what needs no gradient as constants=[...]"
        raise ValueError(f"{name}: gradient checks need float64, not {kind}; {mend}")
    if not np.size(x):
        raise ValueError(f"{name} is empty: there is nothing to check")
    return np.asarray(x)


def _pure(function: Callable, kind: str, names: Sequence[str], arguments: Sequence):
    """function(*arguments); ValueError if it changes one of them in place."""
    before = [_contents(x) for x in arguments]
    result = function(*arguments)
    for name, x, old in zip(names, arguments, before, strict=False):
        if _contents(x) != old:
            raise ValueError(f"{kind} changes {name} in place: let it work on a copy")
    return result


def _contents(x) -> bytes | None:
    """All that an argument holds, of any nesting; None where pickle cannot tell."""
    with suppress(Exception):
        return pickle.dumps(x)
