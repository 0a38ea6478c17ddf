"""The paper's procedure (section 3.4): collect, V, encode, M, C, evaluate; round after round.

Every stage looks at what the run folder already holds, so that a stopped run goes on from there. Random numbers
depend on the seed, the round and the place in the stage, never on what happened before.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from ..core.arrays import Params
from ..core.files import DataError, alone, is_empty, read_arrays, write
from ..models.agent import (
    Agent,
    load_config,
    new_mdnrnn,
    new_vae,
    read_weights,
    run_folder,
    theta_size,
)
from ..models.cmaes import CMAES
from ..settings.config import Config, EvolveConfig, SettingError, Training, flat, from_flat
from ..settings.tasks import find
from ..worlds.policies import random_policy
from ..worlds.rollout import dream_rollouts
from .data import FrameBatches, Records, SeriesBatches, encoded, frame_dtype, series_dtype
from .episodes import GROUP, blind_rollouts, real_rollouts
from .log import Log
from .loops import RunError, evolve, fit

STAGES = ("collect", "vae", "encode", "mdnrnn", "evolve", "select", "adapt", "evaluate")
DRAWING = ("collect", "vae", "encode", "mdnrnn", "evolve", "adapt")  # a place is part of the seed
# The file that makes a stage complete. "encode" is, once M is trained: nothing else reads the series.
RESULTS = {
    "vae": "vae.npz",
    "encode": "mdnrnn.npz",
    "mdnrnn": "mdnrnn.npz",
    "evolve": "controller.npz",
    "select": "selected.npz",
    "adapt": "adapted.npz",
}
PURPOSES = ("collect", "evolve", "check", "evaluate")  # seeds of one purpose are used for no other
MEAN_OF = 2000  # frames in the mean frame, which V is centred on and the foreground differs from
STARTS = 1000  # first frames, and as many recorded moments, kept with M to start dreams from
WARM = 24  # steps of the episode that M sees before a recorded moment


def episode_seeds(purpose: str, n: int, *key: int) -> np.ndarray:
    """n environment seeds for a purpose; the four purposes have ranges of their own."""
    drawn = np.random.SeedSequence(key).generate_state(n) % 2**28
    return (drawn + PURPOSES.index(purpose) * 2**28).astype(np.int64)


def collecting_policy(config: Config) -> Callable:
    """rng -> the random policy of one episode, as the first round collects with it."""
    c = config.collect
    policy = partial(random_policy, config.task, repeat=config.repeat)
    return partial(policy, hold=c.hold, long_hold=c.long_hold)


def later(round_: int, first: float, other: float) -> float:
    """A setting's value in a round: `first` in round 1, then `other`, where 0 stands for the same."""
    return first if round_ == 1 or not other else other


def score(returns: np.ndarray) -> dict[str, float]:
    """Mean, standard deviation and 95 % interval of the mean (normal) of episodes' returns."""
    n = np.size(returns)
    mean = float(np.mean(returns))
    sd = float(np.std(returns, ddof=1))
    half = 1.96 * sd / np.sqrt(n)
    return {"mean": mean, "sd": sd, "ci95": [mean - half, mean + half], "episodes": n}


class Experiment:
    """A run folder, made if missing, and the stages that fill it.

    RunError: the folder is of another configuration (more rounds may follow); in `run`: the disk is too small.
    """

    def __init__(self, config: Config, folder: Path):
        self.config = config
        self.folder = folder
        self.episodes = folder / "episodes"
        path = folder / "config.json"
        mine = flat(config)
        if path.exists():
            theirs = flat(load_config(folder))
            free = {"preset"}  # settings that may differ; this one decides nothing
            if mine["rounds"] > theirs["rounds"]:
                free.add("rounds")
            if theirs["rounds"] == 1:
                free |= {key for key in mine if ".later_" in key}
            if not theirs["evolve.real_generations"]:
                free |= {key for key in mine if ".real_" in key}
            other = [k for k in mine if mine[k] != theirs[k] and k not in free]
            if other:
                what = ", ".join(f"{k} is {theirs[k]} there and {mine[k]} here" for k in other[:3])
                raise RunError(f"{folder} holds another run ({what}): choose another --out")
        elif not is_empty(folder):
            raise RunError(f"{folder} is not empty and not a run folder: choose another --out")
        else:
            write(path, mine)
        self.log = Log(folder)
        actions = find(config.task).actions
        self.frame_dtype = frame_dtype(actions)
        self.series_dtype = series_dtype(config.vae.z_size, actions, config.mdnrnn.value_head)

    def disk_needed(self) -> float:
        """About how many bytes the episodes of all rounds and the series of one take."""
        random, agent = find(self.config.task).lengths
        frames = random * self._episodes(1) + agent * self._episodes(2) * (self.config.rounds - 1)
        record = self.frame_dtype.itemsize + self.series_dtype.itemsize
        return frames / self.config.repeat * record + 200e6

    def _episodes(self, round_: int) -> int:
        """How many a round collects."""
        return later(round_, self.config.collect.episodes, self.config.collect.later_episodes)

    def _weights(self, files: int, c: Training) -> np.ndarray | None:
        """How much each of the first `files` episodes counts in a batch, if rounds count equally."""
        if not c.fair:
            return None
        weights = np.zeros(files)
        first = 0
        for round_ in range(1, self.config.rounds + 1):
            last = first + self._episodes(round_)
            weights[first:last] = 1 / (last - first)
            first = last
        return weights

    def run(self, stages: Sequence[str] = STAGES) -> None:
        """Run these stages of every round that are not complete yet; one process at a time."""
        with alone(self.folder):
            write(self.folder / "config.json", flat(self.config))
            self._run(stages)

    def _run(self, stages: Sequence[str]) -> None:
        here = sum(f.stat().st_size for f in self.folder.rglob("*") if f.is_file())
        needed = self.disk_needed() / 1e9
        free = (shutil.disk_usage(self.folder).free + here) / 1e9
        if "collect" in stages and needed > free:
            what = f"this run needs about {needed:.1f} GB in {self.folder}"
            mend = "choose another --out, or fewer collect.episodes"
            raise RunError(f"{what}, where {free:.1f} GB are free: {mend}")
        for round_ in range(1, self.config.rounds + 1):
            for stage in stages:
                complete = stage in RESULTS and self._round_of(RESULTS[stage]) >= round_
                due = stage not in ("adapt", "evaluate") or round_ == self.config.rounds
                if due and not complete:
                    getattr(self, f"_{stage}")(round_)
            if self._round_of("controller.npz") < round_:
                return  # the next round needs this one's agent

    def _round_of(self, result: str) -> int:
        """The round that a result file is of; 0: there is no file."""
        path = self.folder / result
        return int(read_arrays(path, round=())["round"]) if path.exists() else 0

    def _seed(self, stage: str, round_: int) -> tuple[int, int, int]:
        return self.config.seed, round_, DRAWING.index(stage)

    def _collect(self, round_: int) -> None:
        """Play this round's episodes: random ones in round 1, later the agent's own, with noise."""
        c = self.config
        n = self._episodes(round_)
        before = sum(self._episodes(r) for r in range(1, round_))
        paths = [self.episodes / f"{before + i:06d}.npy" for i in range(n)]
        # Agents play in fixed groups, so a group with a missing file is played again as a whole.
        size = 1 if round_ == 1 else GROUP
        whole = [all(path.exists() for path in paths[i : i + size]) for i in range(0, n, size)]
        missing = [i for i in range(n) if not whole[i // size]]
        if not missing:
            return
        if round_ == 1:
            agent = None
            policy = collecting_policy(c)
            how = {"min_length": c.collect.min_length, "make_policy": policy, "repeat": c.repeat}
        else:
            agent = Agent.load(self.folder, adapted=False)  # more rounds may follow the last one
            how = {"noise": c.collect.noise, "spread": c.collect.spread}
        how["paths"] = [paths[i] for i in missing]
        seeds = episode_seeds("collect", n, c.seed, round_)[missing]
        play(c.task, agent, seeds, self.log, "collect", round_, n - len(missing), **how)

    def _vae(self, round_: int) -> None:
        """Train V on the frames of all episodes so far, in the rounds in which it learns."""
        c = self.config.vae
        seed = self._seed("vae", round_)
        v = new_vae(self.config, np.random.default_rng(seed))
        if self._vae_is_kept(round_):
            path = self.folder / RESULTS["vae"]
            read_weights(path, v.params)
            self._finish(path, round_, weights=v.params.flat)
            return
        episodes = Records(self.episodes, self.frame_dtype)
        batches = FrameBatches(episodes, c.batch, seed, self._weights(len(episodes.paths), c))
        some = FrameBatches(episodes, MEAN_OF, (*seed, 2))(0)
        mean = some.mean(axis=0, dtype=np.float32) / 255  # (64, 64, 3)
        if c.start == "he":
            v.centre(mean.mean(axis=(0, 1)))

        def loss_and_grad(update: int):
            frames = batches(update)
            rng = np.random.default_rng([*seed, update, 1])
            noise = rng.standard_normal((len(frames), c.z_size), np.float32)
            weight = None
            if c.foreground:
                weight = 1 + c.foreground * np.mean((frames / np.float32(255) - mean) ** 2, axis=3)
            return v.loss_and_grad(frames, noise, weight)

        self._fit("vae", round_, v.params, loss_and_grad, batches.per_epoch)

    def _vae_is_kept(self, round_: int) -> bool:
        """Whether V stays as it was in the round before."""
        return round_ > (self.config.vae.rounds or self.config.rounds)

    def _encode(self, round_: int) -> None:
        """Turn every frame of every episode into V's (mu, logvar)."""
        folder = self.folder / "series" / str(round_)
        before = folder.with_name(str(round_ - 1))
        if self._vae_is_kept(round_) and before.exists() and not folder.exists():
            before.rename(folder)  # of the same V
        episodes = Records(self.episodes, self.frame_dtype)
        missing = [i for i, path in enumerate(episodes.paths) if not (folder / path.name).exists()]
        if not missing:
            return
        v = new_vae(self.config)
        read_weights(self.folder / "vae.npz", v.params)
        for old in (self.folder / "series").glob("[0-9]*"):
            if old.name != folder.name:
                shutil.rmtree(old)  # of an older V
        gamma = self.config.mdnrnn.gamma
        done = np.cumsum(episodes.steps[missing])
        with self.log.progress("encode", round_, int(done[-1]), "frames") as report:
            for i, frames in zip(missing, done, strict=True):
                series = encoded(episodes.read(i), self.series_dtype, v.encode, gamma)
                write(folder / episodes.paths[i].name, series)
                report(int(frames))

    def _mdnrnn(self, round_: int) -> None:
        """Train M on the series of all episodes so far, and store where dreams can begin."""
        c = self.config.mdnrnn
        seed = self._seed("mdnrnn", round_)
        m = new_mdnrnn(self.config, np.random.default_rng(seed))
        series = Records(self.folder / "series" / str(round_), self.series_dtype)
        weights = self._weights(len(series.paths), c)
        batches = SeriesBatches(series, c.batch, c.window, seed, weights)
        if own := sum(self._episodes(r) for r in range(2, round_ + 1)):
            data = f"{self._episodes(1):,} random episodes and {own:,} of the agent's own"
            shares = ", a round as much as any other" if c.fair else ""
            self.log.line(f"round {round_}: M learns from {data}{shares}")

        def loss_and_grad(update: int):
            return m.loss_and_grad(batches(update))

        def starts() -> dict[str, np.ndarray]:
            count = min(STARTS, len(series.paths))
            firsts = np.concatenate([series.read(i, 0, 1) for i in range(count)])
            moments = batches.memories(STARTS, WARM)
            state = m.initial_state(STARTS)
            for t in range(WARM):
                now = {name: x[:, t] for name, x in moments.items()}
                state = m.step(now["mu"], now["action"], state, now["restart"])
            first = moments["restart"][:, -1:] == 1  # the first frame of an episode has no past
            state = tuple(np.where(first, 0, part) for part in state)
            return {
                "initial_latents": np.stack([firsts["mu"], firsts["logvar"]]),
                "memory_z": np.stack([moments["mu"][:, -1], moments["logvar"][:, -1]]),
                "memory_h": state[0],
                "memory_c": state[1],
            }

        self._fit("mdnrnn", round_, m.params, loss_and_grad, batches.per_epoch, starts)

    def _fit(self, stage: str, round_: int, params: Params, loss_and_grad, per_epoch, more=dict):
        """Fit V or M, from where the round before left it; more(): the other arrays of its file."""
        c = getattr(self.config, stage)
        path = self.folder / RESULTS[stage]
        if round_ > 1:
            read_weights(path, params)
        first = c.updates or c.epochs * per_epoch
        updates = later(round_, first, c.later_updates)
        rate = later(round_, c.learning_rate, c.later_rate)
        decay = c.decay ** (first / updates)  # the rate falls as far in a shorter round
        c = replace(c, learning_rate=rate, decay=decay)
        with self.log.progress(stage, round_, updates, "updates") as report:
            fit(params, loss_and_grad, updates, c, self._state(path, round_), report)
        self._finish(path, round_, weights=params.flat, **more())

    def _evolve(self, round_: int) -> None:
        """Evolve C in the dream or in reality, from the C of the round before.

        Shrunk, if asked: where the weights of C have grown, its tanh is saturated, and a candidate hardly differs.
        """
        c = self.config.evolve
        mean = np.zeros(theta_size(self.config)) if round_ == 1 else c.shrink * self._theta()
        sigma = later(round_, c.sigma, c.later_sigma)
        generations = later(round_, c.generations, c.later_generations)
        self._evolution("evolve", round_, replace(c, sigma=sigma, generations=generations), mean)

    def _select(self, round_: int) -> None:
        """Keep the agents of the best rounds, by their checks; after the last round the best of them is the agent.

        To tell which, they and the last one play the same real episodes, four times as many as in a check.
        """
        c = self.config.evolve
        if not c.finalists or round_ < self.config.vae.rounds:  # V still learns
            return
        newest = self.folder / "finalists" / str(round_)
        if not (newest / "config.json").exists():
            newest.mkdir(parents=True, exist_ok=True)
            for stage in ("vae", "mdnrnn", "evolve"):
                shutil.copy(self.folder / RESULTS[stage], newest)
            write(newest / "config.json", flat(self.config))  # now it is whole
        last = round_ == self.config.rounds
        kept = list(newest.parent.iterdir())
        checks = {path: read_arrays(path / RESULTS["evolve"], check=())["check"] for path in kept}
        kept.sort(key=checks.get, reverse=True)
        for path in kept[c.finalists :]:
            if not (last and path == newest):
                kept.remove(path)
                shutil.rmtree(path)
        if last:
            seeds = episode_seeds("check", 4 * c.check_episodes, *self._seed("evolve", round_), 1)
            means = {}
            for path in kept:
                who = f"select, round {path.name}"
                returns, _ = play(self.config.task, Agent.load(path), seeds, self.log, who, round_)
                means[path] = returns.mean()
            best = max(kept, key=means.get)
            told = ", ".join(f"{path.name}: {means[path]:.1f}" for path in kept)
            self.log.line(f"the agent is that of round {best.name} ({told})")
            for stage in ("mdnrnn", "evolve"):
                arrays = read_arrays(best / RESULTS[stage])
                write(self.folder / RESULTS[stage], arrays | {"round": np.array(round_)})
        write(self.folder / RESULTS["select"], {"round": np.array(round_)})

    def _adapt(self, round_: int) -> None:
        """Evolve the last round's C further in the real environment, if asked; V and M stay as they are.

        Its checks begin before the first generation: if none is better than that, C stays as it was.
        """
        c = self.config.evolve
        if c.real_generations:
            c = replace(
                c,
                world="real",
                sigma=c.real_sigma or later(round_, c.sigma, c.later_sigma),
                episodes=c.real_episodes,
                generations=c.real_generations,
                check_every=c.real_check_every or c.check_every,
                check_episodes=c.real_check_episodes or c.check_episodes,
            )
            self._evolution("adapt", round_, c, self._theta(), check_first=True)

    def _theta(self) -> np.ndarray:
        """C as the evolve stage left it."""
        path = self.folder / RESULTS["evolve"]
        return read_arrays(path, theta=(theta_size(self.config),))["theta"]

    def _evolution(
        self, stage: str, round_: int, c: EvolveConfig, mean: np.ndarray, check_first: bool = False
    ) -> None:
        """CMA-ES from a mean; fitness: the mean return of a candidate's episodes, less the penalty."""
        path = self.folder / RESULTS[stage]
        seed = self._seed(stage, round_)
        agent = Agent.load(self.folder, mean)

        def real(thetas: np.ndarray, seeds: np.ndarray) -> np.ndarray:
            return real_rollouts(agent, thetas, seeds, self.log.line)[0]

        def fitness(thetas: np.ndarray, generation: int) -> np.ndarray:
            seeds = episode_seeds("evolve", c.episodes, *seed, generation)
            if c.world == "real":
                returns = real(thetas, seeds)
            else:
                returns, _ = dream_rollouts(agent, thetas, seeds)
                returns = np.minimum(returns, c.enough or np.inf)
            return returns - c.penalty * np.mean(thetas**2, axis=1, keepdims=True)

        def check(theta: np.ndarray, generation: int) -> float:
            # The same seeds at every check: fewer lucky ones.
            seeds = episode_seeds("check", c.check_episodes, *seed)
            return float(real(theta[None], seeds).mean())

        cma = CMAES(mean, c.sigma, c.population, seed=seed)
        state = self._state(path, round_)
        how = {"log": self.log.line, "check_first": check_first}
        with self.log.progress(stage, round_, c.generations, "generations") as report:
            theta, generation, score = evolve(
                cma, fitness, c.generations, state, report, check, c.check_every, **how
            )
        found = {"generation": np.array(generation), "check": np.array(score)}
        self._finish(path, round_, theta=theta, **found)

    def _state(self, result: Path, round_: int) -> Path:
        """The file that a stage resumes from: one per round, so that no later round picks it up."""
        return result.with_suffix(f".{round_}.state.npz")

    def _finish(self, result: Path, round_: int, **arrays: np.ndarray) -> None:
        """Write the result, and only then remove the state to resume from."""
        write(result, arrays | {"round": np.array(round_)})
        self._state(result, round_).unlink(missing_ok=True)

    def _evaluate(self, round_: int) -> None:
        """Score the random policy, the agent (before it was adapted, too) and its dream, in results.json."""
        path = self.folder / "results.json"
        c = self.config
        n = c.evaluate.episodes
        results = read_results(path) if path.exists() else {}
        if results.get("round") != round_:
            results = {"round": round_, "task": c.task, "preset": c.preset}
        adapted = (self.folder / RESULTS["adapt"]).exists()
        if adapted and "agent" in results and "unadapted" not in results:
            # scored before it was adapted
            results["unadapted"] = results.pop("agent")
            results.pop("dream", None)
        for who in ("random", "unadapted", "agent", "dream"):
            if who in results or (who == "unadapted" and not adapted):
                continue
            agent = None
            if who != "random":
                agent = Agent.load(self.folder, adapted=who != "unadapted")
            if who == "dream":  # the same agent in its own dream
                seeds = episode_seeds("evaluate", n, c.seed)
                returns, _ = dream_rollouts(agent, agent.theta[None], seeds)
                steps = c.evolve.horizon or c.max_steps
                results[who] = score(returns) | {"tau": c.evolve.tau, "steps": steps}
            else:
                results[who] = evaluate(c.task, agent, n, c.seed, self.log, round_, who)
            write(path, results)


def read_results(path: Path) -> dict:
    """results.json of a run, as far as the run has come."""
    try:
        results = json.loads(path.read_text())
        if not isinstance(results["task"], str):
            raise ValueError("not the results of a run")
        return results
    except FileNotFoundError:
        raise DataError(f"{path} is missing: `train` has not reached its last stage yet") from None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error}): delete it and repeat `train`") from None


def branch(run: str | Path, folder: Path, settings: dict) -> Experiment:
    """A run with the V and M of another, to evolve and evaluate C under other settings.

    `run`: what agent.run_folder takes; `settings`: what differs, {"evolve.tau": 1.0, ...}. If they change M, it is
    trained again, on the series of that run.
    """
    parent = run_folder(run)
    before = load_config(parent)
    alone = {"rounds": 1, "evolve.real_generations": 0, "evolve.finalists": 0}
    config = from_flat(flat(before) | alone | settings)
    of_series = ("vae.", "collect.", "repeat", "mdnrnn.gamma", "mdnrnn.value_head")
    for key in settings:  # refuse what would be written down, and ignored
        changed = key.startswith(of_series) and flat(config)[key] != flat(before)[key]
        if changed or key in alone or ".later_" in key or ".real_" in key:
            why = f"only C, or M on the series of {run}, is trained"
            raise SettingError(f"{key} cannot be changed here, where {why}: `train` another run")
    experiment = Experiment(config, folder)
    shared = ["vae.npz", "mdnrnn.npz"] if config.mdnrnn == before.mdnrnn else ["vae.npz"]
    for name in shared:
        if not (folder / name).exists():
            write(folder / name, read_arrays(parent / name))
    link = folder / "series" / "1"
    if len(shared) == 1 and not link.exists():
        series = list(parent.glob("series/[0-9]*"))
        if not series:
            raise RunError(f"{parent} has no series to train M on: name a run folder of `train`")
        link.parent.mkdir(exist_ok=True)
        link.unlink(missing_ok=True)  # to series that are gone
        link.symlink_to(series[0].resolve())
    return experiment


def evaluate(
    task: str, agent: Agent | None, episodes: int, seed: int, log: Log, round_=1, who="agent"
) -> dict:
    """Play real episodes on seeds used for nothing else -> score() with the seed and the mean length."""
    seeds = episode_seeds("evaluate", episodes, seed)
    returns, lengths = play(task, agent, seeds, log, f"evaluate {who}", round_)
    return score(returns) | {"length": float(lengths.mean()), "seed": seed}


def play(
    task: str, agent: Agent | None, seeds: np.ndarray, log, stage: str, round_: int, done=0, **how
) -> tuple[np.ndarray, np.ndarray]:
    """Real episodes of the agent, or of the random policy if it is None -> returns, lengths; with progress."""
    with log.progress(stage, round_, done + len(seeds), "episodes") as report:

        def progress(more: int) -> None:
            nonlocal done
            done += more
            report(done)

        if agent is None:
            return blind_rollouts(task, seeds, log.line, progress, **how)
        return real_rollouts(agent, agent.theta[None], seeds, log.line, progress, **how)
