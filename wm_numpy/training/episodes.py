"""Real episodes on all processes: of the agent, or of a policy that sees nothing; scored, or recorded to learn from.

Gymnasium is imported where an episode begins. Letters: P population, E episodes, n = P * E.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from ..envs.policies import Policy, random_policy
from ..models.agent import Agent
from ..settings.config import Config
from ..settings.tasks import find
from ..worlds.ahead import LookAhead
from ..worlds.rollout import Rollouts, joined, rollout
from ..worlds.world import RealWorld, World
from . import parallel
from .data import Recorder
from .log import Log

GROUP = 8  # real episodes that one process steps together, so that V and M run on a batch
PURPOSES = ("collect", "evolve", "check", "evaluate")  # seeds of one purpose serve no other


def episode_seeds(purpose: str, n: int, *key: int) -> np.ndarray:
    """n environment seeds for a purpose, from a range of its own."""
    drawn = np.random.SeedSequence(key).generate_state(n) % 2**28
    return (drawn + PURPOSES.index(purpose) * 2**28).astype(np.int64)


def score(returns: np.ndarray) -> dict[str, float]:
    """The mean of episodes' returns, their standard deviation, and the mean's 95 % interval (normal)."""
    n = np.size(returns)
    mean = float(np.mean(returns))
    sd = float(np.std(returns, ddof=1))
    half = 1.96 * sd / np.sqrt(n)
    return {"mean": mean, "sd": sd, "ci95": [mean - half, mean + half], "episodes": n}


def evaluate(
    task: str, agent: Agent | None, episodes: int, seed: int, log: Log, round_=1, name="agent"
) -> dict:
    """Play real episodes on held-out seeds -> score(), with the seed and the mean length.

    An agent that looks ahead plays them twice: `alone` is the score of its C alone, `difference` the mean gain of an
    episode by looking ahead, with its standard error.
    """
    seeds = episode_seeds("evaluate", episodes, seed)
    returns, lengths = play(task, agent, seeds, log, f"evaluate {name}", round_)
    more = {}
    if agent and agent.config.ahead.horizon:
        alone = returns
        returns, lengths = play(task, agent, seeds, log, "look ahead", round_, actor=look_ahead)
        gain = score(returns - alone)
        difference = {"mean": gain["mean"], "se": gain["sd"] / np.sqrt(episodes)}
        more = {"alone": score(alone), "difference": difference}
    return score(returns) | {"length": float(lengths.mean()), "seed": seed} | more


def play(
    task: str, agent: Agent | None, seeds: np.ndarray, log, stage: str, round_: int, done=0, **more
) -> Rollouts:
    """Real episodes of the agent, or of the random policy if it is None, with progress -> returns, lengths.

    done: episodes that were played before; more: arguments of real_rollouts or blind_rollouts.
    """
    with log.progress(stage, round_, done + len(seeds), "episodes") as report:
        more |= {"log": log.line, "progress": lambda n: report(done + n)}
        if agent is None:
            return blind_rollouts(task, seeds, **more)
        return real_rollouts(agent, agent.theta[None], seeds, **more)


def collecting_policy(config: Config) -> Callable:
    """rng -> the policy of one episode of the first round."""
    c = config.collect
    holds = {"hold": c.hold, "long_hold": c.long_hold, "swing": c.swing}
    return partial(random_policy, config.task, repeat=config.repeat, **holds)


def look_ahead(world: World, thetas: np.ndarray, seeds: np.ndarray) -> LookAhead:
    """C that looks ahead, with the parameters of the first row in all."""
    return LookAhead(world, world.agent.controller(thetas[0]), seeds)


class Explorer:
    """The agent while it collects data, in a group of n episodes: features (n, F) -> actions (n, A).

    noise: std of smooth noise on the actions, lasting some steps; spread: std of noise on C's parameters in every third
    episode, if the agent does not look ahead. Both depend on the episodes' seeds alone.
    """

    def __init__(self, world: World, thetas: np.ndarray, seeds: np.ndarray, noise=0.0, spread=0.0):
        self.rng = np.random.default_rng([len(seeds), *seeds])
        if spread:
            third = (np.arange(len(thetas)) % 3 == 2)[:, None]
            thetas = thetas + third * spread * self.rng.standard_normal(thetas.shape)
        self.act = world.agent.controller(thetas)
        if world.agent.config.ahead.horizon:
            self.act = look_ahead(world, thetas, seeds)
        self.noise = noise
        self.drift = np.zeros((len(seeds), world.m.action_size))

    def __call__(self, features: np.ndarray) -> np.ndarray:
        fresh = self.rng.standard_normal(self.drift.shape)
        self.drift = 0.8 * self.drift + 0.6 * self.noise * fresh
        return np.clip(self.act(features) + self.drift, -1, 1)


def real_rollouts(
    agent: Agent,
    thetas: np.ndarray,
    seeds: np.ndarray,
    log: Callable[[str], None] = print,
    progress: Callable[[int], None] = lambda n: None,
    actor: Callable | None = None,
    paths: list[Path] | None = None,
) -> Rollouts:
    """Every candidate, thetas (P, parameters of C), in the same real episodes, seeds (E,) -> (P, E) each.

    log: gets a line when an environment dies and its group is repeated; progress: gets the number of episodes that
    have ended; actor: (world, thetas (n, ...), seeds (n,)) -> what acts, such as an Explorer (default: C); paths:
    P * E files to record the episodes in.
    """
    shape = len(thetas), len(seeds)
    p, e = np.indices(shape).reshape(2, -1)
    groups = [slice(first, first + GROUP) for first in range(0, p.size, GROUP)]
    jobs = [(thetas[p[g]], seeds[e[g]], paths and paths[g]) for g in groups]
    return joined(_play_all(_play_group, jobs, (agent, actor), paths, log, progress), shape)


def blind_rollouts(
    task: str,
    seeds: np.ndarray,
    log: Callable[[str], None] = print,
    progress: Callable[[int], None] = lambda n: None,
    paths: list[Path] | None = None,
    min_length: int = 1,
    make_policy: Callable[[np.random.Generator], Policy] | None = None,
    repeat: int = 1,
    encode: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Rollouts:
    """E episodes of a policy that sees nothing, recorded in `paths` if given -> (E,) each.

    make_policy: rng -> the policy of one episode (default: the random policy that scores are compared with).
    min_length: a shorter episode is replaced by another (authors' extract.py). repeat: frames of a step.
    encode: records of an episode -> what is written in their place, such as its series.
    """
    shared = task, repeat, min_length, make_policy or partial(random_policy, task), encode
    jobs = [(int(seed), paths and paths[i]) for i, seed in enumerate(seeds)]
    return joined(_play_all(_play_blind, jobs, shared, paths, log, progress), len(seeds))


def _play_all(play, jobs: list[tuple], shared: tuple, paths, log, progress) -> list[Rollouts]:
    """play(*shared, *job) of every job, in order, on all processes; what died is played again."""
    from ..envs.environment import EnvironmentDied

    pool = parallel.Local if paths else None  # recorded to a disk that the next stage can read
    results = [None] * len(jobs)
    done = 0
    for i, result in parallel.processes(play, jobs, shared, (EnvironmentDied,), log, pool):
        results[i] = result
        done += np.size(result[0])
        progress(done)
    return results


# ------------------------------------------------------------------------------------------ inside a worker process


@contextmanager
def _environments(task: str, repeat: int, n: int, keep: bool) -> Iterator[list[Recorder]]:
    """n environments of this process; those that died are replaced for the next job."""
    from ..envs.environment import Environment, EnvironmentDied

    envs = _kept(task, repeat)
    # One after the other: started on threads, 8 engines need half the time, but ViZDoom has crashed at that.
    envs += [Recorder(Environment(task, repeat=repeat)) for _ in range(n - len(envs))]
    for env in envs:
        env.keep = keep
    try:
        yield envs[:n]
    except EnvironmentDied:
        while envs:
            envs.pop().close()
        raise


@lru_cache(maxsize=1)
def _kept(task: str, repeat: int) -> list[Recorder]:
    """The environments that this process has made so far: an engine takes half a second to start."""
    return []


def _play_group(agent: Agent, actor, thetas: np.ndarray, seeds: np.ndarray, paths) -> Rollouts:
    """One episode of each row of thetas, recorded if paths are given."""
    c = agent.config
    with _environments(c.task, c.repeat, len(seeds), keep=bool(paths)) as envs:
        world = RealWorld(agent, envs)
        act = actor(world, thetas, seeds) if actor else agent.controller(thetas)
        result = rollout(world, act, seeds)
        for env, path in zip(envs, paths or [], strict=False):
            env.save(path)
    return result


def _play_blind(
    task: str, repeat: int, min_length: int, make_policy, encode, seed: int, path: Path | None
) -> tuple[float, int]:
    """One episode of at least min_length steps, if there is one in 100 attempts."""
    world = find(task)
    with _environments(task, repeat, 1, keep=bool(path)) as (env,):
        for attempt in range(100):
            rng = np.random.default_rng([seed, attempt])
            policy = make_policy(rng)
            total, length, over = 0.0, 0, False
            env.reset(seed=seed if attempt == 0 else int(rng.integers(2**28)))
            while not over:
                _, reward, terminated, truncated, _ = env.step(world.taken(policy()))
                total += reward
                length += 1
                over = terminated or truncated
            if length >= min_length:
                break
        if path:
            env.save(path, encode)
    return total, length
