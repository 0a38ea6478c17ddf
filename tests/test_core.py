"""What a gradient check cannot see in core.py and optim.py."""

import pickle

import numpy as np
import pytest

from wm_numpy import core
from wm_numpy.core import Params
from wm_numpy.optim import CHUNK, Adam


def test_params_are_views_of_one_vector():
    params = Params({"w": (2, 3), "b": (3,)})
    params["w"][1, 2] = 5
    params.flat[-1] = 7
    assert params.size == 9 and params.flat[5] == 5 and params["b"][2] == 7 and list(params) == ["w", "b"]
    copy = pickle.loads(pickle.dumps(params))
    copy.flat[:] = 1
    assert (copy["w"] == 1).all() and params["w"][1, 2] == 5
    with pytest.raises(ValueError, match=r"\(8,\).*\(9,\)"):
        Params(params.shapes, np.zeros(8))


def test_reparameterized_samples_have_the_standard_deviation_of_half_the_logvar():
    rng, n = np.random.default_rng(0), 100_000
    mu, logvar = np.array([1.0, -2.0]), np.array([0.7, -1.3])
    z, _ = core.reparameterize_forward(mu, logvar, rng.standard_normal((n, 2)))
    assert np.allclose(z.mean(axis=0), mu, atol=0.02)
    assert np.allclose(z.std(axis=0), np.exp(logvar / 2), rtol=0.01)


def test_the_closed_form_of_the_kl_agrees_with_monte_carlo():
    rng, mu, logvar = np.random.default_rng(1), np.array([[0.8, -0.3]]), np.array([[-0.9, 0.4]])
    z = mu + np.exp(logvar / 2) * rng.standard_normal((400_000, 2))
    log_q = -0.5 * ((z - mu) ** 2 / np.exp(logvar) + logvar)
    log_p = -0.5 * z**2
    assert core.gaussian_kl_forward(mu, logvar)[0] == pytest.approx((log_q - log_p).sum(axis=1).mean(), rel=0.01)


def test_free_bits_on_both_sides_of_the_floor():
    mu = np.array([[2.0, 0.0], [0.1, 0.0]])  # KL of 2 and of 0.005
    kl, cache = core.gaussian_kl_forward(mu, np.zeros_like(mu), floor=1.0)
    dmu, _ = core.gaussian_kl_backward(1.0, cache)
    assert kl == pytest.approx((2 + 1) / 2) and dmu[0, 0] == pytest.approx(1.0) and dmu[1, 0] == 0


def test_losses_far_out_stay_finite():
    logit = np.array([-1000.0, 1000.0, 0.0])
    loss, cache = core.bce_with_logits_forward(logit, np.array([1.0, 1.0, 0.0]))
    assert loss == pytest.approx(1000 + np.log(2))
    assert np.allclose(core.bce_with_logits_backward(1.0, cache)[0], [-1, 0, 0.5])
    assert np.isfinite(core.sigmoid(np.float32([-1e4, 1e4]))).all()


@pytest.mark.parametrize("clip", [None, 0.5])
def test_adam_is_algorithm_1_of_the_paper(clip):
    n, rng = CHUNK + 3, np.random.default_rng(2)
    adam, theta = Adam(n, clip=clip, dtype=np.float64), rng.standard_normal(n)
    expected, m, v = theta.copy(), 0.0, 0.0
    for t in range(1, 5):
        gradient, rate = rng.standard_normal(n), 0.01 / t
        adam.step(theta, gradient, rate)
        g = gradient if clip is None else np.clip(gradient, -clip, clip)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        expected -= rate * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        assert np.allclose(theta, expected, rtol=1e-12, atol=1e-12)


def test_adam_goes_on_exactly():
    rng = np.random.default_rng(3)
    gradients = rng.standard_normal((4, 7))
    one, theta = Adam(7), np.zeros(7, np.float32)
    for g in gradients:
        one.step(theta, g, 0.1)
    first, resumed = Adam(7), np.zeros(7, np.float32)
    for g in gradients[:2]:
        first.step(resumed, g, 0.1)
    second = Adam(7)
    second.load_state_dict({name: x.copy() for name, x in first.state_dict().items()})
    for g in gradients[2:]:
        second.step(resumed, g, 0.1)
    assert (theta == resumed).all()
