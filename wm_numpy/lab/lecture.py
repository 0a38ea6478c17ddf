"""The lecture: all that a run can show, in one HTML file that holds its pictures, opens offline and prints.

The captions are in lecture.html; the pictures they describe are drawn here, a function for each section. What needs no
games is drawn after every `train`; `report RUN --all` also plays, and judges the dream (judge.py).
"""

import re
from base64 import b64encode
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template

import numpy as np

from ..models.agent import Agent, feature_size
from ..settings.tasks import Task, find
from ..system.files import write
from ..training.data import Records, frame_dtype
from ..training.episodes import episode_seeds, real_rollouts, score
from . import film, judge, report
from .pictures import png
from .plots import Line, bars, beside, chart

COLUMNS = 10  # pictures in a row
STRONGEST = 8  # latent dimensions shown
VALUES = (-3, -2, -1, 0, 1, 2, 3)  # of each; their prior is a standard normal
TAUS = (0.1, 0.5, 1.0, 1.15, 1.3)  # table 2's
SMOOTH = 9  # points averaged in a curve
# Learning curves: title, stage, y, the figures of log.jsonl and their labels
FITNESS = {"fitness": "candidates", "max": "the best"}
CURVES = (
    ("V: reconstruction", "vae", "squared error", {"reconstruction": ""}),
    ("V: KL", "vae", "nats per frame", {"kl": ""}),
    ("M: the next z", "mdnrnn", "nats per dimension", {"z": ""}),
    ("M: its heads", "mdnrnn", "loss", {"done": "done", "reward": "reward", "value": "value"}),
    ("C in its dream", "evolve", "return", FITNESS),
    ("C in reality", "evolve", "return", {"check": "C"}),
    ("C evolved on in reality", "adapt", "return", FITNESS | {"check": "C"}),
)
# Charts of judge's tables: title, y, the columns and their labels
ERRORS = ("error of z", "squared", {"z error": "M", "no change": "no change", "mean frame": "mean"})
REWARDS = ("reward", "sum so far", {"reward": "real", "dreamt": "dreamt", "C acts": "C acts"})
CHOICES = ("choice", "share right", {"pairs": "better of two", "AUC": "lived or died"})


def write_page(folder: Path, out: Path, games: int = 0) -> None:
    """Write out/report.html and out/curves.svg of a run; games: real episodes of each policy, 0: none are played."""
    agent = Agent.load(folder)
    c = agent.config
    task = find(c.task)
    sizes = {"v": agent.v.params.size, "m": agent.m.params.size, "c": agent.theta.size}
    parts = {
        "title": escape(f"{task.title}, preset {c.preset}, seed {c.seed}"),
        "unit": escape(task.reward),
        "games": games,
        "repeat": c.repeat,
        "z": c.vae.z_size,
        "hidden": c.mdnrnn.hidden,
        "mixtures": c.mdnrnn.mixtures,
        "heads": "".join(f", {name}" for name in agent.m.heads),
        "features": f"[{' '.join(c.evolve.features)}] ({feature_size(c)})",
        "actions": agent.m.action_size,
        "layers": f"{c.evolve.hidden} tanh units" if c.evolve.hidden else "linear, tanh",
        "sizes": True,
        **{f"size_{k}": f"{n:,} parameters" for k, n in sizes.items()},
        "scores": scores(folder),
        "dream": dream(agent),
        "reconstructions": reconstructions(agent, folder),
        "traversals": traversals(agent),
    }
    if panels := curves(folder, task):
        parts["curves"] = beside(panels)
        write(out / "curves.svg", parts["curves"].encode())
    if games:
        found = judge.judge(agent, games, sorted({*TAUS, c.evolve.tau}))
        sentences = judge.verdict(found, task.reward)
        parts |= temperature(agent, folder, found) | {
            "verdict": "<ul>" + "".join(f"<li>{escape(x)}" for x in sentences) + "</ul>",
            "lives": lives(found, c.evolve.tau),
            "followed": followed(found),
            "ablations": bars(ablations(agent, games)),
            "facts": facts(found.facts),
        }
    page = (Path(__file__).parent / "lecture.html").read_text()
    for section in re.findall(r"(?s)<section.*?</section>\n", page):
        if not parts.get(re.search(r'id="(\w+)"', section)[1]):
            page = page.replace(section, "")
    write(out / "report.html", Template(page).substitute(parts).encode())


def scores(folder: Path) -> str:
    """The scores of a run beside those they are to be compared with."""
    rows = {}
    for name, result in report.compared(folder).items():
        rows[name] = (result["mean"], *result.get("ci95", (result["mean"],) * 2))
    return bars(rows) + f"<pre>{escape(report.table(folder))}</pre>"


def dream(agent: Agent) -> str:
    """Pictures of a film: reality, V's view, the dream."""
    moments = film.film(agent)
    times = np.linspace(0, len(moments), COLUMNS, endpoint=False).astype(int)
    rows = {name: [moments[t][name] for t in times] for name in moments[0]}
    return strip(rows, [f"{t * film.period(agent):.1f} s" for t in times])


def reconstructions(agent: Agent, folder: Path) -> str:
    """Frames of some episodes, and V's reconstructions; nothing if the run keeps no frames."""
    if not any((folder / "episodes").glob("[0-9]*.npy")):
        return ""
    records = Records(folder / "episodes", frame_dtype(agent.m.action_size))
    files = np.linspace(0, len(records.paths) - 1, COLUMNS).astype(int)
    steps = (records.steps[files] * 0.7).astype(int)
    frames = [records.read(f, t, t + 1)["frame"][0] for f, t in zip(files, steps, strict=True)]
    views = film.to_picture(agent.v.decode(agent.v.encode(np.stack(frames))[0]))
    return strip({"frame": frames, "V's view": views})


def traversals(agent: Agent) -> str:
    """The latent dimensions that change the picture most, each moved alone."""
    mu = (agent.memories[0] if agent.memories else agent.initial_latents)[0]  # (N, Z)
    usual = mu[np.argmin(((mu - mu.mean(axis=0)) ** 2).sum(axis=1))]
    rows = {}
    for d in film.ends(agent, usual)[0][:STRONGEST]:
        z = np.tile(usual, (len(VALUES), 1))
        z[:, d] = VALUES
        rows[f"z[{d}]"] = film.to_picture(agent.v.decode(z))
    return strip(rows, [str(value) for value in VALUES])


def curves(folder: Path, task: Task) -> list[str]:
    """Panels of V, M, C in its dream and C in reality, over all rounds."""
    log = report.read_log(folder / "log.jsonl")
    shown = ("random policy", "blind baseline", "the paper's agent")
    levels = {name: r["mean"] for name, r in report.compared(folder).items() if name in shown}
    panels = []
    for title, stage, y_name, labels in CURVES:
        x_name = "generations" if "return" in y_name else "updates"
        lines = []
        for name, label in labels.items():
            points = [(r["at"], r[name]) for r in log if r["stage"] == stage and name in r]
            if any(y for _, y in points):
                smooth = SMOOTH if len(points) > 40 else 1
                lines.append(Line(label, *zip(*points, strict=True), smooth=smooth))
        in_reality = "check" in labels
        authors = [(g, y) for g, y in task.authors.items() if lines and g <= lines[0].x[-1]]
        if authors and in_reality:
            lines.append(Line("the authors' log", *zip(*authors, strict=True)))
        if lines:
            panels.append(chart(title, x_name, y_name, lines, levels if in_reality else {}))
    return panels


def temperature(agent: Agent, folder: Path, found: judge.Findings) -> dict[str, str]:
    """Score by temperature, of a sweep of this run if there is one, else of its C; the paper's beside it."""
    task = find(agent.config.task)
    swept = report.sweeps(folder)
    evolved = "C evolved anew at each temperature, by `sweep`"
    if not swept:
        evolved = (
            "this one C at every temperature (`sweep` evolves it anew at each, as the paper did)"
        )
        own = {tau: score(x) for (policy, tau), x in found.returns.items() if policy == "C"}
        real = own.pop(judge.REALITY)
        swept = {tau: {"dream": dream, "agent": real} for tau, dream in own.items()}
    lines = []
    for name, world in (("its dream", "dream"), ("reality", "agent")):
        results = [swept[tau][world] for tau in sorted(swept)]
        ends = np.transpose([r["ci95"] for r in results])
        lines.append(Line(name, sorted(swept), [r["mean"] for r in results], *ends))
    for k, name in enumerate(("the paper, dream", "the paper, reality")):
        if task.table2:
            y = [report.quoted(cells[k])["mean"] for cells in task.table2.values()]
            lines.append(Line(name, list(task.table2), y, dots=True))
    return {"evolved": evolved, "temperature": chart("", "temperature", task.reward, lines)}


def lives(found: judge.Findings, tau: float) -> str:
    """Whole episodes of every policy in reality, and in the dream at the temperature of C's evolution."""
    rows = {
        f"{policy}, {'dream' if at else 'reality'}": interval(returns)
        for (policy, at), returns in found.returns.items()
        if at in (judge.REALITY, tau)
    }
    return bars(rows, colours=2)


def followed(found: judge.Findings) -> str:
    """How long dreams from recorded moments stay close to reality, and whether M can tell plans apart."""
    panels = []
    for source, rows, kinds in (
        ("from random play", found.loops["collecting policy"], (ERRORS, REWARDS)),
        ("from play of C", found.loops["C"], (ERRORS, REWARDS)),
        ("of plans", found.plans, (REWARDS, CHOICES)),
    ):
        for title, y_name, labels in kinds:
            lines = []
            for name, label in labels.items():
                known = [(row["steps"], row[name]) for row in rows if name in row]
                points = [(x, y) for x, y in known if np.isfinite(y)]
                if points:
                    lines.append(Line(label, *zip(*points, strict=True)))
            if lines:
                panels.append(chart(f"{title} {source}", "steps dreamt", y_name, lines))
    return beside(panels) if panels else ""


def ablations(agent: Agent, games: int) -> dict[str, tuple]:
    """C with parts of its input silenced, in reality: the mean score and its interval by name."""
    c = agent.config
    parts = {"C as it is": slice(0, 0), "z silenced": slice(0, c.vae.z_size)}
    if c.evolve.features != "z":
        parts["M's memory silenced"] = slice(c.vae.z_size, None)
    thetas = np.stack([agent.theta] * len(parts))
    inputs, outputs = feature_size(c), c.evolve.hidden or agent.m.action_size
    for theta, silent in zip(thetas, parts.values(), strict=True):
        theta[: inputs * outputs].reshape(inputs, outputs)[silent] = 0
    returns, _ = real_rollouts(agent, thetas, episode_seeds("check", games, 0, 98))
    return {name: interval(x) for name, x in zip(parts, returns, strict=True)}


def facts(rows: list[dict]) -> str:
    """R2 and AUC of every fact and reader; nothing if the world tells no facts."""
    found = {}
    for row in rows:
        for reader in list(row)[2:]:
            if np.isfinite(row[reader]):
                found[f"{row['fact']} ({row['measure']}): {reader}"] = (max(row[reader], 0),) * 3
    return bars(found, colours=3) if found else ""


def interval(returns: np.ndarray) -> tuple[float, float, float]:
    """The mean and its 95 % interval."""
    result = score(returns)
    return (result["mean"], *result["ci95"])


def strip(rows: dict[str, Sequence[np.ndarray]], captions: Sequence[str] = ()) -> str:
    """Rows of pictures (height, width, 3) with their names, captions under the columns; PNGs inside the page."""
    lines = []
    for name, pictures in rows.items():
        data = [b64encode(png(picture[None])).decode() for picture in pictures]
        cells = "".join(f'<td><img alt="" src="data:image/png;base64,{d}">' for d in data)
        lines.append(f"<tr><th>{escape(name)}{cells}")
    if captions:
        lines.append("<tr><th>" + "".join(f"<td>{escape(words)}" for words in captions))
    return f"<table>{''.join(lines)}</table>"
