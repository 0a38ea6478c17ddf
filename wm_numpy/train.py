"""Two loops: gradient descent for V and for M, evolution for C. Both go on, to the bit, where they were killed."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from .cmaes import CMAES
from .core import Params
from .data import DataError, read_arrays, write_arrays
from .optim import Adam

SAVE_SECONDS = 20.0  # between saves of the state to resume from


class DivergedError(RuntimeError):
    """A loss is not a number any more."""


def fit(
    params: Params,
    loss_and_grad: Callable[[int], tuple[dict[str, float], np.ndarray]],
    updates: int,
    learning_rate: Callable[[int], float],
    state: Path,
    report: Callable[[int, dict[str, float]], None],
    clip: float | None = None,
) -> None:
    """Adam for `updates` updates, params changed in place.

    Args:
        params: of the model.
        loss_and_grad: update -> losses by name, and the flat gradient. What it draws depends on the update alone.
        updates: how many, those of an interrupted run included.
        learning_rate: update -> rate.
        state: file to resume from; the caller removes it when the result is safe.
        report: is told (updates done, losses).
        clip: see Adam.

    Raises:
        DivergedError: a loss or gradient is not finite; `state` holds the last weights whose loss was.
    """
    adam = Adam(params.size, clip=clip)
    first = 0
    if state.exists():
        saved = _read_state(state, params=params.flat.shape, m=adam.m.shape, v=adam.v.shape, step_count=())
        params.flat[:] = saved["params"]
        adam.load_state_dict(saved)
        first = adam.step_count
    saved_at = time.monotonic()
    for update in range(first, updates):
        losses, gradient = loss_and_grad(update)
        if not np.isfinite([*losses.values(), gradient @ gradient]).all():
            raise DivergedError(
                f"the loss of update {update + 1} is not finite ({losses}): the last good weights are kept in "
                f"{state}; try a smaller learning_rate in a new run folder"
            )
        if update == first or time.monotonic() - saved_at > SAVE_SECONDS:  # weights whose loss is known to be finite
            write_arrays(state, {"params": params.flat} | adam.state_dict())
            saved_at = time.monotonic()
        adam.step(params.flat, gradient, learning_rate(update))
        report(update + 1, losses)


def evolve(
    cma: CMAES,
    fitness: Callable[[np.ndarray, int], np.ndarray],
    generations: int,
    state: Path,
    report: Callable[[int, dict[str, float]], None],
    check: Callable[[np.ndarray, int], float],
    check_every: int,
) -> tuple[np.ndarray, int]:
    """Evolve C -> the vector to deploy and its generation.

    The distribution mean is deployed, never the luckiest sample: the mean of the best check, or the last mean when
    there are no checks.

    Args:
        cma: minimises, so it is told minus the fitness.
        fitness: (candidates (P, n), generation) -> fitness (P,), larger is better.
        generations: how many.
        state: file to resume from; the caller removes it when the result is safe.
        report: is told (generations done, figures).
        check: (mean (n,), generation) -> its score, larger is better.
        check_every: generations between checks, and one at the end; 0: none.
    """
    best = {"vector": cma.mean.copy(), "score": np.array(-np.inf), "best_generation": np.array(0)}
    if state.exists():
        saved = _read_state(state, vector=best["vector"].shape, score=(), best_generation=())
        best = {name: saved[name] for name in best}
        cma.load_state_dict(saved)
    saved_at = time.monotonic()
    while cma.generation < generations:
        candidates = cma.ask()
        fit_ = fitness(candidates, cma.generation)
        cma.tell(candidates, -fit_)
        figures = {
            "fitness": fit_.mean(),
            "min": fit_.min(),
            "max": fit_.max(),
            "std": fit_.std(),
            "sigma": cma.sigma,
        }
        last = cma.generation == generations
        if check_every and (last or cma.generation % check_every == 0):
            figures["check"] = score = check(cma.mean, cma.generation)
            if score > best["score"]:
                best = {
                    "vector": cma.mean.copy(),
                    "score": np.array(score),
                    "best_generation": np.array(cma.generation),
                }
        report(cma.generation, {name: float(x) for name, x in figures.items()})
        if last or "check" in figures or time.monotonic() - saved_at > SAVE_SECONDS:
            write_arrays(state, cma.state_dict() | best)
            saved_at = time.monotonic()
    return (best["vector"], int(best["best_generation"])) if check_every else (cma.mean.copy(), cma.generation)


def _read_state(path: Path, **shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    """The arrays of a state file, which must have these names and shapes."""
    saved = read_arrays(path)
    for name, shape in shapes.items():
        if name not in saved or saved[name].shape != shape:
            raise DataError(
                f"{path} is of another configuration ({name} is not of shape {shape}): delete it to start again"
            )
    return saved
