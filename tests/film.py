"""The moving picture of the demo in README, from the real page: python -m tests.film .github/play.png

Somebody takes the keys and dies, turns the temperature, sees what the agent looking ahead dreams, drags a number of z,
and sees eight futures. The game runs SLOWER than it does, so that no picture is missed.
"""

import io
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

os.environ["PYGAME_HIDE_SUPPORT_PROMPT"] = "1"
import pygame

from tests.browser import Browser
from tests.test_play import served
from wm_numpy.demo import play
from wm_numpy.lab import pictures

SLOWER, FPS = 5, 6
WIDTH, HEIGHT = 760, 470
CHANGE = 16  # of a colour, that one need not see
SEED = 113  # of a dream in which a player at the wall dies soon


class Film:
    def __init__(self, browser: Browser):
        self.browser = browser
        self.frames = []

    def roll(self, seconds: float, each: str = "") -> None:
        """Seconds of the film; each: a script run before every picture, with `part` from 0 to 1."""
        count = round(seconds * FPS)
        for i in range(count):
            until = time.monotonic() + SLOWER / FPS
            self.browser.script(f"{{ const part = {i / max(1, count - 1)}; {each} }}")
            self.frames.append(self.browser.picture())
            time.sleep(max(0, until - time.monotonic()))

    def write(self, path: Path) -> None:
        """Of what does not change by much, nothing."""
        shown = [pygame.image.load(io.BytesIO(frame), "frame.png") for frame in self.frames]
        rgb = np.stack([pygame.surfarray.array3d(s).swapaxes(0, 1) for s in shown]) & 0xF8
        alpha = np.full((*rgb.shape[:3], 1), 255, np.uint8)
        now = rgb[0].astype(int)
        for frame, seen in zip(rgb[1:], alpha[1:], strict=True):
            seen *= (np.abs(frame - now) > CHANGE).any(axis=-1, keepdims=True)
            now = np.where(seen, frame, now)
        path.write_bytes(pictures.png(np.concatenate([rgb * (alpha > 0), alpha], axis=-1), FPS))
        print(f"{path}: {len(shown)} pictures, {path.stat().st_size / 1e6:.2f} MB")


def slow(step):
    def slower(visit):
        time.sleep((SLOWER - 1) * visit.period)
        step(visit)

    return slower


def main(path: Path) -> None:
    play.Visit.step = slow(play.Visit.step)
    with served("doom") as port, tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Browser(Path(profile), f"http://127.0.0.1:{port}/", WIDTH, HEIGHT)
        dark = [{"name": "prefers-color-scheme", "value": "dark"}]
        browser.call("Emulation.setEmulatedMedia", features=dark)
        browser.call("Emulation.setScrollbarsHidden", hidden=True)
        film = Film(browser)
        drag = "const s = $('hands').querySelector('input'); s.value = 1.4 - 4.4 * part;"
        try:
            browser.wait("last && document.querySelectorAll('#hands input').length == 8", 90)
            browser.script("$('holder').style.cssText = 'height: 27px; overflow: hidden'; 1")
            film.roll(1.3)
            browser.script(f"begin({SEED}, 'dream', 'you')")
            browser.wait(f"last.seed == {SEED} && last.steps > 40", 60)
            browser.key("keyDown", "ArrowLeft")
            while not browser.script("last.over"):
                film.roll(1 / FPS)
            browser.key("keyUp", "ArrowLeft")
            film.roll(1.8)
            browser.script("begin(200, 'dream', 'ahead')")
            browser.wait("last.seed == 200 && last.steps > 5", 60)
            film.roll(2.2, "$('tau').value = 1.15 - 1.05 * Math.sin(4 * part); heat(0);")
            browser.script(
                "change({ tau: 1 }); $('p-tau').open = $('p-player').open = false; strips()"
            )
            browser.wait("document.querySelectorAll('.strip').length")
            browser.script("document.querySelector('aside').scrollTop = 210")
            film.roll(2)
            browser.script(
                "strips(); $('p-ahead').open = false; document.querySelector('aside').scrollTop = 0"
            )
            film.roll(0.6)
            film.roll(2, drag + "s.dispatchEvent(new Event('input'));")
            film.roll(0.6)
            browser.script("$('back').click(); change({ tau: 1.3 }); futures()")
            browser.wait("last.world == 'futures'")
            film.roll(2.4)
        finally:
            browser.close()
    film.write(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
