"""Policies that see nothing, each of one episode: those that collect data, and those that scores are compared with."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, cycle

import numpy as np

from ..settings.config import from_flat
from ..settings.tasks import Task, find, whole

Policy = Callable[[], np.ndarray]  # -> action (A,) float32


def random_policy(
    name: str,
    rng: np.random.Generator,
    hold: int = 0,
    long_hold: int = 0,
    repeat: int = 1,
    swing: int = 0,
) -> Policy:
    """At hold 0 a uniform action every step, the baseline of scores; else the policy that collects a world's data.

    That is the world's own, or uniform actions, each held for up to `hold` steps, or up to `long_hold` in half of the
    episodes; at a `swing`, in a third of all an action and its opposite by turns, each for up to so many steps. A step
    is `repeat` frames.
    """
    whole("hold", hold, 0), whole("long_hold", long_hold, 0), whole("swing", swing, 0)
    repeat = from_flat({"repeat": repeat}).repeat
    task = find(name)
    if swing and rng.random() < 1 / 3:
        return partial(next, _by_turns(_sides(task, rng), rng, swing))
    if long_hold and rng.random() < 0.5:
        hold = long_hold
    if hold and task.explore:
        return partial(next, task.explore(task.actions, rng, repeat))
    return partial(next, _hold(task, rng, hold or 1))


def _hold(task: Task, rng: np.random.Generator, longest: int) -> Iterator[np.ndarray]:
    """Uniform actions, each for 1 to `longest` steps: the authors' 10 (extract.py), or 1, table 2's random policy."""
    while True:
        action = task.taken(rng.uniform(-1, 1, task.actions).astype(np.float32))
        for _ in range(rng.integers(1, longest + 1)):
            yield action


def walk(actions: int, rng: np.random.Generator, repeat: int) -> Iterator[np.ndarray]:
    """Brownian: da ~ sqrt(dt) N(0, 1), clipped to [-1, 1], dt the seconds of a step at 50 frames a second."""
    first = rng.uniform(-1, 1, actions)  # now, before a repeated episode draws its seed
    return _walk(first.astype(np.float32), rng, repeat)


def _walk(action: np.ndarray, rng: np.random.Generator, repeat: int) -> Iterator[np.ndarray]:
    while True:
        yield action
        change = np.sqrt(repeat / 50) * rng.standard_normal(len(action))
        action = (action + change).clip(-1, 1).astype(np.float32)


def fixed_policy(action: np.ndarray, rng: np.random.Generator | None = None) -> Policy:
    """One action (A,) for the whole episode; rng is not used."""
    return np.asarray(action, np.float32).copy


def to_and_fro(name: str, rng: np.random.Generator, repeat: int = 1) -> Policy:
    """The blind baseline: the first action and its opposite, or the last one, by turns, from the middle on either side.

    Each lasts the world's `swing` frames: in Take Cover 120 lead from wall to wall. Fireballs miss such a runner.
    """
    task, repeat = find(name), from_flat({"repeat": repeat}).repeat
    one, other = _sides(task, rng)
    steps = max(1, task.swing // repeat)
    turns = cycle([other] * steps + [one] * steps)
    return partial(next, chain([one] * (steps // 2), turns))


def _sides(task: Task, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The first action and its opposite, or the last one, in either order."""
    first = np.eye(task.actions, dtype=np.float32)[0]
    other = np.eye(task.actions, dtype=np.float32)[-1] if task.discrete else -first
    return (first, other) if rng.choice((-1, 1)) > 0 else (other, first)


def _by_turns(sides: tuple, rng: np.random.Generator, longest: int) -> Iterator[np.ndarray]:
    """Each for 1 to `longest` steps."""
    for side in cycle(sides):
        for _ in range(rng.integers(1, longest + 1)):
            yield side
