"""The stages of a run (paper, "Procedure" in sections 3 and 4): collect, V, encode, M, C, select, reality, evaluate.

A stage is a function of a run folder and a round; it does what is missing there. Its random numbers depend on the
seed, the round and its own place in that list, never on what happened before.
"""

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from ..core.arrays import Params
from ..envs.policies import blind_baseline
from ..models.agent import Agent, new_mdnrnn, new_vae, read_weights, save_config, theta_size
from ..models.cmaes import CMAES
from ..models.mdnrnn import MDNRNN
from ..settings.config import Config, Training
from ..settings.tasks import find
from ..system.files import read_arrays, write
from ..worlds.rollout import dream_rollouts
from . import episodes
from .data import FrameBatches, Records, SeriesBatches, encoded
from .loops import evolve, fit
from .runfolder import RunFolder, read_results, remove

CENTRED_ON = 2000  # frames that V's mean frame is the mean of
STARTS = 1000  # first frames, and as many recorded moments, kept with M to start dreams from
WARM = 24  # steps of the episode that M sees before a recorded moment
FRAMELESS = 10**6  # the number of the first episode whose frames are not kept
FINAL = 4  # finalists play this many times the episodes of a check


def collect(run: RunFolder, round_: int) -> None:
    """Play this round's episodes: random ones in the first, later the agent's own, with noise.

    Reads the agent; writes episodes/; draws the games and, game by game, the actions.
    """
    c = run.config.phase(round_)
    paths = run.new_episodes(round_)
    if round_ == 1:
        return _record(run, "collect", round_, paths, key=1, **_random_player(c))
    agent = Agent.load(run.folder, adapted=False)  # more rounds may follow the last one
    explorer = partial(episodes.Explorer, noise=c.collect.noise, spread=c.collect.spread)
    _record(run, "collect", round_, paths, round_, agent, actor=explorer)


def _record(
    run: RunFolder, stage: str, round_: int, paths: list[Path], key: int, agent=None, **player
) -> None:
    """Play the episodes whose files are missing, of the agent or of a random player; key: of their seeds."""
    # Agents play in fixed groups, so a group with a missing file is played again as a whole.
    size = episodes.GROUP if agent else 1
    groups = [paths[i : i + size] for i in range(0, len(paths), size)]
    whole = [all(path.exists() for path in group) for group in groups]
    missing = [i for i in range(len(paths)) if not whole[i // size]]
    if missing:
        c = run.config
        seeds = episodes.episode_seeds("collect", len(paths), c.seed, key)[missing]
        player["paths"] = [paths[i] for i in missing]
        done = len(paths) - len(missing)
        episodes.play(c.task, agent, seeds, run.log, stage, round_, done, **player)


def _random_player(c: Config) -> dict:
    """Arguments of blind_rollouts for random episodes to learn from."""
    policy = episodes.collecting_policy(c)
    return {"min_length": c.collect.min_length, "make_policy": policy, "repeat": c.repeat}


def train_v(run: RunFolder, round_: int) -> None:
    """Train V on the frames of all episodes so far, unless this round keeps the last one's.

    Reads episodes/; writes vae.npz; draws its first weights, the batches and the noise of z.
    """
    c = run.config.phase(round_)
    seed = _seed(run, "vae", round_)
    v = new_vae(c, np.random.default_rng(seed))
    if _keeps_v(run, round_):
        read_weights(run.folder / "vae.npz", v.params)
        run.log.line(f"{run.log.place}vae       stays as it is")
        return run.finish("vae.npz", round_, weights=v.params.flat)
    recorded = run.all_episodes()
    batches = FrameBatches(recorded, c.vae.batch, seed)
    v.centre(FrameBatches(recorded, CENTRED_ON, (*seed, 2))(0))

    def loss_and_grad(update: int):
        frames = batches(update)
        rng = np.random.default_rng([*seed, update, 1])
        noise = rng.standard_normal((len(frames), c.vae.z_size), np.float32)
        if update < c.vae.noise_warmup:
            # In a bare scene mu varies by 0.02 at first; noise of 1 can hide for good what it says.
            noise *= update / c.vae.noise_warmup
        return v.loss_and_grad(frames, noise)

    _fit(run, "vae", round_, c.vae, v.params, loss_and_grad, batches.per_epoch)
    run.finish("vae.npz", round_, weights=v.params.flat)


def _keeps_v(run: RunFolder, round_: int) -> bool:
    """Whether V stays that of the round before."""
    return round_ > 1 and not run.config.phase(round_).vae.learning_rate


def encode(run: RunFolder, round_: int) -> None:
    """Turn every frame of every episode so far into V's (mu, logvar); play those whose frames are not kept.

    Reads vae.npz and episodes/; writes series/; draws the games of collect.more.
    """
    c = run.config.phase(round_)
    folder, before = run.series(round_), run.series(round_ - 1)
    if _keeps_v(run, round_) and before.exists() and not folder.exists():
        before.rename(folder)
    for old in folder.parent.glob("[0-9]*"):
        if old != folder:
            remove(old)  # of an older V
    v = new_vae(c)
    read_weights(run.folder / "vae.npz", v.params)
    series = partial(encoded, dtype=run.series_dtype, encode=v.encode, gamma=c.mdnrnn.gamma)
    recorded = run.all_episodes()
    missing = [i for i, path in enumerate(recorded.paths) if not (folder / path.name).exists()]
    frames = np.cumsum(recorded.steps[missing]).tolist()
    if missing:
        with run.log.progress("encode", round_, frames[-1], "frames") as report:
            for i, done in zip(missing, frames, strict=True):
                write(folder / recorded.paths[i].name, series(recorded.read(i)))
                report(done)
    more = [folder / f"{FRAMELESS + i}.npy" for i in range(c.collect.more)]
    _record(run, "encode", round_, more, key=0, encode=series, **_random_player(c))


def train_m(run: RunFolder, round_: int) -> None:
    """Train M on the series of all episodes so far, and keep where dreams can begin.

    Reads series/; writes mdnrnn.npz; draws its first weights, the batches, the moments.
    """
    c = run.config.phase(round_)
    seed = _seed(run, "mdnrnn", round_)
    m = new_mdnrnn(c, np.random.default_rng(seed))
    series = Records(run.series(round_), run.series_dtype)
    sizes = [len(run.new_episodes(r)) for r in range(1, round_ + 1)]
    weights = shares(sizes, len(series.paths)) if c.mdnrnn.fair else 1.0
    batches = SeriesBatches(series, c.mdnrnn.batch, c.mdnrnn.window, seed, weights)
    if round_ > 1:
        random, own = sizes[0] + c.collect.more, sum(sizes[1:])
        fair = ", all rounds weighted equally" if c.mdnrnn.fair else ""
        data = f"{random:,} random episodes and {own:,} of the agent's own"
        run.log.line(f"round {round_}: M learns from {data}{fair}")

    def loss_and_grad(update: int):
        return m.loss_and_grad(batches(update))

    _fit(run, "mdnrnn", round_, c.mdnrnn, m.params, loss_and_grad, batches.per_epoch)
    run.finish("mdnrnn.npz", round_, weights=m.params.flat, **_starts(m, batches))


def shares(sizes: list[int], files: int) -> np.ndarray:
    """Weights of files (files,), by which rounds of these sizes count equally; further files belong to the first."""
    rounds = np.zeros(files, int)
    rounds[: sum(sizes)] = np.repeat(np.arange(len(sizes)), sizes)
    return 1 / np.bincount(rounds)[rounds]


def _starts(m: MDNRNN, batches: SeriesBatches) -> dict[str, np.ndarray]:
    """Where dreams can begin: first frames, and recorded moments with the state that M has there."""
    series = batches.series
    firsts = np.concatenate([series.read(i, 0, 1) for i in range(len(series.paths[:STARTS]))])
    moments, restart = batches.memories(STARTS, WARM)
    past, now = moments[:, :-1].T, moments[:, -1]
    *_, state = m.follow(past["mu"], past["action"], restart[:, :-1].T)
    new = restart[:, -1:] == 1  # the first frame of an episode has no past
    h, cell = (np.where(new, 0, part) for part in state)
    return {
        "initial_latents": np.stack([firsts["mu"], firsts["logvar"]]),
        "memory_z": np.stack([now["mu"], now["logvar"]]),
        "memory_h": h,
        "memory_c": cell,
    }


def evolve_c(run: RunFolder, round_: int) -> None:
    """Evolve C in the dream or in reality, from the C of the round before, times evolve.shrink.

    Shrinking helps where the weights of C have grown: its tanh is saturated then, and candidates hardly differ.
    Reads vae.npz, mdnrnn.npz and the last controller.npz; writes controller.npz; draws candidates and episodes.
    """
    c = run.config.phase(round_)
    mean = np.zeros(theta_size(c)) if round_ == 1 else c.evolve.shrink * run.theta()
    _evolve(run, "evolve", round_, c, mean)


def select(run: RunFolder, round_: int) -> None:
    """Keep the agents of the best rounds, by their checks; after the last round the best of them is the agent.

    Reads finalists/; writes them, selected.npz and, at the end, the winner's mdnrnn.npz and controller.npz.
    """
    finalists = run.folder / "finalists"
    newest = finalists / str(round_)
    if not (newest / "config.json").exists():
        newest.mkdir(parents=True, exist_ok=True)
        for name in ("vae.npz", "mdnrnn.npz", "controller.npz"):
            shutil.copy(run.folder / name, newest)
        save_config(newest, run.config)  # now it is whole
    last = round_ == run.config.rounds
    kept = sorted(finalists.iterdir(), key=_check_of, reverse=True)
    for path in kept[run.config.phase(round_).evolve.finalists :]:
        if not (last and path == newest):  # the last round plays, too
            remove(path)
            kept.remove(path)
    if last:
        best = _best_of(run, round_, kept)
        for name in ("mdnrnn.npz", "controller.npz"):
            write(run.folder / name, read_arrays(best / name) | {"round": np.array(round_)})
    write(run.folder / "selected.npz", {"round": np.array(round_)})


def _check_of(finalist: Path) -> float:
    return float(read_arrays(finalist / "controller.npz", check=())["check"])


def _best_of(run: RunFolder, round_: int, finalists: list[Path]) -> Path:
    """The best of these agents on the same new games."""
    count = FINAL * run.config.phase(round_).evolve.check_episodes
    seeds = episodes.episode_seeds("check", count, *_seed(run, "evolve", round_), 1)
    means = {}
    for path in finalists:
        name = f"select, round {path.name}"
        agent = replace(Agent.load(path), config=run.config.phase(round_))
        returns, _ = episodes.play(run.config.task, agent, seeds, run.log, name, round_)
        means[path] = returns.mean()
    best = max(means, key=means.get)
    told = ", ".join(f"{path.name}: {mean:.1f}" for path, mean in means.items())
    run.log.line(f"the agent is that of round {best.name} ({told})")
    return best


def adapt(run: RunFolder, round_: int) -> None:
    """Evolve the last round's C further in reality; V and M stay as they are.

    That C is checked first, and kept if no later mean is better.
    Reads vae.npz, mdnrnn.npz and controller.npz; writes adapted.npz; draws candidates and episodes.
    """
    _evolve(run, "adapt", round_, run.config.phase("real"), run.theta(), check_first=True)


def score_all(run: RunFolder, round_: int) -> None:
    """Score the random policy, the blind baseline if its score is not declared, the agent and its dream.

    An adapted agent is also scored as it was before.

    Reads the agent; writes results.json; draws held-out games.
    """
    c = run.config
    results, missing = _scores(run, round_)
    for name in missing:
        agent = None
        if name not in ("random", "blind"):
            agent = Agent.load(run.folder, adapted=name != "unadapted")
        if name == "dream":  # the same agent in its own dream
            seeds = episodes.episode_seeds("evaluate", c.evaluate.episodes, c.seed)
            returns, _ = dream_rollouts(agent, agent.theta[None], seeds)
            dream = agent.config.evolve
            steps = dream.horizon or c.max_steps
            results[name] = episodes.score(returns) | {"tau": dream.tau, "steps": steps}
        elif name == "blind":
            seeds = episodes.episode_seeds("evaluate", c.evaluate.episodes, c.seed)
            policy = partial(blind_baseline, c.task, repeat=c.repeat)
            player = {"make_policy": policy, "repeat": c.repeat}
            stage = "evaluate blind"
            returns, _ = episodes.play(c.task, None, seeds, run.log, stage, round_, **player)
            results[name] = episodes.score(returns)
        else:
            n = c.evaluate.episodes
            results[name] = episodes.evaluate(c.task, agent, n, c.seed, run.log, round_, name)
        write(run.folder / "results.json", results)


def _scores(run: RunFolder, round_: int) -> tuple[dict, list[str]]:
    """The scores in results.json that still hold, and the names of the missing ones."""
    path = run.folder / "results.json"
    results = read_results(path) if path.exists() else {}
    scored = {result["episodes"] for result in results.values() if isinstance(result, dict)}
    if results.get("round") != round_ or scored - {run.config.evaluate.episodes}:
        results = {"round": round_, "task": run.config.task, "preset": run.config.preset}
    adapted = (run.folder / "adapted.npz").exists()
    if (
        adapted and "agent" in results and "unadapted" not in results
    ):  # scored before it was adapted
        results["unadapted"] = results.pop("agent")
        results.pop("dream", None)
    blind = not find(run.config.task).blind  # else it is known
    names = ["random", *["blind"] * blind, *["unadapted"] * adapted, "agent", "dream"]
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


def _evolve(
    run: RunFolder, stage: str, round_: int, config: Config, mean: np.ndarray, check_first=False
) -> None:
    """CMA-ES from a mean; fitness: the mean return of a candidate's episodes, less the penalty."""
    c = config.evolve
    seed = _seed(run, stage, round_)
    agent = replace(Agent.load(run.folder, mean), config=config)

    def fitness(thetas: np.ndarray, generation: int) -> np.ndarray:
        seeds = episodes.episode_seeds("evolve", c.episodes, *seed, generation)
        if c.world == "real":
            returns, _ = episodes.real_rollouts(agent, thetas, seeds, run.log.line)
        else:
            returns, _ = dream_rollouts(agent, thetas, seeds)
            returns = np.minimum(returns, c.enough or np.inf)
        return returns - c.penalty * np.mean(thetas**2, axis=1, keepdims=True)

    def check(theta: np.ndarray, generation: int) -> float:
        seeds = episodes.episode_seeds("check", c.check_episodes, *seed)  # the same at every check
        returns, _ = episodes.real_rollouts(agent, theta[None], seeds, run.log.line)
        return float(returns.mean())

    cma = CMAES(mean, c.sigma, c.population, seed=seed)
    result = STAGES[stage][1]
    state = run.state(result, round_)
    options = {"log": run.log.line, "check_first": check_first}
    with run.log.progress(stage, round_, c.generations, "generations") as report:
        theta, generation, checked = evolve(
            cma, fitness, c.generations, state, report, check, c.check_every, **options
        )
    found = {"generation": np.array(generation), "check": np.array(checked)}
    run.finish(result, round_, theta=theta, **found)
