"""A world that nobody has described: what its declaration leaves out, and what its owner should be told of it."""

import re
import warnings
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial

import gymnasium as gym
import numpy as np
from gymnasium.utils.env_checker import check_env

from ..settings.tasks import Task, TaskError, known
from .envs import EnvironmentFailed, failure, made, make_env
from .picture import in_colour
from .policies import random_policy


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
        if task.act is None:
            size, discrete = _numbers(game.action_space, task.name)
            task = replace(task, actions=size, discrete=discrete)
        elif task.actions is None:
            raise TaskError(f"{task.name} declares act: it must declare actions, how many, too")
        if task.picture is None:
            seen = "observation" if _is_picture(game.observation_space) else "render"
            task = replace(task, picture=seen)
        if task.picture == "render":
            game.close()
            game = _drawing(task)
        observation, _ = game.reset(seed=0)
        crop = in_colour(game.render() if task.picture == "render" else observation)[task.crop]
        spec = getattr(game, "spec", None)
        most = task.max_steps or (spec and spec.max_episode_steps) or 1000
        told = {
            "discrete": False,
            "size": crop.shape[:2],
            "max_steps": most,
            "lengths": (most, most),
            "fps": getattr(game, "metadata", {}).get("render_fps") or 30,
            "keys": _keys(task.actions, task.discrete),
            "rest": (0.0,) * task.actions,
            "labels": tuple(f"action {i + 1}" for i in range(task.actions)),
        }
        return replace(task, **{k: told[k] for k in told if getattr(task, k) is None})
    except (TaskError, ImportError):
        raise
    except Exception as error:
        raise EnvironmentFailed(failure(task, "its first reset", error)) from error
    finally:
        game.close()


def _drawing(task: Task):
    try:
        return made(task, draws=True)
    except EnvironmentFailed as error:
        fault = f"{task.name}: its observation is no picture, and it does not draw one"
        raise TaskError(f"{fault} when made with render_mode='rgb_array' ({error})") from error


def _numbers(space: gym.Space, name: str) -> tuple[int, bool]:
    """How many numbers C gives for actions of a space, and whether it is discrete."""
    if isinstance(space, gym.spaces.Discrete):
        return int(space.n), True
    if isinstance(space, gym.spaces.Box) and space.is_bounded():
        return int(np.prod(space.shape)), False
    fault = f"{name} takes actions {space}; they are Box, with bounds, or Discrete"
    raise TaskError(f"{fault}: declare a function `act` and how many numbers it takes, `actions`")


def _is_picture(space: gym.Space) -> bool:
    shape = getattr(space, "shape", None) or ()
    colours = len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3))
    return isinstance(space, gym.spaces.Box) and colours and min(shape[:2]) >= 8


def _keys(size: int, discrete: bool) -> dict[str, tuple]:
    """Left and right are the first number, up and down the second; of discrete actions the first and the last."""
    one = np.eye(size)
    if discrete:
        keys = {"left": one[0], "right": one[-1]}
        keys |= {str(i + 1): one[i] for i in range(min(size, 9))}
    else:
        keys = {"left": -one[0], "right": one[0]}
        keys |= {"up": one[1], "down": -one[1]} if size > 1 else {}
    return {key: tuple(x.tolist()) for key, x in keys.items()}


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
    texts = [re.sub("\x1b[^m]*m", "", text) for text in texts]  # without Gymnasium's colours
    yield from [f"{task.name}, gymnasium's check_env: {text}" for text in dict.fromkeys(texts)]
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (30, task.actions))

    def beginning() -> bytes:
        with closing(make_env(task)) as env:
            seen = env.reset(seed=1)[0].tobytes()
            for action in actions:
                frame, reward, terminated, truncated, _ = env.step(action)
                seen += frame.tobytes() + np.float64(reward).tobytes()
                if terminated or truncated:
                    break
        return seen

    if beginning() != beginning():
        fault = "two episodes of one seed differ, and no result can be repeated"
        yield f"{task.name} ignores its seed: {fault}"


def suggested(task: Task, frames: int = 300) -> str:
    """A setting that the world's rewards ask for, in powers of ten: M would learn nothing beside large ones."""
    policy = random_policy(task.name, np.random.default_rng(0), hold=8)
    rewards = []
    with closing(make_env(task)) as env:
        env.reset(seed=0)
        for _ in range(frames):
            with env.alive("step"):
                _, reward, terminated, truncated, _ = env.play(policy(), 1)
            rewards.append(reward)
            if terminated or truncated:
                env.reset()
    return f"mdnrnn.reward_weight=1e-{round(np.log10(max(1, np.var(rewards))))}"
