"""What a run reports: the header at its start, the table and the pictures at its end."""

import json
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

import numpy as np

from ..core.files import DataError
from ..models.agent import Agent, new_mdnrnn, new_vae, theta_size
from ..settings import config as configuration
from ..settings.config import Config
from ..settings.tasks import TASKS
from ..training.data import Records, frame_dtype
from ..training.experiment import read_results

CURVES = (  # title, stage, what its steps are, names of the lines
    ("V", "vae", "updates", ("reconstruction", "kl")),
    ("M (z: nats per dim)", "mdnrnn", "updates", ("z", "done", "reward")),
    ("C, return", "evolve", "generations", ("fitness", "max", "check")),
    ("C, on in reality", "adapt", "generations", ("fitness", "max", "check")),
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
    """A row of the table."""
    low, high = result["ci95"]
    scores = f"{result['episodes']:8} {result['mean']:9.1f} {result['sd']:8.1f}"
    return f"{name:14} {scores}   [{low:.1f}, {high:.1f}]"


def table(folder: Path) -> str:
    """Scores of the random policy and the agent in reality, and of the agent in the dream that it evolved in."""
    path = folder / "results.json"
    results = read_results(path)
    try:
        rows = [score_line("random policy", results["random"])]
        if "unadapted" in results:
            rows.append(score_line("C of the dream", results["unadapted"]))
        rows.append(score_line("agent", results["agent"]))
    except (KeyError, TypeError) as error:
        raise DataError(f"{path} is not complete ({error}): repeat `train`") from None
    task = TASKS[results["task"]]
    heading = f"{task.title}, real episodes of at most {task.max_steps:,} frames"
    columns = f"{'':14} {'episodes':>8} {'mean':>9} {'SD':>8}   95 % interval of the mean"
    note = f"solved: a mean of {task.solved_at} over 100 episodes; the paper's agent: {task.paper}"
    if "dream" in results:
        dream = results["dream"]
        rows.append(score_line("its own dream", dream))
        note += "\nits own dream:"
        if "steps" in dream:  # older results do not say
            note += f" of at most {dream['steps']} steps"
        note += f" at temperature {dream['tau']:g}, in {task.reward}"
    return "\n".join([heading, columns, *rows, note])


def sweep_table(folders: dict[float, Path]) -> str:
    """Scores of agents evolved at several temperatures, in dream and reality, beside table 2 of the paper."""

    def cell(result: dict) -> str:
        half = (result["ci95"][1] - result["ci95"][0]) / 2
        return f"{result['mean']:7.0f} +- {result['sd']:4.0f} (+-{half:3.0f})"

    row = "{:>6}  {:>25}  {:>12}  {:>25}  {:>12}".format
    lines = [row("tau", "dream: mean +- SD (95 %)", "paper", "real: mean +- SD (95 %)", "paper")]
    for tau, folder in folders.items():
        results = read_results(folder / "results.json")
        task = TASKS[results["task"]]
        dream, real = task.table2.get(tau, ("", ""))
        lines.append(row(f"{tau:.2f}", cell(results["dream"]), dream, cell(results["agent"]), real))
    lines.append(row("random", "-", "-", cell(results["random"]), task.random))
    return "\n".join(lines)


def write(folder: Path, out: Path) -> None:
    """Write the pictures of a run into `out`: reconstructions.png, dream.png beside reality, curves.png."""
    from . import film, pictures  # they need pygame, tables do not

    agent = Agent.load(folder)
    episodes = folder / "episodes"
    if any(episodes.glob("[0-9]*.npy")):  # frames of some, and what V makes of them (mu, decoded)
        records = Records(episodes, frame_dtype(agent.m.action_size))
        files = np.linspace(0, len(records.paths) - 1, film.COLUMNS).astype(int)
        steps = (records.steps[files] * 0.7).astype(int)
        moments = zip(files, steps, strict=True)
        frames = np.concatenate([records.read(f, t, t + 1)["frame"] for f, t in moments])
        again = film.to_picture(agent.v.decode(agent.v.encode(frames)[0]))
        strip = pictures.strips({"frame": frames, "V's view": again})
        pictures.save(strip, out / "reconstructions.png")
    film.draw(agent, film.film(agent), strip=out / "dream.png")
    if panels := _panels(folder / "log.jsonl", agent.config.task):
        pictures.save(pictures.curves(panels), out / "curves.png")


def read_log(path: Path) -> list[dict]:
    """The records of log.jsonl; lines that a kill cut short are left out, repeated steps count once."""
    records = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        with suppress(ValueError, KeyError, TypeError):
            record = json.loads(line)
            records[record["stage"], record["round"], record["step"]] = record
    return list(records.values())


def _panels(path: Path, task: str) -> list[tuple]:
    """Curves of V, M and C from log.jsonl, round after round; beside C's the authors', as far as it has come."""
    log = read_log(path)
    panels = []
    for title, stage, unit, names in CURVES:
        rows = [r for r in log if r["stage"] == stage]
        before = defaultdict(int)
        for r in rows:
            r["x"] = before[r["round"]] + r["step"]
            before[r["round"] + 1] = r["x"]
        lines = {}
        for name in names:
            points = [(r["x"], r[name]) for r in rows if name in r]
            if any(y for _, y in points):
                lines[name] = tuple(zip(*points, strict=True))
        if lines and "fitness" in names:
            last = max(max(x) for x, _ in lines.values())
            known = {x: y for x, y in TASKS[task].authors.items() if x <= last}
            lines["authors' fitness"] = tuple(known), tuple(known.values())
        if lines:
            panels.append((title, unit, lines))
    return panels
