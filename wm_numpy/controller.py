"""C: a linear layer and a tanh (paper, section 2.3), for a whole population at once.

Letters: P population, E episodes, F features, A action.
"""

import numpy as np

from .core import linear_forward


def controller_size(features: int, action_size: int, bias: bool) -> int:
    """Parameters of one candidate: 867 for [z h] of CarRacing with bias, 1,088 for [z c h] of Doom without."""
    return (features + bias) * action_size


class Controller:
    """a = tanh([z h] W + b), for P candidates theta (P, n) or one (n,): W row after row (F, A), then b (A,) if any."""

    def __init__(self, theta: np.ndarray, action_size: int, bias: bool):
        theta = np.atleast_2d(theta).astype(np.float32)
        if not bias:
            theta = np.pad(theta, ((0, 0), (0, action_size)))  # b = 0
        self.w = theta[:, :-action_size].reshape(len(theta), -1, action_size)  # (P, F, A)
        self.b = theta[:, -action_size:]  # (P, A)

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """(P * E, F), the E rows of a candidate together -> actions (P * E, A) in [-1, 1]."""
        rows = features.reshape(len(self.w), -1, features.shape[-1])  # (P, E, F)
        y, _ = linear_forward(rows, self.w, self.b)  # (P, E, A)
        return np.tanh(y).reshape(len(features), -1)
