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

from ..core.ops import sigmoid
from ..models.agent import Agent, run_folder
from ..training.data import DataError, Records, series_dtype
from ..training.experiment import read_results
from ..worlds.envs import ENVIRONMENTS, EnvironmentDied, make_env, to_and_fro
from ..worlds.tasks import TASKS
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
SECONDS = 8  # of a film
COLUMNS = 10  # pictures of a strip
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
        t = self.steps
        z = self.z
        if self.series["seen"][t]:
            now = self.series[t : t + 1]
            z = self._sample(now["mu"], now["logvar"], self.rows)
        record = self.series[t - 1 : t]
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
        self.steps = 0
        self.total = 0.0
        self.over = ""

    def step(self, action: np.ndarray) -> None:
        """action (1, A)"""
        self.features, reward, terminated, truncated, _ = self.world.step(action)
        self.steps += 1
        self.total += float(reward[0])
        self.over = "died" if terminated[0] else "time" if truncated[0] else ""

    def pictures(self) -> dict[str, np.ndarray]:
        """By name, (height, width, 3) uint8: what z decodes to, and the real game if there is one."""
        agent = self.world.agent
        decoded = to_picture(agent.v.decode(self.features[:, : agent.config.vae.z_size])[0])
        if isinstance(self.world, RealWorld):
            return {"reality": self.world.envs[0].crop, "V's view": decoded}
        return {"dream" if isinstance(self.world, Dream) else "V's view": decoded}

    def thoughts(self) -> dict:
        """What M's head says of the step just made; nothing at the start and after the end."""
        if not self.steps or self.over:
            return {}
        y = self.world.m.predict(self.world.state[0])
        tau = self.world.tau if isinstance(self.world, Dream) else 1.0
        mix = np.exp((y.logmix - y.logmix.max(axis=0)) / tau)  # (K, Z, 1), the largest is 1
        said = {"certainty": np.mean(1 / mix.sum(axis=0)), "reward": y.reward, "value": y.value}
        said["end"] = None if y.done_logit is None else sigmoid(y.done_logit)
        return {name: round(float(np.squeeze(x)), 3) for name, x in said.items() if x is not None}


def to_picture(image: np.ndarray) -> np.ndarray:
    """Floats in [0, 1] -> uint8."""
    return np.round(image * 255).astype(np.uint8)


def mortal(agent: Agent) -> Agent:
    """The same agent, but its dreams end: where C's only discounted rewards by the odds of an end, it is drawn."""
    evolve = agent.config.evolve
    if evolve.survival:
        evolve = replace(evolve, survival=False, done_odds=evolve.done_odds or 1.0)
    return replace(agent, config=replace(agent.config, evolve=evolve))


def film(agent: Agent, seed: int = 0, tau: float | None = None) -> list[dict[str, np.ndarray]]:
    """C in reality, what V keeps of it, and C in the dream that goes on from the same moment: pictures by name.

    A life that has ended stands still.
    """
    agent = mortal(agent)
    act = agent.controller()
    moments = []
    first = TASKS[agent.config.task].strip_from // agent.config.repeat
    with closing(make_env(agent.config.task, repeat=agent.config.repeat)) as env:
        real = Life(RealWorld(agent, [env]), seed)
        while real.steps < first:
            real.step(act(real.features))
            if real.over:  # an agent that dies so soon is shown from its beginning
                real = Life(real.world, seed)
                break
        world = real.world
        dream = Life(DreamOn(agent, tau, (world.z, world.state, world.steps)), seed)
        for _ in range(int(SECONDS / period(agent))):
            moments.append(real.pictures() | {"reality": env.frame} | dream.pictures())
            for life in (real, dream):
                if not life.over:
                    life.step(act(life.features))
    return moments


def draw(
    agent: Agent, moments: list[dict], png: Path | None = None, strip: Path | None = None
) -> None:
    """Write a film as an animated PNG, or COLUMNS pictures evenly spread over it as a strip."""
    from ..lab import pictures  # it needs pygame, a page does not

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
        first = np.eye(1, self.agent.m.action_size, dtype=np.float32)[0]
        rng = np.random.default_rng(self.seed)
        self.blind = to_and_fro(first, rng, 120 // self.agent.config.repeat)
        self.show()

    def _world(self, name: str) -> World:
        if name == "dream":
            return Dream(self.agent, 1, self.tau, horizon=0)
        if name == "here":  # the moment on the page; while dreaming on from one, that one again
            world = self.life.world
            if self.name != "here" and not self.life.over:
                self.moment = world.z, world.state, world.steps
            if self.moment is None:
                return self._world("dream")
            return DreamOn(self.agent, self.tau, self.moment)
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
    height, width = ENVIRONMENTS[c.task].crop_size
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
