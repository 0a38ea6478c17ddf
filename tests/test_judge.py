"""M judged as a model: the figures on outputs that are known, the lives of policies in both worlds."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from tests.conftest import tiny_agent
from wm_numpy.envs.environment import Environment
from wm_numpy.lab.judge import REALITY, Findings, judge, kindness, lives, recorded, verdict
from wm_numpy.lab.probes import Replay, moments, one_step, open_loop
from wm_numpy.lab.statistics import auc, correlation, r2, ridge
from wm_numpy.models.mdnrnn import MDNRNN
from wm_numpy.training.data import series_dtype
from wm_numpy.training.episodes import episode_seeds


def made_of_noise(rng, steps: int, sd: float = 2.0) -> np.ndarray:
    """A series whose z are N(0, sd^2); the last frame was not seen."""
    series = np.zeros(steps + 1, series_dtype(6, 1))
    series["mu"], series["logvar"] = sd * rng.standard_normal((steps + 1, 6)), -100
    series["seen"][:-1] = True
    return series


def test_nll_is_per_step_not_per_episode():
    rng = np.random.default_rng(0)
    series = [made_of_noise(rng, steps) for steps in (401, 1201)]
    lengths = []

    def loss_and_grad(batch):
        lengths.append(batch["z"].shape)
        return {"z": float(len(lengths))}, None

    figures = one_step(SimpleNamespace(m=SimpleNamespace(loss_and_grad=loss_and_grad)), series)
    assert lengths == [(1, 401, 6), (1, 1201, 6)]
    assert figures["nll"] == pytest.approx((400 * 1 + 1200 * 2) / 1600)
    gaussian = np.log(2) + 0.5 * np.log(2 * np.pi * np.e)
    assert figures["gaussian"] == pytest.approx(gaussian, abs=0.03)


def test_measures_by_hand():
    x, none = np.array([1.0, 2, 3, 4]), np.zeros(4, bool)
    assert r2(x, x) == 1 and r2(np.full(4, 2.5), x) == 0 and r2(-x, x) < 0
    assert np.isnan(r2(x, np.ones(4)))
    assert correlation(x, 3 - 2 * x) == pytest.approx(-1) and np.isnan(correlation(x, np.ones(4)))
    assert auc(x, x > 2) == 1 and auc(x, x < 3) == 0 and np.isnan(auc(x, none))
    assert np.isnan(auc(x, ~none))
    test = np.arange(4000) % 4 == 1
    seen = np.random.default_rng(0).standard_normal((4000, 3)) * 3 + 1
    line = seen @ [1.0, -2, 0.5] + 7
    assert r2(ridge(seen, line, test), line[test]) > 0.999
    assert abs(r2(ridge(seen[::-1], line, test), line[test])) < 0.02
    # a tie is a half
    assert auc(np.array([1.0, 1, 0, 1]), np.array([True, True, False, False])) == 0.75


# -------------------------------------------------------------------------------------------- open and closed loop


class PerfectM:
    """Knows that z[0] grows by the action, pays z[0] / 4 and ends beyond 3; of z[1] it dreams with an sd of 1."""

    z_size, action_size = 6, 1
    heads = ["done", "reward"]
    follow = MDNRNN.follow

    def initial_state(self, n):
        return tuple(np.zeros((2, n, 8), np.float32))

    def step(self, z, action, state, restart=None):
        h = np.zeros((len(z), 8), np.float32)
        # where it leads to; the steps so far
        h[:, 0] = z[:, 0] + action[:, 0]
        h[:, 7] = state[0][:, 7] + 1
        return h, h + 1

    def dream(self, h, tau, uniform, normal):
        z = np.zeros((len(h), 6), np.float32)
        z[:, 0], z[:, 1] = h[:, 0], normal[:, 1]
        return z, (z[:, 0] / 4).clip(0, 1), 9000 * (h[:, 0] - 3)


def lives_of_perfect_m(n: int = 40, steps: int = 260) -> list[np.ndarray]:
    """Series in the world that PerfectM knows."""
    rng, series = np.random.default_rng(0), []
    for _ in range(n):
        records = np.zeros(steps + 1, series_dtype(6, 1))
        records["logvar"], records["seen"] = -100, True
        records["action"] = rng.uniform(-0.4, 0.4, (steps + 1, 1))
        at = records["mu"][0, 0] = rng.uniform(-3, 2)
        for t in range(steps):
            at = records["mu"][t + 1, 0] = at + records["action"][t, 0]
            records["reward"][t], records["done"][t] = np.clip(at / 4, 0, 1) * (at <= 3), at > 3
            if at > 3:
                records = records[: t + 2]
                records["seen"][-1] = False
                break
        series.append(records)
    return series


@pytest.fixture(scope="module")
def perfect():
    agent = tiny_agent("doom", "mdnrnn.reward_weight=1")
    agent.m, agent.theta = PerfectM(), np.zeros_like(agent.theta)
    return agent, lives_of_perfect_m()


def test_a_memory_is_that_of_the_moment(perfect):
    agent, series = perfect
    m = moments(agent, series, 50)
    for i in range(50):
        at = int(m.h[i, 7])
        found = [
            s
            for s in series
            if at < len(s) - 1 and np.array_equal(s["mu"][at], m.steps["mu"][0, i])
        ]
        (s,) = found  # h counts the steps so far: M has seen this episode, from its first frame
        assert m.h[i, 0] == pytest.approx(s["mu"][at, 0], abs=1e-5)
        assert np.array_equal(m.c[i], m.h[i] + 1)
        assert m.left[i] == len(s) - 1 - at > 0
        rest = min(200, len(s) - 1 - at)
        assert np.array_equal(m.steps[: rest + 1, i], s[at : at + rest + 1])
        assert not m.steps["seen"][rest + 1 :, i].any()
        assert not m.steps["reward"][rest + 1 :, i].any()


def test_a_perfect_dream_has_no_error(perfect):
    agent, series = perfect
    rows = open_loop(agent, series)
    assert [row["steps"] for row in rows] == [5, 20, 50, 100, 200]
    for row in rows:
        # what dreams differ by is off
        assert abs(row["z error"]) < 0.02 and row["no change"] > 0.03 and row["mean frame"] > 0.5
        assert row["dreamt"] == pytest.approx(row["reward"], abs=0.02)
        assert row["r"] > 0.999
        assert row["p(end)"] == pytest.approx(row["ended"], abs=0.01) and row["AUC"] == 1
        assert "C acts" not in row
    assert rows[-1]["ended"] > rows[0]["ended"] > 0


def test_errors_of_the_dream_are_seen(perfect):
    """With other actions than the recorded ones, or rewards twice as high, the figures are others."""
    agent, series = perfect
    wrong = [s.copy() for s in series]
    for s in wrong:
        s["action"] *= -1
        s["reward"] /= 2
    for row in open_loop(agent, wrong)[:3]:
        assert row["z error"] > 0.1 and row["dreamt"] > 1.3 * row["reward"] and row["r"] < 0.99


def test_c_acts_from_the_same_moments(perfect):
    agent, series = perfect
    row = open_loop(agent, series, closed=True)[1]
    m = moments(agent, series, 256)
    whole = (m.left >= 20) | m.steps["done"][:20].any(axis=0)
    # theta is 0: C does nothing, and z[0] stays
    stands = np.clip(m.steps["mu"][0, :, 0] / 4, 0, 1)[whole]
    assert row["C acts"] == pytest.approx(20 * stands.mean(), rel=0.01)


def test_what_m_has_no_head_for_is_left_out():
    agent = tiny_agent("carracing", "mdnrnn.reward_weight=0")
    rng, series = np.random.default_rng(0), []
    for _ in range(3):
        series.append(np.zeros(30, series_dtype(6, 3)))
        series[-1]["mu"], series[-1]["seen"] = rng.standard_normal((30, 6)), True
    rows = open_loop(agent, series, n=40)
    # 50 steps: beyond them all
    assert [set(row) for row in rows] == [{"steps", "n", "z error", "no change", "mean frame"}] * 2
    assert rows[1]["n"] < rows[0]["n"] < 40


# ------------------------------------------------------------------------------------------------------- in reality


def held(action: np.ndarray, rng):
    """The policy of one action."""
    return action.astype(np.float32).copy


def test_left_in_reality_is_left():
    agent, make = tiny_agent("doom", "repeat=4"), partial(held, np.array([-1.0]))
    seeds = episode_seeds("check", 1, 0, 98)
    (episode,), env = recorded(agent, make, seeds), Environment("doom", repeat=4)
    env.reset(seed=int(seeds[0]))
    rewards, over = [], False
    while not over:
        _, reward, terminated, truncated, _ = env.step(np.array([-1], np.float32))
        over = terminated or truncated
        rewards.append(reward)
    assert episode["reward"][:-1].tolist() == rewards and (episode["action"][:-1] == -1).all()
    env.close()


def test_rewards_are_those_that_m_learns():
    brakes = partial(held, np.array([0, -1.0, 1]))
    (episode,) = recorded(tiny_agent("carracing", "repeat=50"), brakes, np.arange(1))
    assert len(episode) == 21
    # the tiles it stands on
    assert episode["reward"][0] >= 1 and not episode["reward"][1:].any()


def test_what_the_car_knows():
    env = Environment("carracing")
    env.reset(seed=3)
    game = env.game
    start = game.truth()
    assert start["speed"] == 0 and abs(start["angle"]) < 0.05 and abs(start["distance"]) < 0.5
    beta = game.track[0][1]
    game.car.hull.position += 2 * np.cos(beta), 2 * np.sin(beta)  # to the right
    game.car.hull.angle -= 0.3  # a turn to the right
    game.car.hull.linearVelocity = (3, 4)
    moved = game.truth()
    assert moved["distance"] == pytest.approx(start["distance"] + 2, abs=0.1)
    assert moved["angle"] == pytest.approx(start["angle"] + 0.3, abs=0.01)
    assert moved["speed"] == pytest.approx(5)
    env.close()


def made_up(agent, n: int = 2, steps: int = 60) -> list[np.ndarray]:
    """Series of noise, in place of reality."""
    rng = np.random.default_rng(0)
    series = np.zeros((n, steps + 1), series_dtype(agent.m.z_size, agent.m.action_size))
    series["mu"] = rng.standard_normal(series["mu"].shape)
    series["action"] = rng.uniform(-1, 1, series["action"].shape)
    series["reward"] = 1
    series["seen"] = True
    series["done"][:, -2] = True
    return [*series]


def test_lives_of_the_same_policies_in_both_worlds():
    agent = tiny_agent()
    policies = {"left": lambda rng: partial(np.full, 1, -1.0), "C": None}
    real = {"left": made_up(agent), "C": made_up(agent, 2, 9)}
    found = dict(lives(agent, policies, real, np.arange(2), [0.5, 1.0]))
    assert list(found) == [(policy, tau) for policy in policies for tau in (REALITY, 0.5, 1)]
    for returns, lengths in found.values():
        assert returns.shape == lengths.shape == (2,)
        assert (lengths > 0).all() and (lengths <= 2100).all()
        assert returns == pytest.approx(lengths)  # Take Cover: 1 per step, in the dream too
    assert found["left", REALITY][1].tolist() == [60, 60]
    assert found["C", REALITY][1].tolist() == [9, 9]


def test_tables(monkeypatch, capsys):
    """Five tables with their legends, and a verdict."""
    monkeypatch.setattr("wm_numpy.lab.judge.recorded", lambda agent, policy, seeds: made_up(agent))
    games = [Replay({}, [{}] * 9, *np.ones((2, 1, 3, 16)), np.zeros((1, 3, 16), bool))] * 2
    monkeypatch.setattr("wm_numpy.lab.probes.replays", lambda agent, series, seeds: games)
    facts = [{"fact": "bearing", "measure": "R2", "mu": 0.75, "z": 0.5}]
    monkeypatch.setattr("wm_numpy.lab.probes.facts", lambda games: facts)
    found = judge(tiny_agent(), 2, [1.0])
    text = capsys.readouterr().out
    steps, loops, plans, facts, whole, words = (b.splitlines() for b in text.split("\n\n"))
    assert [line[2:14].strip() for line in steps[4:]] == ["nll", "gaussian"]
    assert [line.split()[0] for line in steps[2:4]] == ["collecting", "C"]
    assert [line[2:26].split()[-1] for line in loops[2:8]] == ["5", "20", "50"] * 2
    assert loops[8].split()[:2] == ["z", "error"] and "C acts" in loops[1]
    assert len(loops) == 8 + 10 and len(plans) == 2 + 5 + 5  # each with its legend
    assert facts[2].split() == ["bearing", "R2", "0.750", "0.500"]
    assert [line[2:19].strip() for line in whole[2:]] == [
        p for p in ("collecting policy", "blind baseline", "C") for _ in ("reality", "dream")
    ]
    assert words[0] == "verdict" and len(words) == 7
    assert found.facts[0]["mu"] == 0.75 and len(found.returns) == 6


def test_verdict():
    """By hand: a dream that pays 735 where reality paid 419, better than both baselines for 20 steps."""
    rows = [
        {"steps": k, "z error": e, "no change": 0.8, "mean frame": 0.5, "C acts": c, "reward": 419}
        for k, e, c in ((5, 0.1, 0), (20, 0.4, 0), (50, 0.6, 0), (100, 0.4, 735))
    ]
    real = {
        "C": [900.0, 910, 890],
        "blind baseline": [905.0, 905, 895],
        "collecting policy": [300.0, 320, 310],
    }
    whole = {(name, REALITY): np.array(x) for name, x in real.items()}
    whole["C", 1.0] = np.array([450.0, 450, 450])
    found = Findings({"C": {"nll": 1.0, "gaussian": 1.25}}, {"C": rows}, [], [], whole)
    told = verdict(found, "frames survived")
    assert "0.25 nats per dimension better" in told[0] and told[1].endswith("for 20 steps.")
    assert told[2].startswith("100 steps") and "paid C 735 and reality 419" in told[2]
    assert "kinder than reality by 75 %" in told[2] and "harsher by 50 %" in told[3]
    assert "1.67 +- 3.33 less than the blind baseline, too few games" in told[4]
    assert told[5].startswith("In reality C gets 590 +- 5.77 more than the coll")
    rows[0]["z error"] = 0.9
    assert verdict(found, "frames survived")[1].endswith("at no horizon.")
    assert kindness(105, 100) == "about right (+5 %)" and kindness(1, 0) == "reality paid nothing"
