"""Looking at an agent: in the real environment, or in the dream, in a window or as a strip of pictures.

And the demo of the paper: play inside the dream yourself (`--play`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from . import agent as agents
from . import pictures
from .agent import Agent
from .envs import make_env
from .worlds import Dream, RealWorld, World

COLUMNS = 10  # pictures of a strip


class NoDisplay(RuntimeError):
    """There is no screen to open a window on."""


def to_picture(image: np.ndarray) -> np.ndarray:
    """Floats in [0, 1] -> uint8."""
    return np.round(image * 255).astype(np.uint8)


def episode(world: World, act: Callable, seed: int) -> Iterator[tuple[np.ndarray, float, int]]:
    """Play one episode in a world of one environment -> z (1, Z), return so far, step, at every step."""
    features, _ = world.reset(seed=seed)
    total, step, over, size = 0.0, 0, False, world.agent.config.vae.z_size
    while True:
        yield features[:, :size], total, step
        if over:
            return
        features, reward, terminated, truncated, _ = world.step(act(features))
        total, step, over = total + reward[0], step + 1, bool(terminated[0] or truncated[0])


def dream_pictures(agent: Agent, seed: int, tau: float | None = None, act: Callable | None = None):
    """An episode inside M -> (picture,), return, step: z decoded."""
    for z, total, step in episode(Dream(agent, 1, tau, horizon=0), act or agent.controller(), seed):
        yield (to_picture(agent.v.decode(z)[0]),), total, step


def real_pictures(agent: Agent, seed: int, large: bool = False):
    """An episode of the real environment -> (frame, what V keeps of it), return, step."""
    env = make_env(agent.config.task, render_mode="rgb_array" if large else None)
    kept = _Frame(env)
    try:
        for z, total, step in episode(RealWorld(agent, [kept]), agent.controller(), seed):
            frame = env.render() if large else kept.frame
            yield (frame, to_picture(agent.v.decode(z)[0])), total, step
    finally:
        env.close()


class _Frame:
    """An environment that remembers its last frame."""

    def __init__(self, env):
        self.env = env

    def reset(self, **kwargs):
        self.frame, info = self.env.reset(**kwargs)
        return self.frame, info

    def step(self, action):
        self.frame, *rest = self.env.step(action)
        return self.frame, *rest


def some(stream: Iterator, agent: Agent, every: int = 6) -> tuple[list[tuple[np.ndarray, ...]], list[str]]:
    """Every so-many-th step of a stream -> COLUMNS lists of pictures, and their captions."""
    first = {"carracing": 60, "doom": 100}[agent.config.task]  # CarRacing zooms in; Doom's monsters come one by one
    span = (COLUMNS - 1) * every + 1
    shown = list(itertools.islice(stream, first + span))
    shown = shown[max(0, min(first, len(shown) - span)) :: every]  # of a short episode its end
    images, captions = zip(*((images, f"step {step}") for images, _, step in shown), strict=True)
    return list(images), list(captions)


def strip(stream: Iterator, agent: Agent, names: tuple[str, ...], path: Path) -> None:
    """Write some steps of a stream as a PNG, a row for each of its pictures."""
    images, captions = some(stream, agent)
    rows = [(name, [picture[i] for picture in images]) for i, name in enumerate(names)]
    pictures.save(pictures.strips(rows, captions), path)


def watch(run: str, seed: int = 0, png: Path | None = None) -> None:
    """The agent in the real environment, and beside each frame what V keeps of it."""
    agent = agents.load(run)
    if png is not None:
        strip(real_pictures(agent, seed), agent, ("reality", "V's view"), png)
        return
    _show(
        lambda n, keys: real_pictures(agent, seed + n, large=True),
        f"{agent.config.task}: reality | V's view",
        35,
    )


def dream(run: str, seed: int = 0, png: Path | None = None, tau: float | None = None, play: bool = False) -> None:
    """The agent inside M's dream; or you, by the arrow keys."""
    agent = agents.load(run)
    if png is not None:
        strip(dream_pictures(agent, seed, tau), agent, ("dream",), png)
        return
    tau = agent.config.evolve.tau if tau is None else tau
    title = f"{agent.config.task}: a dream at tau {tau:g}" + (", arrow keys act" if play else "")
    _show(lambda n, keys: dream_pictures(agent, seed + n, tau, keys if play else None), title, 30)


def _show(stream: Callable, title: str, rate: int) -> None:
    """A window that plays stream(0, keys), stream(1, keys), ... until it is closed."""
    pygame = pictures._pygame()
    try:
        pygame.display.init()
        if pygame.display.get_driver() in ("offscreen", "dummy"):  # SDL's way out where there is no screen
            raise pygame.error("there is no display")
        window = pygame.display.set_mode((520, 520))
    except pygame.error as error:
        raise NoDisplay(f"no window can be opened ({error}): use --png FILE for a strip of pictures") from None
    clock, n = pygame.time.Clock(), 0

    def keys(features: np.ndarray) -> np.ndarray:
        """Left and right are the first action; up and down CarRacing's gas and brake."""
        down = pygame.key.get_pressed()
        side = float(down[pygame.K_RIGHT]) - float(down[pygame.K_LEFT])
        return np.array([[side, 2.0 * down[pygame.K_UP] - 1, float(down[pygame.K_DOWN])]], np.float32)

    try:
        while True:
            for images, total, step in stream(n, keys):
                if _closed(pygame):
                    return
                shown = [pictures.surface(i, max(1, 512 // i.shape[0])) for i in images]
                size = (sum(s.get_width() + 4 for s in shown), max(s.get_height() for s in shown) + 28)
                if window.get_size() != size:
                    window = pygame.display.set_mode(size)
                window.fill(pictures.PAPER)
                x = 2
                for image in shown:
                    window.blit(image, (x, 0))
                    x += image.get_width() + 4
                pictures.text(
                    window,
                    f"step {step}   return {total:.0f}   space: again, Esc: end",
                    (8, size[1] - 22),
                    22,
                )
                pygame.display.set_caption(title)
                pygame.display.flip()
                clock.tick(rate)
                if pygame.key.get_pressed()[pygame.K_SPACE] and step > 5:
                    break
            n += 1
    finally:
        pygame.display.quit()


def _closed(pygame) -> bool:
    return any(
        event.type == pygame.QUIT or (event.type == pygame.KEYDOWN and event.key == pygame.K_ESCAPE)
        for event in pygame.event.get()
    )
