"""Files that survive a kill, episodes, and batches that are a function of the update."""

import os
import time
import weakref
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest

from wm_numpy.system import files
from wm_numpy.system.files import DataError
from wm_numpy.training import data
from wm_numpy.training.data import (
    FrameBatches,
    Recorder,
    Records,
    SeriesBatches,
    frame_dtype,
    series_dtype,
)

Z, A = 3, 2

# ---------------------------------------------------------------------------------------------------- files


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    for name, old, new in [
        ("a.npy", np.arange(3), np.array([object()])),
        ("a.npz", {"x": np.arange(3)}, {"x": (i for i in [])}),  # no pickle of a generator
        ("a.json", {"x": 3}, {"x": object()}),
    ]:
        path = tmp_path / "deep" / name
        files.write(path, old)
        before = path.read_bytes()
        with np.errstate(all="ignore"), pytest.raises(Exception):  # noqa: B017  NumPy's choice
            files.write(path, new)
        assert path.read_bytes() == before
        assert sorted(p.name for p in path.parent.iterdir() if p.name.startswith(".")) == []


def test_a_kill_while_writing_leaves_the_old_file(tmp_path, monkeypatch):
    """What a kill leaves beside the place is never taken for an episode."""
    path = tmp_path / "000000.npy"
    files.write(path, episode(0, 4))
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)
    with pytest.raises(KeyboardInterrupt):
        files.write(path, episode(0, 9))
    assert len(list(tmp_path.iterdir())) == 2
    assert Records(tmp_path, frame_dtype(A)).steps.tolist() == [4]


def test_arrays_come_back(tmp_path):
    arrays = {"x": np.arange(5, dtype=np.float32), "round": np.array(2)}
    files.write(tmp_path / "x.npz", arrays)
    back = files.read_arrays(tmp_path / "x.npz")
    assert back.keys() == arrays.keys() and all(np.array_equal(back[k], arrays[k]) for k in arrays)
    with pytest.raises(FileNotFoundError):
        files.read_arrays(tmp_path / "none.npz")


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "flipped", "pickle"])
def test_damaged_arrays_are_named(tmp_path, damage):
    path = tmp_path / "x.npz"
    files.write(path, {"x": np.arange(5000)})
    raw = bytearray(path.read_bytes())
    raw[20_000] ^= 255
    if damage == "pickle":
        np.savez(path, x=np.array([{}], dtype=object))
    else:
        damaged = {"cut": raw[:10_000], "empty": b"", "text": b"hello", "flipped": bytes(raw)}
        path.write_bytes(damaged[damage])
    with pytest.raises(DataError, match="x.npz.*delete"):
        files.read_arrays(path)


def test_arrays_are_what_they_are_expected_to_be(tmp_path):
    path = tmp_path / "x.npz"
    files.write(path, {"x": np.ones((2, 5, 3)), "bad": np.array([1, np.nan])})
    assert files.read_arrays(path, x=(2, -1, 3))["x"].shape == (2, 5, 3)
    for expected, named in (
        ({"x": (2, 4, 3)}, "shape"),
        ({"x": (5, 2, 3)}, "x has shape"),
        ({"y": (3,)}, "'y'"),
        ({"bad": (2,)}, "not numbers"),
    ):
        with pytest.raises(DataError, match=f"x.npz.*{named}.*delete"):
            files.read_arrays(path, **expected)


# ------------------------------------------------------------------------------------------------- episodes


class Toy(gym.Env):
    """Frames filled with the number of steps; ends after 5."""

    observation_space = gym.spaces.Box(0, 255, (64, 64, 3), np.uint8)
    action_space = gym.spaces.Box(-1, 1, (A,), np.float32)

    def __init__(self, shows_end: bool, truncate: bool = False):
        self.shows_end, self.truncate = shows_end, truncate

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self._frame(), {}

    def step(self, action):
        self.t += 1
        over = self.t == 5
        info = {"reward": 20.0 + self.t} if self.t == 2 else {}
        terminated = over and not self.truncate
        return self._frame(), 10.0 + self.t, terminated, over and self.truncate, info

    def _frame(self):
        return np.full((64, 64, 3), self.t, np.uint8)


def test_a_recorder_that_is_not_to_save_holds_no_frames():
    env = Recorder(Toy(True, False))
    frames = [weakref.ref(env.reset()[0])]
    frames += [weakref.ref(env.step(np.zeros(2))[0]) for _ in range(5)]
    assert [frame() is None for frame in frames[1:]] == [True] * 5


def test_a_folder_is_held_by_one_alone(tmp_path):
    me = f"process {os.getpid()} on .* is at work in"
    with files.locked(tmp_path), pytest.raises(DataError, match=me), files.locked(tmp_path):
        pass
    with files.locked(tmp_path):
        pass


def test_a_disk_without_locks(tmp_path, monkeypatch):
    def flock(file, how):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(files, "fcntl", SimpleNamespace(flock=flock, LOCK_EX=2, LOCK_NB=4))
    with pytest.warns(UserWarning, match="no lock on .*not supported"), files.locked(tmp_path):
        pass


@pytest.mark.parametrize(
    "shows_end, truncate, seen", [(True, False, 1), (False, False, 0), (False, True, 1)]
)
def test_recorder(tmp_path, shows_end, truncate, seen):
    env = Recorder(Toy(shows_end, truncate))
    env.keep = True
    for shift in (0.5, 0):  # the second episode replaces the first
        env.reset()
        for t in range(5):
            env.step(np.array([t / 10 + shift, -t / 10], np.float32))
    env.save(tmp_path / "000003.npy")
    records = Records(tmp_path, frame_dtype(A))
    assert records.steps.tolist() == [5] and records.frames.tolist() == [5 + seen]
    back = records.read(0)
    assert back["frame"][:, 7, 9, 1].tolist() == [0, 1, 2, 3, 4, 5]
    assert np.allclose(back["action"], [[t / 10, -t / 10] for t in range(5)] + [[0, 0]])
    assert back["reward"].tolist() == [11, 22, 13, 14, 15, 0]  # of the action beside it
    assert back["done"].tolist() == [False] * 4 + [not truncate, False]
    assert back["seen"].tolist() == [True] * 5 + [bool(seen)]
    assert np.array_equal(records.read(0, 2, 4)["reward"], [13, 14])


def episode(index: int, steps: int, seen: bool = True) -> np.ndarray:
    """Frames that say where they are from."""
    records = np.zeros(steps + 1, frame_dtype(A))
    records["frame"][:, 0, 0, 0], records["frame"][:, 0, 0, 1] = index, np.arange(steps + 1)
    records["seen"] = True
    records["seen"][-1] = seen
    return records


LENGTHS = [3, 7, 2, 9, 4]  # with the frames seen 4 + 7 + 3 + 9 + 5 = 28


@pytest.fixture
def episodes(tmp_path):
    for i, steps in enumerate(LENGTHS):
        files.write(tmp_path / f"{i:06d}.npy", episode(i, steps, seen=i % 2 == 0))
    return Records(tmp_path, frame_dtype(A))


def names(batch: np.ndarray) -> list[tuple[int, int]]:
    return [tuple(int(x) for x in frame[0, 0, :2]) for frame in batch]


def test_every_seen_frame_is_drawn_as_often(episodes):
    batches = FrameBatches(episodes, 7, (1, 2))
    assert batches.per_epoch == 4
    drawn = Counter(name for update in range(800) for name in names(batches(update)))
    assert set(drawn) == {
        (i, t) for i, steps in enumerate(LENGTHS) for t in range(steps + (i % 2 == 0))
    }
    assert max(abs(count - 200) for count in drawn.values()) < 4.5 * np.sqrt(200)  # Poisson


def test_frames_are_a_function_of_seed_and_update(episodes):
    batches, again = FrameBatches(episodes, 5, (1, 2)), FrameBatches(episodes, 5, (1, 2))
    forward = [names(batches(u)) for u in range(12)]
    assert [names(again(u)) for u in reversed(range(12))] == forward[::-1]
    assert [names(FrameBatches(episodes, 5, (1, 3))(u)) for u in range(12)] != forward
    assert len({tuple(sorted(b)) for b in forward}) > 6


def test_fewer_frames_than_a_batch(episodes):
    batches = FrameBatches(episodes, 100, (0,))
    assert batches.per_epoch == 1
    assert batches(0).shape == (100, 64, 64, 3) and batches(0).dtype == np.uint8


@pytest.mark.parametrize(
    "damage", ["cut", "empty", "text", "foreign", "other actions", "two axes", "one record"]
)
def test_damaged_episodes_are_named(tmp_path, damage):
    files.write(tmp_path / "000000.npy", episode(0, 4))
    path = tmp_path / "000001.npy"
    files.write(path, episode(1, 4))
    raw = path.read_bytes()
    if damage in ("cut", "empty", "text"):
        path.write_bytes({"cut": raw[: len(raw) // 2], "empty": b"", "text": b"hello"}[damage])
    else:
        files.write(
            path,
            {
                "foreign": np.arange(5),
                "other actions": np.zeros(5, frame_dtype(A + 1)),
                "two axes": np.zeros((5, 2), frame_dtype(A)),
                "one record": np.zeros(1, frame_dtype(A)),
            }[damage],
        )
    with pytest.raises(DataError, match="000001.npy"):
        Records(tmp_path, frame_dtype(A))


def test_an_episode_that_is_damaged_later_is_named(episodes):
    episodes.paths[2].write_bytes(b"")
    with pytest.raises(DataError, match="000002.npy"):
        FrameBatches(episodes, 28, (0,))(0)


def test_no_episodes(tmp_path):
    with pytest.raises(DataError, match="collect"):
        Records(tmp_path, frame_dtype(A))


# --------------------------------------------------------------------------------------------------- series


def series(index: int, steps: int) -> np.ndarray:
    """mu says (episode, t), and so do action and reward; sampled z equals it to a thousandth."""
    records = np.zeros(steps + 1, series_dtype(Z, A))
    records["mu"][:, 0], records["mu"][:, 1] = index, np.arange(steps + 1)
    records["logvar"] = -20
    records["logvar"][:, 2] = np.log(4)  # and one dimension of noise
    records["action"][:-1, 0], records["action"][:-1, 1] = index, np.arange(steps)
    records["reward"][:-1] = 100 * index + np.arange(steps)
    records["done"][-2] = index != 1  # episode 1 was cut at the limit
    records["seen"] = True
    records["seen"][-1] = index % 2 == 0
    return records


SERIES = [13, 5, 21, 2, 30, 8, 1]  # 80 steps


@pytest.fixture
def batches(tmp_path):
    for i, steps in enumerate(SERIES):
        files.write(tmp_path / f"{i:06d}.npy", series(i, steps))
    return SeriesBatches(Records(tmp_path, series_dtype(Z, A)), batch=2, window=8, seed=(4, 2))


def test_every_step_is_drawn_as_often(batches):
    """Windows of 8 steps over episodes of 1 to 30."""
    assert (batches.window, batches.batch, batches.per_epoch) == (8, 2, 5)
    drawn = Counter()
    for update in range(2000):
        for window in batches(update)["action"].astype(int).tolist():
            drawn.update(tuple(step) for step in window)
            # inside a window a step follows the one before, or another episode begins
            for (i, t), (j, u) in zip(window[:-1], window[1:], strict=True):
                assert (j, u) == ((i, t + 1) if t + 1 < SERIES[i] else (j, 0))
    assert set(drawn) == {(i, t) for i, steps in enumerate(SERIES) for t in range(steps)}
    counts = np.array(list(drawn.values()))
    assert counts.sum() == 32_000 and abs(counts - 400).max() < 100


def test_series_of_a_larger_weight_are_drawn_more_often(batches):
    some = SeriesBatches(batches.series, 2, 8, (0,), np.array([0, 0, 1, 0, 1, 0, 0]))
    files = np.concatenate([some(update)["action"][..., 0].ravel() for update in range(100)])
    assert set(files.tolist()) == {2, 4}


def test_memories_are_recorded_moments_with_what_went_before(batches):
    m, restarts = batches.memories(200, 6)
    assert m.shape == restarts.shape == (200, 7)
    for mu, action, restart in zip(m["mu"], m["action"], restarts, strict=True):
        i, t = mu[-1, :2].astype(int)  # the moment
        before = min(t, 6)
        assert mu[6 - before :, 1].tolist() == list(range(t - before, t + 1))
        assert (mu[6 - before :, 0] == i).all()
        assert action[6 - before : 6, 1].tolist() == list(range(t - before, t))
        assert not mu[: 6 - before].any() and not action[: 6 - before].any()
        assert restart.tolist() == [float(k == 6 - before and t <= 6) for k in range(7)]


def test_memories_are_moments_at_which_not_all_is_lost(tmp_path):
    """A car far out on the grass: a dream that begins there says nothing of C."""
    lost = series(0, 40)
    lost["reward"][10:] = 0
    files.write(tmp_path / "000000.npy", lost)
    records = Records(tmp_path, series_dtype(Z, A))
    m, _ = SeriesBatches(records, batch=2, window=8, seed=(4, 2)).memories(200, 12)
    assert set(m["mu"][:, -1, 1].astype(int).tolist()) == set(range(10 + data.LIVELY))


def test_discounted_returns_by_hand():
    reward = np.array([1.0, 0, 2])
    assert data.discounted(reward, 0.5, ended=True).tolist() == [1.5, 1, 2, 0]
    assert data.discounted(reward, 0.0, ended=True).tolist() == [1, 0, 2, 0]
    cut = data.discounted(np.ones(10), 0.5, ended=False)
    known = np.isfinite(cut)  # 0.5^5 < 0.05 of a steady reward is missing five steps before the cut
    assert known.tolist() == [True] * 6 + [False] * 5
    assert np.allclose(cut[known], [2 - 0.5**k for k in range(9, 3, -1)])


def test_values_are_those_of_the_frame_that_a_step_leads_to(tmp_path):
    episode = np.zeros(5, frame_dtype(A))
    episode["reward"][:-1], episode["done"][-2] = [1, 0, 0, 4], True
    dtype = series_dtype(Z, A, value=True)
    records = data.encoded(episode, dtype, lambda frames: np.zeros((2, 5, Z)), gamma=0.5)
    assert records["value"].tolist() == [1.5, 1, 2, 4, 0]
    parts = data.transitions(records, np.random.default_rng(0), restart=True)
    assert parts["value"].tolist() == [1, 2, 4, 0] and parts["value_mask"].all()
    episode["done"][-2] = False
    records = data.encoded(episode, dtype, lambda frames: np.zeros((2, 5, Z)), gamma=0.5)
    parts = data.transitions(records, np.random.default_rng(0), restart=True)
    assert not parts["value_mask"].any() and not parts["value"].any()


def test_what_belongs_together_stays_together(batches):
    """Also where a window crosses from one file into the next."""
    crossings = 0
    for update in range(15):
        b = batches(update)
        assert {k: v.shape for k, v in b.items()} == {
            "z": (2, 8, Z), "z_next": (2, 8, Z), "action": (2, 8, A),
            "reward": (2, 8), "done": (2, 8), "restart": (2, 8), "z_mask": (2, 8),
        }  # fmt: skip
        assert all(v.dtype == np.float32 for v in b.values())
        i, t = np.moveaxis(b["action"], -1, 0).astype(int)
        last = np.array(SERIES)[i] == t + 1
        crossings += int((i[:, 1:] != i[:, :-1]).sum())
        assert np.allclose(b["z"][..., 0], i, atol=1e-3)
        assert np.allclose(b["z"][..., 1], t, atol=1e-3)
        assert np.allclose(b["z_next"][..., 0], i, atol=1e-3)
        assert np.allclose(b["z_next"][..., 1], t + 1, atol=1e-3)
        assert np.array_equal(b["reward"], 100 * i + t)
        assert np.array_equal(b["done"], last & (i != 1))
        assert np.array_equal(b["restart"], t == 0)
        assert np.array_equal(b["z_mask"], ~last | (i % 2 == 0))
        inside = ~last[:, :-1]  # the z that a step leads to is the very z of the next step
        assert np.array_equal(b["z_next"][:, :-1][inside], b["z"][:, 1:][inside])
    assert crossings > 10


def test_series_are_a_function_of_seed_and_update(batches):
    again = SeriesBatches(batches.series, 2, 8, (4, 2))
    forward = [batches(u) for u in range(11)]
    for u in reversed(range(11)):
        assert all(np.array_equal(x, forward[u][k]) for k, x in again(u).items())
    other = SeriesBatches(batches.series, 2, 8, (4, 3))
    assert not np.array_equal(other(0)["action"], forward[0]["action"])


def test_z_is_drawn_anew_with_the_right_deviation(batches):
    noise = np.concatenate([batches(u)["z"][..., 2].ravel() for u in range(200)])
    assert abs(noise.mean()) < 0.1 and abs(noise.std() - 2) < 0.1
    first = np.concatenate(
        [b["z"][(b["action"] == [0, 0]).all(-1)] for b in map(batches, range(25))]
    )
    different = set(first[:, 2].tolist())
    assert len(first) > 1 and len(different) == len(first)  # the same step, never the same z


def test_a_window_longer_than_the_data(batches):
    everything = SeriesBatches(batches.series, 3, 500, (0,))
    assert everything.per_epoch == 1 and everything(3)["restart"].shape == (3, 500)
    assert (everything(3)["restart"].sum(axis=1) > len(SERIES)).all()


# --------------------------------------------------------------------------------------------------- memory


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_memory_does_not_grow_with_the_data(tmp_path):
    """3.7 GB of frames, none of them written: files with holes."""
    dtype = frame_dtype(1)
    for i in range(300):
        with open(tmp_path / f"{i:06d}.npy", "wb") as file:
            descr = np.lib.format.dtype_to_descr(dtype)
            header = {"descr": descr, "fortran_order": False, "shape": (1001,)}
            np.lib.format.write_array_header_1_0(file, header)
            file.truncate(file.tell() + 1001 * dtype.itemsize)

    def resident() -> float:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    before, start, most = resident(), time.process_time(), 0.0
    batches = FrameBatches(Records(tmp_path, dtype), 20, (0,))
    for update in range(200):
        batches(update)
        most = max(most, resident() - before)
    assert most < 50, f"{most:.0f} MB"
    # 50 MB of frames. Unless told that reads are random, the system reads ahead, megabytes for a frame of 12 kB.
    assert time.process_time() - start < 5
