"""The paper's rollout, batched: many candidates, many episodes, in either world; it cannot tell which it is in.

Then the same over all cores: groups of dreams on threads, groups of real episodes on processes.

Letters: P population, E episodes, n = P * E.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, wraps
from pathlib import Path

import numpy as np

from . import parallel
from .agent import Agent
from .controller import Controller
from .data import Recorder
from .envs import EnvironmentDied, make_env, random_policy
from .worlds import Dream, RealWorld, World

GROUP = 8  # real episodes that one process steps together, so that V and M run on a batch


def rollout(world: World, act: Callable, seeds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Play one episode in each environment of a world.

    Args:
        world: a VectorEnv of n environments that stand still when they have ended.
        act: features (n, F) -> actions (n, A), such as a Controller.
        seeds: (n,), one per episode.

    Returns:
        returns (n,), the sums of rewards, and lengths (n,), in steps.
    """
    features, _ = world.reset(seed=seeds)
    returns, lengths = np.zeros(world.num_envs), np.zeros(world.num_envs, int)
    alive = np.ones(world.num_envs, bool)
    while alive.any():
        features, reward, terminated, truncated, _ = world.step(act(features))
        returns += reward
        lengths += alive
        alive &= ~(terminated | truncated)
    return returns, lengths


def dream_rollouts(agent: Agent, vectors: np.ndarray, seeds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every candidate in the same E dreams, on all threads -> returns, lengths (P, E).

    Args:
        agent: M, and where dreams start.
        vectors: (P, n) parameters of C.
        seeds: (E,).
    """
    per_chunk = max(1, agent.config.evolve.chunk // len(seeds))  # whole candidates

    def play(first: int):
        some = vectors[first : first + per_chunk]
        world = Dream(agent, len(some) * len(seeds))
        return rollout(world, agent.controller(some), np.tile(seeds, len(some)))

    chunks = parallel.threads(play, range(0, len(vectors), per_chunk))
    returns, lengths = (np.concatenate(part).reshape(len(vectors), len(seeds)) for part in zip(*chunks, strict=True))
    return returns, lengths


def real_rollouts(
    agent: Agent,
    vectors: np.ndarray,
    seeds: np.ndarray,
    log: Callable[[str], None] = print,
    progress: Callable[[int], None] = lambda n: None,
    noise: float = 0.0,
    paths: list[Path] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Every candidate in the same E real episodes, on all processes -> returns, lengths (P, E).

    Args:
        agent: V and M.
        vectors: (P, n) parameters of C.
        seeds: (E,).
        log: takes a line when an environment dies and its group is repeated.
        progress: is told the number of episodes that have just ended.
        noise: std of Gaussian noise on the actions.
        paths: P * E files to record the episodes in.
    """
    pairs = [(p, e) for p in range(len(vectors)) for e in range(len(seeds))]
    jobs = []
    for first in range(0, len(pairs), GROUP):
        group = pairs[first : first + GROUP]
        p, e = np.array(group).T
        jobs.append((vectors[p], seeds[e], noise, paths and paths[first : first + GROUP]))
    returns, lengths = np.zeros((2, len(vectors), len(seeds)))
    for i, (some_returns, some_lengths) in parallel.processes(
        _play_group, jobs, _set_agent, (agent,), retry=(EnvironmentDied,), log=log
    ):
        part = slice(i * GROUP, i * GROUP + len(some_returns))
        returns.ravel()[part], lengths.ravel()[part] = some_returns, some_lengths
        progress(len(some_returns))
    return returns, lengths.astype(int)


def blind_rollouts(
    task: str,
    seeds: np.ndarray,
    log: Callable[[str], None] = print,
    progress: Callable[[int], None] = lambda n: None,
    paths: list[Path] | None = None,
    min_length: int = 1,
    make_policy: Callable[[np.random.Generator], Callable[[], np.ndarray]] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Episodes of a policy that sees nothing -> returns, lengths (E,); recorded in `paths` if given.

    Each episode has a policy of its own, make_policy(rng); by default the one that scores are compared with. A
    recorded episode shorter than min_length is replaced by another (authors' extract.py).
    """
    make_policy = make_policy or partial(random_policy, task)
    jobs = [(task, int(s), paths and paths[i], min_length, make_policy) for i, s in enumerate(seeds)]
    returns, lengths = np.zeros((2, len(seeds)))
    for i, result in parallel.processes(_play_blind, jobs, retry=(EnvironmentDied,), log=log):
        returns[i], lengths[i] = result
        progress(1)
    return returns, lengths.astype(int)


# ------------------------------------------------------------------------------------------ inside a worker process

_agent: Agent | None = None
_envs: dict[str, list] = {}  # made once per process: a ViZDoom engine takes half a second to start


def _set_agent(agent: Agent) -> None:
    global _agent
    _agent = agent


def _environments(task: str, n: int) -> list[Recorder]:
    envs = _envs.setdefault(task, [])
    envs.extend(Recorder(make_env(task)) for _ in range(n - len(envs)))
    return envs[:n]


def _forget_on_death(function):
    """After an environment's death its process makes new ones."""

    @wraps(function)
    def guarded(*args):
        try:
            return function(*args)
        except EnvironmentDied:
            for env in _envs.pop(args[0], []):
                env.close()
            raise

    return guarded


@_forget_on_death
def _group(task: str, vectors: np.ndarray, seeds: np.ndarray, noise: float, paths: list[Path] | None):
    envs = _environments(task, len(seeds))
    controller: Controller = _agent.controller(vectors)  # one candidate per row
    rng = np.random.default_rng([len(seeds), *seeds])

    def act(features: np.ndarray) -> np.ndarray:
        actions = controller(features)
        return np.clip(actions + noise * rng.standard_normal(actions.shape), -1, 1) if noise else actions

    result = rollout(RealWorld(_agent, envs), act, seeds)
    for env, path in zip(envs, paths or [], strict=False):
        env.save(path)
    return result


def _play_group(vectors, seeds, noise, paths):
    return _group(_agent.config.task, vectors, seeds, noise, paths)


@_forget_on_death
def _play_blind(task: str, seed: int, path: Path | None, min_length: int, make_policy) -> tuple[float, int]:
    (env,) = _environments(task, 1)
    for attempt in range(100):
        rng = np.random.default_rng([seed, attempt])
        policy, total, over = make_policy(rng), 0.0, False
        env.reset(seed=seed if attempt == 0 else int(rng.integers(2**28)))
        while not over:
            _, reward, terminated, truncated, _ = env.step(policy())
            total, over = total + reward, terminated or truncated
        length = len(env._steps)
        if path is None or length >= min_length:
            break
    if path is not None:
        env.save(path)
    return total, length
