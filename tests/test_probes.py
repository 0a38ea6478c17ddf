"""Episodes replayed in the game itself: the game's fireballs, linear probes, plans beside what they bring."""

import numpy as np

from tests.conftest import tiny_agent
from wm_numpy.envs.environment import Environment
from wm_numpy.lab import probes
from wm_numpy.lab.fireballs import OpenTakeCover, facts
from wm_numpy.lab.judge import recorded

HITS = [
    f"hit in {tics} tics, {where} view"
    for tics in ("0 to 12", "12 to 32")
    for where in ("in", "out of")
]


def test_where_and_when_fireballs_pass():
    """Three: straight ahead; to the right and drifting left; out of view on the left. All 10 units a tic."""
    balls = np.array([[100.0, 5, -10, 0], [300, 150, -10, -4], [50, -80, -10, 1]])
    told = facts(balls)
    assert told["bearing, 60 to 250 units"] == 0.05 and told["bearing, 250 to 450 units"] == 0.5
    assert [told[name] for name in HITS] == [True, False, False, False]
    balls[1, 3] = -5  # it will pass where the player is, after 30 tics
    assert [facts(balls)[name] for name in HITS] == [True, False, True, False]
    balls[2, 3] = 16  # after 5, from out of view
    assert [facts(balls)[name] for name in HITS] == [True, True, True, False]
    assert np.isnan(facts(balls[:0])["bearing, 60 to 250 units"])


def test_probes_know_what_is_there_and_nothing_else():
    """Numbers by R2, a yes or no by AUC, over the steps at which a fact applies."""
    rng = np.random.default_rng(0)
    x, test = rng.standard_normal((4000, 5)) * 3 + 1, np.arange(4000) % 4 == 1
    y = x @ rng.standard_normal(5) + 2
    noise = rng.standard_normal(4000)
    readers = {"x": x, "noise": noise[:, None]}
    row = probes.probe("y", y, readers, test)
    assert (row["fact"], row["measure"]) == ("y", "R2")
    assert row["x"] > 0.999 and abs(row["noise"]) < 0.02
    row = probes.probe("y > 2", y > 2, readers, test)
    assert row["measure"] == "AUC" and row["x"] > 0.99 and abs(row["noise"] - 0.5) < 0.05
    hidden = np.where(y > 2, y, np.nan)
    hidden[y > 4] = 100 + noise[y > 4]
    assert probes.probe("seen", np.where(y > 4, np.nan, hidden), readers, test)["x"] > 0.999
    assert np.isnan(probes.probe("once", np.arange(4000) == 0.0, readers, test)["x"])


def test_a_car_tells_where_it_is_while_it_drives_along_the_road():
    env = Environment("carracing")
    env.reset(seed=3)
    assert set(env.game.truth()) == {"speed", "angle", "distance"}
    assert np.isfinite([*env.game.truth().values()]).all()
    env.game.car.hull.position += 30, 30  # on the grass
    assert np.isnan([*env.game.truth().values()]).all()
    env.close()


def test_the_game_tells_where_fireballs_are():
    env = OpenTakeCover()
    env.reset(seed=3)
    place = lambda: env.doom.get_state().game_variables[1]  # noqa: E731
    start, alone = place(), []
    for t in range(150):
        *_, terminated, _, _ = env.step([False, True])
        if terminated:
            break
        balls, now = env.fireballs(), place()
        if len(balls) == 1:
            x, y, speed, drift = balls[0]
            alone.append((t, x, y - drift * max(x, 0) / speed + now))
    env.close()
    assert now < start - 100  # to the right is down the y axis
    step = np.diff(alone, axis=0)
    same = (step[:, 0] == 1) & (step[:, 1] < 0)  # the same one, a tic later
    assert same.sum() > 20
    assert (step[same, 1] < -5).all() and (step[same, 1] >= -10.1).all()
    assert (np.abs(step[same, 2]) < 2).all()  # it flies straight


def test_replays_of_a_tiny_agent():
    """What is replayed is the recorded episode; plans bring what the game then brings."""
    agent = tiny_agent("doom", "repeat=4")
    seeds = np.arange(3, 5)
    series = recorded(agent, None, seeds)
    games = probes.replays(agent, series, seeds)
    for game, s in zip(games, series, strict=True):
        assert len(game.truth) == len(s) - 1
        assert np.array_equal(game.readers["mu"], s["mu"][:-1])
        assert list(game.readers) == ["mu", "z", "zch"]
        assert all(len(x) == len(s) - 1 for x in game.readers.values())
        assert game.readers["zch"].shape[1] == 6 + 8 + 8
        assert np.array_equal(game.readers["zch"][:, :6], game.readers["z"])
        assert not game.readers["zch"][0, 6:].any() and game.readers["zch"][1, 6:].all()
        T = probes.STEPS[-1]
        assert game.dreamt.shape == game.true.shape == game.ended.shape == (len(game.true), 3, T)
        assert (np.diff(game.ended.astype(int), axis=2) >= 0).all()
        lived = np.diff(game.true, axis=2, prepend=0)
        assert set(lived[~game.ended].tolist()) == {4.0}  # frames a step
        assert lived[game.ended].max() <= 4 and (lived[game.ended] == 0).any()
    rows = probes.facts(games)
    assert len(rows) == 6 and {row["measure"] for row in rows} == {"R2", "AUC"}
    for row in rows:
        told = [row[reader] for reader in ("mu", "z", "zch")]
        assert all(np.isnan(x) or x <= 1 for x in told)
        assert row["measure"] == "R2" or all(np.isnan(x) or x >= 0 for x in told)


def test_plans_rank_a_perfect_forecast_at_one():
    rng = np.random.default_rng(0)
    ended = rng.random((40, 3, 1)) < np.linspace(0.1, 0.5, 16)
    true = (~ended).cumsum(axis=2).astype(float)
    games = [probes.Replay({}, [], true[i], true[i], ended[i]) for i in np.split(np.arange(40), 2)]
    rows = probes.plans(games)
    assert [row["steps"] for row in rows] == list(probes.STEPS)
    assert all(row["pairs"] == 1 and row["r"] > 0.999 for row in rows)
    assert all(row["dreamt"] == row["reward"] for row in rows)
