"""Two loops: gradient descent for V and M, evolution for C. Both resume, to the bit, where they were killed.

state: a file to resume from, which the caller removes when the result is safe; report(done, **figures): progress.
"""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..core.adam import Adam
from ..core.arrays import Params
from ..models.cmaes import CMAES
from ..settings.config import Training
from ..system.files import read_arrays, write

SAVE_SECONDS = 20.0  # between saves of the state


class RunError(RuntimeError):
    """A run that cannot start or resume."""


def learning_rate(settings: Training, update: int, updates: int) -> float:
    """Adam's rate at an update: from learning_rate towards final_rate, by half a cosine or a factor per update."""
    if settings.schedule == "cosine":
        left = 0.5 + 0.5 * np.cos(np.pi * update / updates)
    else:
        left = 1.0 if settings.schedule == "constant" else float(settings.schedule) ** update
    return settings.final_rate + (settings.learning_rate - settings.final_rate) * left


def fit(
    params: Params,
    loss_and_grad: Callable[[int], tuple[dict[str, float], np.ndarray]],
    updates: int,  # those of an interrupted run included
    settings: Training,
    state: Path,
    report: Callable,
) -> None:
    """Adam, in place, by loss_and_grad: update -> losses by name, gradient (params.size,).

    What loss_and_grad draws must depend on the update alone. RunError: a loss or the gradient is not finite.
    """
    adam = Adam(params.size, clip=settings.clip)
    if state.exists():
        size = (params.size,)
        saved = read_arrays(state, weights=size, m=size, v=size, step_count=())
        params.flat[:] = saved["weights"]
        adam.load_state_dict(saved)
    first = adam.step_count
    saved_at = time.monotonic()
    for update in range(first, updates):
        losses, gradient = loss_and_grad(update)
        for name, values in (("loss", [*losses.values()]), ("gradient", gradient)):
            if not np.isfinite(values).all():
                fault = f"the {name} of update {update + 1} is not finite (losses: {losses})"
                kept = f"; the last good weights are kept in {state}" if state.exists() else ""
                mend = "try a smaller learning_rate in a new run folder"
                raise RunError(f"{fault}{kept}: {mend}")
        if update == first or time.monotonic() - saved_at > SAVE_SECONDS:  # their loss is finite
            write(state, {"weights": params.flat} | adam.state_dict())
            saved_at = time.monotonic()
        adam.step(params.flat, gradient, learning_rate(settings, update, updates))
        report(update + 1, **losses)


def evolve(
    cma: CMAES,
    fitness: Callable[[np.ndarray, int], np.ndarray],
    generations: int,  # those of an interrupted run included
    state: Path,
    report: Callable,
    check: Callable[[np.ndarray, int], float],
    check_every: int,  # generations between checks, and one at the end; 0: none
    log: Callable[[str], None] = print,  # gets a line if it ends early
    check_first: bool = False,  # also the mean that it begins from, which may stay the best
) -> tuple[np.ndarray, int, float]:
    """Evolve C -> the theta to deploy, its generation and its check (0.0 without checks).

    fitness: candidates (P, n), generation -> (P, E), in the same E episodes, whose mean counts; check: mean (n,),
    generation -> its score. Larger is better.
    The distribution mean is deployed, never the luckiest sample: the mean of the best check, or the last mean without
    checks. It ends early if CMA-ES has a reason to stop.
    """
    lowest = float(np.finfo(np.float64).min)  # in a state file all must be finite
    best = {"theta": cma.mean.copy(), "score": lowest, "best_generation": 0}
    if state.exists():
        saved = read_arrays(state, theta=cma.mean.shape, score=(), best_generation=())
        best = {name: saved[name] for name in best}
        cma.load_state_dict(saved)
    elif check_first and check_every:
        best["score"] = check(cma.mean, 0)
        report(0, check=best["score"])
        write(state, cma.state_dict() | best)
    saved_at = time.monotonic()
    last = cma.generation >= generations or bool(cma.stop())
    while not last:
        candidates = cma.ask()
        episodes = fitness(candidates, cma.generation)
        f = episodes.mean(axis=1)
        cma.tell(candidates, -f)  # it minimises
        figures = {"fitness": f.mean(), "min": f.min(), "max": f.max(), "std": f.std()}
        figures |= {"sigma": cma.sigma, "reliability": reliability(episodes)}
        reasons = cma.stop()
        last = cma.generation == generations or bool(reasons)
        if check_every and (last or cma.generation % check_every == 0):
            score = check(cma.mean, cma.generation)
            figures["check"] = score
            if score > best["score"]:
                best = {"theta": cma.mean.copy(), "score": score, "best_generation": cma.generation}
        report(cma.generation, **figures)
        if reasons:
            why = "; ".join(reasons.values())
            log(f"C is evolved no further than generation {cma.generation}: {why}")
        if last or "check" in figures or time.monotonic() - saved_at > SAVE_SECONDS:
            write(state, cma.state_dict() | best)
            saved_at = time.monotonic()
    if check_every:
        return best["theta"], int(best["best_generation"]), float(best["score"])
    return cma.mean.copy(), cma.generation, 0.0


def reliability(fitness: np.ndarray) -> float:
    """How much of the candidates' fitness (P, E) is their own, and not the luck of their episodes: 0 to 1.

    The correlation of their means over even and odd episodes, stepped up from half of the episodes to all
    (Spearman-Brown). Near 0 CMA-ES selects noise: it needs more episodes, a larger sigma, or a C of smaller weights.
    """
    if fitness.shape[1] < 2:
        return 0.0
    with np.errstate(divide="ignore", invalid="ignore"):  # equal candidates, infinite fitness
        r = np.corrcoef(fitness[:, ::2].mean(axis=1), fitness[:, 1::2].mean(axis=1))[0, 1]
    return float(2 * r / (1 + r)) if r > 0 else 0.0
