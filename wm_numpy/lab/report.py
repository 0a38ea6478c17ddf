"""What a run reports in words: the header at its start; at its end the scores, whether they are good, what is next."""

import json
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from ..core.files import DataError
from ..models.agent import SHIPPED, load_config, new_mdnrnn, new_vae, theta_size
from ..settings import config as configuration
from ..settings.config import Config
from ..settings.tasks import find
from ..training.experiment import read_results

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


def header(config: Config, folder: Path, disk: float) -> str:
    """The resolved configuration, the parameter counts and the bytes on disk that a run needs."""
    lines = [f"{config.task}, preset {config.preset}, seed {config.seed} -> {folder}"]
    sections = defaultdict(list)
    values = configuration.flat(config)
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        by_updates = name == "epochs" and values[f"{section}.updates"]
        if by_updates or (name.startswith("later_") and config.rounds == 1):
            continue  # without effect
        sections[section or "run"].append(f"{name}={value}")
    lines += [f"  {section:9} {' '.join(pairs)}" for section, pairs in sections.items()]
    v = new_vae(config).params.size
    m = new_mdnrnn(config).params.size
    c = theta_size(config)
    lines.append(f"  parameters: V {v:,}  M {m:,}  C {c:,}; disk: about {disk / 1e9:.1f} GB")
    free = config.vae.z_size * config.vae.kl_tolerance
    why = "are free (vae.kl_tolerance), so V stays about there"
    lines.append(f"  kl: the first {free:g} nats of a frame {why}")
    return "\n".join(lines)


def score_line(name: str, result: dict) -> str:
    """A row of the table; of a score quoted from elsewhere there is no number of episodes."""
    row = f"{name:17} {result.get('episodes', ''):>8} {result['mean']:9.1f} {result['sd']:8.1f}"
    if "ci95" in result:
        row += "   [{:.1f}, {:.1f}]".format(*result["ci95"])
    return row


def number(score: str) -> float:
    """The mean of a score such as "906 +- 21"."""
    return float(score.split()[0])


def compared(folder: Path) -> dict[str, dict]:
    """The scores of a run in reality, and those that its task is compared with, all by name."""
    path = folder / "results.json"
    results = read_results(path)
    task = find(results["task"])
    quoted = {"blind baseline": task.blind, "the paper's agent": task.paper}
    known = {
        name: dict(zip(("mean", "sd"), map(float, score.split(" +- ")), strict=True))
        for name, score in quoted.items()
        if score
    }
    try:
        found = {"random policy": results["random"], "C of the dream": results.get("unadapted")}
        found |= {"blind baseline": known.get("blind baseline"), "agent": results["agent"]}
        found |= {"the paper's agent": known.get("the paper's agent")}
        return {name: result | {"mean": result["mean"]} for name, result in found.items() if result}
    except (KeyError, TypeError) as error:
        raise DataError(f"{path} is not complete ({error}): repeat `train`") from None


def table(folder: Path) -> str:
    """The scores of a run and of its dream, whether they are good, and what to type next."""
    rows = compared(folder)
    results = read_results(folder / "results.json")
    task = find(results["task"])
    lines = [f"{task.title}, real episodes of at most {task.max_steps:,} frames"]
    lines.append(f"{'':17} {'episodes':>8} {'mean':>9} {'SD':>8}   95 % interval of the mean")
    lines += [score_line(name, result) for name, result in rows.items()]
    if "dream" in results:
        dream = results["dream"]
        lines.append(score_line("its own dream", dream))
        length = f"at most {dream['steps']} steps" if "steps" in dream else "whole episodes"
        lines.append(f"its own dream: {length} at temperature {dream['tau']:g}, in {task.reward}")
    return "\n".join([*lines, "", *verdict(folder, rows, results), "", *advice(folder, results)])


def verdict(folder: Path, rows: dict[str, dict], results: dict) -> list[str]:
    """Whether the agent's score is good, in sentences."""
    task = find(results["task"])
    agent = rows["agent"]
    mean, error = agent["mean"], agent["sd"] / np.sqrt(agent["episodes"])
    told = []
    for name in ("random policy", "blind baseline"):
        if other := rows.get(name):
            n = other.get("episodes", 100)
            gap = (mean - other["mean"]) / max(np.hypot(error, other["sd"] / np.sqrt(n)), 1e-9)
            how = "better than" if gap > 2 else "worse than" if gap < -2 else "not to be told from"
            what = (
                ""
                if name == "random policy"
                else ", which alternates left and right and sees nothing"
            )
            told.append(f"The agent is {how} the {name}{what}.")
    config = load_config(folder)
    if scores := task.expected.get(config.preset):
        seeds = ", ".join(f"{score:.0f}" for score in scores)
        how = "as expected"
        if mean > max(scores) + 2 * error:
            how = "better than expected"
        if mean < min(scores) - 2 * error:
            how = "worse than expected; another --seed may do better"
        plain = configuration.resolve(config.task, config.preset, (), config.seed) == config
        other = "" if plain else ", though with other settings"
        told.append(
            f"Preset {config.preset} has had {seeds} at its seeds{other}: {mean:.0f} is {how}."
        )
    if task.solved_at:
        over = "solved" if mean >= task.solved_at else "not solved"
        told.append(
            f"The task counts as solved at a mean of {task.solved_at} over 100 episodes: {over}."
        )
    return told


def advice(folder: Path, results: dict) -> list[str]:
    """What to type next."""
    name = folder.name if folder.parent == SHIPPED else folder
    lines = [
        (f"play {name}", "watch it, play in its dream, in a browser"),
        (f"report {name} --all", "all pictures, with captions: can its dream be trusted?"),
    ]
    better = {"smoke": "quick", "quick": "laptop"}.get(results["preset"])
    if better in configuration.PRESETS.get(results["task"], configuration.PRESETS["world"]):
        lines.append(
            (f"train {results['task']} --preset {better} --out {folder}-{better}", "a better agent")
        )
    width = max(len(command) for command, _ in lines)
    return ["next:"] + [f"  python run.py {command:{width}}   {what}" for command, what in lines]


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
