"""What a gradient check cannot see in the operations, the parameters and Adam."""

import ast
import pickle
from pathlib import Path

import numpy as np
import pytest

from wm_numpy import plain
from wm_numpy.core import ops as core
from wm_numpy.core.adam import CHUNK, Adam
from wm_numpy.core.arrays import Params
from wm_numpy.models import vae


def test_params_are_views_of_one_vector():
    params = Params({"w": (2, 3), "b": (3,)})
    params["w"][1, 2] = 5
    params.flat[-1] = 7
    assert params.size == 9 and list(params) == ["w", "b"]
    assert params.flat[5] == 5 and params["b"][2] == 7
    copy = pickle.loads(pickle.dumps(params))
    copy.flat[:] = 1
    assert (copy["w"] == 1).all() and params["w"][1, 2] == 5
    with pytest.raises(TypeError, match=r"params\['w'\]\[...\] = value"):
        params["w"] = np.zeros((2, 3))  # would be a view no more
    with pytest.raises(ValueError, match=r"\(8,\).*\(9,\)"):
        Params(params.shapes, np.zeros(8))


def test_reparameterized_samples_have_the_standard_deviation_of_half_the_logvar():
    rng, n = np.random.default_rng(0), 100_000
    mu, logvar = np.array([1.0, -2.0]), np.array([0.7, -1.3])
    noise = rng.standard_normal((n, 2))
    z, _ = core.reparameterize_forward(np.tile(mu, (n, 1)), np.tile(logvar, (n, 1)), noise)
    assert np.allclose(z.mean(axis=0), mu, atol=0.02)
    assert np.allclose(z.std(axis=0), np.exp(logvar / 2), rtol=0.01)


def test_the_closed_form_of_the_kl_agrees_with_monte_carlo():
    rng, mu, logvar = np.random.default_rng(1), np.array([[0.8, -0.3]]), np.array([[-0.9, 0.4]])
    z = mu + np.exp(logvar / 2) * rng.standard_normal((400_000, 2))
    log_q = -0.5 * ((z - mu) ** 2 / np.exp(logvar) + logvar)
    log_p = -0.5 * z**2
    kl, _ = core.gaussian_kl_forward(mu, logvar)
    assert kl == pytest.approx((log_q - log_p).sum(axis=1).mean(), rel=0.01)


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


def test_sigmoid_is_right_far_out():
    assert core.sigmoid(np.float32([-20]))[0] == pytest.approx(2.0611537e-9, rel=1e-6)
    assert core.sigmoid(np.array([-40.0]))[0] == pytest.approx(4.248354255291589e-18, rel=1e-14)
    assert core.sigmoid(np.array([-700.0]))[0] == pytest.approx(np.exp(-700), rel=1e-14)
    assert core.sigmoid(np.array([40.0, 0.0])).tolist() == [1, 0.5]
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        assert core.sigmoid(np.float32([-1000, 1000])).tolist() == [0, 1]


LOSSES = {
    "squared_error": (core.squared_error_forward, core.squared_error_backward),
    "bce_with_logits": (core.bce_with_logits_forward, core.bce_with_logits_backward),
}


@pytest.mark.parametrize("forward, backward", LOSSES.values(), ids=LOSSES)
def test_a_target_of_weight_zero_may_be_anything(forward, backward):
    x, target, weight = np.array([[0.3, -2.0]]), np.array([[1.0, np.nan]]), np.array([[2.0, 0.0]])
    loss, cache = forward(x, target, weight)
    alone, cache_alone = forward(x[:, :1], target[:, :1], 2.0)
    assert loss == alone
    assert backward(1.0, cache)[0].tolist() == [[*backward(1.0, cache_alone)[0][0], 0]]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("forward, backward", LOSSES.values(), ids=LOSSES)
def test_a_prediction_of_weight_zero_may_be_anything(forward, backward, wrong):
    x, target = np.array([[wrong, 0.3], [wrong, -2.0]]), np.array([[1.0, 1.0], [0.0, 0.0]])
    alone, cache_alone = forward(x[:, 1:], target[:, 1:], 2.0)
    for weight in (np.array([0.0, 2.0]), np.array([[0.0, 2.0], [0.0, 2.0]])):
        loss, cache = forward(x, target, weight)
        assert loss == alone
        (dx,) = backward(1.0, cache)
        assert not dx[:, 0].any() and (dx[:, 1:] == backward(1.0, cache_alone)[0]).all()
    assert forward(x[:, :1], target[:, :1], 0.0)[0] == 0


@pytest.mark.filterwarnings("error")
def test_an_infinite_logit_costs_nothing_when_it_is_right_and_all_when_it_is_wrong():
    logit, target = np.array([np.inf, -np.inf, 0.0]), np.array([1.0, 0.0, 1.0])
    loss, cache = core.bce_with_logits_forward(logit, target)
    assert loss == pytest.approx(np.log(2))
    assert core.bce_with_logits_backward(1.0, cache)[0].tolist() == [0, 0, -0.5]
    loss, cache = core.bce_with_logits_forward(logit, 1 - target)
    assert loss == np.inf
    assert core.bce_with_logits_backward(1.0, cache)[0].tolist() == [1, -1, 0.5]


def test_bce_is_the_textbook_formula():
    rng = np.random.default_rng(5)
    logit, target = 3 * rng.standard_normal(50), rng.random(50)  # soft targets, too
    q = core.sigmoid(logit)
    nll = -(target * np.log(q) + (1 - target) * np.log(1 - q)).sum()
    assert core.bce_with_logits_forward(logit, target)[0] == pytest.approx(nll, rel=1e-12)


@pytest.mark.parametrize("forward, backward", LOSSES.values(), ids=LOSSES)
def test_losses_refuse_to_broadcast_by_accident(forward, backward):
    column, row = np.zeros((3, 1)), np.array([0.0, 1.0, 1.0])
    with pytest.raises(ValueError, match=r"\(3, 1\), target \(3,\)"):
        forward(column, row)
    with pytest.raises(ValueError, match=r"weight \(3,\)"):
        forward(column, column, row)
    assert forward(np.zeros((2, 3)), np.zeros((2, 3)), row)[0] >= 0  # fewer axes, on purpose
    assert forward(np.zeros((2, 3)), np.zeros((2, 3)), np.ones((2, 1)))[0] >= 0


def test_linear_refuses_to_broadcast_by_accident():
    with pytest.raises(ValueError, match=r"x \(2, 3\), w \(4, 5\), b \(5,\)"):
        core.linear_forward(np.zeros((2, 3)), np.zeros((4, 5)), np.zeros(5))
    with pytest.raises(ValueError, match=r"b \(1,\)"):
        core.linear_forward(np.zeros((2, 4)), np.zeros((4, 5)), np.zeros(1))
    with pytest.raises(ValueError, match=r"mu \(2, 3\), logvar \(3,\)"):
        core.gaussian_kl_forward(np.zeros((2, 3)), np.zeros(3))
    with pytest.raises(ValueError, match=r"noise \(3,\)"):
        core.reparameterize_forward(np.zeros((2, 3)), np.zeros((2, 3)), np.zeros(3))


def test_integers_are_refused_and_targets_of_any_kind_promoted():
    whole = np.array([[0, 16]], np.uint8)
    for call in (
        lambda: core.squared_error_forward(whole, whole),
        lambda: core.bce_with_logits_forward(whole, whole),
        lambda: core.linear_forward(whole, np.zeros((2, 3), np.uint8), np.zeros(3)),
        lambda: core.gaussian_kl_forward(whole, np.zeros((1, 2))),
        lambda: core.reparameterize_forward(np.zeros((1, 2)), whole, np.zeros((1, 2))),
        lambda: core.relu_forward(whole),
        lambda: core.sigmoid_forward(whole),
    ):
        with pytest.raises(ValueError, match="uint8"):
            call()
    x = np.zeros((1, 2), np.float32)
    loss, cache = core.squared_error_forward(x, whole, np.array([[1, 2]]))
    assert loss == 512 and core.squared_error_backward(1.0, cache)[0].tolist() == [[0, -64]]


@pytest.mark.parametrize("dtype", [np.float16, np.longdouble, np.complex128])
def test_only_float32_and_float64_are_taken(dtype):
    """float16 would overflow at 65,504."""
    x = np.full((1, 9), 200, dtype)
    with pytest.raises(ValueError, match=f"needs float32 or float64, not x {x.dtype}"):
        core.linear_forward(x, np.ones((9, 2)), np.ones(2))


@pytest.mark.filterwarnings("error")
def test_a_batch_of_none_is_no_error():
    none = np.zeros((0, 3))
    kl, cache = core.gaussian_kl_forward(none, none)
    assert kl == 0 and [d.shape for d in core.gaussian_kl_backward(1.0, cache)] == [(0, 3), (0, 3)]
    for forward, backward in LOSSES.values():
        loss, cache = forward(none, none)
        assert loss == 0 and backward(1.0, cache)[0].shape == (0, 3)
    _, cache = core.linear_forward(none, np.ones((3, 2)), np.ones(2))
    assert [d.shape for d in core.linear_backward(np.zeros((0, 2)), cache)] == [
        (0, 3),
        (3, 2),
        (2,),
    ]


@pytest.mark.parametrize("order", "CF")
def test_a_stack_of_layers_is_layer_after_layer(order):
    rng = np.random.default_rng(4)
    x, w, b = (rng.standard_normal(shape) for shape in ((2, 3, 5), (2, 5, 7), (2, 7)))
    y, cache = core.linear_forward(x, w, b, order)
    dy = rng.standard_normal(y.shape)
    together = y, *core.linear_backward(dy, cache)
    for i in range(2):
        y, cache = core.linear_forward(x[i], w[i], b[i])
        for alone, all_ in zip((y, *core.linear_backward(dy[i], cache)), together, strict=True):
            np.testing.assert_allclose(all_[i], alone, rtol=1e-12)


@pytest.mark.parametrize("name", ["vae", "mdnrnn", "controller"])
def test_models_multiply_by_no_weights_themselves(name):
    """Every layer of V, M and C goes through the op pairs."""
    tree = ast.parse(Path(vae.__file__).with_name(f"{name}.py").read_text())
    for node in ast.walk(tree):
        product = isinstance(getattr(node, "op", None), ast.MatMult)
        called = getattr(node, "attr", getattr(node, "id", ""))
        product |= called in ("matmul", "dot", "vdot", "einsum", "tensordot", "inner")
        assert not product, ast.unparse(node)


@pytest.mark.parametrize("clip", [None, 0.5])
def test_adam_is_algorithm_1_of_the_paper(clip):
    n, rng = CHUNK + 3, np.random.default_rng(2)
    adam, theta = Adam(n, clip=clip, dtype=np.float64), rng.standard_normal(n)
    expected, m, v = theta.copy(), 0.0, 0.0
    for t in range(1, 5):
        gradient, rate = rng.standard_normal(n), 0.01 / t
        adam.step(theta, gradient, rate)
        g = gradient if clip is None else np.clip(gradient, -clip, clip)
        expected, m, v = plain.adam(expected, g, m, v, t, rate)
        np.testing.assert_allclose(theta, expected, rtol=1e-12, atol=1e-12)


def test_plain_adam_by_hand():
    """The first step is the rate, against the sign of the gradient; the second by the paper's own numbers."""
    theta, m, v = plain.adam(np.zeros(2), np.array([3.0, -0.5]), 0.0, 0.0, 1, 0.1)
    np.testing.assert_allclose(theta, [-0.1, 0.1], rtol=1e-6)
    np.testing.assert_allclose(m, [0.3, -0.05])
    np.testing.assert_allclose(v, [0.009, 0.00025])
    again, _, _ = plain.adam(theta, np.array([0.0, 0.0]), m, v, 2, 0.1)
    m_hat, v_hat = 0.27 / 0.19, 0.009 * 0.999 / (1 - 0.999**2)
    assert again[0] == pytest.approx(-0.1 - 0.1 * m_hat / np.sqrt(v_hat), rel=1e-6)


@pytest.mark.filterwarnings("error")
def test_a_gradient_whose_square_overflows_is_a_step_like_any_other():
    """1e20 squared is beyond float32: a second moment of infinity would stand still for ever."""
    adam, theta = Adam(2), np.zeros(2, np.float32)
    for _ in range(5):
        adam.step(theta, np.array([1e20, -1e20], np.float32), 0.1)
    np.testing.assert_allclose(theta, [-0.5, 0.5], rtol=1e-3)
    assert np.isfinite(adam.v).all()


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
