"""The shared core: differentiable operations in forward/backward pairs.

One contract for every pair, losses included:

    y, cache = op_forward(x, *params)
    dx, *dparams = op_backward(dy, cache)

Functions are pure; a gradient is named like its variable, with a `d` in front; a backward reads as its forward upside
down. Results have the dtype of the inputs: float32 to compute, float64 to check gradients (gradcheck.py).
Convolutions are in conv.py, the LSTM in lstm.py, the mixture density in mixture.py, under the same contract.

Letters: B batch, I inputs, O outputs, Z latent dims.
"""

import numpy as np

from .arrays import Array, chosen, require, sum_rows

# ---------------------------------------------------------------------------------------------- dense and elementwise


def linear_forward(x: Array, w: Array, b: Array, order: str = "C") -> tuple[Array, tuple]:
    """y = x w + b.  x (..., B, I), w (..., I, O), b (..., O) -> y (..., B, O).

    Leading axes are separate layers, such as those of a population. order "F": y is column-major in memory.
    """
    fits = x.ndim == w.ndim == b.ndim + 1 >= 2 and x.shape[-1] == w.shape[-2]
    fits = fits and x.shape[:-2] == w.shape[:-2] and b.shape == (*w.shape[:-2], w.shape[-1])
    require(fits, "linear", x=x, w=w, b=b)
    y = np.matmul(x, w, order=order)
    y += b[..., None, :]
    return y, (x, w)


def linear_backward(dy: Array, cache: tuple, need_dx: bool = True, need_dw: bool = True) -> tuple:
    """dy (..., B, O) -> dx (..., B, I), dw (..., I, O), db (..., O); None if not needed (need_dw: db too)."""
    x, w = cache
    dx = dw = db = None
    if need_dw:
        db = sum_rows(dy)  # y = x w + b
        dw = np.matmul(x.swapaxes(-1, -2), dy, out=np.empty_like(w))  # in the memory layout of w
    if need_dx:
        dx = dy @ w.swapaxes(-1, -2)
    return dx, dw, db


def relu_forward(x: Array) -> tuple[Array, tuple]:
    """y = max(x, 0), any shape."""
    require(True, "relu", x=x)
    y = np.maximum(x, np.zeros(x.shape[1:], x.dtype))  # 3 x faster than np.maximum(x, 0)
    return y, (y,)


def relu_backward(dy: Array, cache: tuple) -> tuple[Array]:
    """-> dx: the gradient passes where y > 0."""
    (y,) = cache
    return (dy * (y > 0),)


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), accurate to the last digits for any x."""
    y = np.negative(x, out=np.empty_like(x))
    with np.errstate(over="ignore"):  # exp(-x) = inf gives 0, as it should
        np.exp(y, out=y)
    y += 1
    return np.divide(1, y, out=y)


def sigmoid_forward(x: Array) -> tuple[Array, tuple]:
    """y = 1 / (1 + exp(-x)), any shape."""
    require(True, "sigmoid", x=x)
    y = sigmoid(x)
    return y, (y,)


def sigmoid_backward(dy: Array, cache: tuple) -> tuple[Array]:
    """-> dx = dy y (1 - y)."""
    (y,) = cache
    return (dy * y * (1 - y),)


# --------------------------------------------------------------------------------------- the Gaussian code of a frame
# Kingma & Welling 2014, arXiv:1312.6114.


def reparameterize_forward(mu: Array, logvar: Array, noise: Array) -> tuple[Array, tuple]:
    """z = mu + exp(logvar / 2) noise ~ N(mu, exp(logvar)), for a given noise (10). All of one shape."""
    fits = mu.shape == logvar.shape == noise.shape
    require(fits, "reparameterize", mu=mu, logvar=logvar, noise=noise)
    std = np.exp(logvar / 2)
    return mu + std * noise, (std, noise)


def reparameterize_backward(dz: Array, cache: tuple) -> tuple[Array, Array]:
    """-> dmu, dlogvar."""
    std, noise = cache
    return dz, dz * noise * std / 2  # d std / d logvar = std / 2


def gaussian_kl_forward(mu: Array, logvar: Array, floor: float = 0.0) -> tuple[float, tuple]:
    """KL(N(mu, exp(logvar)) || N(0, 1)) of samples (B, Z): summed over Z (10), at least `floor`, mean over B.

    The floor (the authors' kl_tolerance, 0.5 nats per latent dim) keeps V from collapsing: a sample below it gets no
    gradient from this term.
    """
    require(mu.shape == logvar.shape and mu.ndim == 2, "gaussian_kl", mu=mu, logvar=logvar)
    var = np.exp(logvar)
    kl = 0.5 * np.sum(mu * mu + var - 1 - logvar, axis=1)  # (10) (B,)
    return np.maximum(kl, floor).sum() / max(1, len(mu)), (mu, var, kl > floor)


def gaussian_kl_backward(dloss: float, cache: tuple) -> tuple[Array, Array]:
    """-> dmu, dlogvar (B, Z)."""
    mu, var, above = cache
    dkl = (dloss / max(1, len(mu)) * above[:, None]).astype(mu.dtype)  # (B, 1)
    return dkl * mu, dkl * (var - 1) / 2


# ----------------------------------------------------------------------------------------------------------- losses
# Targets may have any numeric type. A weight makes the sum a mean over batch or steps, and broadcasts against x.
# Where it is 0, nothing counts, not even a nan.


def squared_error_forward(
    x: Array, target: Array, weight: Array | float = 1.0
) -> tuple[float, tuple]:
    """sum of weight * (x - target)^2 -> scalar.  x and target of one shape."""
    target, weight = np.asarray(target, x.dtype), np.asarray(weight, x.dtype)
    fits = x.shape == target.shape == np.broadcast_shapes(x.shape, weight.shape)
    require(fits, "squared_error", x=x, target=target, weight=weight)
    diff = chosen(weight, x - target)
    return np.vdot(diff * weight, diff), (diff, weight)


def squared_error_backward(dloss: float, cache: tuple) -> tuple[Array]:
    """-> dx, the shape of x."""
    diff, weight = cache
    return (2 * dloss * weight * diff,)


def bce_with_logits_forward(
    logit: Array, target: Array, weight: Array | float = 1.0
) -> tuple[float, tuple]:
    """sum of weight * -log P(target | logit), target 0 or 1 -> scalar.  logit and target of one shape.

    That is softplus(logit) - target * logit, in a form that does not overflow: an infinite logit that is right costs 0.
    """
    target, weight = np.asarray(target, logit.dtype), np.asarray(weight, logit.dtype)
    fits = logit.shape == target.shape == np.broadcast_shapes(logit.shape, weight.shape)
    require(fits, "bce_with_logits", logit=logit, target=target, weight=weight)
    logit = chosen(weight, logit)
    target = chosen(weight, target)
    size = np.abs(logit)
    miss = np.where(logit > 0, 1 - target, target)  # how far the sign is from the target
    nll = chosen(miss, size) * miss + np.log1p(np.exp(-size))
    return np.sum(weight * nll), (logit, target, weight)


def bce_with_logits_backward(dloss: float, cache: tuple) -> tuple[Array]:
    """-> dlogit = weight * (sigmoid(logit) - target)."""
    logit, target, weight = cache
    return (dloss * weight * (sigmoid(logit) - target),)
