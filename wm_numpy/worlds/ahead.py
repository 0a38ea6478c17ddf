"""Look ahead: before it acts, the agent dreams what other actions would lead to (beyond the paper).

Its own action is C's or, with `go_on`, the one of the step before. A plan replaces that action for some steps and
leaves the rest to C. All plans of an episode meet the same random numbers, so they differ only by what they do. A plan
is worth the rewards that its dreams bring, each weighted by the probability of being alive. The agent departs from its
own action only where a plan is worth more by a margin: a smaller difference is mostly M's error, and an agent that
keeps changing its mind gets nowhere.

Letters: n environments alive, K plans, E dreams of each, T steps of a dream, A action.
"""

from collections.abc import Callable

import numpy as np

from ..models.agent import Agent
from ..settings.config import AheadConfig
from .world import Dream, World

OTHERS = np.array([[0, 1], [-1, 1], [-1, 0]])  # than -1, 0, 1


class LookAhead:
    """An actor in a world: features (n, F) -> actions (n, A), as a Controller; the seeds decide its dreams.

    act: C, features -> actions, one candidate for all rows; seeds: those that the world's environments are reset with.
    """

    def __init__(self, world: World, act: Callable, seeds: np.ndarray):
        self.world, self.act = world, act
        self.seeds = np.asarray(seeds, np.int64) % 2**31
        self.settings = world.agent.config.ahead
        self.last = None  # the actions of the step before
        # The latest decision, of those alive: the plans' first actions (n, K, A), what they are worth (n, K), which was
        # chosen (n,), and a dream of each, z (T, n, K, Z). Plan 0 is the agent's own action.
        self.decision = None

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """The actions; those of environments that have ended mean nothing."""
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
        """The agent's own actions (n, A) -> of the plans: first actions, worth, dreams, as in `decision`."""
        c = self.settings
        hold, lengths = c.horizon, [c.horizon]
        if not c.go_on:  # C goes on, after one of its own actions or some steps of another
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
    """Dream every plan c.samples times, from a world's moment and with the odds of an end that C was evolved with.

    first (n, K, A), hold (K,): the plans; act: C, for the steps after; seeds (n,): of the episodes.
    -> mean reward of each step (T, n, K); z of each plan's first dream (T, n, K, Z)
    """
    n, K, A = first.shape
    E = c.samples
    z, state, steps = moment
    z, *state = (np.repeat(x, K * E, axis=0) for x in (z, *state))  # (n * K * E, ...)
    held = np.repeat(first.reshape(n * K, A), E, axis=0)
    hold = np.tile(np.repeat(hold, E), n)[:, None]
    # one for each environment, step and dream: the plans share it
    seeds = (seeds << 31) + steps * E
    seeds = np.repeat(seeds[:, None] + np.arange(E), K, axis=0).ravel()
    settings = {"horizon": steps + c.horizon, "odds": agent.config.evolve.odds}
    start = z, tuple(state), steps
    dream = Dream(agent, n * K * E, ending="weighted", start=start, **settings)
    features, _ = dream.reset(seed=seeds)
    rewards, seen = [], []
    for t in range(c.horizon):
        features, reward, *_ = dream.advance(np.where(t < hold, held, act(features)))
        rewards.append(reward.reshape(n, K, E).mean(axis=2))
        seen.append(features[::E, : z.shape[1]].reshape(n, K, -1).copy())
    return np.array(rewards), np.array(seen)


def plans(own: np.ndarray, hold: int, lengths: list[int], discrete: bool) -> tuple:
    """The agent's own actions (n, A) -> the plans' first actions (n, K, A), the steps that each is held for (K,).

    Its own action for `hold` steps; then every other one for each of `lengths`.
    """
    others = other_choices(own) if discrete else other_numbers(own)
    first = np.concatenate([own[:, None], *[others] * len(lengths)], axis=1)
    return first, np.append(hold, np.repeat(lengths, others.shape[1]))


def other_choices(own: np.ndarray) -> np.ndarray:
    """(n, A) -> the A - 1 discrete actions that are not the largest, one-hot (n, A - 1, A)."""
    A = own.shape[1]
    return np.eye(A)[(own.argmax(axis=1)[:, None] + np.arange(1, A)) % A]


def other_numbers(own: np.ndarray) -> np.ndarray:
    """(n, A) -> each number in turn replaced by the two of -1, 0, 1 in the other thirds of its range (n, 2A, A).

    In Take Cover, if the action is left: stay and right.
    """
    third = np.clip(np.rint(1.5 * own), -1, 1).astype(int)
    A = own.shape[1]
    others = np.repeat(own[:, None], 2 * A, axis=1)
    for a in range(A):
        others[:, 2 * a : 2 * a + 2, a] = OTHERS[third[:, a] + 1]
    return others
