"""Episodes and latent series on disk, and the batches that V and M learn from.

The one time convention: an episode of T steps has T+1 frames and T actions. action[t] is chosen at frame[t];
reward[t] and done[t] are what that very action brought, and frame[t+1] is what it led to. A file is one structured
array of T+1 records, of which the last has a frame alone.

Nothing is held in memory but file names and lengths. A batch is a pure function of (seed, update): so training goes
on after a kill without any generator to restore.
"""

from __future__ import annotations

import os
from pathlib import Path

import gymnasium as gym
import numpy as np


class DataError(ValueError):
    """A file that is not what it should be; the sentence names it and the mend."""


# ---------------------------------------------------------------------------------------------------------- files


def write_array(path: Path, array: np.ndarray) -> None:
    """Write .npy beside its place and rename: a kill at any moment leaves the old file or the new one."""
    _atomically(path, lambda file: np.save(file, array, allow_pickle=False))


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """The same for .npz."""
    _atomically(path, lambda file: np.savez(file, **arrays))


def write_text(path: Path, text: str) -> None:
    """The same for text."""
    _atomically(path, lambda file: file.write(text.encode()))


def _atomically(path: Path, write) -> None:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(beside, "wb") as file:
            write(file)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def read_arrays(path: Path, *names: str) -> dict[str, np.ndarray]:
    """All arrays of an .npz, which must have these.

    Raises:
        DataError: the file is damaged or is something else.
        FileNotFoundError: there is none.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
            missing = [name for name in names if name not in arrays]
            if missing:
                raise ValueError(f"it has no {missing[0]!r}")
            return arrays
    except FileNotFoundError:
        raise
    except Exception as error:  # zipfile, zlib, struct, ValueError: np.load raises them all
        raise DataError(
            f"{path} is damaged or foreign ({error}): delete it and repeat the command that made it"
        ) from None


# ------------------------------------------------------------------------------------------------------- recording


def frame_dtype(action_size: int) -> np.dtype:
    """A record of an episode. `seen` is false for a frame that never was: ViZDoom's after death."""
    return np.dtype(
        [
            ("frame", "u1", (64, 64, 3)),
            ("action", "f4", (action_size,)),
            ("reward", "f4"),
            ("done", "?"),
            ("seen", "?"),
        ]
    )


def series_dtype(z_size: int, action_size: int) -> np.dtype:
    """A record of a series: an episode whose frames have become (mu, logvar)."""
    return np.dtype([("mu", "f4", (z_size,)), ("logvar", "f4", (z_size,))] + frame_dtype(action_size).descr[1:])


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

    def save(self, path: Path) -> int:
        """Write the episode; return its steps."""
        records = np.zeros(len(self._frames), frame_dtype(self.env.action_space.shape[0]))
        records["frame"] = self._frames
        records["action"][:-1], records["reward"][:-1], records["done"][:-1] = zip(*self._steps, strict=True)
        records["seen"] = True
        records["seen"][-1] = self.env.unwrapped.terminal_frame or not records["done"][-2]
        write_array(path, records)
        return len(self._steps)


# --------------------------------------------------------------------------------------------------------- reading


class Records:
    """The .npy files of a folder, sorted by name; slices are read when asked for.

    Args:
        folder: where they lie.
        dtype: of every record.

    Attributes:
        steps: (files,) transitions of each file, T.
        frames: (files,) frames of each that were seen, T or T+1.
    """

    def __init__(self, folder: Path, dtype: np.dtype):
        self.folder, self.dtype = Path(folder), dtype
        self.paths = sorted(self.folder.glob("[0-9]*.npy"))
        if not self.paths:
            raise DataError(f"{folder} holds no episodes: run the collect stage first")
        self._offsets, lengths = zip(*map(self._header, self.paths), strict=True)
        self.steps = np.array(lengths) - 1
        last = [self.read(i, t, t + 1)["seen"][0] for i, t in enumerate(self.steps)]
        self.frames = self.steps + np.array(last)

    def _header(self, path: Path) -> tuple[int, int]:
        """Where the records of a file begin, and how many there are."""
        try:
            with open(path, "rb") as file:
                version = np.lib.format.read_magic(file)
                if version != (1, 0):
                    raise ValueError(f"version {version}")
                shape, _, dtype = np.lib.format.read_array_header_1_0(file)
                offset = file.tell()
        except (OSError, ValueError) as error:
            raise DataError(f"{path} is damaged ({error}): delete it and repeat the command") from None
        if dtype != self.dtype or len(shape) != 1 or shape[0] < 2:
            raise DataError(f"{path} is not an episode of this run: move it away and repeat the command")
        return offset, shape[0]

    def read(self, i: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Records start:stop of file i."""
        stop = self.steps[i] + 1 if stop is None else stop
        size = self.dtype.itemsize
        file = os.open(self.paths[i], os.O_RDONLY)
        try:  # 25 us for a frame; mapped or by np.load 430, most of them to parse the header again
            data = os.pread(file, int(stop - start) * size, int(self._offsets[i] + start * size))
        finally:
            os.close(file)
        if len(data) != (stop - start) * size:
            raise DataError(f"{self.paths[i]} is cut short: delete it and repeat the command")
        return np.frombuffer(data, self.dtype)


class FrameBatches:
    """update -> (batch, 64, 64, 3) uint8: every frame once per epoch, in an order drawn from (seed, epoch)."""

    def __init__(self, episodes: Records, batch: int, seed: tuple[int, ...]):
        self.episodes, self.seed = episodes, seed
        self.ends = np.cumsum(episodes.frames)
        self.batch = min(batch, int(self.ends[-1]))
        self.per_epoch = int(self.ends[-1]) // self.batch
        self._epoch, self._order = -1, None

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
        self.series, self.seed = series, seed
        total = int(series.steps.sum())
        self.window = min(window, total)
        self.batch = min(batch, total // self.window)
        self.per_epoch = total // self.window // self.batch
        self._epoch = -1

    def __call__(self, update: int) -> dict[str, np.ndarray]:
        epoch, k = divmod(update, self.per_epoch)
        if epoch != self._epoch:
            rng = np.random.default_rng([*self.seed, epoch])
            self._epoch, self._files = epoch, rng.permutation(len(self.series.steps))
            self._ends = np.cumsum(self.series.steps[self._files])
            self._windows = rng.permutation(int(self._ends[-1]) // self.window)
        rng = np.random.default_rng([*self.seed, epoch, k])
        rows = [self._row(w, rng) for w in self._windows[k * self.batch : (k + 1) * self.batch]]
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    def _row(self, window: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Steps window * self.window ... of the stream, from as many files as it takes."""
        parts, at, end = [], window * self.window, (window + 1) * self.window
        while at < end:
            place = int(np.searchsorted(self._ends, at, side="right"))
            first = int(self._ends[place] - self.series.steps[self._files[place]])  # where this file begins
            stop = min(end, int(self._ends[place]))
            records = self.series.read(self._files[place], at - first, stop - first + 1)
            parts.append(transitions(records, rng, restart=at == first))
            at = stop
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def transitions(records: np.ndarray, rng: np.random.Generator, restart: bool) -> dict[str, np.ndarray]:
    """T+1 records of a series -> T transitions, z sampled: the arrays of MDNRNN.loss_and_grad without the batch axis.

    Args:
        records: of series_dtype.
        rng: draws z ~ N(mu, exp(logvar)).
        restart: the first of them begins an episode.
    """
    mu, logvar = records["mu"], records["logvar"]
    z = mu + np.exp(logvar / 2) * rng.standard_normal(mu.shape, np.float32)
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
