"""The paper's rollout, batched: many candidates, many episodes, in either world; it cannot tell which it is in.

Letters: P population, E episodes, n = P * E.
"""

from collections.abc import Callable

import numpy as np

from ..models.agent import Agent
from ..system import threads
from .world import Dream, World

CHUNK = 256  # dreams that one thread steps together
FEW = 64  # up to so many dreams, one thread is a quarter faster than two
Rollouts = tuple[np.ndarray, np.ndarray]  # returns (sums of rewards) and lengths (steps)


def rollout(world: World, act: Callable, seeds: np.ndarray) -> Rollouts:
    """Play one episode in each of a world's n environments, to its end -> (n,) each.

    act: features (n, F) -> actions (n, A), such as a Controller; seeds: (n,), one per episode.
    """
    features, _ = world.reset(seed=seeds)
    returns = np.zeros(world.num_envs)
    lengths = np.zeros(world.num_envs, int)
    alive = np.ones(world.num_envs, bool)
    while alive.any():
        features, reward, terminated, truncated, _ = world.advance(act(features))
        returns += reward
        lengths += alive
        alive &= ~(terminated | truncated)
    return returns, lengths


def dream_rollouts(agent: Agent, thetas: np.ndarray, seeds: np.ndarray) -> Rollouts:
    """Every candidate, thetas (P, parameters of C), in the same dreams, seeds (E,), on all threads -> (P, E) each."""

    def play(chunk: slice) -> Rollouts:
        candidates = thetas[chunk]
        world = Dream.as_evolved(agent, len(candidates) * len(seeds))
        return rollout(world, agent.controller(candidates), np.tile(seeds, len(candidates)))

    most, whole = (max(1, n // len(seeds)) for n in (CHUNK, FEW))  # candidates
    chunks = threads.run(play, threads.cut(len(thetas), most, whole))
    return joined(chunks, (len(thetas), len(seeds)))


def joined(results: list[Rollouts], shape: int | tuple[int, int]) -> Rollouts:
    """Of all chunks in order."""
    returns, lengths = (np.hstack(part).reshape(shape) for part in zip(*results, strict=True))
    return returns, lengths
