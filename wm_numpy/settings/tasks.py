"""The paper's two tasks: all that is known of them before an environment is made, in one table."""

from dataclasses import dataclass, field
from operator import index


def whole(name: str, number: int, least: int = 1) -> int:
    """The number, if it is a whole one and not below `least`; ValueError, TypeError say why not."""
    if index(number) < least:
        raise ValueError(f"{name} = {number} is out of range: at least {least}")
    return index(number)


@dataclass(frozen=True)
class Task:
    """Sizes and limits of a task, and the scores to compare with."""

    title: str
    action_size: int  # A; every action lies in [-1, 1]
    max_steps: int  # frames after which an episode is cut
    fps: int  # frames per second of real play
    packages: str  # what pip installs for its environment
    shows_end: bool  # the frame after an end shows it; ViZDoom's is black
    solved_at: int  # mean return over 100 episodes
    paper: str  # the paper's agent
    random: str  # the paper's random policy
    lengths: tuple[int, int]  # rough frames of an episode, at random and an agent's: for the disk
    strip_from: int  # the frame at which a strip of pictures begins: little happens before
    reward: str  # what M's reward head learns to predict
    reward_range: tuple[float, float]  # of a frame: a dream pays no more and no less
    # Mean fitness of the population in the authors' own training logs (their log/*.hist.json):
    # CarRacing in the real environment, Doom in the dream; 64 candidates of 16 episodes.
    authors: dict[int, float]  # by generation
    blind: str = ""  # a policy that alternates between the first action's ends, 100 real episodes
    # Scores of a preset's agents, one for each seed that was run
    expected: dict[str, tuple[float, ...]] = field(default_factory=dict)
    # Table 2: temperature -> score in the dream, score in reality.
    table2: dict[float, tuple[str, str]] = field(default_factory=dict)


GENERATIONS = (1, 5, 10, 15, 20, 25, 30, 40, 50, 60, 80, 100, 120, 140, 160, 180, 200)
_CAR = (-55, 41, 308, 438, 585, 668, 680, 741, 767, 773, 791, 799, 805, 810, 813, 833, 823)
_DOOM = (305, 350, 355, 401, 484, 476, 589, 619, 686, 658, 704, 698, 687, 708, 715, 751, 769)

TASKS = {
    "carracing": Task(
        title="CarRacing",
        action_size=3,
        max_steps=1000,
        fps=50,
        packages="box2d pygame-ce",
        shows_end=True,
        solved_at=900,
        paper="906 +- 21",
        random="",
        lengths=(1000, 1000),
        strip_from=60,  # the camera zooms in during the first second
        reward="tiles of the track newly visited",
        reward_range=(0.0, 0.75),
        authors=dict(zip(GENERATIONS, _CAR, strict=True)),
        expected={"quick": (364, 501, 409), "laptop": (881, 871, 806), "reality": (881, 897)},
    ),
    "doom": Task(
        title="Doom Take Cover",
        action_size=1,
        max_steps=2100,
        fps=35,
        packages="vizdoom",
        shows_end=False,
        solved_at=750,
        paper="1092 +- 556",
        random="210 +- 108",
        lengths=(320, 800),
        strip_from=100,  # monsters come one by one
        reward="frames survived",
        reward_range=(0.0, 1.0),
        authors=dict(zip(GENERATIONS, _DOOM, strict=True)),
        blind="879 +- 514",  # 120 tics each way, from wall to wall: it outruns the fireballs, and sees none
        expected={"quick": (596, 502, 658), "laptop": (752, 689, 838)},
        table2={
            0.1: ("2086 +- 140", "193 +- 58"),
            0.5: ("2060 +- 277", "196 +- 50"),
            1.0: ("1145 +- 690", "868 +- 511"),
            1.15: ("918 +- 546", "1092 +- 556"),
            1.3: ("732 +- 269", "753 +- 139"),
        },
    ),
}
