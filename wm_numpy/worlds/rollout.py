"""The paper's rollout, batched: many candidates, many episodes, in either world; it cannot tell which it is in.

Letters: P population, E episodes, n = P * E.
"""

from collections.abc import Callable

import numpy as np

from ..models.agent import Agent
from ..system import threads
from .world import Dream, World

CHUNK = 256  # dreams that one thread steps together
FEW = 64  # dreams that are a quarter faster on one thread than on two
Rollouts = tuple[np.ndarray, np.ndarray]  # returns, the sums of rewards, and lengths, in steps


def rollout(world: World, act: Callable, seeds: np.ndarray) -> Rollouts:
    """Play one episode in each of a world's n environments, which stand still when they have ended -> (n,) each.

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

    def play(some: slice) -> Rollouts:
        few = thetas[some]
        world = Dream.as_evolved(agent, len(few) * len(seeds))
        return rollout(world, agent.controller(few), np.tile(seeds, len(few)))

    most, whole = (max(1, n // len(seeds)) for n in (CHUNK, FEW))  # candidates
    chunks = threads.run(play, threads.cut(len(thetas), most, whole))
    return joined(chunks, (len(thetas), len(seeds)))


def joined(results: list[Rollouts], shape: int | tuple[int, int]) -> Rollouts:
    returns, lengths = (np.hstack(part).reshape(shape) for part in zip(*results, strict=True))
    return returns, lengths
