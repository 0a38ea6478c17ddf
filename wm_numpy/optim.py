"""Adam (Kingma & Ba 2015, arXiv:1412.6980, algorithm 1) over the one flat vector of a model."""

from __future__ import annotations

import numpy as np

from . import parallel

CHUNK = 1 << 16  # floats: parameters, gradient and both moments of a chunk stay in L2 (whole vectors: 3 x slower)


class Adam:
    """First and second moments of the gradient, and the step made of them.

    The moments are kept without the paper's factors 1 - beta1 and 1 - beta2, which come into the step instead: two
    passes over memory fewer.

    Args:
        size: length of the parameter vector.
        beta1, beta2, epsilon: the paper's defaults, which TensorFlow 1 and so the authors' code share.
        clip: every entry of the gradient is clipped to [-clip, clip] first (authors' rnn.py: 1.0 for M); None: no.
    """

    def __init__(
        self,
        size: int,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
        clip: float | None = None,
        dtype=np.float32,
    ):
        self.beta1, self.beta2, self.epsilon, self.clip = beta1, beta2, epsilon, clip
        self.m = np.zeros(size, dtype)
        self.v = np.zeros(size, dtype)
        self.step_count = 0

    def step(self, theta: np.ndarray, gradient: np.ndarray, learning_rate: float) -> None:
        """Move theta (size,) in place, against gradient (size,), which is left as it was."""
        self.step_count += 1
        # theta -= lr * m_hat / (sqrt(v_hat) + epsilon), all constants gathered into two:
        share1 = (1 - self.beta1) / (1 - self.beta1**self.step_count)  # m_hat = share1 m
        share2 = np.sqrt((1 - self.beta2) / (1 - self.beta2**self.step_count))  # sqrt(v_hat) = share2 sqrt(v)
        rate, epsilon = learning_rate * share1 / share2, self.epsilon / share2

        def move(first: int) -> None:
            part = slice(first, first + CHUNK)
            g = gradient[part]
            if self.clip is not None:
                g = np.clip(g, -self.clip, self.clip)
            m, v = self.m[part], self.v[part]
            m *= self.beta1
            m += g  # m = beta1 m + g
            square = g * g
            v *= self.beta2
            v += square  # v = beta2 v + g^2
            update = np.sqrt(v, out=square)
            update += epsilon
            np.divide(m, update, out=update)
            update *= rate
            theta[part] -= update

        parallel.threads(move, range(0, len(theta), CHUNK))

    def state_dict(self) -> dict[str, np.ndarray]:
        """What a checkpoint needs to go on exactly."""
        return {"m": self.m, "v": self.v, "step_count": np.array(self.step_count)}

    def load_state_dict(self, state: dict[str, np.ndarray]) -> None:
        """Restore what state_dict gave."""
        self.m[:], self.v[:] = state["m"], state["v"]
        self.step_count = int(state["step_count"])
