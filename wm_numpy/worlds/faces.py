"""The two worlds as Gymnasium environments: thin faces over world.py. Importing this registers the ids.

VectorDream and VectorReality are vector environments whose observation is what C sees; DreamEnv is one dream.
"""

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from ..models.agent import Agent
from . import envs  # noqa: F401  registers the two tasks
from .world import Dream, RealWorld, World


class VectorWorld(World, VectorEnv):
    """A world with the spaces, the errors and the closing of a Gymnasium vector environment."""

    metadata = {"autoreset_mode": AutoresetMode.DISABLED, "render_modes": []}
    reset_needed = gym.error.ResetNeeded

    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named)
        shape = self._features.shape[1:]
        self.single_observation_space = Box(-np.inf, np.inf, shape)  # float32, as all
        self.single_action_space = Box(-1, 1, (self.m.action_size,))
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)


class VectorDream(VectorWorld, Dream):
    """n dreams."""


class VectorReality(VectorWorld, RealWorld):
    """n real environments."""

    close = VectorEnv.close

    def close_extras(self, **kwargs):
        RealWorld.close(self)


class DreamEnv(gym.Env):
    """One dream of a trained M, as a Gymnasium environment: `gymnasium.make("wm_numpy/Dream-v0", run="runs/doom")`.

    Description: M simulates it all. It was trained on episodes of the task and predicts what comes next.
    Action Space: Box(-1, 1, (A,)): the task's own, 3 for CarRacing, 1 for Doom.
    Observation Space: Box(-inf, inf, (F,)): what the run's C sees, z, [z h] or [z c h]. `render()` decodes z.
    Rewards: the reward that M expects of the step, if it has a reward head (CarRacing's are tiles); else 1 per frame.
    Starting State: a recorded first frame, drawn by the seed, and zero memory; or a recorded moment (`memories`).
    Episode End: if M has a done head, terminated when its logit is above 0, or as `evolve.ending` says;
        truncated at the step limit.
    Arguments: run: a run folder, or the name of weights that come with the package; tau, horizon: those of `Dream`.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}

    def __init__(
        self, run: str, tau: float | None = None, horizon: int | None = None, render_mode=None
    ):
        self.render_mode = render_mode
        self.world = VectorDream.as_evolved(Agent.load(run), 1, tau=tau, horizon=horizon)
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


def dream_vec(run: str, num_envs: int = 1, **arguments) -> VectorDream:
    """`gymnasium.make_vec("wm_numpy/Dream-v0", num_envs, run="runs/doom")`: one batch in place of n environments."""
    return VectorDream.as_evolved(Agent.load(run), num_envs, **arguments)


gym.register(
    "wm_numpy/Dream-v0",
    entry_point="wm_numpy.worlds.faces:DreamEnv",
    vector_entry_point="wm_numpy.worlds.faces:dream_vec",
    disable_env_checker=True,
)
