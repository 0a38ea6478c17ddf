"""The paper's two tasks as gymnasium environments with one face: 64 x 64 x 3 uint8, actions in [-1, 1].

    env = make_env("doom")
    frame, _ = env.reset(seed=1)
    frame, reward, terminated, truncated, _ = env.step(policy())

Importing this needs numpy and gymnasium; Box2D, pygame and vizdoom are asked for when an environment is made.
"""

import os
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import gymnasium as gym
import numpy as np

from ..settings.config import from_flat
from ..settings.tasks import TASKS, whole

FRAME = (64, 64, 3)  # what V sees
Policy = Callable[[], np.ndarray]  # -> action (A,) float32


class EnvironmentDied(RuntimeError):
    """The game behind an environment is gone (killed, crashed): make a new environment."""


def resizer(height: int, width: int) -> Callable[[np.ndarray], np.ndarray]:
    """-> a function (height, width, 3) uint8 -> (64, 64, 3) uint8: blur by as much as is left out, then pick.

    A new pixel is the mean over its window of old ones, made by adding neighbours once (84 rows to 64) or
    twice (160 columns to 64). Integers: the same on every machine, 4 x faster than area weights by matmul.
    """

    def window(size: int) -> tuple[int, np.ndarray]:
        times = -(-size // 64) - 1  # to add neighbours
        centre = (np.arange(64) + 0.5) * size / 64
        return times, np.round(centre - (times + 1) / 2).astype(int)  # where the 64 windows start

    down, top = window(height)
    across, left = window(width)
    row = 3 * width  # in values
    pick = top[:, None, None] * row + left[:, None] * 3 + np.arange(3)  # (64, 64, 3)
    bits = np.uint16(down + across)  # each sum of two doubles the total

    def resize(frame: np.ndarray) -> np.ndarray:
        line = frame.ravel().astype(np.uint16)  # sums over the end of a row are never picked
        for step in [row] * down + [3] * across:
            line = line[:-step] + line[step:]
        half = np.uint16(1 << bits >> 1)  # to round
        return ((line.take(pick) + half) >> bits).astype(np.uint8)

    return resize


# --------------------------------------------------------------------- policies of one episode that see nothing


def _walk(action: np.ndarray, rng: np.random.Generator, repeat: int) -> Iterator[np.ndarray]:
    """Brownian: da ~ sqrt(dt) N(0, 1), clipped to [-1, 1], dt the seconds of a step at 50 frames a second.

    White noise would never leave CarRacing's start.
    """
    while True:
        yield action
        change = np.sqrt(repeat / 50) * rng.standard_normal(len(action))
        action = (action + change).clip(-1, 1).astype(np.float32)


def _hold(action_size: int, rng: np.random.Generator, longest: int) -> Iterator[np.ndarray]:
    """Uniform actions, each for 1 to `longest` steps: the authors' 10 (extract.py), or 1, table 2's random policy."""
    while True:
        action = rng.uniform(-1, 1, action_size).astype(np.float32)
        for _ in range(rng.integers(1, longest + 1)):
            yield action


def _swing(action: np.ndarray, steps: int) -> Iterator[np.ndarray]:
    left = steps // 2
    while True:
        for _ in range(left):
            yield action
        action = -action
        left = steps


def random_policy(
    task: str, rng: np.random.Generator, hold: int = 0, long_hold: int = 0, repeat: int = 1
) -> Policy:
    """At hold 0 a uniform action every step, the baseline of scores; else the policy that collects data.

    That is Brownian for CarRacing; for Doom uniform actions, each held for up to `hold` steps, or up to `long_hold`
    in half of the episodes. A step is `repeat` frames.
    """
    whole("hold", hold, 0), whole("long_hold", long_hold, 0)
    repeat = from_flat({"repeat": repeat}).repeat
    if long_hold and rng.random() < 0.5:
        hold = long_hold
    size = _class_of(task).facts.action_size
    if hold and task == "carracing":
        first = rng.uniform(-1, 1, size)  # now, before a repeated episode draws its seed
        return partial(next, _walk(first.astype(np.float32), rng, repeat))
    return partial(next, _hold(size, rng, hold or 1))


def fixed_policy(action: np.ndarray, rng: np.random.Generator | None = None) -> Policy:
    """One action (A,) for the whole episode; rng is not used."""
    return np.asarray(action, np.float32).copy


def to_and_fro(action: np.ndarray, rng: np.random.Generator, steps: int = 120) -> Policy:
    """An action (A,) for `steps`, its opposite for as many, again and again, from the middle in either direction.

    In Take Cover 120 steps lead from wall to wall. Fireballs miss a runner: it lives 800 steps and sees nothing.
    """
    first = np.asarray(action, np.float32) * np.float32(rng.choice((-1, 1)))
    return partial(next, _swing(first, whole("steps", steps)))


# ------------------------------------------------------------------------------------------------------ the tasks


class Task(gym.Env):
    """What both share. A task opens `game`; `_start` and `_act` are its reset and step, and give `crop`.

    Observation Space: `Box(0, 255, (64, 64, 3), uint8)`: `crop` shrunk by `resizer`; kept in `frame`.
    Rewards: the game's own, summed over the frames of a step.
    Episode End: as the task says; truncated after `max_steps` frames.
    Arguments: `render_mode`: None or "rgb_array", the game's own large picture; `max_steps`: in frames; `repeat`:
        frames that an action lasts, of which the last is drawn. `frames` counts those of the episode.
    """

    def __init__(
        self, render_mode: str | None = None, max_steps: int | None = None, repeat: int = 1
    ):
        self.render_mode = render_mode
        self.repeat = from_flat({"repeat": repeat}).repeat  # checked as on the command line
        self.max_steps = (
            self.facts.max_steps if max_steps is None else whole("max_steps", max_steps)
        )
        self.shows_end = self.facts.shows_end
        self.action_space = gym.spaces.Box(-1, 1, (self.facts.action_size,), np.float32)
        self.observation_space = gym.spaces.Box(0, 255, FRAME, np.uint8)
        self._resize = resizer(*self.crop_size)
        self._over = True  # until the first reset
        try:
            self._open()
        except (ImportError, gym.error.DependencyNotInstalled) as error:
            mend = f"run `pip install {self.facts.packages}`"
            raise ImportError(f"{self.name} misses a package ({error}): {mend}.") from error

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        self.frames = 0
        with self._alive():
            self.crop, info = self._start()
        self.frame = self._resize(self.crop)
        self._over = False
        return self.frame, info

    def step(self, action: np.ndarray):
        if self._over:
            raise gym.error.ResetNeeded(f"no episode of {self.name} runs: call reset before step")
        action = np.asarray(action, np.float64)
        shape = self.action_space.shape
        if action.shape != shape or not np.isfinite(action).all():
            raise ValueError(f"an action of {self.name} is {shape} finite numbers, not {action}")
        count = min(self.repeat, self.max_steps - self.frames)
        with self._alive():
            self.crop, reward, terminated, info = self._act(action, count)
        self.frames += count
        self.frame = self._resize(self.crop)
        truncated = not terminated and self.frames >= self.max_steps
        self._over = terminated or truncated
        return self.frame, float(reward), terminated, truncated, info

    @contextmanager
    def _alive(self):
        try:
            yield
        except self.deaths as error:  # how the game reports that it is broken
            sentence = f"The game of {self.name} has died ({error!r}): make a new environment."
            raise EnvironmentDied(sentence) from error

    def close(self):
        self.game.close()


class CarRacing(Task):
    """Drive round a random track, seen from above.

    Description: gymnasium's continuous CarRacing-v3 with its physics, rewards and ends; its frame cropped and shrunk.
    Action Space: `Box(-1, 1, (3,), float32)`, the paper's map: steering = a0, gas = (a1 + 1) / 2, brake = max(a2, 0).
    Observation Space: rows 0-83 of gymnasium's 96 x 96 frame (below lie speed and score), shrunk to 64 x 64. `crop` is
        the unshrunk (84, 96, 3), equal to gymnasium's pixel for pixel.
    Rewards: -0.1 per frame, +1000 / N for each of the N tiles when first visited; -100 in place of both for leaving.
        info["reward"] is the number of tiles newly visited: what M learns to predict.
    Starting State: at rest on a new random track; the camera zooms in during the first 50 frames.
    Episode End: terminated after the lap or off the field; truncated after 1,000 frames.
    """

    name = "carracing"
    facts = TASKS["carracing"]
    crop_size = (84, 96)
    metadata = {"render_modes": ["rgb_array"], "render_fps": 50}
    deaths = (AssertionError, RuntimeError, SystemError)  # Box2D's

    def _open(self):
        from .car import CroppedCarRacing

        self.game = CroppedCarRacing(render_mode=self.render_mode)

    def _start(self):
        self.game.np_random = self.np_random  # one generator, so that one seed decides everything
        self._tiles = 0  # already rewarded; the first step rewards the one the car stands on
        return self.game.reset()

    def _act(self, action, count):
        steer, gas, brake = action
        controls = np.array([steer, (gas + 1) / 2, np.clip(brake, 0, 1)])
        total = 0.0
        for k in range(count):
            self.game.blind = k < count - 1
            crop, reward, terminated, _, info = self.game.step(controls)
            total += reward
            if terminated:
                break
        if self.game.blind:  # it ended before the frame that is drawn
            self.game.blind = False
            crop = self.game._render("state_pixels")
        before = self._tiles
        self._tiles = self.game.tile_visited_count
        return crop, total, terminated, info | {"reward": self._tiles - before}

    def render(self):
        return self.game.render()


class TakeCover(Task):
    """Stay alive while monsters throw fireballs from the other end of the room.

    Description: ViZDoom's take_cover scenario as VizdoomTakeCover-v1 of gymnasium runs it (one tic per frame, skill 4,
        RGB, no HUD), driven directly: the same seed gives the same game.
    Action Space: `Box(-1, 1, (1,), float32)`: a < -1/3 moves left, a > 1/3 right, else stay.
    Observation Space: the upper 5/6 of the screen (the paper's 400 of 480 rows), shrunk to 64 x 64.
    Rewards: +1 for each tic survived.
    Starting State: in the middle of the room; the seed decides where and when monsters appear.
    Episode End: terminated by death; truncated after 2,100 tics (the scenario itself has no timeout). ViZDoom shows
        nothing after death: the observation of the last step repeats the one before (`shows_end` is False).
    """

    name = "doom"
    facts = TASKS["doom"]
    crop_size = (100, 160)
    metadata = {"render_modes": ["rgb_array"], "render_fps": 35}
    tells_positions = False  # of the player and all objects; an agent never gets them

    def _open(self):
        import vizdoom

        dead = ["ViZDoomUnexpectedExit", "ViZDoomIsNotRunning", "ViZDoomError"]
        dead += ["MessageQueue", "SharedMemory"]
        self.deaths = tuple(getattr(vizdoom, f"{name}Exception") for name in dead)
        self.game = game = vizdoom.DoomGame()
        game.load_config(os.path.join(vizdoom.scenarios_path, "take_cover.cfg"))
        # What the figures of the paper depend on is set here, whatever the file says or will say.
        game.set_doom_skill(4)
        game.set_mode(vizdoom.Mode.PLAYER)
        game.set_available_buttons([vizdoom.Button.MOVE_LEFT, vizdoom.Button.MOVE_RIGHT])
        place = [vizdoom.GameVariable.POSITION_X, vizdoom.GameVariable.POSITION_Y]
        game.set_available_game_variables(place if self.tells_positions else [])
        game.set_objects_info_enabled(self.tells_positions)
        game.set_screen_format(vizdoom.ScreenFormat.RGB24)
        # In 64 x 64 the same fireballs are seen as with 320 x 240, which takes three times as long.
        game.set_screen_resolution(vizdoom.ScreenResolution.RES_160X120)
        game.set_render_hud(False)
        game.set_window_visible(False)
        game.set_sound_enabled(False)
        game.set_living_reward(1)
        game.set_death_penalty(0)
        game.set_episode_start_time(1)
        game.set_episode_timeout(0)
        with self._alive():
            _start_engine(game, os.path.join(os.path.dirname(vizdoom.__file__), "vizdoom"))

    def _start(self):
        # Always a seed: ViZDoom would draw its own from the clock. This draw is VizdoomTakeCover-v1's.
        self.game.set_seed(int(self.np_random.integers(2**32, dtype=np.uint32)))
        self.game.new_episode()
        self.screen = self.game.get_state().screen_buffer
        return self.screen[:100], {}

    def _act(self, action, count):
        (side,) = action
        reward = self.game.make_action([side < -1 / 3, side > 1 / 3], count)
        terminated = self.game.is_episode_finished()
        if not terminated:
            self.screen = self.game.get_state().screen_buffer
        return self.screen[:100], reward, terminated, {}

    def render(self):
        return self.screen.repeat(4, axis=0).repeat(4, axis=1) if self.render_mode else None


# ViZDoom's engine is a process of its own. Left alone it outlives a killed parent for ever, and writes `_vizdoom` into
# the current folder. So it is started through a script that asks Linux to kill it when its parent dies (1 is
# PR_SET_PDEATHSIG, 9 SIGKILL), changes to a temporary folder, and becomes the engine. If the parent died before that,
# the script ends.
_LAUNCH = """import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9)
if os.getppid() == int(sys.argv[1]):
    os.chdir(sys.argv[2])
    os.execv(sys.argv[3], sys.argv[3:])"""


def _start_engine(game, engine: str) -> None:
    """`game.init()`, leaving nothing in the current folder and nothing behind when this process is killed."""
    game.set_doom_config_path(os.devnull)  # else the engine writes `_vizdoom.ini` when it ends
    if sys.platform != "linux":
        return game.init()
    # In a folder mounted noexec no script can run, and ViZDoom dies without a word.
    folders = [tempfile.gettempdir(), "/dev/shm", os.path.expanduser("~")]
    runs = [f for f in folders if os.access(f, os.W_OK) and not os.statvfs(f).f_flag & os.ST_NOEXEC]
    if not runs:
        places = ", ".join(folders)
        raise RuntimeError(f"No script can run in {places}: set TMPDIR to a folder where one can.")
    with tempfile.TemporaryDirectory(prefix="wm_numpy-", dir=runs[0]) as scratch:
        python = [sys.executable, "-IS", "-c", _LAUNCH]
        command = shlex.join([*python, str(os.getpid()), scratch, engine])
        script = Path(scratch, "engine")
        script.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        script.chmod(0o700)
        game.set_vizdoom_path(str(script))
        game.init()
    # Both sides have mapped the shared memory, so its name can go: a killed process leaves no 10 MB behind.
    for kind in ("SM", "MQCtr", "MQDoom"):
        Path(f"/dev/shm/ViZDoom{kind}{game.get_instance_id()}").unlink(missing_ok=True)


# -------------------------------------------------------------------------------------------------------- by name

ENVIRONMENTS = {"carracing": CarRacing, "doom": TakeCover}


def _class_of(task: str) -> type[Task]:
    if task not in ENVIRONMENTS:
        raise ValueError(f"There is no task {task!r}: choose one of {', '.join(ENVIRONMENTS)}.")
    return ENVIRONMENTS[task]


def make_env(task: str, render_mode: str | None = None, repeat: int = 1) -> Task:
    """The environment of "carracing" or "doom"; ImportError names the package that it misses."""
    return _class_of(task)(render_mode=render_mode, repeat=repeat)


for _task in ENVIRONMENTS.values():
    gym.register(
        f"wm_numpy/{_task.__name__}-v0", entry_point=f"wm_numpy.worlds.envs:{_task.__name__}"
    )
