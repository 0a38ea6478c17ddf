"""A world that does not come with the package: what its declaration leaves out, and what its owner should know."""

import re
import warnings
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from functools import lru_cache, partial

import gymnasium as gym
import numpy as np
from gymnasium.utils.env_checker import check_env

from ..settings.tasks import Task, TaskError, find, known
from .environment import Environment, EnvironmentFailed, failure, made, seen
from .policies import random_policy

ENOUGH = 100  # frames; where random episodes are shorter, more of them are collected


def registered(name: str) -> Task:
    """The world gym:ID or gym:MODULE:ID."""
    env_id = name.partition(":")[2]
    packages = "" if ":" in env_id else "gymnasium[all]"
    return Task(make=partial(gym.make, env_id, disable_env_checker=True), packages=packages)


def completed(task: Task) -> Task:
    """The declaration, with what it leaves out asked of its environment, which is made once for that."""
    game = made(task)
    try:
        task = replace(task, **_actions(task, game))
        if task.picture is None:
            kind = "observation" if _is_picture(game.observation_space) else "render"
            task = replace(task, picture=kind)
        if task.picture == "render":
            game.close()
            game = _drawing(task)
        observation, _ = game.reset(seed=0)
        limit = getattr(getattr(game, "spec", None), "max_episode_steps", None)
        limit = task.max_steps or limit or 1000
        defaults = {
            "size": seen(task, game, observation).shape[:2],
            "max_steps": limit,
            "fps": getattr(game, "metadata", {}).get("render_fps") or 30,
            "keys": _keys(task.actions, task.discrete),
            "rest": (0.0,) * task.actions,
            "labels": tuple(f"action {i + 1}" for i in range(task.actions)),
        }
        return replace(task, **{k: defaults[k] for k in defaults if getattr(task, k) is None})
    except (TaskError, ImportError):
        raise
    except Exception as error:
        raise failure(task, "its first reset", error) from error
    finally:
        game.close()


def _actions(task: Task, game) -> dict:
    """How many numbers C gives, and whether the largest of them chooses a discrete action."""
    if hasattr(game, "possible_agents") or hasattr(game, "num_envs"):
        raise TaskError(f"{task.name} is of several agents or a batch: one agent's is needed")
    if task.act is not None:
        if task.actions is None:
            raise TaskError(f"{task.name} declares act: it must declare actions, how many, too")
        return {"discrete": bool(task.discrete)}
    space = game.action_space
    if isinstance(space, gym.spaces.Discrete):
        return {"actions": int(space.n), "discrete": True}
    if isinstance(space, gym.spaces.Box) and space.is_bounded():
        return {"actions": int(np.prod(space.shape)), "discrete": False}
    fault = f"{task.name} takes actions {space}; they are Box, with bounds, or Discrete"
    raise TaskError(f"{fault}: declare a function `act` and how many numbers it takes, `actions`")


def _is_picture(space: gym.Space) -> bool:
    shape = getattr(space, "shape", None) or ()
    colours = len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3))
    return isinstance(space, gym.spaces.Box) and colours and min(shape[:2]) >= 8


def _drawing(task: Task):
    """The game made so that it draws."""
    try:
        return made(task, draws=True)
    except EnvironmentFailed as error:
        fault = f"{task.name}: its observation is no picture, and it does not draw one"
        raise TaskError(f"{fault} when made with render_mode='rgb_array' ({error})") from error


def _keys(size: int, discrete: bool) -> dict[str, tuple]:
    """Left and right are the first number, up and down the second; of discrete actions the first and the last."""
    unit = np.eye(size)
    if discrete:
        keys = {"left": unit[0], "right": unit[-1]}
        keys |= {str(i + 1): unit[i] for i in range(min(size, 9))}
    else:
        keys = {"left": -unit[0], "right": unit[0]}
        keys |= {"up": unit[1], "down": -unit[1]} if size > 1 else {}
    return {key: tuple(x.tolist()) for key, x in keys.items()}


def examined(task: Task) -> Iterator[str]:
    """What Gymnasium's check_env warns of, whether the seed is ignored, and ends that M cannot learn.

    Nothing of worlds of the package.
    """
    if task.name in known():
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with closing(made(task, task.picture == "render")) as game:
            try:
                check_env(getattr(game, "unwrapped", game), skip_render_check=True)
            except Exception as error:
                warnings.warn(f"{type(error).__name__}: {error}", stacklevel=1)
    texts = [str(w.message) for w in caught if w.category is not DeprecationWarning]
    texts = [re.sub("\x1b[^m]*m", "", text) for text in texts]  # without Gymnasium's colours
    yield from [f"{task.name}, gymnasium's check_env: {text}" for text in dict.fromkeys(texts)]
    if _opening(task) != _opening(task):
        fault = "two episodes of one seed differ, and no result can be repeated"
        yield f"{task.name} ignores its seed: {fault}"
    *_, cut = _random_play(task.name)
    if cut:
        fault = f"truncates an episode after {cut} frames, though it may last {task.max_steps:,}"
        mend = f"declare max_steps={cut}, or let it end `terminated`"
        yield f"{task.name} {fault}; M does not learn such an end, and its dreams go on: {mend}"


def _opening(task: Task) -> bytes:
    """Up to 30 random steps of one seed."""
    rng = np.random.default_rng(0)
    with closing(Environment(task)) as env:
        told = env.reset(seed=1)[0].tobytes()
        for _ in range(30):
            frame, reward, terminated, truncated, _ = env.step(rng.uniform(-1, 1, task.actions))
            told += frame.tobytes() + np.float64(reward).tobytes()
            if terminated or truncated:
                break
    return told


def suggested(task: Task, episodes: int) -> list[str]:
    """Settings that follow from some random play, where a preset has so many random episodes.

    All rewards weigh less, in powers of ten, the farther one of them lies from their mean: so the gradient of no single
    step, such as a death, is much above 1, and M learns the rest better. Where random play is short, as CartPole's 20
    frames, there are up to five times as many episodes.
    """
    length, farthest, _ = _random_play(task.name)
    weight = f"mdnrnn.reward_weight=1e-{round(np.log10(max(1, farthest)))}"
    return [weight, f"collect.episodes={round(episodes * np.clip(ENOUGH / length, 1, 5))}"]


def lengths(task: Task) -> tuple[float, int]:
    """Frames of a random episode, and at most of C's, for a declaration without `lengths`."""
    return _random_play(task.name)[0], task.max_steps


@lru_cache
def _random_play(name: str, frames: int = 300, most: int = 3000) -> tuple[float, float, int]:
    """At least one episode, if it ends in time -> frames of an episode, largest distance of a reward from the mean.

    And the frames after which the longest one that the world itself truncated was cut, before its limit; or 0.
    """
    policy = random_policy(name, np.random.default_rng(0), hold=8)
    rewards, ends, cut, limit = [], 0, 0, find(name).max_steps
    with closing(Environment(name)) as env:
        env.reset(seed=0)
        while len(rewards) < (frames if ends else most):
            _, reward, terminated, truncated, _ = env.step(policy())
            rewards.append(reward)
            if terminated or truncated:
                ends += 1
                if truncated and env.frames < limit:
                    cut = max(cut, env.frames)
                env.reset()
    length = len(rewards) / ends if ends else limit
    return length, float(np.abs(rewards - np.mean(rewards)).max()), cut
