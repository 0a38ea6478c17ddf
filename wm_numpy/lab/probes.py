"""Four questions to V and M about real episodes that they never learnt from; judge.py prints the answers.

`one_step`: how well does M predict the next z? `open_loop`: for how long does a dream that goes on from a recorded
moment stay close to what happened? Then the episodes are replayed in the game itself, by their actions.
`facts`: what of the game's truth can a linear probe read off z, and off what C sees? `plans`: of several actions held
from a moment on, does M know which brings more?

Letters: n moments, T steps, K plans, Z latent, F features.
"""

from collections.abc import Callable
from dataclasses import replace
from pkgutil import resolve_name
from typing import NamedTuple

import numpy as np

from ..envs.environment import Environment
from ..models.agent import Agent
from ..settings.config import AheadConfig
from ..settings.tasks import find
from ..training import parallel
from ..training.data import transitions
from ..worlds.ahead import imagine
from ..worlds.ahead import plans as alternatives
from ..worlds.world import Dream
from .statistics import auc, correlation, r2, ridge

HORIZONS = (5, 20, 50, 100, 200)  # steps into the dream
MOMENTS = 256  # from which dreams go on
DREAMS = 4  # from each moment
STEPS = (1, 2, 4, 8, 16)  # for which plans are held
PLANNED = 6  # moments of an episode at which plans are compared, two thirds of them within the last LATE steps
LATE = 10
SAMPLES = 16  # dreams of a plan


def one_step(agent: Agent, series: list[np.ndarray]) -> dict[str, float]:
    """Nats per dimension of the next z: M's negative log likelihood, and that of one Gaussian fitted to these z."""
    rng = np.random.default_rng([0, 99])
    nll, seen = [], []
    for s in series:
        batch = {name: x[None] for name, x in transitions(s, rng, restart=True).items()}
        nll.append(agent.m.loss_and_grad(batch)[0]["z"])
        seen.append(batch["z_next"][batch["z_mask"] > 0])
    entropy = np.log(np.concatenate(seen).std(axis=0)) + 0.5 * np.log(2 * np.pi * np.e)  # (Z,)
    nll = np.average(nll, weights=[len(z) for z in seen])
    return {"nll": float(nll), "gaussian": float(entropy.mean())}


# ------------------------------------------------------------------------------------------------------- open loop


class Moments(NamedTuple):
    """n moments of recorded episodes, M's memory there, and what follows."""

    h: np.ndarray  # (n, H)
    c: np.ndarray
    left: np.ndarray  # (n,) steps left in the episode
    steps: np.ndarray  # (T + 1, n) records from the moment on; zeros beyond the episode


def moments(agent: Agent, series: list[np.ndarray], n: int) -> Moments:
    """n moments drawn from all steps but the first of an episode, M led there from that episode's first frame."""
    rng = np.random.default_rng(0)
    lengths = np.array([len(s) - 1 for s in series])
    which = rng.choice(len(series), n, p=(lengths - 1) / (lengths - 1).sum())
    at = rng.integers(1, lengths[which])
    padded = np.zeros((lengths.max() + max(HORIZONS) + 1, len(series)), series[0].dtype)
    for i, s in enumerate(series):
        padded[: len(s), i] = s
    past = padded[: at.max()]
    restart = np.zeros(past.shape)
    restart[0] = 1
    memory = np.zeros((2, n, agent.config.mdnrnn.hidden), np.float32)
    for t, state in enumerate(agent.m.follow(past["mu"], past["action"], restart), 1):
        memory[:, at == t] = np.stack(state)[:, which[at == t]]
    steps = padded[at + np.arange(max(HORIZONS) + 1)[:, None], which]
    return Moments(*memory, lengths[which] - at, steps)


def replay(agent: Agent, m: Moments, act: Callable | None = None) -> tuple[np.ndarray, ...]:
    """DREAMS dreams from each moment under the recorded actions, or under `act`: features (n, F) -> actions (n, A).

    Dreams do not end here: rewards are weighted by the probability of being alive.

    Returns z (T, DREAMS, n, Z), and means over the dreams: the reward so far, the probability of an end so far (T, n).
    """
    latents = np.stack([m.steps["mu"][0], m.steps["logvar"][0]])
    agent = replace(agent, memories=(latents, m.h, m.c))
    T, n = max(HORIZONS), len(m.h)
    world = Dream(agent, n * DREAMS, horizon=T, memories=1.0, ending="weighted")
    features, _ = world.reset(seed=np.arange(n * DREAMS))  # dream i begins in moment i % n
    z, (paid, ended) = [], np.zeros((2, T, n))
    for t in range(T):
        action = np.tile(m.steps["action"][t], (DREAMS, 1)) if act is None else act(features)
        features, reward, *_ = world.advance(action)
        z.append(features[:, : agent.config.vae.z_size].reshape(DREAMS, n, -1))
        paid[t] = reward.reshape(DREAMS, n).mean(axis=0)
        ended[t] = 1 - world.survival.reshape(DREAMS, n).mean(axis=0)
    return np.stack(z), paid.cumsum(axis=0), ended


def open_loop(agent: Agent, series: list[np.ndarray], closed=False, n=MOMENTS) -> list[dict]:
    """Dreams under recorded actions beside what really happened, a row for each number of steps; see judge.LEGEND.

    n in a row: the moments whose episode lasts that long, or ended before. closed: C also acts in the dream, for
    episodes of C, which are then the truth.
    """
    m = moments(agent, series, n)
    z, paid, p_end = replay(agent, m)
    paid_c = replay(agent, m, agent.controller())[1] if closed else None
    mean = np.concatenate([s["mu"][s["seen"]] for s in series]).mean(axis=0)
    true = m.steps["reward"].cumsum(axis=0)
    rows = []
    for k in HORIZONS:
        ended = m.steps["done"][:k].any(axis=0)
        whole = (m.left >= k) | (ended & ("done" in agent.m.heads))
        seen = m.steps["seen"][k]
        if whole.sum() < 2 or not seen.any():
            break
        row = {"steps": k, "n": int(whole.sum())} | _errors(z[k - 1], m.steps["mu"][[0, k]], seen)
        row["mean frame"] = float(np.mean((mean - m.steps["mu"][k][seen]) ** 2))
        if "reward" in agent.m.heads or "done" in agent.m.heads:
            dreamt, got = paid[k - 1][whole], true[k - 1][whole]
            row |= {"reward": float(got.mean()), "dreamt": float(dreamt.mean())}
            row["r"] = correlation(dreamt, got)
        if "done" in agent.m.heads:
            odds = p_end[k - 1][whole]
            row |= {"ended": float(ended[whole].mean()), "p(end)": float(odds.mean())}
            row["AUC"] = auc(odds, ended[whole])
        if closed:
            row["C acts"] = float(paid_c[k - 1][whole].mean())
        rows.append(row)
    return rows


def _errors(dreams: np.ndarray, mu: np.ndarray, seen: np.ndarray) -> dict[str, float]:
    """Of dreams (DREAMS, n, Z) and of no change; mu: at the moments and now (2, n, Z); seen (n,): those with a frame.

    The dreams' own spread is subtracted from the error of their mean.
    """
    dreams, (before, now) = dreams[:, seen], mu[:, seen]
    noise = dreams.var(axis=0, ddof=1).mean() / DREAMS
    error = float(np.mean((dreams.mean(axis=0) - now) ** 2) - noise)
    return {"z error": error, "no change": float(np.mean((before - now) ** 2))}


# --------------------------------------------------------------------------------------------------- replayed games


class Replay(NamedTuple):
    """An episode of C of T steps, played again: what the agent knew, what was true, and n moments with K plans."""

    readers: dict[str, np.ndarray]  # mu, z and C's features (T, ...)
    truth: list[dict]  # of every step, facts by name, NaN where one does not apply
    dreamt: np.ndarray  # reward so far of each plan in M's dreams (n, K, T)
    true: np.ndarray  # and in the game
    ended: np.ndarray  # whether that had ended


def replays(agent: Agent, series: list[np.ndarray], seeds: np.ndarray) -> list[Replay]:
    """Recorded episodes of C, played again from their seeds on all processes."""
    jobs = [(int(seed), s) for seed, s in zip(seeds, series, strict=True)]
    found = dict(parallel.processes(_replay, jobs, (agent,)))
    return [found[i] for i in range(len(jobs))]


def facts(games: list[Replay]) -> list[dict]:
    """Linear probes, fitted to three quarters of the episodes and tested on the rest: a row for each fact.

    measure: R2 of a number, AUC of a yes or no. What mu does not hold, V does not see; what C's features hold beyond
    z, M remembers.
    """
    test = np.concatenate([np.full(len(g.truth), i % 4 == 1) for i, g in enumerate(games)])
    readers = {name: np.concatenate([g.readers[name] for g in games]) for name in games[0].readers}
    truth = [told for g in games for told in g.truth]
    return [probe(name, np.array([t[name] for t in truth]), readers, test) for name in truth[0]]


def probe(name: str, fact: np.ndarray, readers: dict[str, np.ndarray], test: np.ndarray) -> dict:
    """A fact (T,) predicted from each reader's x (T, F), and judged where `test` (T,) is True."""
    known = np.isfinite(fact)
    test, fact = test[known], fact[known].astype(float)
    yes_or_no = set(np.unique(fact)) <= {0, 1}
    row = {"fact": name, "measure": "AUC" if yes_or_no else "R2"}
    for reader, x in readers.items():
        row[reader] = np.nan  # too few episodes to tell
        if all(len(np.unique(fact[part])) > 1 for part in (test, ~test)):
            predicted, true = ridge(x[known], fact, test), fact[test]
            row[reader] = auc(predicted, true > 0) if yes_or_no else r2(predicted, true)
    return row


def plans(games: list[Replay]) -> list[dict]:
    """What M predicts for actions held from a moment on, and what the game then brings; see judge.LEGEND."""
    dreamt, true, ended = (np.concatenate(x) for x in list(zip(*games, strict=True))[2:])
    rows = []
    for k in STEPS:
        a, b = dreamt[:, :, k - 1], true[:, :, k - 1]
        first, second = np.triu_indices(a.shape[1], 1)
        gap = b[:, first] - b[:, second]
        right = np.sign(a[:, first] - a[:, second]) * np.sign(gap)
        differ = np.abs(gap) > 1e-6
        row = {"steps": k, "n": int(differ.sum()), "reward": b.mean(), "dreamt": a.mean()}
        row["r"] = correlation(a.ravel(), b.ravel())
        row["AUC"] = auc(-a.ravel(), ended[:, :, k - 1].ravel())
        row["pairs"] = 0.5 + 0.5 * right[differ].mean() if differ.any() else np.nan
        rows.append(row)
    return rows


def _replay(agent: Agent, seed: int, series: np.ndarray) -> Replay:
    """An episode, in a worker process."""
    c = agent.config
    task = find(c.task)
    if task.telling:
        task = replace(task, make=resolve_name(task.telling))
    env = Environment(task, repeat=c.repeat)
    truth = getattr(env.game.unwrapped, "truth", dict)
    rng = np.random.default_rng(seed)
    episode = transitions(series, rng, restart=True)
    z, action, restart = (episode[name][:, None] for name in ("z", "action", "restart"))
    states = [agent.m.initial_state(1), *agent.m.follow(z, action, restart)][:-1]
    h, cell = map(np.concatenate, zip(*states, strict=True))
    parts = {"z": z[:, 0], "h": h, "c": cell}
    seen = np.concatenate([parts[name] for name in c.evolve.features], axis=1)
    found = []
    env.reset(seed=seed)
    for a in episode["action"]:
        found.append(truth())
        env.step(a)
    plans = [
        _compare(agent, env, seed, episode["action"][: t + 1], (z[t], states[t], t))
        for t in _late(len(found), max(1, PLANNED // agent.m.action_size), rng)
    ]
    env.close()
    readers = {"mu": series["mu"][:-1], "z": z[:, 0], c.evolve.features: seen}
    return Replay(readers, found, *map(np.array, zip(*plans, strict=True)))


def _late(length: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """Up to `count` steps of an episode, most of them shortly before its end."""
    late = rng.integers(max(0, length - LATE), length, count - count // 3)
    return np.unique([*late, *rng.integers(length, size=count // 3)])


def _compare(agent: Agent, env, seed: int, actions: np.ndarray, moment: tuple) -> tuple:
    """The plans that change the last of these actions, from this moment on -> dreamt, true, ended (K, T) each."""
    T = STEPS[-1]
    first, hold = alternatives(actions[-1:], T, [T], find(agent.config.task).discrete)
    settings = AheadConfig(horizon=T, samples=SAMPLES)
    act = agent.controller()
    rewards, _ = imagine(agent, act, moment, first, hold, np.array([seed]), settings)
    dreamt = rewards[:, 0].T  # (K, T)
    true = np.zeros(dreamt.shape)
    ended = np.zeros(dreamt.shape, bool)
    for k, held in enumerate(first[0]):
        env.reset(seed=seed)
        for past in actions[:-1]:
            env.step(past)
        for t in range(T):
            _, reward, terminated, truncated, info = env.step(held)
            true[k, t] = info.get("reward", reward)
            ended[k, t:] = terminated
            if terminated or truncated:
                break
    return dreamt.cumsum(axis=1), true.cumsum(axis=1), ended
