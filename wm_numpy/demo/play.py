"""Play in M's dream, in the real game, or on from a moment of it, in a browser: page.html.

The page's orders are JSON, [{name: value, ...}, ...]; every step is a line of JSON and its pictures' bytes, deflated.
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

from ..envs.environment import EnvironmentDied, EnvironmentFailed
from ..envs.policies import blind_baseline
from ..lab.film import Life, Worlds, ends, pack, period, to_picture, unpack, unpack_actions
from ..models.agent import Agent, run_folder
from ..settings.tasks import TaskError, find
from ..system.files import DataError
from ..training.data import Records, series_dtype
from ..training.runfolder import read_results
from ..worlds.ahead import LookAhead
from ..worlds.world import mortal
from .serve import Line, Server

IN_FLIGHT = 8  # pictures sent but not shown yet: how far a slow line may lag behind
ASLEEP = 600  # seconds without an order, after which a page that stands still loses its place
STRIP = 5  # pictures of what a plan leads to


class Visit:
    """What one page plays: a life in a world; player: "you", "C" alone, C looking "ahead" or the "blind" baseline."""

    def __init__(self, agent: Agent, hello: dict, episodes, line: Line, orders: list[dict]):
        self.agent, self.line = agent, line
        self.controller = agent.controller()
        self.worlds = Worlds(agent, episodes)
        self.period, self.tau = hello["period"], hello["tau"]
        self.action = np.array(hello["rest"], np.float32)  # of the visitor's keys
        self.player = "ahead" if hello["ahead"] else "C"
        self.seed = self.pause = self.strips = self.sent = self.got = 0
        self.replay = []  # actions with which the next life begins
        self.enter("dream")
        self._send(hello)
        try:
            self._try(self.obey, orders)
            self.show()
            self._run()
        finally:
            self.worlds.close()

    def _run(self) -> None:
        """Play until the visitor leaves."""
        due = 0.0
        while True:
            behind = self.sent - self.got > IN_FLIGHT
            still = behind or self.pause or self.stuck or self.life.over
            orders = self.line.receive(ASLEEP if still else due - time.monotonic())
            if orders is not None:
                self._try(self.obey, orders)
            elif still:
                return self._send({"says": "A page that is silent for long loses its place."})
            else:
                self._try(self.step)
                due = max(due + self.period, time.monotonic())  # what is late is not caught up

    def _try(self, do, *args) -> None:
        """What goes wrong becomes a sentence on the page; a mistake of the server's, a line on stderr, too."""
        try:
            do(*args)
        except ConnectionError:
            raise
        except (ImportError, TaskError, EnvironmentDied, EnvironmentFailed, DataError) as error:
            if isinstance(error, EnvironmentDied):
                self.worlds.env, self.stuck = None, self.name == "reality"
            self._send({"says": str(error)})
        except Exception as error:
            self.stuck = True
            fault = f"{type(error).__name__}: {error}"
            print(f"play: {fault}", file=sys.stderr, flush=True)
            self._send({"says": f"The server made a mistake ({fault}): begin again."})

    def obey(self, orders: list[dict]) -> None:
        """Carry out orders that `read` has read."""
        for name, value in (item for each in orders for item in each.items()):
            match name:
                case "seed" | "player" | "pause" | "strips":
                    setattr(self, name, value)
                case "show" | "step" | "share":
                    getattr(self, name)()
                case "action":
                    self.action = np.array(value, np.float32)
                case "tau":
                    self.tau = self.life.world.tau = value
                case "got":
                    self.got = max(self.got, min(value, self.sent))
                case "at" if self.name == "recorded":
                    self.seek(value)
                case "z":
                    self.life.hold(np.array(value))
                    self.show()
                case "ends":
                    self.ends(value)
                case "take" if not self.life.over:
                    self.worlds.moment = self.life.world.moment
                case "moment":
                    self.worlds.moment = unpack(self.agent, b64decode(value))
                case "replay":
                    self.replay = unpack_actions(self.agent, b64decode(value))
                case "world":
                    if value == "reality" and self.worlds.env is None:
                        self._send({"busy": "The real game is starting."})
                    self.enter(value)
                    self.follow(self.replay)
                    self.replay = []

    def enter(self, name: str) -> None:
        """A new life; DataError, ImportError, EnvironmentDied: its world cannot be had, and the old one goes on."""
        self.life = Life(self.worlds.go(name, self.seed, self.tau), self.seed)
        self.name = "here" if name == "opening" else name
        self.stuck = False  # until the next life
        self.actions = []  # of this life, (n, A) each
        world, c = self.life.world, self.agent.config
        self.ahead = LookAhead(world, self.controller, self.seed + np.arange(world.num_envs))
        self.blind = blind_baseline(c.task, np.random.default_rng(self.seed), c.repeat)

    def step(self) -> None:
        """One step of the life, shown."""
        if self.life.over or self.stuck:
            return
        action = self.planned
        if self.player == "you":
            action = self.action
        elif self.player == "blind":
            action = self.blind()
        self.follow([action])

    def follow(self, actions: list[np.ndarray]) -> None:
        """Take these actions, (n, A) or (A,) for all, and show what comes of the last."""
        shape = self.life.world.num_envs, self.agent.m.action_size
        for action in actions:
            if not self.life.over:
                self.actions.append(np.broadcast_to(action, shape))
                self.life.step(self.actions[-1])
                self.line.beat()
        self.show()

    def seek(self, step: int) -> None:
        """Go to a step of a recorded episode, M led there from its beginning."""
        if step < self.life.steps:
            self.enter("recorded")
        self.follow([self.action] * (step - self.life.steps))

    def look(self, facts: dict) -> np.ndarray:
        """Look ahead; facts get what M expects of each plan -> on request pictures of a dream of each (S * K, ...)."""
        self.ahead.last = self.actions[-1].copy() if self.actions else None
        self.planned = self.ahead(self.life.features)
        first, worth, chosen, dreams = self.ahead.decision  # [0] is of the first life
        facts["plans"], facts["worth"] = first[0].tolist(), worth[0].round(2).tolist()
        facts["chosen"] = int(chosen[0])
        steps = np.linspace(0, len(dreams) - 1, STRIP if self.strips else 0).astype(int)  # (S,)
        facts["strip"] = (steps + 1).tolist()
        z = dreams[steps, 0].reshape(-1, dreams.shape[-1])  # (S * K, Z)
        return to_picture(self.agent.v.decode(z)) if self.strips else z

    def ends(self, most: int) -> None:
        """Send what the strongest numbers of z do to the picture on the page."""
        z = self.life.features[0, : self.agent.config.vae.z_size]
        order, pictures = ends(self.agent, z)
        self._send({"ends": order[:most].tolist(), "side": pictures.shape[-2]}, pictures[:most])

    def share(self) -> None:
        """Send what leads back to this moment: z and M's state; of the real game, all actions so far."""
        if self.life.over:
            raise DataError("This life is over, and has no moment to share.")
        real = self.name == "reality"
        data = np.array(self.actions, "<f4").tobytes() if real else pack(self.life.world.moment)
        self._send({"moment": b64encode(data).decode()})

    def show(self) -> None:
        """Send what there is to see, and what the agent thinks of it."""
        life = self.life
        pictures = life.pictures()
        self.planned = self.controller(life.features)  # the next action
        self.sent += 1
        facts = life.thoughts() | {
            "n": self.sent, "world": self.name, "player": self.player, "tau": self.tau,
            "seed": self.seed, "steps": life.steps, "total": round(life.total, 2) + 0.0, "over": life.over,
            "C": self.planned[0].round(3).tolist(),
            "z": life.features[0, : self.agent.config.vae.z_size].round(3).tolist(),
            "alive": np.isin(np.arange(life.world.num_envs), life.world.rows).tolist(),
            "pictures": [[name, *picture.shape[:2]] for name, picture in pictures.items()],
        }  # fmt: skip
        strips = self.look(facts) if self.player == "ahead" and not life.over else ()
        self._send(facts, *pictures.values(), *strips)

    def _send(self, facts: dict, *pictures: np.ndarray) -> None:
        parts = [json.dumps(facts).encode() + b"\n", *(picture.tobytes() for picture in pictures)]
        self.line.send(zlib.compress(b"".join(parts), 1))


def read(agent: Agent, body: bytes) -> list[dict]:
    """The orders in a message; ValueError: one of them is none that the page gives."""
    players = ["you", "C", "blind"] + ["ahead"] * (agent.config.ahead.horizon > 0)

    def whole(most: int):
        return lambda x: type(x) is int and 0 <= x <= most

    def number(least: float, most: float):
        return lambda x: type(x) in (int, float) and least <= x <= most

    def vector(n: int, most: float):
        return lambda x: type(x) is list and len(x) == n and all(map(number(-most, most), x))

    def data(x):
        return type(x) is str and b64decode(x, validate=True) is not None

    known = dict.fromkeys(("pause", "strips", "show", "step", "take", "share"), whole(1)) | {
        "seed": whole(2**31 - 1), "at": whole(10**6), "got": whole(10**9), "ends": whole(10**6),
        "tau": number(0.05, 5), "moment": data, "replay": data,
        "action": vector(agent.m.action_size, 1), "z": vector(agent.m.z_size, 9),
        "player": players.__contains__, "world": Worlds.NAMES.__contains__,
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
    # The series of a training, or the one shipped with its weights.
    places = [*folder.glob("series/*"), folder / "recorded"]
    places = [place for place in places if any(place.glob("[0-9]*.npy"))]
    dtype = series_dtype(c.vae.z_size, agent.m.action_size, "value" in agent.m.heads)
    episodes = Records(places[-1], dtype) if places else None
    results = folder / "results.json"
    results = read_results(results) if results.exists() else {}
    words = ("title", "hint", "labels", "keys", "rest", "died", "solved_at", "unit", "discrete")
    hello = {name: getattr(task, name) for name in words} | {
        "pays": task.unit if task.reward == "reward" else task.reward, "period": period(agent),
        "paper": sorted(task.table2.items()), "aspect": task.size[1] / task.size[0],
        "tau": c.evolve.tau, "limit": c.max_steps, "z": c.vae.z_size, "theta": len(agent.theta),
        "recorded": episodes.steps.tolist() if episodes else [],
        "known": {"agent": {}, "random": {}, "dream": {}} | results,
        "most": min(1e9, task.reward_range[1] * c.repeat), "ahead": c.ahead.horizon and vars(c.ahead),
    }  # fmt: skip
    page = Path(__file__).with_name("page.html").read_bytes()
    visit = partial(Visit, agent, hello, episodes)
    try:
        return Server(host, port, page, partial(read, agent), visit)
    except (OSError, OverflowError) as error:
        fault = f"port {port} of {host} cannot be had ({error})"
        raise DataError(f"{fault}: choose another by --port") from None


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
