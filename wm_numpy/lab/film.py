"""A life in one of the worlds, step by step, and what there is to see; a film of C in reality and in a dream."""

import threading
from contextlib import closing

import numpy as np

from ..core.ops import sigmoid
from ..envs.environment import Environment
from ..models.agent import Agent
from ..settings.tasks import find
from ..system.files import DataError
from ..training.data import Records
from ..worlds.world import Dream, RealWorld, World, mortal
from .pictures import animation

SECONDS = 8  # of a film
FPS = 12  # of its animation, at most
FUTURES = 8  # dreams side by side
FUTURE = 5  # seconds of each
_starting = threading.Lock()  # ViZDoom has crashed when two engines started at once


class Recorded(World):
    """A recorded episode, its frames as V sampled them: M follows it, and the actions are those of the record."""

    def __init__(self, agent: Agent, series: np.ndarray):
        super().__init__(agent, 1)
        self.series = series  # (T + 1,) of data.series_dtype

    def advance(self, actions: np.ndarray | None = None):
        return super().advance(self.series["action"][None, self.steps])

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
    """An episode in a world, or several side by side, step by step, and what there is to see after each."""

    def __init__(self, world: World, seed: int):
        self.world = world
        self.features, _ = world.reset(seed=seed)
        self.steps = 0
        self.total = 0.0  # of the first
        self.over = ""

    def step(self, action: np.ndarray) -> None:
        """action (n, A)"""
        self.features, reward, terminated, _, _ = self.world.advance(action)
        self.steps += 1
        self.total += float(reward[0])
        if not len(self.world.rows):
            self.over = "died" if terminated.any() else "time"

    def hold(self, z: np.ndarray) -> None:
        """Put z (Z,) in the place of what was seen, dreamt or recorded; M's state stays as it is."""
        if not self.over:
            self.world.z = np.tile(z.astype(np.float32), (len(self.world.rows), 1))
            self.world._observe()
            self.features = self.world._features.copy()

    def pictures(self) -> dict[str, np.ndarray]:
        """By name, (height, width, 3) uint8: what z decodes to, and the real game if there is one."""
        agent = self.world.agent
        decoded = to_picture(agent.v.decode(self.features[:, : agent.config.vae.z_size]))
        if isinstance(self.world, RealWorld):
            return {"reality": self.world.envs[0].crop, "V's view": decoded[0]}
        if len(decoded) > 1:
            return {f"future {i + 1}": picture for i, picture in enumerate(decoded)}
        return {"dream" if isinstance(self.world, Dream) else "V's view": decoded[0]}

    def thoughts(self) -> dict:
        """What M's head says of the step just made; nothing at the start and after the end.

        mixture: of the most uncertain z: its number, and K weights, means and standard deviations.
        """
        if not self.steps or self.over:
            return {}
        y = self.world.m.predict(self.world.state[0][:1])
        tau = self.world.tau if isinstance(self.world, Dream) else 1.0
        mix = np.exp((y.logmix - y.logmix.max(axis=0)) / tau)  # (K, Z, 1), the largest is 1
        said = {"certainty": np.mean(1 / mix.sum(axis=0)), "reward": y.reward, "value": y.value}
        said["end"] = None if y.done_logit is None else sigmoid(y.done_logit)
        thoughts = {
            name: round(float(np.squeeze(x)), 3) for name, x in said.items() if x is not None
        }
        mix /= mix.sum(axis=0)
        variance = tau * np.exp(2 * y.logstd)  # (K, Z, 1)
        centre = (mix * y.mean).sum(axis=0)
        spread = (mix * (variance + (y.mean - centre) ** 2)).sum(axis=0)  # (Z, 1)
        i = int(spread.argmax())
        parts = (x[:, i, 0].round(3).tolist() for x in (mix, y.mean, np.sqrt(variance)))
        return thoughts | {"mixture": [i, *parts]}


def ends(agent: Agent, z: np.ndarray, far: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    """What each number of z (Z,) does to the picture, the others as they are.

    -> the numbers, the strongest first (Z,); in that order the pictures at -far and far (Z, 2, 32, 32, 3) uint8
    """
    n = len(z)
    both = np.tile(z.astype(np.float32), (n, 2, 1))
    both[np.arange(n), :, np.arange(n)] = [-far, far]
    images = agent.v.decode(both.reshape(2 * n, n)).reshape(n, 2, 32, 2, 32, 2, 3).mean(axis=(3, 5))
    change = np.square(images[:, 1] - images[:, 0]).mean(axis=(1, 2, 3))
    order = np.argsort(-change)
    return order, to_picture(images[order])


def dream_on(
    agent: Agent, moment: tuple, tau: float | None = None, n: int = 1, steps: int = 0
) -> Dream:
    """n dreams on from the first row of a moment, cut after so many steps; 0: at the task's limit."""
    z, state, begun = moment
    start = z[:1].repeat(n, axis=0), tuple(part[:1].repeat(n, axis=0) for part in state), begun
    limits = {"horizon": begun + steps if steps else 0, "memories": 0}
    return Dream.as_evolved(agent, n, tau=tau, start=start, **limits)


def lead(agent: Agent, series: np.ndarray) -> tuple:
    """The moment of a recorded episode from which its world is worth looking at, M led there from the beginning."""
    world = Recorded(agent, series)
    world.reset(seed=0)
    first = find(agent.config.task).strip_from // agent.config.repeat
    for _ in range(min(first, len(series) - 2)):
        world.advance()
    return world.moment


def pack(moment: tuple) -> bytes:
    """The first row of a moment as float16: its step, z, M's state."""
    z, state, steps = moment
    row = np.concatenate([z, *state], axis=1)[0]
    return np.append(steps, row).astype("<f2").tobytes()


def unpack(agent: Agent, data: bytes) -> tuple:
    """What `pack` made; DataError: it is no moment of this agent."""
    state = agent.m.initial_state(1)
    sizes = np.cumsum([1, agent.m.z_size] + [part.shape[1] for part in state])
    if len(data) != 2 * sizes[-1] or not np.isfinite(x := np.frombuffer(data, "<f2")).all():
        raise DataError("The moment of this link belongs to another model.")
    steps, z, *state = np.split(x[None].astype(np.float32), sizes[:-1], axis=1)
    return z, tuple(state), int(np.clip(steps.item(), 0, agent.config.max_steps - 1))


def unpack_actions(agent: Agent, data: bytes) -> np.ndarray:
    """Actions (T, A) from their bytes, little-endian float32; DataError: they are none of this agent's."""
    A = agent.m.action_size
    if len(data) % (4 * A) or not (np.abs(x := np.frombuffer(data, "<f4")) <= 1).all():
        raise DataError("The actions of this link belong to another world.")
    return x.reshape(-1, A)


class Worlds:
    """Where an agent can be put by name. The real game is started when it is first asked for."""

    NAMES = ("dream", "reality", "recorded", "opening", "here", "futures")

    def __init__(self, agent: Agent, episodes: Records | None):
        self.agent, self.episodes = agent, episodes
        self.env = None
        self.moment = None  # from which `here` goes on, and `futures`, several side by side

    def go(self, name: str, seed: int, tau: float) -> World:
        """DataError, ImportError, EnvironmentDied, EnvironmentFailed: it cannot be had."""
        agent = self.agent
        if name == "reality":
            if self.env is None:
                with _starting:
                    self.env = Environment(agent.config.task, repeat=agent.config.repeat)
            return RealWorld(agent, [self.env])
        if name == "recorded":
            return Recorded(agent, self._episode(seed))
        if name == "opening" and self.episodes is not None:
            self.moment = lead(agent, self._episode(0))
        if name == "dream" or self.moment is None:
            return Dream.as_evolved(agent, 1, tau=tau, horizon=0)
        if name == "futures":
            return dream_on(agent, self.moment, tau, FUTURES, int(FUTURE / period(agent)))
        return dream_on(agent, self.moment, tau)

    def _episode(self, number: int) -> np.ndarray:
        if self.episodes is None:
            raise DataError("No episode is recorded here.")
        return self.episodes.read(number % len(self.episodes.paths))

    def close(self) -> None:
        """End the real game."""
        if self.env is not None:
            self.env.close()


def to_picture(image: np.ndarray) -> np.ndarray:
    """Floats in [0, 1] -> uint8."""
    return np.round(image * 255).astype(np.uint8)


def film(agent: Agent, seed: int = 0, tau: float | None = None) -> list[dict[str, np.ndarray]]:
    """C in reality, what V keeps of it, and C in the dream that goes on from the same moment: pictures by name.

    A life that has ended stands still.
    """
    agent = mortal(agent)
    act = agent.controller()
    moments = []
    first = find(agent.config.task).strip_from // agent.config.repeat
    with closing(Environment(agent.config.task, repeat=agent.config.repeat)) as env:
        real = Life(RealWorld(agent, [env]), seed)
        while real.steps < first:
            real.step(act(real.features))
            if real.over:  # an agent that dies so soon is shown from its beginning
                real = Life(real.world, seed)
                break
        dream = Life(dream_on(agent, real.world.moment, tau), seed)
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
