"""A run folder: which run it holds, how far that has come, how much disk it needs; and its export.

config.json, world.json; episodes/; series/ROUND/; vae.npz, mdnrnn.npz, controller.npz, and *.ROUND.state.npz to resume
them from; finalists/ROUND/; adapted.npz; results.json; log.jsonl
"""

import json
import shutil
from math import isfinite
from pathlib import Path

import numpy as np

from ..envs.unknown import lengths
from ..models.agent import Agent, load_config, run_folder, save_config, theta_size
from ..settings.config import Config, flat
from ..settings.tasks import find
from ..system.files import DataError, is_empty, read_arrays, read_records, write
from ..system.process import temporary_folder
from .data import Records, frame_dtype, series_dtype
from .log import Log
from .loops import RunError


class RunFolder:
    """A run folder, made if missing; RunError: it holds another run, or something else."""

    def __init__(self, config: Config, folder: Path):
        self.config = config
        self.folder = folder
        self.episodes = folder / "episodes"
        path = folder / "config.json"
        if path.exists():
            if differences := changed(flat(load_config(folder)), flat(config)):
                told = ", ".join(differences[:3])
                raise RunError(f"{folder} holds another run ({told}): choose another --out")
        elif not is_empty(folder):
            raise RunError(f"{folder} is not empty and not a run folder: choose another --out")
        else:
            save_config(folder, config)
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
        """The folder of all episodes as that round's V encodes them."""
        return self.folder / "series" / str(round_)

    def round_of(self, result: str) -> int:
        """The round of a result file; 0: it is missing."""
        path = self.folder / result
        return int(read_arrays(path, round=())["round"]) if path.exists() else 0

    def state(self, result: str, round_: int) -> Path:
        """The file that a stage resumes from: one per round, so that no later round takes it for its own."""
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
        task = find(self.config.task)
        random, agent = task.lengths or lengths(task)
        first, last = (self.config.phase(round_).collect for round_ in (1, self.config.rounds))
        frames = random * first.episodes + agent * last.episodes * (self.config.rounds - 1)
        series = self.series_dtype.itemsize
        size = frames * (self.frame_dtype.itemsize + series) + random * last.more * series
        return size / self.config.repeat + 200e6

    def require_space(self) -> None:
        """RunError: the disk is too small."""
        used = sum(f.stat().st_size for f in self.folder.rglob("*") if f.is_file())
        free = shutil.disk_usage(self.folder).free + used
        if self.disk_needed() > free:
            needs = f"this run needs about {self.disk_needed() / 1e9:.1f} GB in {self.folder}"
            mend = "choose another --out, or fewer collect.episodes"
            raise RunError(f"{needs}, where {free / 1e9:.1f} GB are free: {mend}")


def changed(old: dict, new: dict) -> list[str]:
    """The settings that make `new` another run than `old`, which has begun: "seed is 0 there and 1 here".

    More rounds may follow, and a phase that has not begun may change.
    """
    free = {"preset", "evaluate.episodes"}  # a name, and what only scores
    if moved(old["task"], new["task"]):
        free.add("task")
    if new["rounds"] > old["rounds"]:
        free.add("rounds")
    phases = ("later.",) * (old["rounds"] == 1) + ("real.",) * (
        "real.evolve.generations" not in old
    )
    pairs = {key: (old.get(key, "not set"), new.get(key, "not set")) for key in old | new}
    return [
        f"{key} is {before} there and {now} here"
        for key, (before, now) in pairs.items()
        if before != now and key not in free and not key.startswith(phases)
    ]


def moved(old: str, new: str) -> bool:
    """Whether a world is declared under the same name in another file, and the old file is gone."""
    path, _, name = old.rpartition(":")
    return path.endswith(".py") and not Path(path).exists() and new.endswith(f".py:{name}")


def remove(folder: Path) -> None:
    """Remove a folder, or a link to one, whose target may belong to another run."""
    if folder.is_symlink():
        folder.unlink()
    else:
        shutil.rmtree(folder)


def read_results(path: Path) -> dict:
    """results.json, as far as the run has come; DataError: it is missing, or its figures are not all numbers."""
    try:
        results = json.loads(path.read_text())
        if not isinstance(results["task"], str):
            raise ValueError("not the results of a run")
        for name in results.keys() & {"random", "blind", "unadapted", "agent", "dream"}:
            for score in (results[name], results[name].get("alone", {})):
                figures = [x for k, x in score.items() if k not in ("ci95", "alone", "difference")]
                figures += [*score.get("ci95", ()), *score.get("difference", {}).values()]
                if not all(type(x) in (int, float) and isfinite(x) for x in figures):
                    raise ValueError(f"{name}: {score}"[:200])
        return results
    except FileNotFoundError:
        raise DataError(f"{path} is missing: `train` has not reached its last stage yet") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is damaged ({error}): delete it and repeat `train`") from None


def export(run: str | Path, folder: Path) -> None:
    """Write a run's configuration and its weights, in float16, for `load`: a third of the space."""
    Agent.load(run)  # raises if it is damaged
    source = run_folder(run)
    if not is_empty(folder):
        raise DataError(f"{folder} is not empty: choose another folder")
    names = ("vae.npz", "mdnrnn.npz", "controller.npz", "adapted.npz")
    files = {name: read_arrays(source / name) for name in names if (source / name).exists()}
    paths = sorted(source.glob("recorded/*.npy")) or sorted(source.glob("series/*/*.npy"))[-100:]
    series = [read_records(path, "reward") for path in paths]
    folder.mkdir(parents=True, exist_ok=True)
    with temporary_folder(folder) as beside:  # all of it, or nothing
        new = Path(beside)
        for name, x in files.items():
            x = {k: v.astype(np.float16) if v.dtype.kind == "f" else v for k, v in x.items()}
            if not all(np.isfinite(v).all() for v in x.values()):
                raise DataError(f"{source / name} holds weights too large for float16")
            write(new / name, x)
        if series:  # the best of the newest, for `play` to start dreams from
            best = max(series, key=lambda episode: episode["reward"].sum())
            write(new / "recorded" / "000000.npy", best)
        save_config(new, load_config(source))
        for path in list(new.iterdir()):
            path.replace(folder / path.name)
