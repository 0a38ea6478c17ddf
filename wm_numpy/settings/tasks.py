"""The declaration of a world to learn, and how one is found by its name.

doom, carracing      a file of envs/ that declares TASK
mine.py:CATCH        a file of your own and a name in it: a Task, or what makes a Gymnasium environment
gym:CartPole-v1      an id that is registered with Gymnasium; gym:MODULE:ID imports MODULE first
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from functools import lru_cache, partial
from importlib import import_module, util
from operator import index
from pathlib import Path
from platform import node
from traceback import extract_tb

import numpy as np

WORLDS = Path(__file__).parents[1] / "envs"
# What of a declaration a run folder keeps, so that a dream needs neither the world's file nor its packages.
KEPT = (
    "actions", "discrete", "size", "max_steps", "fps", "reward", "reward_range", "keys", "rest",
    "labels", "title", "unit", "hint", "died", "solved_at",
)  # fmt: skip
_brought: dict[str, dict] = {}  # by a run folder: these, by name


class TaskError(ValueError):
    """There is no such world, or it cannot be declared like this."""


def whole(name: str, number: int, least: int = 1) -> int:
    """The number, if it is a whole one and not below `least`; ValueError, TypeError say why not."""
    if index(number) < least:
        raise ValueError(f"{name} = {number} is out of range: at least {least}")
    return index(number)


@dataclass(frozen=True)
class Task:
    """How to make an environment, and what is worth knowing before one is made. Only `make` is needed.

    Where a field is None, the environment itself is asked; it is made once for that.
    """

    make: Callable  # () or (render_mode="rgb_array") -> an environment of Gymnasium
    title: str = ""  # for people; the last part of the name

    # Actions. C gives A numbers in [-1, 1].
    actions: int | None = None  # A
    discrete: bool | None = None  # the largest of C's outputs chooses an action; M gets it one-hot
    act: Callable | None = None  # (A,) -> what the environment takes; by its action space
    explore: Callable | None = None  # (A, rng, frames a step) -> actions that collect data
    swing: int = 60  # frames for which the blind baseline holds an action, then its opposite

    # The picture: what V sees, shrunk to 64 x 64.
    picture: str | None = None  # "observation" or "render"
    crop: tuple[slice, slice] = (slice(None), slice(None))  # its rows and columns
    size: tuple[int, int] | None = None  # the height and width of what is left
    shows_end: bool = True  # the frame after an end is one like others; ViZDoom's is black

    # Time, in frames.
    # An episode is cut there: at the environment's limit, or 1,000. M learns no other cut, as one made by `truncated`.
    max_steps: int | None = None
    fps: float | None = None  # of real play
    skips: bool = False  # the environment's step(action, count) plays `count` frames of one action
    lengths: tuple[int, int] | None = None  # of random episodes and C's; by some random play
    strip_from: int = 0  # where a strip of pictures begins: little happens before

    # What M learns.
    reward: str = "reward"  # what its reward head predicts: info["reward"], else the reward
    reward_range: tuple[float, float] = (-np.inf, np.inf)  # of a frame, in dreams
    ends: bool = True  # an episode can end before it is cut
    settings: str = ""  # what differs from a preset: "repeat=2 vae.z_size=16"

    # The demo.
    keys: Mapping[str, tuple] | None = None  # left, right, up, down, 1 ... 9 -> added to `rest`
    rest: tuple[float, ...] | None = None  # the action while no key is held
    labels: tuple[str, ...] | None = None  # of the A numbers: what C would do
    unit: str = "points"  # of a return
    hint: str = "play"  # what a visitor is to do
    died: str = "It is over."  # said at an end before the time is up

    # Scores to compare with, all optional.
    solved_at: float | None = None  # mean return over 100 episodes
    paper: str = ""  # the paper's agent
    random: str = ""  # the paper's random policy
    blind: str = ""  # the blind baseline
    # Scores of a preset's agents, one per seed.
    expected: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    # Mean fitness of the population in the authors' own training logs, by generation.
    authors: Mapping[int, float] = field(default_factory=dict)
    # Table 2: temperature -> score in the dream, score in reality.
    table2: Mapping[float, tuple[str, str]] = field(default_factory=dict)

    # For the rest of the package.
    packages: str = ""  # what pip installs for the environment
    face: str = ""  # its id in Gymnasium, with 64 x 64 frames: wm_numpy/FACE
    telling: str = ""  # MODULE:CLASS, a `make` of games with a method `truth`, for probes.py
    name: str = ""  # by which it is found, anywhere on this machine

    def __post_init__(self):
        for number in ("actions", "max_steps", "swing"):
            if getattr(self, number) is not None:
                whole(number, getattr(self, number))
        if self.picture not in (None, "observation", "render"):
            raise TaskError(f'picture is "observation" or "render", not {self.picture!r}')

    @property
    def folder(self) -> str:
        """The name of its runs."""
        return Path(self.name.rpartition(":")[2]).name

    def taken(self, actions: np.ndarray) -> np.ndarray:
        """C's outputs (..., A) -> the action taken, which M gets, too: clipped to [-1, 1], or one-hot."""
        if self.discrete:
            return np.eye(self.actions, dtype=np.float32)[actions.argmax(axis=-1)]
        return np.clip(actions, -1, 1)


def known() -> list[str]:
    """The worlds that come with the package."""
    return sorted(f.stem for f in WORLDS.glob("*.py") if "\nTASK = Task(" in f.read_text("utf-8"))


def absolute(name: str) -> str:
    """The name of a world as config.json keeps it: with the whole path of a file."""
    path, colon, attribute = name.rpartition(":")
    return f"{Path(path).resolve()}:{attribute}" if colon and path.endswith(".py") else name


def find(name: str) -> Task:
    """The world of that name, complete; TaskError says what is wrong with it.

    If a run of it was loaded, what that kept of it serves while the world is missing; only `make` raises then.
    """
    name = absolute(name)
    try:
        return _found(name)
    except (TaskError, ImportError) as error:
        if name not in _brought:
            raise
        return Task(make=partial(_missing, str(error)), name=name, **_brought[name])


def _missing(fault: str, **_) -> None:
    raise TaskError(fault)


def kept(task: Task) -> dict:
    """What a run folder keeps of a world; nothing of those that come with the package."""
    return {} if task.name in known() else {name: getattr(task, name) for name in KEPT}


def bring(name: str, facts: dict) -> None:
    """Remember what a run folder has `kept`; ValueError: it is damaged."""
    if facts.keys() != set(KEPT):
        raise ValueError(f"it does not hold {', '.join(KEPT)}")
    _brought[name] = facts


@lru_cache
def _found(name: str) -> Task:
    """A world is a plug-in: the module that declares it is imported only here."""
    path, colon, attribute = name.rpartition(":")
    if name in known():
        task = import_module(f"..envs.{name}", __package__).TASK
    elif name.startswith("gym:"):
        task = import_module("..envs.unknown", __package__).registered(name)
    elif colon and path.endswith(".py"):
        task = _of_file(Path(path), attribute)
    else:
        if name.endswith(".py"):
            raise TaskError(f"{name} lacks the name of a world in that file, as in FILE.py:NAME")
        fault = f"unknown task {name!r}: choose from {', '.join(known())}"
        raise TaskError(f"{fault}, or name a world of your own, FILE.py:NAME or gym:ID")
    task = replace(task, name=name, title=task.title or name.rpartition(":")[2])
    may_be_none = {"act", "explore", "lengths", "solved_at"}
    if any(getattr(task, f.name) is None for f in fields(Task) if f.name not in may_be_none):
        task = import_module("..envs.unknown", __package__).completed(task)
    for words in ("labels", "rest"):
        if len(given := getattr(task, words)) != task.actions:
            fault = f"{name} declares {len(given)} {words}"
            raise TaskError(f"{fault}: there are {task.actions} numbers in an action")
    return task


def suggested(task: Task, episodes: int) -> list[str]:
    """Settings that a world of one's own asks for beyond a preset, which has so many random episodes."""
    if task.name in known():
        return []
    return import_module("..envs.unknown", __package__).suggested(task, episodes)


def _of_file(path: Path, attribute: str) -> Task:
    """What a user's file declares under a name."""
    if not path.is_file():
        mend = "put it back, or name the new place: `train NEW.py:NAME --out RUN` continues a run"
        raise TaskError(f"{path} is missing on {node()}: {mend}")
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # for what it imports from beside it
    spec = util.spec_from_file_location(f"{path.stem} of {path.parent}", path)
    module = sys.modules[spec.name] = util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        lines = [f.lineno for f in extract_tb(error.__traceback__) if f.filename == str(path)]
        line = getattr(error, "lineno", None) if isinstance(error, SyntaxError) else lines[-1]
        fault = f"{type(error).__name__}: {error}"
        raise TaskError(f"{path} cannot be imported, line {line}: {fault}") from error
    declared = getattr(module, attribute, None)
    if declared is None:
        near = get_close_matches(attribute, vars(module), n=1)
        mend = f": did you mean {near[0]}?" if near else ""
        raise TaskError(f"{path} declares no {attribute}{mend}")
    return declared if isinstance(declared, Task) else Task(make=declared)
