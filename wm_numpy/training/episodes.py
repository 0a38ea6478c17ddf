"""Real episodes on all processes: of the agent, or of a policy that sees nothing; recorded, if asked.

Gymnasium and an engine are imported where an episode begins. Letters: P population, E episodes, n = P * E.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from ..models.agent import Agent
from ..settings.tasks import find
from ..worlds.policies import random_policy
from ..worlds.rollout import Rollouts, joined, rollout
from ..worlds.world import RealWorld
from . import parallel
from .data import Recorder

GROUP = 8  # real episodes that one process steps together, so that V and M run on a batch


def real_rollouts(
    agent: Agent,
    thetas: np.ndarray,
    seeds: np.ndarray,
    log: Callable[[str], None] = print,
    progress: Callable[[int], None] = lambda n: None,
    noise: float = 0.0,
    spread: float = 0.0,
    paths: list[Path] | None = None,
) -> Rollouts:
    """The same in real episodes, on all processes.

    log: takes a line when an environment dies and its group is repeated; progress: is told the number of episodes that
    have just ended; noise: std of smooth noise on the actions; spread: std of noise on C's parameters, in every third
    episode; paths: P * E files to record the episodes in.
    """
    shape = len(thetas), len(seeds)
    p, e = np.indices(shape).reshape(2, -1)
    groups = [slice(first, first + GROUP) for first in range(0, p.size, GROUP)]
    jobs = [(thetas[p[g]], seeds[e[g]], noise, spread, paths and paths[g]) for g in groups]
    here = parallel.SPAWN if paths else None  # to a disk that the next stage can read
    return joined(_play_all(_play_group, jobs, log, progress, here, _set_agent, (agent,)), shape)


def blind_rollouts(
    task: str,
    seeds: np.ndarray,
    log: Callable[[str], None] = print,
    progress: Callable[[int], None] = lambda n: None,
    paths: list[Path] | None = None,
    min_length: int = 1,
    make_policy: Callable[[np.random.Generator], Callable[[], np.ndarray]] | None = None,
    repeat: int = 1,
) -> Rollouts:
    """E episodes of a policy that sees nothing, recorded in `paths` if given -> (E,) each.

    Each episode has a policy of its own, make_policy(rng); by default the one that scores are compared with. An
    episode shorter than min_length is replaced by another (authors' extract.py). repeat: frames of a step.
    """
    make_policy = make_policy or partial(random_policy, task)
    how = min_length, make_policy
    jobs = [(task, repeat, int(s), paths and paths[i], *how) for i, s in enumerate(seeds)]
    here = parallel.SPAWN if paths else None
    return joined(_play_all(_play_blind, jobs, log, progress, here), len(seeds))


def _play_all(play, jobs: list[tuple], log, progress, executor, *setup) -> list[Rollouts]:
    """play(*job) of every job, in order, on all processes; what died is played again."""
    from ..worlds.envs import EnvironmentDied

    results = [None] * len(jobs)
    how = {"retry": (EnvironmentDied,), "log": log, "executor": executor}
    for i, result in parallel.processes(partial(_guarded, play), jobs, *setup, **how):
        results[i] = result
        progress(np.size(result[0]))
    return results


# ------------------------------------------------------------------------------------------ inside a worker process

_agent: Agent | None = None
_envs: list[Recorder] = []  # kept: an engine starts for half a second
_kind = None  # their task and repeat: on a cluster a process lives for more than one run


def _set_agent(agent: Agent) -> None:
    global _agent
    _agent = agent


def _environments(task: str, repeat: int, n: int, keep: bool) -> list[Recorder]:
    from ..worlds.envs import make_env

    global _kind
    if _kind != (task, repeat):
        _close()
        _kind = task, repeat
    # one after the other: started on threads, 8 engines need half the time, but ViZDoom has crashed at that
    _envs.extend(Recorder(make_env(task, repeat=repeat)) for _ in range(n - len(_envs)))
    for env in _envs:
        env.keep = keep
    return _envs[:n]


def _guarded(play: Callable, *job):
    """After an environment's death its process makes new ones."""
    from ..worlds.envs import EnvironmentDied

    try:
        return play(*job)
    except EnvironmentDied:
        _close()
        raise


def _close() -> None:
    while _envs:
        _envs.pop().close()


def _play_group(
    thetas: np.ndarray, seeds: np.ndarray, noise: float, spread: float, paths: list[Path] | None
) -> Rollouts:
    """One episode of each row of thetas."""
    rng = np.random.default_rng([len(seeds), *seeds])
    if spread:
        third = (np.arange(len(thetas)) % 3 == 2)[:, None]
        thetas = thetas + third * spread * rng.standard_normal(thetas.shape)
    controller = _agent.controller(thetas)  # one candidate per row
    drift = np.zeros((len(seeds), _agent.m.action_size))

    def act(features: np.ndarray) -> np.ndarray:
        if not noise:
            return controller(features)
        fresh = rng.standard_normal(drift.shape)
        drift[...] = 0.8 * drift + 0.6 * noise * fresh  # of std `noise`, lasting some steps
        return np.clip(controller(features) + drift, -1, 1)

    c = _agent.config
    envs = _environments(c.task, c.repeat, len(seeds), keep=paths is not None)
    result = rollout(RealWorld(_agent, envs), act, seeds)
    for env, path in zip(envs, paths or [], strict=False):
        env.save(path)
    return result


def _play_blind(
    task: str, repeat: int, seed: int, path: Path | None, min_length: int, make_policy: Callable
) -> tuple[float, int]:
    (env,) = _environments(task, repeat, 1, keep=path is not None)
    world = find(task)
    for attempt in range(100):
        rng = np.random.default_rng([seed, attempt])
        policy = make_policy(rng)
        total = 0.0
        length = 0
        over = False
        env.reset(seed=seed if attempt == 0 else int(rng.integers(2**28)))
        while not over:
            _, reward, terminated, truncated, _ = env.step(world.taken(policy()))
            total += reward
            length += 1
            over = terminated or truncated
        if length >= min_length:
            break
    if path is not None:
        env.save(path)
    return total, length
