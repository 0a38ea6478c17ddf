"""The real world and the dreamt one behind ONE interface: n episodes at once, and of each what C sees.

RealWorld is environments + V + M; Dream is M alone. Two methods differ: where an episode begins, and where the next z,
the reward and the end come from. NumPy alone; faces.py makes Gymnasium environments of them.

Letters: n environments, Z latent, F features, A action, H hidden.
"""

from collections.abc import Callable, Sequence
from operator import index

import numpy as np

from ..core.ops import reparameterize_forward, sigmoid
from ..models.agent import Agent, feature_size
from ..settings.config import from_flat
from ..settings.tasks import find, whole
from .noise import Noise

MOST_SEEDS = 2**63  # seeds are below that, as int64 holds them


class World:
    """What the two worlds share: M's state, C's features, and the rows that are still alive.

    The methods are those of a Gymnasium vector environment without autoreset: who has ended is begun anew by
    `reset(options={"reset_mask": mask})`, mask (n,) bool, or with all others by `reset()`. `step` is of all; `advance`
    of those alive, while the others stand still, with reward 0, and cost nothing. The agent's C is not used.
    """

    reset_needed = RuntimeError  # what a step after an end raises

    def __init__(self, agent: Agent, num_envs: int):
        num_envs = whole("num_envs", num_envs)
        self.agent, self.m, self.num_envs = agent, agent.m, num_envs
        self.task = find(agent.config.task)
        self._features = np.zeros((num_envs, feature_size(agent.config)), np.float32)
        self.np_random = np.random.default_rng()  # of seeds that are not given
        self.normal = Noise(num_envs, np.random.Generator.standard_normal, self.m.z_size)
        self.steps = 0  # since all began
        self.born = np.zeros(num_envs, int)  # at which of them each began
        # Of the rows alive, none before the first reset: z, M's state, whether M is to hear of a beginning.
        self.rows, self.z = np.arange(0), np.zeros((0, self.m.z_size), np.float32)
        self.state, self.fresh = self.m.initial_state(0), np.zeros(0, bool)

    def reset(self, *, seed: int | Sequence[int | None] | None = None, options: dict | None = None):
        """Begin all n anew, or those of options["reset_mask"], (n,) bool -> features (n, F), {}.

        seed: an int, of row i seed + i, or one per row. It decides all that is random in that row's episode; without
        one it is drawn, reproducibly where an earlier reset had one.
        """
        rows, seeds = np.flatnonzero(self._mask(options)), self._seeds(seed)
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

    def _mask(self, options: dict | None) -> np.ndarray:
        """Who begins anew (n,); TypeError, ValueError as of Gymnasium's own vector environments."""
        mask = (options or {}).get("reset_mask", np.ones(self.num_envs, bool))
        if not isinstance(mask, np.ndarray) or mask.dtype != bool:
            raise TypeError(f"reset_mask must be an array of bool, not {mask!r}")
        if mask.shape != (self.num_envs,) or not mask.any():
            shape = f"({self.num_envs},)"
            raise ValueError(f"reset_mask must be {shape} bool, some of them true, not {mask}")
        return mask

    def _seeds(self, seed: int | Sequence[int | None] | None) -> np.ndarray:
        """One for each row (n,)."""
        n = self.num_envs
        if seed is None:
            seed = [None] * n
        given = list(seed) if np.ndim(seed) else [seed + i for i in range(n)]
        if len(given) != n or any(np.ndim(s) for s in given):
            raise ValueError(f"{len(given)} seeds were given for {n} environments")
        known = [index(s) for s in given if s is not None]
        if any(not 0 <= s < MOST_SEEDS for s in known):
            raise ValueError(f"seeds are whole numbers from 0 to 2**63 - 1, not {seed}")
        if known:
            self.np_random = np.random.default_rng(known)
        drawn = self.np_random.integers(2**31, size=n)
        return np.array([d if s is None else index(s) for s, d in zip(given, drawn, strict=True)])

    def step(self, actions: np.ndarray):
        """Actions (n, A) -> features (n, F), rewards, terminations, truncations (n,), {}.

        Raises:
            RuntimeError: an environment has ended, or not begun.
            ValueError: the actions are not finite numbers of that shape.
        """
        if 0 < len(self.rows) < self.num_envs:
            ended = np.setdiff1d(np.arange(self.num_envs), self.rows).tolist()
            fault = f"environments {ended} have ended"
            raise self.reset_needed(f"{fault}: reset them before the next step")
        return self.advance(actions)

    def advance(self, actions: np.ndarray):
        """As `step`, but environments that have ended stand still; RuntimeError where none is left."""
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
        """Go on with these of the rows alone."""
        self.rows, self.z, self.fresh = self.rows[alive], self.z[alive], self.fresh[alive]
        self.state = tuple(part[alive] for part in self.state)

    def _observe(self) -> None:
        """Features of the rows alive: z, [z h] or [z c h]."""
        h, c = self.state
        parts = {"z": self.z, "h": h, "c": c}
        seen = [parts[p] for p in self.agent.config.evolve.features]
        self._features[self.rows] = np.concatenate(seen, axis=1)

    def _sample(self, mu: np.ndarray, logvar: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """z ~ N(mu, exp(logvar)) of these rows: V's sight is sampled when acting too (authors' code)."""
        z, _ = reparameterize_forward(mu, logvar, self.normal(rows))
        return z

    def _first(self, rows: np.ndarray, seeds: np.ndarray) -> tuple[np.ndarray, tuple, np.ndarray]:
        """How these rows begin -> z (rows, Z), M's state, whether M is to hear that it is a beginning (rows,)."""
        raise NotImplementedError

    def _next(self, action: np.ndarray):
        """After M has stepped: z (rows, Z), reward, terminated, truncated (rows,) that the action led to."""
        raise NotImplementedError


class RealWorld(World):
    """n environments, such as those of envs.py, seen through V and remembered by M."""

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


# How a dream ends: (logit, uniform) -> who ends, by what the rewards from now on count; (n,) each.
# logit: of M's odds that the step just made is the last, times `odds`; uniform: random numbers in [0, 1).


def cutoff(logit: np.ndarray, uniform: np.ndarray) -> tuple[np.ndarray, float]:
    """It ends where M finds an end likelier than none (authors' code)."""
    return logit > 0, 1.0


def drawn(logit: np.ndarray, uniform: np.ndarray) -> tuple[np.ndarray, float]:
    """It ends by chance, as often as M says."""
    return uniform < sigmoid(logit), 1.0


def weighted(logit: np.ndarray, uniform: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """No dream ends; rewards count by the chance to be alive still: the mean over all draws, without their noise."""
    return np.zeros(len(logit), bool), 1 - sigmoid(logit)


class Dream(World):
    """M alone: the next z, the reward and the end are drawn from its head (paper, section 4).

    tau: temperature. ending: `cutoff`, `drawn` or `weighted`; odds: M's odds of an end are multiplied by this first.
    horizon: steps after which a dream is cut; 0: the task's limit. memories: share of the dreams that begin in a
    recorded moment, M warmed by what went before; the others begin in a recorded first frame. reward_range: of a step;
    a dream pays no more and no less; None: the task's. start: a `moment` of another world of the same agent, which all
    dreams go on from.
    ValueError: one of them cannot be, such as a tau of 0.
    """

    def __init__(
        self,
        agent: Agent,
        num_envs: int,
        tau: float = 1.0,
        horizon: int = 0,
        memories: float = 0.0,
        ending: Callable = cutoff,
        odds: float = 1.0,
        reward_range: tuple[float, float] | None = None,
        start: tuple | None = None,
    ):
        super().__init__(agent, num_envs)
        numbers = {"tau": tau, "horizon": horizon, "memories": memories, "odds": odds}
        # checked as on the command line
        c = from_flat({f"evolve.{name}": number for name, number in numbers.items()}).evolve
        if c.memories and agent.memories is None:
            fault = "this agent has no recorded moments for its dreams to begin in"
            raise ValueError(f"{fault}: memories must be 0")
        if reward_range is None:
            reward_range = np.multiply(self.task.reward_range, agent.config.repeat)
        self.tau, self.ending, self.odds = c.tau, ending, c.odds
        self.memories, self.start = c.memories, start
        self.limit = c.horizon or agent.config.max_steps
        self.reward_range = np.asarray(reward_range)
        self.uniform = Noise(num_envs, np.random.Generator.random, self.m.z_size + 1, key=1)
        self.survival = np.ones(num_envs)  # by what a row's rewards count

    @classmethod
    def as_evolved(cls, agent: Agent, num_envs: int, **changes) -> "Dream":
        """The dream that the agent's C was evolved in; changes: arguments of the class that are not None."""
        c = agent.config.evolve
        given = {
            "tau": c.tau,
            "horizon": c.horizon,
            "memories": c.memories,
            "ending": {"cutoff": cutoff, "drawn": drawn, "weighted": weighted}[c.ending],
            "odds": c.odds,
        }
        given |= {name: value for name, value in changes.items() if value is not None}
        return cls(agent, num_envs, **given)

    def _first(self, rows, seeds):
        self.uniform.begin(rows, seeds)
        self.survival[rows] = 1
        firsts = self.agent.initial_latents
        latents = firsts[:, seeds % firsts.shape[1]]  # (2, rows, Z)
        state = self.m.initial_state(len(rows))  # h = c = 0
        share, fresh = self.uniform(rows)[:, 0], np.ones(len(rows), bool)
        if self.memories:
            (z, h, c), recorded = self.agent.memories, share < self.memories
            fresh = ~recorded
            which = seeds[recorded] % z.shape[1]
            latents[:, recorded] = z[:, which]
            for part, kept in zip(state, (h, c), strict=True):
                part[recorded] = kept[which]
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
