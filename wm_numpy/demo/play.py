"""Play in M's dream, in the real game, or on from a moment of it, in a browser.

NumPy dreams here; page.html shows pictures and sends keys. Orders come as JSON, [{name: value, ...}, ...]; after every
step a line of JSON and the pictures' bytes go back, deflated.
"""

import json
import math
import os
import sys
import threading
import time
import webbrowser
import zlib
from base64 import b64decode, b64encode
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlencode

import numpy as np

from ..core.files import DataError
from ..lab.film import Life, Recorded, ends, lead, mortal, pack, period, unpack
from ..models.agent import Agent, run_folder
from ..settings.tasks import find
from ..training.data import Records, series_dtype
from ..training.runfolder import read_results
from ..worlds.envs import EnvironmentDied, EnvironmentFailed, make_env
from ..worlds.policies import to_and_fro
from ..worlds.world import Dream, RealWorld, World
from .serve import Closed, Line, Server

# What a page may order: a number within limits, one of these words; an action, a z, a moment.
LIMITS = {
    "tau": (0.05, 5), "seed": (0, 2**31 - 1), "pause": (0, 1), "step": (1, 1),
    "at": (0, 10**6), "got": (0, 10**9), "take": (1, 1), "ends": (1, 10**6), "share": (1, 1),
}  # fmt: skip
WORDS = {
    "who": ("you", "C", "blind"),
    "world": ("dream", "reality", "recorded", "here", "futures", "opening"),
}
AHEAD = 8  # pictures sent but not shown yet: how far a slow line may lag behind
ASLEEP = 600  # seconds without an order, after which a page that stands still loses its place
FUTURES = 8  # dreams side by side
FUTURE = 5  # seconds of each
Z_MOST = 9  # of a number of z that a page may ask for

EXPECTED = ImportError, EnvironmentDied, EnvironmentFailed, DataError  # what may well go wrong
_opening = threading.Lock()  # ViZDoom has crashed when two engines started at once


class Visit:
    """What one page plays: a life in one of the worlds, its keys held by the visitor, by C or by a blind policy."""

    def __init__(self, agent: Agent, hello: dict, episodes: Records | None, line: Line):
        self.agent = agent
        self.episodes = episodes
        self.line = line
        self.period = hello["period"]
        self.tau = hello["tau"]
        self.seed = 0
        self.who = "C"
        self.paused = False
        self.stuck = False  # until the next life
        self.sent = self.got = 0
        self.env = self.moment = None
        self.name = "dream"
        self.life = Life(self._dream(), self.seed)
        self.action = np.zeros((1, agent.m.action_size), np.float32)
        self.controller = agent.controller()
        self._send(hello)

    def run(self, orders: list[dict]) -> None:
        """Carry out the first orders, and play until the visitor leaves."""
        due = 0.0
        try:
            self._try(self.obey, orders)
            while True:
                still = self.paused or self.stuck or self.life.over
                still = still or self.sent - self.got > AHEAD
                orders = self.line.receive(ASLEEP if still else due - time.monotonic())
                if orders is not None:
                    self._try(self.obey, orders)
                elif still:
                    return self._send(
                        {"says": "This page was silent for long, and lost its place."}
                    )
                else:
                    self._try(self.step)
                    due = max(due + self.period, time.monotonic())  # what is late is not caught up
        finally:
            if self.env is not None:
                self.env.close()

    def _try(self, do, *args) -> None:
        """What goes wrong becomes a sentence on the page; what should not have, a line on stderr, too."""
        try:
            do(*args)
        except Closed:
            raise
        except Exception as error:
            if isinstance(error, EnvironmentDied):
                self.env, self.stuck = None, True
            says = str(error)
            if not isinstance(error, EXPECTED):
                self.stuck = True
                says = f"The server made a mistake ({type(error).__name__}: {error}): begin again."
                print(f"play: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            self._send({"says": says})

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
                        self.moment = self._moment()
                case "share":
                    if self.life.over:
                        raise DataError("This life is over, and has no moment to share.")
                    self._send({"moment": b64encode(pack(self._moment())).decode()})
                case "moment":
                    self.moment = unpack(self.agent, b64decode(value))
                case "world":
                    self.begin(value)

    def begin(self, name: str) -> None:
        """A new life; DataError, ImportError, EnvironmentDied: its world cannot be had, and the old one goes on."""
        self.life = Life(self._world(name), self.seed)
        self.stuck = False
        self.name = "here" if name == "opening" else name
        rng = np.random.default_rng(self.seed)
        self.blind = to_and_fro(self.agent.config.task, rng, self.agent.config.repeat)
        self.show()

    def _world(self, name: str) -> World:
        if name == "recorded":
            return Recorded(self.agent, self._episode(self.seed))
        if name == "reality":
            if self.env is None:
                self._send({"busy": "The real game is starting."})
                with _opening:
                    self.env = make_env(self.agent.config.task, repeat=self.agent.config.repeat)
            return RealWorld(self.agent, [self.env])
        if name == "opening" and self.episodes is not None:
            self.moment = lead(self.agent, self._episode(0))
        return self._dream(name)

    def _dream(self, name: str = "dream") -> Dream:
        """From a recorded first frame, or on from the moment that was kept; as futures, several side by side."""
        how = {"tau": self.tau, "horizon": 0, "memories": 0}
        if name == "dream" or self.moment is None:
            return Dream.as_evolved(self.agent, 1, tau=self.tau, horizon=0)
        n = 1
        z, state, steps = self.moment
        if name == "futures":
            n, how["horizon"] = FUTURES, steps + int(FUTURE / self.period)
        start = z.repeat(n, axis=0), tuple(part.repeat(n, axis=0) for part in state), steps
        return Dream.as_evolved(self.agent, n, start=start, **how)

    def _moment(self) -> tuple:
        """Where the life is now, or the first of several."""
        z, state, steps = self.life.world.moment
        return z[:1], tuple(part[:1] for part in state), steps

    def _episode(self, number: int) -> np.ndarray:
        if self.episodes is None:
            raise DataError("No episode is recorded here.")
        try:
            return self.episodes.read(number % len(self.episodes.paths))
        except OSError as error:
            what = f"The recorded episodes have moved ({error})"
            raise DataError(f"{what}: start `play` again.") from None

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


def read(body: bytes, agent: Agent) -> list[dict]:
    """The orders in a message; ValueError: one of them is none that the page gives."""

    def within(x, low: float, high: float) -> bool:
        return type(x) in (int, float) and low <= x <= high

    def numbers(x, n: int, most: float) -> bool:
        return type(x) is list and len(x) == n and all(within(y, -most, most) for y in x)

    def good(name: str, value) -> bool:
        if name == "action":
            return numbers(value, agent.m.action_size, 1)
        if name == "z":
            return numbers(value, agent.m.z_size, Z_MOST)
        if name == "moment":
            return type(value) is str and bool(b64decode(value, validate=True))
        if name in WORDS:
            return value in WORDS[name]
        whole = type(value) is int or name == "tau"
        return name in LIMITS and whole and within(value, *LIMITS[name])

    orders = json.loads(body)
    if type(orders) is not list or not all(type(each) is dict for each in orders):
        raise ValueError("not a list of orders")
    for name, value in (item for each in orders for item in each.items()):
        if not good(name, value):
            raise ValueError(f"{name}: {value}"[:80])
    return orders


def figures(path: Path) -> dict[str, dict[str, float]]:
    """The means of results.json and what belongs to them; DataError: they are not numbers."""
    known = {}
    results = read_results(path) if path.exists() else {}
    for name in ("agent", "random", "dream"):
        found = results.get(name, {})
        try:
            known[name] = {
                key: float(found[key])
                for key in ("mean", "episodes", "tau", "steps")
                if key in found
            }
            if not all(map(math.isfinite, known[name].values())):
                raise ValueError("not finite")
        except (TypeError, ValueError) as error:
            what = f"{path} is damaged ({name}: {error})"
            raise DataError(f"{what}: delete it and repeat `train`") from None
    return known


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
    hello = {
        "title": task.title, "hint": task.hint, "labels": task.labels, "keys": dict(task.keys),
        "rest": task.rest, "died": task.died, "well": task.solved_at, "period": period(agent),
        "unit": task.unit, "pays": task.unit if task.reward == "reward" else task.reward,
        "paper": sorted(task.table2.items()), "aspect": task.size[1] / task.size[0],
        "tau": c.evolve.tau, "limit": c.max_steps, "z": c.vae.z_size, "theta": len(agent.theta),
        "recorded": [] if episodes is None else episodes.steps.tolist(),
        "known": figures(folder / "results.json"),
    }  # fmt: skip
    page = Path(__file__).with_name("page.html").read_bytes()

    def visit(line: Line, orders: list[dict]) -> None:
        Visit(agent, hello, episodes, line).run(orders)

    try:
        return Server(host, port, page, lambda body: read(body, agent), visit)
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
