"""The paper's two tasks as gymnasium environments with one face: 64 x 64 x 3 uint8, actions in [-1, 1].

    env = make_env("doom")
    frame, _ = env.reset(seed=1)
    frame, reward, terminated, truncated, _ = env.step(policy())

Importing this needs numpy and gymnasium; Box2D, pygame and vizdoom are asked for when an environment is made.
"""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
from collections.abc import Callable

import gymnasium as gym
import numpy as np

FRAME = (64, 64, 3)  # what V sees


class EnvironmentDied(RuntimeError):
    """The game behind an environment is gone (killed, crashed): make a new environment."""


# ----------------------------------------------------------------------------------------------------- frames


def resizer(height: int, width: int) -> Callable[[np.ndarray], np.ndarray]:
    """-> a function (height, width, 3) uint8 -> (64, 64, 3) uint8: blur by as much as is left out, then pick.

    A new pixel is the mean over its window of old ones, made by adding neighbours once (84 rows to 64) or
    twice (160 columns to 64). Integers: the same on every machine, 4 x faster than area weights by matmul.
    """

    def window(
        size: int,
    ) -> tuple[int, np.ndarray]:  # how often to add neighbours, where the 64 windows start
        times = -(-size // 64) - 1
        centre = (np.arange(64) + 0.5) * size / 64
        return times, np.round(centre - (times + 1) / 2).astype(int)

    (down, top), (across, left) = window(height), window(width)
    row = 3 * width  # in values
    pick = (top[:, None, None] * row + left[:, None] * 3 + np.arange(3)).ravel()  # (64 * 64 * 3,)
    bits = np.uint16(down + across)  # each sum of two doubles the total

    def resize(frame: np.ndarray) -> np.ndarray:
        line = frame.ravel().astype(np.uint16)  # one long line: sums over the end of a row are never picked
        for step in [row] * down + [3] * across:
            line = line[:-step] + line[step:]
        picked = line.take(pick)
        picked += np.uint16(1 << bits >> 1)  # to round
        picked >>= bits
        return picked.astype(np.uint8).reshape(FRAME)

    return resize


# -------------------------------------------------------------------------------------------- random policies


class BrownianPolicy:
    """Actions for collecting CarRacing episodes: a random walk, da ~ sqrt(dt) N(0, 1), clipped to [-1, 1].

    White noise around zero never leaves the start; a walk brakes, turns and speeds for seconds on end.
    """

    def __init__(self, action_size: int, rng: np.random.Generator, dt: float = 1 / 50):
        self.rng, self.scale = rng, np.sqrt(dt)
        self.action = rng.uniform(-1, 1, action_size).astype(np.float32)

    def __call__(self) -> np.ndarray:
        """The next action, (A,) float32."""
        action = self.action
        self.action = (action + self.scale * self.rng.standard_normal(len(action))).clip(-1, 1).astype(np.float32)
        return action


class HeldPolicy:
    """Uniform actions in [-1, 1], each held for 1 to `longest` steps.

    Collecting Take Cover, the authors hold for up to 10 (extract.py). With 1 it lives as long in Take Cover as the
    paper's random policy (table 2).
    """

    def __init__(self, action_size: int, rng: np.random.Generator, longest: int = 10):
        self.size, self.rng, self.longest, self.left = action_size, rng, longest, 0

    def __call__(self) -> np.ndarray:
        """The next action, (A,) float32."""
        if self.left == 0:
            self.action = self.rng.uniform(-1, 1, self.size).astype(np.float32)
            self.left = int(self.rng.integers(1, self.longest + 1))
        self.left -= 1
        return self.action.copy()


class FixedPolicy:
    """One action (A,) for a whole episode; draws nothing from its rng."""

    def __init__(self, action: np.ndarray, rng: np.random.Generator | None = None):
        self.action = np.asarray(action, np.float32)

    def __call__(self) -> np.ndarray:
        """The action, (A,) float32."""
        return self.action.copy()


# ---------------------------------------------------------------------------------------------------- the car


class CarRacing(gym.Env):
    """Drive round a random track, seen from above.

    ## Description
    Gymnasium's continuous CarRacing-v3 with its physics, rewards and ends; its frame is cropped and shrunk.

    ## Action Space
    `Box(-1, 1, (3,), float32)`, the paper's map: steering = a0, gas = (a1 + 1) / 2, brake = max(a2, 0).

    ## Observation Space
    `Box(0, 255, (64, 64, 3), uint8)`: rows 0-83 of gymnasium's 96 x 96 frame (below lie speed and score),
    shrunk by `resizer`. `crop` is the unshrunk (84, 96, 3), equal to gymnasium's pixel for pixel.

    ## Rewards
    -0.1 per frame, +1000 / N for each of the N tiles when first visited; -100 in place of both for leaving.

    ## Starting State
    At rest on a new random track; the camera zooms in during the first 50 frames.

    ## Episode End
    Terminated after the lap or off the field; truncated after `max_steps`.

    ## Arguments
    `render_mode`: None or "rgb_array" (gymnasium's 600 x 400). `max_steps`: 1000. `lap_complete_percent`:
    part of the tiles that makes a lap, 0.95.
    """

    task, max_steps, action_size, solved_at = "carracing", 1000, 3, 900
    terminal_frame = True  # the observation of the last step shows the end
    metadata = {"render_modes": ["rgb_array"], "render_fps": 50}

    def __init__(self, render_mode: str | None = None, max_steps: int = max_steps, lap_complete_percent: float = 0.95):
        try:
            from wm_numpy.car import CroppedCarRacing
        except (ImportError, gym.error.DependencyNotInstalled) as error:
            raise ImportError(
                f"CarRacing needs Box2D and pygame ({error}): run `pip install box2d pygame-ce`."
            ) from error
        self.render_mode, self.max_steps = render_mode, max_steps
        self.action_space = gym.spaces.Box(-1, 1, (self.action_size,), np.float32)
        self.observation_space = gym.spaces.Box(0, 255, FRAME, np.uint8)
        self.game = CroppedCarRacing(render_mode=render_mode, lap_complete_percent=lap_complete_percent)
        self._resize = resizer(*self.game.observation_space.shape[:2])

    @staticmethod
    def data_policy(rng: np.random.Generator, hold: int = 10) -> BrownianPolicy:
        """A fresh random policy for one episode of data."""
        return BrownianPolicy(3, rng)

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        self.steps = 0
        self.game.np_random = self.np_random  # one generator, so that one seed decides everything
        self.crop, info = self._guard(self.game.reset)
        return self._resize(self.crop), info

    def step(self, action: np.ndarray):
        steer, gas, brake = np.asarray(action, np.float64)
        controls = np.array([steer, (gas + 1) / 2, np.clip(brake, 0, 1)])
        self.crop, reward, terminated, truncated, info = self._guard(self.game.step, controls)
        self.steps += 1
        truncated = not terminated and self.steps >= self.max_steps
        return self._resize(self.crop), float(reward), terminated, truncated, info

    def _guard(self, call: Callable, *arguments):
        try:
            return call(*arguments)
        except (AssertionError, RuntimeError, SystemError) as error:  # how Box2D reports that it is broken
            raise EnvironmentDied(f"The physics of CarRacing failed ({error!r}): make a new environment.") from error

    def render(self):
        return self.game.render()

    def close(self):
        self.game.close()


# ------------------------------------------------------------------------------------------------------- Doom


class TakeCover(gym.Env):
    """Stay alive while monsters throw fireballs from the other end of the room.

    ## Description
    ViZDoom's take_cover scenario as VizdoomTakeCover-v1 of gymnasium runs it (one tic per step, skill 4, RGB,
    no HUD), driven directly: the same seed gives the same game.

    ## Action Space
    `Box(-1, 1, (1,), float32)`: a < -1/3 moves left, a > 1/3 right, else stay.

    ## Observation Space
    `Box(0, 255, (64, 64, 3), uint8)`: the upper 5/6 of the screen (the paper's 400 of 480 rows),
    shrunk by `resizer`.

    ## Rewards
    +1 for each step survived.

    ## Starting State
    In the middle of the room; the seed decides where and when monsters appear.

    ## Episode End
    Terminated by death; truncated after `max_steps` (the scenario itself has no timeout). ViZDoom shows
    nothing after death: the observation of the last step repeats the one before (`terminal_frame` is False).

    ## Arguments
    `render_mode`: None or "rgb_array" (the screen, 4 times as large). `max_steps`: 2100. `resolution`: one of
    ViZDoom's; 160 x 120 shows in 64 x 64 the same fireballs as 320 x 240, which takes three times as long.
    """

    task, max_steps, action_size, solved_at = "doom", 2100, 1, 750
    terminal_frame = False
    metadata = {"render_modes": ["rgb_array"], "render_fps": 35}

    def __init__(
        self,
        render_mode: str | None = None,
        max_steps: int = max_steps,
        resolution: tuple[int, int] = (160, 120),
    ):
        try:
            import vizdoom
        except ImportError as error:
            raise ImportError(f"Take Cover needs ViZDoom ({error}): run `pip install vizdoom`.") from error
        self.render_mode, self.max_steps = render_mode, max_steps
        self.action_space = gym.spaces.Box(-1, 1, (self.action_size,), np.float32)
        self.observation_space = gym.spaces.Box(0, 255, FRAME, np.uint8)
        width, height = resolution
        self._rows = height * 400 // 480
        self._resize = resizer(self._rows, width)
        self._errors = (
            vizdoom.ViZDoomUnexpectedExitException,
            vizdoom.ViZDoomIsNotRunningException,
            vizdoom.ViZDoomErrorException,
            vizdoom.MessageQueueException,
            vizdoom.SharedMemoryException,
        )
        self.game = game = vizdoom.DoomGame()
        game.load_config(os.path.join(vizdoom.scenarios_path, "take_cover.cfg"))
        # What the figures of the paper hang on is set here, whatever the file says or will say.
        game.set_doom_skill(4)
        game.set_mode(vizdoom.Mode.PLAYER)
        game.set_available_buttons([vizdoom.Button.MOVE_LEFT, vizdoom.Button.MOVE_RIGHT])
        game.set_available_game_variables([])
        game.set_screen_format(vizdoom.ScreenFormat.RGB24)
        game.set_screen_resolution(getattr(vizdoom.ScreenResolution, f"RES_{width}X{height}"))
        game.set_render_hud(False)
        game.set_window_visible(False)
        game.set_sound_enabled(False)
        game.set_living_reward(1)
        game.set_death_penalty(0)
        game.set_episode_start_time(1)
        game.set_episode_timeout(0)
        self._guard(lambda: start_engine(game, os.path.dirname(vizdoom.__file__)))

    @staticmethod
    def data_policy(rng: np.random.Generator, hold: int = 10) -> HeldPolicy:
        """A fresh random policy for one episode of data."""
        return HeldPolicy(1, rng, hold)

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        # Always a seed: ViZDoom would draw its own from the clock. This draw is VizdoomTakeCover-v1's.
        self.game.set_seed(int(self.np_random.integers(2**32, dtype=np.uint32)))
        self._guard(self.game.new_episode)
        self.steps = 0
        self._look()
        return self.frame, {}

    def step(self, action: np.ndarray):
        a = float(np.asarray(action).reshape(1)[0])
        reward = self._guard(self.game.make_action, [a < -1 / 3, a > 1 / 3])
        self.steps += 1
        terminated = self.game.is_episode_finished()
        if not terminated:
            self._look()
        return self.frame, reward, terminated, not terminated and self.steps >= self.max_steps, {}

    def _look(self) -> None:
        self.screen = self.game.get_state().screen_buffer
        self.frame = self._resize(self.screen[: self._rows])

    def _guard(self, call: Callable, *arguments):
        try:
            return call(*arguments)
        except self._errors as error:
            raise EnvironmentDied(f"The ViZDoom process has died ({error}): make a new environment.") from error

    def render(self):
        if self.render_mode == "rgb_array":
            return self.screen.repeat(4, axis=0).repeat(4, axis=1)

    def close(self):
        self.game.close()


# ViZDoom's engine is a process of its own. Left alone it outlives a killed parent for ever, and writes
# `_vizdoom` into the current folder. So it is started through a script that asks Linux to kill it when its
# parent dies (1 is PR_SET_PDEATHSIG, 9 SIGKILL), changes to a temporary folder, and becomes the engine.
_LAUNCH = """import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9)
os.chdir(sys.argv[1])
os.execv(sys.argv[2], sys.argv[2:])"""


def start_engine(game, folder: str) -> None:
    """`game.init()`, leaving nothing in the current folder and nothing behind when this process is killed.

    Args:
        game: a configured vizdoom.DoomGame.
        folder: where the vizdoom package and so its engine lies.
    """
    game.set_doom_config_path(os.devnull)  # else the engine writes `_vizdoom.ini` when it ends
    with tempfile.TemporaryDirectory(prefix="wm_numpy-") as scratch:
        if sys.platform == "linux":
            script = os.path.join(scratch, "engine")
            command = [sys.executable, "-IS", "-c", _LAUNCH, scratch, os.path.join(folder, "vizdoom")]
            with open(script, "w") as file:
                file.write(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
            os.chmod(script, 0o700)
            game.set_vizdoom_path(script)
        game.init()
    # Both sides have mapped the shared memory, so its name can go: a killed process leaves no 10 MB behind.
    if sys.platform == "linux":
        for kind in ("SM", "MQCtr", "MQDoom"):
            path = f"/dev/shm/ViZDoom{kind}{game.get_instance_id()}"
            if os.path.exists(path):
                os.unlink(path)


# ---------------------------------------------------------------------------------------------------- by name

ENVIRONMENTS = {"carracing": CarRacing, "doom": TakeCover}


def _class_of(task: str) -> type[gym.Env]:
    if task not in ENVIRONMENTS:
        raise ValueError(f"There is no task {task!r}: choose one of {', '.join(ENVIRONMENTS)}.")
    return ENVIRONMENTS[task]


def make_env(task: str, render_mode: str | None = None) -> gym.Env:
    """The environment of a task.

    Args:
        task: "carracing" or "doom".
        render_mode: None or "rgb_array".

    Raises:
        ValueError: no such task.
        ImportError: a package that the task needs is missing.
    """
    return _class_of(task)(render_mode=render_mode)


def random_policy(task: str, rng: np.random.Generator, hold: int = 0, long_hold: int = 0) -> Callable[[], np.ndarray]:
    """A random policy for ONE episode of a task: policy() -> action (A,) float32.

    hold: 0: a uniform action at every step, what scores are compared with. More: the policy that collects data,
    Brownian for CarRacing, for Doom uniform and held for up to so many steps, or for up to long_hold in half of the
    episodes.
    """
    if long_hold and rng.random() < 0.5:
        hold = long_hold
    env = _class_of(task)
    return env.data_policy(rng, hold) if hold else HeldPolicy(env.action_size, rng, 1)


def register() -> None:
    """Tell gymnasium.make of "wm_numpy/CarRacing-v0" and "wm_numpy/TakeCover-v0"; safe to repeat."""
    for cls in ENVIRONMENTS.values():
        name = f"wm_numpy/{cls.__name__}-v0"
        if name not in gym.registry:
            gym.register(name, entry_point=f"wm_numpy.envs:{cls.__name__}")


register()
