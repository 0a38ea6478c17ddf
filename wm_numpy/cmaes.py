"""C's optimiser: CMA-ES with full covariance and negative weights (Hansen's tutorial, arXiv:1604.00772 v2).

    es = CMAES(np.zeros(867), sigma=0.1, population=64)
    while not es.stop():
        candidates = es.ask()  # (P, n) draws from N(mean, sigma^2 C)
        es.tell(candidates, costs=[f(x) for x in candidates])  # lower is better; only their ORDER matters
    es.mean  # what to deploy

The numbers in brackets are the tutorial's equations. One point differs: C is decomposed LAZINESS times more
rarely, because at n = 867 and P = 64 one `eigh` costs as much as 15 whole generations without it.

Letters: n dimensions, P population.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields

import numpy as np

LAZINESS = 10  # of the tutorial's interval between decompositions, see Constants.interval


@dataclass(frozen=True)
class Constants:
    """What depends on n and P alone (tutorial table 1 and equations 48-58)."""

    weights: np.ndarray  # (P,) by rank, best first: the first half recombines the mean, the rest are negative
    parents: int  # mu: how many candidates move the mean
    mu_eff: float  # how many equally weighted parents would be as informative
    c_sigma: float  # rate of the step-size path
    d_sigma: float  # damping of the step size
    c_c: float  # rate of the covariance path
    c_1: float  # rate of the rank-one update
    c_mu: float  # rate of the rank-mu update
    chi_n: float  # E ||N(0, I)||
    interval: int  # generations from one decomposition of C to the next

    @classmethod
    def of(cls, n: int, population: int) -> Constants:
        """The tutorial's defaults."""
        parents = population // 2
        raw = np.log((population + 1) / 2) - np.log(np.arange(1, population + 1))  # (49)
        mu_eff = raw[:parents].sum() ** 2 / (raw[:parents] ** 2).sum()
        mu_eff_minus = raw[parents:].sum() ** 2 / (raw[parents:] ** 2).sum()

        c_sigma = (mu_eff + 2) / (n + mu_eff + 5)  # (55)
        d_sigma = 1 + 2 * max(0.0, np.sqrt((mu_eff - 1) / (n + 1)) - 1) + c_sigma
        c_c = (4 + mu_eff / n) / (n + 4 + 2 * mu_eff / n)  # (56)
        c_1 = 2 / ((n + 1.3) ** 2 + mu_eff)  # (57)
        c_mu = min(1 - c_1, 2 * (0.25 + mu_eff + 1 / mu_eff - 2) / ((n + 2) ** 2 + mu_eff))  # (58)

        alpha = min(
            1 + c_1 / c_mu,  # (50) the decay of C would vanish
            1 + 2 * mu_eff_minus / (mu_eff + 2),  # (51) as trustworthy as the positive ones
            (1 - c_1 - c_mu) / (n * c_mu),  # (52) C stays positive definite
        )
        positive, negative = raw[raw > 0].sum(), -raw[raw < 0].sum()
        weights = np.where(raw >= 0, raw / positive, alpha * raw / negative)  # (53)

        # The tutorial decomposes every 1 / (10 n (c_1 + c_mu)) generations (n = 867, P = 64: 3), we every 25,
        # in which C changes by about 1 / n. On rotated ellipsoids (2-5 seeds) no more evaluations at
        # 10 times the interval (n = 10, 40, 100) or 20 (40, 100); Rosenbrock (n = 5) takes 1.6 x at 30.
        interval = max(1, int(LAZINESS / (10 * n * (c_1 + c_mu))))

        assert 1 <= mu_eff <= parents + 1e-9 and abs(weights[:parents].sum() - 1) < 1e-9
        assert 0 < c_sigma < 1 <= d_sigma and 0 < c_c <= 1
        assert min(c_1, c_mu) > 0 and c_1 + c_mu <= 1
        chi_n = np.sqrt(n) * (1 - 1 / (4 * n) + 1 / (21 * n * n))
        return cls(weights, parents, mu_eff, c_sigma, d_sigma, c_c, c_1, c_mu, chi_n, interval)


@dataclass
class State:
    """What changes from generation to generation; all of it goes into a checkpoint."""

    mean: np.ndarray  # (n,)
    sigma: float
    p_sigma: np.ndarray  # (n,) path of the step size: successive steps, whitened
    p_c: np.ndarray  # (n,) path of the covariance: successive steps
    C: np.ndarray  # (n, n) covariance; symmetric but for rounding: eigh reads its lower triangle
    B: np.ndarray  # (n, n) eigenvectors in columns, of C when it was last decomposed
    D: np.ndarray  # (n,) square roots of its eigenvalues, ascending: C = B D^2 B^T
    generation: int
    decomposed: int  # the generation of B and D
    best: np.ndarray  # (<= window,) best cost of each of the latest generations
    worst: float  # cost of the latest generation


class CMAES:
    """Minimise by asking for candidates and telling their costs; the caller owns the loop.

    Args:
        mean: (n,) where to start.
        sigma: first step size, the same in all coordinates (the authors' 0.1).
        population: candidates per generation; None: the tutorial's 4 + floor(3 ln n) (48).
        seed: of this optimiser's own random numbers.

    Raises:
        ValueError: the mean is not a finite vector, sigma not positive, or the population under 2.
    """

    def __init__(self, mean: np.ndarray, sigma: float = 0.1, population: int | None = None, seed: int = 0):
        mean = np.array(mean, np.float64)
        if mean.ndim != 1 or not mean.size or not np.isfinite(mean).all():
            raise ValueError(f"the mean must be a finite vector (n,), not one of shape {mean.shape}: {mean}")
        if not 0 < sigma < np.inf:
            raise ValueError(f"sigma must be positive and finite, not {sigma}")
        n = mean.size
        self.population = 4 + int(3 * np.log(n)) if population is None else int(population)  # (48)
        if self.population < 2:
            raise ValueError(f"the population must be at least 2, not {self.population}")
        self.constants = Constants.of(n, self.population)
        self.window = 10 + int(np.ceil(30 * n / self.population))  # generations that stop() looks back upon
        self.sigma0 = float(sigma)
        self.rng = np.random.default_rng(seed)
        path = np.zeros(n)  # of both: replaced, never changed in place
        C, B, D, best = np.eye(n), np.eye(n), np.ones(n), np.empty(0)
        self.state = State(mean, self.sigma0, path, path, C, B, D, 0, 0, best, np.inf)

    @property
    def mean(self) -> np.ndarray:
        """(n,) centre of the distribution: what to deploy."""
        return self.state.mean

    @property
    def sigma(self) -> float:
        """Overall step size."""
        return self.state.sigma

    @property
    def generation(self) -> int:
        """How many times tell was called."""
        return self.state.generation

    def ask(self) -> np.ndarray:
        """-> candidates (P, n) float64, drawn from N(mean, sigma^2 C); one matrix product for all of them."""
        s = self.state
        z = self.rng.standard_normal((self.population, s.mean.size))  # (38)
        z *= s.D
        x = z @ s.B.T  # (39) y = B D z, (P, n)
        x *= s.sigma
        x += s.mean  # (40) x = m + sigma y
        return x

    def tell(self, candidates: np.ndarray, costs: np.ndarray) -> None:
        """Move the distribution towards the better candidates.

        Args:
            candidates: (P, n), from ask; repaired or replaced ones are welcome.
            costs: (P,), lower is better. Infinity is the worst, NaN an error.

        Raises:
            ValueError: wrong shapes, a candidate that is not finite, a NaN cost; nothing has changed then.
        """
        s, k, n = self.state, self.constants, self.state.mean.size
        x, costs = np.asarray(candidates, np.float64), np.asarray(costs, np.float64)
        wanted = (self.population, n)
        if x.shape != wanted or not np.isfinite(x).all():
            raise ValueError(f"tell needs finite candidates of shape {wanted}, got shape {x.shape}")
        if costs.shape != wanted[:1]:
            raise ValueError(f"tell needs one cost per candidate, shape {wanted[:1]}, got {costs.shape}")
        if (nan := np.flatnonzero(np.isnan(costs))).size:
            raise ValueError(f"the costs of candidates {nan.tolist()} are NaN and cannot be ranked")

        # 1. Rank. Ties stay in the order of asking, which is random.
        order = np.argsort(costs, kind="stable")
        y = x[order]  # (P, n)
        y -= s.mean
        y /= s.sigma

        # 2. Mean.
        y_w = k.weights[: k.parents] @ y[: k.parents]  # (41) (n,)
        mean = s.mean + s.sigma * y_w  # (42)

        # 3. Step size: grow when successive steps agree, shrink when they cancel.
        turned = np.vstack([y_w, y[k.parents :]]) @ s.B  # D^-1 B^T y: in the axes of C, at unit variance
        turned /= s.D
        whitened = s.B @ turned[0]  # C^-1/2 y_w, (n,)
        p_sigma = (1 - k.c_sigma) * s.p_sigma  # (43)
        p_sigma += np.sqrt(k.c_sigma * (2 - k.c_sigma) * k.mu_eff) * whitened
        length = np.linalg.norm(p_sigma)
        sigma = s.sigma * np.exp(k.c_sigma / k.d_sigma * (length / k.chi_n - 1))  # (44)

        # 4. Covariance.
        started = np.sqrt(1 - (1 - k.c_sigma) ** (2 * (s.generation + 1)))
        h_sigma = float(length / started < (1.4 + 2 / (n + 1)) * k.chi_n)  # 0: too long a step for p_c
        p_c = (1 - k.c_c) * s.p_c + h_sigma * np.sqrt(k.c_c * (2 - k.c_c) * k.mu_eff) * y_w  # (45)
        squared = np.einsum("pn,pn->p", turned[1:], turned[1:])  # ||C^-1/2 y||^2 of the negative ones
        w = k.c_mu * k.weights
        w[k.parents :] *= n / (squared + 1e-300)  # (46) of a bad step only the direction counts
        w, rows = np.append(k.c_1, w), np.vstack([p_c, y])  # rank one and rank mu in one product, (1 + P, n)
        s.C *= 1 + k.c_1 * (1 - h_sigma) * k.c_c * (2 - k.c_c) - k.c_1 - k.c_mu * k.weights.sum()  # (47)
        s.C += rows.T @ (w[:, None] * rows)  # + c_1 p_c p_c^T + c_mu sum_i w_i y_i y_i^T

        # 5. Bookkeeping, and the decomposition when it is due.
        s.mean, s.sigma, s.p_sigma, s.p_c = mean, float(sigma), p_sigma, p_c
        s.generation += 1
        s.best = np.append(s.best, costs[order[0]])[-self.window :]
        s.worst = float(costs[order[-1]])
        if s.generation - s.decomposed >= k.interval:
            self._decompose()

    def _decompose(self) -> None:
        """C = B D^2 B^T. Eigenvalues that rounding made negative are lifted to the smallest that counts."""
        s = self.state
        d2, s.B = np.linalg.eigh(s.C)  # reads the lower triangle
        floor = d2[-1] * np.finfo(np.float64).eps
        if d2[0] < floor:
            d2 = np.maximum(d2, floor)
            s.C = (s.B * d2) @ s.B.T
        s.D = np.sqrt(d2)
        s.decomposed = s.generation

    def stop(self) -> dict[str, str]:
        """Why to stop, name -> sentence; empty: go on. Criteria and tolerances of appendix B.3."""
        s, reasons = self.state, {}
        deviation = s.sigma * np.sqrt(np.abs(np.diag(s.C)))  # (n,)
        condition = (s.D[-1] / s.D[0]) ** 2
        if condition > 1e14:
            reasons["conditioncov"] = f"the condition of C is {condition:.1e}, above 1e14"
        if s.sigma * s.D[-1] > 1e4 * self.sigma0:
            reasons["tolxup"] = "the distribution is over 1e4 times as wide as at first: sigma was too small"
        if max(deviation.max(), s.sigma * np.abs(s.p_c).max()) < 1e-12 * self.sigma0:
            reasons["tolx"] = "no coordinate moves by more than 1e-12 of the first sigma"
        if np.any(s.mean == s.mean + 0.2 * deviation):
            reasons["noeffectcoord"] = "0.2 standard deviations no longer change some coordinate of the mean"
        if len(s.best) == self.window and np.isfinite(s.best).all():
            spread = s.best.max() - s.best.min()
            if spread == 0:
                reasons["equalfunvalues"] = f"the best cost stayed {s.best[-1]:g} for {self.window} generations"
            if max(spread, s.worst - s.best[-1]) < 1e-12:
                reasons["tolfun"] = f"costs differed by less than 1e-12 over {self.window} generations"
        return reasons

    def state_dict(self) -> dict[str, np.ndarray]:
        """Copies of all that is needed to go on exactly, random numbers included; np.savez takes it."""
        arrays = {f.name: np.array(getattr(self.state, f.name)) for f in fields(State)}
        rng = np.array(json.dumps(self.rng.bit_generator.state))
        return arrays | {"sigma0": np.array(self.sigma0), "population": np.array(self.population), "rng": rng}

    def load_state_dict(self, state: dict[str, np.ndarray]) -> None:
        """Restore what state_dict gave, into an optimiser of the same dimension and population.

        Raises:
            ValueError: something is missing, or was saved by an optimiser of another dimension or population.
        """
        names = [f.name for f in fields(State)]
        missing = [name for name in (*names, "sigma0", "population", "rng") if name not in state]
        if missing:
            raise ValueError(f"this is no state of CMAES: it lacks {', '.join(missing)}")
        saved, here = (len(state["mean"]), int(state["population"])), (self.mean.size, self.population)
        if saved != here:
            raise ValueError(f"saved with (dimensions, population) {saved}, this optimiser has {here}")
        loaded = {name: np.array(state[name]) for name in names}
        self.state = State(**{name: a if a.ndim else a.item() for name, a in loaded.items()})
        self.sigma0 = float(state["sigma0"])
        self.rng.bit_generator.state = json.loads(str(state["rng"]))
