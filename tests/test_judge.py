"""M judged as a model: the figures on outputs that are known, the lives of policies in both worlds."""

from types import SimpleNamespace

import numpy as np
import pytest

from tests.conftest import tiny_agent
from wm_numpy.envs import make_env
from wm_numpy.experiment import episode_seeds
from wm_numpy.judge import judge, survival, table


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
    answers = {id(b): {"done_logit": logit, "reward": b["reward"] + 0.5} for b, logit in zip(data, logits, strict=True)}
    m = SimpleNamespace(loss_and_grad=lambda b: ({"z": 1.25}, None), outputs=lambda b: answers[id(b)])
    figures = judge(SimpleNamespace(m=m), data)
    assert figures["nll"] == pytest.approx(1.25)
    assert figures["gaussian"] == pytest.approx(np.log(2) + 0.5 * np.log(2 * np.pi * np.e), abs=0.03)
    assert figures["recall"] == pytest.approx(2 / 3) and figures["precision"] == pytest.approx(2 / 6)
    assert figures["reward_error"] == pytest.approx(0.5) and figures["reward_sd"] == pytest.approx(1, abs=0.05)


def test_nll_is_per_step_not_per_episode():
    short, long = batches(np.random.default_rng(0), 1, 11)[0], batches(np.random.default_rng(0), 1, 31)[0]
    loss_and_grad = lambda b: ({"z": 1.0 if b is short else 2.0}, None)  # noqa: E731
    m = SimpleNamespace(loss_and_grad=loss_and_grad, outputs=lambda b: {})
    figures = judge(SimpleNamespace(m=m), [short, long])
    assert figures["nll"] == pytest.approx((10 * 1 + 30 * 2) / 40) and set(figures) == {"nll", "gaussian"}


def test_lives_of_the_same_policies_in_both_worlds():
    agent = tiny_agent()
    lives = {(policy, world): (returns, lengths) for policy, world, returns, lengths in survival(agent, 2, [0.5, 1.0])}
    policies = ("collecting", "left", "middle", "right", "to and fro", "C")
    worlds = ("reality", "dream 0.5", "dream 1")
    assert list(lives) == [(policy, world) for policy in policies for world in worlds]
    assert all(r.shape == n.shape == (2,) and (n > 0).all() and (n <= 2100).all() for r, n in lives.values())
    for returns, lengths in lives.values():
        assert returns == pytest.approx(lengths)  # Take Cover: 1 per step, in the dream too


def test_a_fixed_policy_does_what_it_says(monkeypatch):
    seen = {}

    def played(task, seeds, make_policy, repeat):
        policy = make_policy(np.random.default_rng(0))
        seen[len(seen)] = [policy() for _ in range(3)]
        return np.zeros(len(seeds)), np.ones(len(seeds), int)

    monkeypatch.setattr("wm_numpy.judge.blind_rollouts", played)
    list(survival(tiny_agent("carracing"), 2, []))
    for k, steering in ((1, -1), (2, 0), (3, 1)):
        assert np.array_equal(seen[k], np.tile([steering, 0, 0], (3, 1)))


def test_left_in_reality_is_left():
    env, (*_, lengths) = make_env("doom"), next(row for row in survival(tiny_agent(), 2, []) if row[0] == "left")
    for seed, length in zip(episode_seeds("check", 2, 0, 98), lengths, strict=True):
        env.reset(seed=int(seed))
        steps, over = 0, False
        while not over:
            *_, terminated, truncated, _ = env.step(np.array([-1], np.float32))
            steps, over = steps + 1, terminated or truncated
        assert steps == length
    env.close()


def test_table():
    text = table(tiny_agent(), 2, [1.0])
    lines = text.splitlines()
    assert [line.split()[0] for line in lines[1:5]] == ["nll", "gaussian", "recall", "precision"]
    assert [line[:10].strip() for line in lines[6:]] == [
        p for p in ("collecting", "left", "middle", "right", "to and fro", "C") for _ in ("reality", "dream")
    ]
