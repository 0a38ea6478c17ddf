"""How far M's dream can be followed: recorded moments replayed in it, under the recorded actions or under C's.

M knows the world for as many steps as its error of z is below both baselines. Recorded actions fit the road and the
fireballs that really came; beyond the first frames a dream invents others, so that even a perfect M tells too little
reward and too many ends there. Where C acts (closed loop), reward that it is told beyond the true one is exploited.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from ..models.agent import Agent
from ..worlds.world import Dream, weighted
from .statistics import auc, correlation

HORIZONS = (5, 20, 50, 100, 200)  # steps into the dream
MOMENTS = 256  # replayed
DREAMS = 4  # of each moment
LEGEND = {
    "z: M": "squared error of the mean dream per latent dimension; M knows the world while it is below the next two",
    "stays": "the same if nothing changed",
    "mean": "the same of the mean of all frames",
    "reward: true": "what came, up to there",
    "told": "what the dream paid under the recorded actions",
    "r": "how the two correlate over moments",
    "end: true": "share of the moments whose episode had ended",
    "odds": "the same as the dream tells it",
    "AUC": "how often M tells an end that came from one that did not; 0.5 is a guess",
    "C: told": "what the dream pays where C acts in it: more than the true reward is exploited",
}


class Moments(NamedTuple):
    """n moments of recorded episodes, the steps before and after them, and M's memory there."""

    latents: np.ndarray  # mu and logvar (2, n, Z)
    h: np.ndarray  # (n, H)
    c: np.ndarray
    left: np.ndarray  # (n,) steps left in the episode
    ended: np.ndarray  # (n,) whether it ended, and was not cut
    steps: np.ndarray  # (L + 1, n) records from the moment on; zeros beyond the episode


def moments(agent: Agent, series: list[np.ndarray], n: int, seed: int = 0) -> Moments:
    """n moments drawn from all steps but the first of an episode, M led there from that episode's first frame."""
    rng = np.random.default_rng(seed)
    lengths = np.array([len(s) - 1 for s in series])
    which = rng.choice(len(series), n, p=(lengths - 1) / (lengths - 1).sum())
    at = rng.integers(1, lengths[which])
    longest = lengths.max() + max(HORIZONS) + 1
    padded = np.zeros((longest, len(series)), series[0].dtype)
    for i, s in enumerate(series):
        padded[: len(s), i] = s
    h, c = np.zeros((2, n, agent.config.mdnrnn.hidden), np.float32)
    past = padded[: at.max()]
    restart = np.zeros(past.shape)
    restart[0] = 1
    for t, state in enumerate(agent.m.follow(past["mu"], past["action"], restart)):
        here = at == t + 1
        h[here] = state[0][which[here]]
        c[here] = state[1][which[here]]
    steps = padded[at + np.arange(max(HORIZONS) + 1)[:, None], which]
    ended = padded["done"][lengths[which] - 1, which]
    latents = np.stack([steps["mu"][0], steps["logvar"][0]])
    return Moments(latents, h, c, lengths[which] - at, ended, steps)


def replay(agent: Agent, m: Moments, act: Callable | None = None) -> tuple[np.ndarray, ...]:
    """DREAMS dreams from each moment under the recorded actions, or under `act`: features (n, F) -> actions (n, A).

    Dreams do not end here: rewards count by the odds that life goes on.

    Returns z (L, DREAMS, n, Z), and means over the dreams: the reward told so far, the odds of an end so far (L, n).
    """
    agent = replace(agent, memories=(m.latents, m.h, m.c))
    steps = max(HORIZONS)
    n = len(m.h)
    world = Dream(agent, n * DREAMS, horizon=steps, memories=1.0, ending=weighted)
    features, _ = world.reset(seed=np.arange(n * DREAMS))  # dream i begins in moment i % n
    z = []
    told = np.zeros((steps, n))
    ended = np.zeros((steps, n))
    for t in range(steps):
        action = np.tile(m.steps["action"][t], (DREAMS, 1)) if act is None else act(features)
        features, reward, *_ = world.step(action)
        z.append(features[:, : agent.config.vae.z_size].reshape(DREAMS, n, -1))
        told[t] = reward.reshape(DREAMS, n).mean(axis=0)
        ended[t] = 1 - world.survival.reshape(DREAMS, n).mean(axis=0)
    return np.stack(z), told.cumsum(axis=0), ended


def open_loop(agent: Agent, series: list[np.ndarray], closed=False, n=MOMENTS) -> list[dict]:
    """What M dreams under recorded actions beside what really happened, a row for every number of steps.

    n: moments that reach so far, or whose episode ended before; LEGEND says what the figures are. The dreams' own
    spread is off the error of their mean. closed: C acts in the dream, too; for episodes of C, where the record is the
    truth.
    """
    m = moments(agent, series, n)
    z, told, odds = replay(agent, m)
    if closed:
        _, told_c, _ = replay(agent, m, agent.controller())
    everything = np.concatenate([s["mu"][s["seen"]] for s in series]).mean(axis=0)
    true = m.steps["reward"].cumsum(axis=0)
    rows = []
    for k in HORIZONS:
        ended = m.ended & (m.left <= k)
        whole = (m.left >= k) | (ended & ("done" in agent.m.heads))
        seen = m.steps["seen"][k]
        if whole.sum() < 2 or not seen.any():
            break
        mu = m.steps["mu"][k][seen]
        dreams = z[k - 1][:, seen]
        noise = dreams.var(axis=0, ddof=1).mean() / DREAMS
        row = {
            "steps": k,
            "n": int(whole.sum()),
            "z: M": float(np.mean((dreams.mean(axis=0) - mu) ** 2) - noise),
            "stays": float(np.mean((m.latents[0][seen] - mu) ** 2)),
            "mean": float(np.mean((everything - mu) ** 2)),
        }
        got = true[k - 1][whole]
        if "reward" in agent.m.heads or "done" in agent.m.heads:
            row |= {
                "reward: true": float(got.mean()),
                "told": float(told[k - 1][whole].mean()),
                "r": correlation(told[k - 1][whole], got),
            }
        if "done" in agent.m.heads:
            row |= {
                "end: true": float(ended[whole].mean()),
                "odds": float(odds[k - 1][whole].mean()),
                "AUC": auc(odds[k - 1][whole], ended[whole]),
            }
        if closed:
            row["C: told"] = float(told_c[k - 1][whole].mean())
        rows.append(row)
    return rows
