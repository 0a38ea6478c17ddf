"""The game of carracing.py: CarRacing-v3 of gymnasium, the same physics and pixels, drawn 4 x faster.

Gymnasium draws a 1000 x 800 picture, turns it upside down and shrinks it to 96 x 96. Nine tenths of the time goes into
Python loops over some 800 polygons, of which ten are on screen, and into the score below the crop. Instead, all corners
are placed at once, and only polygons that touch the crop are drawn. Needs Box2D and pygame.
"""

from math import hypot

import numpy as np
import pygame
from gymnasium import spaces
from gymnasium.envs.box2d import car_racing
from gymnasium.envs.box2d.car_racing import GRASS_DIM, PLAYFIELD, SCALE, WINDOW_H, WINDOW_W, ZOOM
from pygame import gfxdraw

from .carracing import TASK

ROWS, COLUMNS = TASK.size  # of 96 x 96; the 12 rows below show speed and score (the authors' crop)
HIDDEN = WINDOW_H // 8  # those 12 rows on the upside-down canvas of 800 rows: its first 100
ROAD = 20 / 3  # from its middle to its edge, in its units
MARGIN = 2  # pixels: an anti-aliased edge reaches one beyond its corners
REACH = hypot(WINDOW_W / 2, WINDOW_H * 3 / 4) + MARGIN  # pixels from the car to the far corner


class CroppedCarRacing(car_racing.CarRacing):
    """Drive round a random track, seen from above.

    Description: gymnasium's continuous CarRacing-v3 with its physics, rewards and ends.
    Action Space: steering -1 to 1, gas and brake 0 to 1: C's a0, (a1 + 1) / 2, max(a2, 0), the paper's map.
    Observation Space: rows 0-83 of gymnasium's 96 x 96 frame (below lie speed and score), pixel for pixel.
    Rewards: -0.1 per frame, +1000 / N for each of the N tiles when first visited; -100 in place of both for leaving.
        info["reward"] is the number of tiles newly visited: what M learns to predict.
    Starting State: at rest on a new random track; the camera zooms in during the first 50 frames.
    Episode End: terminated after the lap or off the field; it does not cut an episode itself.
    """

    deaths = (AssertionError, RuntimeError, SystemError)  # Box2D's
    _tiles = 0  # rewarded before this step
    blind = False  # while true nothing is drawn, and the observation is the last one drawn: half of a step's time

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.observation_space = spaces.Box(0, 255, (ROWS, COLUMNS, 3), np.uint8)
        # One canvas for all frames: a fresh one costs page faults, 0.13 ms per frame.
        self._canvas = pygame.Surface((WINDOW_W, WINDOW_H))
        self._visible = self._canvas.subsurface((0, HIDDEN, WINDOW_W, WINDOW_H - HIDDEN))
        self._narrow = pygame.Surface((COLUMNS, WINDOW_H - HIDDEN))
        self._small = pygame.Surface((COLUMNS, ROWS))

    def reset(self, **kwargs):
        """As gymnasium's."""
        first = super().reset(**kwargs)
        self._tiles = 0  # the first step rewards the one that the car stands on
        return first

    def step(self, action: np.ndarray | None, count: int = 1):
        """As gymnasium's, for `count` frames of which the last is drawn. `reset` calls it with None."""
        total = 0.0
        for k in range(count):
            self.blind = k < count - 1
            crop, reward, terminated, truncated, info = super().step(action)
            total += reward
            if terminated:
                break
        if self.blind:  # it ended before the frame that is drawn
            self.blind = False
            crop = self._render("state_pixels")
        before = self._tiles
        self._tiles = self.tile_visited_count
        return crop, total, terminated, truncated, info | {"reward": self._tiles - before}

    def _create_track(self) -> bool:
        if not super()._create_track():
            return False  # gymnasium tries again
        a, d = PLAYFIELD, GRASS_DIM
        field = [(a, a), (a, -a), (-a, -a), (-a, a)]
        places = [d * i for i in range(-20, 20, 2)]
        grass = [[(x + d, y), (x, y), (x, y + d), (x + d, y + d)] for x in places for y in places]
        # In painting order; colours by reference: a tile changes its colour when the car has touched it.
        ground = [(field, self.bg_color), *((patch, self.grass_color) for patch in grass)]
        polygons, self._colors = zip(*ground, *self.road_poly, strict=True)
        self._x, self._y = np.ascontiguousarray(np.transpose(polygons))  # (corner, polygon)
        return True

    def truth(self) -> dict[str, float]:
        """What frames do not say: speed, angle to the road (radians, right is positive), distance from its middle.

        NaN while the car is not on the road and along it: elsewhere the angle jumps.
        """
        hull = self.car.hull
        track = np.array(self.track)  # (N, 4): alpha, beta, x, y
        offset = np.array(hull.position) - track[:, 2:]
        nearest = np.argmin((offset**2).sum(axis=1))
        beta = track[nearest, 1]
        side = np.array([np.cos(beta), np.sin(beta)])  # of the road, to the right
        angle = (beta - hull.angle + np.pi) % (2 * np.pi) - np.pi
        distance = float(offset[nearest] @ side)
        facts = {"speed": hull.linearVelocity.length, "angle": angle, "distance": distance}
        along = abs(distance) < ROAD and abs(angle) < np.pi / 2
        return facts if along else dict.fromkeys(facts, np.nan)

    def _render(self, mode: str):
        if mode != "state_pixels":
            return super()._render(mode)  # gymnasium's large picture, for people
        if not self.blind:
            self._draw(*self._camera())
            # Shrink sideways, flip, shrink down: 96 columns are flipped, not 1000. 700 rows to 84 is exactly 800 to 96.
            pygame.transform.smoothscale(self._visible, self._narrow.get_size(), self._narrow)
            flipped = pygame.transform.flip(self._narrow, False, True)
            pygame.transform.smoothscale(flipped, self._small.get_size(), self._small)
            self._drawn = pygame.surfarray.array3d(self._small).transpose(1, 0, 2)
        return self._drawn

    def _camera(self) -> tuple[float, tuple[float, float], float]:
        """Zoom, shift (pixels) and angle, in gymnasium's own arithmetic: it zooms in during the first second."""
        position = self.car.hull.position
        angle = -self.car.hull.angle
        zoom = 0.1 * SCALE * max(1 - self.t, 0) + ZOOM * SCALE * min(self.t, 1)
        shift = pygame.math.Vector2(-position[0] * zoom, -position[1] * zoom).rotate_rad(angle)
        return zoom, (WINDOW_W / 2 + shift[0], WINDOW_H / 4 + shift[1]), angle

    def _draw(self, zoom: float, shift: tuple[float, float], angle: float) -> None:
        """Place every corner at once, draw the polygons whose bounding boxes meet the crop, then the car."""
        cos, sin = pygame.math.Vector2(1, 0).rotate_rad(angle)  # with pygame's special angles
        x = (cos * self._x - sin * self._y) * zoom + shift[0]  # (corner, polygon)
        y = (sin * self._x + cos * self._y) * zoom + shift[1]
        seen = (x.max(0) > -MARGIN) & (x.min(0) < WINDOW_W + MARGIN)
        seen &= (y.max(0) > HIDDEN - MARGIN) & (y.min(0) < WINDOW_H + MARGIN)
        covered = max(map(abs, self.car.hull.position)) + REACH / zoom < PLAYFIELD
        seen[0] &= not covered  # the field's polygon takes 0.9 ms, a fill 0.14
        self._canvas.fill(self.bg_color if covered else (0, 0, 0))
        polygons = np.stack([x[:, seen], y[:, seen]]).T.tolist()  # (those seen, corner, 2)
        for i, polygon in zip(seen.nonzero()[0], polygons, strict=True):
            color = [int(c) for c in self._colors[i]]
            gfxdraw.aapolygon(self._canvas, polygon, color)
            gfxdraw.filled_polygon(self._canvas, polygon, color)
        self.car.draw(self._canvas, zoom, shift, angle, draw_particles=False)
