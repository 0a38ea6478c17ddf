"""Any declared world as one Gymnasium environment: 64 x 64 x 3 uint8, A actions in [-1, 1], a step of `repeat` frames.

    env = Environment("doom")
    frame, _ = env.reset(seed=1)
    frame, reward, terminated, truncated, _ = env.step(np.zeros(1))

Importing this needs numpy and gymnasium; the packages of a game are imported when it is made.
"""

import os
from collections.abc import Callable
from math import isfinite
from pathlib import Path
from traceback import extract_tb

import gymnasium as gym
import numpy as np

from ..settings.config import from_flat
from ..settings.tasks import Task, TaskError, find, known, whole
from .picture import resizer, to_rgb


class EnvironmentDied(RuntimeError):
    """The game behind an environment is gone (killed, crashed): make a new environment."""


class EnvironmentFailed(RuntimeError):
    """A game raised an error of its own, or returned what no environment should."""


class Environment(gym.Env):
    """A world as V, M and C meet it; `game` is the environment that its declaration makes.

    Action Space: `Box(-1, 1, (A,), float32)`; of discrete actions the one with the largest number is taken.
    Observation Space: `Box(0, 255, (64, 64, 3), uint8)`: `crop`, the declared part of the picture, shrunk by `resizer`;
        kept in `frame`. Where the frame after an end shows nothing, the one before is repeated.
    Rewards: the game's own, summed over the frames of a step. info["reward"] is what M learns to predict.
    Episode End: as the game says; truncated after `max_steps` frames.
    Arguments: `task`: its name, or a declaration; `render_mode`: None or "rgb_array", the game's own large picture;
        `max_steps`: in frames; `repeat`: frames that an action lasts. `frames` counts those of the episode.
        ImportError names the package that a game misses.
    """

    metadata = {"render_modes": ["rgb_array"]}

    def __init__(
        self,
        task: str | Task,
        render_mode: str | None = None,
        max_steps: int | None = None,
        repeat: int = 1,
    ):
        self.task = find(task) if isinstance(task, str) else task
        self.metadata = self.metadata | {"render_fps": self.task.fps}
        self.render_mode, self.shows_end = render_mode, self.task.shows_end
        self.repeat = from_flat({"repeat": repeat}).repeat  # checked as on the command line
        self.max_steps = whole("max_steps", self.task.max_steps if max_steps is None else max_steps)
        self.action_space = gym.spaces.Box(-1, 1, (self.task.actions,), np.float32)
        self.observation_space = gym.spaces.Box(0, 255, (64, 64, 3), np.uint8)
        self._resize = resizer(*self.task.size)
        self._over = True  # until the first reset
        self.game = made(self.task, render_mode or self.task.picture == "render")
        self._act = self.task.act or _native(self.game.action_space, self.task)

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        self.frames = 0
        info = self._guarded("reset", self._begin, seed)
        self._over = False
        return self.frame, info

    def step(self, action: np.ndarray):
        if self._over:
            fault = f"no episode of {self.task.name} runs"
            raise gym.error.ResetNeeded(f"{fault}: call reset before step")
        action = np.asarray(action, np.float64)
        if action.shape != (self.task.actions,) or not np.isfinite(action).all():
            fault = f"an action of {self.task.name} is {self.action_space.shape} finite numbers"
            raise ValueError(f"{fault}, not {action}")
        count = min(self.repeat, self.max_steps - self.frames)
        reward, terminated, truncated, info = self._guarded("step", self._play, action, count)
        self.frames += count
        truncated = not terminated and (truncated or self.frames >= self.max_steps)
        self._over = terminated or truncated
        return self.frame, reward, terminated, truncated, info

    def render(self):
        return self.game.render() if self.render_mode else None

    def close(self):
        self.game.close()

    def _begin(self, seed: int | None) -> dict:
        observation, info = self.game.reset(seed=seed)
        self._see(observation)
        return info

    def _play(self, action: np.ndarray, count: int) -> tuple:
        """`count` frames of the game, fewer if it ends; their rewards are summed, the last of them is seen."""
        action = self._act(action)
        if self.task.skips:
            observation, total, terminated, truncated, info = self.game.step(action, count)
        else:
            total = learned = 0.0
            for _ in range(count):
                told = self.game.step(action)
                if len(told) != 5:
                    raise ValueError("it returns (picture, reward, terminated, truncated, info)")
                observation, reward, terminated, truncated, info = told
                total += float(reward)
                learned += float(info.get("reward", reward))
                if terminated or truncated:
                    break
            info = info | {"reward": learned}
        if not isfinite(total):
            raise ValueError(f"the reward is {total}")
        if self.shows_end or not terminated:
            self._see(observation)
        return float(total), bool(terminated), bool(truncated), info

    def _see(self, observation: np.ndarray) -> None:
        crop = seen(self.task, self.game, observation)
        if crop.shape[:2] != self.task.size:
            raise ValueError(f"the picture is {crop.shape[:2]} now, and was {self.task.size}")
        self.crop, self.frame = crop, self._resize(crop)

    def _guarded(self, doing: str, call: Callable, *arguments):
        """call(*arguments); an error of the game becomes one sentence that names its world."""
        try:
            return call(*arguments)
        except getattr(self.game, "deaths", ()) as error:  # how it reports that it is broken
            sentence = f"The game of {self.task.name} has died ({error!r}): make a new environment."
            raise EnvironmentDied(sentence) from error
        except Exception as error:
            raise failure(self.task, doing, error) from error


def seen(task: Task, game, observation: np.ndarray) -> np.ndarray:
    """The part of a game's picture that the task declares (height, width, 3) uint8."""
    return to_rgb(game.render() if task.picture == "render" else observation)[task.crop]


def _native(space: gym.Space, task: Task) -> Callable:
    """-> a function (A,) in [-1, 1] -> an action of the space."""
    if task.discrete:
        return lambda action: int(space.start + np.argmax(action))
    low, high = (np.asarray(bound, np.float64) for bound in (space.low, space.high))

    def stretch(action: np.ndarray) -> np.ndarray:
        share = (np.clip(action, -1, 1).reshape(space.shape) + 1) / 2
        return (low + share * (high - low)).astype(space.dtype)

    return stretch


def failure(task: Task, doing: str, error: Exception) -> EnvironmentFailed:
    """Names the world, what it raised, and the line, if that is not in this folder."""
    frames = extract_tb(error.__traceback__)
    frames = [f for f in frames if Path(f.filename).parent != Path(__file__).parent]
    at = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    return EnvironmentFailed(f"{task.name} fails in {doing}: {type(error).__name__}: {error}{at}")


def made(task: Task, draws: bool = False):
    """The game of a declaration; draws: its render() gives a picture."""
    arguments = {}
    if draws:
        arguments["render_mode"] = "rgb_array"
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame needs no display then
    try:
        return task.make(**arguments)
    except TaskError:
        raise
    except (ImportError, gym.error.DependencyNotInstalled) as error:
        hint = f"run `pip install {task.packages}`" if task.packages else "install it"
        raise ImportError(f"{task.name} misses a package ({error}): {hint}.") from error
    except gym.error.Error as error:  # such as an unknown id
        raise TaskError(f"{task.name}: {error}") from error
    except Exception as error:
        raise failure(task, "make", error) from error


for _name in known():
    _id = f"wm_numpy/{find(_name).face}"
    gym.register(_id, entry_point=f"{__name__}:Environment", kwargs={"task": _name})
