"""The gradient checker itself, the census of operations, and every case."""

import importlib
import inspect
import pkgutil

import numpy as np
import pytest

import run
import wm_numpy
from wm_numpy import core, gradcases, mdnrnn, vae
from wm_numpy.gradcheck import TOLERANCE, check_pair, check_vector, numerical_gradient, relative_error

# Helpers that are no op of their own, and the case that reaches them.
HELPERS = {"vae._wide_forward": "whole loss of V"}


def ops() -> dict[str, tuple]:
    """module.name -> (module, function) of every `*_forward` that a module of the package defines."""
    found = {}
    for info in pkgutil.iter_modules(wm_numpy.__path__):
        module = importlib.import_module(f"wm_numpy.{info.name}")
        for name, value in vars(module).items():
            if name.endswith("_forward") and inspect.isfunction(value) and value.__module__ == module.__name__:
                found[f"{info.name}.{name}"] = module, name
    return found


def test_the_census_finds_them():
    """An empty scan would pass everything below."""
    assert {"core.linear_forward", "conv.conv_forward", "lstm.lstm_forward", "mdn.mixture_nll_forward"} <= set(ops())
    assert set(HELPERS) <= set(ops()), "a helper that is gone is to leave the list"


@pytest.mark.parametrize("op", ops())
def test_every_forward_has_a_backward_and_a_case(op):
    module, forward = ops()[op]
    backward = getattr(module, forward.removesuffix("_forward") + "_backward", None)
    assert callable(backward) and backward.__module__ == module.__name__
    assert HELPERS.get(op, forward.removesuffix("_forward")) in gradcases.CASES


@pytest.mark.parametrize("name", gradcases.CASES)
def test_gradients_are_right(name):
    assert TOLERANCE <= 1e-6
    assert gradcases.CASES[name](np.random.default_rng(1)) <= TOLERANCE


@pytest.mark.parametrize("op", [op for op in ops() if op not in HELPERS])
def test_each_case_checks_its_own_op(op, monkeypatch):
    """With gradients twice too large the error is of order 1: so the case does run this very backward."""
    module, forward = ops()[op]
    name = forward.removesuffix("_forward")
    right = getattr(module, f"{name}_backward")
    monkeypatch.setattr(module, f"{name}_backward", lambda dy, cache: tuple(2 * d for d in right(dy, cache)))
    assert 0.3 < gradcases.CASES[name](np.random.default_rng(1)) < 3


def test_a_single_wrong_entry_is_caught_in_element_mode():
    def backward(dy, cache):
        dx, dw, db = core.linear_backward(dy, cache)
        db = db.copy()
        db[2] = -db[2]
        return dx, dw, db

    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal(s) for s in [(2, 3), (3, 5), (5,)]]
    assert check_pair(core.linear_forward, core.linear_backward, *inputs, rng=np.random.default_rng(1)) < 1e-9
    assert 0.1 < check_pair(core.linear_forward, backward, *inputs, rng=np.random.default_rng(1)) < 3


@pytest.mark.parametrize(
    "module, backward, case",
    [(mdnrnn, "lstm_backward", "whole loss of M"), (vae, "_wide_backward", "whole loss of V")],
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
    assert check_vector(f, x, np.where(np.arange(50) == 7, 0, 3 * x**2), np.random.default_rng(1)) > 1e-3
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
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        check_pair(double, lambda dy, cache: ((dy * cache[1]).sum(axis=0), dy * cache[0]), x, 2 * x, rng=rng)


def test_command_exits_with_1_when_a_gradient_is_wrong(monkeypatch, capsys):
    few = {name: gradcases.CASES[name] for name in ("linear", "relu", "sigmoid")}
    monkeypatch.setattr(gradcases, "CASES", few)
    assert run.main(["gradcheck"]) == 0
    assert "3 of 3 gradients are right" in capsys.readouterr().out
    for wrong in (lambda rng: 0.5, lambda rng: float("nan")):
        monkeypatch.setattr(gradcases, "CASES", few | {"sigmoid": wrong})
        assert run.main(["gradcheck"]) == 1
        out = capsys.readouterr().out
        assert "2 of 3 gradients are right; wrong: sigmoid" in out and "FAILED" in out
