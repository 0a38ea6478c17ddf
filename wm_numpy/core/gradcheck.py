"""Is a hand-written backward the gradient of its forward? Central differences in float64, public and reusable.

    from wm_numpy.core.gradcheck import TOLERANCE, check_pair
    error = check_pair(my_forward, my_backward, x, w, rng=np.random.default_rng(0))
    assert error <= TOLERANCE
    print(error)  # WRONG, 9.0e-01 > 1e-06 at w[2, 0]: claimed 0.0132, numerical 0.132

Two modes. Element mode perturbs every entry and so says WHICH one is wrong; projection mode perturbs along random
directions, two forward passes each, and so reaches a whole network of any size.
"""

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy

import numpy as np

STEP = 1e-5  # of an entry's scale: truncation ~ STEP^2, rounding ~ 1e-16 / STEP, both about 1e-10
VECTOR_STEP = 1e-6
TOLERANCE = 1e-6
EPSILON = np.finfo(float).eps

Rng = np.random.Generator


class RelativeError(float):
    """The largest relative error of a gradient, as a number; it knows its entry, and prints as one line.

    `input` names the array and `index` the entry; `claimed` and `numerical` are its two derivatives. `changed` names
    what forward or backward changed in place. `hidden`: y is so large that its rounding hides an error of this size.
    Whatever is not finite has an infinite error.
    """

    input: str = ""
    index: tuple[int, ...] = ()
    claimed: float = np.nan
    numerical: float = np.nan
    changed: tuple[str, ...] = ()
    hidden: bool = False

    @property
    def ok(self) -> bool:
        """Whether the gradient is right, to TOLERANCE, and nothing was changed in place."""
        return self <= TOLERANCE and not self.changed

    def __str__(self) -> str:
        verdict = "ok" if self.ok else "cannot tell" if self.hidden else "WRONG"
        limit = f"{'<=' if self <= TOLERANCE else '>'} {TOLERANCE:g}"
        entry = f"{self.input}[{', '.join(map(str, self.index))}]" if self.index else self.input
        both = f"claimed {self.claimed:.6g}, numerical {self.numerical:.6g}"
        hidden = "; y is so large that its rounding hides such errors" * self.hidden
        changed = f"; changed in place: {', '.join(self.changed)}" if self.changed else ""
        return f"{verdict}, {self:.1e} {limit} at {entry}: {both}{hidden}{changed}"

    __repr__ = __str__


def relative_error(
    claimed: np.ndarray, numerical: np.ndarray, name: str = "x", noise: float = 0.0
) -> RelativeError:
    """Largest difference over the largest entry of either: one scale per array, or entries near zero would dominate.

    noise: what rounding may have added to a numerical entry; where it is above the tolerance, differences of its order
    say nothing, and the noise is the error. Infinite where anything is not finite; ValueError for arrays that are
    empty, complex, or of two shapes.
    """
    a, b = np.asarray(claimed), np.asarray(numerical)
    if a.shape != b.shape or not a.size or "c" in a.dtype.kind + b.dtype.kind:
        both = f"{a.dtype} {a.shape} and {b.dtype} {b.shape}"
        raise ValueError(f"{name}: gradients {both} cannot be compared")
    a, b = a.astype(float), b.astype(float)  # integers would wrap
    finite = np.isfinite(a) & np.isfinite(b)
    if finite.all():
        difference = np.abs(a - b)
        at = np.unravel_index(np.argmax(difference), a.shape)
        scale = max(np.abs(a).max(), np.abs(b).max()) or 1.0
        hidden = bool(noise > TOLERANCE * scale and difference[at] < 10 * noise)
        error = RelativeError((noise if hidden else difference[at]) / scale)
        error.hidden = hidden
    else:
        at = np.unravel_index(np.argmin(finite), a.shape)  # the first that is not
        error = RelativeError(np.inf)
    error.input, error.index = name, tuple(map(int, at))
    error.claimed, error.numerical = float(a[at]), float(b[at])
    return error


def numerical_gradient(f: Callable[[], float], x: np.ndarray) -> np.ndarray:
    """Element mode: df/dx for every entry of x (float64, changed in place and put back), f() a scalar of x."""
    return _differences(f, x)[0]


def check_pair(
    forward: Callable, backward: Callable, *inputs: np.ndarray, rng: Rng, constants: Sequence = ()
) -> RelativeError:
    """Element mode: check an op pair under a RANDOM upstream gradient -> the largest error of any input.

    forward(*inputs, *constants) -> (y, cache), y an array, a number, or a tuple of them; backward(dy, cache) -> a
    tuple, one gradient per input, in order. The constants, such as integer labels, need no gradient. Both functions
    are given copies; changes in place (to x, dy, cache) are named in a warning and in the result.

    Raises:
        ValueError: an input, output or gradient is not float64 or empty, or a result has another form.
    """
    if not inputs:
        raise ValueError("there is no input to check")
    names = _argument_names(forward, len(inputs) + len(constants))
    inputs = [np.array(_float64(x, name)) for name, x in zip(names, inputs, strict=False)]
    given = (*inputs, *constants)

    result, changed = _watched("forward", forward, names, deepcopy(given))
    if not isinstance(result, tuple) or len(result) != 2:
        raise ValueError("forward must return a tuple of two: y, cache")
    y, cache = result
    many = isinstance(y, (tuple, list))
    dy = tuple(rng.standard_normal(_float64(part, "y").shape) for part in (y if many else (y,)))

    handed = (deepcopy(dy if many else dy[0]), cache)
    gradients, more = _watched("backward", backward, ("dy", "cache"), handed)
    if not isinstance(gradients, (tuple, list)):
        raise ValueError("backward must return a tuple, one gradient per input: `return (dx,)`")
    if len(gradients) < len(inputs):
        raise ValueError(f"backward returned {len(gradients)} gradients for {len(inputs)} inputs")
    gradients = deepcopy(gradients)  # they may lie in memory that the next forward uses

    def weighted() -> np.ndarray:  # its sum has the gradient backward(dy)
        y, _ = forward(*deepcopy(given))
        pairs = zip(dy, y if many else (y,), strict=True)
        return np.concatenate([np.ravel(d * part) for d, part in pairs])

    errors = []
    for name, x, dx in zip(names, inputs, gradients, strict=False):
        if np.shape(dx) != x.shape:
            raise ValueError(f"backward returned shape {np.shape(dx)} for {name} of {x.shape}")
        numerical, noise = _differences(weighted, x)
        errors.append(relative_error(_float64(dx, f"d{name}"), numerical, name, noise))
    worst = max(errors)
    worst.changed = tuple(changed + more)
    if worst.changed:
        warnings.warn(f"changed in place: {', '.join(worst.changed)}", stacklevel=2)
    return worst


def check_vector(
    f: Callable, x: np.ndarray, gradient: np.ndarray, rng: Rng, directions: int = 20
) -> RelativeError:
    """Projection mode: the claimed gradient (n,) at x (n,) of a loss f(x) -> its largest relative error.

    gradient . v is compared with the central difference of f along random directions v. Each is a random unit vector,
    which sees what the gradient left out, plus one along the gradient with a random share of every entry: without it
    the difference drowns in the rounding of f when n is in the millions. f must be deterministic, in float64, and away
    from the kinks of its ReLUs: an input of exactly zero, as zero biases give, has no derivative.

    Raises:
        ValueError: x or f(x) is not float64, x is empty, the gradient is of another shape, or there are no directions.
    """
    x = np.array(_float64(x, "x"))  # f may write to the original
    if np.shape(gradient) != x.shape or x.ndim != 1:
        raise ValueError(f"x {x.shape}, gradient {np.shape(gradient)}: not of one length")
    if directions < 1:
        raise ValueError(f"directions {directions}: at least 1")
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
    """The gradient of sum(f()) at x, and the largest share that rounding may have in one of its entries."""
    steps = STEP * _scales(x)
    gradient, noise = np.empty_like(x), 0.0
    for i in np.ndindex(x.shape):
        kept = x[i]
        try:
            x[i] = up = kept + steps[i]
            above = _float64(f(), "y")
            x[i] = down = kept - steps[i]
            below = _float64(f(), "y")
        finally:
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
    """x as an array; ValueError unless it is one, or a number, in float64, and holds something."""
    kind = getattr(x, "dtype", type(x).__name__)
    if kind != np.float64 and not isinstance(x, float):
        why = "rounding would hide real mistakes"
        if getattr(kind, "kind", "") in ("i", "u", "b"):
            why = "an integer array? pass it as constants=[...]"
        raise ValueError(f"{name}: gradient checks need float64, not {kind}: {why}")
    if not np.size(x):
        raise ValueError(f"{name} is empty: there is nothing to check")
    return np.asarray(x)


def _argument_names(function: Callable, count: int) -> list[str]:
    """Names of the first arguments of a function, "input 2" where it has none."""
    try:
        names = [*inspect.signature(function).parameters]
    except ValueError:  # written in C
        names = []
    return [*names, *(f"input {i}" for i in range(len(names), count))][:count]


def _watched(by: str, function: Callable, names: Sequence[str], arguments: Sequence) -> tuple:
    """function(*arguments), and the names of what it changed in place."""
    named = dict(zip(names, arguments, strict=True))
    before = _contents(named)
    result = function(*arguments)
    after = _contents(named)
    return result, [f"{n} by {by}" for n in before | after if before.get(n) != after.get(n)]


def _contents(named: dict, inside: tuple = ()) -> dict[str, str | bytes]:
    """Every array and every number by its name, in containers and objects of any nesting."""
    found = {}
    for name, x in named.items():
        if isinstance(x, np.ndarray) and x.dtype != object:
            found[name] = x.tobytes()
        elif isinstance(x, (int, float, complex, str, bytes, np.generic)):
            found[name] = repr(x)
        elif id(x) not in inside:  # a container may hold itself
            if isinstance(x, Mapping):
                parts = {f"[{key!r}]": part for key, part in x.items()}
            elif isinstance(x, (Sequence, np.ndarray)):
                parts = {f"[{i}]": part for i, part in enumerate(getattr(x, "flat", x))}
            else:
                keys = [*getattr(x, "__dict__", ()), *getattr(x, "__slots__", ())]
                parts = {f".{key}": getattr(x, key, None) for key in keys}
            parts = {name + key: part for key, part in parts.items()}
            found |= _contents(parts, (*inside, id(x)))
    return found
