"""What a Take Cover agent sees and remembers, judged by the game's own positions of the fireballs.

A policy that sees everything plays, with random holds. At each step linear probes (C is one) read off the agent's mu,
z and features where the fireballs are and which will hit. What mu does not hold, V does not see; what [z c h] knows of
fireballs out of view, M remembers.

Coordinates: x to the far wall, y along the player's, who moves along y. The view is 90 degrees wide. A fireball
flies 10 units a tic, 48 tics, to where the player stood when it was thrown, and hits within about 22 units.

Letters: N steps, F features, B fireballs in the air.
"""

from collections.abc import Iterator

import numpy as np

from ..models.agent import Agent
from ..training import parallel
from ..training.episodes import GROUP
from ..training.experiment import episode_seeds
from ..worlds.envs import TakeCover
from ..worlds.world import RealWorld

# The policy that sees everything: tanh of a weight for each fireball, by where it will pass (rows, from left to right)
# and when (columns, in tics), one for the player's place, and the last action. Evolved in the real game by CMA-ES, a
# decision a tic. It lives about 1,100 tics; seeing only what is in view, about as long as a policy that sees nothing.
PASSES = (-120, -60, -35, -18, 0, 18, 35, 60, 120)
TICS = (6, 12, 20, 32)
PLACES = (60, 120, 200, 290, 390, 480, 560, 620)
OF_FIREBALL = np.array([
    [-0.17, 1.11, -0.17, -2.09, 0.27], [-0.32, -0.94, -1.31, -1.20, -0.08],
    [-0.53, -0.47, -1.71, -0.31, -0.37], [-1.83, 0.48, 0.41, 0.06, -0.82],
    [0.04, -0.59, 1.01, -0.02, -0.43], [0.39, 2.19, 0.57, -0.26, 0.59],
    [2.31, 0.25, 0.17, 0.17, 0.38], [0.67, 2.03, 1.21, 1.39, 0.16],
    [0.64, 1.01, 1.30, 1.40, 1.19], [-0.47, -0.93, 0.73, 0.99, -0.11],
])  # fmt: skip
OF_PLACE = np.array([-1.92, -0.45, -0.75, -0.48, -0.23, -0.40, 0.16, 0.95, 1.52])
OF_LAST = 1.24
REACH = 22  # units within which a fireball hits


class Fireballs:
    """Those in the air: ahead, aside (B,) of the player, in units; tics until each passes, and how far aside (B,)."""

    def __init__(self, ahead: np.ndarray, aside: np.ndarray, speed: np.ndarray, drift: np.ndarray):
        self.ahead = ahead
        self.aside = aside
        self.tics = np.maximum(ahead, 0) / -speed
        self.passing = aside + drift * self.tics
        self.in_view = np.abs(aside) <= np.maximum(ahead, 1)

    def pull(self, which: np.ndarray) -> float:
        """What these fireballs, (B,) bool, add to the sum of the policy that sees everything."""
        row = np.searchsorted(PASSES, self.passing[which])
        column = np.searchsorted(TICS, self.tics[which])
        return float(OF_FIREBALL[row, column].sum())

    def hits(self, first: float, last: float, which: np.ndarray) -> bool:
        """Will one of these hit a player who stands still, `first` to `last` tics from now?"""
        near = np.abs(self.passing) < REACH
        return bool((near & which & (self.tics >= first) & (self.tics < last)).any())

    def bearing(self, first: float, last: float) -> float:
        """aside / ahead of the nearest one in view, `first` to `last` units ahead; NaN: there is none."""
        here = np.flatnonzero(self.in_view & (self.ahead >= first) & (self.ahead < last))
        if not len(here):
            return np.nan
        nearest = here[np.argmin(self.ahead[here])]
        return float(self.aside[nearest] / self.ahead[nearest])


class Seeing(TakeCover):
    """Take Cover that tells where its objects are."""

    tells_positions = True

    def fireballs(self) -> tuple[Fireballs, list[int], float]:
        """Those in the air, their numbers in the game, and the player's place y."""
        state = self.game.get_state()
        x, y = state.game_variables
        balls = [o for o in state.objects if o.name == "DoomImpBall"]
        flying = [o for o in balls if o.velocity_x < -1 and o.position_x > x - 16]
        rows = [(o.position_x - x, o.position_y - y, o.velocity_x, o.velocity_y) for o in flying]
        return Fireballs(*np.array(rows).reshape(-1, 4).T), [o.id for o in flying], y


class Watched(RealWorld):
    """A real world that keeps what V says: mu (n, Z)."""

    def _sample(self, mu, logvar, rows):
        if len(rows) == self.num_envs:
            self.mu = np.zeros((self.num_envs, self.m.z_size), np.float32)
        self.mu[rows] = mu
        return super()._sample(mu, logvar, rows)


def figures(agent: Agent, episodes: int) -> Iterator[tuple[str, str, dict[str, float]]]:
    """The question, the measure (R2: 1 is perfect; AUC: 0.5 is a guess), and what each reader gets.

    The readers are linear probes on mu, z and C's features, fitted to three quarters of the episodes and judged on
    the rest. The policy's pull has ceilings: what the fireballs in view now, or those ever in view, tell of it.
    """
    seeds = episode_seeds("check", episodes, 0, 97)
    jobs = [(seeds[i : i + GROUP],) for i in range(0, episodes, GROUP)]
    parts = dict(parallel.processes(_watch, jobs, _set_agent, (agent,)))
    steps = {name: np.concatenate([parts[i][name] for i in range(len(jobs))]) for name in parts[0]}
    _, number = np.unique(steps["episode"], return_inverse=True)
    test = number % 4 == 1
    size = agent.config.vae.z_size
    seen = steps["features"]
    readers = {"mu": steps["mu"], "z": seen[:, :size], agent.config.evolve.features: seen}

    def read(name: str, measure) -> dict[str, float]:
        known = np.isfinite(steps[name])
        target = steps[name][known].astype(float)
        if any(len(np.unique(target[test[known] == part])) < 2 for part in (True, False)):
            return dict.fromkeys(readers, np.nan)  # too few episodes to tell
        return {who: measure(x[known], target, test[known]) for who, x in readers.items()}

    for name in ("bearing, under 250 units", "bearing, 250 to 450 units"):
        yield name, "R2", read(name, r2)
    for name in ("hit within 12 tics", "hit in 12 to 32 tics"):
        for where in (", in view", ", out of view"):
            yield name + where, "AUC", read(name + where, auc)
    ceilings = {}
    for who in ("in view now", "ever in view"):
        ceilings[who] = float(np.corrcoef(steps["pull"], steps[who])[0, 1] ** 2)
    yield "pull of the fireballs on the policy", "R2", read("pull", r2) | ceilings
    for name in ("in view now", "out of view now"):
        yield "pull of those " + name, "R2", read(name, r2)


_agent: Agent | None = None


def _set_agent(agent: Agent) -> None:
    global _agent
    _agent = agent


def _watch(seeds: np.ndarray) -> dict[str, np.ndarray]:
    """Episodes of the policy that sees everything -> what the agent has and what is true, step by step."""
    repeat = _agent.config.repeat
    envs = [Seeing(repeat=repeat) for _ in seeds]
    world = Watched(_agent, envs)
    features, _ = world.reset(seed=seeds)
    rngs = [np.random.default_rng([int(seed), 1]) for seed in seeds]
    action = np.zeros(len(seeds))
    left = np.zeros(len(seeds))  # tics that a hold still lasts
    seen = [set() for _ in seeds]
    rows = []
    while len(world.rows):
        for i in world.rows:
            balls, names, place = envs[i].fireballs()
            seen[i] |= {name for name, visible in zip(names, balls.in_view, strict=True) if visible}
            ever = np.array([name in seen[i] for name in names], bool)
            row = {"episode": seeds[i], "features": features[i].copy(), "mu": world.mu[i].copy()}
            row["pull"] = balls.pull(np.ones(len(names), bool))
            row["in view now"] = balls.pull(balls.in_view)
            row["out of view now"] = balls.pull(~balls.in_view)
            row["ever in view"] = balls.pull(ever)
            for name, first, last in (("under 250 units", 60, 250), ("250 to 450 units", 250, 450)):
                row["bearing, " + name] = balls.bearing(first, last)
            for name, first, last in (("within 12 tics", 0, 12), ("in 12 to 32 tics", 12, 32)):
                row[f"hit {name}, in view"] = balls.hits(first, last, balls.in_view)
                row[f"hit {name}, out of view"] = balls.hits(first, last, ~balls.in_view)
            rows.append(row)
            left[i] -= repeat
            if left[i] <= 0 and rngs[i].random() < 0.02 * repeat:
                left[i] = rngs[i].integers(8, 44)
                action[i] = rngs[i].uniform(-1, 1)
            if left[i] <= 0:
                want = row["pull"] + OF_PLACE[np.searchsorted(PLACES, place)] + OF_LAST * action[i]
                action[i] = np.tanh(want)
        features, *_ = world.advance(action[:, None])
    world.close()
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


# ------------------------------------------------------------------------------------------------------ probes


def _probe(x: np.ndarray, y: np.ndarray, test: np.ndarray, weight: float = 1e-3) -> np.ndarray:
    """Ridge regression of y (N,) on standardised x (N, F), fitted where `test` is False -> predictions where True."""
    x = x.astype(np.float64)
    x = (x - x[~test].mean(axis=0)) / (x[~test].std(axis=0) + 1e-6)
    x = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    known = x[~test]
    normal = known.T @ known / len(known) + weight * np.eye(x.shape[1])
    return x[test] @ np.linalg.solve(normal, known.T @ y[~test] / len(known))


def r2(x: np.ndarray, y: np.ndarray, test: np.ndarray) -> float:
    """Share of the variance of y that a probe explains on the held-out steps."""
    return float(1 - np.mean((_probe(x, y, test) - y[test]) ** 2) / np.var(y[test]))


def auc(x: np.ndarray, y: np.ndarray, test: np.ndarray) -> float:
    """Probability that a probe ranks a step with y = 1 above one with y = 0, on the held-out steps."""
    rank = np.argsort(np.argsort(_probe(x, y, test)))
    positive = y[test] > 0
    n = positive.sum()
    return float((rank[positive].sum() - n * (n - 1) / 2) / (n * (len(positive) - n)))
