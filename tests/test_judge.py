"""M judged as a model: the figures on outputs that are known, the lives of policies in both worlds."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from tests.conftest import tiny_agent
from wm_numpy.lab.judge import another_game, lives, recorded, replayed, step_by_step, table
from wm_numpy.lab.openloop import moments, open_loop
from wm_numpy.lab.statistics import auc, correlation, r2, ridge
from wm_numpy.lab.verdict import kindness, verdict
from wm_numpy.models.mdnrnn import MDNRNN
from wm_numpy.training.data import discounted, frame_dtype, series_dtype
from wm_numpy.training.episodes import episode_seeds
from wm_numpy.worlds.envs import make_env
from wm_numpy.worlds.policies import fixed_policy


def batches(rng, n: int = 3, steps: int = 400, sd: float = 2.0) -> list[dict]:
    """Made-up episodes whose next z is N(0, sd^2), each over at its last step; that step's z is not counted."""
    done = np.zeros((1, steps), np.float32)
    done[0, -1] = 1
    return [
        {
            "z_next": sd * rng.standard_normal((1, steps, 6)),
            "z_mask": 1 - done,
            "done": done,
            "reward": rng.standard_normal((1, steps)),
        }
        for _ in range(n)
    ]


def test_figures_of_known_outputs():
    """M says "over" at the last step of two episodes of three and at four other steps; its rewards are 0.5 high."""
    data = batches(np.random.default_rng(0))
    logits = [np.full((1, 400), -1.0) for _ in data]
    logits[0][0, -1] = logits[1][0, -1] = 1
    logits[2][0, :4] = 1
    answers = {
        id(b): {"done_logit": logit, "reward": b["reward"] + 0.5}
        for b, logit in zip(data, logits, strict=True)
    }
    m = SimpleNamespace(
        loss_and_grad=lambda b: ({"z": 1.25}, None), outputs=lambda b: answers[id(b)]
    )
    figures = step_by_step(SimpleNamespace(m=m), data)
    assert figures["nll"] == pytest.approx(1.25)
    assert figures["gaussian"] == pytest.approx(
        np.log(2) + 0.5 * np.log(2 * np.pi * np.e), abs=0.03
    )
    assert figures["recall"] == pytest.approx(2 / 3)
    assert figures["precision"] == pytest.approx(2 / 6)
    assert figures["reward_error"] == pytest.approx(0.5)
    assert figures["reward_sd"] == pytest.approx(1, abs=0.05)


def test_nll_is_per_step_not_per_episode():
    short = batches(np.random.default_rng(0), 1, 11)[0]
    long = batches(np.random.default_rng(0), 1, 31)[0]
    loss_and_grad = lambda b: ({"z": 1.0 if b is short else 2.0}, None)  # noqa: E731
    m = SimpleNamespace(loss_and_grad=loss_and_grad, outputs=lambda b: {})
    figures = step_by_step(SimpleNamespace(m=m), [short, long])
    assert figures["nll"] == pytest.approx((10 * 1 + 30 * 2) / 40)
    assert set(figures) == {"nll", "gaussian"}


def test_a_value_that_knows_nothing_and_one_that_knows_all():
    rng, data = np.random.default_rng(0), batches(np.random.default_rng(1))
    for b in data:
        b["value"] = discounted(b["reward"][0], 0.9, ended=True)[None, 1:]
        b["value_mask"] = (np.arange(400) % 2)[None]
    config = SimpleNamespace(mdnrnn=SimpleNamespace(gamma=0.9))

    def figures(value):
        m = SimpleNamespace(
            loss_and_grad=lambda b: ({"z": 1.0}, None), outputs=lambda b: {"value": value(b)}
        )
        return step_by_step(SimpleNamespace(m=m, config=config), data)

    constant = figures(lambda b: np.zeros((1, 400)))
    assert abs(constant["value_r2"]) < 0.05
    # what is not known is not judged
    exact = figures(lambda b: np.where(b["value_mask"], b["value"], 0))
    assert exact["value_r2"] == 1
    noisy = figures(lambda b: b["value"] + rng.standard_normal((1, 400)))
    assert 0.5 < noisy["value_r2"] < 0.9


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
            s for s in series if at < len(s) - 1 and np.array_equal(s["mu"][at], m.latents[0, i])
        ]
        (s,) = found  # h counts the steps so far: M has seen this episode, from its first frame
        assert m.h[i, 0] == pytest.approx(s["mu"][at, 0], abs=1e-5)
        assert np.array_equal(m.c[i], m.h[i] + 1)
        assert m.left[i] == len(s) - 1 - at > 0 and m.ended[i] == s["done"][-2]
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
        assert abs(row["z: M"]) < 0.02 and row["stays"] > 0.03 and row["mean"] > 0.5
        assert row["told"] == pytest.approx(row["reward: true"], abs=0.02)
        assert row["r"] > 0.999
        assert row["odds"] == pytest.approx(row["end: true"], abs=0.01) and row["AUC"] == 1
        assert "C: told" not in row
    assert rows[-1]["end: true"] > rows[0]["end: true"] > 0


def test_errors_of_the_dream_are_seen(perfect):
    """With other actions than the recorded ones, or rewards twice as high, the figures are others."""
    agent, series = perfect
    wrong = [s.copy() for s in series]
    for s in wrong:
        s["action"] *= -1
        s["reward"] /= 2
    for row in open_loop(agent, wrong)[:3]:
        assert row["z: M"] > 0.1 and row["told"] > 1.3 * row["reward: true"] and row["r"] < 0.99


def test_c_acts_from_the_same_moments(perfect):
    agent, series = perfect
    row = open_loop(agent, series, closed=True)[1]
    m = moments(agent, series, 256)
    whole = (m.left >= 20) | (m.ended & (m.left <= 20))
    # theta is 0: C does nothing, and z[0] stays
    stands = np.clip(m.latents[0, :, 0] / 4, 0, 1)[whole]
    assert row["C: told"] == pytest.approx(20 * stands.mean(), rel=0.01)


def test_what_m_has_no_head_for_is_left_out():
    agent = tiny_agent("carracing", "mdnrnn.reward_weight=0")
    rng, series = np.random.default_rng(0), []
    for _ in range(3):
        series.append(np.zeros(30, series_dtype(6, 3)))
        series[-1]["mu"], series[-1]["seen"] = rng.standard_normal((30, 6)), True
    rows = open_loop(agent, series, n=40)
    # 50 steps: beyond them all
    assert [set(row) for row in rows] == [{"steps", "n", "z: M", "stays", "mean"}] * 2
    assert rows[1]["n"] < rows[0]["n"] < 40


# ------------------------------------------------------------------------------------------------------- in reality


def test_left_in_reality_is_left():
    agent, make = tiny_agent("doom", "repeat=4"), partial(fixed_policy, np.array([-1.0]))
    (episode,), env = recorded(agent, make, 1), make_env("doom", repeat=4)
    env.reset(seed=int(episode_seeds("check", 1, 0, 98)[0]))
    rewards, over = [], False
    while not over:
        _, reward, terminated, truncated, _ = env.step(np.array([-1], np.float32))
        over = terminated or truncated
        rewards.append(reward)
    assert episode["reward"][:-1].tolist() == rewards and (episode["action"][:-1] == -1).all()
    env.close()


def test_rewards_are_those_that_m_learns():
    brakes = partial(fixed_policy, np.array([0, -1.0, 1]))
    (episode,) = recorded(tiny_agent("carracing", "repeat=50"), brakes, 1)
    assert len(episode) == 21
    # the tiles it stands on
    assert episode["reward"][0] >= 1 and not episode["reward"][1:].any()


def test_what_the_car_knows():
    env = make_env("carracing")
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


def made_up(agent, n: int = 2, steps: int = 60):
    """Episodes of noise, in place of reality."""
    rng = np.random.default_rng(0)
    for _ in range(n):
        episode = np.zeros(steps + 1, frame_dtype(agent.m.action_size))
        episode["frame"] = rng.integers(0, 256, episode["frame"].shape)
        episode["action"] = rng.uniform(-1, 1, episode["action"].shape)
        episode["reward"] = 1
        episode["seen"] = True
        episode["done"][-2] = True
        yield episode


@pytest.fixture
def no_reality(monkeypatch):
    monkeypatch.setattr(
        "wm_numpy.lab.judge.recorded", lambda agent, policy, n, key=0: made_up(agent, n)
    )


def test_lives_of_the_same_policies_in_both_worlds(no_reality):
    agent = tiny_agent()
    of_c = [s["reward"][:, None] for s in made_up(agent, 2, 9)]
    real = {"C": [np.rec.fromarrays([x[:, 0]], names="reward") for x in of_c]}
    found = {
        (policy, world): (returns, lengths)
        for policy, world, returns, lengths in lives(agent, 2, [0.5, 1.0], real)
    }
    policies = ("collecting", "left", "middle", "right", "to and fro", "C")
    worlds = ("reality", "dream at tau 0.5", "dream at tau 1")
    assert list(found) == [(policy, world) for policy in policies for world in worlds]
    for returns, lengths in found.values():
        assert returns.shape == lengths.shape == (2,)
        assert (lengths > 0).all() and (lengths <= 2100).all()
        assert returns == pytest.approx(lengths)  # Take Cover: 1 per step, in the dream too
    assert found["left", "reality"][1].tolist() == [60, 60]
    assert found["C", "reality"][1].tolist() == [9, 9]


def test_table(no_reality, monkeypatch):
    facts = [("bearing, near", "R2", {"mu": 0.75, "z": 0.5})]
    monkeypatch.setattr("wm_numpy.lab.sight.figures", lambda agent, episodes: facts)
    plans = [{"steps": 4, "n": 9, "true": 3.0, "told": 2.5, "r": 0.5, "auc": 0.75, "pairs": 0.625}]
    monkeypatch.setattr("wm_numpy.lab.foresight.figures", lambda agent, episodes: plans)
    text = "\n".join(table(tiny_agent("doom", "mdnrnn.value_weight=1"), 2, [1.0]))
    blocks = [block.splitlines() for block in text.split("\n\n")]
    assert [line.split()[0] for line in blocks[0][2:]] == [
        "nll", "gaussian", "recall", "precision", "value_r2"
    ]  # fmt: skip
    assert all(len(line.split()) > 3 for line in blocks[0][2:])  # each with its legend
    assert [line.split()[0] for line in blocks[1][2:5]] == ["5", "20", "50"]
    assert "C: told" not in blocks[1][1]
    assert blocks[2][0].endswith("episodes of C") and "C: told" in blocks[3][1]
    assert "AUC" in blocks[3][1]
    assert [line.split("  ")[1] for line in blocks[3][5:]][:2] == ["z: M", "stays"]
    assert blocks[4][2].split() == ["bearing,", "near", "R2", "0.750", "0.500"]
    assert blocks[5][2].split()[:2] == ["4", "9"]
    assert len(blocks[5]) == 8  # each with its legend
    assert [line[2:14].strip() for line in blocks[6][2:]] == [
        p
        for p in ("collecting", "left", "middle", "right", "to and fro", "C")
        for _ in ("reality", "dream")
    ]
    assert blocks[7][0] == "verdict" and len(blocks[7]) == 7


def test_verdict():
    """By hand: a dream that pays 735 where 419 came, nearer than both baselines for 20 steps."""
    rows = [
        {"steps": k, "z: M": error, "stays": 0.8, "mean": 0.5, "C: told": told, "reward: true": 419}
        for k, error, told in ((5, 0.1, 0), (20, 0.4, 0), (50, 0.6, 0), (100, 0.4, 735))
    ]
    found = [("steps", "C", {"nll": 1.0, "gaussian": 1.25}), ("loop", "C", rows)]
    lives = {
        "C": [900.0, 910, 890],
        "to and fro": [905.0, 905, 895],
        "collecting": [300.0, 320, 310],
    }
    found += [("life", (name, "reality"), (np.array(x), None)) for name, x in lives.items()]
    found.append(("life", ("C", "dream at tau 1"), (np.array([450.0, 450, 450]), None)))
    told = verdict("doom", found)
    assert "0.25 nats a dimension better" in told[0] and told[1].endswith("for 20 steps.")
    assert "told 735 where 419 came, 100 steps after" in told[2]
    assert "kinder than reality by 75 %" in told[2] and "harsher by 50 %" in told[3]
    assert "-1.67 +- 3.33, not to be told apart" in told[4] and "better" in told[5]
    assert kindness(105, 100) == "about right (+5 %)" and kindness(1, 0) == "reality paid nothing"


def test_another_game(monkeypatch):
    """The actions of one recorded life, again and again, and another life's with another generator."""
    lives = [np.full((2, 1), x) + [[0], [0.1]] for x in range(50)]
    play = replayed(lives, np.random.default_rng(0))
    first = [play().item() for _ in range(4)]
    assert first[:2] == first[2:] and first[1] == first[0] + 0.1
    assert replayed(lives, np.random.default_rng(1))().item() != first[0]
    monkeypatch.setattr(
        "wm_numpy.lab.judge.recorded", lambda agent, policy, n, key: made_up(agent, n)
    )
    returns = another_game(tiny_agent("doom", "repeat=4"), 2)
    assert returns.shape == (2,) and (returns > 4).all()
