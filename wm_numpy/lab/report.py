"""What a run reports in words at its end: the scores, whether they are good, what is next."""

import json
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from ..models.agent import SHIPPED, load_config
from ..settings import config as configuration
from ..settings.tasks import find
from ..system.files import DataError
from ..training.runfolder import read_results
from .statistics import short

CHECK = {"check": "C"}
PEOPLE = {"fitness": "candidates", "max": "the best"}
# The panels of learning curves: title, stage, the axes, figures of log.jsonl and what they are called
CURVES = (
    ("V: reconstruction", "vae", "updates", "squared error", {"reconstruction": ""}),
    ("V: KL", "vae", "updates", "nats of a frame", {"kl": ""}),
    ("M: the next z", "mdnrnn", "updates", "nats a dimension", {"z": ""}),
    ("M: its heads", "mdnrnn", "updates", "loss", {k: k for k in ("done", "reward", "value")}),
    ("C in its dream", "evolve", "generations", "return", PEOPLE),
    ("C in reality", "evolve", "generations", "return", CHECK),
    ("C evolved on in reality", "adapt", "generations", "return", PEOPLE | CHECK),
)


def score_line(name: str, result: dict) -> str:
    """A row of the table; of a score quoted from elsewhere there is no number of episodes."""
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
    for who in ("random", "agent"):
        if missing := {"mean", "sd", "ci95", "episodes"} - set(results.get(who) or ()):
            what = f"{who} without {', '.join(sorted(missing))}"
            raise DataError(f"{path} is not complete ({what}): repeat `train`")
    task = find(results["task"])
    rows = {
        "random policy": results["random"],
        "blind baseline": quoted(task.blind),
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
    return "\n".join([*lines, "", *verdict(folder, rows), "", "next:", *advice(folder)])


def verdict(folder: Path, rows: dict[str, dict]) -> list[str]:
    """Whether the agent's score is good, in sentences."""
    config = load_config(folder)
    task = find(config.task)
    mean, sd, n = (rows["agent"][name] for name in ("mean", "sd", "episodes"))
    told = []
    for name in ("random policy", "blind baseline"):
        if name in rows:
            other = rows[name]
            error = np.sqrt(sd**2 / n + other["sd"] ** 2 / other.get("episodes", 100))
            far = (mean - other["mean"]) / (error + 1e-9)
            how = "better than" if far > 2 else "worse than" if far < -2 else "not to be told from"
            told.append(f"The agent is {how} the {name}.")
    if "blind baseline" in rows:
        told[-1] += " (It alternates left and right and sees nothing.)"
    if "difference" in rows["agent"]:
        told.append(gain(rows["agent"]))
    if scores := task.expected.get(config.preset):
        slack = 2 * sd / np.sqrt(n)
        how = "as expected"
        if mean > max(scores) + slack:
            how = "better than expected"
        if mean < min(scores) - slack:
            how = "worse than expected; another --seed may do better"
        seeds = ", ".join(short(score) for score in scores)
        plain = configuration.resolve(config.task, config.preset, (), config.seed) == config
        other = "" if plain else ", though with other settings"
        told.append(
            f"Preset {config.preset} has had {seeds} at its seeds: {short(mean)} is {how}{other}."
        )
    if task.solved_at:
        solved = "solved" if mean >= task.solved_at else "not solved"
        told.append(
            f"It counts as solved at a mean of {task.solved_at} over 100 episodes: {solved}."
        )
    return told


def advice(folder: Path) -> list[str]:
    """What to type next."""
    config = load_config(folder)
    name = folder.name if folder.parent == SHIPPED else folder
    lines = {
        f"play {name}": "watch it, play in its dream, in a browser",
        f"report {name} --all": "all pictures, with captions: can its dream be trusted?",
    }
    better = {"smoke": "quick", "quick": "laptop"}.get(config.preset)
    if better in configuration.preset_names(config.task):
        lines[f"train {config.task} --preset {better} --out {folder}-{better}"] = "a better agent"
    width = max(map(len, lines))
    return [f"  python run.py {command:{width}}   {what}" for command, what in lines.items()]


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
    paths = sorted(
        runs.glob(f"{folder.name}-sweep*/tau-*/results.json"), key=lambda p: p.stat().st_mtime
    )
    found = [read_results(path) for path in paths]
    return {r["dream"]["tau"]: r for r in found if "dream" in r and "agent" in r}


def across_rounds(rows: Sequence[dict]) -> list[int]:
    """The steps of records of log.jsonl, counted on from round to round."""
    before = defaultdict(int)
    steps = []
    for r in rows:
        steps.append(before[r["round"]] + r["step"])
        before[r["round"] + 1] = steps[-1]
    return steps


def read_log(path: Path) -> list[dict]:
    """The records of log.jsonl; lines that a kill cut short are left out, repeated steps count once."""
    records = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        with suppress(ValueError, KeyError, TypeError):
            record = json.loads(line)
            records[record["stage"], record["round"], record["step"]] = record
    return list(records.values())
