"""plain.py is the definition: its own gradients, and every fast operation against it, forward and backward."""

import numpy as np
import pytest

from wm_numpy import plain
from wm_numpy.core import conv, lstm, mixture, ops
from wm_numpy.core.adam import Adam
from wm_numpy.core.gradcheck import check_pair
from wm_numpy.models.cmaes import CMAES

PAIRS = {  # shapes of the inputs, and of what needs no gradient
    "linear": (((3, 5), (5, 7), (7,)), ()),
    "relu": (((3, 5),), ()),
    "sigmoid": (((3, 5),), ()),
    "conv": (((2, 7, 8, 3), (4, 4, 3, 5), (5,)), ()),
    "conv_transpose": (((2, 3, 4, 7), (5, 5, 3, 7), (3,)), ()),
    "reparameterize": (((3, 5), (3, 5)), ((3, 5),)),
    "gaussian_kl": (((3, 5), (3, 5)), ()),
    "squared_error": (((3, 5),), ((3, 5), (3, 1))),
    "bce_with_logits": (((3, 5),), ((3, 5), (3, 1))),
    "lstm_step": (((2, 5), (2, 7), (2, 7), (12, 28), (28,)), ()),
    "mixture_nll": (((4, 5, 3), (4, 5, 3), (4, 5, 3)), ((5, 3), (3,))),
}
FAST = {
    name.removesuffix("_forward"): module
    for module in (ops, conv, lstm, mixture)
    for name in vars(module)
    if name.endswith("_forward") and getattr(module, name).__module__ == module.__name__
}


def arguments(op: str, rng) -> tuple[list, list]:
    """Inputs and constants at random; a KL floor that lies between the samples."""
    inputs, constants = ([rng.standard_normal(shape) for shape in part] for part in PAIRS[op])
    return inputs, constants + [2.0] * (op == "gaussian_kl")


def both(module, op: str) -> tuple:
    return tuple(getattr(module, f"{op}_{way}") for way in ("forward", "backward"))


def test_every_operation_is_here():
    defined = {name.removesuffix("_forward") for name in vars(plain) if name.endswith("_forward")}
    assert defined == set(PAIRS) and set(FAST) == defined - {"lstm_step"} | {"lstm"}


@pytest.mark.parametrize("op", PAIRS)
def test_gradients_of_the_definition(op):
    rng = np.random.default_rng(0)
    inputs, constants = arguments(op, rng)
    error = check_pair(*both(plain, op), *inputs, rng=rng, constants=constants)
    assert error.ok, error


@pytest.mark.parametrize("op", [op for op in FAST if op != "lstm"])
def test_fast_is_the_definition(op):
    inputs, constants = arguments(op, np.random.default_rng(1))
    results = []
    for forward, backward in (both(FAST[op], op), both(plain, op)):
        y, cache = forward(*inputs, *constants)
        dy = np.random.default_rng(2).standard_normal(np.shape(y))
        results.append((y, *backward(dy, cache)))
    for fast, definition in zip(*results, strict=True):
        np.testing.assert_allclose(fast, definition, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("begins", [False, True])
def test_the_lstm_is_its_step_repeated(begins):
    """Where an episode begins, the state before it is multiplied by 0, and so is its gradient."""
    T, B, I, H = 4, 2, 5, 7
    rng = np.random.default_rng(3)
    shapes = (T, B, I), (B, H), (B, H), (I + H, 4 * H), (4 * H,)
    x, h, c, w, b = inputs = [rng.standard_normal(shape) for shape in shapes]
    restart = np.array([[0, 1], [1, 0], [0, 0], [0, 1]]) if begins else np.zeros((T, B))
    keep = 1 - restart[:, :, None]  # (T, B, 1)
    hs, caches = [], []
    for t in range(T):
        (h, c), cache = plain.lstm_step_forward(x[t], keep[t] * h, keep[t] * c, w, b)
        hs.append(h)
        caches.append(cache)
    (h_fast, c_fast), cache = lstm.lstm_forward(*inputs, restart if begins else None)
    np.testing.assert_allclose(h_fast, hs, rtol=1e-12)
    np.testing.assert_allclose(c_fast, c, rtol=1e-12)

    dh_all, dc = rng.standard_normal((T, B, H)), rng.standard_normal((B, H))
    fast = lstm.lstm_backward((dh_all, dc), cache)
    dx, dw, db, dh = np.empty_like(x), 0, 0, 0
    for t in reversed(range(T)):
        dx[t], dh, dc, dw_t, db_t = plain.lstm_step_backward((dh + dh_all[t], dc), caches[t])
        dh, dc, dw, db = keep[t] * dh, keep[t] * dc, dw + dw_t, db + db_t
    for name, a, b_ in zip(["x", "h", "c", "w", "b"], fast, (dx, dh, dc, dw, db), strict=True):
        np.testing.assert_allclose(a, b_, rtol=1e-10, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("tau", [0.4, 1.0, 1.7])
def test_the_sampler(tau):
    rng = np.random.default_rng(4)
    args = *rng.standard_normal((3, 4, 5, 3)), tau, rng.random((5, 3)), rng.standard_normal((5, 3))
    np.testing.assert_allclose(
        mixture.sample_mixture(*args), plain.sample_mixture(*args), rtol=1e-12
    )


def test_adam():
    rng = np.random.default_rng(5)
    fast, theta = Adam(6, dtype=np.float64), rng.standard_normal(6)
    expected, m, v = theta.copy(), 0.0, 0.0
    for t in range(1, 5):
        gradient = rng.standard_normal(6)
        fast.step(theta, gradient, 0.1 / t)
        expected, m, v = plain.adam(expected, gradient, m, v, t, 0.1 / t)
        np.testing.assert_allclose(theta, expected, rtol=1e-12)


@pytest.mark.parametrize("n, population", [(1, 4), (4, 12), (7, 20)])
def test_cma_es(n, population):
    """Generation by generation; the fast one is told to decompose in each, too."""
    start, seed = np.arange(n) - 1.0, 6
    fast = CMAES(start, 0.3, population, seed=seed)
    definition = plain.CMAES(start, 0.3, population, np.random.default_rng(seed))
    fast.constants.interval = 1
    for _ in range(6):
        x = fast.ask()
        np.testing.assert_allclose(x, definition.ask(), rtol=1e-9, atol=1e-11)
        costs = (x**2) @ 10 ** np.linspace(0, 2, n)
        fast.tell(x, costs)
        definition.tell(x, costs)
        for name in ("mean", "sigma", "p_sigma", "p_c", "cov"):
            pair = getattr(fast, name), getattr(definition, name)
            np.testing.assert_allclose(*pair, rtol=1e-9, atol=1e-11, err_msg=name)
