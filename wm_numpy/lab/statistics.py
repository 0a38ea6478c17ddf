"""How good a prediction is: explained variance, correlation, ranking; ridge regression for linear probes."""

import numpy as np


def short(x: float) -> str:
    """A number as people write it: 419, 6.79."""
    return f"{x:.0f}" if abs(x) >= 10 else f"{x:.2f}"


def r2(predicted: np.ndarray, true: np.ndarray) -> float:
    """Share of the variance of `true` (N,) that is explained; 0: no better than the mean; nan: it does not vary."""
    variance = np.var(true) if len(true) else 0
    return float(1 - np.mean((predicted - true) ** 2) / variance) if variance else np.nan


def correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson's, of (N,) each; nan if one of them does not vary."""
    varies = len(x) > 1 and np.std(x) > 0 and np.std(y) > 0
    return float(np.corrcoef(x, y)[0, 1]) if varies else np.nan


def auc(score: np.ndarray, true: np.ndarray) -> float:
    """The area under the ROC curve: how often a case that is true scores above one that is not, ties counting half.

    score (N,), true (N,) bool. The Mann-Whitney statistic; nan if all cases are alike.
    """
    yes, no = score[true], np.sort(score[~true])
    if not (len(yes) and len(no)):
        return np.nan
    below = np.searchsorted(no, yes, "left") + np.searchsorted(no, yes, "right")
    return float(below.mean() / 2 / len(no))


def ridge(x: np.ndarray, y: np.ndarray, test: np.ndarray, weight: float = 1e-3) -> np.ndarray:
    """Ridge regression of y (N,) on standardised x (N, F), fitted where `test` is False -> predictions where True."""
    x = x.astype(np.float64)
    x = (x - x[~test].mean(axis=0)) / (x[~test].std(axis=0) + 1e-6)
    x = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    train = x[~test]
    normal = train.T @ train / len(train) + weight * np.eye(x.shape[1])
    return x[test] @ np.linalg.solve(normal, train.T @ y[~test] / len(train))
