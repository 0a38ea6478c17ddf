"""CarRacing: the paper's first task (section 3). Box2D and pygame are imported when it is made (car.py)."""

import numpy as np

from ..settings.tasks import Task
from .policies import walk


def _make(render_mode: str | None = None):
    from .car import CroppedCarRacing

    return CroppedCarRacing(render_mode=render_mode)


def _act(action: np.ndarray) -> np.ndarray:
    """The paper's map: steering, gas, brake."""
    steer, gas, brake = action
    return np.array([steer, (gas + 1) / 2, np.clip(brake, 0, 1)])


TASK = Task(
    make=_make,
    title="CarRacing",
    actions=3,
    discrete=False,
    act=_act,
    explore=walk,  # white noise would never leave the start
    swing=120,
    picture="observation",
    size=(84, 96),
    max_steps=1000,
    fps=50,
    skips=True,
    lengths=(1000, 1000),
    strip_from=60,  # the camera zooms in during the first second
    reward="tiles of the track newly visited",
    reward_range=(0.0, 0.75),
    ends=False,  # of a lap, which M need not foresee
    keys={"left": (-1, 0, 0), "right": (1, 0, 0), "up": (0, 2, 0), "down": (0, 0, 1)},
    rest=(0, -1, 0),
    labels=("C would steer", "C's gas", "C's brake"),
    hint="drive",
    died="The lap is done, or the car has left the field.",
    solved_at=900,
    paper="906 +- 21",
    expected={"quick": (364, 501, 409), "laptop": (881, 871, 806), "reality": (881, 897)},
    # In the real environment; 64 candidates of 16 episodes (their log/*.hist.json).
    authors={
        1: -55, 5: 41, 10: 308, 15: 438, 20: 585, 25: 668, 30: 680, 40: 741, 50: 767, 60: 773,
        80: 791, 100: 799, 120: 805, 140: 810, 160: 813, 180: 833, 200: 823,
    },
    packages="box2d pygame-ce",
    face="CarRacing-v0",
)  # fmt: skip
