"""The two worlds as Gymnasium environments. Importing this registers the ids.

VectorDream and VectorReality are vector environments whose observations are C's features; DreamEnv is a single dream.
"""

from collections.abc import Sequence

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from ..models.agent import Agent
from ..worlds.world import Dream, RealWorld, World, mortal
from . import environment  # noqa: F401  registers the games


class VectorWorld(World, VectorEnv):
    """A world as a Gymnasium vector environment without autoreset: `reset` takes a mask of those to begin anew."""

    metadata = {"autoreset_mode": AutoresetMode.DISABLED, "render_modes": []}
    reset_needed = gym.error.ResetNeeded

    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named)
        shape = self._features.shape[1:]
        self.single_observation_space = Box(-np.inf, np.inf, shape)  # float32, as all
        self.single_action_space = Box(-1, 1, (self.m.action_size,))
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.np_random = np.random.default_rng()  # for seeds that are not given

    def reset(self, *, seed: int | Sequence[int | None] | None = None, options: dict | None = None):
        """Begin all anew, or those of options["reset_mask"] (n,) bool; a seed that is None is drawn."""
        mask = (options or {}).get("reset_mask", np.ones(self.num_envs, bool))
        needed = f"reset_mask must be an array ({self.num_envs},) of bool, some of them true"
        if not isinstance(mask, np.ndarray) or mask.dtype != bool:
            raise TypeError(f"{needed}, not {mask!r}")
        if mask.shape != (self.num_envs,) or not mask.any():
            raise ValueError(f"{needed}, not {mask!r}")
        return super().reset(seed=seed, rows=np.flatnonzero(mask))

    def _seeds(self, seed: int | Sequence[int | None] | None) -> np.ndarray:
        """Those that are None are drawn, reproducibly if an earlier reset had a seed."""
        if seed is None:
            seed = [None] * self.num_envs
        drawn = np.array([s is None for s in seed] if np.ndim(seed) else [False] * self.num_envs)
        seeds = super()._seeds([0 if s is None else s for s in seed] if np.ndim(seed) else seed)
        if not drawn.all():
            self.np_random = np.random.default_rng(seeds[~drawn].tolist())
        return np.where(drawn, self.np_random.integers(2**31, size=self.num_envs), seeds)

    def step(self, actions: np.ndarray):
        """As `advance`, but all must be alive."""
        if 0 < len(self.rows) < self.num_envs:
            ended = np.setdiff1d(np.arange(self.num_envs), self.rows).tolist()
            fault = f"environments {ended} have ended"
            raise gym.error.ResetNeeded(f"{fault}: reset them before the next step")
        return self.advance(actions)


class VectorDream(VectorWorld, Dream):
    """n dreams."""


class VectorReality(VectorWorld, RealWorld):
    """n real environments."""

    close = VectorEnv.close

    def close_extras(self, **kwargs):
        RealWorld.close(self)


class DreamEnv(gym.Env):
    """One dream of a trained M, as a Gymnasium environment: `gymnasium.make("wm_numpy/Dream-v0", run="runs/doom")`.

    Action Space: Box(-1, 1, (A,)): the task's own, 3 for CarRacing, 1 for Doom.
    Observation Space: Box(-inf, inf, (F,)): what the run's C sees, z, [z h] or [z c h]. `render()` decodes z.
    Rewards: what M expects of the step, if it has a reward head (for CarRacing, tiles); otherwise 1 per frame.
    Starting State: a recorded first frame, drawn by the seed, and zero memory; or a recorded moment (`memories`).
    Episode End: terminated if M's done head says so, by the rule `evolve.ending` (drawn, where C's dreams never end and
    are weighted); truncated at the step limit.
    Arguments: run: a run folder, or the name of weights that come with the package; tau, horizon: those of `Dream`.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}

    def __init__(
        self, run: str, tau: float | None = None, horizon: int | None = None, render_mode=None
    ):
        self.render_mode = render_mode
        self.world = dream_vec(run, 1, tau=tau, horizon=horizon)
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
        """M's present z, decoded by V: (64, 64, 3) uint8."""
        if self.render_mode is None:
            return None
        z = self.world._features[:, : self.world.agent.config.vae.z_size]
        return np.round(self.world.agent.v.decode(z)[0] * 255).astype(np.uint8)


def dream_vec(run: str, num_envs: int = 1, **arguments) -> VectorDream:
    """`gymnasium.make_vec("wm_numpy/Dream-v0", num_envs, run="runs/doom")`: one batch, not n environments."""
    return VectorDream.as_evolved(mortal(Agent.load(run)), num_envs, **arguments)


gym.register(
    "wm_numpy/Dream-v0",
    entry_point=f"{__name__}:DreamEnv",
    vector_entry_point=f"{__name__}:dream_vec",
    disable_env_checker=True,
)
