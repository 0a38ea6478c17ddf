"""M judged as a model: on episodes of the collecting policy that it never saw, and by living in its dream.

Likelihood per latent dimension beside that of a Gaussian that knows nothing; recall and precision of the end;
the reward predicted against the one received; and how long the same policies live in the dream and in reality.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from .agent import Agent
from .data import Records, encoded, frame_dtype, series_dtype, transitions
from .envs import fixed_policy, to_and_fro
from .experiment import collecting_policy, episode_seeds, score
from .rollout import blind_rollouts, real_rollouts, rollout
from .worlds import Dream


def table(agent: Agent, episodes: int, taus: Sequence[float]) -> str:
    """The figures of `judge` and the lives of the same policies in both worlds, as text."""
    lines = [f"M on {episodes} held-out episodes of the policy that collects data"]
    lines += [f"  {name:24} {value:8.3f}" for name, value in judge(agent, held_out(agent, episodes)).items()]
    lines.append(f"{'policy':10} {'world':14} {'return +- SD [95 % of the mean]':36} steps: 25, 50, 75 % ended by")
    for policy, world, returns, lengths in survival(agent, episodes, taus):
        mean = "{mean:.1f} +- {sd:.1f} [{ci95[0]:.1f}, {ci95[1]:.1f}]".format(**score(returns))
        quartiles = "  ".join(f"{q:5.0f}" for q in np.quantile(lengths, (0.25, 0.5, 0.75)))
        lines.append(f"{policy:10} {world:14} {mean:36} {quartiles}")
    return "\n".join(lines)


def held_out(agent: Agent, episodes: int) -> list[dict[str, np.ndarray]]:
    """Episodes of the collecting policy on seeds of their own -> their transitions, z sampled, a batch axis of 1."""
    policy, rng, batches = collecting_policy(agent.config), np.random.default_rng([0, 99]), []
    with TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{i:06d}.npy" for i in range(episodes)]
        seeds, repeat = episode_seeds("check", episodes, 0, 99), agent.config.repeat
        blind_rollouts(agent.config.task, seeds, paths=paths, make_policy=policy, repeat=repeat)
        size = agent.m.action_size
        records, dtype = Records(Path(folder), frame_dtype(size)), series_dtype(agent.config.vae.z_size, size)
        for i in range(episodes):
            parts = transitions(encoded(records.read(i), dtype, agent.v.encode), rng, restart=True)
            batches.append({name: x[None] for name, x in parts.items()})
    return batches


def judge(agent: Agent, batches: list[dict[str, np.ndarray]]) -> dict[str, float]:
    """Figures of M on held-out episodes; what M has no head for is left out.

    nll: nats per dim and step; gaussian: the same of one Gaussian per dim fitted to these very z; recall and precision
    of done at a logit of 0; reward_error: root mean square, and reward_sd, what predicting the mean would have.
    """
    steps = [b["z_mask"].sum() for b in batches]
    z, done, reward = (np.concatenate([b[name][0] for b in batches]) for name in ("z_next", "done", "reward"))
    z = z[np.concatenate([b["z_mask"][0] for b in batches]) > 0]
    figures = {
        "nll": float(np.average([agent.m.loss_and_grad(b)[0]["z"] for b in batches], weights=steps)),
        "gaussian": float(np.mean(np.log(z.std(axis=0)) + 0.5 * np.log(2 * np.pi * np.e))),
    }
    outputs = [agent.m.outputs(b) for b in batches]
    told = {name: np.concatenate([out[name][0] for out in outputs]) for name in outputs[0]}
    if "done_logit" in told:
        said, was = told["done_logit"] > 0, done > 0
        hits = float((said & was).sum())
        figures |= {"recall": hits / max(was.sum(), 1), "precision": hits / max(said.sum(), 1)}
    if "reward" in told:
        error = told["reward"] - reward
        figures |= {"reward_error": float(np.sqrt(np.mean(error**2))), "reward_sd": float(reward.std())}
    return figures


def survival(agent: Agent, episodes: int, taus: Sequence[float]) -> Iterator[tuple[str, str, np.ndarray, np.ndarray]]:
    """The same policies in reality and in dreams: where their lives differ, M is wrong about the world.

    The policies: the one that collects data, the first action held at -1, 0 and 1 (left, middle, right, the others
    at 0) or swinging between -1 and 1, and C. On M's own data a dream may be right and still be wrong where C leads
    it; and what C does better than a policy that sees nothing, it owes to V and M.

    Yields policy, world, returns (E,), lengths (E,): reality first, then a dream of each temperature, as long as the
    task's episodes can be.
    """
    task, seeds = agent.config.task, episode_seeds("check", episodes, 0, 98)
    first = np.eye(agent.m.action_size, dtype=np.float32)[0]
    policies = {"collecting": collecting_policy(agent.config)}
    policies |= {name: partial(fixed_policy, x * first) for name, x in (("left", -1), ("middle", 0), ("right", 1))}
    policies["to and fro"] = partial(to_and_fro, first, steps=120 // agent.config.repeat)

    def blind(make_policy: Callable) -> Callable:
        each = [make_policy(np.random.default_rng([0, i])) for i in range(episodes)]
        return lambda features: np.stack([policy() for policy in each])

    for name in (*policies, "C"):
        if name == "C":
            returns, lengths = (x[0] for x in real_rollouts(agent, agent.theta[None], seeds))
        else:
            returns, lengths = blind_rollouts(task, seeds, make_policy=policies[name], repeat=agent.config.repeat)
        yield name, "reality", returns, lengths
        for tau in taus:
            act = agent.controller() if name == "C" else blind(policies[name])
            yield name, f"dream {tau:g}", *rollout(Dream(agent, episodes, tau, horizon=0), act, seeds)
