"""Episodes and latent series on disk, and the batches that V and M learn from.

The one time convention: an episode of T steps has T+1 frames and T actions. action[t] is chosen at frame[t];
reward[t] and done[t] are what that very action brought, and frame[t+1] is what it led to. A file is one structured
array of T+1 records, of which the last has a frame alone.

Nothing is held in memory but file names and lengths. A batch is a pure function of (seed, update): so training goes
on after a kill without any generator to restore.
"""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import gymnasium as gym
import numpy as np


class DataError(ValueError):
    """A file that is not what it should be; the sentence names it and the mend."""


def write(path: Path, content: np.ndarray | dict | list) -> None:
    """Write an array as .npy, arrays by name as .npz, anything else as JSON; a kill leaves the old file or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(beside, "wb") as file:
            if isinstance(content, np.ndarray):
                np.save(file, content, allow_pickle=False)
            elif path.suffix == ".npz":
                np.savez(file, **content)
            else:
                file.write((json.dumps(content, indent=1) + "\n").encode())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def read_arrays(path: Path, **shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    """All arrays of an .npz; DataError unless those named are there, finite and of this shape, -1 for any length.

    FileNotFoundError where there is no file.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        for name, shape in shapes.items():
            if name not in arrays:
                raise ValueError(f"it has no {name!r}")
            found = arrays[name].shape
            if len(found) != len(shape) or any(n not in (-1, m) for n, m in zip(shape, found, strict=True)):
                raise ValueError(f"{name} has shape {found}, not {shape}")
            if not np.isfinite(arrays[name]).all():
                raise ValueError(f"{name} holds values that are not numbers")
        return arrays
    except FileNotFoundError:
        raise
    except Exception as error:  # zipfile, zlib, struct, ValueError: np.load raises them all
        mend = "delete it, or move it away, and repeat the command that made it"
        raise DataError(f"{path} is damaged or of another run ({error}): {mend}") from None


def frame_dtype(action_size: int) -> np.dtype:
    """A record of an episode. `seen` is false for a frame that never was: ViZDoom's after death."""
    action = ("action", "f4", (action_size,))
    return np.dtype([("frame", "u1", (64, 64, 3)), action, ("reward", "f4"), ("done", "?"), ("seen", "?")])


def series_dtype(z_size: int, action_size: int) -> np.dtype:
    """A record of a series: an episode whose frames have become (mu, logvar)."""
    return np.dtype([("mu", "f4", (z_size,)), ("logvar", "f4", (z_size,)), *frame_dtype(action_size).descr[1:]])


def encoded(episode: np.ndarray, encode: Callable) -> np.ndarray:
    """The series of an episode; encode: frames -> mu, logvar, V's."""
    mu, logvar = encode(episode["frame"])
    series = np.zeros(len(episode), series_dtype(mu.shape[1], episode["action"].shape[1]))
    series["mu"], series["logvar"] = mu, logvar
    for name in series.dtype.names[2:]:
        series[name] = episode[name]
    return series


class Recorder(gym.Wrapper):
    """Keeps the running episode of a 64x64 environment in memory, for `save`."""

    def reset(self, **kwargs):
        frame, info = self.env.reset(**kwargs)
        self._frames, self._steps = [frame], []
        return frame, info

    def step(self, action):
        frame, reward, terminated, truncated, info = self.env.step(action)
        self._frames.append(frame)
        self._steps.append((action, reward, terminated))
        return frame, reward, terminated, truncated, info

    def save(self, path: Path) -> None:
        """Write the episode."""
        records = np.zeros(len(self._frames), frame_dtype(self.env.action_space.shape[0]))
        records["frame"] = self._frames
        records["action"][:-1], records["reward"][:-1], records["done"][:-1] = zip(*self._steps, strict=True)
        records["seen"] = True
        records["seen"][-1] = self.env.unwrapped.terminal_frame or not records["done"][-2]
        write(path, records)


class Records:
    """The .npy files of a folder, sorted by name, records of one dtype; slices are read when asked for."""

    def __init__(self, folder: Path, dtype: np.dtype):
        self.dtype, self.paths = dtype, sorted(folder.glob("[0-9]*.npy"))
        if not self.paths:
            raise DataError(f"{folder} holds no episodes: run the collect stage first")
        self._offsets, lengths = np.transpose([self._header(path) for path in self.paths])
        self.steps = lengths - 1  # (files,) transitions of each, T
        last_seen = [self.read(i, t)["seen"][0] for i, t in enumerate(self.steps)]
        self.frames = self.steps + last_seen  # (files,) frames of each that were seen, T or T+1

    def _header(self, path: Path) -> tuple[int, int]:
        """Where the records of a file begin, and how many there are."""
        try:
            mapped = np.lib.format.open_memmap(path, mode="r")
        except (OSError, ValueError) as error:
            raise DataError(f"{path} is damaged ({error}): delete it and repeat the command") from None
        if mapped.dtype != self.dtype or mapped.ndim != 1 or len(mapped) < 2:
            raise DataError(f"{path} is not an episode of this run: move it away and repeat the command")
        return mapped.offset, len(mapped)

    def read(self, i: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Records start:stop of file i."""
        count = (self.steps[i] + 1 if stop is None else stop) - start
        with open(self.paths[i], "rb", buffering=0) as file:
            # 25 us for a frame; mapped or by np.load 430, most of them to parse the header again
            data = os.pread(file.fileno(), count * self.dtype.itemsize, self._offsets[i] + start * self.dtype.itemsize)
        if len(data) != count * self.dtype.itemsize:
            raise DataError(f"{self.paths[i]} is cut short: delete it and repeat the command")
        return np.frombuffer(data, self.dtype)


class FrameBatches:
    """update -> (batch, 64, 64, 3) uint8: every frame once per epoch, in an order drawn from (seed, epoch)."""

    def __init__(self, episodes: Records, batch: int, seed: tuple[int, ...]):
        self.episodes, self.seed, self._epoch = episodes, seed, -1
        self.ends = np.cumsum(episodes.frames)
        self.batch = min(batch, int(self.ends[-1]))
        self.per_epoch = int(self.ends[-1]) // self.batch

    def __call__(self, update: int) -> np.ndarray:
        epoch, k = divmod(update, self.per_epoch)
        if epoch != self._epoch:
            rng = np.random.default_rng([*self.seed, epoch])
            self._epoch, self._order = epoch, rng.permutation(int(self.ends[-1])).astype(np.uint32)
        chosen = self._order[k * self.batch : (k + 1) * self.batch]
        files = np.searchsorted(self.ends, chosen, side="right")
        offsets = chosen - (self.ends - self.episodes.frames)[files]
        return np.concatenate([self.episodes.read(f, o, o + 1)["frame"] for f, o in zip(files, offsets, strict=True)])


class SeriesBatches:
    """update -> a batch for MDNRNN.loss_and_grad: windows of `window` steps, each step once per epoch.

    The series of an epoch, shuffled, are joined into one stream that is cut into windows; where one begins inside
    a window the restart flag is 1. z is drawn anew from (mu, logvar) every time (authors' rnn.py).
    """

    def __init__(self, series: Records, batch: int, window: int, seed: tuple[int, ...]):
        self.series, self.seed, self._epoch = series, seed, -1
        total = int(series.steps.sum())
        self.window = min(window, total)
        self.batch = min(batch, total // self.window)
        self.per_epoch = total // self.window // self.batch

    def __call__(self, update: int) -> dict[str, np.ndarray]:
        epoch, k = divmod(update, self.per_epoch)
        if epoch != self._epoch:
            rng = np.random.default_rng([*self.seed, epoch])
            self._epoch, self._files = epoch, rng.permutation(len(self.series.steps))
            self._ends = np.cumsum(self.series.steps[self._files])
            self._windows = rng.permutation(int(self._ends[-1]) // self.window)
        rng = np.random.default_rng([*self.seed, epoch, k])
        parts = [p for w in self._windows[k * self.batch : (k + 1) * self.batch] for p in self._parts(w, rng)]
        joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        return {name: x.reshape(self.batch, self.window, *x.shape[1:]) for name, x in joined.items()}

    def _parts(self, window: int, rng: np.random.Generator) -> Iterator[dict[str, np.ndarray]]:
        """The transitions of a window, file by file."""
        start, stop = window * self.window, (window + 1) * self.window
        first, last = np.searchsorted(self._ends, (start, stop - 1), side="right")
        for file, end in zip(self._files[first : last + 1], self._ends[first : last + 1], strict=True):
            begin = end - self.series.steps[file]
            a, b = max(start, begin), min(stop, end)
            yield transitions(self.series.read(file, a - begin, b - begin + 1), rng, restart=a == begin)


def transitions(records: np.ndarray, rng: np.random.Generator, restart: bool) -> dict[str, np.ndarray]:
    """T+1 records of a series -> T transitions: the arrays of MDNRNN.loss_and_grad without the batch axis.

    z is drawn from N(mu, exp(logvar)); `restart`: the first step begins an episode.
    """
    z = records["mu"] + np.exp(records["logvar"] / 2) * rng.standard_normal(records["mu"].shape, np.float32)
    starts = np.zeros(len(records) - 1, np.float32)
    starts[0] = restart
    return {
        "z": z[:-1],
        "z_next": z[1:],
        "action": records["action"][:-1],
        "reward": records["reward"][:-1],
        "done": records["done"][:-1].astype(np.float32),
        "restart": starts,
        "z_mask": records["seen"][1:].astype(np.float32),
    }
