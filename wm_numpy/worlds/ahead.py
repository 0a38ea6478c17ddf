"""Look ahead: before it acts, the agent dreams what would come of other actions (beyond the paper).

What it would do anyway is C's action, or, where C is not needed, the action of the step before again. A plan changes
that action, holds it for some steps and leaves the rest to C. All plans of an episode meet the same random numbers, so
they differ by what they do. A plan is worth the reward that its dreams bring, each step's weighed by the odds to be
alive still. The agent changes its mind where a plan is worth more by a margin: what M tells apart by less is mostly
its own error, and who hesitates stands still.

Letters: n environments alive, K plans, E dreams of each, A action.
"""

from collections.abc import Callable

import numpy as np

from ..models.agent import Agent
from ..settings.config import AheadConfig
from .world import Dream, World, weighted

OTHERS = np.array([[0, 1], [-1, 1], [-1, 0]])  # than -1, 0, 1


class LookAhead:
    """Foresight in a world: features (n, F) -> actions (n, A), as C's own; the seeds decide its dreams.

    act: C, features -> actions, one candidate for all rows; seeds: what the world's environments are reset with.
    """

    def __init__(self, world: World, act: Callable, seeds: np.ndarray):
        self.world, self.act = world, act
        self.seeds = np.asarray(seeds, np.int64) % 2**31
        self.settings = world.agent.config.ahead
        self.last = None  # actions
        # The latest decision, of those alive: the plans' first actions (n, K, A), what they are worth (n, K), which was
        # chosen (n,), and a dream of each, z (T, n, K, Z). Plan 0 is what the agent would do anyway.
        self.decision = None

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Actions; what environments that have ended get means nothing."""
        c = self.settings
        if self.last is None or not c.go_on:
            self.last = self.act(features)
        rows = self.world.rows
        first, worth, dreams = self.foresee(self.last[rows])
        n = np.arange(len(rows))
        best = worth.argmax(axis=1)
        better = worth[n, best] - worth[:, 0] > c.margin * c.horizon
        self.last[rows[better]] = first[n, best][better]
        self.decision = first, worth, np.where(better, best, 0), dreams
        return self.last.copy()

    def foresee(self, own: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What it would do anyway (n, A) -> of the plans: first actions, worth, dreams, as in `decision`."""
        c = self.settings
        hold, lengths = c.horizon, [c.horizon]
        if not c.go_on:  # C does, after one of its own actions or some steps of another
            hold, lengths = 1, [-(-c.horizon // n) for n in (1, 2, 4)]
        first, hold = plans(own, hold, lengths, self.world.task.discrete)
        agent, moment = self.world.agent, self.world.moment
        seeds = self.seeds[self.world.rows]
        rewards, dreams = imagine(agent, self.act, moment, first, hold, seeds, c)
        return first, rewards.sum(axis=0), dreams


def imagine(
    agent: Agent,
    act: Callable,
    moment: tuple,
    first: np.ndarray,
    hold: np.ndarray,
    seeds: np.ndarray,
    c: AheadConfig,
) -> tuple[np.ndarray, np.ndarray]:
    """Dream every plan c.samples times from a world's moment.

    -> reward of each step, mean of the dreams (T, n, K); z of each plan's first dream (T, n, K, Z)
    first, hold: the plans, (n, K, A) and (K,); act: C, for the steps after; seeds (n,): of the episodes. M's odds of an
    end count as often as in C's evolution.
    """
    n, K, A = first.shape
    E = c.samples
    z, state, steps = moment
    z, *state = (np.repeat(x, K * E, axis=0) for x in (z, *state))
    held = np.repeat(first.reshape(n * K, A), E, axis=0)
    hold = np.tile(np.repeat(hold, E), n)[:, None]
    # one for each environment, step and dream: the plans share it
    seeds = (seeds << 31) + steps * E
    seeds = np.repeat(seeds[:, None] + np.arange(E), K, axis=0).ravel()
    how = {"horizon": steps + c.horizon, "odds": agent.config.evolve.odds, "ending": weighted}
    dream = Dream(agent, n * K * E, start=(z, tuple(state), steps), **how)
    features, _ = dream.reset(seed=seeds)
    rewards, seen = [], []
    for t in range(c.horizon):
        features, reward, *_ = dream.advance(np.where(t < hold, held, act(features)))
        rewards.append(reward.reshape(n, K, E).mean(axis=2))
        seen.append(features[::E, : z.shape[1]].reshape(n, K, -1).copy())
    return np.array(rewards), np.array(seen)


def plans(own: np.ndarray, hold: int, lengths: list[int], discrete: bool) -> tuple:
    """What it would do anyway (n, A) -> the plans' first actions (n, K, A), the steps that each is held for (K,).

    That action, for `hold` steps; then all others for each of `lengths`.
    """
    others = other_choices(own) if discrete else other_numbers(own)
    first = np.concatenate([own[:, None], *[others] * len(lengths)], axis=1)
    return first, np.append(hold, np.repeat(lengths, others.shape[1]))


def other_choices(own: np.ndarray) -> np.ndarray:
    """(n, A) -> the A - 1 discrete actions that are not the largest, one-hot (n, A - 1, A)."""
    A = own.shape[1]
    return np.eye(A)[(own.argmax(axis=1)[:, None] + np.arange(1, A)) % A]


def other_numbers(own: np.ndarray) -> np.ndarray:
    """(n, A) -> the same with each number in turn at the two of -1, 0, 1 in the other thirds of its range (n, 2A, A).

    For Take Cover's left they are stay and right.
    """
    third = np.clip(np.rint(1.5 * own), -1, 1).astype(int)
    A = own.shape[1]
    others = np.repeat(own[:, None], 2 * A, axis=1)
    for a in range(A):
        others[:, 2 * a : 2 * a + 2, a] = OTHERS[third[:, a] + 1]
    return others
