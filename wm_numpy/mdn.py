"""Mixture density (Bishop 1994), one mixture of K Gaussians PER latent dim: its likelihood, and its sampler.

    p(z) = sum_k softmax(logmix)_k N(z; mean_k, std_k^2),   std = exp(logstd)

The mixture axis is the FIRST: logmix, mean, logstd (K, ...) against a target (...). So a target broadcasts by
itself, and a reduction over K adds K long runs of memory, not many short ones.

Letters: K mixtures; `...` is any shape, M's is (Z, n).
"""

import numpy as np

HALF_LOG_2PI = 0.5 * float(np.log(2 * np.pi))


def _logsumexp(a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """a (K, ...) -> log sum_k exp(a_k) (...), softmax (K, ...). Shifted by the maximum, nothing overflows."""
    top = a.max(axis=0)  # (...)
    e = a - top  # (K, ...)
    np.exp(e, out=e)
    total = e.sum(axis=0)  # (...)
    e /= total
    return top + np.log(total), e


def mixture_nll_forward(
    logmix: np.ndarray, mean: np.ndarray, logstd: np.ndarray, target: np.ndarray, weight: np.ndarray | float = 1.0
):
    """sum of weight * -log p(target) in nats -> scalar.

    logmix (not normalised), mean, logstd (K, ...), target (...). weight, broadcast against target, makes
    the sum a mean over dims and steps, 0 where there is no target.
    """
    inv = np.exp(-logstd)  # (K, ...)
    u = target - mean
    u *= inv
    joint = u * u  # log softmax(logmix)_k N(target), short of what all k share
    joint *= -0.5
    joint += logmix
    joint -= logstd
    logprior, prior = _logsumexp(logmix)
    logjoint, posterior = _logsumexp(joint)
    nll = logprior - logjoint
    nll += HALF_LOG_2PI
    return np.sum(nll * weight), (prior, posterior, u, inv, weight)


def mixture_nll_backward(dloss: float, cache):
    """-> dlogmix, dmean, dlogstd (K, ...)."""
    prior, posterior, u, inv, weight = cache
    dnll = np.asarray(dloss * weight, u.dtype)
    dlogmix = prior - posterior  # nll = logsumexp(logmix) - logsumexp(joint)
    dlogmix *= dnll
    djoint = posterior * -dnll
    dlogstd = u * u  # joint = logmix - u^2 / 2 - logstd, u = (target - mean) exp(-logstd)
    dlogstd -= 1
    dlogstd *= djoint
    dmean = djoint
    dmean *= u
    dmean *= inv
    return dlogmix, dmean, dlogstd


def sample_mixture(
    logmix: np.ndarray, mean: np.ndarray, logstd: np.ndarray, tau: float, uniform: np.ndarray, normal: np.ndarray
) -> np.ndarray:
    """logmix, mean, logstd (K, ...) -> z (...) ~ p at temperature tau: logmix / tau, std * sqrt(tau).

    As in the authors' doomrnn.py. The randomness is given: `uniform` (...) in [0, 1) chooses one component PER
    entry, by inverse CDF (it is the number of cumulative probabilities that the uniform passes), and `normal` (...),
    standard normal, is what the sample deviates from that component's mean.
    """
    cdf = logmix - logmix.max(axis=0)  # (K, ...)
    cdf *= 1 / tau
    np.exp(cdf, out=cdf)
    for k in range(1, len(cdf)):
        cdf[k] += cdf[k - 1]  # cumulative, not normalised: the uniform is stretched instead
    u = uniform * cdf[-1]
    k = (u >= cdf[:-1]).view(np.uint8).sum(axis=0, dtype=np.uint8)  # (...), the component drawn
    # flat indices: a third of the time of masked copies, half of take_along_axis
    index = np.arange(k.size).reshape(k.shape) + k.size * k.astype(np.intp)
    std = np.exp(logstd.reshape(-1)[index])
    z = normal * std  # (...)
    z *= np.sqrt(tau)
    z += mean.reshape(-1)[index]
    return z
