"""Play in M's dream, in the real game, or on from a moment of it, in a browser.

NumPy dreams here; page.html shows pictures and sends keys, over a WebSocket. Orders come as JSON; after every step a
line of JSON and the pictures' bytes go back, deflated.
"""

import json
import os
import sys
import threading
import time
import webbrowser
import zlib
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlencode

import numpy as np

from ..core.files import DataError
from ..lab.film import Life, Recorded, mortal, period
from ..models.agent import Agent, run_folder
from ..settings.tasks import find
from ..training.data import Records, series_dtype
from ..training.experiment import read_results
from ..worlds.envs import EnvironmentDied, make_env
from ..worlds.policies import to_and_fro
from ..worlds.world import Dream, RealWorld, World
from .serve import Server, WebSocket

# What a page may order: a number within limits, one of these words, an action.
LIMITS = {
    "tau": (0.05, 5), "seed": (0, 2**31 - 1), "pause": (0, 1), "step": (1, 1),
    "at": (0, 10**6), "got": (0, 10**9),
}  # fmt: skip
WORDS = {"who": ("you", "C", "blind"), "world": ("dream", "reality", "recorded", "here")}
AHEAD = 8  # pictures sent but not shown yet: how far a slow line may lag behind
ASLEEP = 600  # seconds without a word from the page, after which its place is free again
_opening = threading.Lock()  # ViZDoom has crashed when two engines started at once


class Visit:
    """What one page plays: a life in one of the worlds, its keys held by the visitor, by C or by a blind policy."""

    def __init__(self, agent: Agent, hello: dict, episodes: Records | None, socket: WebSocket):
        self.agent = agent
        self.episodes = episodes
        self.socket = socket
        self.period = hello["period"]
        self.tau = agent.config.evolve.tau
        self.seed = 0
        self.who = "C"
        self.paused = False
        self.sent = self.got = 0
        self.env = self.moment = None
        self.action = np.zeros((1, agent.m.action_size), np.float32)
        self.controller = agent.controller()
        self._send(hello)
        self.begin("dream")

    def run(self) -> None:
        """Play until the visitor leaves."""
        due = 0.0
        try:
            while True:
                still = self.paused or self.life.over or self.sent - self.got > AHEAD
                order = self.socket.receive(ASLEEP if still else due - time.monotonic())
                if order is not None:
                    self.obey(order)
                elif still:
                    self.socket.close()
                else:
                    self.step()
                    due = max(due + self.period, time.monotonic())  # what is late is not caught up
        finally:
            if self.env is not None:
                self.env.close()

    def obey(self, text: str) -> None:
        """Carry out orders of the page, {name: value, ...}; whoever sends anything else is sent away."""
        try:
            orders = read(text, self.agent.m.action_size)
        except ValueError:
            self.socket.refuse("not an order of the page")
        for name, value in orders.items():
            match name:
                case "action":
                    self.action = np.array([value], np.float32)
                case "tau":
                    self.tau = self.life.world.tau = value
                case "seed":
                    self.seed = int(value)
                case "who":
                    self.who = value
                case "pause":
                    self.paused = value == 1
                case "got":
                    self.got = min(value, self.sent)
                case "step":
                    self.step()
                case "at":
                    self.seek(value)
                case "world":
                    self.begin(value)

    def begin(self, name: str) -> None:
        """A new life, or a sentence that says why its world cannot be had."""
        try:
            self.life = Life(self._world(name), self.seed)
        except (ImportError, EnvironmentDied, DataError) as error:
            self.env = None
            return self._send({"says": str(error)})
        self.name = name
        rng = np.random.default_rng(self.seed)
        self.blind = to_and_fro(self.agent.config.task, rng, self.agent.config.repeat)
        self.show()

    def _world(self, name: str) -> World:
        if name == "dream":
            return Dream.as_evolved(self.agent, 1, tau=self.tau, horizon=0)
        if name == "here":  # the moment on the page; while dreaming on from one, that one again
            world = self.life.world
            if self.name != "here" and not self.life.over:
                self.moment = world.moment
            if self.moment is None:
                return self._world("dream")
            how = {"tau": self.tau, "horizon": 0, "memories": 0}
            return Dream.as_evolved(self.agent, 1, start=self.moment, **how)
        if name == "recorded":
            if self.episodes is None:
                raise DataError("No episode is recorded here.")
            return Recorded(self.agent, self.episodes.read(self.seed % len(self.episodes.paths)))
        if self.env is None:
            with _opening:
                self.env = make_env(self.agent.config.task, repeat=self.agent.config.repeat)
        return RealWorld(self.agent, [self.env])

    def step(self) -> None:
        """One step of the life, shown."""
        if self.life.over:
            return
        action = self.action
        if self.who == "C":
            action = self.controller(self.life.features)
        elif self.who == "blind":
            action = self.blind()[None]
        try:
            self.life.step(action)
        except EnvironmentDied as error:
            self.env = None
            self.life.over = "died"
            return self._send({"says": str(error)})
        self.show()

    def seek(self, step: int) -> None:
        """Go to a step of a recorded episode, M led there from its beginning."""
        if self.name == "recorded":
            if step < self.life.steps:
                self.life = Life(self.life.world, self.seed)
            while self.life.steps < step and not self.life.over:
                self.life.step(self.action)
            self.show()

    def show(self) -> None:
        """Send what there is to see."""
        life = self.life
        pictures = life.pictures()
        self.sent += 1
        facts = life.thoughts() | {
            "n": self.sent, "world": self.name, "who": self.who, "tau": self.tau, "seed": self.seed,
            "steps": life.steps, "total": round(life.total, 2), "over": life.over,
            "C": self.controller(life.features)[0].round(3).tolist(),
            "z": life.features[0, : self.agent.config.vae.z_size].round(2).tolist(),
            "pictures": [[name, *picture.shape[:2]] for name, picture in pictures.items()],
        }  # fmt: skip
        self._send(facts, *pictures.values())

    def _send(self, facts: dict, *pictures: np.ndarray) -> None:
        parts = [json.dumps(facts).encode() + b"\n", *(picture.tobytes() for picture in pictures)]
        self.socket.send(zlib.compress(b"".join(parts), 1))


def read(text: str, actions: int) -> dict:
    """The orders in a message; ValueError: one of them is none that the page gives."""

    def within(x, low: float, high: float) -> bool:
        return type(x) in (int, float) and low <= x <= high

    orders = json.loads(text)
    if type(orders) is not dict:
        raise ValueError("not orders")
    for name, value in orders.items():
        if name == "action":
            numbers = value if type(value) is list else []
            good = len(numbers) == actions and all(within(x, -1, 1) for x in numbers)
        elif name in WORDS:
            good = value in WORDS[name]
        else:
            good = name in LIMITS and within(value, *LIMITS[name])
        if not good:
            raise ValueError(f"{name}: {value}")
    return orders


def server(run: str | Path, host: str = "127.0.0.1", port: int = 0) -> Server:
    """A server of the page of a run; port 0: a free one. DataError: no such run, or the port cannot be had."""
    agent = mortal(Agent.load(run))
    folder = run_folder(run)
    c = agent.config
    height, width = find(c.task).size
    episodes = None
    # The series of a training, or the one shipped with its weights.
    for place in (*folder.glob("series/*"), folder / "recorded"):
        if any(place.glob("[0-9]*.npy")):
            dtype = series_dtype(c.vae.z_size, agent.m.action_size, c.mdnrnn.value_head)
            episodes = Records(place, dtype)
    known = folder / "results.json"
    hello = {
        "task": c.task, "actions": agent.m.action_size, "aspect": width / height,
        "period": period(agent), "recorded": [] if episodes is None else episodes.steps.tolist(),
        "tau": c.evolve.tau, "known": read_results(known) if known.exists() else {},
    }  # fmt: skip
    page = Path(__file__).with_name("page.html").read_bytes()
    try:
        return Server(host, port, page, lambda socket: Visit(agent, hello, episodes, socket).run())
    except (OSError, OverflowError) as error:
        what = f"port {port} of {host} cannot be had ({error})"
        raise DataError(f"{what}: choose another by --port") from None


def serve(run: str, host: str = "127.0.0.1", port: int = 0, **start: float | None) -> None:
    """Serve the page until Ctrl-C, and open it if there is a screen; start: seed and tau of the first dream."""
    with server(run, host, port) as serving, suppress(KeyboardInterrupt):
        start = urlencode({name: value for name, value in start.items() if value is not None})
        address = f"http://{host}:{serving.server_port}/" + (start and f"?{start}")
        print(f"{run}: {address}   (Ctrl-C ends it)", flush=True)
        if sys.platform != "linux" or os.environ.keys() & {"DISPLAY", "WAYLAND_DISPLAY"}:
            webbrowser.open(address)
        serving.serve_forever()
