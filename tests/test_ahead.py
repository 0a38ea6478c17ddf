"""Looking ahead: plans, their worth in a hand-made M, and what may not change."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from tests.conftest import tiny_agent, tiny_config
from tests.test_worlds import StubV, Toy
from wm_numpy.demo import play
from wm_numpy.envs.policies import random_policy
from wm_numpy.lab import report
from wm_numpy.models.agent import Agent, load_config, new_vae, read_weights
from wm_numpy.settings.config import SettingError
from wm_numpy.training.data import encoded
from wm_numpy.training.episodes import blind_rollouts, collecting_policy, episode_seeds, evaluate
from wm_numpy.training.experiment import STAGES, Experiment
from wm_numpy.training.log import Log
from wm_numpy.training.runfolder import read_results
from wm_numpy.worlds.ahead import LookAhead, imagine, plans
from wm_numpy.worlds.rollout import rollout
from wm_numpy.worlds.world import RealWorld

AHEAD = "ahead.horizon=5", "ahead.samples=3", "ahead.margin=0"
SEEDS = np.array([7, 4, 9])  # a Toy's seed is its length


def world_of(agent, n: int = 3) -> RealWorld:
    agent.v = StubV(logvar=-1.0)
    return RealWorld(agent, [Toy(agent.m.action_size) for _ in range(n)])


def dying(side: float, *settings: str):
    """An agent whose M predicts death after an action above (side 1) or below zero (side -1), and from nothing else."""
    agent = tiny_agent("doom", *AHEAD, *settings)
    m, H = agent.m, agent.config.mdnrnn.hidden
    m.params.flat[:] = 0
    w = m.params["lstm.w"]  # rows: z, action, restart, h; columns: i, f, o, g
    m.params["lstm.b"][H : 2 * H] = -20  # forgets at once: h tells of the last action alone
    w[m.z_size, 3 * H] = side * 3.0
    m.params["done.w"][0] = 20.0
    m.params["done.b"][0] = -4.0
    return agent


def played(agent, act) -> list:
    """The actions taken in three Toys."""
    world = world_of(agent)
    rollout(world, act(world), SEEDS)
    return [np.ravel(env.actions).tolist() for env in world.envs]


def constant(value: float):
    return lambda features: np.full((len(features), 1), value, np.float32)


def test_plans_change_each_number_of_the_action():
    own = np.array([[0.4, 0.2], [0.1, -1]], np.float32)
    first, hold = plans(own, 1, [8, 4], discrete=False)
    assert hold.tolist() == [1, *[8] * 4, *[4] * 4]
    for action, planned, others in (
        (own[0], first[0], [[-1, 0.2], [0, 0.2], [0.4, -1], [0.4, 1]]),
        (own[1], first[1], [[-1, -1], [1, -1], [0.1, 0], [0.1, 1]]),
    ):
        assert planned.tolist() == [action.tolist(), *2 * np.float32(others).tolist()]


def test_plans_of_discrete_actions_are_all_others():
    own = np.array([[0.1, 0.9, -1], [0.3, 0.2, 0.1]], np.float32)
    first, hold = plans(own, 16, [16], discrete=True)
    assert hold.tolist() == [16] * 3
    assert first[0].argmax(axis=1).tolist() == [1, 2, 0]
    assert first[1, 1:].tolist() == [[0, 1, 0], [0, 0, 1]]


@pytest.mark.parametrize("side", [1.0, -1.0])
def test_it_avoids_what_kills_in_the_dream_and_keeps_the_rest(side):
    agent = dying(side)
    deadly = played(agent, lambda world: LookAhead(world, constant(side), SEEDS))
    assert all(a != side for life in deadly for a in life)
    safe = played(agent, lambda world: LookAhead(world, constant(-side), SEEDS))
    assert all(a == -side for life in safe for a in life)


def test_worth_is_the_reward_until_the_odds_say_dead():
    agent = dying(1.0)
    world = world_of(agent, 1)
    features, _ = world.reset(seed=[9])
    first, worth, _ = LookAhead(world, constant(-1.0), [9]).foresee(constant(-1.0)(features))

    def p(action: float) -> float:
        h = 0.5 * np.tanh(0.5 * np.tanh(3.0 * action))
        return 1 / (1 + np.exp(4 - 20 * h))

    alive = 1 - p(-1.0)
    assert np.isclose(worth[0, 0], sum(alive**t for t in range(1, 6)), rtol=1e-4)
    held = [(a, n) for n in (5, 3, 2) for a in (0.0, 1.0)]
    for told, (a, n) in zip(worth[0, 1:], held, strict=True):
        odds = np.cumprod([1 - p(a if t < n else -1.0) for t in range(5)])
        assert np.isclose(told, odds.sum(), rtol=1e-4)


def test_a_margin_above_all_gains_leaves_c_alone():
    agent = tiny_agent("doom", *AHEAD[:2], "ahead.margin=1e9")
    act = agent.controller()
    assert played(agent, lambda world: LookAhead(world, act, SEEDS)) == played(
        agent, lambda world: act
    )


@pytest.mark.parametrize(("margin", "action"), [(0.85, -1.0), (0.95, 1.0)])
def test_the_margin_is_of_every_step(margin, action):
    """Going on brings 0.55 in five steps, the best plan 5.00: 0.89 a step more."""
    agent = dying(1.0, f"ahead.margin={margin}", "ahead.go_on=true")
    lives = played(agent, lambda world: LookAhead(world, constant(1.0), SEEDS))
    assert {a for life in lives for a in life} == {action}


def test_it_goes_on_as_before_where_no_plan_is_better():
    agent = tiny_agent("doom", *AHEAD[:2], "ahead.margin=1e9", "ahead.go_on=true")
    lives = played(agent, lambda world: LookAhead(world, agent.controller(), SEEDS))
    alone = played(agent, lambda world: agent.controller())
    assert lives == [[life[0]] * len(life) for life in alone]


def test_a_life_depends_on_its_own_seed_alone():
    agent = tiny_agent("doom", *AHEAD)
    together = played(agent, lambda world: LookAhead(world, agent.controller(), SEEDS))
    for life, seed in zip(together, SEEDS, strict=True):
        world = world_of(agent, 1)
        rollout(world, LookAhead(world, agent.controller(), [seed]), np.array([seed]))
        assert np.ravel(world.envs[0].actions).tolist() == life


def test_equal_plans_are_worth_the_same():
    """The same random numbers for all: plans that do the same cannot differ."""
    agent = tiny_agent("doom", *AHEAD)
    world = world_of(agent)
    world.reset(seed=SEEDS)
    first, hold = np.ones((3, 2, 1), np.float32), np.array([1, 5])
    arguments = {"c": agent.config.ahead, "seeds": SEEDS}
    rewards, dreams = imagine(agent, constant(1.0), world.moment, first, hold, **arguments)
    assert rewards.shape == (5, 3, 2) and dreams.shape == (5, 3, 2, agent.m.z_size)
    assert np.allclose(dreams[:, :, 0], dreams[:, :, 1], rtol=1e-5, atol=1e-6)
    assert np.std(dreams[4], axis=0).min() > 0  # every game its own
    assert np.allclose(rewards[:, :, 0], rewards[:, :, 1], rtol=1e-5)
    assert len(np.unique(rewards[1, :, 0])) == 3


def test_rewards_count_where_m_tells_them():
    agent = tiny_agent("carracing", *AHEAD)
    m = agent.m
    m.params.flat[:] = 0
    m.params["lstm.w"][m.z_size + 1, 3 * agent.config.mdnrnn.hidden] = 3.0  # gas
    m.params["reward.w"][0] = 1.0
    world = world_of(agent)
    features, _ = world.reset(seed=SEEDS)
    actions = LookAhead(world, lambda f: np.zeros((len(f), 3), np.float32), SEEDS)(features)
    assert actions.tolist() == [[0, 1, 0]] * 3


def test_settings_that_cannot_be():
    with pytest.raises(SettingError, match="ahead.horizon needs M to foretell"):
        tiny_config("doom", "ahead.horizon=4", "mdnrnn.done_weight=0")
    with pytest.raises(SettingError, match=r"ahead.samples = 0.* is out of range"):
        tiny_config("doom", "ahead.samples=0")


def test_an_agent_that_looks_ahead_is_scored_beside_its_c(doom_run):
    agent = Agent.load(doom_run)
    ahead = replace(agent.config.ahead, horizon=3, samples=2, margin=0.0)
    looking = replace(agent, config=replace(agent.config, ahead=ahead))
    told = evaluate("doom", looking, 3, 0, Log())
    alone = evaluate("doom", agent, 3, 0, Log())
    assert "alone" not in alone and told["alone"]["mean"] == alone["mean"]
    assert told["difference"]["mean"] == pytest.approx(told["mean"] - alone["mean"])
    assert told["difference"]["se"] > 0
    assert evaluate("doom", looking, 3, 0, Log()) == told


# ------------------------------------------------------------------------------------------- more lives for M


def test_a_run_that_looks_ahead_ends_with_both_scores(doom_run, tmp_path):
    """In its table, read back from results.json; the page, where C alone plays, has C's."""
    run = tmp_path / "run"
    shutil.copytree(doom_run, run)
    (run / "results.json").unlink(missing_ok=True)
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"ahead.horizon": 2, "ahead.samples": 1}))
    Experiment(load_config(run), run).run(("evaluate",))
    results = read_results(run / "results.json")
    assert {"alone", "difference"} <= results["agent"].keys()
    table = report.table(run)
    assert "C alone" in table and "Looking ahead adds" in table
    with play.server(run) as server:
        known = server.visit.args[1]["known"]["agent"]
    assert known == results["agent"]  # the page shows both


def test_more_episodes_are_encoded_as_they_are_played(tmp_path):
    """What is kept of one is what encoding its frames would have given; a lost one is played again."""
    settings = tiny_config("doom", "collect.more=3", "collect.min_length=1")
    run = Experiment(settings, tmp_path / "run")
    run.run(STAGES[:3])
    assert len(list((run.folder / "episodes").glob("[0-9]*"))) == 2
    series = sorted(run.series(1).iterdir())
    assert [path.stem for path in series] == [
        "000000",
        "000001",
        *map(str, range(10**6, 10**6 + 3)),
    ]
    kept = np.load(series[3])
    seeds = episode_seeds("collect", 3, settings.seed, 0)
    path = tmp_path / "frames.npy"
    collecting = {"make_policy": collecting_policy(settings), "min_length": 1}
    blind_rollouts("doom", seeds[1:2], paths=[path], **collecting)
    v = new_vae(settings)
    read_weights(run.folder / "vae.npz", v.params)
    again = encoded(np.load(path), run.series_dtype, v.encode)
    assert all(np.allclose(kept[name], again[name], atol=1e-5) for name in kept.dtype.names)
    series[3].unlink()
    run.run(STAGES[:3])
    assert np.array_equal(np.load(series[3]), kept)


def test_more_episodes_need_a_v_that_stays():
    with pytest.raises(
        SettingError, match=r"collect.more keeps no frames.* later.vae.learning_rate=0"
    ):
        tiny_config("doom", "collect.more=3", "rounds=2")


def test_a_third_of_the_collecting_policies_swings():
    """An action and its opposite by turns, each for up to so many steps; the rest as without."""
    swinging = 0
    for seed in range(60):
        policy = random_policy("doom", np.random.default_rng(seed), hold=10, swing=7)
        side = np.array([policy()[0] for _ in range(60)])
        if set(side) == {-1.0, 1.0}:
            swinging += 1
            assert np.diff(np.flatnonzero(np.diff(side))).max() <= 7
    assert 10 < swinging < 30
