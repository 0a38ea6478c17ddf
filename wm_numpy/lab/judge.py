"""Can M's dream be trusted? What V and M know (probes.py), and the same policies in dream and reality.

All on real episodes of the collecting policy and of C that neither V nor M has seen.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..envs.policies import blind_baseline
from ..models.agent import Agent
from ..settings.tasks import find
from ..system import process
from ..training.data import Records, encoded, frame_dtype, series_dtype
from ..training.episodes import (
    blind_rollouts,
    collecting_policy,
    episode_seeds,
    real_rollouts,
    score,
)
from ..worlds.rollout import Rollouts, rollout
from ..worlds.world import Dream
from . import probes
from .statistics import short

LEGEND = {
    "nll": "of the next z, nats per dimension: lower is better",
    "gaussian": "the same of one fixed Gaussian: the baseline",
    "z error": "squared error of the mean dream per latent dimension; useful while below the next two",
    "no change": "the same if z stayed as it is",
    "mean frame": "the same of the mean of all frames",
    "reward": "mean real reward so far",
    "dreamt": "the same in M's dreams, under the same actions",
    "r": "correlation of real and dreamt reward",
    "ended": "share of the episodes that had ended",
    "p(end)": "the same share as M predicts it",
    "AUC": "how often M ranks an episode that ended above one that did not; 0.5 is chance",
    "C acts": "reward so far in dreams where C acts; what exceeds the real reward is exploited",
    "pairs": "how often M prefers the better of two actions from the same moment; 0.5 is chance",
}
REALITY = 0.0  # in the place of a temperature


class Findings(NamedTuple):
    """What `judge` finds, by policy where there are several."""

    steps: dict[str, dict]  # probes.one_step
    loops: dict[str, list[dict]]  # probes.open_loop
    plans: list[dict]
    facts: list[dict]
    returns: dict[tuple[str, float], np.ndarray]  # by policy and temperature, or REALITY


def judge(agent: Agent, episodes: int, taus: Sequence[float]) -> Findings:
    """Measure everything, and print each table as soon as it is known, with a verdict at the end."""
    c, unit = agent.config, find(agent.config.task).reward
    policies = {
        "collecting policy": collecting_policy(c),
        "blind baseline": partial(blind_baseline, c.task, repeat=c.repeat),
        "C": None,
    }
    seeds = episode_seeds("check", episodes, 0, 98)
    real = {name: recorded(agent, policy, seeds) for name, policy in policies.items()}
    sources = ("collecting policy", "C")  # M's own data, and where C leads it
    steps = {name: probes.one_step(agent, real[name]) for name in sources}
    loops = {name: probes.open_loop(agent, real[name], closed=name == "C") for name in sources}
    rows = [{"policy": name} | row for name in sources for row in loops[name]]
    show("M one step ahead", [{"policy": name} | row for name, row in steps.items()])
    show("open loop: dreams from recorded moments, under the recorded actions, tau 1", rows)
    games = probes.replays(agent, real["C"], seeds)
    plans, facts = probes.plans(games), probes.facts(games)
    show("plans: actions held from the same moment on, in M's dreams and in the game", plans)
    show("facts, read off by linear probes; R2: 1 is perfect, AUC: 0.5 is chance", facts)
    rows, returns = [], {}
    for (policy, tau), (got, lengths) in lives(agent, policies, real, seeds, taus):
        returns[policy, tau] = got
        result = score(got)
        row = {"policy": policy, "world": f"dream at tau {tau:g}" if tau else "reality"}
        row |= {"mean": result["mean"], "SD": result["sd"], "steps": lengths.mean()}
        rows.append(row | {"95 % of the mean": "{:.1f} to {:.1f}".format(*result["ci95"])})
    show(f"the same policies in both worlds: {episodes} whole episodes, {unit}", rows)
    found = Findings(steps, loops, plans, facts, returns)
    print("verdict", *verdict(found, unit), sep="\n  ", flush=True)
    return found


def show(title: str, rows: Sequence[dict]) -> None:
    """Print rows of words and numbers by name under a line of the names, and what those mean; nothing if empty."""
    if not rows:
        return

    def cell(x: str | float) -> str:
        if isinstance(x, str | int):
            return str(x)
        return f"{x:.1f}" if abs(x) >= 10 else f"{x:.3f}"

    columns, legend = [], []
    for name in dict.fromkeys(name for row in rows for name in row):
        cells = [name, *(cell(row.get(name, "")) for row in rows)]
        width = max(map(len, cells))
        words = any(row.get(name) and isinstance(row[name], str) for row in rows)
        columns.append([f"{x:{'<' if words else '>'}{width}}" for x in cells])
        if name in LEGEND:
            legend.append(f"  {name:10}  {LEGEND[name]}")
    lines = ["  " + "  ".join(line).rstrip() for line in zip(*columns, strict=True)]
    print(title, *lines, *legend, "", sep="\n", flush=True)


# ------------------------------------------------------------------------------------------ in dream and in reality


def recorded(agent: Agent, policy: Callable | None, seeds: np.ndarray) -> list[np.ndarray]:
    """Real episodes of a policy that sees nothing, or of C if None -> their series.

    Their reward is what M's reward head learns, not the environment's score.
    """
    c = agent.config
    A = agent.m.action_size
    dtype = series_dtype(c.vae.z_size, A, "value" in agent.m.heads)
    with process.temporary_folder() as folder:
        paths = [Path(folder) / f"{i:06d}.npy" for i in range(len(seeds))]
        if policy is None:
            real_rollouts(agent, agent.theta[None], seeds, paths=paths)
        else:
            blind_rollouts(c.task, seeds, paths=paths, make_policy=policy, repeat=c.repeat)
        records = Records(Path(folder), frame_dtype(A))
        episodes = (records.read(i) for i in range(len(seeds)))
        return [encoded(e, dtype, agent.v.encode, c.mdnrnn.gamma) for e in episodes]


def lives(
    agent: Agent,
    policies: dict[str, Callable | None],
    real: dict[str, list[np.ndarray]],
    seeds: np.ndarray,
    taus: Sequence[float],
) -> Iterator[tuple[tuple[str, float], Rollouts]]:
    """The same policies in reality and in dreams: where their returns differ, M is wrong about the world.

    A dream can be right about the policy that collected M's data and wrong where C leads it. Yields (policy, tau),
    (returns, lengths): first REALITY, from recorded series, then whole dreams at each temperature. A return is the sum
    of what M's reward head learns.
    """

    def actor(policy: Callable | None) -> Callable:
        if policy is None:
            return agent.controller()
        each = [policy(np.random.default_rng([0, i])) for i in range(len(seeds))]
        return lambda features: np.stack([act() for act in each])

    for name, policy in policies.items():
        rewards = [series["reward"][:-1] for series in real[name]]
        returns = np.array([r.sum() for r in rewards])
        yield (name, REALITY), (returns, np.array([len(r) for r in rewards]))
        for tau in taus:
            world = Dream.as_evolved(agent, len(seeds), tau=tau, horizon=0, memories=0)
            yield (name, tau), rollout(world, actor(policy), seeds)


# --------------------------------------------------------------------------------------------------------- in words


def verdict(found: Findings, unit: str) -> list[str]:
    """What the tables say, in sentences."""
    gain = found.steps["C"]["gaussian"] - found.steps["C"]["nll"]
    better = f"{gain:.2f} nats per dimension better" if gain > 0 else "no better"
    sentences = [f"While C plays, M predicts the next z {better} than a fixed Gaussian."]
    known = 0
    for row in found.loops["C"]:
        if row["z error"] >= min(row["no change"], row["mean frame"]):
            break
        known = row["steps"]
    closer = f"for {known} steps" if known else "at no horizon"
    sentences.append(f"Under recorded actions its dream beats both baselines {closer}.")
    for row in found.loops["C"][-1:]:
        if "reward" in row:
            dream, real = row["C acts"], row["reward"]
            paid = f"its dream has paid C {short(dream)} and reality {short(real)}"
            paid = f"{row['steps']} steps after a recorded moment {paid}"
            sentences.append(f"{paid}: {kindness(dream, real)}.")
    real = found.returns["C", REALITY]
    for (policy, tau), dream in found.returns.items():
        if policy == "C" and tau != REALITY:
            got = f"{short(dream.mean())} in the dream at tau {tau:g}"
            got += f" and {short(real.mean())} in reality ({unit})"
            in_words = kindness(dream.mean(), real.mean())
            sentences.append(f"Over whole episodes C gets {got}: {in_words}.")
    for other in ("blind baseline", "collecting policy"):
        lead = real - found.returns[other, REALITY]  # in the same games
        mean, error = lead.mean(), lead.std(ddof=1) / np.sqrt(len(lead))
        gap = f"{short(abs(mean))} +- {short(error)} {'more' if mean > 0 else 'less'}"
        doubt = ", too few games to be sure" if abs(mean) <= 2 * error else ""
        sentences.append(f"In reality C gets {gap} than the {other}{doubt}.")
    return sentences


def kindness(dream: float, real: float) -> str:
    """A dream's reward beside reality's, in words."""
    if real <= 0:
        return "reality paid nothing"
    more = 100 * (dream / real - 1)
    if abs(more) < 10:
        return f"about right ({more:+.0f} %)"
    return f"kinder than reality by {more:.0f} %" if more > 0 else f"harsher by {-more:.0f} %"
