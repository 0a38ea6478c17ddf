"""The real world and the dream behind ONE interface: n episodes at once, and of each the features that C sees.

RealWorld is environments + V + M; Dream is M alone. They differ in two methods: `_first`, how an episode begins, and
`_next`, where the next z, the reward and the end come from. NumPy alone; faces.py wraps them for Gymnasium.

Letters: n environments, Z latent, F features, A action, H hidden.
"""

from collections.abc import Sequence
from dataclasses import replace
from operator import index

import numpy as np

from ..core.ops import reparameterize_forward, sigmoid
from ..models.agent import Agent, feature_size
from ..settings.config import from_flat
from ..settings.tasks import find, whole
from .noise import Noise


class World:
    """What both worlds share: M's state, C's features, and which rows of the batch are alive.

    A row that has ended waits until `reset` begins it anew; until then its reward is 0, and it costs nothing. The
    agent's C is not used.

    Of a subclass, for the rows given or alive:
        _first(rows, seeds) -> z (rows, Z), M's state, fresh (rows,): does M hear that the episode begins?
        _next(action) -> z (rows, Z), reward, terminated, truncated (rows,), after M has stepped
    """

    reset_needed = RuntimeError  # what a step after an end raises

    def __init__(self, agent: Agent, num_envs: int):
        num_envs = whole("num_envs", num_envs)
        self.agent, self.m, self.num_envs = agent, agent.m, num_envs
        self.task = find(agent.config.task)
        self._features = np.zeros((num_envs, feature_size(agent.config)), np.float32)
        self.normal = Noise(num_envs, np.random.Generator.standard_normal, self.m.z_size)
        self.steps = 0  # since all began
        self.born = np.zeros(num_envs, int)  # the step at which each began
        # Of the rows alive, none before the first reset:
        self.rows, self.z = np.arange(0), np.zeros((0, self.m.z_size), np.float32)
        self.state, self.fresh = self.m.initial_state(0), np.zeros(0, bool)

    def reset(self, *, seed: int | Sequence[int], rows: np.ndarray | None = None):
        """Begin all n anew, or some rows -> features (n, F), {}.

        seed: one per environment, or an int: that of row i is seed + i. It decides all that is random in an episode.
        """
        seeds = self._seeds(seed)
        rows = np.arange(self.num_envs) if rows is None else rows
        if len(rows) == self.num_envs:
            self.steps = 0
        self._keep(~np.isin(self.rows, rows))
        self.born[rows] = self.steps
        self.normal.begin(rows, seeds[rows])
        z, state, fresh = self._first(rows, seeds[rows])
        self.rows = np.append(self.rows, rows)
        self.z = np.concatenate([self.z, z])
        self.state = tuple(np.concatenate(parts) for parts in zip(self.state, state, strict=True))
        self.fresh = np.append(self.fresh, fresh)
        self._observe()
        return self._features.copy(), {}

    def _seeds(self, seed: int | Sequence[int]) -> np.ndarray:
        """A seed for each row (n,)."""
        n = self.num_envs
        seeds = list(seed) if np.ndim(seed) else [seed + i for i in range(n)]
        if len(seeds) != n:
            raise ValueError(f"{len(seeds)} seeds were given for {n} environments")
        seeds = [index(s) for s in seeds]
        if min(seeds) < 0 or max(seeds) >= 2**63:
            raise ValueError(f"seeds are whole numbers from 0 to 2**63 - 1, not {seed}")
        return np.array(seeds)

    def advance(self, actions: np.ndarray):
        """Actions (n, A) -> features (n, F), rewards, terminations, truncations (n,), {}.

        Raises:
            RuntimeError: all environments have ended, or not begun.
            ValueError: the actions are not finite numbers of that shape.
        """
        if not len(self.rows):
            fault = "all environments have ended, or not begun"
            raise self.reset_needed(f"{fault}: call reset before step")
        rows = self.rows
        actions = np.asarray(actions, np.float32)
        shape = self.num_envs, self.m.action_size
        if actions.shape != shape or not np.isfinite(actions).all():
            raise ValueError(f"actions must be finite numbers of shape {shape}, not {actions}")
        rewards = np.zeros(self.num_envs, np.float64)
        terminations, truncations = np.zeros((2, self.num_envs), bool)
        action = self.task.taken(actions[rows])
        # None where no episode is fresh: that saves M a pass
        restart = self.fresh.astype(np.float32) if self.fresh.any() else None
        self.state = self.m.step(self.z, action, self.state, restart)
        self.fresh = np.zeros(len(rows), bool)
        self.steps += 1
        self.z, rewards[rows], terminations[rows], truncations[rows] = self._next(action)
        self._observe()
        alive = ~(terminations | truncations)[rows]
        if not alive.all():
            self._keep(alive)
        return self._features.copy(), rewards, terminations, truncations, {}

    @property
    def moment(self) -> tuple:
        """What a dream can go on from: z (rows, Z), M's state, steps."""
        return self.z, self.state, self.steps

    def _keep(self, alive: np.ndarray) -> None:
        """Drop the other rows."""
        self.rows, self.z, self.fresh = self.rows[alive], self.z[alive], self.fresh[alive]
        self.state = tuple(part[alive] for part in self.state)

    def _observe(self) -> None:
        """Features of the rows alive: z, [z h] or [z c h]."""
        h, c = self.state
        parts = {"z": self.z, "h": h, "c": c}
        seen = [parts[p] for p in self.agent.config.evolve.features]
        self._features[self.rows] = np.concatenate(seen, axis=1)

    def _sample(self, mu: np.ndarray, logvar: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """z ~ N(mu, exp(logvar)) of these rows: V's view is sampled when acting, too (authors' code)."""
        z, _ = reparameterize_forward(mu, logvar, self.normal(rows))
        return z


class RealWorld(World):
    """n environments, such as those of environment.py, seen through V and remembered by M."""

    def __init__(self, agent: Agent, envs: Sequence):
        super().__init__(agent, len(envs))
        self.envs = list(envs)

    def _first(self, rows, seeds):
        resets = [self.envs[r].reset(seed=int(s)) for r, s in zip(rows, seeds, strict=True)]
        frames = np.stack([frame for frame, _ in resets])
        z = self._sample(*self.agent.v.encode(frames), rows)
        return z, self.m.initial_state(len(rows)), np.ones(len(rows), bool)

    def _next(self, action):
        steps = [self.envs[row].step(a) for row, a in zip(self.rows, action, strict=True)]
        frames, rewards, terminated, truncated, _ = map(np.array, zip(*steps, strict=True))
        z = self.z.copy()
        if not terminated.all():  # the frame after an end is not looked at (ViZDoom's is black)
            on = ~terminated
            z[on] = self._sample(*self.agent.v.encode(frames[on]), self.rows[on])
        return z, rewards, terminated, truncated

    def close(self) -> None:
        """Close the environments."""
        for env in self.envs:
            env.close()


# How a dream ends: (logit, uniform) -> which rows end, and by what factor their rewards count from now on; (n,) each.
# logit: of M's odds that the step just made is the last, times `odds`; uniform: random numbers in [0, 1).


def cutoff(logit: np.ndarray, uniform: np.ndarray) -> tuple[np.ndarray, float]:
    """It ends when its odds are above 1 (authors' code)."""
    return logit > 0, 1.0


def drawn(logit: np.ndarray, uniform: np.ndarray) -> tuple[np.ndarray, float]:
    """It ends by chance, with the probability that M gives."""
    return uniform < sigmoid(logit), 1.0


def weighted(logit: np.ndarray, uniform: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """It never ends; rewards are weighted by the probability of being alive: the mean of `drawn`, without its noise."""
    return np.zeros(len(logit), bool), 1 - sigmoid(logit)


ENDINGS = {"cutoff": cutoff, "drawn": drawn, "weighted": weighted}


def mortal(agent: Agent) -> Agent:
    """The same agent, for spectators and other learners: where its dreams only weight rewards, ends are `drawn`."""
    evolve = agent.config.evolve
    if evolve.ending == "weighted":
        evolve = replace(evolve, ending="drawn")
    return replace(agent, config=replace(agent.config, evolve=evolve))


class Dream(World):
    """M alone: the next z, the reward and the end are drawn from its head (paper, section 4).

    tau: temperature. horizon: steps after which a dream is cut; 0: the task's limit. memories: share of the dreams that
    begin at a recorded moment, with M's state there; the others begin at a recorded first frame. ending: one of
    ENDINGS; odds: M's odds of an end are multiplied by this first. start: a `moment` of another world of the same
    agent, which all dreams go on from. ValueError: one of them is out of range.
    """

    def __init__(
        self,
        agent: Agent,
        num_envs: int,
        tau: float = 1.0,
        horizon: int = 0,
        memories: float = 0.0,
        ending: str = "cutoff",
        odds: float = 1.0,
        start: tuple | None = None,
    ):
        super().__init__(agent, num_envs)
        given = dict(tau=tau, horizon=horizon, memories=memories, ending=ending, odds=odds)
        # checked as on the command line
        c = from_flat({f"evolve.{name}": value for name, value in given.items()}).evolve
        if c.memories and agent.memories is None:
            fault = "this agent has no recorded moments for its dreams to begin in"
            raise ValueError(f"{fault}: memories must be 0")
        self.tau, self.memories, self.odds, self.start = c.tau, c.memories, c.odds, start
        self.ending = ENDINGS[c.ending]
        self.limit = c.horizon or agent.config.max_steps
        # of a step: a dream pays no more and no less than the game can
        self.reward_range = np.multiply(self.task.reward_range, agent.config.repeat)
        self.uniform = Noise(num_envs, np.random.Generator.random, self.m.z_size + 1, key=1)
        self.survival = np.ones(num_envs)  # the factor by which a row's rewards count

    @classmethod
    def as_evolved(cls, agent: Agent, num_envs: int, **changes) -> "Dream":
        """The dream in which the agent's C was evolved; changes: arguments of the class that are not None."""
        names = "tau", "horizon", "memories", "ending", "odds"
        given = {name: getattr(agent.config.evolve, name) for name in names}
        given |= {name: value for name, value in changes.items() if value is not None}
        return cls(agent, num_envs, **given)

    def _first(self, rows, seeds):
        self.uniform.begin(rows, seeds)
        self.survival[rows] = 1
        firsts = self.agent.initial_latents
        latents = firsts[:, seeds % firsts.shape[1]]  # mu, logvar (2, rows, Z)
        state = self.m.initial_state(len(rows))  # h = c = 0
        share, fresh = self.uniform(rows)[:, 0], np.ones(len(rows), bool)
        if self.memories:
            (z, h, c), recorded = self.agent.memories, share < self.memories
            fresh = ~recorded
            chosen = seeds[recorded] % z.shape[1]
            latents[:, recorded] = z[:, chosen]
            for part, kept in zip(state, (h, c), strict=True):
                part[recorded] = kept[chosen]
        z = self._sample(*latents, rows)
        if self.start is not None:
            z, state, self.steps = self.start
            fresh = np.full(len(z), self.steps == 0)
        return z, state, fresh

    def _next(self, action):
        uniform = self.uniform(self.rows)
        normal = self.normal(self.rows)
        z, reward, logit = self.m.dream(self.state[0], self.tau, uniform[:, 1:], normal)
        if reward is None:
            frames = self.agent.config.repeat
            reward = np.full(len(z), frames, z.dtype)  # a frame survived is worth 1
        reward = np.clip(reward, *self.reward_range)
        done = np.zeros(len(z), bool)
        if logit is not None:
            done, alive = self.ending(logit + np.log(self.odds), uniform[:, 0])
            self.survival[self.rows] *= alive
            reward = reward * self.survival[self.rows]
        cut = (self.steps - self.born[self.rows] >= self.limit) & ~done
        return z, reward, done, cut
