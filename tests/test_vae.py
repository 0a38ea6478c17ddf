"""V: the paper's sizes, PyTorch's values, gradients, and what a gradient check cannot see."""

from pathlib import Path

import numpy as np
import pytest

from tests.fixtures import make_vae
from wm_numpy.core.adam import Adam
from wm_numpy.core.gradcheck import check_vector, relative_error
from wm_numpy.models.vae import VAE
from wm_numpy.settings.config import VAEConfig
from wm_numpy.system import threads

FIXTURE = Path(__file__).parent / "fixtures" / "vae.npz"


def filled(dtype=np.float64, **settings) -> VAE:
    v = VAE(VAEConfig(z_size=32, **settings), dtype=dtype)
    make_vae.fill(v.params)
    return v


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.mark.parametrize(("z_size", "count"), [(32, 4_348_547), (64, 4_446_915)])
def test_parameter_counts_of_the_paper(z_size, count):
    assert VAE(VAEConfig(z_size=z_size)).params.size == count


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-10), (np.float32, 1e-4)])
def test_against_pytorch(dtype, tolerance):
    """Encoder, decoder, loss and every parameter's gradient, from the frozen fixture."""
    v = filled(dtype)
    frames, noise = make_vae.batch()
    with np.load(FIXTURE, allow_pickle=False) as f:
        want = dict(f)
    mu, logvar = v.encode(frames)
    losses, gradient = v.loss_and_grad(frames, noise)
    grads = type(v.params)(v.params.shapes, gradient)
    got = {"mu": mu, "logvar": logvar, "decoded": v.decode(want["z"])[:, ::5, ::7]}
    got["losses"] = np.array([losses["reconstruction"], losses["kl"]])
    got |= {"grad." + name: make_vae.samples(name, g) for name, g in grads.items()}
    for name, value in got.items():
        assert relative_error(value, want[name]) < tolerance, name
    assert losses["loss"] == pytest.approx(losses["reconstruction"] + losses["kl"])
    assert mu.dtype == gradient.dtype == dtype
    assert len(got) == len(v.params) + 4


def test_fixture_is_what_pytorch_says():
    pytest.importorskip("torch")
    fresh = make_vae.reference(filled().params)
    with np.load(FIXTURE, allow_pickle=False) as f:
        assert set(f.files) == set(fresh)
        for name in set(fresh) - {"torch_version"}:
            assert relative_error(fresh[name], f[name]) < 1e-10, name


@pytest.mark.parametrize(("kl_tolerance", "kl_weight"), [(0.0, 1.0), (100.0, 1.0), (0.0, 30.0)])
def test_gradient_of_every_parameter(rng, kl_tolerance, kl_weight):
    """Central differences of the whole loss, one parameter array at a time.

    Half of each direction lies along the gradient, for a slope well above rounding; half is random, for what
    the gradient may have missed. Floors in nats per dim: all frames lie above the one, all under the other.
    """
    v = filled(kl_tolerance=kl_tolerance, kl_weight=kl_weight)
    frames, noise = make_vae.batch()
    losses, gradient = v.loss_and_grad(frames, noise)
    assert (losses["kl"] == 3200) == (kl_tolerance > 0)
    for name, g in type(v.params)(v.params.shapes, gradient).items():
        w, step = v.params[name], 1e-6
        random = rng.standard_normal(w.shape)
        direction = g / np.linalg.norm(g) + random / np.linalg.norm(random)
        kept = w.copy()
        w[...] = kept + step * direction
        above = v.loss_and_grad(frames, noise)[0]["loss"]
        w[...] = kept - step * direction
        below = v.loss_and_grad(frames, noise)[0]["loss"]
        w[...] = kept
        assert (above - below) / (2 * step) == pytest.approx(np.vdot(g, direction), rel=1e-5), name


def test_loss_sums_over_pixels_and_averages_over_frames(rng):
    v = filled()
    frames, noise = make_vae.batch(5)
    losses, gradient = v.loss_and_grad(frames, noise)
    mu, logvar = v.encode(frames)
    y = v.decode(mu + np.exp(logvar / 2) * noise)
    error = ((y - frames / 255) ** 2).sum(axis=(1, 2, 3)).mean()
    assert losses["reconstruction"] == pytest.approx(error)
    kl = 0.5 * (mu**2 + np.exp(logvar) - 1 - logvar).sum(axis=1)
    assert losses["kl"] == pytest.approx(np.maximum(kl, 0.5 * 32).mean())
    twice, gradient2 = v.loss_and_grad(
        np.concatenate([frames, frames]), np.concatenate([noise, noise])
    )
    assert twice["loss"] == pytest.approx(losses["loss"])
    assert relative_error(gradient, gradient2) < 1e-12


def test_the_kl_can_weigh_less():
    """The loss is linear in the weight, and so is its gradient: what weight 2 adds to weight 1, 0 lacks."""
    frames, noise = make_vae.batch(5)
    (none, g0), (one, g1), (two, g2) = (
        filled(kl_weight=w).loss_and_grad(frames, noise) for w in (0, 1, 2)
    )
    assert none["loss"] == none["reconstruction"] and none["kl"] == one["kl"] == two["kl"]
    assert two["loss"] - one["loss"] == pytest.approx(one["kl"])
    assert relative_error(g2 - g1, g1 - g0) < 1e-8 < np.abs(g1 - g0).max()


def test_free_bits_on_both_sides():
    frames, noise = make_vae.batch(5)
    kl = filled(kl_tolerance=0).loss_and_grad(frames, noise)[0]["kl"] / 32  # nats per dim
    above, without = (filled(kl_tolerance=f).loss_and_grad(frames, noise) for f in (kl / 100, 0))
    assert above[0]["kl"] == without[0]["kl"]
    assert (above[1] == without[1]).all()
    under, far = (filled(kl_tolerance=f).loss_and_grad(frames, noise) for f in (100 * kl, 200 * kl))
    assert under[0]["kl"] == pytest.approx(32 * 100 * kl)
    assert (under[1] == far[1]).all()  # the floor itself has no gradient
    assert not np.allclose(under[1], without[1])


def test_bytes_equal_floats():
    v = filled(np.float32)
    frames, noise = make_vae.batch()
    floats = frames.astype(np.float32) / 255
    assert all((a == b).all() for a, b in zip(v.encode(frames), v.encode(floats), strict=True))
    (a, da), (b, db) = v.loss_and_grad(frames, noise), v.loss_and_grad(floats, noise)
    assert a == b
    assert (da == db).all()


@pytest.mark.parametrize(
    "shape", [(2, 84, 84, 3), (2, 65, 65, 3), (2, 64, 64, 1), (64, 64, 3), (2, 3, 64, 64)]
)
def test_frames_of_another_size_are_refused(shape):
    v = filled(np.float32)
    for call in (v.encode, lambda frames: v.loss_and_grad(frames, np.zeros((len(frames), 32)))):
        with pytest.raises(ValueError, match=r"\(N, 64, 64, 3\).*" + str(shape)[1:-1]):
            call(np.zeros(shape, np.uint8))


@pytest.mark.parametrize("dtype", [np.int64, bool, np.uint16])
def test_frames_as_other_integers_are_refused(dtype):
    with pytest.raises(ValueError, match=np.dtype(dtype).name):
        filled(np.float32).encode(np.zeros((2, 64, 64, 3), dtype))


def test_noise_of_another_batch_is_refused():
    frames, noise = make_vae.batch(3)
    for other in (noise[:, :16], noise[:2], np.tile(noise, (2, 1))):
        with pytest.raises(ValueError, match=r"noise.*\(3, 32\)"):
            filled().loss_and_grad(frames, other)


def test_same_bits_on_any_number_of_threads(rng):
    v = VAE(VAEConfig(z_size=32), rng)
    frames, noise = make_vae.batch(60)
    kept, results = threads.workers(), []
    try:
        for n in (1, 2, 5):
            threads.set_workers(n)
            losses, gradient = v.loss_and_grad(frames, noise)
            losses = np.array(list(losses.values()))
            results.append([losses, gradient, *v.encode(frames), v.decode(noise)])
    finally:
        threads.set_workers(kept)
    for other in results[1:]:
        assert all((a == b).all() for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("n", [0, 1, 2, 19, 41])
def test_any_number_of_frames(rng, n):
    """A frame's code and picture are its own, whatever stands beside it."""
    v = filled(np.float32)
    frames, noise = make_vae.batch(n)
    mu, logvar = v.encode(frames)
    pictures = v.decode(noise)
    assert mu.shape == logvar.shape == (n, 32)
    assert pictures.shape == (n, 64, 64, 3)
    for i in range(0, n, 10):
        np.testing.assert_allclose(
            v.encode(frames[i : i + 1])[0], mu[i : i + 1], rtol=1e-3, atol=1e-4
        )
        np.testing.assert_allclose(v.decode(noise[i : i + 1]), pictures[i : i + 1], atol=1e-5)


def test_the_foreground_counts_more(rng):
    """The loss is of the weighted error, the reconstruction that it tells is not; the gradient is the loss's."""
    v = filled(foreground=150.0)
    frames, noise = make_vae.batch()
    others = rng.integers(0, 256, (7, 64, 64, 3), np.uint8)
    v.centre(others)
    mean = others.mean(axis=0) / 255
    weight = 1 + 150 * np.mean((frames / 255 - mean) ** 2, axis=3)  # (3, 64, 64)
    losses, gradient = v.loss_and_grad(frames, noise)
    plain, _ = filled().loss_and_grad(frames, noise)
    mu, logvar = v.encode(frames)
    error = (v.decode(mu + np.exp(logvar / 2) * noise) - frames / 255) ** 2
    expected = (error * weight[..., None]).sum(axis=(1, 2, 3)).mean()
    assert losses["loss"] - losses["kl"] == pytest.approx(expected)
    assert losses["reconstruction"] == pytest.approx(plain["reconstruction"])
    at = v.params.flat.copy()

    def loss(theta):
        v.params.flat[:] = theta
        return v.loss_and_grad(frames, noise)[0]["loss"]

    assert check_vector(loss, at, gradient, rng, directions=2) < 1e-6


def test_the_better_start(rng):
    """Signals keep their size through the layers, and the mean colour is zero to the first of them."""
    v = VAE(VAEConfig(z_size=32, start="he"), rng)
    assert v.params["conv2.w"].std() == pytest.approx(1 / np.sqrt(16 * 32), rel=0.02)
    assert v.params["deconv1.w"].std() == pytest.approx(1 / np.sqrt(1024), rel=0.02)
    assert v.params["deconv3.w"].std() == pytest.approx(1 / np.sqrt(36 * 64 / 4), rel=0.02)
    assert np.abs(v.params["mu.w"]).max() <= np.sqrt(6 / (1024 + 32))
    colour = np.array([25, 153, 76], np.uint8)
    grey = np.broadcast_to(colour, (1, 64, 64, 3))
    v.centre(grey)
    assert np.abs(v.encode(grey)[0]).max() < 1e-5
    plain = VAE(VAEConfig(z_size=32), rng)
    plain.centre(grey)
    assert not plain.params["conv1.b"].any()


def test_a_clear_start_has_less_noise_and_the_weights_of_he():
    he, clear = (VAE(VAEConfig(start=start), np.random.default_rng(0)) for start in ("he", "clear"))
    _, logvar = clear.encode(np.zeros((3, 64, 64, 3), np.uint8))
    np.testing.assert_array_equal(logvar, -1)
    clear.params["logvar.b"][...] = 0
    np.testing.assert_array_equal(clear.params.flat, he.params.flat)


def test_initial_weights(rng):
    v = VAE(VAEConfig(z_size=32), rng)
    for name, w in v.params.items():
        assert (np.abs(w).max() == 0) == name.endswith(".b")
    limit = np.sqrt(6 / (16 * (32 + 64)))  # Glorot: kernel 4x4, 32 to 64 channels
    assert 0.99 * limit < np.abs(v.params["conv2.w"]).max() <= limit
    assert v.params["conv2.w"].std() == pytest.approx(limit / np.sqrt(3), rel=0.02)


def test_learns(rng):
    """Adam lowers the loss of discs on a plain ground, and V reconstructs them."""
    row, column = np.mgrid[:64, :64]
    centres = rng.integers(16, 48, (12, 2))
    inside = (row - centres[:, :1, None]) ** 2 + (column - centres[:, 1:, None]) ** 2 < 100
    frames = np.where(inside[..., None], [230, 60, 40], [40, 120, 60]).astype(np.uint8)
    v = VAE(VAEConfig(z_size=32), rng)
    adam, history = Adam(v.params.size), []
    for _ in range(30):
        losses, gradient = v.loss_and_grad(frames, rng.standard_normal((12, 32)))
        adam.step(v.params.flat, gradient, 1e-3)
        history.append(losses["reconstruction"])
    assert history[-1] < 0.5 * history[0]
