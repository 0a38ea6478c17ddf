"""What is looking ahead made of? `python -m tests.ablate doom`: the same real games, one part changed.

A row is a variant of the agent: its mean return, and how much more or less than the agent as it is, paired by games.
"""

import argparse
from dataclasses import replace
from functools import partial

import numpy as np

from wm_numpy.envs.policies import blind_baseline
from wm_numpy.models.agent import Agent, new_mdnrnn
from wm_numpy.settings.config import flat, from_flat, pairs
from wm_numpy.training.episodes import blind_rollouts, episode_seeds, look_ahead, real_rollouts
from wm_numpy.worlds.ahead import LookAhead, imagine, plans
from wm_numpy.worlds.world import World


class Variant(LookAhead):
    """The agent that looks ahead, with one part changed."""

    def __init__(self, world: World, thetas: np.ndarray, seeds: np.ndarray):
        super().__init__(world, world.agent.controller(thetas[0]), seeds)


class Stay(Variant):
    """Its default is to do nothing: neither C nor what it did before."""

    def __call__(self, features):
        self.last = np.zeros((len(features), self.world.m.action_size))
        return super().__call__(features)


class Shuffled(Variant):
    """It looks ahead from its own z, but from M's state of the game beside it."""

    def foresee(self, own):
        world, moment = self.world, self.world.moment
        z, state, steps = moment
        swapped = z, tuple(np.roll(part, 1, axis=0) for part in state), steps
        self.world = Elsewhere(world, swapped)
        try:
            return super().foresee(own)
        finally:
            self.world = world


class Elsewhere:
    """A world, but its moment is another."""

    def __init__(self, world: World, moment: tuple):
        self.agent, self.task, self.rows, self.moment = world.agent, world.task, world.rows, moment


class NoCommonNoise(Variant):
    """Every plan meets random numbers of its own."""

    def foresee(self, own):
        world, c = self.world, self.settings
        first, hold = plans(own, c.horizon, [c.horizon], world.task.discrete)
        n, K, A = first.shape
        z, state, steps = world.moment
        moment = np.repeat(z, K, axis=0), tuple(np.repeat(x, K, axis=0) for x in state), steps
        seeds = (np.repeat(self.seeds[world.rows], K) + 7919 * np.tile(np.arange(K), n)) % 2**31
        one, plan = np.array([c.horizon]), first.reshape(n * K, 1, A)
        rewards, dreams = imagine(world.agent, self.act, moment, plan, one, seeds, c)
        return first, rewards.sum(axis=0).reshape(n, K), dreams


class Runner(Variant):
    """The blind baseline looks ahead: to and fro, unless a held action promises more."""

    def __init__(self, world, thetas, seeds):
        super().__init__(world, thetas, seeds)
        config = world.agent.config
        policies = [
            blind_baseline(config.task, np.random.default_rng([int(s), 0]), config.repeat)
            for s in seeds
        ]
        steps = config.max_steps + self.settings.horizon + 1
        self.route = np.array(
            [[policy() for _ in range(steps)] for policy in policies]
        )  # (n, T, A)
        self.clock = 0

    def __call__(self, features):
        self.last = self.route[:, self.clock].astype(np.float64)
        actions = super().__call__(features)
        self.clock += 1
        return actions

    def foresee(self, own):
        first, worth, dreams = super().foresee(own)
        world, c, rows = self.world, self.settings, self.world.rows
        ahead = iter(np.swapaxes(self.route[rows, self.clock : self.clock + c.horizon], 0, 1))

        def run(features: np.ndarray) -> np.ndarray:
            return np.repeat(next(ahead), c.samples, axis=0)

        seeds = self.seeds[rows]
        plan = first[:, :1], np.array([0])  # held for no step
        worth[:, :1] = imagine(world.agent, run, world.moment, *plan, seeds, c)[0].sum(axis=0)
        return first, worth, dreams


def with_ahead(agent: Agent, **changes) -> Agent:
    """The same agent, looking ahead in another way: horizon, samples, margin, go_on."""
    named = {f"ahead.{name}": value for name, value in changes.items()}
    return replace(agent, config=from_flat(flat(agent.config) | named))


def untrained(agent: Agent) -> Agent:
    """The same V and C, an M that has learnt nothing."""
    return replace(agent, m=new_mdnrnn(agent.config, np.random.default_rng(0)))


def variants(agent: Agent) -> dict[str, tuple]:
    """name -> agent, actor."""
    horizon = agent.config.ahead.horizon
    rows = {
        "looks ahead": (agent, look_ahead),
        "C alone": (agent, None),
        "its default is to stay": (agent, Stay),
        "M's state of another game": (agent, Shuffled),
        "M untrained": (untrained(agent), look_ahead),
        "no common noise": (agent, NoCommonNoise),
        "no margin": (with_ahead(agent, margin=0.0), look_ahead),
        "to and fro looks ahead": (agent, Runner),
    }
    for h in (1, 4, 8, 24):
        rows[f"horizon {h} for {horizon}"] = (with_ahead(agent, horizon=h), look_ahead)
    rows["its default is C"] = with_ahead(agent, go_on=False), look_ahead
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    parser.add_argument("--episodes", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--only", default="", help="variants whose names contain one of these, comma-separated"
    )
    parser.add_argument(
        "--set", action="extend", nargs="+", default=[], help="such as horizon=16, of ahead.*"
    )
    options = parser.parse_args()
    agent = with_ahead(Agent.load(options.run), **pairs(options.set))
    task = agent.config.task
    seeds = episode_seeds("evaluate", options.episodes, options.seed)
    base = None
    for name, (changed, actor) in variants(agent).items():
        if base is not None and not any(part in name for part in options.only.split(",")):
            continue
        returns = real_rollouts(changed, agent.theta[None], seeds, actor=actor)[0].ravel()
        base = returns if base is None else base
        tell(name, returns, base)
    policy = partial(blind_baseline, task, repeat=agent.config.repeat)
    blind = blind_rollouts(task, seeds, make_policy=policy, repeat=agent.config.repeat)[0]
    tell("to and fro, blind", blind, base)


def tell(name: str, returns: np.ndarray, base: np.ndarray) -> None:
    gain = returns - base
    se = gain.std(ddof=1) / np.sqrt(len(gain))
    print(f"{name:28} {returns.mean():7.1f} +- {returns.std(ddof=1):5.1f} ", end="")
    print(f"  difference {gain.mean():+7.1f} +- {se:.1f} (standard error)", flush=True)


if __name__ == "__main__":
    main()
