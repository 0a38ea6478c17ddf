"""How well something is told: share of variance, correlation, ranking; ridge regression, which reads it off."""

import numpy as np


def short(x: float) -> str:
    """A number as people write it: 419, 6.79."""
    return f"{x:.0f}" if abs(x) >= 10 else f"{x:.2f}"


def r2(told: np.ndarray, true: np.ndarray) -> float:
    """Share of the variance of `true` (N,) that `told` explains; 0: no better than the mean; nan: it does not vary."""
    variance = np.var(true) if len(true) else 0
    return float(1 - np.mean((told - true) ** 2) / variance) if variance else np.nan


def correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson's, of (N,) each; nan if one of them does not vary."""
    varies = len(x) > 1 and np.std(x) > 0 and np.std(y) > 0
    return float(np.corrcoef(x, y)[0, 1]) if varies else np.nan


def auc(odds: np.ndarray, came: np.ndarray) -> float:
    """How often the odds of what came are above those of what did not, a tie counting half; nan: only one kind.

    odds (N,), came (N,) bool. The area under the ROC curve, as the Mann-Whitney statistic.
    """
    yes = odds[came]
    no = np.sort(odds[~came])
    if not (len(yes) and len(no)):
        return np.nan
    below = np.searchsorted(no, yes, "left") + np.searchsorted(no, yes, "right")
    return float(below.mean() / 2 / len(no))


def ridge(x: np.ndarray, y: np.ndarray, test: np.ndarray, weight: float = 1e-3) -> np.ndarray:
    """Ridge regression of y (N,) on standardised x (N, F), fitted where `test` is False -> what it tells where True."""
    x = x.astype(np.float64)
    x = (x - x[~test].mean(axis=0)) / (x[~test].std(axis=0) + 1e-6)
    x = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    known = x[~test]
    normal = known.T @ known / len(known) + weight * np.eye(x.shape[1])
    return x[test] @ np.linalg.solve(normal, known.T @ y[~test] / len(known))
