"""M: parameter counts, the whole loss's gradient, masks and weights, acting and dreaming."""

import pickle

import numpy as np
import pytest

from wm_numpy.core.adam import Adam
from wm_numpy.core.gradcheck import check_vector, numerical_gradient, relative_error
from wm_numpy.core.ops import sigmoid
from wm_numpy.models import mdnrnn
from wm_numpy.models.mdnrnn import MDNRNN
from wm_numpy.settings.config import MDNRNNConfig
from wm_numpy.system import threads

B, T, Z, A, H, K = 3, 6, 5, 2, 7, 4
SMALL = MDNRNNConfig(
    hidden=H,
    mixtures=K,
    restart_input=True,
    done_weight=10.0,
    reward_weight=0.7,
    value_weight=0.3,
)


def make_batch(rng, b=B, dtype=np.float64):
    """Every kind of array, flags inside the sequences."""
    z, z_next = rng.standard_normal((2, b, T, Z))
    reward, value = rng.standard_normal((2, b, T))
    action = rng.standard_normal((b, T, A))
    batch = dict(z=z, z_next=z_next, action=action, reward=reward, value=value)
    names = ("done", "restart", "z_mask", "value_mask")
    odds = np.reshape([0.3, 0.3, 0.7, 0.6], (4, 1, 1))
    flags = dict(zip(names, rng.random((4, b, T)) < odds, strict=True))
    return {k: v.astype(dtype) for k, v in batch.items()} | flags


@pytest.fixture
def m():
    return MDNRNN(SMALL, Z, A, np.random.default_rng(0), np.float64)


def loss_of(m, batch):
    """theta -> loss."""

    def f(theta):
        m.params.flat[:] = theta
        return m.loss_and_grad(batch)[0]["loss"]

    return f


def test_parameter_counts_are_the_papers():
    assert MDNRNN(MDNRNNConfig(), 32, 3).params.size == 422_368
    doom = MDNRNNConfig(hidden=512, restart_input=True, done_weight=10.0)
    assert MDNRNN(doom, 64, 1).params.size == 1_678_785


def test_initial_weights():
    m = MDNRNN(MDNRNNConfig(), 32, 3, np.random.default_rng(0))
    for name, w in m.params.items():
        assert w.dtype == np.float32 and (w.any() == name.endswith(".w"))
    assert np.abs(m.params["mixture.w"]).max() <= np.sqrt(6 / (256 + 480))
    assert not MDNRNN(MDNRNNConfig(), 32, 3).params.flat.any()  # no rng: zeros


@pytest.mark.parametrize("rows", [4, 256])  # mixtures of 4 states at a time, or of all
def test_gradient_of_the_whole_loss(m, rows, monkeypatch):
    monkeypatch.setattr(mdnrnn, "ROWS", rows)
    rng = np.random.default_rng(1)
    batch = make_batch(rng)
    theta, (losses, gradient) = m.params.flat.copy(), m.loss_and_grad(batch)
    assert set(losses) == {"loss", "z", "done", "reward", "value"}
    assert losses["loss"] == pytest.approx(sum(losses.values()) - losses["loss"], rel=1e-12)
    assert check_vector(loss_of(m, batch), theta, gradient, rng) < 1e-6


@pytest.mark.parametrize(
    "name",
    ["lstm.b", "mixture.b", "done.w", "done.b", "reward.w", "reward.b", "value.w", "value.b"],
)
def test_gradient_by_element(m, name):
    """Projections dilute one wrong entry: the small parameters entry by entry."""
    batch = make_batch(np.random.default_rng(2))
    grads = type(m.params)(m.params.shapes, m.loss_and_grad(batch)[1])
    numerical = numerical_gradient(lambda: m.loss_and_grad(batch)[0]["loss"], m.params[name])
    assert relative_error(grads[name], numerical) < 1e-6


def test_gradient_without_optional_heads():
    rng = np.random.default_rng(3)
    m = MDNRNN(MDNRNNConfig(hidden=H, mixtures=K), Z, A, rng, np.float64)
    batch = {k: v for k, v in make_batch(rng).items() if k in ("z", "z_next", "action")}
    theta, (losses, gradient) = m.params.flat.copy(), m.loss_and_grad(batch)
    assert set(losses) == {"loss", "z"}  # no word of heads that M does not have
    assert check_vector(loss_of(m, batch), theta, gradient, rng) < 1e-6


def test_losses_are_means_made_from_the_heads(m):
    """All four, step by step through `step` and `predict`, by the textbook formulas."""
    batch = make_batch(np.random.default_rng(4))
    state, z, done, reward, value = m.initial_state(B), [], [], [], []
    for t in range(T):
        state = m.step(batch["z"][:, t], batch["action"][:, t], state, batch["restart"][:, t])
        y = m.predict(state[0])
        assert y.logmix.shape == y.mean.shape == y.logstd.shape == (K, Z, B)
        p = np.exp(y.logmix) / np.exp(y.logmix).sum(axis=0)
        u = (batch["z_next"][:, t].T - y.mean) / np.exp(y.logstd)
        density = p * np.exp(-u * u / 2) / np.exp(y.logstd) / np.sqrt(2 * np.pi)
        z.append(-np.log(density.sum(axis=0)).mean(axis=0))
        d, q = batch["done"][:, t], sigmoid(y.done_logit)
        done.append(np.where(d, -10 * np.log(q), -np.log(1 - q)))  # the positive class weighs 10
        reward.append(0.7 * (y.reward - batch["reward"][:, t]) ** 2)
        value.append(0.3 * (y.value - batch["value"][:, t]) ** 2)
    losses = m.loss_and_grad(batch)[0]
    assert losses["z"] == pytest.approx(np.mean(np.array(z)[batch["z_mask"].T]), rel=1e-10)
    assert losses["done"] == pytest.approx(np.mean(done), rel=1e-10)
    assert losses["reward"] == pytest.approx(np.mean(reward), rel=1e-10)
    value = np.array(value)[batch["value_mask"].T]
    assert losses["value"] == pytest.approx(np.mean(value), rel=1e-10)


def test_masked_targets_do_not_matter(m):
    batch = make_batch(np.random.default_rng(5))
    losses, gradient = m.loss_and_grad(batch)
    batch["z_next"] = np.where(batch["z_mask"][:, :, None], batch["z_next"], np.nan)
    batch["value"] = np.where(batch["value_mask"], batch["value"], np.nan)
    again, gradient_again = m.loss_and_grad(batch)
    assert losses == again
    np.testing.assert_array_equal(gradient, gradient_again)
    batch["z_mask"] = batch["value_mask"] = np.zeros((B, T))
    losses, _ = m.loss_and_grad(batch)
    assert losses["z"] == losses["value"] == 0


def test_arrays_of_another_batch_are_refused(m):
    batch = make_batch(np.random.default_rng(6))
    for name in ("done", "z_mask", "action"):
        with pytest.raises(ValueError, match=rf"{name} .*z \(3, 6, 5\)"):
            m.loss_and_grad(batch | {name: batch[name][:, :1]})


def test_a_batch_of_none_costs_nothing(m):
    batch = {name: x[:0] for name, x in make_batch(np.random.default_rng(5)).items()}
    losses, gradient = m.loss_and_grad(batch)
    assert not any(losses.values()) and not gradient.any()


def test_same_bits_on_any_number_of_threads(m, monkeypatch):
    monkeypatch.setattr(mdnrnn, "PIECE", 4)  # 11 sequences: 4 + 4 + 3
    rng = np.random.default_rng(7)
    m = MDNRNN(SMALL, Z, A, rng)
    batch = make_batch(rng, 11, np.float32)
    results, before = [], threads.workers()
    try:
        for n in (1, 2, 3):
            threads.set_workers(n)
            results += [m.loss_and_grad(batch), m.loss_and_grad(batch)]
    finally:
        threads.set_workers(before)
    assert all(losses == results[0][0] for losses, _ in results)
    assert all(gradient.tobytes() == results[0][1].tobytes() for _, gradient in results)
    assert results[0][1].dtype == np.float32


def test_adam_lowers_the_loss():
    rng = np.random.default_rng(8)
    m = MDNRNN(SMALL, Z, A, rng)
    batch, adam = make_batch(rng, dtype=np.float32), Adam(m.params.size, clip=1.0)
    first = m.loss_and_grad(batch)[0]
    for _ in range(40):
        adam.step(m.params.flat, m.loss_and_grad(batch)[1], 1e-2)
    last = m.loss_and_grad(batch)[0]
    assert all(last[name] < 0.9 * first[name] for name in first)


# -------------------------------------------------------------------------------------- acting and dreaming


def test_state_belongs_to_the_caller(m):
    """A state is not changed by later steps, nor by training on the same thread."""
    rng = np.random.default_rng(9)
    z, action = rng.standard_normal((4, Z)), rng.standard_normal((4, A))
    first = m.step(z, action, m.initial_state(4))
    kept = [part.copy() for part in first]
    m.step(z, action, first)
    m.loss_and_grad(make_batch(rng))
    for part, copy in zip(first, kept, strict=True):
        np.testing.assert_array_equal(part, copy)


def test_restart_is_an_input_and_zeroes_the_state(m):
    rng = np.random.default_rng(10)
    z, action, state = (
        rng.standard_normal((2, Z)),
        rng.standard_normal((2, A)),
        tuple(rng.standard_normal((2, 2, H))),
    )
    restarted = m.step(z, action, state, np.array([1, 0]))
    plain, fresh = m.step(z, action, state), m.step(z, action, m.initial_state(2), np.array([1, 1]))
    np.testing.assert_allclose(restarted[0], [fresh[0][0], plain[0][1]], rtol=1e-12)
    assert not np.allclose(fresh[0], m.step(z, action, m.initial_state(2))[0])  # the flag is seen


def noise(rng, n):
    """uniform, normal (n, Z)."""
    return rng.random((n, Z)), rng.standard_normal((n, Z))


def test_dream_tells_the_heads_of_its_state(m):
    rng = np.random.default_rng(11)
    h, _ = m.step(rng.standard_normal((50, Z)), rng.standard_normal((50, A)), m.initial_state(50))
    z, reward, done_logit = m.dream(h, 1.0, *noise(rng, 50))
    y = m.predict(h)
    assert z.shape == (50, Z)
    np.testing.assert_array_equal(reward, y.reward)
    np.testing.assert_array_equal(done_logit, y.done_logit)


def test_dream_without_heads():
    m = MDNRNN(MDNRNNConfig(hidden=H, mixtures=K), Z, A, np.random.default_rng(12))
    uniform, normal = (x.astype(np.float32) for x in noise(np.random.default_rng(13), 3))
    z, reward, done_logit = m.dream(m.initial_state(3)[0], 1.0, uniform, normal)
    assert z.dtype == np.float32 and z.shape == (3, Z)
    assert reward is None and done_logit is None


def test_dream_samples_the_head_of_its_state(m):
    """Row n is drawn from row n's mixture: at a tiny tau it is the mean of the likeliest component."""
    rng = np.random.default_rng(14)
    state = tuple(rng.standard_normal((2, 6, H)))
    y = m.predict(state[0])
    expected = np.take_along_axis(y.mean, y.logmix.argmax(axis=0)[None], 0)[0].T
    np.testing.assert_allclose(m.dream(state[0], 1e-12, *noise(rng, 6))[0], expected, atol=1e-4)
    uniform, normal = noise(rng, 6)
    whole = m.dream(state[0], 1.0, uniform, normal)[0]
    rows = [slice(i, i + 1) for i in range(6)]
    alone = [m.dream(state[0][row], 1.0, uniform[row], normal[row])[0] for row in rows]
    np.testing.assert_allclose(np.concatenate(alone), whole, rtol=1e-10)  # a row has its own noise


def test_pickled_copy_is_the_same(m):
    copy = pickle.loads(pickle.dumps(m))
    batch = make_batch(np.random.default_rng(15))
    assert copy.loss_and_grad(batch)[0] == m.loss_and_grad(batch)[0]
