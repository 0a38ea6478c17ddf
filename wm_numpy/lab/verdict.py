"""What judge's figures say, in sentences."""

from collections.abc import Sequence

import numpy as np

from ..settings.tasks import find
from .statistics import short


def verdict(task: str, found: Sequence[tuple]) -> list[str]:
    """A sentence for each question; found: judge.findings."""
    by = {(kind, about): told for kind, about, told in found}
    lives = {about: told[0] for (kind, about), told in by.items() if kind == "life"}
    unit = find(task).reward
    gain = by["steps", "C"]["gaussian"] - by["steps", "C"]["nll"]
    better = f"{gain:.2f} nats a dimension better than" if gain > 0 else "no better than"
    told = [f"Where C leads, M foretells the next z {better} a Gaussian that knows nothing."]
    known = 0
    for row in by["loop", "C"]:
        if row["z: M"] >= min(row["stays"], row["mean"]):
            break
        known = row["steps"]
    told.append(
        f"Under recorded actions a dream stays nearer to what came than both baselines for {known} steps."
    )
    for row in by["loop", "C"][-1:]:
        if "C: told" in row:
            pay = f"In its dream C is told {short(row['C: told'])} where {short(row['reward: true'])} came"
            kind = kindness(row["C: told"], row["reward: true"])
            told.append(f"{pay}, {row['steps']} steps after a recorded moment: {kind}.")
    real = lives["C", "reality"]
    for (policy, world), dream in lives.items():
        if policy == "C" and world != "reality":
            pay = f"Over whole lives C has {short(dream.mean())} in the {world}, {short(real.mean())} in reality"
            told.append(f"{pay} ({unit}): {kindness(dream.mean(), real.mean())}.")
    whom = {"to and fro": "the blind baseline, to and fro,", "collecting": "the collecting policy"}
    for other, name in whom.items():
        more = real - lives[other, "reality"]  # of the same games
        error = more.std(ddof=1) / np.sqrt(len(more))
        sure = "better" if more.mean() > 0 else "worse"
        if abs(more.mean()) <= 2 * error:
            sure = "not to be told apart by so few games"
        told.append(
            f"Lead of C over {name} in reality: {short(more.mean())} +- {short(error)}, {sure}."
        )
    return told


def kindness(dream: float, real: float) -> str:
    """A dream's pay beside reality's, in words."""
    if real <= 0:
        return "reality paid nothing"
    more = 100 * (dream / real - 1)
    if abs(more) < 10:
        return f"about right ({more:+.0f} %)"
    return f"kinder than reality by {more:.0f} %" if more > 0 else f"harsher by {-more:.0f} %"
