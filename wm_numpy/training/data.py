"""Episodes and latent series on disk, and the batches that V and M learn from.

The one time convention: an episode of T steps has T+1 frames and T actions. action[t] is chosen at frame[t];
reward[t] and done[t] are what that very action brought, and frame[t+1] is what it led to. A file is one structured
array of T+1 records; the last has only a frame.

Only file names and lengths are held in memory. A batch is random, but a function of (seed, update) alone: training
resumes after a kill without a generator to restore.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..core.ops import reparameterize_forward
from ..system.files import MEND, DataError, write

LIVELY = 8  # steps; where they brought no reward, all may be lost: a car far out on the grass
TRIES = 100  # draws of another moment instead
UNKNOWN = 0.05  # share of the reward to come that may lie beyond a cut


def frame_dtype(action_size: int) -> np.dtype:
    """A record of an episode. `seen` is false where there was no frame to see: ViZDoom's after death."""
    outcome = [("reward", "f4"), ("done", "?"), ("seen", "?")]
    return np.dtype([("frame", "u1", (64, 64, 3)), ("action", "f4", (action_size,)), *outcome])


def series_dtype(z_size: int, action_size: int, value: bool = False) -> np.dtype:
    """A record of a series, an episode with its frames encoded; `value`: with the discounted returns."""
    latent = [("mu", "f4", (z_size,)), ("logvar", "f4", (z_size,))]
    return np.dtype([*latent, *frame_dtype(action_size).descr[1:], *[("value", "f4")] * value])


def encoded(episode: np.ndarray, dtype: np.dtype, encode: Callable, gamma: float = 0) -> np.ndarray:
    """An episode -> its series, of a series_dtype; encode: V's, frames -> mu, logvar; gamma: the value's discount."""
    series = np.zeros(len(episode), dtype)
    series["mu"], series["logvar"] = encode(episode["frame"])
    for name in episode.dtype.names[1:]:
        series[name] = episode[name]
    if "value" in dtype.names:
        series["value"] = discounted(episode["reward"][:-1], gamma, ended=episode["done"][-2])
    return series


def discounted(reward: np.ndarray, gamma: float, ended: bool) -> np.ndarray:
    """reward (T,) -> value (T + 1,): value[t] = reward[t] + gamma value[t + 1], what is still to come at frame t.

    Nothing comes after an end. If the episode was cut instead, the value is NaN at the last frames, where more than a
    share UNKNOWN of a steady reward would come after the cut.
    """
    value = np.zeros(len(reward) + 1)
    for t in reversed(range(len(reward))):
        value[t] = reward[t] + gamma * value[t + 1]
    if not ended:
        beyond = gamma ** np.arange(len(reward), -1, -1)  # (T + 1,)
        value[beyond > UNKNOWN] = np.nan
    return value


class Recorder:
    """An environment that can save its episode, if `keep` is true from the first step."""

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
        """As the environment's. The reward kept is the one M learns to predict: info["reward"], if there is one."""
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
    """The .npy files of a folder, sorted by name, with records of one dtype; slices are read when asked for."""

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
    """update -> (batch, 64, 64, 3) uint8: frames drawn at random."""

    def __init__(self, episodes: Records, batch: int, seed: tuple[int, ...]):
        self.episodes = episodes
        self.batch = batch
        self.seed = seed
        self.per_epoch = max(1, int(episodes.frames.sum()) // batch)
        self.shares = _cumulative(episodes.frames)

    def __call__(self, update: int) -> np.ndarray:
        rng = np.random.default_rng([*self.seed, update])
        files = np.searchsorted(self.shares, rng.random(self.batch), side="right")
        at = rng.integers(self.episodes.frames[files])
        frames = [self.episodes.read(i, t, t + 1)["frame"] for i, t in zip(files, at, strict=True)]
        return np.concatenate(frames)


class SeriesBatches:
    """update -> a batch for MDNRNN.loss_and_grad: windows of `window` steps, z drawn anew (authors' rnn.py).

    A window begins anywhere in an episode. Where that ends, the beginning of another follows, with the restart flag 1.
    weights (files,): how much the steps of a file count (default: all alike).
    """

    def __init__(
        self, series: Records, batch: int, window: int, seed: tuple[int, ...], weights=1.0
    ):
        self.series = series
        self.batch = batch
        self.window = window
        self.seed = seed
        self.per_epoch = max(1, int(series.steps.sum()) // (batch * window))
        # A window's first episode is drawn by its steps; one that follows another, as often as any.
        self.by_steps = _cumulative(series.steps * weights)
        self.by_files = _cumulative(np.ones(len(series.steps)) * weights)

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

    def memories(self, n: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
        """n recorded moments, each the last of (n, steps + 1) records; and restart (n, steps + 1).

        Where an episode is younger than `steps`, zeros come before its first record, at which restart is 1. A moment
        is drawn again if the LIVELY steps before it brought no reward: nothing can be learnt where all is lost.
        """
        rng = np.random.default_rng([*self.seed, 1])
        moments = np.zeros((n, steps + 1), self.series.dtype)
        restart = np.zeros((n, steps + 1), np.float32)
        for i in range(n):
            for _ in range(TRIES):
                file, at = self.moment(rng)
                first = max(0, at - steps)
                records = self.series.read(file, first, at + 1)
                if at < LIVELY or records["reward"][-1 - LIVELY : -1].any():
                    break
            moments[i, -len(records) :] = records
            restart[i, -len(records)] = first == 0
        return moments, restart


def _cumulative(sizes: np.ndarray) -> np.ndarray:
    """Sizes (n,) -> cumulative shares (n,): `searchsorted` of a uniform number in [0, 1) draws by size."""
    ends = np.cumsum(sizes)
    return ends / ends[-1]


def transitions(records: np.ndarray, rng: np.random.Generator, restart: bool) -> dict:
    """T+1 records of a series -> T transitions: the arrays of MDNRNN.loss_and_grad, without the batch axis.

    z ~ N(mu, exp(logvar)); restart: the first step begins an episode.
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
        value = records["value"][1:]  # of the frame that the step leads to
        parts["value"] = np.nan_to_num(value)
        parts["value_mask"] = np.isfinite(value).astype(np.float32)
    return parts
