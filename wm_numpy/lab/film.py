"""A life in one of the worlds, step by step, and what there is to see; a film of C in reality and in a dream."""

from contextlib import closing
from dataclasses import replace

import numpy as np

from ..core.ops import sigmoid
from ..models.agent import Agent
from ..settings.tasks import find
from ..worlds.envs import make_env
from ..worlds.world import Dream, RealWorld, World
from .pictures import animation

SECONDS = 8  # of a film
FPS = 12  # of its animation, at most


class Recorded(World):
    """A recorded episode, its frames as V sampled them: M follows it, and the actions are those of the record."""

    def __init__(self, agent: Agent, series: np.ndarray):
        super().__init__(agent, 1)
        self.series = series  # (T + 1,) of data.series_dtype

    def step(self, actions: np.ndarray | None = None):
        return super().step(self.series["action"][None, self.steps])

    def _first(self, rows, seeds):
        z = self._sample(self.series["mu"][:1], self.series["logvar"][:1], rows)
        return z, self.m.initial_state(1), np.ones(1, bool)

    def _next(self, action):
        t = self.steps
        z = self.z
        if self.series["seen"][t]:
            now = self.series[t : t + 1]
            z = self._sample(now["mu"], now["logvar"], self.rows)
        record = self.series[t - 1 : t]
        return z, record["reward"], record["done"], ~record["done"] & (t + 1 == len(self.series))


class Life:
    """One episode in a world of one environment, step by step, and what there is to see after each."""

    def __init__(self, world: World, seed: int):
        self.world = world
        self.features, _ = world.reset(seed=seed)
        self.steps = 0
        self.total = 0.0
        self.over = ""

    def step(self, action: np.ndarray) -> None:
        """action (1, A)"""
        self.features, reward, terminated, truncated, _ = self.world.step(action)
        self.steps += 1
        self.total += float(reward[0])
        self.over = "died" if terminated[0] else "time" if truncated[0] else ""

    def pictures(self) -> dict[str, np.ndarray]:
        """By name, (height, width, 3) uint8: what z decodes to, and the real game if there is one."""
        agent = self.world.agent
        decoded = to_picture(agent.v.decode(self.features[:, : agent.config.vae.z_size])[0])
        if isinstance(self.world, RealWorld):
            return {"reality": self.world.envs[0].crop, "V's view": decoded}
        return {"dream" if isinstance(self.world, Dream) else "V's view": decoded}

    def thoughts(self) -> dict:
        """What M's head says of the step just made; nothing at the start and after the end."""
        if not self.steps or self.over:
            return {}
        y = self.world.m.predict(self.world.state[0])
        tau = self.world.tau if isinstance(self.world, Dream) else 1.0
        mix = np.exp((y.logmix - y.logmix.max(axis=0)) / tau)  # (K, Z, 1), the largest is 1
        said = {"certainty": np.mean(1 / mix.sum(axis=0)), "reward": y.reward, "value": y.value}
        said["end"] = None if y.done_logit is None else sigmoid(y.done_logit)
        return {name: round(float(np.squeeze(x)), 3) for name, x in said.items() if x is not None}


def to_picture(image: np.ndarray) -> np.ndarray:
    """Floats in [0, 1] -> uint8."""
    return np.round(image * 255).astype(np.uint8)


def mortal(agent: Agent) -> Agent:
    """The same agent, but its dreams end: where C's only discounted rewards by the odds of an end, it is drawn."""
    evolve = agent.config.evolve
    if evolve.survival:
        evolve = replace(evolve, survival=False, done_odds=evolve.done_odds or 1.0)
    return replace(agent, config=replace(agent.config, evolve=evolve))


def film(agent: Agent, seed: int = 0, tau: float | None = None) -> list[dict[str, np.ndarray]]:
    """C in reality, what V keeps of it, and C in the dream that goes on from the same moment: pictures by name.

    A life that has ended stands still.
    """
    agent = mortal(agent)
    act = agent.controller()
    moments = []
    first = find(agent.config.task).strip_from // agent.config.repeat
    with closing(make_env(agent.config.task, repeat=agent.config.repeat)) as env:
        real = Life(RealWorld(agent, [env]), seed)
        while real.steps < first:
            real.step(act(real.features))
            if real.over:  # an agent that dies so soon is shown from its beginning
                real = Life(real.world, seed)
                break
        how = {"tau": tau, "horizon": 0, "memories": 0}
        dream = Life(Dream.as_evolved(agent, 1, start=real.world.moment, **how), seed)
        for _ in range(int(SECONDS / period(agent))):
            moments.append(real.pictures() | {"reality": env.frame} | dream.pictures())
            for life in (real, dream):
                if not life.over:
                    life.step(act(life.features))
    return moments


def animated(agent: Agent, moments: list[dict]) -> bytes:
    """A film as an animated PNG of at most FPS pictures a second."""
    every = max(1, round(1 / period(agent) / FPS))
    pictures = [[*moment.values()] for moment in moments[::every]]
    return animation(pictures, 1 / period(agent) / every)


def period(agent: Agent) -> float:
    """Seconds of the game between two pictures."""
    return agent.config.repeat / find(agent.config.task).fps
