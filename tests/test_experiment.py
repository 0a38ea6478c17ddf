"""A run, whole, on the real Take Cover: what a kill, another number of workers, and accidents leave of it."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.conftest import ROOT, TINY, tiny_config
from wm_numpy.core.arrays import Params
from wm_numpy.envs import environment
from wm_numpy.envs.policies import random_policy
from wm_numpy.models import vae
from wm_numpy.models.agent import Agent, load_config
from wm_numpy.models.cmaes import CMAES
from wm_numpy.settings import config
from wm_numpy.settings.config import SettingError, VAEConfig
from wm_numpy.system import files
from wm_numpy.system.files import DataError
from wm_numpy.training import data, episodes, log, parallel, stages
from wm_numpy.training import loops as train
from wm_numpy.training.episodes import PURPOSES, blind_rollouts, episode_seeds, real_rollouts, score
from wm_numpy.training.experiment import STAGES, Experiment, branch
from wm_numpy.training.loops import RunError
from wm_numpy.training.runfolder import export

RESULTS = ("vae.npz", "mdnrnn.npz", "controller.npz")


def same(a: Path, b: Path) -> bool:
    """Two .npz hold the same, to the bit."""
    x, y = files.read_arrays(a), files.read_arrays(b)
    return x.keys() == y.keys() and all(
        x[k].dtype == y[k].dtype and np.array_equal(x[k], y[k]) for k in x
    )


def same_episodes(a: Path, b: Path) -> bool:
    names = sorted(p.name for p in (a / "episodes").iterdir())
    return names == sorted(p.name for p in (b / "episodes").iterdir()) and all(
        (a / "episodes" / n).read_bytes() == (b / "episodes" / n).read_bytes() for n in names
    )


@pytest.fixture
def collected(doom_run, tmp_path):
    """A run folder with episodes alone."""
    folder = tmp_path / "collected"
    folder.mkdir()
    shutil.copy(doom_run / "config.json", folder)
    shutil.copytree(doom_run / "episodes", folder / "episodes")
    return folder


# ---------------------------------------------------------------------------------------------------- whole


def test_a_run_leaves_what_it_says(doom_run):
    assert {p.name for p in doom_run.iterdir()} == {
        "config.json", "episodes", "series", "log.jsonl", "results.json", ".lock", *RESULTS
    }  # fmt: skip  # no state, no half-written file
    names = sorted(p.name for p in (doom_run / "episodes").iterdir())
    assert names == ["000000.npy", "000001.npy"]
    results = json.loads((doom_run / "results.json").read_text())
    assert results["task"] == "doom" and results["round"] == 1
    for who in ("random", "agent"):
        low, high = results[who]["ci95"]
        assert low <= results[who]["mean"] <= high and results[who]["episodes"] == 2
        assert 50 < results[who]["mean"] <= 2100
    rows = [json.loads(line) for line in (doom_run / "log.jsonl").read_text().splitlines()]
    assert {"vae", "mdnrnn", "evolve"} <= {r["stage"] for r in rows}
    assert all(np.isfinite([v for v in r.values() if not isinstance(v, str)]).all() for r in rows)
    agent = Agent.load(doom_run)
    assert agent.theta.any() and agent.v.params.flat.any()
    assert agent.initial_latents.shape == (2, 2, 64)


def test_series_are_the_encoded_episodes(doom_run):
    agent = Agent.load(doom_run)
    episode = np.load(doom_run / "episodes" / "000001.npy")
    series = np.load(doom_run / "series" / "1" / "000001.npy")
    mu, logvar = agent.v.encode(episode["frame"][:9])
    assert len(series) == len(episode)
    assert np.allclose(series["mu"][:9], mu, atol=1e-5)
    assert np.allclose(series["logvar"][:9], logvar, atol=1e-5)
    assert all(
        np.array_equal(series[name], episode[name]) for name in ("action", "reward", "done", "seen")
    )
    assert np.array_equal(agent.initial_latents[0, 1], series["mu"][0])
    assert episode["done"].sum() == 1 and episode["done"][-2] and not episode["seen"][-1]


def test_a_finished_run_is_left_alone(doom_run, copy_of, capsys):
    folder = copy_of(doom_run)
    ours = ("config.json", ".lock")
    times = {
        p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file() and p.name not in ours
    }
    Experiment(tiny_config(), folder).run()
    assert times == {
        p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file() and p.name not in ours
    }
    assert capsys.readouterr().out == ""


def test_one_worker_and_three_train_the_same(doom_run, collected, workers):
    """doom_run was made with as many as there are cores; --workers 1 also collects below."""
    workers(1)
    Experiment(tiny_config(), collected).run(STAGES[1:-1])
    assert all(same(collected / name, doom_run / name) for name in RESULTS)
    for name in (*RESULTS, "series"):
        path = collected / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    workers(3)
    Experiment(tiny_config(), collected).run(STAGES[1:-1])
    assert all(same(collected / name, doom_run / name) for name in RESULTS)


# Runs the command line, and stands still when a stage has come to a step: to be killed there.
DRIVER = """
import sys, time
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, ROOT)
import run
from wm_numpy.training import log, loops as train

stage, step, marker = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
progress = log.Log.progress

@contextmanager
def standing_still(self, name, *args, **kwargs):
    with progress(self, name, *args, **kwargs) as report:
        def told(done, /, **figures):
            report(done, **figures)
            if name == stage and done >= step:
                marker.touch()
                time.sleep(600)
        yield told

if __name__ == "__main__":
    train.SAVE_SECONDS = 0
    log.Log.progress = standing_still
    sys.exit(run.main(sys.argv[4:]))
"""


def command(folder: Path, *more: str) -> list[str]:
    settings = [part for s in TINY for part in ("--set", s)]
    return ["train", "doom", "--preset", "smoke", "--out", str(folder), *settings, *more]


def test_killed_in_every_stage(doom_run, tmp_path):
    """kill -9 in each stage, the same command again: in the end, to the bit, what an undisturbed run gives."""
    folder, driver, log = tmp_path / "run", tmp_path / "driver.py", tmp_path / "log"
    driver.write_text(DRIVER.replace("ROOT", repr(str(ROOT))))
    stops = {"collect": 1, "vae": 2, "encode": 1, "mdnrnn": 4, "evolve": 2}
    states = {
        "vae": "vae.1.state.npz",
        "mdnrnn": "mdnrnn.1.state.npz",
        "evolve": "controller.1.state.npz",
    }
    made = {"vae": "vae.npz", "mdnrnn": "mdnrnn.npz", "evolve": "controller.npz"}
    for stage, step in stops.items():
        marker = tmp_path / stage
        argv = [sys.executable, driver, stage, str(step), marker]
        argv += command(folder, "--workers", "1")
        with open(log, "a") as file:
            process = subprocess.Popen(
                argv, stdout=file, stderr=file, start_new_session=True, cwd=tmp_path
            )
        try:
            end = time.monotonic() + 60
            while not marker.exists():
                assert process.poll() is None and time.monotonic() < end, log.read_text()
                time.sleep(0.02)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if stage in made:
            assert not (folder / made[stage]).exists() and (folder / states[stage]).exists()
            saved = files.read_arrays(folder / states[stage])
            # it will go on there
            assert int(saved["generation" if stage == "evolve" else "step_count"]) == step - 1
        if stage == "collect":
            first = folder / "episodes" / "000000.npy"
            kept = first.stat().st_mtime_ns
    out = subprocess.run(
        [sys.executable, ROOT / "run.py", *command(folder, "--stage", "evolve")],
        capture_output=True, text=True, timeout=60, cwd=tmp_path,
    )  # fmt: skip
    assert out.returncode == 0, out.stderr
    assert first.stat().st_mtime_ns == kept  # not collected again
    said = log.read_text() + out.stdout
    assert "/2 episodes" not in out.stdout
    for once in ("1/3 updates", "1/6 updates", "1/3 generations"):
        assert said.count(f" {once}") == 1, said
    assert same_episodes(folder, doom_run)
    for name in RESULTS:
        assert same(folder / name, doom_run / name), name
    assert not list(folder.rglob("*.state.npz"))


def test_evolution_goes_on_and_deploys_the_mean_of_the_best_check(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "SAVE_SECONDS", 0.0)
    means, checks, played = [], [], []

    def go(state: Path, stop_at: int | None = None, every: int = 2):
        cma = CMAES(np.zeros(5), 0.3, 6, seed=3)

        def fitness(vectors, generation):
            played.append(generation)
            if generation == stop_at:
                raise KeyboardInterrupt
            return -np.sum((vectors - generation / 3) ** 2, axis=1, keepdims=True)

        def check(mean, generation):
            means.append(mean.copy())
            checks.append(-abs(generation - 4.4))  # the best check is at 4 of 7
            return checks[-1]

        return train.evolve(cma, fitness, 7, state, lambda n, **figures: None, check, every)

    vector, generation, score = go(tmp_path / "a.npz")
    # at 2, 4, 6 and the end
    assert score == max(checks)
    assert generation == 4 and np.array_equal(vector, means[1]) and len(checks) == 4
    for stop_at in (3, 5, 6):
        state = tmp_path / f"{stop_at}.npz"
        with pytest.raises(KeyboardInterrupt):
            go(state, stop_at)
        played.clear()
        again, generation, _ = go(state)
        assert generation == 4 and np.array_equal(again, vector)
        assert played == list(range(stop_at, 7))  # what is done is not done again
    last, generation, score = go(tmp_path / "b.npz", every=0)
    assert generation == 7 and score == 0 and not np.array_equal(last, vector)


def test_evolution_never_ends_below_its_beginning(tmp_path):
    """With the first mean among the checks; a kill in the first generation does not repeat that check."""
    checked = []

    def go(name: str, goal: int, killed: bool = False, **how):
        def fitness(vectors, generation):
            if killed:
                raise KeyboardInterrupt
            return -np.sum((vectors - 1) ** 2, axis=1, keepdims=True)

        def check(mean, generation):
            checked.append(generation)
            return -abs(generation - goal)

        cma = CMAES(np.full(5, 3.0), 0.3, 6, seed=3)
        rows = []
        report = lambda n, **figures: rows.append((n, figures))  # noqa: E731
        state = tmp_path / f"{name}.npz"
        return *train.evolve(cma, fitness, 4, state, report, check, 2, **how), rows

    with pytest.raises(KeyboardInterrupt):
        go("a", 0, killed=True, check_first=True)
    vector, generation, score, _ = go("a", 0, check_first=True)
    assert checked == [0, 2, 4] and generation == score == 0 and (vector == 3).all()
    vector, generation, score, rows = go("b", 4, check_first=True)
    assert generation == 4 and score == 0 and not (vector == 3).any()
    assert rows[0] == (0, {"check": -4})
    assert go("c", 0)[1] == 2  # not asked: the best of the later ones


def test_reliability_is_what_other_episodes_would_repeat():
    rng = np.random.default_rng(0)
    own = rng.standard_normal((4000, 1))
    for count in (4, 20):
        luck = 3 * rng.standard_normal((4000, count))
        expected = 1 / (1 + 9 / count)  # the share of their own in the variance of the means
        assert train.reliability(own + luck) == pytest.approx(expected, abs=0.03)
    assert train.reliability(luck) < 0.1
    assert train.reliability(own + np.zeros(20)) == pytest.approx(1)
    for untold in (own, np.zeros((4, 2)), np.full((4, 2), -np.inf)):
        assert train.reliability(untold) == 0


@pytest.mark.parametrize(
    "schedule, expected",
    [
        ("constant", [2, 2, 2, 2]),
        ("0.5", [2, 1.5, 1.25, 1.125]),
        ("cosine", [2, 1.5 + np.sqrt(0.125), 1.5, 1.5 - np.sqrt(0.125)]),
    ],
)
def test_the_learning_rate_falls(tmp_path, monkeypatch, schedule, expected):
    rates, params = [], Params({"w": (3,)})
    monkeypatch.setattr(train.Adam, "step", lambda self, w, g, rate: rates.append(rate))
    settings = VAEConfig(learning_rate=2.0, final_rate=1.0, schedule=schedule)
    train.fit(
        params, lambda u: ({}, np.ones(3)), 4, settings, tmp_path / "state.npz", lambda *a: None
    )
    assert rates == pytest.approx(expected)


def test_a_large_gradient_is_a_step_and_one_without_end_is_named(tmp_path):
    """1e20 is finite in float32, its square is not; and nothing is said to be kept before it is."""
    state, settings = tmp_path / "state.npz", VAEConfig(learning_rate=0.5, final_rate=0.5)

    def fit(gradient, loss=1.0):
        params = Params({"w": (1,)})
        step = {"loss": loss}, np.array([gradient], np.float32)
        train.fit(params, lambda u: step, 2, settings, state, lambda *a, **figures: None)
        return params.flat[0]

    assert fit(1e20) == pytest.approx(-1, rel=1e-3)
    state.unlink()
    for wrong, gradient, loss in (("gradient", np.inf, 1.0), ("loss", 1.0, np.nan)):
        with pytest.raises(RunError, match=f"the {wrong} of update 1 is not finite") as error:
            fit(gradient, loss)
        assert "kept" not in str(error.value)


def test_states_of_another_configuration_are_refused(collected):
    state = collected / "vae.1.state.npz"
    files.write(state, {"weights": np.zeros(3)})
    with pytest.raises(files.DataError, match="vae.1.state.npz.*delete"):
        Experiment(tiny_config(), collected).run(("vae",))


# --------------------------------------------------------------------------------------------------- rounds


def test_a_second_round_keeps_the_older_data(doom_run, copy_of, capsys):
    folder = copy_of(doom_run)
    Experiment(tiny_config("doom", "rounds=2"), folder).run()
    line = "round 2: M learns from 2 random episodes and 2 of the agent's own\n"
    assert line in capsys.readouterr().out
    names = sorted(p.name for p in (folder / "episodes").iterdir())
    assert names == [f"{i:06d}.npy" for i in range(4)]
    for name in names[:2]:
        kept, first = (f / "episodes" / name for f in (folder, doom_run))
        assert kept.read_bytes() == first.read_bytes()
    assert [p.name for p in (folder / "series").iterdir()] == ["2"]
    assert len(list((folder / "series" / "2").iterdir())) == 4
    for name in RESULTS:
        assert int(files.read_arrays(folder / name)["round"]) == 2
        assert not same(folder / name, doom_run / name)
    assert files.read_arrays(folder / "mdnrnn.npz")["initial_latents"].shape[1] == 4
    assert json.loads((folder / "results.json").read_text())["round"] == 2
    assert json.loads((folder / "config.json").read_text())["rounds"] == 2
    with pytest.raises(RunError, match="rounds is 2 there and 1 here"):
        Experiment(tiny_config(), folder)


def test_a_later_round_may_be_smaller(doom_run, copy_of):
    """Other settings in later rounds; a finished run takes them up."""
    folder = copy_of(doom_run)
    later = ("collect.episodes=1", "vae.updates=2", "mdnrnn.updates=3", "evolve.generations=2")
    later += ("vae.learning_rate=2e-5", "evolve.sigma=0.02", "evolve.tau=0.5", "evolve.horizon=9")
    later = [f"later.{setting}" for setting in later]
    first = json.loads((folder / "config.json").read_text())
    starts, fit = {}, train.fit

    def noted(params, loss_and_grad, updates, settings, *more):
        starts[updates] = settings.learning_rate
        return fit(params, loss_and_grad, updates, settings, *more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "fit", noted)
        Experiment(tiny_config("doom", "rounds=2", *later), folder).run()
    names = sorted(p.name for p in (folder / "episodes").iterdir())
    assert names == [f"{i:06d}.npy" for i in range(3)]
    assert (first["vae.updates"], first["mdnrnn.updates"], first["evolve.generations"]) == (3, 6, 3)
    assert starts == {2: 2e-5, 3: first["mdnrnn.learning_rate"]}
    records = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    rows = [r for r in records if r["stage"] == "evolve" and r["round"] == 2]
    assert [r["step"] for r in rows] == [1, 2] and rows[0]["max"] < 9
    assert np.isclose(rows[0]["sigma"], 0.02, rtol=0.1)
    # the agent's own dream is that of its last round
    dream = json.loads((folder / "results.json").read_text())["dream"]
    assert (dream["steps"], dream["tau"]) == (9, 0.5)
    assert Agent.load(folder).config == load_config(folder).phase(2)


def test_the_noise_of_z_grows_to_its_size(collected, monkeypatch):
    spread, loss_and_grad = [], vae.VAE.loss_and_grad

    def noted(v, frames, noise):
        spread.append(noise.std())
        return loss_and_grad(v, frames, noise)

    monkeypatch.setattr(vae.VAE, "loss_and_grad", noted)
    changed = tiny_config("doom", "vae.updates=6", "vae.noise_warmup=4")
    files.write(collected / "config.json", config.flat(changed))
    stages.train_v(Experiment(changed, collected), 1)
    np.testing.assert_allclose(spread, [0, 0.25, 0.5, 0.75, 1, 1], rtol=0.15)


def test_the_first_round_dreams_by_its_own_settings(doom_run, copy_of):
    """However later ones will: its dreams of 20 steps pay more than 9, theirs of 9 steps could not."""
    folder = copy_of(doom_run)
    (folder / "controller.npz").unlink()
    settings = ("rounds=2", "later.evolve.horizon=9", "evolve.ending=drawn", "evolve.odds=1e-9")
    files.write(folder / "config.json", config.flat(tiny_config("doom", *settings)))
    stages.evolve_c(Experiment(tiny_config("doom", *settings), folder), 1)
    *_, last = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    assert last["stage"] == "evolve" and last["max"] > 9


def test_a_later_round_may_keep_v_and_what_it_encoded(doom_run, copy_of, capsys):
    folder = copy_of(doom_run)
    before = {path.name: path.stat().st_mtime_ns for path in (folder / "series" / "1").iterdir()}
    Experiment(tiny_config("doom", "rounds=2", "later.vae.learning_rate=0"), folder).run()
    assert re.search(r"\d+ of \d+ +vae +stays as it is", capsys.readouterr().out)
    old = files.read_arrays(doom_run / "vae.npz")
    new = files.read_arrays(folder / "vae.npz")
    assert np.array_equal(old["weights"], new["weights"]) and int(new["round"]) == 2
    after = {path.name: path.stat().st_mtime_ns for path in (folder / "series" / "2").iterdir()}
    assert len(after) == 4 and before.items() < after.items()
    assert not same(folder / "mdnrnn.npz", doom_run / "mdnrnn.npz")


def test_the_agent_is_that_of_the_best_round(doom_run, copy_of, monkeypatch, capsys):
    """By checks of one episode round 2 and 3 are the best of four; in four episodes each, 3 is, and stays so."""
    folder = copy_of(doom_run)
    rollouts = real_rollouts
    checks = iter([5.0, 9.0, 7.0, 1.0])
    finals = iter([20.0, None, 20.0, 30.0, 10.0])  # rounds 2, 3, 4; killed at 3, then again

    def real(agent, thetas, seeds, *args, **how):
        if "paths" in how:
            return rollouts(agent, thetas, seeds, *args, **how)
        value = next(checks if len(seeds) == 1 else finals)
        if value is None:
            raise KeyboardInterrupt
        return np.full((1, len(seeds)), value), np.ones((1, len(seeds)))

    monkeypatch.setattr(episodes, "real_rollouts", real)
    settings = (
        "rounds=4", "later.vae.learning_rate=0", "evolve.check_every=3", "evolve.check_episodes=1",
        "evolve.finalists=2",
    )  # fmt: skip
    changed = dict(setting.split("=") for setting in settings)
    first = json.loads((folder / "config.json").read_text())
    files.write(folder / "config.json", first | changed)
    (folder / "controller.npz").unlink()
    run = Experiment(tiny_config("doom", *settings), folder)
    with pytest.raises(KeyboardInterrupt):
        run.run(STAGES[:6])
    assert {path.name for path in (folder / "finalists").iterdir()} == {"2", "3", "4"}
    for _ in range(2):  # finished, it is left alone
        run.run(STAGES[:6])
    assert "the agent is that of round 3 (2: 20.0, 3: 30.0, 4: 10.0)" in capsys.readouterr().out
    best = Agent.load(folder / "finalists" / "3")
    agent = Agent.load(folder)
    assert np.array_equal(agent.theta, best.theta)
    assert np.array_equal(agent.m.params.flat, best.m.params.flat)
    assert not np.array_equal(agent.theta, Agent.load(folder / "finalists" / "4").theta)
    assert all(int(files.read_arrays(folder / name)["round"]) == 4 for name in RESULTS)


def test_a_later_c_begins_from_a_share_of_the_last(doom_run, copy_of, monkeypatch):
    folder = copy_of(doom_run)
    first = json.loads((folder / "config.json").read_text())
    files.write(folder / "config.json", first | {"evolve.shrink": 0.5})
    begun = []

    def cma(mean, *args, **how):
        begun.append(mean.copy())
        return CMAES(mean, *args, **how)

    monkeypatch.setattr(stages, "CMAES", cma)
    Experiment(tiny_config("doom", "rounds=2", "evolve.shrink=0.5"), folder).run(STAGES[:5])
    assert np.array_equal(begun, [Agent.load(doom_run).theta / 2])


def test_a_dream_pays_no_more_than_enough(doom_run, tmp_path):
    # dreams that do not end before the 20 steps of the horizon
    settings = {"evolve.enough": "2.5", "evolve.penalty": "0"}
    settings |= {"evolve.ending": "drawn", "evolve.odds": "1e-9"}
    branch(doom_run, tmp_path / "branch", settings).run(["evolve"])
    records = map(json.loads, (tmp_path / "branch" / "log.jsonl").read_text().splitlines())
    assert {r["max"] for r in records if "max" in r} == {2.5}


def test_rounds_have_equal_shares_of_a_batch():
    assert stages.shares([4], 4).tolist() == [1 / 4] * 4
    assert stages.shares([4, 2, 2], 8).tolist() == [1 / 4] * 4 + [1 / 2] * 4
    assert stages.shares([1, 2], 4).tolist() == [1 / 2] * 4  # the last is of the first round


def test_recorded_moments_are_kept_with_the_state_that_m_has_there(doom_run, copy_of, monkeypatch):
    folder = copy_of(doom_run)
    (folder / "mdnrnn.npz").unlink()
    moments = iter([(0, 0), (1, 10), (0, 60)] * 3)
    memories = data.SeriesBatches.memories
    monkeypatch.setattr(stages, "STARTS", 3)
    monkeypatch.setattr(
        data.SeriesBatches, "memories", lambda self, *args: _at(moments, memories, self, *args)
    )
    Experiment(tiny_config(), folder).run(STAGES[:4])
    agent = Agent.load(folder)
    z, h, c = agent.memories
    assert z.shape == (2, 3, 64) and h.shape == c.shape == (3, 8)
    assert not h[0].any() and not c[0].any()  # a first frame has no past
    for row, (file, at) in ((1, (1, 10)), (2, (0, 60))):
        series = np.load(folder / "series" / "1" / f"{file:06d}.npy")
        state = agent.m.initial_state(1)
        for t in range(max(0, at - stages.WARM), at):
            state = agent.m.step(
                series["mu"][[t]], series["action"][[t]], state, np.array([t == 0])
            )
        assert np.array_equal(z[0, row], series["mu"][at])
        assert np.allclose(h[row], state[0][0], atol=1e-5)
        assert np.allclose(c[row], state[1][0], atol=1e-5)


def _at(moments, memories, batches, *args):
    """SeriesBatches.memories at these moments, not at random ones."""
    batches.moment = lambda rng: next(moments)
    return memories(batches, *args)


def test_an_agent_of_the_dream_is_adapted_to_reality(doom_run, copy_of, tmp_path, monkeypatch):
    """A finished run goes on with its V, M and C; both agents are scored, and the last is the one that acts."""
    folder = copy_of(doom_run)
    real = ("generations=1", "episodes=1", "sigma=0.02", "population=4")
    real += ("check_every=1", "check_episodes=3")
    more = [f"real.evolve.{setting}" for setting in real]
    scores = json.loads((folder / "results.json").read_text())
    played = []  # candidates, episodes

    def real(agent, thetas, seeds, *args, **how):
        played.append((len(thetas), len(seeds)))
        return real_rollouts(agent, thetas, seeds, *args, **how)

    monkeypatch.setattr(episodes, "real_rollouts", real)
    named = replace(tiny_config("doom", *more), preset="another")  # a name, which decides nothing
    Experiment(named, folder).run()
    # a check, a generation, a check; the agent's score
    assert played == [(1, 3), (4, 1), (1, 3), (1, 2)]
    assert all(same(folder / name, doom_run / name) for name in RESULTS)
    results = json.loads((folder / "results.json").read_text())
    assert results["unadapted"] == scores["agent"] and results["agent"] != scores["agent"]
    assert results["random"] == scores["random"]
    adapted = files.read_arrays(folder / "adapted.npz")["theta"]
    assert np.array_equal(Agent.load(folder).theta, adapted)
    rows = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    begun, told = (row for row in rows if row["stage"] == "adapt")
    assert begun["step"] == 0 and begun["check"] < told["check"] and told["step"] == 1
    assert np.isclose(told["sigma"], 0.02, rtol=0.1)
    assert not np.array_equal(adapted, Agent.load(doom_run).theta)
    before = Agent.load(doom_run).theta
    assert np.array_equal(Agent.load(folder, adapted=False).theta, before)
    export(folder, tmp_path / "half")
    assert np.allclose(Agent.load(tmp_path / "half").theta, adapted, atol=1e-3)
    assert np.allclose(Agent.load(tmp_path / "half", adapted=False).theta, before, atol=1e-3)
    # more rounds go on from the C of the dream
    Experiment(tiny_config("doom", *more, "rounds=3"), folder).run(STAGES[:5])
    assert int(files.read_arrays(folder / "controller.npz")["round"]) == 3


def test_a_stage_of_a_run_with_rounds(collected):
    """`--stage vae` in a new run stops after the first V; the second round needs an agent that is not there yet."""
    Experiment(tiny_config("doom", "rounds=2"), collected).run(STAGES[:2])
    assert (collected / "vae.npz").exists() and len(list((collected / "episodes").iterdir())) == 2


# ------------------------------------------------------------------------------------------------ accidents


def test_evolution_ends_where_it_has_a_reason(tmp_path):
    """And goes on to no other end when it is asked again."""
    lines, checked = [], []

    def go(f):
        cma = CMAES(np.zeros(3), 0.3, 6, seed=3)
        state = tmp_path / "state.npz"
        check = lambda mean, generation: checked.append(generation) or 1.0  # noqa: E731
        fitness = lambda thetas, generation: np.full((len(thetas), 2), f)  # noqa: E731
        return train.evolve(
            cma, fitness, 300, state, lambda n, **figures: None, check, 1000, lines.append
        )

    for _ in range(2):
        assert go(2.5)[1] == 25 and checked == [25] and len(lines) == 1
    assert "no further than generation 25" in lines[0] and "has been the same" in lines[0]


def test_half_a_round_is_no_agent(doom_run, copy_of):
    """V of the second round, M and C of the first."""
    folder = copy_of(doom_run)
    config = json.loads((folder / "config.json").read_text())
    files.write(folder / "config.json", config | {"rounds": 2})
    theta = Agent.load(folder).theta
    arrays = files.read_arrays(folder / "vae.npz")
    files.write(folder / "vae.npz", arrays | {"round": np.array(2)})
    with pytest.raises(DataError, match="V, M and C are of rounds 2, 1 and 1.*`train` resumes it"):
        Agent.load(folder)
    Agent.load(folder, theta)  # to evolve another C


@pytest.mark.parametrize(
    "setting",
    ["vae.kl_tolerance=5", "rounds=1", "collect.episodes=9", "repeat=4", "later.evolve.sigma=1"]
    + ["real.evolve.generations=2", "real.evolve.sigma=1"]
    + ["mdnrnn.value_weight=1"],
)
def test_a_branch_refuses_what_it_would_ignore(doom_run, tmp_path, setting):
    settings = dict([setting.split("=")])
    with pytest.raises(SettingError, match=f"{next(iter(settings))} cannot be changed here"):
        branch(doom_run, tmp_path / "branch", settings)
    assert not (tmp_path / "branch").exists()


def test_a_branch_has_no_finalists(doom_run, copy_of, tmp_path):
    folder = copy_of(doom_run)
    first = json.loads((folder / "config.json").read_text())
    finals = {"evolve.finalists": 2, "evolve.check_every": 3}
    files.write(folder / "config.json", first | finals)
    settings = branch(folder, tmp_path / "branch", {"evolve.check_every": "0"}).config
    assert settings.evolve.finalists == 0 and settings.evolve.check_every == 0


def test_foreign_files_among_the_series(doom_run, copy_of, tmp_path):
    """And a branch that was killed before it had its link, or whose link leads nowhere."""
    folder = copy_of(doom_run)
    (folder / "series" / ".DS_Store").write_text("mine")
    out = tmp_path / "branch"
    (out / "series").mkdir(parents=True)
    other = branch(folder, tmp_path / "other", {"mdnrnn.updates": "1"})
    files.write(out / "config.json", config.flat(other.config))
    for _ in range(2):
        branch(folder, out, {"mdnrnn.updates": "1"})
        link = out / "series" / "1"
        assert link.resolve() == (folder / "series" / "1").resolve()
        assert (link / "000000.npy").is_file()
        link.unlink()
        link.symlink_to(tmp_path / "gone")
    stages.encode(Experiment(tiny_config("doom", "rounds=2"), folder), 2)
    assert sorted(p.name for p in (folder / "series").iterdir()) == [".DS_Store", "2"]
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / ".DS_Store").write_text("mine")
    Experiment(tiny_config(), tmp_path / "new")  # is as good as an empty folder


def test_series_on_another_disk_do_not_block_the_next_round(doom_run, copy_of, tmp_path):
    """A folder that was moved away and linked back: its link goes, what it leads to stays."""
    folder = copy_of(doom_run)
    series, elsewhere = folder / "series" / "1", tmp_path / "elsewhere"
    shutil.move(series, elsewhere)
    series.symlink_to(elsewhere)
    stages.encode(Experiment(tiny_config("doom", "rounds=2"), folder), 2)
    assert [path.name for path in (folder / "series").iterdir()] == ["2"]
    assert len(list(elsewhere.iterdir())) == 2


def test_a_resumed_run_says_where_it_goes_on(doom_run, copy_of, capsys):
    folder = copy_of(doom_run)
    (folder / "controller.npz").unlink()
    Experiment(tiny_config(), folder).run(STAGES[:5])
    out = capsys.readouterr().out
    assert out.startswith("4 of 5 stages are done: resumes with evolve\n5 of 5  evolve ")
    Experiment(tiny_config("doom", "rounds=2"), folder).run(STAGES[:1])
    assert "1 of 2 stages are done: resumes with collect, round 2" in capsys.readouterr().out


def test_what_explores_is_c_with_noise_that_lasts(doom_run):
    """The noise has the std that is asked for and lasts some steps; C's parameters differ in every third episode."""
    agent = Agent.load(doom_run)
    world = SimpleNamespace(agent=agent, m=agent.m)
    thetas, seeds = np.zeros((900, agent.theta.size)), np.arange(900)
    explorer = episodes.Explorer(world, thetas, seeds, noise=0.2)
    features = np.ones((900, agent.theta.size), np.float32)
    actions = np.stack([explorer(features)[:, 0] for _ in range(20)])[10:]
    assert actions.std() == pytest.approx(0.2, rel=0.05)
    assert np.corrcoef(actions[0], actions[1])[0, 1] == pytest.approx(0.8, abs=0.05)
    spread = episodes.Explorer(world, thetas, seeds, spread=0.01)(features)[:, 0]
    assert not spread[0::3].any() and not spread[1::3].any() and spread[2::3].all()
    again = episodes.Explorer(world, thetas, seeds, spread=0.01)(features)[:, 0]
    assert np.array_equal(again, spread)


def test_each_evaluation_says_whose_it_is(doom_run, copy_of, monkeypatch):
    folder = copy_of(doom_run)
    (folder / "results.json").unlink()
    stages = []

    def play(task, agent, seeds, log, stage, round_):
        stages.append(stage)
        return np.arange(2.0), np.arange(2.0)

    monkeypatch.setattr(episodes, "play", play)
    Experiment(tiny_config(), folder).run(STAGES[-1:])
    assert stages == ["evaluate random", "evaluate agent"]


def test_recorded_episodes_are_played_here(doom_run, tmp_path, monkeypatch):
    """Not on a cluster, whose disks are others."""
    asked, agent = [], Agent.load(doom_run)

    def processes(function, jobs, shared, retry, log, pool):
        asked.append(pool)
        return [(i, (np.zeros(1), np.zeros(1, int))) for i in range(len(jobs))]

    monkeypatch.setattr(parallel, "processes", processes)
    paths = [tmp_path / "0.npy"]
    for recorded in (None, paths):
        blind_rollouts("doom", np.array([1]), paths=recorded)
        real_rollouts(agent, agent.theta[None], np.array([1]), paths=recorded)
    assert asked == [None, None, parallel.Local, parallel.Local]


def test_a_process_changes_its_environments_with_the_task(monkeypatch):
    class Env:
        def __init__(self, task, repeat):
            self.made, self.closed = (task, repeat), False

        def close(self):
            self.closed = True

    monkeypatch.setattr(environment, "Environment", Env)
    episodes._kept.cache_clear()
    with episodes._environments("doom", 1, 2, keep=False) as first:
        pass
    with episodes._environments("doom", 1, 1, keep=True) as again:
        assert again == first[:1] and again[0].keep
    for kind in (("doom", 4), ("carracing", 4)):
        with episodes._environments(*kind, 1, keep=False) as (env,):
            assert env.env.made == kind
    with (
        pytest.raises(environment.EnvironmentDied),
        episodes._environments("carracing", 4, 1, False),
    ):
        raise environment.EnvironmentDied
    with episodes._environments("carracing", 4, 1, keep=False) as (new,):
        assert new is not env and env.env.closed and not new.env.closed
    episodes._kept.cache_clear()


@pytest.mark.parametrize("change", ["vae.updates=4", "evolve.tau=1.0", "collect.episodes=3"])
def test_another_configuration_is_refused(doom_run, copy_of, change):
    folder = copy_of(doom_run)
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    with pytest.raises(RunError, match=f"{change.split('=')[0]} is .* there and .* here.*--out"):
        Experiment(tiny_config("doom", change), folder)
    assert before == {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_what_only_scores_makes_no_other_run(doom_run, copy_of):
    """A finished run is scored anew by another number of episodes, and nothing else is done."""
    folder = copy_of(doom_run)
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*.np[yz]")}
    Experiment(tiny_config("doom", "evaluate.episodes=3"), folder).run()
    results = json.loads((folder / "results.json").read_text())
    assert {results[who]["episodes"] for who in ("random", "agent", "dream")} == {3}
    assert before == {p: p.stat().st_mtime_ns for p in folder.rglob("*.np[yz]")}


def test_quick_goes_on_as_laptop(doom_run, tmp_path):
    """What a round that has not begun will be is no other run."""
    write = files.write
    folder = tmp_path / "quick"
    write(folder / "config.json", config.flat(config.resolve("doom", "quick")))
    Experiment(config.resolve("doom", "laptop"), folder)
    with pytest.raises(RunError, match="later.collect.episodes is 500 there and not set here"):
        write(folder / "config.json", config.flat(config.resolve("doom", "laptop")))
        Experiment(
            config.resolve("doom", "quick", ["rounds=3", "later.vae.learning_rate=0"]), folder
        )


def test_a_foreign_folder_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(RunError, match="not empty and not a run folder"):
        Experiment(tiny_config(), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_full_disk_is_said_before_it_is_full(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10**7))
    with pytest.raises(RunError, match=r"needs about 0\.2 GB .* 0\.0 GB are free"):
        Experiment(tiny_config(), tmp_path / "run").run()
    assert not (tmp_path / "run" / "episodes").exists()


@pytest.mark.parametrize("bad", ["loss", "gradient"])
def test_a_loss_that_is_no_number(collected, monkeypatch, bad):
    monkeypatch.setattr(train, "SAVE_SECONDS", 0.0)
    right, calls = vae.VAE.loss_and_grad, []

    def loss_and_grad(self, frames, noise):
        losses, gradient = right(self, frames, noise)
        calls.append(self.params.flat.copy())
        if len(calls) == 3:
            if bad == "loss":
                losses["loss"] = float("nan")
            else:
                gradient[1234] = np.inf
        return losses, gradient

    monkeypatch.setattr(vae.VAE, "loss_and_grad", loss_and_grad)
    with pytest.raises(RunError, match="update 3 is not finite.*vae.1.state.npz"):
        Experiment(tiny_config(), collected).run(("vae",))
    saved = files.read_arrays(collected / "vae.1.state.npz")
    assert np.isfinite(saved["weights"]).all() and np.array_equal(saved["weights"], calls[1])
    assert not (collected / "vae.npz").exists()


def engines(pid: int) -> list[int]:
    """ViZDoom processes among the descendants of a process."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            name = Path(f"/proc/{child}/comm").read_text().strip()
            found += [int(child)] if name == "vizdoom" else engines(int(child))
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_killed_game_is_played_again(doom_run, tmp_path, workers):
    """One line in the log, the same episodes; and the worker makes a new game for what it plays after that."""
    workers(1)
    lines, killed = [], []

    def kill_once(n):  # the first episode is in; the worker plays another
        if not killed:
            killed.extend(engines(os.getpid()))
            os.kill(killed[0], signal.SIGKILL)

    seeds = episode_seeds("collect", 6, 0, 1)
    paths = [tmp_path / "episodes" / f"{i:06d}.npy" for i in range(6)]
    policy = partial(random_policy, "doom", hold=10)
    returns, lengths = blind_rollouts(
        "doom", seeds, lines.append, kill_once, paths, make_policy=policy
    )
    assert len(lines) == 1 and "died" in lines[0] and "repeated (attempt 2 of 3)" in lines[0]
    assert [len(np.load(path)) - 1 for path in paths] == lengths.tolist() == returns.tolist()
    for path in paths[2:]:
        path.unlink()
    assert same_episodes(tmp_path, doom_run)


# --------------------------------------------------------------------------------------------------- scores


def test_seeds_of_different_purposes_never_meet():
    seeds = {p: set(episode_seeds(p, 2000, 0, 1).tolist()) for p in PURPOSES}
    assert all(len(s) > 1990 for s in seeds.values())
    for i, p in enumerate(PURPOSES):
        assert all(i * 2**28 <= s < (i + 1) * 2**28 for s in seeds[p])
    assert np.array_equal(episode_seeds("check", 5, 0, 1), episode_seeds("check", 9, 0, 1)[:5])
    assert not set(episode_seeds("evolve", 99, 0, 1, 4, 7)) & set(
        episode_seeds("evolve", 99, 0, 1, 4, 8)
    )


def test_the_score_is_on_seeds_of_its_own(monkeypatch):
    seen = []

    def rollouts(task, seeds, **how):
        seen.extend(seeds)
        return np.arange(4.0), np.ones(4, int)

    monkeypatch.setattr(episodes, "blind_rollouts", rollouts)
    assert episodes.evaluate("doom", None, 4, 0, log.Log())["mean"] == 1.5
    assert len(set(seen)) == 4 and all(s // 2**28 == PURPOSES.index("evaluate") for s in seen)


def test_score():
    got = score(np.array([1.0, 2.0, 3.0, 6.0]))
    half = 1.96 * np.sqrt(14 / 3) / 2
    assert got["mean"] == 3 and got["sd"] == pytest.approx(np.sqrt(14 / 3)) and got["episodes"] == 4
    assert got["ci95"] == pytest.approx([3 - half, 3 + half])


def test_the_pace_of_a_resumed_stage_is_its_own(capsys, monkeypatch):
    now = iter((0.0, 10.0, 14.0, 20.0))
    monkeypatch.setattr("time.monotonic", lambda: next(now))
    with log.Log().progress("vae", 1, 1000, "updates") as report:
        report(900)  # done before the kill
        report(902)
    assert "902/1,000 updates  2.0 s per update  196 s left  (20 s)" in capsys.readouterr().out


def test_log_of_a_killed_run(tmp_path):
    """A line that a kill cut short costs itself, not the one after it."""
    from wm_numpy.lab import report

    first = log.Log(tmp_path)
    first.record(stage="vae", round=1, step=1, loss=3.0)
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"time": 1795451856.7, "stage": "va')
    log.Log(tmp_path).record(stage="vae", round=1, step=2, loss=2.0)
    # the update that was repeated
    log.Log(tmp_path).record(stage="vae", round=1, step=2, loss=1.0)
    assert [r["loss"] for r in report.read_log(tmp_path / "log.jsonl")][-1] == 1.0
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"time": 17')
    log.Log(tmp_path).record(stage="vae", round=1, step=3, loss=0.5)
    assert [r["step"] for r in report.read_log(tmp_path / "log.jsonl")] == [1, 2, 3]
