"""Mixture density (Bishop 1994), one mixture of K Gaussians PER latent dim: its likelihood, and its sampler.

    p(z) = sum_k softmax(logmix)_k N(z; mean_k, std_k^2),   std = exp(logstd)                      (5.148), (5.150-152)

The numbers are equations of Bishop's "Pattern Recognition and Machine Learning" (2006), section 5.6.
Both are those of plain.py, but fast. The mixture axis is the FIRST: logmix, mean, logstd (K, ...), a target (...).
So a target broadcasts by itself, and a reduction over K adds K long runs of memory, not many short ones.

Letters: K mixtures; `...` is any shape, M's is (Z, n).
"""

import numpy as np

from .arrays import Array, chosen, require

HALF_LOG_2PI = 0.5 * float(np.log(2 * np.pi))


def mixture_nll_forward(
    logmix: Array, mean: Array, logstd: Array, target: Array, weight: Array | float = 1.0
) -> tuple[float, tuple]:
    """sum of weight * -log p(target) in nats -> scalar, computed in logarithms: nothing under- or overflows.

    logmix (not normalised), mean, logstd (K, ...), target (...). weight, broadcast against target, makes the sum a mean
    over dims and steps; it is 0 where there is no target, and everything else may be nan there.
    """
    target, weight = np.asarray(target, mean.dtype), np.asarray(weight, mean.dtype)
    fits = logmix.shape == mean.shape == logstd.shape and mean.shape[1:] == target.shape
    fits = fits and target.shape == np.broadcast_shapes(target.shape, weight.shape)
    inputs = dict(logmix=logmix, mean=mean, logstd=logstd, target=target, weight=weight)
    require(fits, "mixture_nll", **inputs)
    largest = np.finfo(mean.dtype).max
    with np.errstate(over="ignore"):
        inv = np.exp(-logstd)  # (K, ...)
        np.minimum(inv, largest, out=inv)
        u = chosen(weight, target) - mean
        u *= inv
        np.clip(u, -(largest**0.4), largest**0.4, out=u)  # u^2 stays finite; p is 0 there anyway
    joint = u * u  # log softmax(logmix)_k N(target), without the terms that all k share
    joint *= -0.5
    joint += logmix
    joint -= logstd
    logprior, prior = _logsumexp(logmix)
    logjoint, posterior = _logsumexp(joint)  # (5.154)
    nll = logprior - logjoint  # (5.153)
    nll += HALF_LOG_2PI
    if not np.isfinite(nll).all():  # nothing is left of it where its weight is 0
        parts = (nll, prior, posterior, u, inv)
        nll, prior, posterior, u, inv = (chosen(weight, part) for part in parts)
    return np.sum(nll * weight), (prior, posterior, u, inv, weight)


def mixture_nll_backward(dloss: float, cache: tuple) -> tuple[Array, Array, Array]:
    """-> dlogmix, dmean, dlogstd (K, ...)."""
    prior, posterior, u, inv, weight = cache
    dnll = np.asarray(dloss * weight, u.dtype)
    dlogmix = prior - posterior  # (5.155)  nll = logsumexp(logmix) - logsumexp(joint)
    dlogmix *= dnll
    djoint = posterior * -dnll
    dlogstd = u * u  # (5.157)  joint = logmix - u^2 / 2 - logstd, u = (target - mean) exp(-logstd)
    dlogstd -= 1
    dlogstd *= djoint
    dmean = djoint  # (5.156)
    dmean *= u
    dmean *= inv
    return dlogmix, dmean, dlogstd


def sample_mixture(
    logmix: Array, mean: Array, logstd: Array, tau: float, uniform: Array, normal: Array
) -> Array:
    """logmix, mean, logstd (K, ...) -> z (...) ~ p at temperature tau > 0: logmix / tau, std * sqrt(tau).

    As in the authors' doomrnn.py. `uniform` (...) in [0, 1) chooses a component PER entry, by inverse CDF; `normal`
    (...), standard normal, is the distance from that component's mean in standard deviations.
    """
    fits = logmix.shape == mean.shape == logstd.shape
    fits = fits and mean.shape[1:] == uniform.shape == normal.shape
    inputs = dict(logmix=logmix, mean=mean, logstd=logstd, uniform=uniform, normal=normal)
    require(fits, "sample_mixture", **inputs)
    cdf = logmix - logmix.max(axis=0)  # (K, ...)
    cdf *= 1 / tau
    np.exp(cdf, out=cdf)
    for k in range(1, len(cdf)):
        cdf[k] += cdf[k - 1]  # cumulative, not normalised: the uniform is stretched instead
    passed = (uniform * cdf[-1] >= cdf[:-1]).view(np.uint8)
    k = passed.sum(axis=0, dtype=np.min_scalar_type(len(cdf)))  # (...), the component drawn
    # flat indices: a third of the time of masked copies, half of take_along_axis
    index = np.arange(k.size).reshape(k.shape) + k.size * k.astype(np.intp)
    z = normal * np.exp(logstd.reshape(-1)[index])  # (...)
    z *= np.sqrt(tau)
    z += mean.reshape(-1)[index]
    return z


def _logsumexp(a: Array) -> tuple[Array, Array]:
    """a (K, ...) -> log sum_k exp(a_k) (...), softmax (K, ...). Shifted by the maximum, nothing overflows."""
    top = a.max(axis=0)  # (...)
    e = a - top  # (K, ...)
    np.exp(e, out=e)
    total = e.sum(axis=0)  # (...)
    e /= total
    return top + np.log(total), e
