"""Any declared world as one Gymnasium environment: 64 x 64 x 3 uint8, A actions in [-1, 1], a step of `repeat` frames.

    env = make_env("doom")
    frame, _ = env.reset(seed=1)
    frame, reward, terminated, truncated, _ = env.step(np.zeros(1))

Importing this needs numpy and gymnasium; what else a game needs is asked for when it is made.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from importlib import import_module
from traceback import extract_tb

import gymnasium as gym
import numpy as np
from gymnasium.utils.env_checker import check_env

from ..settings.config import from_flat
from ..settings.tasks import Task, TaskError, find, known, whole

FRAME = (64, 64, 3)  # what V sees
LARGE = 128  # rows or columns; of twice as many or more, blocks are averaged first


class EnvironmentDied(RuntimeError):
    """The game behind an environment is gone (killed, crashed): make a new environment."""


class EnvironmentFailed(RuntimeError):
    """An environment raised an error of its own, or gave what no environment should."""


def resizer(height: int, width: int) -> Callable[[np.ndarray], np.ndarray]:
    """-> a function (height, width, 3) uint8 -> (64, 64, 3) uint8: blur by as much as is left out, then pick.

    A new pixel is the mean over its window of old ones, made by adding neighbours once (84 rows to 64) or
    twice (160 columns to 64). Integers: the same on every machine, 4 x faster than area weights by matmul.
    """
    across_blocks, down_blocks = max(1, width // LARGE), max(1, height // LARGE)
    rows, columns = height // down_blocks, width // across_blocks  # of blocks

    def window(size: int) -> tuple[int, np.ndarray]:
        times = max(0, -(-size // 64) - 1)  # to add neighbours
        centre = (np.arange(64) + 0.5) * size / 64
        return times, np.round(centre - (times + 1) / 2).astype(int)  # where the 64 windows start

    down, top = window(rows)
    across, left = window(columns)
    row = 3 * columns  # in values
    pick = top[:, None, None] * row + left[:, None] * 3 + np.arange(3)  # (64, 64, 3)
    bits = np.uint16(down + across)  # each sum of two doubles the total

    def in_blocks(frame: np.ndarray) -> np.ndarray:
        """The mean of every block, (rows, columns, 3)."""
        frame = frame[: rows * down_blocks, : columns * across_blocks]
        n = down_blocks * across_blocks
        total = np.uint32(n // 2)  # to round
        for i in range(down_blocks):
            for j in range(across_blocks):
                total = total + frame[i::down_blocks, j::across_blocks]
        return total // n

    def resize(frame: np.ndarray) -> np.ndarray:
        if across_blocks > 1 or down_blocks > 1:
            frame = in_blocks(frame)
        line = frame.ravel().astype(np.uint16)  # sums over the end of a row are never picked
        for step in [row] * down + [3] * across:
            line = line[:-step] + line[step:]
        half = np.uint16(1 << bits >> 1)  # to round
        return ((line.take(pick) + half) >> bits).astype(np.uint8)

    return resize


class Environment(gym.Env):
    """A world as V, M and C meet it; `game` is the environment that its declaration makes.

    Action Space: `Box(-1, 1, (A,), float32)`; of discrete actions the one with the largest number is taken.
    Observation Space: `Box(0, 255, (64, 64, 3), uint8)`: `crop`, the part of the picture that is declared, shrunk by
        `resizer`; kept in `frame`. Where the frame after an end shows nothing, the one before is repeated.
    Rewards: the game's own, summed over the frames of a step. info["reward"] is what M learns to predict.
    Episode End: as the game says; truncated after `max_steps` frames.
    Arguments: `task`: its name, or a declaration; `render_mode`: None or "rgb_array", the game's own large picture;
        `max_steps`: in frames; `repeat`: frames that an action lasts. `frames` counts those of the episode.
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
        self.observation_space = gym.spaces.Box(0, 255, FRAME, np.uint8)
        self._resize = resizer(*self.task.size)
        self._over = True  # until the first reset
        self.game = made(self.task, render_mode or self.task.picture == "render")
        self._act = self.task.act or _meaning(self.game.action_space, self.task)

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        self.frames = 0
        with self._alive("reset"):
            observation, info = self.game.reset(seed=seed)
            self._see(observation)
        self._over = False
        return self.frame, info

    def step(self, action: np.ndarray):
        if self._over:
            what = f"no episode of {self.task.name} runs"
            raise gym.error.ResetNeeded(f"{what}: call reset before step")
        action = np.asarray(action, np.float64)
        shape = self.action_space.shape
        if action.shape != shape or not np.isfinite(action).all():
            what = f"an action of {self.task.name} is {shape} finite numbers"
            raise ValueError(f"{what}, not {action}")
        count = min(self.repeat, self.max_steps - self.frames)
        with self._alive("step"):
            observation, reward, terminated, truncated, info = self._play(self._act(action), count)
            if not np.isfinite(reward):
                raise ValueError(f"the reward is {reward}")
            if self.task.shows_end or not terminated:
                self._see(observation)
        self.frames += count
        truncated = not terminated and (truncated or self.frames >= self.max_steps)
        self._over = terminated or truncated
        return self.frame, float(reward), terminated, truncated, info

    def _play(self, action, count: int) -> tuple:
        """`count` frames of one action of the game's own, or fewer: rewards are summed, an end stops them."""
        if self.task.skips:
            return self.game.step(action, count)
        total = learned = 0.0
        for _ in range(count):
            observation, reward, terminated, truncated, info = self.game.step(action)
            total += float(reward)
            learned += float(info.get("reward", reward))
            if terminated or truncated:
                break
        return observation, total, bool(terminated), bool(truncated), info | {"reward": learned}

    def _see(self, observation: np.ndarray) -> None:
        """Keep the crop of the picture, and the frame that it shrinks to."""
        crop = _picture(self.game, observation, self.task)
        if crop.shape[:2] != self.task.size:
            raise ValueError(f"the picture is {crop.shape[:2]} now, and was {self.task.size}")
        self.crop, self.frame = crop, self._resize(crop)

    @contextmanager
    def _alive(self, doing: str):
        """Errors of the game as one sentence that names it."""
        try:
            yield
        except getattr(self.game, "deaths", ()) as error:  # how it reports that it is broken
            sentence = f"The game of {self.task.name} has died ({error!r}): make a new environment."
            raise EnvironmentDied(sentence) from error
        except Exception as error:
            raise EnvironmentFailed(_sentence(self.task.name, doing, error)) from error

    def render(self):
        return self.game.render() if self.render_mode else None

    def close(self):
        self.game.close()


def _sentence(name: str, doing: str, error: Exception) -> str:
    """Who raised what, and where, if not here."""
    frames = [f for f in extract_tb(error.__traceback__) if f.filename != __file__]
    at = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    return f"{name} fails in {doing}: {type(error).__name__}: {error}{at}"


def made(task: Task, draws: bool = False):
    """The game of a declaration; draws: its render() gives a picture."""
    how = {"render_mode": "rgb_array"} if draws else {}
    try:
        return task.make(**how)
    except (ImportError, gym.error.DependencyNotInstalled) as error:
        mend = f"run `pip install {task.packages}`" if task.packages else "install it"
        raise ImportError(f"{task.name} misses a package ({error}): {mend}.") from error
    except gym.error.Error as error:  # such as an unknown id
        raise TaskError(f"{task.name}: {error}") from error
    except Exception as error:
        raise EnvironmentFailed(_sentence(task.name, "make", error)) from error


def make_env(task: str | Task, render_mode: str | None = None, repeat: int = 1) -> Environment:
    """The environment of a world; ImportError names the package that it misses."""
    return Environment(task, render_mode=render_mode, repeat=repeat)


# ----------------------------------------------------------------------------- what a declaration leaves out


def registered(name: str) -> Task:
    """The world gym:ID or gym:MODULE:ID."""
    env_id = name.partition(":")[2]
    packages = "" if ":" in env_id else "gymnasium[all]"
    return Task(make=partial(gym.make, env_id, disable_env_checker=True), packages=packages)


def completed(task: Task) -> Task:
    """The declaration, and where it is silent what its environment says, made once for that."""
    game = made(task)
    try:
        if hasattr(game, "possible_agents") or hasattr(game, "num_envs"):
            raise TaskError(f"{task.name} is of several agents or a batch: one agent's is needed")
        size, discrete = task.actions, bool(task.discrete)
        if task.act is None:
            size, discrete = _numbers(game.action_space, task.name)
        elif size is None:
            raise TaskError(f"{task.name} declares act: it must declare actions, how many, too")
        seen = "observation" if _is_picture(game.observation_space) else "render"
        picture = task.picture or seen
        if picture == "render":
            game.close()
            try:
                game = made(task, draws=True)
            except EnvironmentFailed as error:
                what = f"{task.name}: its observation is no picture, and it does not draw one"
                raise TaskError(
                    f"{what} when made with render_mode='rgb_array' ({error})"
                ) from error
        task = replace(task, actions=size, discrete=discrete, picture=picture)
        observation, _ = game.reset(seed=0)
        crop = _picture(game, observation, task)
        spec = getattr(game, "spec", None)
        most = task.max_steps or (spec and spec.max_episode_steps) or 1000
        fps = task.fps or getattr(game, "metadata", {}).get("render_fps") or 30
        keys, rest = _keys(size, discrete)
        return replace(
            task,
            size=task.size or crop.shape[:2],
            max_steps=most,
            fps=fps,
            lengths=task.lengths or (most, most),
            keys=keys if task.keys is None else task.keys,
            rest=rest if task.rest is None else task.rest,
            labels=task.labels or tuple(f"action {i + 1}" for i in range(size)),
        )
    except (TaskError, ImportError):
        raise
    except Exception as error:
        raise EnvironmentFailed(_sentence(task.name, "its first reset", error)) from error
    finally:
        game.close()


def _numbers(space: gym.Space, name: str) -> tuple[int, bool]:
    """How many numbers C gives for actions of a space, and whether it is discrete."""
    if isinstance(space, gym.spaces.Discrete):
        return int(space.n), True
    if isinstance(space, gym.spaces.Box) and space.is_bounded():
        return int(np.prod(space.shape)), False
    what = "actions are Box, with bounds, or Discrete"
    mend = "declare a function `act` and how many numbers it takes, `actions`"
    raise TaskError(f"{name} takes actions {space}; {what}: {mend}")


def _meaning(space: gym.Space, task: Task) -> Callable:
    """(A,) in [-1, 1] -> an action of the space."""
    if task.discrete:
        return lambda action: int(space.start + np.argmax(action))
    low, high = (np.asarray(bound, np.float64) for bound in (space.low, space.high))

    def stretch(action: np.ndarray) -> np.ndarray:
        share = (np.clip(action, -1, 1).reshape(space.shape) + 1) / 2
        return (low + share * (high - low)).astype(space.dtype)

    return stretch


def _keys(size: int, discrete: bool) -> tuple[dict, tuple]:
    """Left and right are the first number, up and down the second; of discrete actions the first and the last."""
    one = np.eye(size)
    if discrete:
        keys = {"left": one[0], "right": one[-1]}
        keys |= {str(i + 1): one[i] for i in range(min(size, 9))}
    else:
        keys = {"left": -one[0], "right": one[0]}
        if size > 1:
            keys |= {"up": one[1], "down": -one[1]}
    return {key: tuple(x.tolist()) for key, x in keys.items()}, (0.0,) * size


def _is_picture(space: gym.Space) -> bool:
    shape = getattr(space, "shape", None) or ()
    colours = len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3))
    return isinstance(space, gym.spaces.Box) and colours and min(shape[:2]) >= 8


def _picture(game, observation: np.ndarray, task: Task) -> np.ndarray:
    """The part of the picture that V is to see, (height, width, 3) uint8; ValueError: it is none."""
    x = np.asarray(game.render() if task.picture == "render" else observation)
    if x.ndim == 2:
        x = x[..., None]
    if x.ndim != 3 or x.shape[2] not in (1, 3):
        mend = "declare `picture`, the other of observation and render"
        what = f"a picture is (height, width, 3 or 1), and the {task.picture} is {x.shape}"
        raise ValueError(f"{what}: {mend}")
    if x.dtype != np.uint8:
        low, high = (x.min(), x.max()) if x.dtype != bool else (0, 1)
        unit = x.dtype.kind in "fb"
        if not (low >= 0 and high <= (1 if unit else 255)):  # False for NaN
            allowed = "0 to 1" if unit else "0 to 255"
            raise ValueError(f"a picture of {x.dtype} is {allowed}, not {low} to {high}")
        x = np.round(x * 255.0 if unit else x).astype(np.uint8)
    x = x[task.crop]
    return x if x.shape[2] == 3 else np.repeat(x, 3, axis=2)


def examined(task: Task) -> Iterator[str]:
    """What to be told of a world that does not come with the package: Gymnasium's warnings, and unheeded seeds."""
    if task.name in known():
        return
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with closing(made(task, task.picture == "render")) as game:
            try:
                check_env(getattr(game, "unwrapped", game), skip_render_check=True)
            except Exception as error:
                warnings.warn(f"{type(error).__name__}: {error}", stacklevel=1)
    texts = [str(w.message) for w in told if w.category is not DeprecationWarning]
    yield from [f"{task.name}, gymnasium's check_env: {text}" for text in dict.fromkeys(texts)]
    rng = np.random.default_rng(0)
    actions = [task.taken(rng.uniform(-1, 1, task.actions)) for _ in range(30)]
    first, again = (_beginning(task, actions) for _ in range(2))
    if len(first) != len(again) or not all(map(np.array_equal, first, again)):
        what = "two episodes of one seed differ, and no result can be repeated"
        yield f"{task.name} ignores its seed: {what}"


def _beginning(task: Task, actions: list[np.ndarray]) -> list[np.ndarray]:
    """Frames and rewards of the first steps of an episode, up to its end."""
    with closing(make_env(task)) as env:
        seen = [env.reset(seed=1)[0]]
        for action in actions:
            frame, reward, terminated, truncated, _ = env.step(action)
            seen += [frame, np.float64(reward)]
            if terminated or truncated:
                break
    return seen


for _name in known():
    _task = import_module(f".{_name}", __package__).TASK
    _how = {"entry_point": f"{__name__}:Environment", "kwargs": {"task": _name}}
    gym.register(f"wm_numpy/{_task.face}", **_how)
