"""Episodes and latent series on disk, and the batches that V and M learn from.

The one time convention: an episode of T steps has T+1 frames and T actions. action[t] is chosen at frame[t];
reward[t] and done[t] are what that very action brought, and frame[t+1] is what it led to. A file is one structured
array of T+1 records; the last has only a frame.

Nothing is held in memory but file names and lengths. A batch is drawn at random, and is a pure function of
(seed, update): so training goes on after a kill without any generator to restore.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..core.ops import reparameterize_forward
from ..system.files import MEND, DataError, write

LIVELY = 8  # steps: if they brought nothing, the episode may be lost
TRIES = 100  # draws of a moment before any is taken


def frame_dtype(action_size: int) -> np.dtype:
    """A record of an episode. `seen` is false for a frame that never was: ViZDoom's after death."""
    outcome = [("reward", "f4"), ("done", "?"), ("seen", "?")]
    return np.dtype([("frame", "u1", (64, 64, 3)), ("action", "f4", (action_size,)), *outcome])


def series_dtype(z_size: int, action_size: int, value: bool = False) -> np.dtype:
    """A record of a series, an episode with its frames encoded; `value`: with the discounted returns."""
    fields = [("mu", "f4", (z_size,)), ("logvar", "f4", (z_size,))]
    fields += frame_dtype(action_size).descr[1:]
    if value:
        fields.append(("value", "f4"))
    return np.dtype(fields)


def encoded(episode: np.ndarray, dtype: np.dtype, encode: Callable, gamma: float = 0) -> np.ndarray:
    """The series of an episode, of a series_dtype; encode: V's, frames -> mu, logvar; gamma: discount of the value."""
    series = np.zeros(len(episode), dtype)
    series["mu"], series["logvar"] = encode(episode["frame"])
    for name in episode.dtype.names[1:]:
        series[name] = episode[name]
    if "value" in dtype.names:
        series["value"] = discounted(episode["reward"][:-1], gamma, ended=episode["done"][-2])
    return series


def discounted(reward: np.ndarray, gamma: float, ended: bool, least: float = 0.05) -> np.ndarray:
    """reward (T,) -> value (T + 1,): value[t] = reward[t] + gamma value[t + 1], what is still to come at frame t.

    Nothing comes after an end. Where an episode was cut, the future is not known: NaN for the last frames, those at
    which more than a share `least` of a steady reward would still be missing.
    """
    value = np.zeros(len(reward) + 1)
    for t in reversed(range(len(reward))):
        value[t] = reward[t] + gamma * value[t + 1]
    if not ended:
        missing = gamma ** np.arange(len(reward), -1, -1)  # (T + 1,)
        value[missing > least] = np.nan
    return value


class Recorder:
    """An environment that can save its running episode, if `keep` is true from the first step."""

    def __init__(self, env):
        self.env = env
        self.keep = False

    def reset(self, **kwargs):
        """As the environment's."""
        frame, info = self.env.reset(**kwargs)
        self._frames = [frame]
        self._steps = []
        return frame, info

    def step(self, action: np.ndarray):
        """As the environment's. What is kept as reward is what M learns to predict: info["reward"], if it is there."""
        frame, reward, terminated, truncated, info = self.env.step(action)
        if self.keep:
            self._frames.append(frame)
            self._steps.append((action, info.get("reward", reward), terminated))
        return frame, reward, terminated, truncated, info

    def save(self, path: Path, encode: Callable[[np.ndarray], np.ndarray] | None = None) -> None:
        """Write the episode, or what `encode` makes of its records."""
        records = np.zeros(len(self._frames), frame_dtype(len(self._steps[0][0])))
        records["frame"] = self._frames
        records[["action", "reward", "done"]][:-1] = self._steps
        records["seen"] = True
        records["seen"][-1] = self.env.unwrapped.shows_end or not records["done"][-2]
        write(path, encode(records) if encode else records)

    def close(self) -> None:
        """As the environment's."""
        self.env.close()


class Records:
    """The .npy files of a folder, sorted by name, records of one dtype; slices are read when asked for."""

    def __init__(self, folder: Path, dtype: np.dtype):
        self.dtype = dtype
        self.paths = sorted(folder.glob("[0-9]*.npy"))
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
            raise DataError(f"{path} is damaged ({error}): {MEND}") from None
        if mapped.dtype != self.dtype or mapped.ndim != 1 or len(mapped) < 2:
            raise DataError(f"{path} is not an episode of this run: {MEND}")
        return mapped.offset, len(mapped)

    def read(self, i: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Records start:stop of file i."""
        count = (self.steps[i] + 1 if stop is None else stop) - start
        try:
            with open(self.paths[i], "rb", buffering=0) as file:  # 20 x faster than np.load
                file.seek(self._offsets[i] + start * self.dtype.itemsize)
                data = file.read(count * self.dtype.itemsize)
        except FileNotFoundError:
            raise DataError(f"{self.paths[i]} has moved or is gone: begin again") from None
        if len(data) != count * self.dtype.itemsize:
            raise DataError(f"{self.paths[i]} is cut short: {MEND}")
        return np.frombuffer(data, self.dtype)


class FrameBatches:
    """update -> (batch, 64, 64, 3) uint8: frames drawn at random.

    weights (files,): how much the frames of a file count; all alike when None.
    """

    def __init__(self, episodes: Records, batch: int, seed: tuple[int, ...], weights=None):
        self.episodes = episodes
        self.batch = batch
        self.seed = seed
        self.per_epoch = max(1, int(episodes.frames.sum()) // batch)
        self.ends = _cumulative(episodes.frames, weights)

    def __call__(self, update: int) -> np.ndarray:
        rng = np.random.default_rng([*self.seed, update])
        files = np.searchsorted(self.ends, rng.random(self.batch), side="right")
        at = rng.integers(self.episodes.frames[files])
        frames = [self.episodes.read(i, t, t + 1)["frame"] for i, t in zip(files, at, strict=True)]
        return np.concatenate(frames)


class SeriesBatches:
    """update -> a batch for MDNRNN.loss_and_grad: windows of `window` steps, z drawn anew (authors' rnn.py).

    A window begins anywhere in an episode. Where that ends, the beginning of another follows, with the restart flag 1.
    weights (files,): how much the steps of a file count; all alike when None.
    """

    def __init__(
        self, series: Records, batch: int, window: int, seed: tuple[int, ...], weights=None
    ):
        self.series = series
        self.batch = batch
        self.window = window
        self.seed = seed
        self.per_epoch = max(1, int(series.steps.sum()) // (batch * window))
        self.by_steps = _cumulative(series.steps, weights)  # for the first episode of a window
        self.by_files = _cumulative(np.ones(len(series.steps)), weights)  # for those that follow

    def __call__(self, update: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng([*self.seed, update])
        parts = [part for _ in range(self.batch) for part in self._window(rng)]
        joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        shape = (self.batch, self.window)
        return {name: x.reshape(*shape, *x.shape[1:]) for name, x in joined.items()}

    def moment(self, rng: np.random.Generator) -> tuple[int, int]:
        """A file and a step of it, at random."""
        file = int(np.searchsorted(self.by_steps, rng.random(), side="right"))
        return file, int(rng.integers(self.series.steps[file]))

    def _window(self, rng: np.random.Generator) -> list[dict[str, np.ndarray]]:
        """The transitions of a window, episode by episode."""
        file, start = self.moment(rng)
        parts = []
        missing = self.window
        while missing:
            count = min(missing, int(self.series.steps[file]) - start)
            records = self.series.read(file, start, start + count + 1)
            parts.append(transitions(records, rng, restart=start == 0))
            missing -= count
            file = int(np.searchsorted(self.by_files, rng.random(), side="right"))
            start = 0
        return parts

    def memories(self, n: int, steps: int) -> dict[str, np.ndarray]:
        """n recorded moments with the steps before each, to warm M by -> arrays (n, steps + 1, ...).

        mu and logvar of the moment itself are the last. Where an episode is too young, zeros come before its first
        step, and restart is 1 at that step. Nothing can be learnt where all is lost (a car far out on the grass), so
        a moment is drawn again when the LIVELY steps before it brought nothing.
        """
        rng = np.random.default_rng([*self.seed, 1])
        arrays = {name: [] for name in ("mu", "logvar", "action", "restart")}
        for _ in range(n):
            for _ in range(TRIES):
                file, at = self.moment(rng)
                first = max(0, at - steps)
                records = self.series.read(file, first, at + 1)
                if at < LIVELY or records["reward"][-1 - LIVELY : -1].any():
                    break
            restart = np.zeros(len(records), np.float32)
            restart[0] = first == 0
            missing = steps + 1 - len(records)
            for name, kept in arrays.items():
                x = restart if name == "restart" else records[name]
                kept.append(np.concatenate([np.zeros((missing, *x.shape[1:]), np.float32), x]))
        return {name: np.stack(kept) for name, kept in arrays.items()}


def _cumulative(sizes: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    """Sizes and weights of files (files,) -> cumulative shares: a uniform number in [0, 1) draws a file."""
    shares = np.cumsum(sizes if weights is None else sizes * weights)
    return shares / shares[-1]


def transitions(records: np.ndarray, rng: np.random.Generator, restart: bool) -> dict:
    """T+1 records of a series -> T transitions: the arrays of MDNRNN.loss_and_grad without the batch axis.

    z is drawn from N(mu, exp(logvar)); `restart`: the first step begins an episode.
    """
    noise = rng.standard_normal(records["mu"].shape, np.float32)
    z, _ = reparameterize_forward(records["mu"], records["logvar"], noise)
    starts = np.zeros(len(records) - 1, np.float32)
    starts[0] = restart
    parts = {
        "z": z[:-1],
        "z_next": z[1:],
        "action": records["action"][:-1],
        "reward": records["reward"][:-1],
        "done": records["done"][:-1].astype(np.float32),
        "restart": starts,
        "z_mask": records["seen"][1:].astype(np.float32),
    }
    if "value" in records.dtype.names:
        value = records["value"][1:]  # of the frame that the step led to
        parts["value"] = np.nan_to_num(value)
        parts["value_mask"] = np.isfinite(value).astype(np.float32)
    return parts
