"""The lecture: all that a run can show, in one HTML file that holds its pictures, opens offline and prints.

lecture.html has the captions; here is what they speak of, a function for each. What needs no games is drawn after
every `train`; `report RUN --all` also plays, and judges the dream (judge.py).
"""

import re
from base64 import b64encode
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template

import numpy as np

from ..models.agent import Agent, feature_size
from ..settings.tasks import find
from ..system.files import write
from ..training.data import Records, frame_dtype
from ..training.episodes import episode_seeds, real_rollouts, score
from ..worlds.rollout import rollout
from ..worlds.world import Dream
from . import film, judge, report
from .pictures import png
from .plots import Line, bars, beside, chart
from .verdict import verdict

COLUMNS = 10  # pictures in a row
STRONGEST = 8  # latent dimensions shown
VALUES = (-3, -2, -1, 0, 1, 2, 3)  # of each; their prior is a standard normal
TAUS = (0.1, 0.5, 1.0, 1.15, 1.3)  # table 2's
LOOPS = (  # panels of openloop's figures: title, what is drawn, the lines
    ("z", "squared error", {"z: M": "M", "stays": "nothing changes", "mean": "mean frame"}),
    ("reward", "sum so far", {"reward: true": "came", "told": "told", "C: told": "told, C acts"}),
)
PLANS = (  # and of foresight's
    ("reward of plans", "sum so far", {"true": "came", "told": "told"}),
    ("plans told apart", "share right", {"pairs": "better of two", "auc": "lived or died"}),
)
SMOOTH = 9  # points averaged in a curve


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
    if panels := curves(folder, c.task):
        parts["curves"] = beside(panels)
        write(out / "curves.svg", parts["curves"].encode())
    parts |= with_games(agent, folder, games) if games else {}
    page = (Path(__file__).parent / "lecture.html").read_text()
    for section in re.findall(r"(?s)<section.*?</section>\n", page):
        if not parts.get(re.search(r'id="(\w+)"', section)[1]):
            page = page.replace(section, "")
    write(out / "report.html", Template(page).substitute(parts).encode())


def with_games(agent: Agent, folder: Path, games: int) -> dict[str, str]:
    """The sections that take games in reality and whole dreams."""
    c = agent.config
    found = []
    for finding in judge.findings(agent, games, [c.evolve.tau]):
        found.append(finding)
        print("judged:", *finding[:2], flush=True)
    by = {(kind, about): told for kind, about, told in found}
    lives = {about: told[0] for (kind, about), told in by.items() if kind == "life"}
    rows = {f"{policy}, {world}": interval(x) for (policy, world), x in lives.items()}
    facts = {about: told for (kind, about), told in by.items() if kind == "fact"}
    read = {
        f"{k} ({m}): {who}": (max(x, 0),) * 3
        for k, (m, v) in facts.items()
        for who, x in v.items()
        if np.isfinite(x)
    }
    return temperature(agent, folder, games, lives["C", "reality"]) | {
        "verdict": "<ul>" + "".join(f"<li>{escape(x)}" for x in verdict(c.task, found)) + "</ul>",
        "lives": bars(rows, (0, 1)),
        "followed": followed(by),
        "ablations": bars(ablations(agent, games)),
        "facts": bars(read, (0, 1, 2)) if read else "",
    }


def scores(folder: Path) -> str:
    """The scores of a run beside what they are to be compared with."""
    rows = {}
    for name, result in report.compared(folder).items():
        rows[name] = (result["mean"], *result.get("ci95", (result["mean"],) * 2))
    return bars(rows) + f"<pre>{escape(report.table(folder))}</pre>"


def dream(agent: Agent) -> str:
    """A film's pictures: reality, V's view, the dream."""
    moments = film.film(agent)
    times = np.linspace(0, len(moments), COLUMNS, endpoint=False).astype(int)
    rows = {name: [moments[t][name] for t in times] for name in moments[0]}
    return strip(rows, [f"{t * film.period(agent):.1f} s" for t in times])


def reconstructions(agent: Agent, folder: Path) -> str:
    """Frames of some episodes, and what V makes of them; nothing if the run keeps none."""
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


def curves(folder: Path, task: str) -> list[str]:
    """Panels of V, M, C in its dream and C in reality; all rounds after one another."""
    log = report.read_log(folder / "log.jsonl")
    shown = ("random policy", "blind baseline", "the paper's agent")
    levels = {name: r["mean"] for name, r in report.compared(folder).items() if name in shown}
    panels = []
    for title, stage, unit, y_name, names in report.CURVES:
        rows = [r for r in log if r["stage"] == stage]
        steps = report.across_rounds(rows)
        lines = []
        for name, label in names.items():
            points = [(x, r[name]) for x, r in zip(steps, rows, strict=True) if name in r]
            if any(y for _, y in points):
                smooth = SMOOTH if len(points) > 40 else 1
                lines.append(Line(label, *zip(*points, strict=True), smooth=smooth))
        real = "check" in names
        if lines and real:
            authors = {g: y for g, y in find(task).authors.items() if g <= max(steps)}
            if authors:
                lines.append(Line("the authors' log", list(authors), list(authors.values())))
        if lines:
            panels.append(chart(title, unit, y_name, lines, levels if real else {}))
    return panels


def temperature(agent: Agent, folder: Path, games: int, real: np.ndarray) -> dict[str, str]:
    """Score by temperature, of a sweep of this run if there is one, else of its C; the paper's beside it."""
    task = find(agent.config.task)
    swept = report.sweeps(folder)
    lines = []
    levels = {}
    if swept:
        how = "C evolved anew at each temperature, by `sweep`"
        where = {"its dream": "dream", "reality": "agent"}
    else:
        how = "this C at every temperature (`sweep` evolves it anew at each, as the paper did)"
        where = {"its dream": "dream"}
        levels["C in reality"] = real.mean()
        for tau in TAUS:
            world = Dream.as_evolved(agent, games, tau=tau, horizon=0, memories=0)
            dreams, _ = rollout(world, agent.controller(), episode_seeds("check", games, 0, 98))
            swept[tau] = {"dream": score(dreams)}
    taus = sorted(swept)
    for name, world in where.items():
        results = [swept[tau][world] for tau in taus]
        ends = np.transpose([r["ci95"] for r in results])
        lines.append(Line(name, taus, [r["mean"] for r in results], *ends))
    for k, name in enumerate(("the paper, dream", "the paper, reality")):
        if task.table2:
            y = [report.quoted(cells[k])["mean"] for cells in task.table2.values()]
            lines.append(Line(name, list(task.table2), y, dots=True))
    drawn = chart("", "temperature", task.reward, lines, levels)
    return {"evolved": how, "temperature": drawn}


def followed(by: dict) -> str:
    """How long a dream of recorded moments stays with what really came, and whether it can tell plans apart."""
    panels = []
    for kind, policy in (("loop", "collecting"), ("loop", "C"), ("plans", "C")):
        rows = by.get((kind, policy), ())
        steps = [row["steps"] for row in rows]
        for title, y_name, names in PLANS if kind == "plans" else LOOPS:
            known = [k for k in names if rows and all(np.isfinite(r.get(k, np.nan)) for r in rows)]
            lines = [Line(names[name], steps, [row[name] for row in rows]) for name in known]
            if lines:
                panels.append(chart(f"{title}, moments of {policy}", "steps dreamt", y_name, lines))
    return beside(panels) if panels else ""


def ablations(agent: Agent, games: int) -> dict[str, tuple]:
    """C with parts of what it sees silenced, and with the actions of another game, in reality."""
    c = agent.config
    parts = {"C as it is": slice(0, 0), "z silenced": slice(0, c.vae.z_size)}
    if c.evolve.features != "z":
        parts["M's memory silenced"] = slice(c.vae.z_size, None)
    thetas = np.stack([agent.theta] * len(parts))
    inputs, outputs = feature_size(c), c.evolve.hidden or agent.m.action_size
    for theta, silent in zip(thetas, parts.values(), strict=True):
        theta[: inputs * outputs].reshape(inputs, outputs)[silent] = 0
    returns, _ = real_rollouts(agent, thetas, episode_seeds("check", games, 0, 98))
    rows = {name: interval(x) for name, x in zip(parts, returns, strict=True)}
    return rows | {"another game's actions": interval(judge.another_game(agent, games))}


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
