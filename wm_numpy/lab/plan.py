"""What `train` is about to do, for people: its stages, time and disk, and the score to expect."""

from pathlib import Path

from ..models.agent import new_mdnrnn, new_vae, theta_size
from ..settings.config import Config, Training, flat, read_preset, resolve
from ..settings.tasks import find


def plan(config: Config, folder: Path, disk: float) -> str:
    """A line for every stage; disk: the bytes that the run needs."""
    task, (about, _, _) = find(config.task), read_preset(config.task, config.preset)
    first, later = config.phase("first"), config.phase("later")
    more = config.rounds > 1
    weights = [new_vae(first).params.size, new_mdnrnn(first).params.size, theta_size(first)]
    v, m, c = (f"{size:,} weights" for size in weights)
    lines = [f"{task.title}, preset {config.preset}, seed {config.seed} -> {folder}", about]
    usual = flat(resolve(config.task, config.preset, seed=config.seed))
    changed = [f"{k}={v}" for k, v in flat(config).items() if usual.get(k) != v]
    if changed:
        lines.append(f"changed: {' '.join(changed)}")
    if more:
        lines.append(f"{config.rounds} rounds of collect, V, M and C")
    own = f", then {later.collect.episodes:,} of the agent's own a round" if more else ""
    stages = {"collect": f"{first.collect.episodes:,} random episodes{own}"}
    frames, steps = "batches of {0.batch} frames", "batches of {0.batch} x {0.window} steps"
    stages["V"] = f"{v}; {_learning(first.vae, later.vae, more, frames)}"
    free = first.vae.z_size * first.vae.kl_tolerance
    stages["V"] += f"; its KL stays near the {free:g} nats that are free"
    stages["encode"] = f"every frame becomes {first.vae.z_size} numbers"
    stages["M"] = f"{m}; {_learning(first.mdnrnn, later.mdnrnn, more, steps)}"
    stages["C"] = f"{c}; {_evolving(first)}"
    if more and _evolving(first) != _evolving(later):
        stages["C"] += f", then {_evolving(later)}"
    if config.ends_in_reality:
        stages["reality"] = f"C goes on: {_evolving(config.phase('real'))}"
    n = config.evaluate.episodes
    stages["evaluate"] = f"{n} real episodes of the random policy, {n} of the agent"
    lines += [f"  {name:9} {text}" for name, text in stages.items()]
    lines.append(f"disk: about {disk / 1e9:.1f} GB; every setting: {folder / 'config.json'}")
    scores = [f"{score:g}" for score in task.expected.get(config.preset, ())]
    if scores and not changed:
        lines.append(f"seeds have had {', '.join(scores)} {task.unit}")
    if task.paper:
        lines.append(f"the paper's agent: {task.paper}")
    return "\n".join(lines)


def _learning(first: Training, later: Training, more: bool, batches: str) -> str:
    """How long V or M learns, in the first round and in later ones."""

    def length(c: Training) -> str:
        if not c.learning_rate:
            return "as it is"
        return f"{c.updates:,} updates" if c.updates else f"{c.epochs} passes over the data"

    text = f"{length(first)}, {batches.format(first)}"
    return f"{text}, then {length(later)}" if more and length(first) != length(later) else text


def _evolving(config: Config) -> str:
    """How long C is evolved, and where."""
    c = config.evolve
    where = "real episodes"
    if c.world == "dream":
        where = f"dreams of at most {c.horizon or config.max_steps:,} steps"
    counts = f"{c.generations} generations of {c.population} candidates"
    return f"{counts}, each in {c.episodes} {where}"
