"""What M foretells beside what the replayed game brings."""

import numpy as np

from tests.conftest import tiny_agent
from wm_numpy.lab import foresight


def test_the_truth_is_that_of_the_game():
    agent = tiny_agent("doom", "repeat=4")
    foresight._set_agent(agent)
    told, true, died = foresight._watch(3)
    assert told.shape == true.shape == died.shape == (len(told), 3, foresight.STEPS[-1])
    assert (np.diff(true, axis=2) >= 0).all() and (np.diff(died.astype(int), axis=2) >= 0).all()
    lived = np.diff(true, axis=2, prepend=0)
    assert set(lived[~died].tolist()) == {4.0}  # frames a step
    assert lived[died].max() <= 4 and (lived[died] == 0).any()


def test_figures_rank_a_perfect_forecast_at_one(monkeypatch):
    rng = np.random.default_rng(0)
    died = rng.random((40, 3, 1)) < np.linspace(0.1, 0.5, 16)
    true = (~died).cumsum(axis=2).astype(float)
    halves = [(0, (true[:20], true[:20], died[:20])), (1, (true[20:], true[20:], died[20:]))]
    monkeypatch.setattr(foresight.parallel, "processes", lambda *_: halves)
    rows = foresight.figures(tiny_agent(), 2)
    assert [row["steps"] for row in rows] == list(foresight.STEPS)
    assert all(row["pairs"] == 1 and row["r"] > 0.999 for row in rows)
    assert all(row["told"] == row["true"] for row in rows)
