"""The two worlds, with one interface: a gymnasium VectorEnv whose observation is what C sees.

RealWorld is environments + V + M; Dream is M alone. All that differs is where the next z comes from, one method.

Letters: n environments, Z latent, F features, A action, H hidden.
"""

from collections.abc import Sequence

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from . import agent as agents
from .agent import Agent
from .core import sigmoid
from .envs import ENVIRONMENTS


class World(VectorEnv):
    """What the two worlds share: M's state, C's features, and the rows that are still alive.

    All environments start together at `reset`; one that has ended stands still, with reward 0, until the next
    `reset` of all (autoreset is disabled), and costs nothing: only rows alive are computed. The agent's C is not used.
    """

    metadata = {"autoreset_mode": AutoresetMode.DISABLED, "render_modes": []}

    def __init__(self, agent: Agent, num_envs: int):
        self.agent, self.m, self.num_envs = agent, agent.m, num_envs
        self._features = np.zeros((num_envs, agents.feature_size(agent.config)), np.float32)
        self.single_observation_space = Box(-np.inf, np.inf, self._features.shape[1:])  # float32, as all
        self.single_action_space = Box(-1, 1, (agent.m.action_size,))
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.rows = np.arange(0)  # nothing is alive before the first reset

    def reset(self, *, seed: int | Sequence[int] | None = None, options: dict | None = None):
        """Start all n again -> features (n, F), {}. An episode's own seed decides how it starts, in both worlds."""
        n = self.num_envs
        if seed is None:
            seed = np.random.default_rng().integers(2**31)
        seeds = np.asarray(seed) if np.ndim(seed) else seed + np.arange(n)
        if seeds.shape != (n,):
            raise ValueError(f"{len(seeds)} seeds were given for {n} environments")
        self.rng = np.random.default_rng(seeds)
        self.rows, self.steps = np.arange(n), 0
        self.state = self.m.initial_state(n)  # h = c = 0
        self.z = self._first(seeds)  # (n, Z)
        self._observe()
        return self._features.copy(), {}

    def step(self, actions: np.ndarray):
        """Actions (n, A) -> features (n, F), rewards, terminations, truncations (n,), {}."""
        rewards = np.zeros(self.num_envs, np.float64)
        terminations, truncations = np.zeros((2, self.num_envs), bool)
        if len(self.rows):
            rows, action = self.rows, np.clip(actions[self.rows], -1, 1).astype(np.float32)
            restart = np.ones(len(rows), np.float32) if self.steps == 0 else None
            self.state, self.steps = self.m.step(self.z, action, self.state, restart), self.steps + 1
            self.z, rewards[rows], terminations[rows], truncations[rows] = self._next(action)
            self._observe()
            alive = ~(terminations | truncations)[rows]
            if not alive.all():
                self.rows, self.z = rows[alive], self.z[alive]
                self.state = tuple(part[alive] for part in self.state)
        return self._features.copy(), rewards, terminations, truncations, {}

    def _observe(self) -> None:
        """Features of the rows alive: z, [z h] or [z c h]."""
        parts = dict(zip("zhc", (self.z, *self.state), strict=True))
        self._features[self.rows] = np.concatenate([parts[p] for p in self.agent.config.evolve.features], axis=1)

    def _sample(self, mu: np.ndarray, logvar: np.ndarray) -> np.ndarray:
        """z ~ N(mu, exp(logvar)): V's sight is sampled when acting too (authors' code)."""
        return mu + np.exp(logvar / 2) * self.rng.standard_normal(mu.shape, np.float32)

    def _first(self, seeds: np.ndarray) -> np.ndarray:
        """The first z of every environment, (n, Z)."""
        raise NotImplementedError

    def _next(self, action: np.ndarray):
        """After M has stepped: z (rows, Z), reward, terminated, truncated (rows,) that the action led to."""
        raise NotImplementedError


class RealWorld(World):
    """n environments of envs.py, seen through V and remembered by M."""

    def __init__(self, agent: Agent, envs: Sequence[gym.Env]):
        super().__init__(agent, len(envs))
        self.envs = list(envs)

    def _first(self, seeds):
        frames = [env.reset(seed=int(seed))[0] for env, seed in zip(self.envs, seeds, strict=True)]
        return self._sample(*self.agent.v.encode(np.stack(frames)))

    def _next(self, action):
        steps = [self.envs[row].step(a) for row, a in zip(self.rows, action, strict=True)]
        frames, rewards, terminated, truncated, _ = map(np.array, zip(*steps, strict=True))
        z = self.z.copy()
        if not terminated.all():  # the frame after an end is not looked at (ViZDoom's is black)
            z[~terminated] = self._sample(*self.agent.v.encode(frames[~terminated]))
        return z, rewards, terminated, truncated

    def close_extras(self, **kwargs):
        for env in self.envs:
            env.close()


class Dream(World):
    """M alone: the next z, the reward and the end are drawn from its head (paper, section 4).

    tau: temperature; horizon: steps after which a dream is cut, 0: the task's limit. None: as C was evolved.
    """

    def __init__(self, agent: Agent, num_envs: int, tau: float | None = None, horizon: int | None = None):
        super().__init__(agent, num_envs)
        self.tau = agent.config.evolve.tau if tau is None else tau
        horizon = agent.config.evolve.horizon if horizon is None else horizon
        self.limit = horizon or ENVIRONMENTS[agent.config.task].max_steps

    def _first(self, seeds):
        return self._sample(*self.agent.starts[:, seeds % self.agent.starts.shape[1]])  # (n, Z) each

    def _next(self, action):
        n, odds = len(action), self.agent.config.evolve.done_odds
        uniform = self.rng.random((n, self.m.z_size), np.float32)
        normal = self.rng.standard_normal((n, self.m.z_size), np.float32)
        z, reward, logit = self.m.dream(self.state[0], self.tau, uniform, normal)
        if reward is None:
            reward = np.ones(n)
        if logit is None:
            done = np.zeros(n, bool)
        elif odds:  # below a cutoff C lives at no risk: the end is drawn, at so many times the odds exp(logit)
            done = self.rng.random(n) < sigmoid(logit + np.log(odds))
        else:
            done = logit > 0  # the authors' cutoff
        return z, reward, done, np.full(n, self.steps >= self.limit) & ~done


class DreamEnv(gym.Env):
    """One dream of a trained M, as a Gymnasium environment: `gymnasium.make("wm_numpy/Dream-v0", run="runs/doom")`.

    Description: nothing is simulated but by M, which was trained on episodes of the task and predicts what comes next.
    Action Space: Box(-1, 1, (A,)): the task's own, 3 for CarRacing, 1 for Doom.
    Observation Space: Box(-inf, inf, (F,)): what the run's C sees, z, [z h] or [z c h]. `render()` decodes z.
    Rewards: M's expected reward of the step where it has a reward head; 1 per step survived otherwise.
    Starting State: a recorded first frame, drawn by the seed, and zero memory.
    Episode End: where M has a done head, terminated when its logit is above 0, or as `evolve.done_odds` draws it;
        truncated at the step limit.
    Arguments: run: a run folder, or the name of weights that come with the package; tau, horizon: as of `Dream`.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}

    def __init__(self, run: str, tau: float | None = None, horizon: int | None = None, render_mode: str | None = None):
        self.render_mode = render_mode
        self.world = Dream(agents.load(run), 1, tau, horizon)
        self.observation_space = self.world.single_observation_space
        self.action_space = self.world.single_action_space

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        features, _ = self.world.reset(seed=int(self.np_random.integers(2**31 - 1)))
        return features[0], {}

    def step(self, action: np.ndarray):
        features, reward, terminated, truncated, _ = self.world.step(np.asarray(action)[None])
        return features[0], float(reward[0]), bool(terminated[0]), bool(truncated[0]), {}

    def render(self) -> np.ndarray | None:
        """What M sees now, decoded by V: (64, 64, 3) uint8."""
        if self.render_mode is None:
            return None
        z = self.world._features[:, : self.world.agent.config.vae.z_size]
        return np.round(self.world.agent.v.decode(z)[0] * 255).astype(np.uint8)


gym.register("wm_numpy/Dream-v0", entry_point=DreamEnv, disable_env_checker=True)
