"""What `train` says in words: before, its plan; at its end the scores, whether they are good, and what to do next."""

import json
from contextlib import suppress
from pathlib import Path

import numpy as np

from ..models.agent import SHIPPED, load_config, new_mdnrnn, new_vae, theta_size
from ..settings.config import Config, Training, flat, preset_names, read_preset, resolve
from ..settings.tasks import find
from ..system.files import DataError
from ..training.runfolder import read_results
from .statistics import short

# ---------------------------------------------------------------------------------------------------------- before


def plan(config: Config, folder: Path, disk: float) -> str:
    """What each round will do, the disk and the scores to expect; disk: the bytes that the run needs."""
    task, (about, *_) = find(config.task), read_preset(config.task, config.preset)
    first, later = config.phase("first"), config.phase("later")
    lines = [f"{task.title}, preset {config.preset}, seed {config.seed} -> {folder}", about]
    usual = flat(resolve(config.task, config.preset, seed=config.seed))
    changed = [f"{k}={v}" for k, v in flat(config).items() if usual.get(k) != v]
    if changed:
        lines.append(f"changed: {' '.join(changed)}")
    v, m, c = new_vae(first).params.size, new_mdnrnn(first).params.size, theta_size(first)
    free = first.vae.z_size * first.vae.kl_tolerance
    lines.append(
        f"weights: V {v:,}, M {m:,}, C {c:,}; V's KL stays near {free:g} nats, which are free"
    )
    lines.append(f"round 1: {first.collect.episodes:,} random episodes; {_training(first)}")
    if config.rounds > 1:
        episodes = f"{later.collect.episodes:,} episodes of the agent"
        lines.append(f"rounds 2 to {config.rounds}, each: {episodes}; {_training(later)}")
    if config.ends_in_reality:
        lines.append(f"in reality: {_evolution(config.phase('real'))}")
    n = config.evaluate.episodes
    lines.append(f"evaluation: {n} real episodes of the agent, {n} of the random policy")
    lines.append(f"disk: about {disk / 1e9:.1f} GB; every setting: {folder / 'config.json'}")
    scores = [f"{score:g}" for score in task.expected.get(config.preset, ())]
    if scores and not changed:
        lines.append(f"scores so far, seed by seed: {', '.join(scores)} {task.unit}")
    if task.paper:
        lines.append(f"the paper's agent: {task.paper}")
    return "\n".join(lines)


def _training(config: Config) -> str:
    """How long each network is trained in a round."""
    v, m = (_updates(c) for c in (config.vae, config.mdnrnn))
    return f"V {v}; M {m}; C {_evolution(config)}"


def _updates(c: Training) -> str:
    if not c.learning_rate:
        return "as it is"
    return f"{c.updates:,} updates" if c.updates else f"{c.epochs} passes over the data"


def _evolution(config: Config) -> str:
    """How long C is evolved, and where."""
    c = config.evolve
    where = "real episodes"
    if c.world == "dream":
        where = f"dreams of at most {c.horizon or config.max_steps:,} steps"
    return f"{c.generations} generations of {c.population} candidates, each in {c.episodes} {where}"


# ----------------------------------------------------------------------------------------------------------- after


def score_line(name: str, result: dict) -> str:
    """A row of the table; a score quoted from elsewhere has no number of episodes."""
    row = f"{name:17} {result.get('episodes', ''):>8} {result['mean']:9.1f} {result['sd']:8.1f}"
    if "ci95" in result:
        row += "   [{:.1f}, {:.1f}]".format(*result["ci95"])
    return row


def gain(result: dict) -> str:
    """What looking ahead is worth to an agent."""
    worth = "{mean:+.1f} +- {se:.1f}".format(**result["difference"])
    return f"Looking ahead adds {worth} (standard error) to C alone, on the same episodes."


def quoted(score: str) -> dict[str, float]:
    """A score such as "906 +- 21", as results.json has them; {} of an empty one."""
    return dict(zip(("mean", "sd"), map(float, score.split(" +- ")), strict=True)) if score else {}


def compared(folder: Path) -> dict[str, dict]:
    """The scores of a run in reality, and those that its task is compared with, all by name."""
    path = folder / "results.json"
    results = read_results(path)
    for name in ("random", "agent"):
        if missing := {"mean", "sd", "ci95", "episodes"} - set(results.get(name) or ()):
            fault = f"{name} without {', '.join(sorted(missing))}"
            raise DataError(f"{path} is not complete ({fault}): repeat `train`")
    task = find(results["task"])
    rows = {
        "random policy": results["random"],
        "blind baseline": results.get("blind") or quoted(task.blind),
        "C of the dream": results.get("unadapted"),
        "C alone": results["agent"].get("alone"),
        "agent": results["agent"],
        "the paper's agent": quoted(task.paper),
    }
    return {name: row for name, row in rows.items() if row}


def table(folder: Path) -> str:
    """The scores of a run and of its dream, whether they are good, and what to type next."""
    rows = compared(folder)
    results = read_results(folder / "results.json")
    task = find(results["task"])
    lines = [f"{task.title}, real episodes of at most {task.max_steps:,} frames"]
    lines.append(f"{'':17} {'episodes':>8} {'mean':>9} {'SD':>8}   95 % interval of the mean")
    lines += [score_line(name, result) for name, result in rows.items()]
    if dream := results.get("dream"):
        length = f"at most {dream['steps']} steps" if "steps" in dream else "whole episodes"
        lines.append(score_line("its own dream", dream))
        lines.append(f"its own dream: {length} at temperature {dream['tau']:g}, in {task.reward}")
        if "length" in results["agent"]:
            lines[-1] += f"; real ones last {results['agent']['length']:.0f} steps"
    return "\n".join([*lines, "", *verdict(folder, rows), "", "next:", *advice(folder)])


def verdict(folder: Path, rows: dict[str, dict]) -> list[str]:
    """Whether the agent's score is good, in sentences."""
    config = load_config(folder)
    task = find(config.task)
    mean, sd, n = (rows["agent"][name] for name in ("mean", "sd", "episodes"))
    sentences = []
    for name in ("random policy", "blind baseline"):
        if other := rows.get(name):
            error = np.sqrt(sd**2 / n + other["sd"] ** 2 / other.get("episodes", 100))
            lead = (mean - other["mean"]) / (error + 1e-9)
            than = "about as good as"
            if abs(lead) > 2:
                than = "better than" if lead > 0 else "worse than"
            sentences.append(f"The agent is {than} the {name}.")
    if "blind baseline" in rows:
        sentences[-1] += " (It sees nothing, and alternates opposite actions.)"
    if "difference" in rows["agent"]:
        sentences.append(gain(rows["agent"]))
    if scores := task.expected.get(config.preset):
        slack = 2 * sd / np.sqrt(n)
        verdict = "as expected"
        if mean > max(scores) + slack:
            verdict = "better than expected"
        if mean < min(scores) - slack:
            verdict = "worse than expected; another --seed may do better"
        usual = resolve(config.task, config.preset, (), config.seed)
        other = "" if usual == config else ", though with other settings"
        seeds = ", ".join(short(score) for score in scores)
        preset = f"Seeds of preset {config.preset} have scored {seeds}"
        sentences.append(f"{preset}: {short(mean)} is {verdict}{other}.")
    if task.solved_at:
        solved = "solved" if mean >= task.solved_at else "not solved"
        sentences.append(f"Solved means {task.solved_at} on average over 100 episodes: {solved}.")
    return sentences


def advice(folder: Path) -> list[str]:
    """What to type next."""
    config = load_config(folder)
    name = folder.name if folder.parent == SHIPPED else folder
    lines = {
        f"play {name}": "watch it, or play in its dream, in a browser",
        f"report {name} --all": "all pictures, with captions: can its dream be trusted?",
    }
    better = {"smoke": "quick", "quick": "laptop"}.get(config.preset)
    if better in preset_names(config.task):
        lines[f"train {config.task} --preset {better} --out {folder}-{better}"] = "a better agent"
    width = max(map(len, lines))
    return [f"  python run.py {command:{width}}   {why}" for command, why in lines.items()]


# ---------------------------------------------------------------------------------------------------------- sweeps


def sweep_table(folders: dict[float, Path]) -> str:
    """Scores of agents evolved at several temperatures, in dream and reality, beside table 2 of the paper."""

    def cell(result: dict) -> str:
        half = (result["ci95"][1] - result["ci95"][0]) / 2
        return f"{result['mean']:7.0f} +- {result['sd']:4.0f} (+-{half:3.0f})"

    row = "{:>6}  {:>25}  {:>12}  {:>25}  {:>12}".format
    lines = [row("tau", "dream: mean +- SD (95 %)", "paper", "real: mean +- SD (95 %)", "paper")]
    for tau, folder in folders.items():
        results = read_results(folder / "results.json")
        task = find(results["task"])
        dream, real = task.table2.get(tau, ("", ""))
        lines.append(row(f"{tau:.2f}", cell(results["dream"]), dream, cell(results["agent"]), real))
    lines.append(row("random", "-", "-", cell(results["random"]), task.random))
    return "\n".join(lines)


def sweeps(folder: Path) -> dict[float, dict]:
    """results.json of the newest sweep of a run, by temperature; nothing if there is none."""
    runs = Path("runs") if folder.parent == SHIPPED else folder.parent
    paths = runs.glob(f"{folder.name}-sweep*/tau-*/results.json")
    found = [read_results(path) for path in sorted(paths, key=lambda p: p.stat().st_mtime)]
    return {r["dream"]["tau"]: r for r in found if "dream" in r and "agent" in r}


# ----------------------------------------------------------------------------------------------------------- curves


def read_log(path: Path) -> list[dict]:
    """The records of log.jsonl, and `at`, their step counted on from round to round.

    Lines that a kill cut short are left out; repeated steps count once.
    """
    records = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        with suppress(ValueError, KeyError, TypeError):
            record = json.loads(line)
            records[record["stage"], record["round"], record["step"]] = record
    ends = {}  # of the rounds of each stage so far
    for (stage, round_, step), record in records.items():
        ends[stage, round_] = record["at"] = ends.get((stage, round_ - 1), 0) + step
    return list(records.values())
