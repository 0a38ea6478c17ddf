"""Take Cover's fireballs by the game's own positions: the facts that sight.py probes for.

Coordinates: x to the far wall, y along the player's, who moves along y. The view is 90 degrees wide. A fireball
flies 10 units a tic, 48 tics, to where the player stood when it was thrown, and hits within about 22 units.

Letters: B fireballs in the air.
"""

import numpy as np

from ..worlds.doom import TakeCover

REACH = 22  # units within which a fireball hits


class Fireballs:
    """Those in the air: ahead, aside (B,) of the player, in units; tics until each passes, and how far aside (B,)."""

    def __init__(self, ahead: np.ndarray, aside: np.ndarray, speed: np.ndarray, drift: np.ndarray):
        self.ahead = ahead
        self.aside = aside
        self.tics = np.maximum(ahead, 0) / -speed
        self.passing = aside + drift * self.tics
        self.in_view = np.abs(aside) <= np.maximum(ahead, 1)

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

    def fireballs(self) -> Fireballs:
        """Those in the air."""
        state = self.doom.get_state()
        x, y = state.game_variables
        balls = [o for o in state.objects if o.name == "DoomImpBall"]
        flying = [o for o in balls if o.velocity_x < -1 and o.position_x > x - 16]
        rows = [(o.position_x - x, o.position_y - y, o.velocity_x, o.velocity_y) for o in flying]
        return Fireballs(*np.array(rows).reshape(-1, 4).T)

    def truth(self) -> dict[str, float]:
        """Where the nearest fireball is, and whether one will hit, by when and by whether it is in view."""
        balls = self.fireballs()
        facts = {
            "bearing, under 250 units": balls.bearing(60, 250),
            "bearing, 250 to 450 units": balls.bearing(250, 450),
        }
        for name, first, last in (("within 12 tics", 0, 12), ("in 12 to 32 tics", 12, 32)):
            facts[f"hit {name}, in view"] = balls.hits(first, last, balls.in_view)
            facts[f"hit {name}, out of view"] = balls.hits(first, last, ~balls.in_view)
        return facts
