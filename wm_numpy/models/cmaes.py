"""C's optimiser: CMA-ES with full covariance and negative weights (Hansen's tutorial, arXiv:1604.00772 v2).

    es = CMAES(np.zeros(867), sigma=0.1, population=64)
    while not es.stop():
        candidates = es.ask()  # (P, n), drawn from N(mean, sigma^2 cov)
        es.tell(candidates, costs=[f(x) for x in candidates])  # lower is better; only their ORDER matters
    es.mean  # what to deploy

The numbers in brackets are the tutorial's equations; its C, B and D are cov, axes and widths here. One thing differs:
cov is decomposed LAZINESS times less often, because at n = 867 and P = 64 one `eigh` costs as much as 15 generations.

Letters: n dimensions, P population.
"""

import json

import numpy as np

LAZINESS = 10  # times the tutorial's interval between decompositions, see Constants.interval


class Constants:
    """What depends on n and P alone: the tutorial's defaults (table 1 and equations 48-58)."""

    def __init__(self, n: int, population: int):
        self.parents = parents = population // 2  # mu: how many candidates move the mean
        raw = np.log((population + 1) / 2) - np.log(np.arange(1, population + 1))  # (49)
        mu_eff, mu_eff_minus = (w.sum() ** 2 / (w**2).sum() for w in (raw[:parents], raw[parents:]))
        self.mu_eff = mu_eff  # how many equally weighted parents would be as informative
        self.c_sigma = c_sigma = (mu_eff + 2) / (n + mu_eff + 5)  # (55) rate of the step-size path
        self.d_sigma = 1 + 2 * max(0.0, np.sqrt((mu_eff - 1) / (n + 1)) - 1) + c_sigma  # damping
        self.c_c = (4 + mu_eff / n) / (n + 4 + 2 * mu_eff / n)  # (56) rate of the covariance path
        self.c_1 = c_1 = 2 / ((n + 1.3) ** 2 + mu_eff)  # (57) rate of the rank-one update
        c_mu = 2 * (0.25 + mu_eff + 1 / mu_eff - 2) / ((n + 2) ** 2 + mu_eff)
        self.c_mu = c_mu = min(1 - c_1, c_mu)  # (58) rate of the rank-mu update
        self.chi_n = np.sqrt(n) * (1 - 1 / (4 * n) + 1 / (21 * n * n))  # E ||N(0, I)||
        alpha = min(
            1 + c_1 / c_mu,  # (50) the decay of cov would vanish
            1 + 2 * mu_eff_minus / (mu_eff + 2),  # (51) as trustworthy as the positive ones
            (1 - c_1 - c_mu) / (n * c_mu),  # (52) cov stays positive definite
        )
        # (P,) by rank, best first: the first half moves the mean, the rest are negative
        positive, negative = raw / raw[raw > 0].sum(), alpha * raw / -raw[raw < 0].sum()
        self.weights = np.where(raw >= 0, positive, negative)  # (53)

        # Every 25 generations at n = 867, P = 64 (the tutorial: 2), in which cov changes by about 1 / n. Rotated
        # ellipsoids (n = 10, 40, 100) need no more evaluations for it; Rosenbrock (n = 5) 1.6 x at a LAZINESS of 30.
        self.interval = max(1, int(LAZINESS / (10 * n * (c_1 + c_mu))))

        assert 1 <= mu_eff <= parents + 1e-9 and abs(self.weights[:parents].sum() - 1) < 1e-9
        assert 0 < c_sigma < 1 <= self.d_sigma and 0 < self.c_c <= 1
        assert min(c_1, c_mu) > 0 and c_1 + c_mu <= 1


class CMAES:
    """Minimise by asking for candidates and telling their costs, from a mean (n,); the caller owns the loop.

    sigma: the initial step size in every coordinate (the authors' 0.1). population: the tutorial's unless given.
    """

    def __init__(
        self, mean: np.ndarray, sigma: float = 0.1, population: int | None = None, seed: int = 0
    ):
        n = len(mean)
        self.population = population or 4 + int(3 * np.log(n))  # (48)
        self.constants = Constants(n, self.population)
        self.window = 10 + int(np.ceil(30 * n / self.population))  # generations: stop()'s memory
        self.rng = np.random.default_rng(seed)

        # The state; all but sigma0 changes from generation to generation:
        self.mean = np.array(mean, np.float64)  # (n,) centre of the distribution: what to deploy
        self.sigma = self.sigma0 = float(sigma)  # step size, now and initially
        self.p_sigma = np.zeros(n)  # path of successive steps, whitened: moves sigma
        self.p_c = np.zeros(n)  # path of successive steps: moves cov
        self.cov = np.eye(n)  # covariance
        self.axes = np.eye(n)  # its eigenvectors, in columns, when last decomposed
        self.widths = np.ones(n)  # the roots of its eigenvalues, ascending
        self.generation = 0  # how often tell was called
        self.decomposed = 0  # generation of the last decomposition
        self.best = np.empty(0)  # (<= window,) best cost of each of the latest generations

    def ask(self) -> np.ndarray:
        """-> candidates (P, n) float64, drawn from N(mean, sigma^2 cov) with one matrix product."""
        z = self.rng.standard_normal((self.population, self.mean.size))  # (38)
        y = z * self.widths @ self.axes.T  # (39) y = B D z, (P, n)
        return self.mean + self.sigma * y  # (40)

    def tell(self, candidates: np.ndarray, costs: np.ndarray) -> None:
        """Move towards those candidates (P, n) of `ask` with the lowest costs (P,); infinity is the worst.

        Raises:
            ValueError: wrong shapes or a NaN cost; nothing has changed then.
        """
        k = self.constants
        n = self.mean.size
        costs = np.asarray(costs, np.float64)
        if candidates.shape != (self.population, n) or costs.shape != (self.population,):
            raise ValueError(
                f"tell needs candidates {(self.population, n)} and one cost per candidate, "
                f"not {candidates.shape} and {costs.shape}"
            )
        if (nan := np.flatnonzero(np.isnan(costs))).size:
            raise ValueError(f"the costs of candidates {nan.tolist()} are NaN and cannot be ranked")

        # 1. Rank. Ties stay in the order of asking, which is random.
        order = np.argsort(costs, kind="stable")
        y = (candidates[order] - self.mean) / self.sigma  # (P, n)

        # 2. Mean.
        y_w = k.weights[: k.parents] @ y[: k.parents]  # (41) (n,)
        self.mean = self.mean + self.sigma * y_w  # (42)

        # 3. Step size: grow when successive steps agree, shrink when they cancel.
        turned = np.vstack([y_w, y[k.parents :]]) @ self.axes / self.widths  # unit variance
        gain = np.sqrt(k.c_sigma * (2 - k.c_sigma) * k.mu_eff)
        step = self.axes @ turned[0]  # C^-1/2 y_w
        self.p_sigma = (1 - k.c_sigma) * self.p_sigma + gain * step  # (43)
        length = np.linalg.norm(self.p_sigma)
        change = k.c_sigma / k.d_sigma * (length / k.chi_n - 1)
        self.sigma *= float(np.exp(min(1, change)))  # (44), by e at most, as in pycma

        # 4. Covariance.
        self.generation += 1
        started = np.sqrt(1 - (1 - k.c_sigma) ** (2 * self.generation))
        h_sigma = float(length / started < (1.4 + 2 / (n + 1)) * k.chi_n)  # 0: too long a step
        gain = h_sigma * np.sqrt(k.c_c * (2 - k.c_c) * k.mu_eff)
        self.p_c = (1 - k.c_c) * self.p_c + gain * y_w  # (45)
        squared = np.einsum("pn,pn->p", turned[1:], turned[1:])  # ||C^-1/2 y||^2, worse half
        w = k.c_mu * k.weights
        w[k.parents :] *= n / (squared + 1e-300)  # (46) of a bad step only the direction counts
        w = np.append(k.c_1, w)  # rank one and rank mu in one product
        rows = np.vstack([self.p_c, y])  # (1 + P, n)
        kept = 1 + k.c_1 * (1 - h_sigma) * k.c_c * (2 - k.c_c) - k.c_1 - k.c_mu * k.weights.sum()
        self.cov *= kept  # (47)
        self.cov += rows.T @ (w[:, None] * rows)  # + c_1 p_c p_c^T + c_mu sum_i w_i y_i y_i^T

        # 5. What stop() looks at, and the decomposition when it is due.
        self.best = np.append(self.best, costs[order[0]])[-self.window :]
        if self.generation - self.decomposed >= k.interval:
            self._decompose()

    def _decompose(self) -> None:
        """cov = axes widths^2 axes^T. Eigenvalues that rounding made negative are lifted to the least that counts."""
        d2, self.axes = np.linalg.eigh(self.cov)
        floor = d2[-1] * np.finfo(np.float64).eps
        if d2[0] < floor:
            d2 = np.maximum(d2, floor)
            self.cov = (self.axes * d2) @ self.axes.T
        self.widths = np.sqrt(d2)
        self.decomposed = self.generation

    def stop(self) -> dict[str, str]:
        """Reasons to stop (appendix B.3), name -> sentence; empty: go on."""
        reasons = {}
        if (self.widths[-1] / self.widths[0]) ** 2 > 1e14:
            reasons["conditioncov"] = "the condition of the covariance is above 1e14"
        largest = max(np.sqrt(np.abs(np.diag(self.cov))).max(), np.abs(self.p_c).max())
        if self.sigma * largest < 1e-12 * self.sigma0:
            reasons["tolx"] = "no coordinate moves by more than 1e-12 of the first sigma"
        same = np.allclose(self.best, self.best[:1], rtol=0, atol=1e-12)  # infinite ones, too
        if len(self.best) == self.window and same:
            why = f"the best cost has been the same, to 1e-12, for {self.window} generations"
            reasons["tolfun"] = why
        return reasons

    def state_dict(self) -> dict[str, np.ndarray]:
        """A copy of the state, random numbers included, to resume exactly; np.savez takes it."""
        constant = ("constants", "window", "rng")
        state = {k: np.array(v) for k, v in vars(self).items() if k not in constant}
        return state | {"rng": np.array(json.dumps(self.rng.bit_generator.state))}

    def load_state_dict(self, state: dict[str, np.ndarray]) -> None:
        """Restore what state_dict gave; more is ignored."""
        self.rng.bit_generator.state = json.loads(str(state["rng"]))
        for name in self.state_dict().keys() - {"rng"}:
            value = np.array(state[name])
            setattr(self, name, value if value.ndim else value.item())
