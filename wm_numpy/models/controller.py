"""C: a linear layer (the paper's equation 1) and a tanh, for a whole population at once; or two, for its ablation.

Letters: P population, E episodes, F features, A action.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from ..core.ops import linear_forward


def controller_size(sizes: Sequence[int], bias: bool) -> int:
    """The number of C's parameters: CarRacing 867 for [z h], 99 for z, 1,443 with 40 hidden units; Doom 1,088."""
    return sum((inputs + bias) * outputs for inputs, outputs in pairwise(sizes))


class Controller:
    """a = tanh([z h] W + b), for P candidates theta (P, n) or one (n,): W (F, A) row after row, then b (A,) if any.

    sizes: (F, A); or (F, hidden units, A), where the first layer's W and b come before the second's.
    """

    def __init__(self, theta: np.ndarray, sizes: Sequence[int], bias: bool):
        theta = np.atleast_2d(theta).astype(np.float32)
        self.population = len(theta)
        self.layers = []  # w (P, inputs, outputs), b (P, outputs) of each
        for inputs, outputs in pairwise(sizes):
            w, theta = np.split(theta, [inputs * outputs], axis=1)
            b = np.zeros((self.population, outputs), np.float32)
            if bias:
                b, theta = np.split(theta, [outputs], axis=1)
            self.layers.append((w.reshape(-1, inputs, outputs), b))

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """(P * E, F), E consecutive rows per candidate -> actions (P * E, A) in [-1, 1]."""
        x = features.reshape(self.population, -1, features.shape[-1])  # (P, E, F)
        for w, b in self.layers:
            y, _ = linear_forward(x, w, b)
            x = np.tanh(y)
        return x.reshape(len(features), -1)  # (P * E, A)
