"""Is what M foretells of a plan what then comes? The same real moments gone on from by M and by the game.

C plays, and at some moments, most of them shortly before an end, M dreams what each plan of looking ahead would bring.
Then the game is replayed to that moment and the plan carried out: its reward within so many steps is the truth.

Letters: N moments, K plans, T steps of a plan.
"""

import numpy as np

from ..models.agent import Agent
from ..settings.config import AheadConfig
from ..training import parallel
from ..training.episodes import episode_seeds
from ..worlds.ahead import imagine, plans
from ..worlds.envs import make_env
from ..worlds.world import RealWorld
from .statistics import auc, correlation

STEPS = (1, 2, 4, 8, 16)  # of the plans, and of the forecast
MOMENTS = 6  # of an episode
BEFORE = 10  # steps before the end, from which two thirds of them are drawn
SAMPLES = 16  # dreams of a plan
LEGEND = {
    "true": "mean reward that came",
    "told": "mean reward that M foretold",
    "r": "correlation of the two over moments and plans",
    "auc": "how often M tells a plan that lived from one that died",
    "pairs": "of two plans of a moment with different rewards, how often M prefers the better",
}


def figures(agent: Agent, episodes: int) -> list[dict[str, float]]:
    """A row for every number of steps: steps, n pairs that differ, and what LEGEND says."""
    seeds = episode_seeds("check", episodes, 0, 95)
    parts = dict(parallel.processes(_watch, [(int(seed),) for seed in seeds], _set_agent, (agent,)))
    found = [parts[i] for i in sorted(parts) if len(parts[i][0])]
    told, true, died = (np.concatenate(x) for x in zip(*found, strict=True))  # (N, K, T)
    rows = []
    for k in STEPS:
        a, b = told[:, :, k - 1], true[:, :, k - 1]
        first, second = np.triu_indices(a.shape[1], 1)
        gap = b[:, first] - b[:, second]
        right = np.sign(a[:, first] - a[:, second]) * np.sign(gap)
        differ = np.abs(gap) > 1e-6
        dead = died[:, :, k - 1].ravel()
        row = {"steps": k, "n": int(differ.sum()), "true": b.mean(), "told": a.mean()}
        row |= {"r": correlation(a.ravel(), b.ravel()), "auc": auc(-a.ravel(), dead)}
        row["pairs"] = 0.5 + 0.5 * right[differ].mean() if differ.any() else np.nan
        rows.append(row)
    return rows


# ------------------------------------------------------------------------------------------ inside a worker process

_agent: Agent | None = None


def _set_agent(agent: Agent) -> None:
    global _agent
    _agent = agent


def _watch(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An episode of C -> rewards told, those that came, whether it had ended, (N, K, T) each, sums and so far."""
    env = make_env(_agent.config.task, repeat=_agent.config.repeat)
    world, act = RealWorld(_agent, [env]), _agent.controller()
    actions = []  # those of the episode, in order
    features, _ = world.reset(seed=[seed])
    kept = [world.moment]
    while len(world.rows):
        actions.append(act(features)[0])
        features, *_ = world.advance(actions[-1][None])
        kept.append(world.moment)
    rng = np.random.default_rng(seed)
    length = len(actions)
    late = rng.integers(max(1, length - BEFORE), length, MOMENTS - MOMENTS // 3)
    moments = np.unique([*late, *rng.integers(1, max(length, 2), MOMENTS // 3)])
    moments = moments[moments < length]
    told, true, died = [], [], []
    for t in moments:
        first, hold = plans(actions[t][None], STEPS[-1], [STEPS[-1]], world.task.discrete)
        how = {"hold": hold, "seeds": np.array([seed])}
        how["c"] = AheadConfig(horizon=STEPS[-1], samples=SAMPLES)
        rewards, _ = imagine(_agent, act, kept[t], first, **how)
        told.append(rewards[:, 0].cumsum(axis=0).T)
        came = [_carried_out(env, seed, actions[:t], action) for action in first[0]]
        rewards, ends = zip(*came, strict=True)
        true.append(rewards)
        died.append(ends)
    env.close()
    return np.array(told), np.array(true), np.array(died)


def _carried_out(env, seed: int, before: list[np.ndarray], action: np.ndarray) -> tuple:
    """An episode replayed, then an action held -> reward so far, whether it has ended, (T,) each."""
    env.reset(seed=seed)
    for past in before:
        env.step(past)
    rewards = np.zeros(STEPS[-1])
    ended = np.zeros(STEPS[-1], bool)
    for t in range(STEPS[-1]):
        _, reward, terminated, truncated, info = env.step(action)
        rewards[t] = info.get("reward", reward)
        ended[t:] = terminated
        if terminated or truncated:
            break
    return rewards.cumsum(), ended
