"""Play in M's dream, in the real game, or on from a moment of it, in a browser.

NumPy dreams here; page.html shows pictures and sends keys. Orders come as JSON, [{name: value, ...}, ...]; after every
step a line of JSON and the pictures' bytes go back, deflated.
"""

import json
import os
import sys
import time
import webbrowser
import zlib
from base64 import b64decode, b64encode
from contextlib import suppress
from functools import partial
from pathlib import Path
from urllib.parse import urlencode

import numpy as np

from ..lab.film import Life, Worlds, ends, mortal, pack, period, unpack
from ..models.agent import Agent, run_folder
from ..settings.tasks import find
from ..system.files import DataError
from ..training.data import Records, series_dtype
from ..training.runfolder import read_results
from ..worlds.envs import EnvironmentDied, EnvironmentFailed
from ..worlds.policies import blind_baseline
from .serve import Closed, Line, Server

AHEAD = 8  # pictures sent but not shown yet: how far a slow line may lag behind
ASLEEP = 600  # seconds without an order, after which a page that stands still loses its place
EXPECTED = ImportError, EnvironmentDied, EnvironmentFailed, DataError  # what may well go wrong


class Visit:
    """What one page plays: a life in one of the worlds, its keys held by the visitor, by C or by a blind policy."""

    def __init__(
        self, agent: Agent, hello: dict, episodes: Records | None, line: Line, orders: list[dict]
    ):
        self.agent = agent
        self.worlds = Worlds(agent, episodes)
        self.line = line
        self.period = hello["period"]
        self.tau = hello["tau"]
        self.seed = 0
        self.who = "C"
        self.paused = self.stuck = False  # stuck: until the next life
        self.sent = self.got = 0
        self.name = "dream"
        self.life = Life(self.worlds.go("dream", 0, self.tau), 0)
        self.action = np.array([hello["rest"]], np.float32)
        self.controller = agent.controller()
        self._send(hello)
        try:
            self._try(self.obey, orders)
            self._run()
        finally:
            self.worlds.close()

    def _run(self) -> None:
        """Play until the visitor leaves."""
        due = 0.0
        while True:
            behind = self.sent - self.got > AHEAD
            still = behind or self.paused or self.stuck or self.life.over
            orders = self.line.receive(ASLEEP if still else due - time.monotonic())
            if orders is not None:
                self._try(self.obey, orders)
            elif still:
                return self._send({"says": "A page that is silent for long loses its place."})
            else:
                self._try(self.step)
                due = max(due + self.period, time.monotonic())  # what is late is not caught up

    def _try(self, do, *args) -> None:
        """What goes wrong becomes a sentence on the page; what should not have, a line on stderr, too."""
        try:
            do(*args)
        except Closed:
            raise
        except Exception as error:
            if isinstance(error, EnvironmentDied):
                self.worlds.env, self.stuck = None, self.name == "reality"
            if not isinstance(error, EXPECTED):
                self.stuck = True
                error = f"{type(error).__name__}: {error}"
                print(f"play: {error}", file=sys.stderr, flush=True)
                error = f"The server made a mistake ({error}): begin again."
            self._send({"says": str(error)})

    def obey(self, orders: list[dict]) -> None:
        """Carry out orders that `read` has read."""
        for name, value in (item for each in orders for item in each.items()):
            match name:
                case "action":
                    self.action = np.array([value], np.float32)
                case "tau":
                    self.tau = self.life.world.tau = value
                case "seed" | "who":
                    setattr(self, name, value)
                case "pause":
                    self.paused = value == 1
                case "got":
                    self.got = max(self.got, min(value, self.sent))
                case "step":
                    self.step()
                case "at":
                    self.seek(value)
                case "z":
                    self.life.hold(np.array(value))
                    self.show()
                case "ends":
                    self.ends(value)
                case "take":
                    if not self.life.over:
                        self.worlds.moment = self.life.world.moment
                case "share":
                    if self.life.over:
                        raise DataError("This life is over, and has no moment to share.")
                    self._send({"moment": b64encode(pack(self.life.world.moment)).decode()})
                case "moment":
                    self.worlds.moment = unpack(self.agent, b64decode(value))
                case "world":
                    self.begin(value)

    def begin(self, name: str) -> None:
        """A new life; DataError, ImportError, EnvironmentDied: its world cannot be had, and the old one goes on."""
        if name == "reality" and self.worlds.env is None:
            self._send({"busy": "The real game is starting."})
        self.life = Life(self.worlds.go(name, self.seed, self.tau), self.seed)
        self.stuck = False
        self.name = "here" if name == "opening" else name
        rng = np.random.default_rng(self.seed)
        self.blind = blind_baseline(self.agent.config.task, rng, self.agent.config.repeat)
        self.show()

    def step(self) -> None:
        """One step of the life, shown."""
        if self.life.over or self.stuck:
            return
        features = self.life.features
        action = self.action
        if self.who == "C":
            action = self.controller(features)
        elif self.who == "blind":
            action = self.blind()[None]
        self.life.step(np.broadcast_to(action, (len(features), action.shape[1])))
        self.show()

    def seek(self, step: int) -> None:
        """Go to a step of a recorded episode, M led there from its beginning."""
        if self.name == "recorded":
            if step < self.life.steps:
                self.life = Life(self.life.world, self.seed)
            while self.life.steps < step and not self.life.over:
                self.life.step(self.action)
                self.line.beat()
            self.show()

    def ends(self, most: int) -> None:
        """Send what the strongest numbers of z do to the picture on the page."""
        z = self.life.features[0, : self.agent.config.vae.z_size]
        order, pictures = ends(self.agent, z, beat=self.line.beat)
        self._send({"ends": order[:most].tolist(), "side": pictures.shape[-2]}, pictures[:most])

    def show(self) -> None:
        """Send what there is to see."""
        life = self.life
        pictures = life.pictures()
        self.sent += 1
        facts = life.thoughts() | {
            "n": self.sent, "world": self.name, "who": self.who, "tau": self.tau, "seed": self.seed,
            "steps": life.steps, "total": round(life.total, 2), "over": life.over,
            "C": self.controller(life.features[:1])[0].round(3).tolist(),
            "z": life.features[0, : self.agent.config.vae.z_size].round(3).tolist(),
            "alive": np.isin(np.arange(life.world.num_envs), life.world.rows).tolist(),
            "pictures": [[name, *picture.shape[:2]] for name, picture in pictures.items()],
        }  # fmt: skip
        self._send(facts, *pictures.values())

    def _send(self, facts: dict, *pictures: np.ndarray) -> None:
        parts = [json.dumps(facts).encode() + b"\n", *(picture.tobytes() for picture in pictures)]
        self.line.send(zlib.compress(b"".join(parts), 1))


def read(agent: Agent, body: bytes) -> list[dict]:
    """The orders in a message; ValueError: one of them is none that the page gives."""

    def number(low: float, high: float, kinds=(int,)):
        return lambda x: type(x) in kinds and low <= x <= high

    def vector(n: int, most: float):
        good = number(-most, most, (int, float))
        return lambda x: type(x) is list and len(x) == n and all(map(good, x))

    known = {
        "tau": number(0.05, 5, (int, float)), "seed": number(0, 2**31 - 1), "at": number(0, 10**6),
        "got": number(0, 10**9), "ends": number(1, 10**6), "pause": number(0, 1),
        "step": number(1, 1), "take": number(1, 1), "share": number(1, 1),
        "action": vector(agent.m.action_size, 1), "z": vector(agent.m.z_size, 9),
        "moment": lambda x: type(x) is str and b64decode(x, validate=True),
        "who": ("you", "C", "blind").__contains__, "world": Worlds.NAMES.__contains__,
    }  # fmt: skip
    orders = json.loads(body)
    if type(orders) is not list or not all(type(each) is dict for each in orders):
        raise ValueError("not a list of orders")
    for name, value in (item for each in orders for item in each.items()):
        if name not in known or not known[name](value):
            raise ValueError(f"{name}: {value}"[:80])
    return orders


def server(run: str | Path, host: str = "127.0.0.1", port: int = 0) -> Server:
    """A server of the page of a run; port 0: a free one. DataError: no such run, or the port cannot be had."""
    agent = mortal(Agent.load(run))
    folder = run_folder(run)
    c = agent.config
    task = find(c.task)
    episodes = None
    # The series of a training, or the one shipped with its weights.
    for place in (*folder.glob("series/*"), folder / "recorded"):
        if any(place.glob("[0-9]*.npy")):
            dtype = series_dtype(c.vae.z_size, agent.m.action_size, "value" in agent.m.heads)
            episodes = Records(place, dtype)
    results = folder / "results.json"
    results = read_results(results) if results.exists() else {}
    if "alone" in results.get("agent", {}):  # C alone plays here
        results["agent"] = results["agent"]["alone"]
    hello = {
        "title": task.title, "hint": task.hint, "labels": task.labels, "keys": dict(task.keys),
        "rest": task.rest, "died": task.died, "well": task.solved_at, "period": period(agent),
        "unit": task.unit, "pays": task.unit if task.reward == "reward" else task.reward,
        "paper": sorted(task.table2.items()), "aspect": task.size[1] / task.size[0],
        "tau": c.evolve.tau, "limit": c.max_steps, "z": c.vae.z_size, "theta": len(agent.theta),
        "recorded": [] if episodes is None else episodes.steps.tolist(),
        "known": {"agent": {}, "random": {}, "dream": {}} | results,
    }  # fmt: skip
    page = Path(__file__).with_name("page.html").read_bytes()
    visit = partial(Visit, agent, hello, episodes)
    try:
        return Server(host, port, page, partial(read, agent), visit)
    except (OSError, OverflowError) as error:
        what = f"port {port} of {host} cannot be had ({error})"
        raise DataError(f"{what}: choose another by --port") from None


def serve(run: str, host: str = "127.0.0.1", port: int = 0, **start: float | None) -> None:
    """Serve the page until Ctrl-C, and open it if there is a screen; start: seed and tau of the first dream."""
    with server(run, host, port) as serving, suppress(KeyboardInterrupt):
        start = urlencode({name: value for name, value in start.items() if value is not None})
        name = f"[{host}]" if ":" in host else host
        address = f"http://{name}:{serving.server_port}/" + (start and f"?{start}")
        print(f"{run}: {address}   (Ctrl-C ends it)", flush=True)
        if sys.platform != "linux" or os.environ.keys() & {"DISPLAY", "WAYLAND_DISPLAY"}:
            webbrowser.open(address)
        serving.serve_forever()
