"""Play in M's dream, in the real game, or on from a moment of it: in a browser, or as pictures of C doing so.

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
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlencode

import numpy as np

from .agent import Agent, run_folder
from .core import sigmoid
from .data import DataError, Records, series_dtype
from .envs import ENVIRONMENTS, EnvironmentDied, make_env, to_and_fro
from .experiment import read_results
from .serve import Server, WebSocket
from .tasks import TASKS
from .worlds import Dream, RealWorld, World

# What a page may order: a number within limits, a word of these; and an action.
LIMITS = {
    "tau": (0.05, 5), "seed": (0, 2**31 - 1), "pause": (0, 1), "step": (1, 1), "at": (0, 10**6), "got": (0, 10**9),
}  # fmt: skip
WORDS = {"who": ("you", "C", "blind"), "world": ("dream", "reality", "recorded", "here")}
AHEAD = 8  # pictures on their way that the page has not shown: what a slow line may lag behind
ASLEEP = 600  # seconds without a word from the page, after which its place is free again
SECONDS, COLUMNS = 8, 10  # that a film lasts; pictures of a strip
_opening = threading.Lock()  # ViZDoom has crashed when two engines started at once


# --------------------------------------------------------------------------------------- what there is to see


class Recorded(World):
    """A recorded episode, its frames as V sampled them: M follows it, and the actions are those of the record."""

    def __init__(self, agent: Agent, series: np.ndarray):
        super().__init__(agent, 1)
        self.series = series  # (T + 1,) of data.series_dtype

    def step(self, actions: np.ndarray | None = None):
        return super().step(self.series["action"][None, self.steps])

    def _first(self, rows, seeds):
        z = self._sample(self.series["mu"][:1], self.series["logvar"][:1], rows)
        return z, self.m.initial_state(1), np.ones(1, bool)

    def _next(self, action):
        t, record = self.steps, self.series[self.steps - 1 : self.steps]
        z = self.z
        if self.series["seen"][t]:
            z = self._sample(self.series["mu"][t : t + 1], self.series["logvar"][t : t + 1], self.rows)
        return z, record["reward"], record["done"], ~record["done"] & (t + 1 == len(self.series))


class DreamOn(Dream):
    """A dream that goes on from a moment of another world of the same agent: its z, M's state, its step."""

    def __init__(self, agent: Agent, tau: float | None, moment: tuple):
        super().__init__(agent, 1, tau, horizon=0, memories=0)
        self.moment = moment

    def _first(self, rows, seeds):
        super()._first(rows, seeds)
        z, state, self.steps = self.moment
        return z, state, np.full(1, self.steps == 0)


class Life:
    """One episode in a world of one environment, step by step, and what there is to see after each."""

    def __init__(self, world: World, seed: int):
        self.world = world
        self.features, _ = world.reset(seed=seed)
        self.steps, self.total, self.over = 0, 0.0, ""

    def step(self, action: np.ndarray) -> None:
        """action (1, A)"""
        self.features, reward, terminated, truncated, _ = self.world.step(action)
        self.steps += 1
        self.total += float(reward[0])
        self.over = "died" if terminated[0] else "time" if truncated[0] else ""

    def pictures(self) -> dict[str, np.ndarray]:
        """By name, (height, width, 3) uint8: what z decodes to, and beside it the real game."""
        agent = self.world.agent
        decoded = to_picture(agent.v.decode(self.features[:, : agent.config.vae.z_size])[0])
        if isinstance(self.world, RealWorld):
            return {"reality": self.world.envs[0].crop, "V's view": decoded}
        return {"dream" if isinstance(self.world, Dream) else "V's view": decoded}

    def thoughts(self) -> dict:
        """What M's head says of the step just made; nothing at the start and after the end."""
        if not self.steps or self.over:
            return {}
        y, tau = self.world.m.predict(self.world.state[0]), self.world.tau if isinstance(self.world, Dream) else 1.0
        mix = np.exp((y.logmix - y.logmix.max(axis=0)) / tau)  # (K, Z, 1), the largest is 1
        said = {"certainty": np.mean(1 / mix.sum(axis=0)), "reward": y.reward, "value": y.value}
        said["end"] = None if y.done_logit is None else sigmoid(y.done_logit)
        return {name: round(float(np.squeeze(x)), 3) for name, x in said.items() if x is not None}


def to_picture(image: np.ndarray) -> np.ndarray:
    """Floats in [0, 1] -> uint8."""
    return np.round(image * 255).astype(np.uint8)


def mortal(agent: Agent) -> Agent:
    """The same agent, whose dreams end: where C's were discounted by the odds of an end, it is drawn at these odds."""
    evolve = agent.config.evolve
    if evolve.survival:
        evolve = replace(evolve, survival=False, done_odds=evolve.done_odds or 1.0)
    return replace(agent, config=replace(agent.config, evolve=evolve))


def film(agent: Agent, seed: int = 0, tau: float | None = None) -> list[dict[str, np.ndarray]]:
    """C in reality, what V keeps of it, and C in the dream that goes on from the same moment: pictures by name.

    A life that ends stands still.
    """
    agent, act, moments = mortal(agent), agent.controller(), []
    first = TASKS[agent.config.task].strip_from // agent.config.repeat
    with closing(make_env(agent.config.task, repeat=agent.config.repeat)) as env:
        real = Life(RealWorld(agent, [env]), seed)
        while real.steps < first:
            real.step(act(real.features))
            if real.over:  # of an agent that dies so soon the beginning
                real, first = Life(real.world, seed), 0
        world = real.world
        dream = Life(DreamOn(agent, tau, (world.z, world.state, world.steps)), seed)
        for _ in range(int(SECONDS / period(agent))):
            moments.append(real.pictures() | {"reality": env.frame} | dream.pictures())
            for life in (real, dream):
                if not life.over:
                    life.step(act(life.features))
    return moments


def draw(
    agent: Agent, moments: list[dict[str, np.ndarray]], png: Path | None = None, strip: Path | None = None
) -> None:
    """Write a film as an animated PNG, or COLUMNS pictures of it, evenly spread, as a strip."""
    from . import pictures  # it needs pygame, a page does not

    if png:
        pictures.save(pictures.animation(moments, round(1 / period(agent))), png)
    if strip:
        times = np.linspace(0, len(moments), COLUMNS, endpoint=False).astype(int)
        rows = {name: [moments[t][name] for t in times] for name in moments[0]}
        pictures.save(pictures.strips(rows, [f"{t * period(agent):.1f} s" for t in times]), strip)


def period(agent: Agent) -> float:
    """Seconds of the game between two pictures."""
    return agent.config.repeat / TASKS[agent.config.task].fps


# ------------------------------------------------------------------------------------------------ in a browser


class Visit:
    """What one page plays: a life in one of the worlds, its keys held by the visitor, by C or by a blind policy."""

    def __init__(self, agent: Agent, hello: dict, episodes: Records | None, socket: WebSocket):
        self.agent, self.episodes, self.socket = agent, episodes, socket
        self.tau, self.seed, self.who, self.paused = agent.config.evolve.tau, 0, "C", False
        self.period, self.sent, self.got = hello["period"], 0, 0
        self.env = self.moment = None
        self.action = np.zeros((1, agent.m.action_size), np.float32)
        self.controller = agent.controller()
        self._send(hello)
        self.begin("dream")

    def run(self) -> None:
        """Until the visitor goes."""
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
        """Orders of the page, {name: value, ...}, one after the other; others send the visitor away."""
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
        """A new life; where its world cannot be had, a sentence why."""
        try:
            self.life = Life(self._world(name), self.seed)
        except (ImportError, EnvironmentDied, DataError) as error:
            self.env = None
            return self._send({"says": str(error)})
        self.name, first = name, np.eye(1, self.agent.m.action_size, dtype=np.float32)[0]
        self.blind = to_and_fro(first, np.random.default_rng(self.seed), 120 // self.agent.config.repeat)
        self.show()

    def _world(self, name: str) -> World:
        if name == "dream":
            return Dream(self.agent, 1, self.tau, horizon=0)
        if name == "here":  # the moment that is on the page; while dreaming on from one, that one again
            world = self.life.world
            if self.name != "here" and not self.life.over:
                self.moment = world.z, world.state, world.steps
            return DreamOn(self.agent, self.tau, self.moment) if self.moment else self._world("dream")
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
            self.env, self.life.over = None, "died"
            return self._send({"says": str(error)})
        self.show()

    def seek(self, step: int) -> None:
        """Of a recorded episode that step; M is led there."""
        if self.name == "recorded":
            if step < self.life.steps:
                self.life = Life(self.life.world, self.seed)
            while self.life.steps < step and not self.life.over:
                self.life.step(self.action)
            self.show()

    def show(self) -> None:
        """Send what there is to see."""
        life, pictures = self.life, self.life.pictures()
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
        head = json.dumps(facts).encode() + b"\n"
        self.socket.send(zlib.compress(head + b"".join(picture.tobytes() for picture in pictures), 1))


def read(text: str, actions: int) -> dict:
    """The orders in a message; ValueError: there is one that no page gives."""

    def within(x, low: float, high: float) -> bool:
        return type(x) in (int, float) and low <= x <= high

    orders = json.loads(text)
    if type(orders) is not dict:
        raise ValueError("not orders")
    for name, value in orders.items():
        if name == "action":
            good = type(value) is list and len(value) == actions and all(within(x, -1, 1) for x in value)
        else:
            good = value in WORDS[name] if name in WORDS else within(value, *LIMITS.get(name, (1, 0)))
        if not good:
            raise ValueError(f"{name}: {value}")
    return orders


def server(run: str | Path, host: str = "127.0.0.1", port: int = 0) -> Server:
    """What serves the page of a run; port 0: a free one. DataError: no such run, or the port cannot be had."""
    agent, folder = mortal(Agent.load(run)), run_folder(run)
    height, width = ENVIRONMENTS[agent.config.task].crop_size
    episodes = None
    for place in (*folder.glob("series/*"), folder / "recorded"):  # of a training, or shipped with its weights
        if any(place.glob("[0-9]*.npy")):
            episodes = Records(
                place, series_dtype(agent.config.vae.z_size, agent.m.action_size, agent.config.mdnrnn.value_head)
            )
    known = folder / "results.json"
    hello = {
        "task": agent.config.task, "actions": agent.m.action_size, "aspect": width / height,
        "period": period(agent), "recorded": [] if episodes is None else episodes.steps.tolist(),
        "tau": agent.config.evolve.tau, "known": read_results(known) if known.exists() else {},
    }  # fmt: skip
    page = Path(__file__).with_name("page.html").read_bytes()
    try:
        return Server(host, port, page, lambda socket: Visit(agent, hello, episodes, socket).run())
    except (OSError, OverflowError) as error:
        raise DataError(f"port {port} of {host} cannot be had ({error}): choose another by --port") from None


def serve(run: str, host: str = "127.0.0.1", port: int = 0, **start: float | None) -> None:
    """Serve the page until Ctrl-C, and open it where there is a screen; start: seed and tau of the first dream."""
    with server(run, host, port) as serving, suppress(KeyboardInterrupt):
        start = urlencode({name: value for name, value in start.items() if value is not None})
        address = f"http://{host}:{serving.server_port}/" + (start and f"?{start}")
        print(f"{run}: {address}   (Ctrl-C ends it)", flush=True)
        if sys.platform != "linux" or os.environ.keys() & {"DISPLAY", "WAYLAND_DISPLAY"}:
            webbrowser.open(address)
        serving.serve_forever()
