"""The stages of a run (paper, section 3.4): collect, V, encode, M, C, select, reality, evaluate.

A stage is a function of a run folder and a round; it does what is missing there. Its random numbers depend on the
seed, the round and its own place in that list, never on what happened before.
"""

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from ..core.arrays import Params
from ..models.agent import Agent, new_mdnrnn, new_vae, read_weights, theta_size
from ..models.cmaes import CMAES
from ..settings.config import Config, Training, flat
from ..system.files import read_arrays, write
from ..worlds.rollout import dream_rollouts
from . import episodes
from .data import FrameBatches, Records, SeriesBatches, encoded
from .loops import evolve, fit
from .runfolder import RunFolder, read_results, remove

MEAN_OF = 2000  # frames in the mean frame, which V is centred on and the foreground differs from
STARTS = 1000  # first frames, and as many recorded moments, kept with M to start dreams from
FRAMELESS = 10**6  # the number of the first episode of which no frames are kept
WARM = 24  # steps of the episode that M sees before a recorded moment
FINAL = 4  # finalists play so many times the episodes of a check


def collect(run: RunFolder, round_: int) -> None:
    """Play this round's episodes: random ones in the first, later the agent's own, with noise.

    Reads the agent; writes episodes/; draws the games and, game by game, the actions.
    """
    c = run.config.phase(round_)
    paths = run.new_episodes(round_)
    # Agents play in fixed groups, so a group with a missing file is played again as a whole.
    size = 1 if round_ == 1 else episodes.GROUP
    groups = [paths[i : i + size] for i in range(0, len(paths), size)]
    whole = [all(path.exists() for path in group) for group in groups]
    missing = [i for i in range(len(paths)) if not whole[i // size]]
    if round_ == 1:
        agent = None
        how = _blindly(c)
    else:
        agent = Agent.load(run.folder, adapted=False)  # more rounds may follow the last one
        how = {"actor": partial(episodes.Explorer, noise=c.collect.noise, spread=c.collect.spread)}
    how["paths"] = [paths[i] for i in missing]
    seeds = episodes.episode_seeds("collect", len(paths), c.seed, round_)[missing]
    episodes.play(
        c.task, agent, seeds, run.log, "collect", round_, len(paths) - len(missing), **how
    )


def _blindly(c: Config) -> dict:
    """How random episodes are played."""
    policy = episodes.collecting_policy(c)
    return {"min_length": c.collect.min_length, "make_policy": policy, "repeat": c.repeat}


def train_v(run: RunFolder, round_: int) -> None:
    """Train V on the frames of all episodes so far, unless it is to stay as it is.

    Reads episodes/; writes vae.npz; draws its first weights, the batches and the noise of z.
    """
    c = run.config.phase(round_)
    seed = _seed(run, "vae", round_)
    v = new_vae(c, np.random.default_rng(seed))
    if _v_stays(run, round_):
        read_weights(run.folder / "vae.npz", v.params)
        return run.finish("vae.npz", round_, weights=v.params.flat)
    recorded = run.all_episodes()
    batches = FrameBatches(recorded, c.vae.batch, seed)
    v.centre(FrameBatches(recorded, MEAN_OF, (*seed, 2))(0))

    def loss_and_grad(update: int):
        frames = batches(update)
        rng = np.random.default_rng([*seed, update, 1])
        noise = rng.standard_normal((len(frames), c.vae.z_size), np.float32)
        return v.loss_and_grad(frames, noise)

    _fit(run, "vae", round_, c.vae, v.params, loss_and_grad, batches.per_epoch)
    run.finish("vae.npz", round_, weights=v.params.flat)


def _v_stays(run: RunFolder, round_: int) -> bool:
    """Whether V is that of the round before."""
    return round_ > 1 and not run.config.phase(round_).vae.learning_rate


def encode(run: RunFolder, round_: int) -> None:
    """Turn every frame of every episode into V's (mu, logvar); play those of which no frames are kept.

    Reads vae.npz and episodes/; writes series/; draws the games of collect.more.
    """
    c = run.config.phase(round_)
    folder, before = run.series(round_), run.series(round_ - 1)
    if _v_stays(run, round_) and before.exists() and not folder.exists():
        before.rename(folder)
    recorded = run.all_episodes()
    missing = [i for i, path in enumerate(recorded.paths) if not (folder / path.name).exists()]
    more = [folder / f"{FRAMELESS + i}.npy" for i in range(c.collect.more)]
    unplayed = [i for i, path in enumerate(more) if not path.exists()]
    if not missing and not unplayed:
        return
    v = new_vae(c)
    read_weights(run.folder / "vae.npz", v.params)
    for old in folder.parent.glob("[0-9]*"):
        if old != folder:
            remove(old)  # of an older V
    series = partial(encoded, dtype=run.series_dtype, encode=v.encode, gamma=c.mdnrnn.gamma)
    if missing:
        done = np.cumsum(recorded.steps[missing])
        with run.log.progress("encode", round_, int(done[-1]), "frames") as report:
            for i, frames in zip(missing, done, strict=True):
                write(folder / recorded.paths[i].name, series(recorded.read(i)))
                report(int(frames))
    if unplayed:
        seeds = episodes.episode_seeds("collect", len(more), c.seed, 0)[unplayed]
        how = _blindly(c) | {"paths": [more[i] for i in unplayed], "encode": series}
        played = len(more) - len(unplayed)
        episodes.play(c.task, None, seeds, run.log, "encode", round_, played, **how)


def train_m(run: RunFolder, round_: int) -> None:
    """Train M on the series of all episodes so far, and keep where dreams can begin.

    Reads series/; writes mdnrnn.npz; draws its first weights, the batches, the moments.
    """
    c = run.config.phase(round_)
    seed = _seed(run, "mdnrnn", round_)
    m = new_mdnrnn(c, np.random.default_rng(seed))
    series = Records(run.series(round_), run.series_dtype)
    sizes = [len(run.new_episodes(r)) for r in range(1, round_ + 1)]
    weights = shares(sizes, len(series.paths)) if c.mdnrnn.fair else None
    sizes[0] += c.collect.more
    batches = SeriesBatches(series, c.mdnrnn.batch, c.mdnrnn.window, seed, weights)
    if round_ > 1:
        fair = ", a round as much as any other" if c.mdnrnn.fair else ""
        data = f"{sizes[0]:,} random episodes and {sum(sizes[1:]):,} of the agent's own"
        run.log.line(f"round {round_}: M learns from {data}{fair}")

    def loss_and_grad(update: int):
        return m.loss_and_grad(batches(update))

    _fit(run, "mdnrnn", round_, c.mdnrnn, m.params, loss_and_grad, batches.per_epoch)
    count = min(STARTS, len(series.paths))
    firsts = np.concatenate([series.read(i, 0, 1) for i in range(count)])
    moments = {k: x.swapaxes(0, 1) for k, x in batches.memories(STARTS, WARM).items()}
    *_, state = m.follow(*(moments[name][:-1] for name in ("mu", "action", "restart")))
    new = moments["restart"][-1][:, None] == 1  # the first frame of an episode has no past
    h, cell = (np.where(new, 0, part) for part in state)
    run.finish(
        "mdnrnn.npz",
        round_,
        weights=m.params.flat,
        initial_latents=np.stack([firsts["mu"], firsts["logvar"]]),
        memory_z=np.stack([moments["mu"][-1], moments["logvar"][-1]]),
        memory_h=h,
        memory_c=cell,
    )


def shares(sizes: list[int], files: int) -> np.ndarray:
    """How much each episode counts (files,) so that rounds of these sizes count equally; the rest are of the first."""
    rounds = np.zeros(files, int)
    rounds[: sum(sizes)] = np.repeat(np.arange(len(sizes)), sizes)
    return 1 / np.bincount(rounds)[rounds]


def evolve_c(run: RunFolder, round_: int) -> None:
    """Evolve C in the dream or in reality, from the C of the round before.

    Shrunk, if asked: where the weights of C have grown, its tanh is saturated, and a candidate hardly differs.
    Reads vae.npz, mdnrnn.npz and the last controller.npz; writes controller.npz; draws candidates and episodes.
    """
    c = run.config.phase(round_)
    mean = np.zeros(theta_size(c)) if round_ == 1 else c.evolve.shrink * run.theta()
    _evolution(run, "evolve", round_, c, mean)


def select(run: RunFolder, round_: int) -> None:
    """Keep the agents of the best rounds, by their checks; after the last one the best of them is the agent.

    To tell which, they and the last one play the same new games. Reads finalists/; writes them, selected.npz and, at
    the end, the winner's mdnrnn.npz and controller.npz; draws the games.
    """
    c = run.config.phase(round_).evolve
    newest = run.folder / "finalists" / str(round_)
    if not (newest / "config.json").exists():
        newest.mkdir(parents=True, exist_ok=True)
        for name in ("vae.npz", "mdnrnn.npz", "controller.npz"):
            shutil.copy(run.folder / name, newest)
        write(newest / "config.json", flat(run.config))  # now it is whole
    last = round_ == run.config.rounds
    kept = sorted(newest.parent.iterdir(), key=_check_of, reverse=True)
    for path in kept[c.finalists :]:
        if not (last and path == newest):
            remove(path)
            kept.remove(path)
    if last:
        count = FINAL * c.check_episodes
        seeds = episodes.episode_seeds("check", count, *_seed(run, "evolve", round_), 1)
        means = {}
        for path in kept:
            name = f"select, round {path.name}"
            returns, _ = episodes.play(
                run.config.task, Agent.load(path), seeds, run.log, name, round_
            )
            means[path] = returns.mean()
        best = max(kept, key=means.get)
        told = ", ".join(f"{path.name}: {means[path]:.1f}" for path in kept)
        run.log.line(f"the agent is that of round {best.name} ({told})")
        for name in ("mdnrnn.npz", "controller.npz"):
            write(run.folder / name, read_arrays(best / name) | {"round": np.array(round_)})
    write(run.folder / "selected.npz", {"round": np.array(round_)})


def _check_of(finalist: Path) -> float:
    return float(read_arrays(finalist / "controller.npz", check=())["check"])


def adapt(run: RunFolder, round_: int) -> None:
    """Evolve the last round's C further in reality; V and M stay as they are.

    Its checks begin before the first generation: if none is better than that, C stays as it was.
    Reads vae.npz, mdnrnn.npz and controller.npz; writes adapted.npz; draws candidates and episodes.
    """
    c = run.config.phase("real")
    _evolution(run, "adapt", round_, c, run.theta(), check_first=True)


def score_all(run: RunFolder, round_: int) -> None:
    """Score the random policy, the agent (before it was adapted, too) and its dream.

    Reads the agent; writes results.json; draws held-out games.
    """
    c = run.config
    n = c.evaluate.episodes
    results, missing = _scores(run, round_)
    for name in missing:
        agent = None
        if name != "random":
            agent = Agent.load(run.folder, adapted=name != "unadapted")
        if name == "dream":  # the same agent in its own dream
            seeds = episodes.episode_seeds("evaluate", n, c.seed)
            returns, _ = dream_rollouts(agent, agent.theta[None], seeds)
            dream = agent.config.evolve
            steps = dream.horizon or c.max_steps
            results[name] = episodes.score(returns) | {"tau": dream.tau, "steps": steps}
        else:
            results[name] = episodes.evaluate(c.task, agent, n, c.seed, run.log, round_, name)
        write(run.folder / "results.json", results)


def _scores(run: RunFolder, round_: int) -> tuple[dict, list[str]]:
    """The scores that hold of results.json, and the names of those that are missing."""
    path = run.folder / "results.json"
    results = read_results(path) if path.exists() else {}
    scored = {result["episodes"] for result in results.values() if isinstance(result, dict)}
    if results.get("round") != round_ or scored - {run.config.evaluate.episodes}:
        results = {"round": round_, "task": run.config.task, "preset": run.config.preset}
    adapted = (run.folder / "adapted.npz").exists()
    if adapted and "agent" in results and "unadapted" not in results:
        # scored before it was adapted
        results["unadapted"] = results.pop("agent")
        results.pop("dream", None)
    names = ["random", *["unadapted"] * adapted, "agent", "dream"]
    return results, [name for name in names if name not in results]


# Every stage, with the file that makes it complete. That of "encode" is M: nothing else reads the series.
STAGES = {
    "collect": (collect, None),
    "vae": (train_v, "vae.npz"),
    "encode": (encode, "mdnrnn.npz"),
    "mdnrnn": (train_m, "mdnrnn.npz"),
    "evolve": (evolve_c, "controller.npz"),
    "select": (select, "selected.npz"),
    "adapt": (adapt, "adapted.npz"),
    "evaluate": (score_all, None),
}
DRAWING = ("collect", "vae", "encode", "mdnrnn", "evolve", "adapt")  # a place is part of the seed


def due(config: Config, name: str, round_: int) -> bool:
    """Whether a stage belongs to a round."""
    last = round_ == config.rounds
    asked = {"select": config.evolve.finalists, "adapt": last and config.ends_in_reality}
    return bool(asked.get(name, last or name != "evaluate"))


def complete(run: RunFolder, name: str, round_: int) -> bool:
    """Whether nothing of a stage is left to do."""
    if name == "collect":
        return all(path.exists() for path in run.new_episodes(round_))
    if name == "evaluate":
        return not _scores(run, round_)[1]
    return run.round_of(STAGES[name][1]) >= round_


def _seed(run: RunFolder, stage: str, round_: int) -> tuple[int, int, int]:
    return run.config.seed, round_, DRAWING.index(stage)


def _fit(
    run: RunFolder, stage: str, round_: int, c: Training, params: Params, loss_and_grad, per_epoch
) -> None:
    """Fit V or M, from where the round before left it."""
    result = STAGES[stage][1]
    if round_ > 1:
        read_weights(run.folder / result, params)
    updates = (c.updates or c.epochs * per_epoch) if c.learning_rate else 0
    with run.log.progress(stage, round_, updates, "updates") as report:
        fit(params, loss_and_grad, updates, c, run.state(result, round_), report)


def _evolution(
    run: RunFolder, stage: str, round_: int, config: Config, mean: np.ndarray, check_first=False
) -> None:
    """CMA-ES from a mean; fitness: the mean return of a candidate's episodes, less the penalty."""
    c = config.evolve
    seed = _seed(run, stage, round_)
    agent = replace(Agent.load(run.folder, mean), config=config)

    def real(thetas: np.ndarray, seeds: np.ndarray) -> np.ndarray:
        return episodes.real_rollouts(agent, thetas, seeds, run.log.line)[0]

    def fitness(thetas: np.ndarray, generation: int) -> np.ndarray:
        seeds = episodes.episode_seeds("evolve", c.episodes, *seed, generation)
        if c.world == "real":
            returns = real(thetas, seeds)
        else:
            returns, _ = dream_rollouts(agent, thetas, seeds)
            returns = np.minimum(returns, c.enough or np.inf)
        return returns - c.penalty * np.mean(thetas**2, axis=1, keepdims=True)

    def check(theta: np.ndarray, generation: int) -> float:
        # The same seeds at every check: fewer lucky ones.
        seeds = episodes.episode_seeds("check", c.check_episodes, *seed)
        return float(real(theta[None], seeds).mean())

    cma = CMAES(mean, c.sigma, c.population, seed=seed)
    result = STAGES[stage][1]
    how = {"log": run.log.line, "check_first": check_first}
    with run.log.progress(stage, round_, c.generations, "generations") as report:
        state = run.state(result, round_)
        theta, generation, check_of_it = evolve(
            cma, fitness, c.generations, state, report, check, c.check_every, **how
        )
    found = {"generation": np.array(generation), "check": np.array(check_of_it)}
    run.finish(result, round_, theta=theta, **found)
