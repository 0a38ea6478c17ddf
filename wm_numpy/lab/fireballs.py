"""Take Cover's fireballs by the game's own positions, and a policy that sees them all: what sight.py probes for.

Coordinates: x to the far wall, y along the player's, who moves along y. The view is 90 degrees wide. A fireball
flies 10 units a tic, 48 tics, to where the player stood when it was thrown, and hits within about 22 units.

Letters: B fireballs in the air.
"""

from collections.abc import Sequence

import numpy as np

from ..worlds.doom import TakeCover

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
    """Take Cover that tells where its fireballs are."""

    tells_positions = True
    # How much of the policy's pull those in view now explain, or those ever seen: what sight and memory could reach.
    ceilings = {"pull of all": ("pull of those in view", "pull of those ever seen")}

    def reset(self, **kwargs):
        """As the environment's."""
        self.seen = set()
        return super().reset(**kwargs)

    def fireballs(self) -> tuple[Fireballs, list[int], float]:
        """Those in the air, their numbers in the game, and the player's place y."""
        state = self.doom.get_state()
        x, y = state.game_variables
        balls = [o for o in state.objects if o.name == "DoomImpBall"]
        flying = [o for o in balls if o.velocity_x < -1 and o.position_x > x - 16]
        rows = [(o.position_x - x, o.position_y - y, o.velocity_x, o.velocity_y) for o in flying]
        return Fireballs(*np.array(rows).reshape(-1, 4).T), [o.id for o in flying], y

    def truth(self) -> dict[str, float]:
        """Where the nearest fireball is, what will hit, and how far each kind pulls the policy that sees everything."""
        balls, names, _ = self.fireballs()
        view = balls.in_view
        self.seen |= {name for name, visible in zip(names, view, strict=True) if visible}
        ever = np.array([name in self.seen for name in names], bool)
        facts = {
            "bearing, under 250 units": balls.bearing(60, 250),
            "bearing, 250 to 450 units": balls.bearing(250, 450),
        }
        for name, first, last in (("within 12 tics", 0, 12), ("in 12 to 32 tics", 12, 32)):
            facts[f"hit {name}, in view"] = balls.hits(first, last, view)
            facts[f"hit {name}, out of view"] = balls.hits(first, last, ~view)
        sets = {"all": view | ~view, "those in view": view, "those out of view": ~view}
        return facts | {
            f"pull of {name}": balls.pull(which)
            for name, which in (sets | {"those ever seen": ever}).items()
        }


class SeesAll:
    """The policy that sees everything, in n environments; now and then it holds a random action, to try all."""

    def __init__(self, envs: Sequence, seeds: Sequence[int]):
        self.envs = envs
        self.rngs = [np.random.default_rng([int(seed), 1]) for seed in seeds]
        self.action = np.zeros(len(envs))
        self.left = np.zeros(len(envs))  # tics that a hold still lasts

    def __call__(self, rows: Sequence[int]) -> np.ndarray:
        """The next actions (n, 1); only those of `rows`, who are alive, are new."""
        for i in rows:
            rng, repeat = self.rngs[i], self.envs[i].repeat
            self.left[i] -= repeat
            if self.left[i] <= 0 and rng.random() < 0.02 * repeat:
                self.left[i] = rng.integers(8, 44)
                self.action[i] = rng.uniform(-1, 1)
            if self.left[i] <= 0:
                balls, _, place = self.envs[i].game.fireballs()
                pull = balls.pull(np.ones(len(balls.tics), bool))
                pull += OF_PLACE[np.searchsorted(PLACES, place)] + OF_LAST * self.action[i]
                self.action[i] = np.tanh(pull)
        return self.action[:, None]


Seeing.player = SeesAll
