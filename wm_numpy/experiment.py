"""The paper's procedure (section 3.4): collect, V, encode, M, C, evaluate; round after round.

Every stage looks at the run folder for what is there already, so that a run goes on where it was stopped. Whatever
is random is drawn from the seed, the round and the place in the stage, never from what happened before.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np

from . import agent as agents
from . import config as configuration
from .agent import Agent
from .cmaes import CMAES
from .config import Config
from .data import (
    DataError,
    FrameBatches,
    Records,
    SeriesBatches,
    frame_dtype,
    read_arrays,
    series_dtype,
    write_array,
    write_arrays,
    write_text,
)
from .envs import ENVIRONMENTS, random_policy
from .rollout import GROUP, blind_rollouts, dream_rollouts, real_rollouts
from .train import evolve, fit

STAGES = ("collect", "vae", "encode", "mdnrnn", "evolve", "evaluate")
PURPOSES = ("collect", "evolve", "check", "evaluate")  # seeds of one purpose are used for no other
RANDOM_LENGTH = {"doom": 320, "carracing": 1000}  # steps of a random episode, to say what disk is needed
STARTS = 1000  # recorded first frames that M keeps to start dreams from


class RunError(RuntimeError):
    """A run that cannot start or go on; the sentence says why."""


def episode_seeds(purpose: str, n: int, *key: int) -> np.ndarray:
    """n environment seeds for a purpose; the four purposes have ranges of their own."""
    drawn = np.random.SeedSequence(key).generate_state(n) % 2**28
    return (drawn + PURPOSES.index(purpose) * 2**28).astype(np.int64)


def collecting_policy(config: Config) -> Callable:
    """rng -> the random policy of one episode, as the first round collects with it."""
    return partial(random_policy, config.task, hold=config.collect.hold, long_hold=config.collect.long_hold)


def score(returns: np.ndarray) -> dict[str, float]:
    """Mean, standard deviation and 95 % interval of the mean (normal) of the returns of episodes."""
    mean, sd = float(np.mean(returns)), float(np.std(returns, ddof=1))
    half = 1.96 * sd / np.sqrt(np.size(returns))
    return {"mean": mean, "sd": sd, "ci95": [mean - half, mean + half], "episodes": np.size(returns)}


class Log:
    """Progress for people, with rate and time left, and log.jsonl for programs: one object per record."""

    def __init__(self, folder: Path | None = None):
        self.path = folder and folder / "log.jsonl"
        self.terminal = sys.stdout.isatty()
        if self.path and self.path.exists() and not self.path.read_bytes().endswith(b"\n"):
            self.path.open("a").write("\n")  # a kill cut the last line short

    def line(self, text: str) -> None:
        """A line for people."""
        print(f"\r\033[K{text}" if self.terminal else text, flush=True)

    def record(self, **values) -> None:
        """A line of log.jsonl; the time is added."""
        if self.path:
            with open(self.path, "a") as file:
                file.write(json.dumps({"time": round(time.time(), 1)} | values) + "\n")

    @contextmanager
    def progress(self, stage: str, round_: int, total: int, unit: str, done: int = 0):
        """Gives `tell(done, **figures)`; prints about twice a second on a terminal, now and then in a log."""
        start, first, shown, kept = time.monotonic(), done, 0.0, 0.0
        text = ""

        def tell(done: int, /, **figures) -> None:
            nonlocal shown, kept, text
            now, last = time.monotonic(), done >= total
            rate = (done - first) / max(now - start, 1e-9)
            left = (total - done) / max(rate, 1e-9)
            named = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
            speed = f"{rate:.1f} {unit}/s" if rate >= 1 else f"{1 / max(rate, 1e-9):.1f} s per {unit.removesuffix('s')}"
            text = f"{stage:9} {done:,}/{total:,} {unit}  {speed}  {left:.0f} s left  {named}"
            if now - shown > (0.5 if self.terminal else 15) and not last:
                print(
                    f"\r\033[K{text}" if self.terminal else text,
                    end="" if self.terminal else "\n",
                    flush=True,
                )
                shown = now
            if figures and (now - kept > 1 or last or "check" in figures):
                self.record(stage=stage, round=round_, step=done, **figures)
                kept = now

        yield tell
        if text:
            self.line(f"{text}  ({time.monotonic() - start:.0f} s)")


class Experiment:
    """A run folder, and the stages that fill it.

    Args:
        config: of the run; must be the one that the folder was made with, but for more rounds.
        folder: made when missing.

    Raises:
        RunError: the folder belongs to another configuration; in `run`, the disk is too small.
    """

    def __init__(self, config: Config, folder: Path):
        self.config, self.folder = config, Path(folder)
        self._claim()
        self.log = Log(self.folder)
        self.episodes = self.folder / "episodes"

    def _claim(self) -> None:
        path, mine = self.folder / "config.json", configuration.flat(self.config)
        if path.exists():
            theirs = configuration.flat(agents.load_config(self.folder))
            other = [k for k in mine if mine[k] != theirs[k] and not (k == "rounds" and mine[k] > theirs[k])]
            if other:
                what = ", ".join(f"{k} is {theirs[k]} there and {mine[k]} here" for k in other[:3])
                raise RunError(f"{self.folder} holds a run of another configuration ({what}): choose another --out")
        elif self.folder.exists() and any(self.folder.iterdir()):
            raise RunError(f"{self.folder} is not empty and not a run folder: choose another --out")
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(mine, indent=1) + "\n")

    def _check_disk(self) -> None:
        needed = self.disk_needed()
        free = shutil.disk_usage(self.folder).free + sum(
            f.stat().st_size for f in self.folder.rglob("*") if f.is_file()
        )
        if needed > free:
            raise RunError(
                f"this run needs about {needed / 1e9:.1f} GB in {self.folder}, where {free / 1e9:.1f} GB are free: "
                "choose another --out, or fewer collect.episodes"
            )

    def disk_needed(self) -> float:
        """Bytes, about, of all rounds' episodes and of one round's series."""
        c = self.config
        actions = ENVIRONMENTS[c.task].action_size
        record = frame_dtype(actions).itemsize + series_dtype(c.vae.z_size, actions).itemsize
        return c.rounds * c.collect.episodes * RANDOM_LENGTH[c.task] * record + 200e6

    def run(self, stages: Sequence[str] = STAGES) -> None:
        """These stages of every round, those that are complete left out."""
        if "collect" in stages:
            self._check_disk()
        for round_ in range(1, self.config.rounds + 1):
            for stage in stages:
                if stage != "evaluate" or round_ == self.config.rounds:
                    getattr(self, f"_{stage}")(round_)
            if self._round_of(self.folder / "controller.npz") < round_:
                return  # the next round needs this one's agent

    # ---------------------------------------------------------------------------------------------------- the stages

    def _collect(self, round_: int) -> None:
        c, n = self.config, self.config.collect.episodes
        paths = [self.episodes / f"{(round_ - 1) * n + i:06d}.npy" for i in range(n)]
        seeds = episode_seeds("collect", n, c.seed, round_)
        # Agents play in groups of fixed members, so a group with a file missing is played again as a whole.
        size = 1 if round_ == 1 else GROUP
        groups = [range(i, min(i + size, n)) for i in range(0, n, size)]
        missing = [i for group in groups if not all(paths[j].exists() for j in group) for i in group]
        if not missing:
            return
        done = n - len(missing)
        with self.log.progress("collect", round_, n, "episodes", done) as tell:

            def progress(k: int) -> None:
                nonlocal done
                done += k
                tell(done)

            some = {"log": self.log.line, "progress": progress, "paths": [paths[i] for i in missing]}
            if round_ == 1:
                policy, shortest = collecting_policy(c), c.collect.min_length
                blind_rollouts(c.task, seeds[missing], min_length=shortest, make_policy=policy, **some)
            else:
                agent = self._agent()
                real_rollouts(agent, agent.vector[None], seeds[missing], noise=c.collect.noise, **some)

    def _vae(self, round_: int) -> None:
        c, path = self.config.vae, self.folder / "vae.npz"
        if self._round_of(path) >= round_:
            return
        seed = (self.config.seed, round_, STAGES.index("vae"))
        v = agents.new_vae(self.config, np.random.default_rng(seed))
        if round_ > 1:
            v.params.flat[:] = agents.load_vector(path, "params", v.params.flat.shape)  # learn on
        batches = FrameBatches(self._frames(), c.batch, seed)

        def loss_and_grad(update: int):
            frames = batches(update)
            noise = np.random.default_rng([*seed, update, 1]).standard_normal((len(frames), c.z_size), np.float32)
            return v.loss_and_grad(frames, noise)

        updates = c.updates or c.epochs * batches.per_epoch
        self._fit("vae", round_, v.params, loss_and_grad, updates, c)
        self._finish(path, round_, params=v.params.flat)

    def _encode(self, round_: int) -> None:
        folder = self.folder / "series" / str(round_)
        episodes = self._frames()
        missing = [i for i, path in enumerate(episodes.paths) if not (folder / path.name).exists()]
        if not missing or self._round_of(self.folder / "mdnrnn.npz") >= round_:
            return
        v = agents.new_vae(self.config)
        v.params.flat[:] = agents.load_vector(self.folder / "vae.npz", "params", v.params.flat.shape)
        for old in (self.folder / "series").glob("*"):
            if old.name != folder.name:
                shutil.rmtree(old)  # of an older V
        done, total = 0, int(episodes.steps[missing].sum())
        with self.log.progress("encode", round_, total, "frames") as tell:
            for i in missing:
                records = episodes.read(i)
                series = np.zeros(len(records), self._series_dtype)
                for name in ("action", "reward", "done", "seen"):
                    series[name] = records[name]
                series["mu"], series["logvar"] = v.encode(records["frame"])
                write_array(folder / episodes.paths[i].name, series)
                done += len(records) - 1
                tell(done)

    def _mdnrnn(self, round_: int) -> None:
        c, path = self.config.mdnrnn, self.folder / "mdnrnn.npz"
        if self._round_of(path) >= round_:
            return
        seed = (self.config.seed, round_, STAGES.index("mdnrnn"))
        m = agents.new_mdnrnn(self.config, np.random.default_rng(seed))
        if round_ > 1:
            m.params.flat[:] = agents.load_vector(path, "params", m.params.flat.shape)
        series = Records(self.folder / "series" / str(round_), self._series_dtype)
        batches = SeriesBatches(series, c.batch, c.window, seed)
        updates = c.updates or c.epochs * batches.per_epoch
        self._fit("mdnrnn", round_, m.params, lambda u: m.loss_and_grad(batches(u)), updates, c, c.clip)
        firsts = [series.read(i, 0, 1)[0] for i in range(min(STARTS, len(series.paths)))]
        starts = np.stack([[first["mu"] for first in firsts], [first["logvar"] for first in firsts]])
        self._finish(path, round_, params=m.params.flat, starts=starts)

    def _evolve(self, round_: int) -> None:
        c, path = self.config.evolve, self.folder / "controller.npz"
        if self._round_of(path) >= round_:
            return
        size, seed = agents.vector_size(self.config), (self.config.seed, round_, STAGES.index("evolve"))
        mean = np.zeros(size) if round_ == 1 else agents.load_vector(path, "vector", (size,))
        agent = self._agent(mean)
        cma = CMAES(mean, c.sigma, c.population, seed=seed)

        def play(vectors: np.ndarray, seeds: np.ndarray) -> np.ndarray:
            if c.world == "dream":
                return dream_rollouts(agent, vectors, seeds)[0]
            return real_rollouts(agent, vectors, seeds, self.log.line)[0]

        def fitness(vectors: np.ndarray, generation: int) -> np.ndarray:
            returns = play(vectors, episode_seeds("evolve", c.episodes, *seed, generation))
            return returns.mean(axis=1) - c.penalty * np.mean(vectors**2, axis=1)

        def check(vector: np.ndarray, generation: int) -> float:
            seeds = episode_seeds("check", c.check_episodes, *seed)  # the same at every check: fewer lucky ones
            return float(real_rollouts(agent, vector[None], seeds, self.log.line)[0].mean())

        with self.log.progress("evolve", round_, c.generations, "generations") as tell:
            vector, generation = evolve(
                cma,
                fitness,
                c.generations,
                self._state("controller", round_),
                lambda n, figures: tell(n, **figures),
                check,
                c.check_every,
            )
        self._finish(path, round_, vector=vector, generation=np.array(generation))

    def _evaluate(self, round_: int) -> None:
        path = self.folder / "results.json"
        results = read_results(path) if path.exists() else {}
        if results.get("round") != round_:
            results = {"round": round_, "task": self.config.task, "preset": self.config.preset}
        n, seed = self.config.evaluate.episodes, self.config.seed
        for who in ("random", "agent", "dream"):
            if who not in results:
                agent = None if who == "random" else self._agent()
                if who == "dream":  # the same agent in its own dream
                    returns, _ = dream_rollouts(agent, agent.vector[None], episode_seeds("evaluate", n, seed))
                    results[who] = score(returns) | {"tau": self.config.evolve.tau}
                else:
                    results[who] = evaluate(self.config.task, agent, n, seed, self.log, round_)
                write_text(path, json.dumps(results, indent=1) + "\n")

    # ------------------------------------------------------------------------------------------------- what they share

    def _fit(self, stage: str, round_: int, params, loss_and_grad: Callable, updates: int, c, clip=None) -> None:
        def rate(update: int) -> float:
            return c.final_rate + (c.learning_rate - c.final_rate) * c.decay**update

        with self.log.progress(stage, round_, updates, "updates") as tell:
            report = lambda n, losses: tell(n, **losses)  # noqa: E731
            fit(params, loss_and_grad, updates, rate, self._state(stage, round_), report, clip)

    def _finish(self, path: Path, round_: int, **arrays: np.ndarray) -> None:
        """The result first, then away with the state to resume from."""
        write_arrays(path, arrays | {"round": np.array(round_)})
        self._state(path.stem, round_).unlink(missing_ok=True)

    def _state(self, name: str, round_: int) -> Path:
        """Where a stage keeps what it needs to resume: a round's own, lest a later one take it up."""
        return self.folder / f"{name}.{round_}.state.npz"

    @staticmethod
    def _round_of(path: Path) -> int:
        """The round whose result a file holds; 0: there is none."""
        return int(read_arrays(path, "round")["round"]) if path.exists() else 0

    @property
    def _series_dtype(self) -> np.dtype:
        return series_dtype(self.config.vae.z_size, ENVIRONMENTS[self.config.task].action_size)

    def _frames(self) -> Records:
        return Records(self.episodes, frame_dtype(ENVIRONMENTS[self.config.task].action_size))

    def _agent(self, vector: np.ndarray | None = None) -> Agent:
        """The newest V, M and C."""
        v, m, starts = agents.load_models(self.folder, self.config)
        if vector is None:
            size = agents.vector_size(self.config)
            vector = agents.load_vector(self.folder / "controller.npz", "vector", (size,))
        return Agent(self.config, v, m, vector, starts)


def read_results(path: Path) -> dict:
    """results.json of a run, as far as it has come."""
    try:
        results = json.loads(path.read_text())
        if not isinstance(results, dict) or results["task"] not in ENVIRONMENTS:
            raise ValueError("not the results of a run")
        return results
    except FileNotFoundError:
        raise DataError(f"{path} is missing: `train` has not reached its last stage yet") from None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error}): delete it and repeat `train`") from None


def branch(run: str | Path, folder: Path, settings: dict) -> Experiment:
    """A run with another's V and M, for C to be evolved and evaluated anew under other settings.

    Args:
        run: what agent.run_folder takes; its V and M are finished.
        folder: of the new run.
        settings: what differs, {"evolve.tau": 1.0, ...}.
    """
    parent = agents.run_folder(run)
    values = configuration.flat(agents.load_config(parent)) | settings | {"rounds": 1}
    experiment = Experiment(configuration.from_flat(values), folder)
    for name in ("vae.npz", "mdnrnn.npz"):
        if not (folder / name).exists():
            write_arrays(folder / name, read_arrays(parent / name))
    return experiment


def evaluate(task: str, agent: Agent | None, episodes: int, seed: int, log: Log, round_: int = 1) -> dict:
    """Play real episodes, on seeds used for nothing else: the agent's, or the random policy's when there is none.

    Returns:
        score() with the seed and the mean length.
    """
    seeds = episode_seeds("evaluate", episodes, seed)
    done = 0
    with log.progress("evaluate", round_, episodes, "episodes") as tell:

        def progress(k: int) -> None:
            nonlocal done
            done += k
            tell(done)

        if agent is None:
            returns, lengths = blind_rollouts(task, seeds, log.line, progress)
        else:
            returns, lengths = real_rollouts(agent, agent.vector[None], seeds, log.line, progress)
    return score(returns) | {"length": float(lengths.mean()), "seed": seed}
