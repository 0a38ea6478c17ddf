"""The real world and the dreamt one behind ONE interface: a gymnasium VectorEnv whose observation is what C sees.

RealWorld is environments + V + M; Dream is M alone. All that differs is where the next z comes from, one method.

Letters: n environments, Z latent, F features, A action, H hidden.
"""

from collections.abc import Callable, Sequence

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from .agent import Agent, feature_size
from .core import reparameterize_forward, sigmoid
from .tasks import TASKS

BLOCK = 16  # steps whose noise is drawn at a time, for one episode


class Noise:
    """Random numbers for the rows of a batch; what a row gets hangs on its own seed alone.

    draw: rng, shape, dtype -> numbers, such as np.random.Generator.random; size: numbers per row and step; key:
    another for other numbers from the same seeds. Rows of equal seeds, candidates that meet the same dream, share one
    stream.
    """

    def __init__(self, seeds: np.ndarray, draw: Callable, size: int, key: int = 0):
        distinct, self.stream = np.unique(seeds, return_inverse=True)
        self.draw, self.size, self.used = draw, size, 0
        self.rngs = [np.random.default_rng([int(seed), key]) for seed in distinct]
        self.block = np.empty((len(self.rngs), BLOCK, size), np.float32)

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """The numbers of one step for these rows -> (rows, size) float32."""
        step = self.used % BLOCK
        if step == 0:
            for stream in np.unique(self.stream[rows]):
                self.block[stream] = self.draw(self.rngs[stream], (BLOCK, self.size), np.float32)
        self.used += 1
        return self.block[self.stream[rows], step]


class World(VectorEnv):
    """What the two worlds share: M's state, C's features, and the rows that are still alive.

    All environments start together at `reset`; one that has ended stands still, with reward 0, until the next
    `reset` of all (autoreset is disabled), and costs nothing: only rows alive are computed. The agent's C is not used.
    """

    metadata = {"autoreset_mode": AutoresetMode.DISABLED, "render_modes": []}

    def __init__(self, agent: Agent, num_envs: int):
        self.agent, self.m, self.num_envs = agent, agent.m, num_envs
        self._features = np.zeros((num_envs, feature_size(agent.config)), np.float32)
        self.single_observation_space = Box(-np.inf, np.inf, self._features.shape[1:])  # float32, as all
        self.single_action_space = Box(-1, 1, (agent.m.action_size,))
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.rows = np.arange(0)  # nothing is alive before the first reset

    def reset(self, *, seed: int | Sequence[int] | None = None, options: dict | None = None):
        """Start all n again -> features (n, F), {}. An episode's own seed decides all that is random in it."""
        n = self.num_envs
        if seed is None:
            seed = np.random.default_rng().integers(2**31)
        seeds = np.asarray(seed) if np.ndim(seed) else seed + np.arange(n)
        if seeds.shape != (n,):
            raise ValueError(f"{len(seeds)} seeds were given for {n} environments")
        self.normal = Noise(seeds, np.random.Generator.standard_normal, self.m.z_size)
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
            rows = self.rows
            action = np.clip(actions[rows], -1, 1).astype(np.float32)
            restart = self.fresh.astype(np.float32) if self.steps == 0 else None  # as in the data M learns from
            self.state = self.m.step(self.z, action, self.state, restart)
            self.steps += 1
            self.z, rewards[rows], terminations[rows], truncations[rows] = self._next(action)
            self._observe()
            alive = ~(terminations | truncations)[rows]
            if not alive.all():
                self._keep(alive)
        return self._features.copy(), rewards, terminations, truncations, {}

    def _keep(self, alive: np.ndarray) -> None:
        """Go on with these of the rows alone."""
        self.rows, self.z = self.rows[alive], self.z[alive]
        self.state = tuple(part[alive] for part in self.state)

    def _observe(self) -> None:
        """Features of the rows alive: z, [z h] or [z c h]."""
        h, c = self.state
        parts = {"z": self.z, "h": h, "c": c}
        self._features[self.rows] = np.concatenate([parts[p] for p in self.agent.config.evolve.features], axis=1)

    def _sample(self, mu: np.ndarray, logvar: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """z ~ N(mu, exp(logvar)) of these rows: V's sight is sampled when acting too (authors' code)."""
        z, _ = reparameterize_forward(mu, logvar, self.normal(rows))
        return z

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
        self.fresh = np.ones(len(seeds), bool)
        return self._sample(*self.agent.v.encode(np.stack(frames)), self.rows)

    def _next(self, action):
        steps = [self.envs[row].step(a) for row, a in zip(self.rows, action, strict=True)]
        frames, rewards, terminated, truncated, _ = map(np.array, zip(*steps, strict=True))
        z = self.z.copy()
        if not terminated.all():  # the frame after an end is not looked at (ViZDoom's is black)
            on = ~terminated
            z[on] = self._sample(*self.agent.v.encode(frames[on]), self.rows[on])
        return z, rewards, terminated, truncated

    def close_extras(self, **kwargs):
        for env in self.envs:
            env.close()


class Dream(World):
    """M alone: the next z, the reward and the end are drawn from its head (paper, section 4).

    tau: temperature; horizon: steps after which a dream is cut, 0: the task's limit; memories: share of the dreams
    that begin in a recorded moment, M warmed by what went before, and not in a first frame. None: as C was evolved.
    """

    def __init__(
        self,
        agent: Agent,
        num_envs: int,
        tau: float | None = None,
        horizon: int | None = None,
        memories: float | None = None,
    ):
        super().__init__(agent, num_envs)
        c = agent.config.evolve
        self.tau = c.tau if tau is None else tau
        self.memories = c.memories if memories is None else memories
        if self.memories and agent.memories is None:
            raise ValueError("this agent has no recorded moments for its dreams to begin in: memories must be 0")
        self.limit = (c.horizon if horizon is None else horizon) or agent.config.max_steps
        self.reward_range = np.multiply(TASKS[agent.config.task].reward_range, agent.config.repeat)
        self.value_range = self.reward_range / max(1 - agent.config.mdnrnn.gamma, 1 / agent.config.max_steps)
        self.bootstrap = c.bootstrap and self.limit < agent.config.max_steps  # at the task's limit life is over

    def _first(self, seeds):
        self.uniform = Noise(seeds, np.random.Generator.random, self.m.z_size + 1, key=1)
        self.survival = np.ones(len(seeds))  # the odds that an episode still goes on, where the setting asks for them
        latents = self.agent.initial_latents[:, seeds % self.agent.initial_latents.shape[1]]  # (2, n, Z)
        share, self.fresh = self.uniform(self.rows)[:, 0], np.ones(len(seeds), bool)
        if self.memories:
            (z, h, c), recorded = self.agent.memories, share < self.memories
            self.fresh = ~recorded
            which = seeds[recorded] % z.shape[1]
            latents[:, recorded] = z[:, which]
            for part, kept in zip(self.state, (h, c), strict=True):
                part[recorded] = kept[which]
        return self._sample(*latents, self.rows)

    def _next(self, action):
        uniform = self.uniform(self.rows)
        z, reward, logit = self.m.dream(self.state[0], self.tau, uniform[:, 1:], self.normal(self.rows))
        if reward is None:
            reward = np.full(len(z), self.agent.config.repeat, z.dtype)  # a frame survived is worth 1
        reward = np.clip(reward, *self.reward_range)
        done = np.zeros(len(z), bool)
        if logit is not None:
            odds = self.agent.config.evolve.done_odds
            if self.agent.config.evolve.survival:
                self.survival[self.rows] *= 1 - sigmoid(logit + np.log(odds or 1))
                reward = reward * self.survival[self.rows]
            elif odds:
                done = uniform[:, 0] < sigmoid(logit + np.log(odds))
            else:
                done = logit > 0  # a cutoff (authors' code)
        cut = np.full(len(z), self.steps >= self.limit) & ~done
        if self.bootstrap and cut.any():
            value = np.clip(self.m.predict(self.state[0]).value, *self.value_range)
            reward = reward + cut * self.survival[self.rows] * value
        return z, reward, done, cut


class DreamEnv(gym.Env):
    """One dream of a trained M, as a Gymnasium environment: `gymnasium.make("wm_numpy/Dream-v0", run="runs/doom")`.

    Description: nothing is simulated but by M, which was trained on episodes of the task and predicts what comes next.
    Action Space: Box(-1, 1, (A,)): the task's own, 3 for CarRacing, 1 for Doom.
    Observation Space: Box(-inf, inf, (F,)): what the run's C sees, z, [z h] or [z c h]. `render()` decodes z.
    Rewards: M's expected reward of the step where it has a reward head (CarRacing's are tiles); else 1 per frame.
    Starting State: a recorded first frame, drawn by the seed, and zero memory; or a recorded moment (`memories`).
    Episode End: where M has a done head, terminated when its logit is above 0, or as `evolve.done_odds` draws it;
        truncated at the step limit.
    Arguments: run: a run folder, or the name of weights that come with the package; tau, horizon: as of `Dream`.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}

    def __init__(self, run: str, tau: float | None = None, horizon: int | None = None, render_mode: str | None = None):
        self.render_mode = render_mode
        self.world = Dream(Agent.load(run), 1, tau, horizon)
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


gym.register("wm_numpy/Dream-v0", entry_point="wm_numpy.worlds:DreamEnv", disable_env_checker=True)
