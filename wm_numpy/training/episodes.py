"""Real episodes on all processes: of the agent, or of a policy that sees nothing; recorded or scored, if asked.

Gymnasium and an engine are imported where an episode begins. Letters: P population, E episodes, n = P * E.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from ..models.agent import Agent
from ..settings.config import Config
from ..settings.tasks import find
from ..worlds.ahead import LookAhead
from ..worlds.policies import random_policy
from ..worlds.rollout import Rollouts, joined, rollout
from ..worlds.world import RealWorld, World
from . import parallel
from .data import Recorder
from .log import Log

GROUP = 8  # real episodes that one process steps together, so that V and M run on a batch
PURPOSES = ("collect", "evolve", "check", "evaluate")  # seeds of one purpose are used for no other
Progress = Callable[[int], None]  # is told how many episodes have just ended


def episode_seeds(purpose: str, n: int, *key: int) -> np.ndarray:
    """n environment seeds for a purpose; the four purposes have ranges of their own."""
    drawn = np.random.SeedSequence(key).generate_state(n) % 2**28
    return (drawn + PURPOSES.index(purpose) * 2**28).astype(np.int64)


def score(returns: np.ndarray) -> dict[str, float]:
    """Mean, standard deviation and 95 % interval of the mean (normal) of episodes' returns."""
    n = np.size(returns)
    mean = float(np.mean(returns))
    sd = float(np.std(returns, ddof=1))
    half = 1.96 * sd / np.sqrt(n)
    return {"mean": mean, "sd": sd, "ci95": [mean - half, mean + half], "episodes": n}


def evaluate(
    task: str, agent: Agent | None, episodes: int, seed: int, log: Log, round_=1, name="agent"
) -> dict:
    """Play real episodes on held-out seeds -> score() with the seed and the mean length.

    An agent that looks ahead plays them twice: `alone` is the score of its C alone, `difference` what looking ahead
    adds to an episode, on the mean, and the standard error of that.
    """
    seeds = episode_seeds("evaluate", episodes, seed)
    returns, lengths = play(task, agent, seeds, log, f"evaluate {name}", round_)
    more = {}
    if agent is not None and agent.config.ahead.horizon:
        alone = returns
        returns, lengths = play(task, agent, seeds, log, "look ahead", round_, actor=look_ahead)
        gain = score(returns - alone)
        difference = {"mean": gain["mean"], "se": gain["sd"] / np.sqrt(episodes)}
        more = {"alone": score(alone), "difference": difference}
    return score(returns) | {"length": float(lengths.mean()), "seed": seed} | more


def play(
    task: str, agent: Agent | None, seeds: np.ndarray, log, stage: str, round_: int, done=0, **how
) -> Rollouts:
    """Real episodes of the agent, or of the random policy if it is None -> returns, lengths; with progress."""
    with log.progress(stage, round_, done + len(seeds), "episodes") as report:

        def progress(more: int) -> None:
            nonlocal done
            done += more
            report(done)

        if agent is None:
            return blind_rollouts(task, seeds, log.line, progress, **how)
        return real_rollouts(agent, agent.theta[None], seeds, log.line, progress, **how)


def collecting_policy(config: Config) -> Callable:
    """rng -> the random policy of one episode, as the first round collects with it."""
    c = config.collect
    how = {"hold": c.hold, "long_hold": c.long_hold, "swing": c.swing, "repeat": config.repeat}
    return partial(random_policy, config.task, **how)


def look_ahead(world: World, thetas: np.ndarray, seeds: np.ndarray) -> LookAhead:
    """C that looks ahead, the same candidate in every row."""
    return LookAhead(world, world.agent.controller(thetas[0]), seeds)


class Explorer:
    """The agent as a group of episodes meets it that others learn from: features (n, F) -> actions (n, A).

    noise: std of smooth noise on the actions, lasting some steps; spread: std of noise on C's parameters, in every
    third episode, of one that does not look ahead. Both depend on the episodes' seeds alone.
    """

    def __init__(self, world: World, thetas: np.ndarray, seeds: np.ndarray, noise=0.0, spread=0.0):
        self.rng = np.random.default_rng([len(seeds), *seeds])
        if spread:
            third = (np.arange(len(thetas)) % 3 == 2)[:, None]
            thetas = thetas + third * spread * self.rng.standard_normal(thetas.shape)
        agent = world.agent
        self.act = agent.controller(thetas)
        if agent.config.ahead.horizon:
            self.act = look_ahead(world, thetas, seeds)
        self.noise = noise
        self.drift = np.zeros((len(seeds), world.m.action_size))

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """The actions of one step."""
        fresh = self.rng.standard_normal(self.drift.shape)
        self.drift = 0.8 * self.drift + 0.6 * self.noise * fresh
        return np.clip(self.act(features) + self.drift, -1, 1)


def real_rollouts(
    agent: Agent,
    thetas: np.ndarray,
    seeds: np.ndarray,
    log: Callable[[str], None] = print,
    progress: Progress = lambda n: None,
    actor: Callable | None = None,
    paths: list[Path] | None = None,
) -> Rollouts:
    """Every candidate, thetas (P, parameters of C), in the same real episodes, seeds (E,) -> (P, E) each.

    log: takes a line when an environment dies and its group is repeated; actor: world, thetas (n, ...), seeds (n,) ->
    what acts, such as an Explorer; C itself if None; paths: P * E files to record the episodes in.
    """
    shape = len(thetas), len(seeds)
    p, e = np.indices(shape).reshape(2, -1)
    groups = [slice(first, first + GROUP) for first in range(0, p.size, GROUP)]
    jobs = [(thetas[p[g]], seeds[e[g]], actor, paths and paths[g]) for g in groups]
    here = parallel.SPAWN if paths else None  # to a disk that the next stage can read
    return joined(_play_all(_play_group, jobs, log, progress, here, _set_agent, (agent,)), shape)


def blind_rollouts(
    task: str,
    seeds: np.ndarray,
    log: Callable[[str], None] = print,
    progress: Progress = lambda n: None,
    paths: list[Path] | None = None,
    min_length: int = 1,
    make_policy: Callable[[np.random.Generator], Callable[[], np.ndarray]] | None = None,
    repeat: int = 1,
    encode: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Rollouts:
    """E episodes of a policy that sees nothing, recorded in `paths` if given -> (E,) each.

    Each episode has a policy of its own, make_policy(rng); by default the one that scores are compared with. An
    episode shorter than min_length is replaced by another (authors' extract.py). repeat: frames of a step.
    encode: records of an episode -> what is written in their place, such as its series.
    """
    make_policy = make_policy or partial(random_policy, task)
    how = min_length, make_policy
    jobs = [(task, repeat, int(s), paths and paths[i], *how) for i, s in enumerate(seeds)]
    here = parallel.SPAWN if paths else None
    setup = (_set_encode, (encode,)) if encode else ()
    return joined(_play_all(_play_blind, jobs, log, progress, here, *setup), len(seeds))


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
_encode: Callable[[np.ndarray], np.ndarray] | None = None  # for what a blind episode is kept as
_envs: list[Recorder] = []  # kept: an engine starts for half a second
_kind = None  # their task and repeat: on a cluster a process lives for more than one run


def _set_agent(agent: Agent) -> None:
    global _agent
    _agent = agent


def _set_encode(encode: Callable[[np.ndarray], np.ndarray]) -> None:
    global _encode
    _encode = encode


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
    thetas: np.ndarray, seeds: np.ndarray, actor: Callable | None, paths: list[Path] | None
) -> Rollouts:
    """One episode of each row of thetas."""
    c = _agent.config
    envs = _environments(c.task, c.repeat, len(seeds), keep=paths is not None)
    world = RealWorld(_agent, envs)
    act = actor(world, thetas, seeds) if actor else _agent.controller(thetas)
    result = rollout(world, act, seeds)
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
        env.save(path, _encode)
    return total, length
