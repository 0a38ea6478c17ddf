"""The mixture density: its gradient, what a gradient check cannot see, its sampler, and PyTorch's values."""

from pathlib import Path

import numpy as np
import pytest

from wm_numpy.core.gradcheck import check_pair, relative_error
from wm_numpy.core.mixture import (
    mixture_nll_backward,
    mixture_nll_forward,
    sample_mixture,
)

FIXTURE = Path(__file__).parent / "fixtures" / "m_mixture.npz"
K, Z, N = 4, 5, 3


def make(rng):
    """logmix, mean, logstd (K, Z, N), target (Z, N), weight (N,)."""
    logmix, mean, logstd = rng.standard_normal((3, K, Z, N))
    return logmix, mean, logstd, rng.standard_normal((Z, N)), rng.random(N)


def test_gradient():
    rng = np.random.default_rng(0)
    logmix, mean, logstd, target, weight = make(rng)
    for w in (1.0, weight, rng.random((Z, N))):
        pair = mixture_nll_forward, mixture_nll_backward
        assert check_pair(*pair, logmix, mean, logstd, rng=rng, constants=(target, w)) < 1e-6


def test_one_component_is_a_gaussian():
    rng = np.random.default_rng(1)
    logmix, mean, logstd, target, _ = make(rng)
    logmix, mean, logstd = logmix[:1], mean[:1], logstd[:1]
    nll, _ = mixture_nll_forward(logmix, mean, logstd, target)
    std = np.exp(logstd)
    density = np.exp(-((target - mean) ** 2) / (2 * std**2)) / np.sqrt(2 * np.pi * std**2)
    np.testing.assert_allclose(nll, -np.log(density).sum(), rtol=1e-12)


def test_density_integrates_to_one():
    rng = np.random.default_rng(2)
    logmix, mean, logstd = 2 * rng.standard_normal((3, K, 1)) / [[[1]], [[1]], [[4]]]
    grid = np.linspace(-30, 30, 20001)
    density = [np.exp(-mixture_nll_forward(logmix, mean, logstd, np.array([x]))[0]) for x in grid]
    np.testing.assert_allclose(np.sum(density) * (grid[1] - grid[0]), 1, rtol=1e-9)


def test_target_sixty_sigma_away_stays_finite():
    logmix, mean, logstd = np.zeros((3, K, 1), np.float32)
    nll, cache = mixture_nll_forward(logmix, mean, logstd, np.array([60], np.float32))
    np.testing.assert_allclose(nll, 60**2 / 2 + 0.5 * np.log(2 * np.pi), rtol=1e-5)
    dlogmix, dmean, dlogstd = mixture_nll_backward(1, cache)
    np.testing.assert_allclose(dmean[:, 0], -60 / K, rtol=1e-5)
    np.testing.assert_allclose(dlogstd[:, 0], (1 - 60**2) / K, rtol=1e-5)
    target = np.zeros(1, np.float32)
    nll, _ = mixture_nll_forward(logmix + 500, mean, logstd, target)  # far logits are no better
    np.testing.assert_allclose(nll, 0.5 * np.log(2 * np.pi), rtol=1e-3)


def test_weight_zero_takes_a_target_out():
    rng = np.random.default_rng(3)
    logmix, mean, logstd, target, _ = make(rng)
    nll, cache = mixture_nll_forward(logmix, mean, logstd, target, np.array([1.0, 0, 1]))
    kept, _ = mixture_nll_forward(*(a[..., [0, 2]] for a in (logmix, mean, logstd, target)))
    np.testing.assert_allclose(nll, kept, rtol=1e-12)
    for d in mixture_nll_backward(1, cache):
        assert (d[..., 1] == 0).all() and (d[..., 0] != 0).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("logstd", [-45, -100, -1000])
def test_a_component_as_narrow_as_a_needle_has_a_gradient(dtype, logstd):
    """Where it misses the target its posterior is 0, and so is its gradient; where it hits, all is its own."""
    logmix, mean, logstds = np.zeros((3, 2, 1), dtype)
    logstds[0] = logstd
    with np.errstate(all="raise", under="ignore"):
        nll, cache = mixture_nll_forward(logmix, mean, logstds, np.ones(1, dtype))
        gradients = mixture_nll_backward(1.0, cache)
    assert nll == pytest.approx(0.5 + np.log(2) + 0.5 * np.log(2 * np.pi), rel=1e-6)
    np.testing.assert_allclose(np.ravel(gradients), [0.5, -0.5, 0, -1, 0, 0], atol=1e-6)
    hit, cache = mixture_nll_forward(logmix, mean, logstds, np.zeros(1, dtype))
    assert hit == pytest.approx(logstd + np.log(2) + 0.5 * np.log(2 * np.pi), rel=1e-5)
    assert np.isfinite(np.ravel(mixture_nll_backward(1.0, cache))).all()


def test_a_target_that_is_no_number_counts_nothing_at_weight_zero():
    rng = np.random.default_rng(8)
    logmix, mean, logstd, target, _ = make(rng)
    weight = np.array([1.0, 0.0, 1.0])
    nll, cache = mixture_nll_forward(logmix, mean, logstd, target, weight)
    target[:, 1] = np.nan
    again, cache_again = mixture_nll_forward(logmix, mean, logstd, target, weight)
    assert nll == again
    np.testing.assert_array_equal(
        mixture_nll_backward(1, cache), mixture_nll_backward(1, cache_again)
    )


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("which", range(3))  # logmix, mean, logstd
@pytest.mark.filterwarnings("ignore:invalid value")
def test_a_prediction_that_is_no_number_counts_nothing_at_weight_zero(wrong, which):
    *parts, target, _ = make(np.random.default_rng(8))
    weights = np.array([1.0, 0.0, 1.0]), np.ones((Z, N)) * [1.0, 0.0, 1.0]
    nll, cache = mixture_nll_forward(*parts, target, weights[0])
    gradients = mixture_nll_backward(1, cache)
    parts[which][1, :, 1] = wrong
    for weight in weights:
        again, cache = mixture_nll_forward(*parts, target, weight)
        assert nll == again
        np.testing.assert_array_equal(mixture_nll_backward(1, cache), gradients)
    if np.isnan(wrong):  # and where it counts, it is seen
        assert np.isnan(mixture_nll_forward(*parts, target, 1.0)[0])


def test_shapes_that_would_broadcast_by_accident_are_refused():
    logmix, mean, logstd, target, _ = make(np.random.default_rng(9))
    with pytest.raises(ValueError, match=r"mean \(4, 5, 3\).*target \(1, 3\)"):
        mixture_nll_forward(logmix, mean, logstd, target[:1])
    with pytest.raises(ValueError, match=r"logmix \(1, 5, 3\), mean \(4, 5, 3\)"):
        mixture_nll_forward(logmix[:1], mean, logstd, target)
    with pytest.raises(ValueError, match=r"normal \(1, 3\)"):
        sample_mixture(logmix, mean, logstd, 1.0, target, target[:1])
    with pytest.raises(ValueError, match="int64"):
        mixture_nll_forward(logmix, mean.astype(np.int64), logstd, target)


# ---------------------------------------------------------------------------------------------- the sampler

LOGMIX = np.array([0.3, -0.5, 1.0])
MEAN = np.array([-100.0, 0.0, 100.0])
LOGSTD = np.array([0.5, -1.0, 0.1])
DRAWS = 200_000


def draw(tau, dtype=np.float32):
    """DRAWS samples, and which of the three components (far apart) each is from."""
    inputs = (np.repeat(a[:, None], DRAWS, 1).astype(dtype) for a in (LOGMIX, MEAN, LOGSTD))
    rng = np.random.default_rng(4)
    z = sample_mixture(*inputs, tau, rng.random(DRAWS, dtype), rng.standard_normal(DRAWS, dtype))
    assert z.dtype == dtype and z.shape == (DRAWS,)
    return z, np.rint(z / 100).astype(int) + 1


@pytest.mark.parametrize("tau", [0.5, 1.0, 1.3])
def test_sampler_statistics(tau):
    """Frequencies softmax(logmix / tau), means, std = exp(logstd) sqrt(tau): within 5 standard errors."""
    z, component = draw(tau)
    p = np.exp(LOGMIX / tau) / np.exp(LOGMIX / tau).sum()
    for k in range(3):
        mine = z[component == k].astype(float)
        assert abs(len(mine) / DRAWS - p[k]) < 5 * np.sqrt(p[k] * (1 - p[k]) / DRAWS)
        std = np.exp(LOGSTD[k]) * np.sqrt(tau)
        assert abs(mine.mean() - MEAN[k]) < 5 * std / np.sqrt(len(mine))
        assert abs(mine.std() / std - 1) < 5 / np.sqrt(2 * len(mine))


def test_sampler_draws_one_component_per_entry():
    """Two dims of the same row choose independently; entries take their own parameters."""
    rng = np.random.default_rng(5)
    logmix = np.zeros((2, 2, 50_000), np.float32)
    mean = np.broadcast_to(np.array([[-100], [100]], np.float32)[:, :, None], logmix.shape).copy()
    mean[:, 1] *= 3
    uniform = rng.random((2, 50_000))
    normal = rng.standard_normal((2, 50_000))
    z = sample_mixture(logmix, mean, logmix, 1.0, uniform, normal)
    assert (np.rint(np.abs(z) / 100) == [[1], [3]]).all()
    assert abs(np.corrcoef(np.sign(z))[0, 1]) < 5 / np.sqrt(50_000)


def test_more_components_than_fit_a_byte():
    K, rng = 700, np.random.default_rng(10)
    mean = np.arange(K, dtype=np.float64)[:, None] * np.ones(1000)
    flat = np.zeros_like(mean)
    uniform = rng.random(1000)
    z = sample_mixture(flat, mean, flat - 50, 1.0, uniform, rng.standard_normal(1000))
    np.testing.assert_allclose(z, np.floor(uniform * K), atol=1e-9)


def test_sampler_at_low_temperature_is_the_likeliest_component():
    logmix = np.array([[0.0, 80.0], [50.0, 0.0]], np.float32)
    mean = np.array([[1, 2], [3, 4]], np.float32)
    rng = np.random.default_rng(6)
    z = sample_mixture(
        logmix, mean, np.zeros_like(mean), 1e-6, rng.random(2), rng.standard_normal(2)
    )
    np.testing.assert_allclose(z, [3, 2], atol=0.01)


# ------------------------------------------------------------------------ the fixture, made once by PyTorch


def make_fixture():
    """log_prob of torch.distributions.MixtureSameFamily in float64."""
    import torch
    from torch.distributions import Categorical, MixtureSameFamily, Normal

    inputs = make(np.random.default_rng(7))
    logmix, mean, logstd = leaves = [torch.tensor(a, requires_grad=True) for a in inputs[:3]]
    last = [a.movedim(0, -1) for a in leaves]  # the mixture axis is torch's last
    p = MixtureSameFamily(Categorical(logits=last[0]), Normal(last[1], last[2].exp()))
    nll = -(p.log_prob(torch.tensor(inputs[3])) * torch.tensor(inputs[4])).sum()
    names = "logmix", "mean", "logstd", "target", "weight"
    out = dict(zip(names, inputs, strict=True)) | {"nll": nll.detach().numpy()}
    out |= {
        "grad_" + name: g.numpy()
        for name, g in zip(names, torch.autograd.grad(nll, leaves), strict=False)
    }
    return out | {"torch_version": np.array(torch.__version__)}


def test_equals_pytorch():
    with np.load(FIXTURE, allow_pickle=False) as stored:
        f = dict(stored)
    names = ("logmix", "mean", "logstd", "target", "weight")
    nll, cache = mixture_nll_forward(*(f[name] for name in names))
    np.testing.assert_allclose(nll, f["nll"], rtol=1e-12)
    for name, gradient in zip(names[:3], mixture_nll_backward(1, cache), strict=True):
        assert relative_error(gradient, f["grad_" + name]) < 1e-10, name


def test_fixture_is_what_pytorch_says():
    pytest.importorskip("torch")
    with np.load(FIXTURE, allow_pickle=False) as stored:
        for name, array in make_fixture().items():
            if name != "torch_version":
                np.testing.assert_allclose(array, stored[name], rtol=1e-9, atol=1e-12, err_msg=name)
