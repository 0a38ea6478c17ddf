"""What an agent sees and remembers: the game's fireballs, the probes, and the whole on a tiny agent."""

import numpy as np

from tests.conftest import tiny_agent
from wm_numpy.lab.fireballs import Fireballs, Seeing
from wm_numpy.lab.sight import figures, read
from wm_numpy.worlds.envs import make_env


def balls() -> Fireballs:
    """Three: straight ahead; to the right and drifting left; out of view on the left. All 10 units a tic."""
    ahead = np.array([100.0, 300, 50])
    aside = np.array([5.0, 150, -80])
    drift = np.array([0.0, -4, 1])
    return Fireballs(ahead, aside, np.full(3, -10.0), drift)


def test_where_and_when_fireballs_pass():
    b = balls()
    assert b.tics.tolist() == [10, 30, 5] and b.passing.tolist() == [5, 30, -75]
    assert b.in_view.tolist() == [True, True, False]
    assert b.bearing(60, 250) == 0.05 and b.bearing(250, 450) == 0.5
    assert np.isnan(b.bearing(450, 900))
    every = np.ones(3, bool)
    assert b.hits(0, 12, every) and not b.hits(0, 12, ~b.in_view) and not b.hits(12, 32, every)


def test_probes_know_what_is_there_and_nothing_else():
    """Numbers by R2, odds by AUC, over the steps at which a fact applies."""
    rng = np.random.default_rng(0)
    x, test = rng.standard_normal((4000, 5)) * 3 + 1, np.arange(4000) % 4 == 1
    y = x @ rng.standard_normal(5) + 2
    noise = rng.standard_normal(4000)
    readers = {"x": x, "noise": noise[:, None]}
    name, measure, told = read("y", y, readers, test)
    assert (name, measure) == ("y", "R2") and told["x"] > 0.999 and abs(told["noise"]) < 0.02
    _, measure, told = read("y > 2", (y > 2).astype(float), readers, test)
    assert measure == "AUC" and told["x"] > 0.99 and abs(told["noise"] - 0.5) < 0.05
    hidden = np.where(y > 2, y, np.nan)
    hidden[y > 4] = 100 + noise[y > 4]
    assert read("seen", np.where(y > 4, np.nan, hidden), readers, test)[2]["x"] > 0.999
    assert np.isnan(read("once", np.arange(4000) == 0.0, readers, test)[2]["x"])


def test_a_car_tells_where_it_is_while_it_drives_along_the_road():
    env = make_env("carracing")
    env.reset(seed=3)
    assert set(env.game.truth()) == {"speed", "angle", "distance"}
    assert np.isfinite([*env.game.truth().values()]).all()
    env.game.car.hull.position += 30, 30  # on the grass
    assert np.isnan([*env.game.truth().values()]).all()
    env.close()


def test_the_game_tells_where_fireballs_are():
    env = Seeing()
    env.reset(seed=3)
    place = lambda: env.doom.get_state().game_variables[1]  # noqa: E731
    start, alone = place(), []
    for t in range(150):
        *_, terminated, _, _ = env.step([False, True])
        if terminated:
            break
        b, now = env.fireballs(), place()
        if len(b.ahead) == 1:
            alone.append((t, b.ahead[0], b.passing[0] + now))
    env.close()
    assert now < start - 100  # to the right is down the y axis
    step = np.diff(alone, axis=0)
    same = (step[:, 0] == 1) & (step[:, 1] < 0)  # the same one, a tic later
    assert same.sum() > 20
    assert (step[same, 1] < -5).all() and (step[same, 1] >= -10.1).all()
    assert (np.abs(step[same, 2]) < 2).all()  # it flies straight


def test_figures_of_a_tiny_agent():
    rows = list(figures(tiny_agent("doom", "repeat=4"), 2))
    assert len(rows) == 6 and {measure for _, measure, _ in rows} == {"R2", "AUC"}
    for _, measure, told in rows:
        assert list(told) == ["mu", "z", "zch"]
        assert all(np.isnan(x) or x <= 1 for x in told.values())
        assert measure == "R2" or all(np.isnan(x) or x >= 0 for x in told.values())
