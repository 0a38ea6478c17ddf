"""Random numbers for the rows of a batch: a row's depend on its own seed, not on its neighbours."""

from collections.abc import Callable

import numpy as np

BLOCK = 16  # steps whose noise is drawn at a time, for one episode


class Noise:
    """Random numbers for the n rows of a batch. Rows of equal seeds that begin together share one stream.

    draw: rng, shape, dtype -> numbers, such as np.random.Generator.random; size: numbers per row and step; key:
    gives other numbers for the same seeds.
    """

    def __init__(self, n: int, draw: Callable, size: int, key: int = 0):
        self.draw, self.size, self.key = draw, size, key
        self.stream = np.zeros(n, int)  # of each row
        # Of each stream: its generator, its next numbers, and how many steps it has served
        self.rngs = [None] * n
        self.block = np.empty((n, BLOCK, size), np.float32)
        self.used = np.zeros(n, int)
        self.rows = None  # those of the step before; `at` are their streams, `streams` the same without repeats

    def begin(self, rows: np.ndarray, seeds: np.ndarray) -> None:
        """From now on these rows have these seeds."""
        distinct, which = np.unique(seeds, return_inverse=True)
        taken = np.delete(self.stream, rows)  # the streams of the other rows
        streams = np.setdiff1d(np.arange(len(self.stream)), taken)[: len(distinct)]
        for stream, seed in zip(streams, distinct, strict=True):
            self.rngs[stream] = np.random.default_rng([int(seed), self.key])
        self.used[streams] = 0
        self.stream[rows] = streams[which]
        self.rows = None

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """The numbers of one step for these rows -> (rows, size) float32."""
        if rows is not self.rows:  # sorting them at every step takes 3 to 5 % of a dream
            self.rows = rows
            self.at = self.stream[rows]
            self.streams = np.unique(self.at)
        for stream in self.streams[self.used[self.streams] % BLOCK == 0]:
            self.block[stream] = self.draw(self.rngs[stream], (BLOCK, self.size), np.float32)
        numbers = self.block[self.at, self.used[self.at] % BLOCK]
        self.used[self.streams] += 1
        return numbers
