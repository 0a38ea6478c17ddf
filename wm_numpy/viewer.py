"""Looking at an agent: in the real environment, or in the dream, in a window or as a strip of pictures.

And the demo of the paper: play inside the dream yourself (`--play`).
"""

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from . import agent as agents
from . import pictures
from .agent import Agent
from .envs import make_env
from .pictures import pygame
from .worlds import Dream, RealWorld, World

COLUMNS, EVERY = 10, 6  # a strip shows so many pictures, one of every so many steps
FIRST = {"carracing": 60, "doom": 100}  # step that a strip begins at: CarRacing zooms in, monsters come one by one

Stream = Iterator[tuple[dict[str, np.ndarray], float, int]]  # of one episode: pictures by name, return so far, step


class NoDisplay(RuntimeError):
    """There is no screen to open a window on."""


def to_picture(image: np.ndarray) -> np.ndarray:
    """Floats in [0, 1] -> uint8."""
    return np.round(image * 255).astype(np.uint8)


def episode(world: World, act: Callable, seed: int, reality: Callable | None = None) -> Stream:
    """One episode in a world of one environment: z decoded, beside what reality() gives."""
    features, _ = world.reset(seed=seed)
    total, size = 0.0, world.agent.config.vae.z_size
    while True:
        decoded = to_picture(world.agent.v.decode(features[:, :size])[0])
        yield {"reality": reality(), "V's view": decoded} if reality else {"dream": decoded}, total, world.steps
        if not len(world.rows):
            return
        features, reward, *_ = world.step(act(features))
        total += reward[0]


def dream_pictures(agent: Agent, seed: int, tau: float | None = None, act: Callable | None = None) -> Stream:
    """An episode inside M."""
    return episode(Dream(agent, 1, tau, horizon=0), act or agent.controller(), seed)


def real_pictures(agent: Agent, seed: int, large: bool = False) -> Stream:
    """An episode of the real environment, and what V keeps of it."""
    env = make_env(agent.config.task, render_mode="rgb_array" if large else None)
    try:
        reality = env.render if large else lambda: env.frame
        yield from episode(RealWorld(agent, [env]), agent.controller(), seed, reality)
    finally:
        env.close()


def strip(stream: Stream, agent: Agent) -> tuple[dict[str, list[np.ndarray]], list[str]]:
    """Some steps of a stream -> rows of pictures by name, captions: what pictures.strips takes."""
    first, span = FIRST[agent.config.task], (COLUMNS - 1) * EVERY + 1
    shown = list(itertools.islice(stream, first + span))
    shown = shown[max(0, min(first, len(shown) - span)) :: EVERY]  # of a short episode its end
    rows = {name: [images[name] for images, _, _ in shown] for name in shown[0][0]}
    return rows, [f"step {step}" for _, _, step in shown]


def watch(run: str, seed: int = 0, png: Path | None = None) -> None:
    """The agent in the real environment, and beside each frame what V keeps of it; in a window or as a PNG."""
    agent = agents.load(run)
    _show(agent, lambda n: real_pictures(agent, seed + n, large=png is None), "reality | V's view", 35, png)


def dream(run: str, seed: int = 0, png: Path | None = None, tau: float | None = None, play: bool = False) -> None:
    """The agent inside M's dream; or you, by the arrow keys, in a window."""
    agent = agents.load(run)
    tau = agent.config.evolve.tau if tau is None else tau
    title = f"a dream at tau {tau:g}" + (", arrow keys act" if play else "")
    act = partial(_keys, agent.m.action_size) if play and png is None else None
    _show(agent, lambda n: dream_pictures(agent, seed + n, tau, act), title, 30, png)


def _keys(size: int, features: np.ndarray) -> np.ndarray:
    """An action (1, A) from the keyboard: left and right are the first; up and down CarRacing's gas and brake."""
    down = pygame.key.get_pressed()
    side = float(down[pygame.K_RIGHT]) - float(down[pygame.K_LEFT])
    return np.array([[side, 2.0 * down[pygame.K_UP] - 1, float(down[pygame.K_DOWN])][:size]], np.float32)


def _show(agent: Agent, stream: Callable[[int], Stream], title: str, rate: int, png: Path | None) -> None:
    """A strip of stream(0) as PNG; or a window that plays stream(0), stream(1), ... until it is closed."""
    if png is not None:
        return pictures.save(pictures.strips(*strip(stream(0), agent)), png)
    try:
        pygame.display.init()
        if pygame.display.get_driver() in ("offscreen", "dummy"):  # SDL's way out where there is no screen
            raise pygame.error("there is no display")
        window = pygame.display.set_mode((520, 520))
    except pygame.error as error:
        raise NoDisplay(f"no window can be opened ({error}): use --png FILE for a strip of pictures") from None
    pygame.display.set_caption(f"{agent.config.task}: {title}")
    clock = pygame.time.Clock()
    try:
        for n in itertools.count():
            for images, total, step in stream(n):
                if any(e.type == pygame.QUIT or e.dict.get("key") == pygame.K_ESCAPE for e in pygame.event.get()):
                    return
                shown = [pictures.surface(image, max(1, 512 // len(image))) for image in images.values()]
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
