"""C: a linear layer and a tanh (paper, section 2.3), for a whole population at once.

Letters: P population, E episodes, F features, A action.
"""

import numpy as np


def controller_size(features: int, action_size: int, bias: bool) -> int:
    """Parameters of one candidate: 867 for [z h] of CarRacing with bias, 1,088 for [z c h] of Doom without."""
    return (features + bias) * action_size


class Controller:
    """a = tanh(W [z h] + b), for P candidates (P, n) or one (n,): W row after row (F, A), then b (A,) if any."""

    def __init__(self, vectors: np.ndarray, action_size: int, bias: bool):
        vectors = np.atleast_2d(vectors).astype(np.float32)
        weights = vectors[:, : vectors.shape[1] - bias * action_size]
        self.w = weights.reshape(len(vectors), -1, action_size)  # (P, F, A)
        self.b = vectors[:, None, weights.shape[1] :] if bias else np.float32(0)  # (P, 1, A)

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """(P * E, F), the E rows of a candidate together -> actions (P * E, A) in [-1, 1]."""
        rows = features.reshape(len(self.w), -1, features.shape[-1])  # (P, E, F)
        return np.tanh(rows @ self.w + self.b).reshape(len(features), -1)
