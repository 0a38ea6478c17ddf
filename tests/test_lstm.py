"""The LSTM pair: gradients, steps against sequences, restarts, and PyTorch's values."""

from pathlib import Path

import numpy as np
import pytest

from wm_numpy.core import lstm
from wm_numpy.core.gradcheck import check_pair, relative_error
from wm_numpy.core.lstm import lstm_backward, lstm_forward

FIXTURE = Path(__file__).parent / "fixtures" / "m_lstm.npz"
T, B, I, H = 4, 2, 5, 7
RESTART = np.array([[0, 1], [1, 0], [0, 0], [0, 1]])


def make(rng, T=T):
    """x, h0, c0, w, b: everything away from zero, the carried state too."""
    shapes = (T, B, I), (B, H), (B, H), (I + H, 4 * H), (4 * H,)
    return [
        rng.standard_normal(s) * scale for s, scale in zip(shapes, (1, 1, 1, 0.5, 1), strict=True)
    ]


@pytest.mark.parametrize("restart", [None, RESTART], ids=["plain", "restart"])
@pytest.mark.parametrize("block", [1, 3 * B, 800])  # steps per block: 1, 3 (uneven), all
def test_gradient(restart, block, monkeypatch):
    monkeypatch.setattr(lstm, "BLOCK", block)
    rng = np.random.default_rng(0)
    assert check_pair(lstm_forward, lstm_backward, *make(rng), rng=rng, constants=(restart,)) < 1e-6


def test_restart_clears_a_state_that_is_no_number():
    """It chooses, it does not multiply: 0 * nan is nan."""
    rng = np.random.default_rng(7)
    x, h0, c0, w, b = make(rng)
    restart = np.zeros((T, B))
    restart[0] = 1
    inputs = x, np.full_like(h0, np.nan), np.full_like(c0, np.nan), w, b
    (h, c), cache = lstm_forward(*inputs, restart)
    (h2, c2), cache2 = lstm_forward(x, 0 * h0, 0 * c0, w, b)
    np.testing.assert_array_equal(h, h2)
    np.testing.assert_array_equal(c, c2)
    dx, dh0, dc0, *rest = lstm_backward((h, c), cache)
    dx2, _, _, *rest2 = lstm_backward((h, c), cache2)
    assert not dh0.any() and not dc0.any()
    for a, b_ in zip((dx, *rest), (dx2, *rest2), strict=True):
        np.testing.assert_array_equal(a, b_)


def test_shapes_that_do_not_fit_are_refused():
    x, h0, c0, w, b = make(np.random.default_rng(8))
    with pytest.raises(ValueError, match=r"h0 \(1, 7\), c0 \(2, 7\)"):
        lstm_forward(x, h0[:1], c0, w, b)
    with pytest.raises(ValueError, match=r"w \(11, 28\)"):
        lstm_forward(x, h0, c0, w[1:], b)
    with pytest.raises(ValueError, match=r"restart \(4, 1\)"):
        lstm_forward(x, h0, c0, w, b, RESTART[:, :1])
    with pytest.raises(ValueError, match="int64"):
        lstm_forward(x.astype(np.int64), h0, c0, w, b)


def test_step_by_step_is_the_whole_sequence():
    rng = np.random.default_rng(1)
    x, h0, c0, w, b = make(rng)
    dh, dc = rng.standard_normal((T, B, H)), rng.standard_normal((B, H))
    (h, c), cache = lstm_forward(x, h0, c0, w, b, RESTART)
    whole = lstm_backward((dh, dc), cache)

    state, caches = (h0, c0), []
    for t in range(T):
        (h_t, c_t), step_cache = lstm_forward(x[t : t + 1], *state, w, b, RESTART[t : t + 1])
        np.testing.assert_allclose(h_t[0], h[t], rtol=1e-12)
        state = h_t[0], c_t
        caches.append(step_cache)
    np.testing.assert_allclose(state[1], c, rtol=1e-12)

    dx, dw, db, dh_next, dc_next = np.empty_like(x), 0, 0, np.zeros((B, H)), dc
    for t in reversed(range(T)):
        dy = (dh[t : t + 1] + dh_next, dc_next)
        dx[t : t + 1], dh_next, dc_next, dw_t, db_t = lstm_backward(dy, caches[t])
        dw, db = dw + dw_t, db + db_t
    for a, b_ in zip((dx, dh_next, dc_next, dw, db), whole, strict=True):
        assert relative_error(a, b_) < 1e-12


def test_restart_forgets_all_that_was_before():
    rng = np.random.default_rng(2)
    x, h0, c0, w, b = make(rng)
    (h, c), _ = lstm_forward(x, h0, c0, w, b, RESTART)
    zeros = np.zeros((1, H))
    # Sequence 0 starts again at step 1.
    (alone, c_alone), _ = lstm_forward(x[1:, :1], zeros, zeros, w, b)
    np.testing.assert_allclose(h[1:, :1], alone, rtol=1e-12)
    np.testing.assert_allclose(c[:1], c_alone, rtol=1e-12)
    (plain, _), _ = lstm_forward(x, h0, c0, w, b)
    np.testing.assert_array_equal(h[0, 0], plain[0, 0])  # and not before


def test_forget_bias_is_one():
    """With zero weights c_1 = sigmoid(1) c_0, h_1 = tanh(c_1) / 2."""
    c0 = np.array([[2.0, -3.0]])
    (h, c), _ = lstm_forward(
        np.ones((1, 1, 1)), np.zeros((1, 2)), c0, np.zeros((3, 8)), np.zeros(8)
    )
    np.testing.assert_allclose(c, c0 / (1 + np.exp(-1)), rtol=1e-14)
    np.testing.assert_allclose(h[0], np.tanh(c) / 2, rtol=1e-14)


def test_scratch_space_changes_no_number():
    rng = np.random.default_rng(3)
    for steps in (4, 2, 3):  # smaller, and larger again
        inputs = make(rng, steps)
        dy = rng.standard_normal((steps, B, H)), rng.standard_normal((B, H))
        (h, c), cache = lstm_forward(*inputs, RESTART[:steps])
        (h2, c2), cache2 = lstm_forward(*inputs, RESTART[:steps], reuse=True)
        plain = (h, c, *lstm_backward(dy, cache))
        reused = (h2, c2, *lstm_backward(dy, cache2))
        for a, b in zip(plain, reused, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("steps, batch", [(4, 0), (0, 2)])
def test_no_sequences_and_no_steps(steps, batch):
    x, h0, c0, w, b = make(np.random.default_rng(9))
    inputs = x[:steps, :batch], h0[:batch], c0[:batch], w, b
    (h, c), cache = lstm_forward(*inputs, RESTART[:steps, :batch])
    dx, dh0, dc0, dw, db = lstm_backward((h, np.ones_like(c)), cache)
    assert h.shape == (steps, batch, H) and (c == c0[:batch]).all() and not dw.any()
    for d, x in zip((dx, dh0, dc0, dw, db), inputs, strict=True):
        assert d.shape == x.shape


def test_far_inputs_stay_finite():
    rng = np.random.default_rng(4)
    x, h0, c0, w, b = (a.astype(np.float32) for a in make(rng))
    (h, c), cache = lstm_forward(x * 1e4, h0, c0, w, b)
    assert h.dtype == c.dtype == np.float32
    for g in (h, c, *lstm_backward((h, c), cache)):
        assert g.dtype == np.float32 and np.isfinite(g).all()


# ------------------------------------------------------------------------ the fixture, made once by PyTorch


def make_fixture():
    """PyTorch's LSTMCell in float64 (gates i f g o), its state multiplied by 1 - restart before each step."""
    import torch

    rng = np.random.default_rng(5)
    inputs = make(rng)
    x, h0, c0, w, b = leaves = [torch.tensor(a, requires_grad=True) for a in inputs]
    i, f, o, g = torch.arange(4 * H).split(H)
    order = torch.cat([i, f, g, o])  # ours is i f o g
    bias = b + torch.cat([torch.zeros(H), torch.ones(H), torch.zeros(2 * H)])
    cell = torch.nn.LSTMCell(I, H, dtype=torch.float64)
    weights = {
        "weight_ih": w[:I].T[order],
        "weight_hh": w[I:].T[order],
        "bias_ih": bias[order],
        "bias_hh": torch.zeros(4 * H, dtype=torch.float64),
    }
    h, c, hs = h0, c0, []
    for t in range(T):
        keep = torch.tensor(1.0 - RESTART[t])[:, None]
        h, c = torch.func.functional_call(cell, weights, (x[t], (h * keep, c * keep)))
        hs.append(h)
    dh, dc = rng.standard_normal((T, B, H)), rng.standard_normal((B, H))
    gradients = torch.autograd.grad(
        [torch.stack(hs), c], leaves, [torch.tensor(dh), torch.tensor(dc)]
    )
    names = "x", "h0", "c0", "w", "b"
    out = dict(zip(names, inputs, strict=True)) | {"restart": RESTART, "dh": dh, "dc": dc}
    out |= {"h": torch.stack(hs).detach().numpy(), "c": c.detach().numpy()}
    out |= {
        "grad_" + name: gradient.numpy() for name, gradient in zip(names, gradients, strict=True)
    }
    return out | {"torch_version": np.array(torch.__version__)}


def test_equals_pytorch():
    with np.load(FIXTURE, allow_pickle=False) as stored:
        f = dict(stored)
    (h, c), cache = lstm_forward(*(f[name] for name in ("x", "h0", "c0", "w", "b", "restart")))
    np.testing.assert_allclose(h, f["h"], rtol=1e-10)
    np.testing.assert_allclose(c, f["c"], rtol=1e-10)
    gradients = lstm_backward((f["dh"], f["dc"]), cache)
    for name, gradient in zip(("x", "h0", "c0", "w", "b"), gradients, strict=True):
        assert relative_error(gradient, f["grad_" + name]) < 1e-10, name


def test_fixture_is_what_pytorch_says():
    pytest.importorskip("torch")
    with np.load(FIXTURE, allow_pickle=False) as stored:
        for name, array in make_fixture().items():
            if name != "torch_version":
                np.testing.assert_allclose(array, stored[name], rtol=1e-9, atol=1e-12, err_msg=name)
