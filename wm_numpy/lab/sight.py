"""What V sees and M remembers: facts of the game, which frames do not spell out, read off by linear probes (C is one).

C plays. A world can be probed if its game has a method `truth`: facts by name, numbers or bools, NaN where a fact does
not apply. CarRacing tells speed, angle and distance, Take Cover where fireballs are (fireballs.py). What mu does not
hold, V does not see; what C's features know beyond it, M remembers.

Letters: N steps, F features.
"""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from importlib import import_module

import numpy as np

from ..models.agent import Agent
from ..settings.tasks import Task, find
from ..training import parallel
from ..training.episodes import GROUP, episode_seeds
from ..worlds.envs import make_env
from ..worlds.world import RealWorld
from .statistics import auc, r2, ridge

# The fact; R2 (1 is perfect) or AUC (0.5 is a guess); what each reader gets
Row = tuple[str, str, dict[str, float]]


class Watched(RealWorld):
    """A real world that keeps what V says: mu (n, Z)."""

    def _sample(self, mu, logvar, rows):
        if len(rows) == self.num_envs:
            self.mu = np.zeros((self.num_envs, self.m.z_size), np.float32)
        self.mu[rows] = mu
        return super()._sample(mu, logvar, rows)


def telling(name: str) -> Task:
    """The world of that name whose games tell their truth, as far as there is one."""
    task = find(name)
    if not task.telling:
        return task
    module, _, kind = task.telling.partition(":")
    return replace(task, make=getattr(import_module(module), kind))


def figures(agent: Agent, episodes: int) -> Iterator[Row]:
    """Readers fitted to three quarters of the episodes and judged on the rest; nothing if the world tells no facts."""
    c = agent.config
    with closing(make_env(telling(c.task))) as env:
        game = env.game.unwrapped
    if not hasattr(game, "truth"):
        return
    seeds = episode_seeds("check", episodes, 0, 97)
    jobs = [(seeds[i : i + GROUP],) for i in range(0, episodes, GROUP)]
    parts = dict(parallel.processes(_watch, jobs, _set_agent, (agent,)))
    steps = {name: np.concatenate([parts[i][name] for i in range(len(jobs))]) for name in parts[0]}
    _, number = np.unique(steps.pop("episode"), return_inverse=True)
    test = number % 4 == 1
    seen = steps.pop("features")
    readers = {"mu": steps.pop("mu"), "z": seen[:, : c.vae.z_size], c.evolve.features: seen}
    for name, fact in steps.items():
        yield read(name, fact.astype(float), readers, test)


def read(name: str, fact: np.ndarray, readers: dict[str, np.ndarray], test: np.ndarray) -> Row:
    """A fact (N,) read off each reader's x (N, F); `test` (N,) bool: the steps on which it is judged."""
    known = np.isfinite(fact)
    odds = set(np.unique(fact[known])) <= {0, 1}
    measure = "AUC" if odds else "R2"
    fact, test = fact[known], test[known]
    if any(len(np.unique(fact[test == part])) < 2 for part in (True, False)):
        return name, measure, dict.fromkeys(readers, np.nan)  # too few episodes to tell
    told = {who: ridge(x[known], fact, test) for who, x in readers.items()}
    true = fact[test]
    score = partial(auc, came=true > 0) if odds else partial(r2, true=true)
    return name, measure, {who: score(y) for who, y in told.items()}


_agent: Agent | None = None


def _set_agent(agent: Agent) -> None:
    global _agent
    _agent = agent


def _watch(seeds: np.ndarray) -> dict[str, np.ndarray]:
    """Episodes -> what the agent has and what is true, step by step, (N, ...) each."""
    c = _agent.config
    envs = [make_env(telling(c.task), repeat=c.repeat) for _ in seeds]
    world = Watched(_agent, envs)
    features, _ = world.reset(seed=seeds)
    act = _agent.controller()
    rows = []
    while len(world.rows):
        for i in world.rows:
            row = {"episode": seeds[i], "features": features[i].copy(), "mu": world.mu[i].copy()}
            rows.append(row | envs[i].game.unwrapped.truth())
        features, *_ = world.advance(act(features))
    world.close()
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}
