"""Looking at an agent: in the real environment, or in the dream, in a window or as a strip of pictures.

And the demo of the paper: play inside the dream yourself (`--play`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import gymnasium as gym
import numpy as np

from . import agent as agents
from . import pictures
from .agent import Agent
from .envs import make_env
from .pictures import pygame
from .worlds import Dream, RealWorld, World

COLUMNS, EVERY = 10, 6  # a strip shows so many pictures, one of every so many steps
FIRST = {"carracing": 60, "doom": 100}  # step that a strip begins at: CarRacing zooms in, monsters come one by one

Stream = Iterator[tuple[tuple[np.ndarray, ...], float, int]]  # of one episode: pictures, return so far, step


class NoDisplay(RuntimeError):
    """There is no screen to open a window on."""


def to_picture(image: np.ndarray) -> np.ndarray:
    """Floats in [0, 1] -> uint8."""
    return np.round(image * 255).astype(np.uint8)


def episode(world: World, act: Callable, seed: int) -> Iterator[tuple[np.ndarray, float, int]]:
    """Play one episode in a world of one environment -> z (1, Z), return so far, step: at first, then at every step."""
    features, _ = world.reset(seed=seed)
    total, size = 0.0, world.agent.config.vae.z_size
    yield features[:, :size], total, 0
    while len(world.rows):
        features, reward, *_ = world.step(act(features))
        total += reward[0]
        yield features[:, :size], total, world.steps


def dream_pictures(agent: Agent, seed: int, tau: float | None = None, act: Callable | None = None) -> Stream:
    """An episode inside M: z decoded."""
    for z, total, step in episode(Dream(agent, 1, tau, horizon=0), act or agent.controller(), seed):
        yield (to_picture(agent.v.decode(z)[0]),), total, step


class _Kept(gym.ObservationWrapper):
    """Remembers its last frame."""

    def observation(self, frame):
        self.frame = frame
        return frame


def real_pictures(agent: Agent, seed: int, large: bool = False) -> Stream:
    """An episode of the real environment: the frame, and what V keeps of it."""
    env = _Kept(make_env(agent.config.task, render_mode="rgb_array" if large else None))
    try:
        for z, total, step in episode(RealWorld(agent, [env]), agent.controller(), seed):
            yield (env.render() if large else env.frame, to_picture(agent.v.decode(z)[0])), total, step
    finally:
        env.close()


def strip(stream: Stream, agent: Agent, *names: str) -> tuple[list[tuple[str, list[np.ndarray]]], list[str]]:
    """Some steps of a stream -> rows (name, pictures), and captions: what pictures.strips takes."""
    first, span = FIRST[agent.config.task], (COLUMNS - 1) * EVERY + 1
    shown = list(itertools.islice(stream, first + span))
    shown = shown[max(0, min(first, len(shown) - span)) :: EVERY]  # of a short episode its end
    rows = [(name, [images[i] for images, _, _ in shown]) for i, name in enumerate(names)]
    return rows, [f"step {step}" for _, _, step in shown]


def watch(run: str, seed: int = 0, png: Path | None = None) -> None:
    """The agent in the real environment, and beside each frame what V keeps of it."""
    agent = agents.load(run)
    if png is not None:
        pictures.save(pictures.strips(*strip(real_pictures(agent, seed), agent, "reality", "V's view")), png)
    else:
        title = f"{agent.config.task}: reality | V's view"
        _show(lambda n: real_pictures(agent, seed + n, large=True), title, rate=35)


def dream(run: str, seed: int = 0, png: Path | None = None, tau: float | None = None, play: bool = False) -> None:
    """The agent inside M's dream; or you, by the arrow keys."""
    agent = agents.load(run)
    if png is not None:
        pictures.save(pictures.strips(*strip(dream_pictures(agent, seed, tau), agent, "dream")), png)
    else:
        tau = agent.config.evolve.tau if tau is None else tau
        title = f"{agent.config.task}: a dream at tau {tau:g}" + (", arrow keys act" if play else "")
        act = partial(_keys, agent.m.config.action_size) if play else None
        _show(lambda n: dream_pictures(agent, seed + n, tau, act), title, rate=30)


def _keys(size: int, features: np.ndarray) -> np.ndarray:
    """An action (1, A) from the keyboard: left and right are the first; up and down CarRacing's gas and brake."""
    down = pygame.key.get_pressed()
    side = float(down[pygame.K_RIGHT]) - float(down[pygame.K_LEFT])
    return np.array([[side, 2.0 * down[pygame.K_UP] - 1, float(down[pygame.K_DOWN])][:size]], np.float32)


def _show(stream: Callable[[int], Stream], title: str, rate: int) -> None:
    """A window that plays stream(0), stream(1), ... until it is closed."""
    try:
        pygame.display.init()
        if pygame.display.get_driver() in ("offscreen", "dummy"):  # SDL's way out where there is no screen
            raise pygame.error("there is no display")
        window = pygame.display.set_mode((520, 520))
    except pygame.error as error:
        raise NoDisplay(f"no window can be opened ({error}): use --png FILE for a strip of pictures") from None
    pygame.display.set_caption(title)
    clock = pygame.time.Clock()
    try:
        for n in itertools.count():
            for images, total, step in stream(n):
                if any(e.type == pygame.QUIT or e.dict.get("key") == pygame.K_ESCAPE for e in pygame.event.get()):
                    return
                shown = [pictures.surface(image, max(1, 512 // len(image))) for image in images]
                size = (sum(s.get_width() + 4 for s in shown), max(s.get_height() for s in shown) + 28)
                if window.get_size() != size:
                    window = pygame.display.set_mode(size)
                window.fill(pictures.PAPER)
                x = 2
                for s in shown:
                    window.blit(s, (x, 0))
                    x += s.get_width() + 4
                words = f"step {step}   return {total:.0f}   space: again, Esc: end"
                pictures.text(window, words, (8, size[1] - 22), 22)
                pygame.display.flip()
                clock.tick(rate)
                if step > 5 and pygame.key.get_pressed()[pygame.K_SPACE]:
                    break
    finally:
        pygame.display.quit()
