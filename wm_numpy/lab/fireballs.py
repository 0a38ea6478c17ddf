"""Take Cover's fireballs by the game's own positions, which no agent sees: the facts that probes.py looks for.

x leads to the far wall, the player moves along y. A fireball flies 10 units a tic to where the player stood when it
was thrown, and hits within about 22 units. The view is 90 degrees wide. Letters: B fireballs in the air.
"""

import numpy as np

from ..envs.doom import TakeCover

REACH = 22  # units within which a fireball hits


class OpenTakeCover(TakeCover):
    """Take Cover that tells where its fireballs are."""

    tells_positions = True

    def fireballs(self) -> np.ndarray:
        """Those in the air (B, 4): x and y from the player, in units, and their velocity in both, a tic."""
        state = self.doom.get_state()
        x, y = state.game_variables
        balls = [o for o in state.objects if o.name == "DoomImpBall"]
        rows = [(o.position_x - x, o.position_y - y, o.velocity_x, o.velocity_y) for o in balls]
        rows = np.reshape(rows, (-1, 4))
        return rows[(rows[:, 0] > -16) & (rows[:, 2] < -1)]

    def truth(self) -> dict[str, float]:
        """Facts by name; a bearing is NaN where there is none."""
        return facts(self.fireballs())


def facts(fireballs: np.ndarray) -> dict[str, float]:
    """(B, 4) -> y / x of the nearest one in view, and whether one will hit a player who stands still."""
    x, y, speed, drift = fireballs.T
    in_view = np.abs(y) <= np.maximum(x, 1)
    tics = np.maximum(x, 0) / -speed  # until it passes the player
    near = np.abs(y + drift * tics) < REACH
    found = {}
    for first, last in ((60, 250), (250, 450)):
        seen = fireballs[in_view & (x >= first) & (x < last)]
        bearings = (seen[:, 1] / seen[:, 0])[np.argsort(seen[:, 0])]
        found[f"bearing, {first} to {last} units"] = bearings[0] if len(bearings) else np.nan
    for first, last in ((0, 12), (12, 32)):
        hits = near & (tics >= first) & (tics < last)
        found[f"hit in {first} to {last} tics, in view"] = (hits & in_view).any()
        found[f"hit in {first} to {last} tics, out of view"] = (hits & ~in_view).any()
    return found
