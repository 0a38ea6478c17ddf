"""Can M's dream be trusted? M judged on real episodes of the collecting policy and of C that it never saw.

Step by step: what M's heads say of the step just made. In loops (openloop.py): recorded moments dreamt on. What a
linear probe reads off mu, z and [z h] (sight.py). Whole lives of the same policies in both worlds, side by side.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import cycle, groupby
from operator import itemgetter
from pathlib import Path

import numpy as np

from ..models.agent import Agent
from ..settings.tasks import find
from ..system import process
from ..training.data import Records, encoded, frame_dtype, series_dtype, transitions
from ..training.episodes import (
    blind_rollouts,
    collecting_policy,
    episode_seeds,
    real_rollouts,
    score,
)
from ..worlds.policies import blind_baseline, fixed_policy
from ..worlds.rollout import rollout
from ..worlds.world import Dream
from . import foresight, openloop, sight
from .statistics import r2
from .verdict import verdict

LEGEND = {
    "nll": "of the next z, nats per dimension: lower is better",
    "gaussian": "the same of one fixed Gaussian, which knows nothing: the line to beat",
    "recall": "share of the real ends at which M says so",
    "precision": "share of M's alarms that were real ends",
    "reward_error": "root mean square",
    "reward_sd": "the same if M always told the mean",
    "value_r2": "share of the variance of the reward to come that M's value explains",
}


def findings(agent: Agent, episodes: int, taus: Sequence[float]) -> Iterator[tuple]:
    """All that is found, as it is found: its kind, whom it is about, the figures.

    "steps", policy, figures by name; "loop", policy, rows of openloop.open_loop; "fact", its name, (measure, figure by
    reader); "plans", policy, rows of foresight.figures; "life", (policy, world), (returns, lengths).
    """
    real = {}
    for name, policy in (("collecting", collecting_policy(agent.config)), ("C", None)):
        real[name] = [in_latents(agent, episode) for episode in recorded(agent, policy, episodes)]
        yield "steps", name, step_by_step(agent, as_batches(real[name]))
        yield "loop", name, openloop.open_loop(agent, real[name], closed=policy is None)
    for fact, *told in sight.figures(agent, episodes):
        yield "fact", fact, told
    # plans are many where an action has several numbers
    yield "plans", "C", foresight.figures(agent, max(1, episodes // agent.m.action_size))
    for policy, world, returns, lengths in lives(agent, episodes, taus, real):
        yield "life", (policy, world), (returns, lengths)


HEADINGS = {
    "steps": "M step by step, on {n} held-out episodes of {who}",
    "loop": "M in loops of its own, from recorded moments of {who}, tau 1",
    "fact": "facts read off by a line; R2: 1 is perfect, AUC: 0.5 is a guess",
    "plans": "actions held from the same moments on, in M's dreams and in the game",
    "life": "whole lives of {n} episodes; reward: {reward}; a step and steps: 25, 50, 75 %",
}


def table(agent: Agent, episodes: int, taus: Sequence[float]) -> Iterator[str]:
    """The findings as lines of text, each kind with its legend, and a verdict."""
    found = []
    task = find(agent.config.task)
    for kind, group in groupby(findings(agent, episodes, taus), key=itemgetter(0)):
        some = list(group)
        found += some
        _, about, told = some[0]
        legend = []
        if kind == "steps":
            rows = [{"": name, about: x, "what it is": LEGEND[name]} for name, x in told.items()]
        elif kind == "loop":
            rows = told
            if about == "C" and told:
                known = [name for name in openloop.LEGEND if name in told[0]]
                legend = [f"  {name:13} {openloop.LEGEND[name]}" for name in known]
        elif kind == "fact":
            rows = [{"fact": fact, "": measure} | readers for _, fact, (measure, readers) in some]
        elif kind == "plans":
            rows = told
            legend = [f"  {name:13} {meaning}" for name, meaning in foresight.LEGEND.items()]
        else:
            rows = [life(*about, *told) for _, about, told in some]
        yield HEADINGS[kind].format(n=episodes, who=about, reward=task.reward)
        yield from [*columns(rows), *legend, ""]
    yield "verdict"
    yield from [f"  {sentence}" for sentence in verdict(agent.config.task, found)]


def columns(rows: Sequence[dict]) -> list[str]:
    """Rows of words and numbers by name as lines, under a line of the names."""

    def told(x: str | float) -> str:
        if isinstance(x, str | int):
            return str(x)
        return f"{x:.1f}" if abs(x) >= 10 else f"{x:.3f}"

    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [names, *([told(row.get(name, "")) for name in names] for row in rows)]
    words = [any(isinstance(row.get(name), str) for row in rows) for name in names]
    for k, word in enumerate(words):
        width = max(len(line[k]) for line in lines)
        for line in lines:
            line[k] = line[k].ljust(width) if word else line[k].rjust(width)
    return ["  " + "  ".join(line).rstrip() for line in lines]


def life(policy: str, world: str, returns: np.ndarray, lengths: np.ndarray) -> dict:
    """A row of the table of whole lives."""
    result = score(returns)
    low, high = result["ci95"]
    mean = f"{result['mean']:.1f} +- {result['sd']:.1f} [{low:.1f}, {high:.1f}]"
    pace, steps = (np.quantile(x, (0.25, 0.5, 0.75)) for x in (returns / lengths, lengths))
    return {
        "policy": policy,
        "world": world,
        "reward +- SD [95 % of the mean]": mean,
        "a step": "{:.2f} {:.2f} {:.2f}".format(*pace),
        "steps": "{:.0f} {:.0f} {:.0f}".format(*steps),
    }


def recorded(
    agent: Agent, make_policy: Callable | None, episodes: int, key: int = 98
) -> Iterator[np.ndarray]:
    """Real episodes of a policy that sees nothing, or of C if None, on seeds of their own -> records with frames.

    Their reward is what M's reward head learns, not the environment's score.
    """
    c = agent.config
    seeds = episode_seeds("check", episodes, 0, key)
    with process.temporary_folder() as folder:
        paths = [Path(folder) / f"{i:06d}.npy" for i in range(episodes)]
        if make_policy is None:
            real_rollouts(agent, agent.theta[None], seeds, paths=paths)
        else:
            blind_rollouts(c.task, seeds, paths=paths, make_policy=make_policy, repeat=c.repeat)
        records = Records(Path(folder), frame_dtype(agent.m.action_size))
        for i in range(episodes):
            yield records.read(i)


def another_game(agent: Agent, episodes: int) -> np.ndarray:
    """Returns (E,) of actions that C took in other games: what its habits are worth without seeing."""
    lives = [life["action"][:-1] for life in recorded(agent, None, episodes, key=96)]
    seeds = episode_seeds("check", episodes, 0, 98)
    c = agent.config
    return blind_rollouts(c.task, seeds, make_policy=partial(replayed, lives), repeat=c.repeat)[0]


def replayed(lives: list[np.ndarray], rng: np.random.Generator) -> Callable[[], np.ndarray]:
    """The policy that repeats the actions (T, A) of one of these lives, again and again."""
    return partial(next, cycle(lives[rng.integers(len(lives))]))


def in_latents(agent: Agent, episode: np.ndarray) -> np.ndarray:
    """An episode's series, with the discounted returns if M has a value head."""
    c = agent.config
    dtype = series_dtype(c.vae.z_size, agent.m.action_size, "value" in agent.m.heads)
    return encoded(episode, dtype, agent.v.encode, c.mdnrnn.gamma)


def as_batches(series: list[np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Every series a batch of one for M, z sampled."""
    rng = np.random.default_rng([0, 99])
    episodes = (transitions(s, rng, restart=True) for s in series)
    return [{name: x[None] for name, x in episode.items()} for episode in episodes]


def step_by_step(agent: Agent, batches: list[dict[str, np.ndarray]]) -> dict[str, float]:
    """Figures of M on held-out episodes; those of heads that M lacks are left out.

    nll: nats per dim and step; gaussian: the same of one Gaussian per dim, fitted to these very z; recall and precision
    of done at a logit of 0; reward_error: root mean square; reward_sd: the same if the mean were predicted;
    value_r2: of the discounted returns.
    """
    true = {name: np.concatenate([b[name][0] for b in batches]) for name in batches[0]}
    nll = [agent.m.loss_and_grad(b)[0]["z"] for b in batches]
    steps = [b["z_mask"].sum() for b in batches]
    z = true["z_next"][true["z_mask"] > 0]
    entropy = np.log(z.std(axis=0)) + 0.5 * np.log(2 * np.pi * np.e)  # (Z,), of a Gaussian
    figures = {"nll": float(np.average(nll, weights=steps)), "gaussian": float(entropy.mean())}
    outputs = [agent.m.outputs(b) for b in batches]
    told = {name: np.concatenate([out[name][0] for out in outputs]) for name in outputs[0]}
    if "done_logit" in told:
        said = told["done_logit"] > 0
        was = true["done"] > 0
        hits = float((said & was).sum())
        figures |= {"recall": hits / max(was.sum(), 1), "precision": hits / max(said.sum(), 1)}
    if "reward" in told:
        error = told["reward"] - true["reward"]
        figures["reward_error"] = float(np.sqrt(np.mean(error**2)))
        figures["reward_sd"] = float(true["reward"].std())
    if "value" in told:
        known = true["value_mask"] > 0
        figures["value_r2"] = r2(told["value"][known], true["value"][known])
    return figures


def lives(
    agent: Agent, episodes: int, taus: Sequence[float], real: dict[str, list[np.ndarray]]
) -> Iterator[tuple[str, str, np.ndarray, np.ndarray]]:
    """The same policies in reality and in dreams: where their lives differ, M is wrong about the world.

    The policies: the one that collects data; the first action held at -1, 0 and 1 (left, middle, right; the others
    at 0); the blind baseline; and C. A dream can be right on M's own data and wrong where C leads it.

    real: episodes of some of the policies, if already recorded. Yields policy, world, returns (E,), lengths (E,):
    reality first, then whole dreams at each temperature. A return is the sum of what M's reward head learns.
    """
    seeds = episode_seeds("check", episodes, 0, 98)
    first = np.eye(agent.m.action_size, dtype=np.float32)[0]
    policies = {"collecting": collecting_policy(agent.config)}
    for name, x in (("left", -1), ("middle", 0), ("right", 1)):
        policies[name] = partial(fixed_policy, x * first)
    policies["to and fro"] = partial(blind_baseline, agent.config.task, repeat=agent.config.repeat)
    policies["C"] = None

    def actor(make_policy: Callable | None) -> Callable:
        if make_policy is None:
            return agent.controller()
        each = [make_policy(np.random.default_rng([0, i])) for i in range(episodes)]
        return lambda features: np.stack([policy() for policy in each])

    for name, policy in policies.items():
        played = real.get(name) or recorded(agent, policy, episodes)
        rewards = [episode["reward"][:-1] for episode in played]
        returns = np.array([r.sum() for r in rewards])
        yield name, "reality", returns, np.array([len(r) for r in rewards])
        for tau in taus:
            world = Dream.as_evolved(agent, episodes, tau=tau, horizon=0, memories=0)
            yield name, f"dream at tau {tau:g}", *rollout(world, actor(policy), seeds)
