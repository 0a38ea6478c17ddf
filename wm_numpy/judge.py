"""M judged as a model: on episodes of the random policy that it never saw, and by living in its dream.

Likelihood per latent dimension beside that of a Gaussian that knows nothing; recall and precision of the end;
the reward predicted against the one received; and how long fixed policies live in the dream and in reality.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from .agent import Agent
from .data import Records, frame_dtype, series_dtype, transitions
from .envs import random_policy
from .experiment import episode_seeds, score
from .rollout import random_rollouts, rollout
from .worlds import Dream


def table(agent: Agent, episodes: int, taus: Sequence[float], seed: int = 0) -> str:
    """The figures of `judge` and the lives of the random policy, as text."""
    batches = held_out(agent, episodes, seed)
    lines = [f"M on {episodes} held-out episodes of the random policy"]
    lines += [f"  {name:24} {value:8.3f}" for name, value in judge(agent, batches).items()]
    real = score(np.array([batch["reward"].sum() for batch in batches]))
    lines.append("the random policy, mean return +- SD [95 %]")
    for name, result in [("reality", real)] + [(f"dream, tau {t:g}", dream_random(agent, 200, t, seed)) for t in taus]:
        low, high = result["ci95"]
        lines.append(f"  {name:24} {result['mean']:8.1f} +- {result['sd']:.1f} [{low:.1f}, {high:.1f}]")
    return "\n".join(lines)


def held_out(agent: Agent, episodes: int, seed: int = 0) -> list[dict[str, np.ndarray]]:
    """Play episodes of the random policy on seeds of their own -> their transitions, z sampled, a batch axis of 1."""
    seeds = episode_seeds("check", episodes, seed, 99)
    actions, z_size = agent.m.config.action_size, agent.config.vae.z_size
    rng, batches = np.random.default_rng([seed, 99]), []
    with TemporaryDirectory() as folder:
        random_rollouts(
            agent.config.task,
            seeds,
            paths=[Path(folder) / f"{i:06d}.npy" for i in range(episodes)],
            hold=agent.config.collect.hold,
        )
        records = Records(Path(folder), frame_dtype(actions))
        for i in range(episodes):
            episode = records.read(i)
            series = np.zeros(len(episode), series_dtype(z_size, actions))
            for name in ("action", "reward", "done", "seen"):
                series[name] = episode[name]
            series["mu"], series["logvar"] = agent.v.encode(episode["frame"])
            batches.append({name: x[None] for name, x in transitions(series, rng, restart=True).items()})
    return batches


def judge(agent: Agent, batches: list[dict[str, np.ndarray]]) -> dict[str, float]:
    """Figures of M on held-out episodes.

    Returns:
        nll: nats per dim and step; gaussian: the same of one Gaussian per dim fitted to these very z; recall and
        precision of done at a cutoff of 0, as dreamt; reward_error: root mean square, and reward_sd, what
        predicting the mean would have. What M has no head for is left out.
    """
    steps = np.array([b["z_mask"].sum() for b in batches])
    figures = {"nll": float(np.average([agent.m.losses(b)["z"] for b in batches], weights=steps))}
    z = np.concatenate([b["z_next"][0][b["z_mask"][0] > 0] for b in batches])
    figures["gaussian"] = float(np.mean(np.log(z.std(axis=0)) + 0.5 * np.log(2 * np.pi * np.e)))
    logits, rewards = zip(*(agent.m.outputs(b) for b in batches), strict=True)
    if logits[0] is not None:
        said = np.concatenate([x[0] for x in logits]) > 0
        was = np.concatenate([b["done"][0] for b in batches]) > 0
        hits = float((said & was).sum())
        figures |= {"recall": hits / max(was.sum(), 1), "precision": hits / max(said.sum(), 1)}
    if rewards[0] is not None:
        reward = np.concatenate([b["reward"][0] for b in batches])
        error = np.concatenate([x[0] for x in rewards]) - reward
        figures |= {"reward_error": float(np.sqrt(np.mean(error**2))), "reward_sd": float(reward.std())}
    return figures


def dream_random(agent: Agent, episodes: int, tau: float, seed: int = 0) -> dict[str, float]:
    """score() of the random policy in the dream: to be held beside its score in reality."""
    policies = [
        random_policy(agent.config.task, np.random.default_rng([seed, i]), agent.config.collect.hold)
        for i in range(episodes)
    ]
    act: Callable = lambda features: np.stack([policy() for policy in policies])  # noqa: E731
    returns, _ = rollout(Dream(agent, episodes, tau, horizon=0), act, episode_seeds("check", episodes, seed, 98))
    return score(returns)
