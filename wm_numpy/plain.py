"""The definition of every operation in World Models, forward and backward, one equation a line.

    y, cache = op_forward(x, *params)        dx, *dparams = op_backward(dy, cache)

paper.py runs on these; every fast operation is tested against them. Letters: B batch, I inputs,
O outputs, H hidden, Z latent dims, K mixtures, P population; `...` is any shape.
"""

import numpy as np


def linear_forward(x, w, b):  # x (B, I), w (I, O), b (O,) -> y (B, O)
    return x @ w + b, (x, w)


def linear_backward(dy, cache):
    x, w = cache
    return dy @ w.T, x.T @ dy, dy.sum(axis=0)


def relu_forward(x):
    return np.maximum(x, 0), x


def relu_backward(dy, x):
    return (dy * (x > 0),)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def sigmoid_forward(x):
    return sigmoid(x), sigmoid(x)


def sigmoid_backward(dy, y):
    return (dy * y * (1 - y),)


def conv_forward(x, w, b):  # x (B, rows, columns, I), w (k, k, I, O), b (O,); stride 2, no padding
    k, sides = len(w), [(side - len(w)) // 2 + 1 for side in x.shape[1:3]]
    y = np.empty((len(x), *sides, len(b)), x.dtype)
    for i, j in np.ndindex(*sides):
        patch = x[:, 2 * i : 2 * i + k, 2 * j : 2 * j + k]  # (B, k, k, I)
        y[:, i, j] = np.tensordot(patch, w, axes=3) + b
    return y, (x, w)


def conv_backward(dy, cache):
    x, w = cache
    k, dx, dw = len(w), np.zeros_like(x), np.zeros_like(w)
    for i, j in np.ndindex(dy.shape[1:3]):
        patch = np.s_[:, 2 * i : 2 * i + k, 2 * j : 2 * j + k]
        dx[patch] += np.tensordot(dy[:, i, j], w, axes=(1, 3))
        dw += np.tensordot(x[patch], dy[:, i, j], axes=(0, 0))
    return dx, dw, dy.sum(axis=(0, 1, 2))


def conv_transpose_forward(x, w, b):  # x (B, ..., O), w (k, k, I, O), b (I,): y is conv's dx
    rows, columns = (2 * side + len(w) - 2 for side in x.shape[1:3])
    y, _, _ = conv_backward(x, (np.zeros((len(x), rows, columns, len(b)), x.dtype), w))
    return y + b, (x, w)


def conv_transpose_backward(dy, cache):  # and dx is conv's y
    x, w = cache
    dx, _ = conv_forward(dy, w, np.zeros_like(x[0, 0, 0]))
    _, dw, _ = conv_backward(x, (dy, w))
    return dx, dw, dy.sum(axis=(0, 1, 2))


def reparameterize_forward(mu, logvar, noise):  # -> z; Kingma & Welling 2014, (10)
    std = np.exp(logvar / 2)
    return mu + std * noise, std * noise


def reparameterize_backward(dz, cache):
    return dz, dz * cache / 2  # dmu, dlogvar


def gaussian_kl_forward(mu, logvar, floor=0.0):  # (B, Z): of N(mu, exp(logvar)) from N(0, 1)
    kl = (mu**2 + np.exp(logvar) - 1 - logvar).sum(axis=1) / 2  # (B,); Kingma & Welling 2014, (10)
    return np.maximum(kl, floor).mean(), (mu, logvar, kl > floor)


def gaussian_kl_backward(dloss, cache):
    mu, logvar, above = cache
    d = dloss * above[:, None] / len(mu)
    return d * mu, d * (np.exp(logvar) - 1) / 2  # dmu, dlogvar


def squared_error_forward(x, target, weight=1.0):
    return (weight * (x - target) ** 2).sum(), weight * (x - target)


def squared_error_backward(dloss, cache):
    return (2 * dloss * cache,)


def bce_with_logits_forward(logit, target, weight=1.0):  # -log p(target), p(1) = sigmoid(logit)
    nll = np.logaddexp(0, logit) - target * logit
    return (weight * nll).sum(), weight * (sigmoid(logit) - target)


def bce_with_logits_backward(dloss, cache):
    return (dloss * cache,)


def lstm_step_forward(x, h, c, w, b):  # x (B, I), h and c (B, H), w (I + H, 4 H), b (4 H,)
    xh = np.concatenate([x, h], axis=1)  # Graves 2013, (7)-(11), without peepholes
    i, f, o, g = np.split(xh @ w + b, 4, axis=1)
    i, f, o, g = sigmoid(i), sigmoid(f + 1), sigmoid(o), np.tanh(g)  # + 1: to forget less at first
    c_next = f * c + i * g
    return (o * np.tanh(c_next), c_next), (xh, c, c_next, i, f, o, g, w)


def lstm_step_backward(dy, cache):
    (dh, dc), (xh, c, c_next, i, f, o, g, w) = dy, cache
    dc = dc + dh * o * (1 - np.tanh(c_next) ** 2)  # h = o tanh(c_next)
    do = dh * np.tanh(c_next) * o * (1 - o)
    di, df, dg = dc * g * i * (1 - i), dc * c * f * (1 - f), dc * i * (1 - g**2)
    da = np.concatenate([di, df, do, dg], axis=1)  # a = [x h] w + b
    dx, dh = np.split(da @ w.T, [len(w) - dh.shape[1]], axis=1)
    return dx, dh, dc * f, xh.T @ da, da.sum(axis=0)


def logsumexp(a):  # over K; shifted by the largest, so that nothing overflows
    top = a.max(axis=0)
    return top + np.log(np.exp(a - top).sum(axis=0))


def mixture_nll_forward(logmix, mean, logstd, target, weight=1.0):  # (K, ...); Bishop 1994
    logmix = logmix - logsumexp(logmix)  # (25)
    u = (target - mean) / np.exp(logstd)  # (26)
    logp = logmix - u**2 / 2 - logstd - np.log(2 * np.pi) / 2  # (23)
    total = logsumexp(logp)  # (22), (...)
    return -(weight * total).sum(), (logmix, logp - total, u, logstd, weight)  # (29)


def mixture_nll_backward(dloss, cache):  # Bishop 2006
    logmix, logposterior, u, logstd, weight = cache
    d, posterior = dloss * weight, np.exp(logposterior)  # (5.154)
    dmean = -d * posterior * u / np.exp(logstd)  # (5.156)
    return d * (np.exp(logmix) - posterior), dmean, d * posterior * (1 - u**2)  # (5.155), (5.157)


def sample_mixture(logmix, mean, logstd, tau, uniform, normal):  # (K, ...) -> (...)
    mix = np.exp(logmix / tau - logsumexp(logmix / tau))  # tau as in the authors' doomrnn.py
    k = (np.cumsum(mix, axis=0)[:-1] <= uniform).sum(axis=0)[None]  # a component per entry
    mean, logstd = (np.take_along_axis(x, k, axis=0)[0] for x in (mean, logstd))
    return mean + np.exp(logstd) * np.sqrt(tau) * normal


def adam(theta, g, m, v, t, rate):  # step t = 1, 2, ...; Kingma & Ba 2015, algorithm 1
    m = 0.9 * m + 0.1 * g
    v = 0.999 * v + 0.001 * g**2
    m_hat, v_hat = m / (1 - 0.9**t), v / (1 - 0.999**t)
    return theta - rate * m_hat / (np.sqrt(v_hat) + 1e-8), m, v


class CMAES:  # minimises, by ranks alone; equations of Hansen's tutorial, arXiv:1604.00772 v2
    def __init__(self, mean, sigma, population, rng):
        n, half = len(mean), population // 2
        w = np.log((population + 1) / 2) - np.log(np.arange(1, population + 1))  # (49), best first
        mu, mu_minus = (x.sum() ** 2 / (x**2).sum() for x in (w[:half], w[half:]))
        c_1 = 2 / ((n + 1.3) ** 2 + mu)  # (57)
        c_mu = min(1 - c_1, 2 * (mu - 1.75 + 1 / mu) / ((n + 2) ** 2 + mu))  # (58)
        alpha = min(1 + c_1 / c_mu, 1 + 2 * mu_minus / (mu + 2))  # (50), (51)
        alpha = min(alpha, (1 - c_1 - c_mu) / (n * c_mu))  # (52)
        self.w = np.where(w > 0, w / w[:half].sum(), -alpha * w / w[half:].sum())  # (53)
        self.half, self.mu_eff, self.c_1, self.c_mu = half, mu, c_1, c_mu
        self.c_sigma = (mu + 2) / (n + mu + 5)  # (55)
        self.damping = 1 + 2 * max(0, np.sqrt((mu - 1) / (n + 1)) - 1) + self.c_sigma
        self.c_c = (4 + mu / n) / (n + 4 + 2 * mu / n)  # (56)
        self.chi = np.sqrt(n) * (1 - 1 / (4 * n) + 1 / (21 * n**2))  # E ||N(0, I)||
        self.mean, self.sigma, self.cov, self.rng = np.asarray(mean), sigma, np.eye(n), rng
        self.p_sigma, self.p_c, self.generation = np.zeros(n), np.zeros(n), 0

    def ask(self):  # -> candidates (P, n) ~ N(mean, sigma^2 cov)
        d2, B = np.linalg.eigh(self.cov)
        self.whiten = B / np.sqrt(d2) @ B.T  # cov^-1/2
        z = self.rng.standard_normal((len(self.w), len(d2)))  # (38)
        return self.mean + self.sigma * (z * np.sqrt(d2) @ B.T)  # (39), (40)

    def tell(self, x, costs):
        y = (x[np.argsort(costs, kind="stable")] - self.mean) / self.sigma  # (P, n), best first
        step = self.w[: self.half] @ y[: self.half]  # (41)
        self.mean = self.mean + self.sigma * step  # (42)
        n, c, self.generation = len(step), self.c_sigma, self.generation + 1
        white = np.sqrt(c * (2 - c) * self.mu_eff) * self.whiten @ step
        self.p_sigma = (1 - c) * self.p_sigma + white  # (43)
        length = np.linalg.norm(self.p_sigma) / self.chi
        self.sigma *= np.exp(c / self.damping * (length - 1))  # (44)
        h = length / np.sqrt(1 - (1 - c) ** (2 * self.generation)) < 1.4 + 2 / (n + 1)
        c, c_1, c_mu = self.c_c, self.c_1, self.c_mu
        self.p_c = (1 - c) * self.p_c + h * np.sqrt(c * (2 - c) * self.mu_eff) * step  # (45)
        w = np.where(self.w > 0, 1, n / ((y @ self.whiten) ** 2).sum(axis=1)) * self.w  # (46)
        keep = 1 + c_1 * (1 - h) * c * (2 - c) - c_1 - c_mu * self.w.sum()  # (47)
        self.cov = keep * self.cov + c_1 * np.outer(self.p_c, self.p_c) + c_mu * (y.T * w) @ y
