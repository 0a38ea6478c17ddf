"""What a run says of itself: the header at its start, the table and the pictures at its end."""

from __future__ import annotations

import json
from itertools import zip_longest
from pathlib import Path

import numpy as np

from . import agent as agents
from . import config as configuration
from . import pictures, viewer
from .config import Config
from .data import DataError, Records, frame_dtype
from .envs import ENVIRONMENTS
from .experiment import read_results

PAPERS = {"carracing": "906 +- 21", "doom": "1092 +- 556"}


def header(config: Config, folder: Path, disk: float) -> str:
    """The resolved configuration, the parameter counts and the disk that a run needs."""
    lines = [f"{config.task}, preset {config.preset}, seed {config.seed} -> {folder}"]
    sections: dict[str, list[str]] = {}
    for key, value in configuration.flat(config).items():
        section, _, name = key.rpartition(".")
        sections.setdefault(section or "run", []).append(f"{name}={value}")
    lines += [f"  {section:9} {' '.join(pairs)}" for section, pairs in sections.items()]
    v, m = agents.new_vae(config).params.size, agents.new_mdnrnn(config).params.size
    lines.append(f"  parameters: V {v:,}  M {m:,}  C {agents.vector_size(config):,}; disk: about {disk / 1e9:.1f} GB")
    return "\n".join(lines)


def score_line(name: str, result: dict) -> str:
    """A row of the table."""
    low, high = result["ci95"]
    return f"{name:14} {result['episodes']:8} {result['mean']:9.1f} {result['sd']:8.1f}   [{low:.1f}, {high:.1f}]"


def table(folder: Path) -> str:
    """The random policy and the agent on the reported episodes."""
    path = folder / "results.json"
    results = read_results(path)
    try:
        rows = [score_line("random policy", results["random"]), score_line("agent", results["agent"])]
    except (KeyError, TypeError) as error:
        raise DataError(f"{path} is not complete ({error}): repeat `train`") from None
    task = results["task"]
    env = ENVIRONMENTS[task]
    heading = f"{task}, real episodes of at most {env.max_steps:,} steps"
    columns = f"{'':14} {'episodes':>8} {'mean':>9} {'SD':>8}   95 % interval of the mean"
    note = f"solved: a mean of {env.solved_at} over 100 episodes; the paper's agent: {PAPERS[task]}"
    return "\n".join([heading, columns, *rows, note])


TABLE_2 = {0.1: ("2086 +- 140", "193 +- 58"), 0.5: ("2060 +- 277", "196 +- 50"), 1.0: ("1145 +- 690", "868 +- 511"),
           1.15: ("918 +- 546", "1092 +- 556"), 1.3: ("732 +- 269", "753 +- 139")}  # fmt: skip


# Generation, mean fitness of its population: the authors' own training logs (their repositories' log/*.hist.json),
# Doom in the dream, CarRacing in the real environment; 64 candidates of 16 episodes, as here.
AUTHORS = {
    "doom": (
        (1, 305), (5, 350), (10, 355), (15, 401), (20, 484), (25, 476), (30, 589), (40, 619), (50, 686),
        (60, 658), (80, 704), (100, 698), (120, 687), (140, 708), (160, 715), (180, 751), (200, 769),
    ),
    "carracing": (
        (1, -55), (5, 41), (10, 308), (15, 438), (20, 585), (25, 668), (30, 680), (40, 741), (50, 767),
        (60, 773), (80, 791), (100, 799), (120, 805), (140, 810), (160, 813), (180, 833), (200, 823),
    ),
}  # fmt: skip


def sweep_table(folders: dict[float, Path]) -> str:
    """Dream and real score of agents evolved at several temperatures, beside table 2 of the paper."""

    def cell(result: dict) -> str:
        half = (result["ci95"][1] - result["ci95"][0]) / 2
        return f"{result['mean']:7.0f} +- {result['sd']:4.0f} (+-{half:3.0f})"

    lines = [
        f"{'tau':>6}  {'dream: mean +- SD (95 %)':>25}  {'paper':>12}  {'real: mean +- SD (95 %)':>25}  {'paper':>12}"
    ]
    for tau, folder in folders.items():
        results = read_results(folder / "results.json")
        dream, real = TABLE_2.get(tau, ("", "")) if results["task"] == "doom" else ("", "")
        lines.append(f"{tau:6.2f}  {cell(results['dream']):>25}  {dream:>12}  {cell(results['agent']):>25}  {real:>12}")
    paper = "210 +- 108" if results["task"] == "doom" else ""
    lines.append(f"random  {'-':>25}  {'-':>12}  {cell(results['random']):>25}  {paper:>12}")
    return "\n".join(lines)


def write(folder: Path) -> list[Path]:
    """Write the pictures of a run -> their paths: reconstructions, a dream beside reality, learning curves."""
    agent = agents.load(folder)
    made = [folder / "reconstructions.png", folder / "dream.png", folder / "curves.png"]
    episodes = folder / "episodes"
    if any(episodes.glob("[0-9]*.npy")):
        pictures.save(_reconstructions(agent, episodes), made[0])
    real, captions = viewer.some(viewer.real_pictures(agent, 0), agent)
    dream, more = viewer.some(viewer.dream_pictures(agent, 0), agent)
    rows = [
        ("reality", [i[0] for i in real]),
        ("V's view", [i[1] for i in real]),
        ("dream", [i[0] for i in dream]),
    ]
    # the end of a short dream stands under an earlier step of reality
    both = [a if a == b else f"{a} / {b}" for a, b in zip_longest(captions, more, fillvalue="-")]
    pictures.save(pictures.strips(rows, both), made[1])
    panels = _panels(folder / "log.jsonl", AUTHORS[agent.config.task])
    if panels:
        pictures.save(pictures.curves(panels), made[2])
    return [path for path in made if path.exists()]


def _reconstructions(agent, folder: Path):
    """Frames of the recorded episodes over what V makes of them (mu, decoded)."""
    records = Records(folder, frame_dtype(agent.m.config.action_size))
    files = np.linspace(0, len(records.paths) - 1, viewer.COLUMNS).astype(int)
    frames = np.concatenate(
        [
            records.read(f, t, t + 1)["frame"]
            for f, t in zip(files, (records.steps[files] * 0.7).astype(int), strict=True)
        ]
    )
    again = viewer.to_picture(agent.v.decode(agent.v.encode(frames)[0]))
    return pictures.strips([("frame", list(frames)), ("V's view", list(again))])


def read_log(path: Path) -> list[dict]:
    """The records of log.jsonl; a last line that a kill cut short is left out, repeated steps count once."""
    records = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            record = json.loads(line)
            records[record["stage"], record["round"], record["step"]] = record
        except (ValueError, KeyError, TypeError):
            continue
    return list(records.values())


def _panels(path: Path, authors: tuple) -> list[tuple]:
    """Curves of V, M and C, rounds one after the other; C's over the authors' (generation, fitness)."""
    wanted = (
        ("V", "vae", "updates", ("reconstruction", "kl")),
        ("M (z: nats per dim)", "mdnrnn", "updates", ("z", "done", "reward")),
        ("C, return", "evolve", "generations", ("fitness", "max", "check")),
    )
    log, panels = read_log(path), []
    for title, stage, unit, names in wanted:
        rows = [r for r in log if r["stage"] == stage]
        before = dict.fromkeys(range(1, 1000), 0)  # steps of the rounds before
        for r in rows:
            before[r["round"] + 1] = before[r["round"]] + r["step"]
        lines = {}
        for name in names:
            points = [(before[r["round"]] + r["step"], r[name]) for r in rows if name in r]
            if points and any(y for _, y in points):
                lines[name] = tuple(zip(*points, strict=True))
        if lines and stage == "evolve":
            last = max(x for line in lines.values() for x in line[0])
            lines["authors' fitness"] = tuple(zip(*[point for point in authors if point[0] <= last], strict=True))
        if lines:
            panels.append((title, unit, lines))
    return panels
