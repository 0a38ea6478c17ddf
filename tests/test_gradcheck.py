"""The gradient checker itself, the census of operations, and every case."""

import importlib
import inspect
import pkgutil
import re
import warnings
from collections import OrderedDict, deque
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest

import run
import wm_numpy
from wm_numpy.core import ops as core
from wm_numpy.core.gradcheck import (
    TOLERANCE,
    RelativeError,
    check_pair,
    check_vector,
    numerical_gradient,
    relative_error,
)
from wm_numpy.lab import cases as gradcases
from wm_numpy.models import mdnrnn, vae


def ops() -> dict[str, tuple]:
    """module.name -> (module, function) of every `*_forward` of the package; plain.py has tests of its own."""
    found = {}
    for info in pkgutil.walk_packages(wm_numpy.__path__, "wm_numpy."):
        if info.name in ("wm_numpy.plain", "wm_numpy.paper"):
            continue
        module = importlib.import_module(info.name)
        for name, value in vars(module).items():
            here = inspect.isfunction(value) and value.__module__ == module.__name__
            if here and name.endswith("_forward"):
                found[f"{info.name.rpartition('.')[2]}.{name}"] = module, name
    return found


def test_the_census_finds_them():
    """An empty scan would pass everything below."""
    some = {"ops.linear_forward", "conv.conv_forward", "lstm.lstm_forward"}
    assert some | {"mixture.mixture_nll_forward"} <= set(ops())


@pytest.mark.parametrize("op", ops())
def test_every_forward_has_a_backward_and_a_case(op):
    module, forward = ops()[op]
    backward = getattr(module, forward.removesuffix("_forward") + "_backward", None)
    assert callable(backward) and backward.__module__ == module.__name__
    assert forward.removesuffix("_forward") in gradcases.CASES


@pytest.mark.parametrize("name", gradcases.CASES)
def test_gradients_are_right(name):
    assert TOLERANCE <= 1e-6
    error = gradcases.CASES[name](np.random.default_rng(1))
    assert error.ok


@pytest.mark.parametrize("op", ops())
def test_each_case_checks_its_own_op(op, monkeypatch):
    """With gradients twice too large the error is of order 1: so the case does run this very backward."""
    module, forward = ops()[op]
    name = forward.removesuffix("_forward")
    right = getattr(module, f"{name}_backward")
    monkeypatch.setattr(
        module, f"{name}_backward", lambda dy, cache: tuple(2 * d for d in right(dy, cache))
    )
    assert 0.3 < gradcases.CASES[name](np.random.default_rng(1)) < 3


def test_a_single_wrong_entry_is_caught_in_element_mode():
    def backward(dy, cache):
        dx, dw, db = core.linear_backward(dy, cache)
        db = db.copy()
        db[2] = -db[2]
        return dx, dw, db

    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal(s) for s in [(2, 3), (3, 5), (5,)]]
    check = partial(check_pair, core.linear_forward)
    assert check(core.linear_backward, *inputs, rng=np.random.default_rng(1)) < 1e-9
    assert 0.1 < check(backward, *inputs, rng=np.random.default_rng(1)) < 3


@pytest.mark.parametrize(
    "module, backward, case",
    [
        (mdnrnn, "lstm_backward", "whole loss of M"),
        (vae, "conv_transpose_backward", "whole loss of V"),
    ],
)
def test_a_wrong_backward_is_caught_in_projection_mode(module, backward, case, monkeypatch):
    right = getattr(module, backward)

    def wrong(*args, **kwargs):
        *gradients, last = right(*args, **kwargs)
        return *gradients, 2 * last  # only a bias

    monkeypatch.setattr(module, backward, wrong)
    assert gradcases.CASES[case](np.random.default_rng(1)) > TOLERANCE


def test_projection_mode_sees_a_left_out_gradient():
    x = np.random.default_rng(0).standard_normal(50)

    def f(v):
        return float(np.sum(v**3))

    assert check_vector(f, x, 3 * x**2, np.random.default_rng(1)) < 1e-7
    wrong = np.where(np.arange(50) == 7, 0, 3 * x**2)
    assert check_vector(f, x, wrong, np.random.default_rng(1)) > 1e-3
    assert check_vector(f, x, np.zeros(50), np.random.default_rng(1)) > 0.9


def test_numerical_gradient_puts_x_back():
    x = np.array([[1.0, -2.0], [0.5, 3.0]])
    before = x.copy()
    gradient = numerical_gradient(lambda: float(np.sum(np.sin(x))), x)
    assert np.array_equal(x, before)
    assert relative_error(gradient, np.cos(x)) < 1e-9


def test_relative_error_is_of_the_largest_entry():
    assert relative_error(np.array([1.0, 1e-12]), np.array([1.0, 0.0])) == pytest.approx(1e-12)
    assert relative_error(np.array([2.0]), np.array([1.0])) == 0.5
    assert relative_error(np.zeros(3), np.zeros(3)) == 0


def test_errors_of_check_pair():
    rng, x = np.random.default_rng(0), np.ones((2, 3))

    def double(x, w):
        return x * w, (x, w)

    with pytest.raises(ValueError, match="float64"):
        check_pair(core.relu_forward, core.relu_backward, x.astype(np.float32), rng=rng)
    with pytest.raises(ValueError, match="1 gradients for 2 inputs"):
        check_pair(double, lambda dy, cache: (dy * cache[1],), x, 2 * x, rng=rng)
    with pytest.raises(ValueError, match=r"shape \(3,\) for x"):
        check_pair(double, lambda dy, cache: (dy[0] * cache[1][0], dy), x, 2 * x, rng=rng)


# ------------------------------------------------------------------- what a checker must not overlook


def square(x):
    return x**2, (x,)


def square_backward(dy, cache):
    return (2 * dy * cache[0],)


def identity(x):
    return x.copy(), (x.copy(), [np.ones(2)])


X = np.random.default_rng(0).standard_normal((2, 3))


def one_nan(dy, cache):
    dx = -square_backward(dy, cache)[0]
    dx[1, 1] = np.nan
    return (dx,)


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize(
    "forward, backward, entry",
    [
        (square, lambda dy, cache: (dy * np.nan,), "x[0, 0]: claimed nan"),
        (square, lambda dy, cache: (dy * np.inf,), "x[0, 0]: claimed "),
        (square, one_nan, "x[1, 1]: claimed nan, numerical"),
        (lambda x: (np.log(-np.abs(x)), x), lambda dy, x: (dy / x,), "numerical nan"),
    ],
)
def test_what_is_not_finite_is_wrong(forward, backward, entry):
    error = check_pair(forward, backward, X, rng=np.random.default_rng(1))
    assert error == np.inf and entry in str(error)


def test_what_is_not_finite_is_wrong_in_projection_mode():
    x, rng = X.ravel(), np.random.default_rng(1)
    gradient = 2 * x
    gradient[4] = np.nan
    error = check_vector(lambda v: np.sum(v**2), x, gradient, rng)
    assert error == np.inf and "gradient[4]: claimed nan" in str(error)
    error = check_vector(lambda v: np.nan, x, 2 * x, rng)
    assert error == np.inf and "direction[0]" in str(error) and "numerical nan" in str(error)
    assert relative_error([1.0, np.nan], [1.0, np.nan]) == np.inf


def test_checking_nothing_is_an_error():
    rng, empty = np.random.default_rng(0), np.zeros((0, 3))
    with pytest.raises(ValueError):
        check_vector(np.sum, X.ravel(), np.ones(6), rng, directions=0)
    with pytest.raises(ValueError, match="x is empty"):
        check_vector(np.sum, np.zeros(0), np.zeros(0), rng)
    with pytest.raises(ValueError, match="x is empty"):
        check_pair(square, square_backward, empty, rng=rng)
    with pytest.raises(ValueError, match="y is empty"):
        check_pair(lambda x: (x[:0], x), lambda dy, x: (np.zeros_like(x),), X, rng=rng)
    for shapes in (((0,), (0,)), ((3, 1), (3,))):  # the latter would broadcast
        with pytest.raises(ValueError, match="cannot be compared"):
            relative_error(*map(np.zeros, shapes))
    with pytest.raises(ValueError, match="one length"):
        check_vector(np.sum, X.ravel(), np.ones((6, 1)), rng)


def refused(forward, backward, changed):
    with pytest.raises(ValueError, match=f"^{changed} in place"):
        check_pair(forward, backward, X, rng=np.random.default_rng(1))


@pytest.mark.parametrize("factor", [0.1, 2])
def test_a_backward_that_changes_dy_is_refused(factor):
    def scaled(dy, cache):
        dy *= factor
        return (dy,)

    refused(lambda x: (2 * x, ()), scaled, "backward changes dy")  # 2 is right, but not pure


def test_a_forward_that_changes_its_input_is_refused():
    def doubling(x):
        x *= 2
        return x, ()

    kept = X.copy()
    refused(doubling, lambda dy, cache: (dy,), "forward changes x")
    assert np.array_equal(X, kept)


def test_buffers_that_are_used_again_do_no_harm():
    """y and dx lie where the next forward writes."""
    buffer = np.empty((2, 3))

    def forward(x):
        return np.multiply(x, 2, out=buffer), ()

    def backward(dy, cache):
        return (np.multiply(dy, 2, out=buffer),)

    assert check_pair(forward, backward, X, rng=np.random.default_rng(1)) < 1e-9
    x = X.ravel().copy()
    gradient = 3 * x**2

    def f(v):
        x[:] = v
        gradient[:] = 0
        return np.sum(v**3)

    assert check_vector(f, x, gradient, np.random.default_rng(1)) < 1e-7


def test_one_array_may_be_two_inputs():
    def product(a, b):
        return a * b, (a, b)

    error = check_pair(
        product,
        lambda dy, cache: (dy * cache[1], dy * cache[0]),
        X,
        X,
        rng=np.random.default_rng(1),
    )
    assert error < 1e-9


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1.0, 1e9, 1e12])
def test_the_step_follows_the_scale_of_x(scale):
    """x^2 and log x^2: a right gradient passes, a claimed one of zero does not."""
    x, rng = X * scale, np.random.default_rng(1)

    def log(x):
        return np.log(x**2), (x,)

    assert check_pair(square, square_backward, x, rng=rng) < 1e-8
    assert check_pair(log, lambda dy, cache: (2 * dy / cache[0],), x, rng=rng) < 1e-8
    assert check_pair(square, lambda dy, cache: (0 * dy,), x, rng=rng) == 1
    gradient = 2 * x.ravel()
    assert check_vector(lambda v: np.sum(v**2), x.ravel(), gradient, rng) < 1e-6
    assert check_vector(lambda v: np.sum(v**2), x.ravel(), 0 * gradient, rng) == 1


def test_entries_of_different_scales_have_each_its_step():
    x = np.array([1e9, 1.0, 0.0, -1e-6])
    gradient = numerical_gradient(lambda: float(np.sum(np.sin(x / [1e9, 1, 1, 1]))), x)
    assert np.allclose(gradient * [1e9, 1, 1, 1], np.cos(x / [1e9, 1, 1, 1]), rtol=1e-9)
    zeros = np.zeros(3)
    assert np.allclose(
        numerical_gradient(lambda: float(np.sum(np.sin(zeros))), zeros), 1, rtol=1e-9
    )


def test_integers_are_refused_as_float32_is():
    rng = np.random.default_rng(0)
    for wrong in (np.arange(1, 4), np.ones(3, np.float32), [1.0, 2.0]):
        with pytest.raises(ValueError, match="x: gradient checks need float64"):
            check_pair(square, square_backward, wrong, rng=rng)
        with pytest.raises(ValueError, match="float64"):
            check_vector(np.sum, wrong, np.ones(3), rng)
        with pytest.raises(ValueError, match="float64"):
            numerical_gradient(lambda: 0.0, wrong)


def test_the_result_names_the_entry():
    def backward(dy, cache):
        dx, dw, db = core.linear_backward(dy, cache)
        dw[2, 1] *= -1
        return dx, dw, db

    rng = np.random.default_rng(0)
    x, w, b = (rng.standard_normal(shape) for shape in [(2, 3), (3, 5), (5,)])
    error = check_pair(core.linear_forward, backward, x, w, b, rng=rng)
    assert error.input == "w" and error.index == (2, 1)
    assert error.claimed == pytest.approx(-error.numerical) and abs(error.claimed) > 0.01
    line = "WRONG, 2.0e+00 > 1e-06 at w[2, 1]: "
    line += f"claimed {error.claimed:.6g}, numerical {error.numerical:.6g}"
    assert str(error) == repr(error) == line and isinstance(error, float)
    with pytest.raises(AssertionError, match=r"at w\[2, 1\]: claimed"):
        assert error < 1e-6
    scalar = check_pair(
        lambda *a: (a[0] * a[1], a),
        lambda dy, a: (dy * a[1], dy),
        *map(np.array, (1.5, 3.0)),
        rng=rng,
    )
    assert "at input 1: claimed" in str(scalar)


@pytest.mark.parametrize(
    "forward, backward, kind",
    [
        (lambda x: (x + 1j * x**2, x), lambda dy, x: (dy.real,), "y: .* not complex128"),
        (lambda x: (x.astype(np.float32) + np.float32(1e4), x), square_backward, "y: .* float32"),
        (lambda x: ((x, np.ones(2, int)), x), square_backward, "y: .* int64"),
        (lambda x: (np.float32(x.sum()), x), square_backward, "y: .* float32"),
        (identity, lambda dy, cache: (dy.astype(np.float32),), "dx: .* float32"),
        (identity, lambda dy, cache: (dy + 0j,), "dx: .* complex128"),
    ],
)
def test_what_is_not_a_real_float64_is_refused(forward, backward, kind):
    with pytest.raises(ValueError, match=kind):
        check_pair(forward, backward, X, rng=np.random.default_rng(1))


def test_what_is_not_a_real_float64_is_refused_in_projection_mode():
    x, rng = X.ravel(), np.random.default_rng(1)
    for f in (lambda v: np.float32(v.sum()), lambda v: v.sum() + 1j, lambda v: int(v.sum())):
        with pytest.raises(ValueError, match=r"f\(x\): gradient checks need float64"):
            check_vector(f, x, np.ones(6), rng)
    with pytest.raises(ValueError, match="complex128 .* cannot be compared"):
        relative_error(x + 0j, x)


@pytest.mark.parametrize("offset", [1e12, 1e20, -1e15])
def test_rounding_that_hides_a_gradient_is_told(offset):
    """Neither zeros nor the right gradient can be told from the other; what is far from both is wrong."""
    rng, x = np.random.default_rng(1), X.ravel()

    def shifted(x):
        return x + offset, x

    for backward in (lambda dy, x: (0 * dy,), lambda dy, x: (dy,)):
        error = check_pair(shifted, backward, X, rng=rng)
        assert error > TOLERANCE and error.hidden and str(error).startswith("cannot tell, ")
    error = check_pair(shifted, lambda dy, x: (1e18 * dy,), X, rng=rng)
    assert error == pytest.approx(1) and str(error).startswith("WRONG, ")
    near = check_pair(lambda x: (x + 1e9, x), lambda dy, x: (0 * dy,), X, rng=rng)
    assert "WRONG, 1.0e+00" in str(near)  # rounding hides a hundredth of a gradient, not all of it
    for gradient in (np.zeros(6), np.ones(6)):
        error = check_vector(lambda v: v.sum() + offset, x, gradient, rng)
        assert error > TOLERANCE and "cannot tell, " in str(error)


def test_a_gradient_that_is_zero_passes_beside_a_large_output():
    rng = np.random.default_rng(1)
    far, cache = core.gaussian_kl_forward(X, X, 1000.0)  # below the floor: no gradient at all
    assert far == 1000
    kl = partial(core.gaussian_kl_forward, floor=1000.0)
    assert check_pair(kl, core.gaussian_kl_backward, X, X, rng=rng) == 0

    def beside(x, scale):  # one entry is far larger and moves with no x
        return np.append(x**2, 1e12 * scale), x

    def backward(dy, x):
        return (2 * x * dy[:-1],)

    assert check_pair(beside, backward, X.ravel(), rng=rng, constants=(1.0,)).ok


@dataclass
class Cache:
    x: np.ndarray
    count: int = 0


@dataclass
class Slotted:
    __slots__ = ("x",)
    x: np.ndarray


def in_objects(x: np.ndarray) -> np.ndarray:
    array = np.empty((1, 2), object)
    array[0, 1] = x
    return array


@pytest.mark.parametrize(
    "wrap, change",
    [
        (lambda x: (x, [x]), lambda c: c[1][0].fill(7)),
        (lambda x: {"a": [0, {"b": x}]}, lambda c: c["a"][1]["b"].fill(7)),
        (lambda x: (OrderedDict(a=deque([x])),), lambda c: c[0]["a"][0].fill(7)),
        (lambda x: Cache(x), lambda c: c.x.fill(7)),
        (lambda x: Slotted([x]), lambda c: c.x[0].fill(7)),
        (lambda x: [Cache(x)], lambda c: setattr(c[0], "count", 1)),
        (in_objects, lambda c: c[0, 1].fill(7)),
        (lambda x: {"n": 1}, lambda c: c.update(n=2)),
        (lambda x: {"n": x}, lambda c: c.update(n=None)),
        (lambda x: [x], lambda c: c.append(np.ones(2))),
    ],
)
def test_a_backward_that_changes_its_cache_is_refused(wrap, change):
    def backward(dy, cache):
        change(cache)
        return (dy,)

    refused(lambda x: (x.copy(), wrap(x.copy())), backward, "backward changes cache")


def test_a_cache_that_holds_itself_or_what_cannot_be_compared():
    cache = [np.random.default_rng(0), np.nan, np.float64("nan"), square, np.float32, lambda: 0]
    cache.append(cache)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pair = lambda x: (x.copy(), cache), lambda dy, cache: (dy,)
        assert check_pair(*pair, X, rng=np.random.default_rng(1)).ok


@pytest.mark.parametrize("kind", [float, np.float64, np.array])
def test_numbers_are_as_good_as_arrays(kind):
    rng, x = np.random.default_rng(1), kind(0.7)
    for op in ("relu", "sigmoid"):
        forward, backward = (getattr(core, f"{op}_{way}") for way in ("forward", "backward"))
        assert check_pair(forward, backward, x, rng=rng).ok
    for op in ("squared_error", "bce_with_logits"):
        forward, backward = (getattr(core, f"{op}_{way}") for way in ("forward", "backward"))
        assert check_pair(forward, backward, x, rng=rng, constants=(1,)).ok


def test_what_one_gets_wrong_at_first_is_told():
    rng = np.random.default_rng(1)
    with pytest.raises(ValueError, match=r"must return a tuple, .*`return \(dx,\)`"):
        check_pair(square, lambda dy, cache: 2 * dy * cache[0], X, rng=rng)
    with pytest.raises(ValueError, match="must return a tuple of two: y, cache"):
        check_pair(lambda x: x**2, square_backward, X, rng=rng)

    def pick(x, labels):
        return x[labels], (x.shape, labels)

    def pick_backward(dy, cache):
        dx = np.zeros(cache[0])
        np.add.at(dx, cache[1], dy)
        return (dx,)

    labels = np.array([1, 0, 1])
    with pytest.raises(ValueError, match=r"labels: .* int64; pass .* as constants="):
        check_pair(pick, pick_backward, X, labels, rng=rng)
    error = check_pair(pick, pick_backward, X, rng=rng, constants=[labels])
    assert re.fullmatch(r"ok, \S+ <= 1e-06 at x\[\d, \d\]: claimed \S+, numerical \S+", str(error))


def test_integers_do_not_wrap():
    assert relative_error(np.int8([127]), np.int8([-128])) == 255 / 128
    assert relative_error(np.uint8([1]), np.uint8([2])) == 0.5
    assert relative_error(np.array([True]), np.array([False])) == 1


def test_command_exits_with_1_when_a_gradient_is_wrong(monkeypatch, capsys):
    few = {name: gradcases.CASES[name] for name in ("linear", "relu", "sigmoid")}
    monkeypatch.setattr(gradcases, "CASES", few)
    assert run.main(["gradcheck"]) == 0
    assert "3 of 3 gradients are right" in capsys.readouterr().out
    error = relative_error([1.0, 2.0], [1.0, 1.0], "w")
    for wrong, why in ((error, "w[1]: claimed 2, numerical 1"), (RelativeError("nan"), "nan")):
        monkeypatch.setattr(gradcases, "CASES", few | {"sigmoid": lambda rng, wrong=wrong: wrong})
        assert run.main(["gradcheck"]) == 1
        out = capsys.readouterr().out
        assert "2 of 3 gradients are right; wrong: sigmoid" in out
        assert "WRONG" in out and why in out
