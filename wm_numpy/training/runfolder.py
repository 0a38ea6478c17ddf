"""A run folder: which run it holds, how far that has come, and what it needs of the disk.

config.json; episodes/; series/ROUND/; vae.npz, mdnrnn.npz, controller.npz, *.ROUND.state.npz to resume from;
finalists/ROUND/; adapted.npz; results.json; log.jsonl
"""

import json
import shutil
from math import isfinite
from pathlib import Path

import numpy as np

from ..models.agent import load_config, theta_size
from ..settings.config import Config, flat
from ..settings.tasks import find
from ..system.files import DataError, is_empty, read_arrays, write
from .data import Records, frame_dtype, series_dtype
from .log import Log
from .loops import RunError


class RunFolder:
    """A run folder, made if missing.

    RunError: it holds another run. More rounds may follow, and what has not begun may become another.
    """

    def __init__(self, config: Config, folder: Path):
        self.config = config
        self.folder = folder
        self.episodes = folder / "episodes"
        path = folder / "config.json"
        if path.exists():
            other = differences(flat(load_config(folder)), flat(config))
            if other:
                what = ", ".join(f"{key} is {a} there and {b} here" for key, a, b in other[:3])
                raise RunError(f"{folder} holds another run ({what}): choose another --out")
        elif not is_empty(folder):
            raise RunError(f"{folder} is not empty and not a run folder: choose another --out")
        else:
            write(path, flat(config))
        self.log = Log(folder)
        actions = find(config.task).actions
        self.frame_dtype = frame_dtype(actions)
        self.series_dtype = series_dtype(config.vae.z_size, actions, config.mdnrnn.value_weight > 0)

    def new_episodes(self, round_: int) -> list[Path]:
        """The files of a round's own episodes."""
        before = sum(self.config.phase(r).collect.episodes for r in range(1, round_))
        count = self.config.phase(round_).collect.episodes
        return [self.episodes / f"{before + i:06d}.npy" for i in range(count)]

    def all_episodes(self) -> Records:
        """The episodes of all rounds so far."""
        return Records(self.episodes, self.frame_dtype)

    def series(self, round_: int) -> Path:
        """The folder of all episodes as V of that round encodes them."""
        return self.folder / "series" / str(round_)

    def round_of(self, result: str) -> int:
        """The round that a result file is of; 0: there is no file."""
        path = self.folder / result
        return int(read_arrays(path, round=())["round"]) if path.exists() else 0

    def state(self, result: str, round_: int) -> Path:
        """The file that a stage resumes from: one per round, so that no later round picks it up."""
        return (self.folder / result).with_suffix(f".{round_}.state.npz")

    def finish(self, result: str, round_: int, **arrays: np.ndarray) -> None:
        """Write a result, and only then remove the state to resume from."""
        write(self.folder / result, arrays | {"round": np.array(round_)})
        self.state(result, round_).unlink(missing_ok=True)

    def theta(self) -> np.ndarray:
        """C as the evolve stage left it."""
        path = self.folder / "controller.npz"
        return read_arrays(path, theta=(theta_size(self.config),))["theta"]

    def disk_needed(self) -> float:
        """About how many bytes the episodes of all rounds and the series of one take."""
        random, agent = find(self.config.task).lengths
        first, last = (self.config.phase(round_).collect for round_ in (1, self.config.rounds))
        frames = random * first.episodes + agent * last.episodes * (self.config.rounds - 1)
        series = self.series_dtype.itemsize
        size = frames * (self.frame_dtype.itemsize + series) + random * last.more * series
        return size / self.config.repeat + 200e6

    def require_space(self) -> None:
        """RunError: the disk is too small."""
        here = sum(f.stat().st_size for f in self.folder.rglob("*") if f.is_file())
        needed = self.disk_needed() / 1e9
        free = (shutil.disk_usage(self.folder).free + here) / 1e9
        if needed > free:
            what = f"this run needs about {needed:.1f} GB in {self.folder}"
            mend = "choose another --out, or fewer collect.episodes"
            raise RunError(f"{what}, where {free:.1f} GB are free: {mend}")


def differences(theirs: dict, ours: dict) -> list[tuple]:
    """(setting, its value there, its value here) for all that makes another run than the one begun."""
    free = {"preset", "evaluate.episodes"}  # a name, and what only scores
    if ours["rounds"] > theirs["rounds"]:
        free.add("rounds")
    # what has not begun
    phases = ("later.",) * (theirs["rounds"] == 1)
    phases += ("real.",) * ("real.evolve.generations" not in theirs)
    keys = [key for key in {**theirs, **ours} if key not in free and not key.startswith(phases)]
    both = [(key, *(values.get(key, "not set") for values in (theirs, ours))) for key in keys]
    return [(key, a, b) for key, a, b in both if a != b]


def remove(folder: Path) -> None:
    """Remove a folder, or a link to one: what it leads to may be another's."""
    if folder.is_symlink():
        folder.unlink()
    else:
        shutil.rmtree(folder)


def read_results(path: Path) -> dict:
    """results.json of a run, as far as the run has come; DataError: its figures are not all numbers."""
    try:
        results = json.loads(path.read_text())
        if not isinstance(results["task"], str):
            raise ValueError("not the results of a run")
        for who in results.keys() & {"random", "unadapted", "agent", "dream"}:
            if not (isinstance(results[who], dict) and _are_numbers(results[who])):
                raise ValueError(f"{who}: {results[who]}"[:200])
        return results
    except FileNotFoundError:
        raise DataError(f"{path} is missing: `train` has not reached its last stage yet") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is damaged ({error}): delete it and repeat `train`") from None


def _are_numbers(figures: dict) -> bool:
    """Whether figures are finite numbers: their interval's, and those of C alone and the difference, too."""
    parts = [figures[name] for name in ("alone", "difference") if name in figures]
    plain = [x for name, x in figures.items() if name not in ("alone", "difference", "ci95")]
    plain += figures.get("ci95", [])
    numbers = all(type(x) in (int, float) and isfinite(x) for x in plain)
    return numbers and all(isinstance(part, dict) and _are_numbers(part) for part in parts)
