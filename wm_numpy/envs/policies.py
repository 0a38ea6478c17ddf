"""Policies that see nothing, each for one episode: those that collect data, and baselines for scores."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import accumulate, chain, count, cycle

import numpy as np

from ..settings.tasks import Task, find

Policy = Callable[[], np.ndarray]  # -> action (A,) float32


def random_policy(
    name: str,
    rng: np.random.Generator,
    hold: int = 0,
    long_hold: int = 0,
    repeat: int = 1,
    swing: int = 0,
) -> Policy:
    """At hold 0 a uniform action every step, the baseline of scores; otherwise the policy that collects a world's data.

    That is the world's own, or uniform actions, each held for up to `hold` steps, in half of the episodes `long_hold`.
    With a `swing`, a third of the episodes alternate between an action and its opposite, each held for up to `swing`
    steps. A step is `repeat` frames.
    """
    task = find(name)
    if swing and rng.random() < 1 / 3:
        return partial(next, _held(cycle(_sides(task, rng)), rng, swing))
    if long_hold and rng.random() < 0.5:
        hold = long_hold
    if hold and task.explore:
        return partial(next, task.explore(task.actions, rng, repeat))
    return partial(next, _held(_uniform(task, rng), rng, hold or 1))


def _uniform(task: Task, rng: np.random.Generator) -> Iterator[np.ndarray]:
    while True:
        action = rng.uniform(-1, 1, task.actions).astype(np.float32)
        yield task.taken(action) if task.discrete else action


def _held(
    actions: Iterator[np.ndarray], rng: np.random.Generator, longest: int
) -> Iterator[np.ndarray]:
    """Each action for 1 to `longest` steps: the authors' 10 (extract.py), or 1, table 2's random policy."""
    for action in actions:
        for _ in range(rng.integers(1, longest + 1)):
            yield action


def walk(actions: int, rng: np.random.Generator, repeat: int) -> Iterator[np.ndarray]:
    """Brownian: da ~ sqrt(dt) N(0, 1), clipped to [-1, 1], dt the seconds of a step at 50 frames a second."""

    def moved(action: np.ndarray, _) -> np.ndarray:
        change = np.sqrt(repeat / 50) * rng.standard_normal(actions)
        return (action + change).clip(-1, 1).astype(np.float32)

    first = rng.uniform(-1, 1, actions)  # drawn now, before a repeated episode draws its seed
    return accumulate(count(), moved, initial=first.astype(np.float32))


def blind_baseline(name: str, rng: np.random.Generator, repeat: int = 1) -> Policy:
    """Alternates between the first action and its opposite, or the last one if actions are discrete.

    Each is held for the world's `swing` frames, the first for half of that: in Take Cover 120 lead from wall to wall.
    Fireballs miss such a runner.
    """
    task = find(name)
    one, other = _sides(task, rng)
    steps = max(1, task.swing // repeat)
    turns = cycle([other] * steps + [one] * steps)
    return partial(next, chain([one] * (steps // 2), turns))


def _sides(task: Task, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The first action and its opposite, or the last one, in random order."""
    unit = np.eye(task.actions, dtype=np.float32)
    first, other = unit[0], unit[-1] if task.discrete else -unit[0]
    return (first, other) if rng.choice((-1, 1)) > 0 else (other, first)
