"""Adam (Kingma & Ba 2015, arXiv:1412.6980, algorithm 1) over the flat vector of a model's parameters."""

import numpy as np

from ..system import threads

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8  # the paper's, TensorFlow's, and so the authors'
CHUNK = 1 << 16  # floats: four vectors of this size stay in L2 (whole vectors: 3 x slower)


class Adam:
    """First and second moments of the gradient (size,), and the step that they give.

    Every entry of the gradient is first clipped to [-clip, clip] (authors' rnn.py: 1.0 for M); None: to what v can
    hold. The paper's factors 1 - beta are applied to the step, not to the moments: two passes over memory fewer.
    """

    def __init__(self, size: int, clip: float | None = None, dtype=np.float32):
        most = np.sqrt((1 - BETA2) * np.finfo(dtype).max) / 2  # v stays under most^2 / (1 - beta2)
        self.clip = float(most) if clip is None else clip
        self.step_count = 0
        self.m = np.zeros(size, dtype)
        self.v = np.zeros(size, dtype)

    def step(self, theta: np.ndarray, gradient: np.ndarray, learning_rate: float) -> None:
        """Move theta (size,) in place, against gradient (size,)."""
        self.step_count += 1
        # theta -= lr * m_hat / (sqrt(v_hat) + epsilon), all constants gathered into two:
        share1 = (1 - BETA1) / (1 - BETA1**self.step_count)  # m_hat = share1 m
        share2 = np.sqrt((1 - BETA2) / (1 - BETA2**self.step_count))  # sqrt(v_hat) = share2 sqrt(v)
        rate = learning_rate * share1 / share2
        epsilon = EPSILON / share2

        def move(first: int) -> None:
            part = slice(first, first + CHUNK)
            m = self.m[part]
            v = self.v[part]
            update = np.clip(gradient[part], -self.clip, self.clip)  # g; the only buffer
            m *= BETA1
            m += update  # m = beta1 m + g
            update *= update
            v *= BETA2
            v += update  # v = beta2 v + g^2
            np.sqrt(v, out=update)
            update += epsilon
            np.divide(m, update, out=update)
            update *= rate
            theta[part] -= update

        threads.run(move, range(0, len(theta), CHUNK))

    def state_dict(self) -> dict[str, np.ndarray]:
        """What a file needs to resume exactly."""
        return {"m": self.m, "v": self.v, "step_count": np.array(self.step_count)}

    def load_state_dict(self, state: dict[str, np.ndarray]) -> None:
        """Restore what state_dict gave."""
        self.m[:] = state["m"]
        self.v[:] = state["v"]
        self.step_count = int(state["step_count"])
