"""CMA-ES against the tutorial: budgets, one update stepped by hand, constants, restoring, stopping."""

from pathlib import Path

import numpy as np
import pytest

from wm_numpy.models.cmaes import CMAES, Constants

FIXTURE = Path(__file__).parent / "fixtures" / "cmaes_constants.npz"


def rotated_ellipsoid(n, seed, condition=1e6):
    rotation, _ = np.linalg.qr(np.random.default_rng(1000 + seed).standard_normal((n, n)))
    scale = condition ** (np.arange(n) / (n - 1))
    return lambda x: ((x @ rotation) ** 2) @ scale


def rosenbrock(x):
    return (100 * (x[:, 1:] - x[:, :-1] ** 2) ** 2 + (1 - x[:, :-1]) ** 2).sum(axis=1)


def evaluations(es, f, target, budget):
    """How many until a cost under target; fails beyond the budget."""
    used = 0
    while used < budget:
        x = es.ask()
        costs = f(x)
        used += len(x)
        if costs.min() < target:
            return used
        es.tell(x, costs)
    pytest.fail(
        f"not at {target} after {used} evaluations; best {costs.min():.2e}, sigma {es.sigma:.2e}"
    )


def run(es, f, generations):
    for _ in range(generations):
        x = es.ask()
        es.tell(x, f(x))
    return es


@pytest.mark.parametrize("seed", range(5))
def test_rotated_ellipsoid_within_budget(seed):
    # A rank-one term that adds the scalar p.p instead of the outer product passes the sphere and fails here.
    es = CMAES(np.ones(10), sigma=0.5, seed=seed)
    assert evaluations(es, rotated_ellipsoid(10, seed), 1e-10, 7500) > 1000


@pytest.mark.parametrize("seed", range(5))
def test_rosenbrock_within_budget(seed):
    assert evaluations(CMAES(np.zeros(5), sigma=0.5, seed=seed), rosenbrock, 1e-10, 4000) > 500


def by_hand(state, k, x, costs):
    """One tell, element by element: m, sigma, p_sigma, p_c, C of equations 41-47 in that order."""
    n, population = len(state["mean"]), len(x)
    order = sorted(range(population), key=lambda i: costs[i])
    y = [[(x[i][d] - state["mean"][d]) / state["sigma"] for d in range(n)] for i in order]
    y_w = [sum(k.weights[i] * y[i][d] for i in range(k.parents)) for d in range(n)]
    mean = [state["mean"][d] + state["sigma"] * y_w[d] for d in range(n)]
    b, d_ = state["axes"], state["widths"]
    # C^-1/2
    root = [[sum(b[r, e] / d_[e] * b[c, e] for e in range(n)) for c in range(n)] for r in range(n)]

    def whiten(v):
        return [sum(root[r][c] * v[c] for c in range(n)) for r in range(n)]

    u = whiten(y_w)
    gain = (k.c_sigma * (2 - k.c_sigma) * k.mu_eff) ** 0.5
    p_sigma = [(1 - k.c_sigma) * state["p_sigma"][d] + gain * u[d] for d in range(n)]
    length = sum(p * p for p in p_sigma) ** 0.5
    change = k.c_sigma / k.d_sigma * (length / k.chi_n - 1)
    sigma = state["sigma"] * 2.718281828459045 ** min(1, change)
    started = (1 - (1 - k.c_sigma) ** (2 * (state["generation"] + 1))) ** 0.5
    bound = (1.4 + 2 / (n + 1)) * k.chi_n * started
    h = 1 if length < bound else 0
    gain = h * (k.c_c * (2 - k.c_c) * k.mu_eff) ** 0.5
    p_c = [(1 - k.c_c) * state["p_c"][d] + gain * y_w[d] for d in range(n)]
    w0 = list(k.weights)
    for i in range(population):
        if w0[i] < 0:
            w0[i] *= n / sum(v * v for v in whiten(y[i]))
    keep = 1 + k.c_1 * (1 - h) * k.c_c * (2 - k.c_c) - k.c_1 - k.c_mu * sum(k.weights)
    cov = np.empty((n, n))
    for r in range(n):
        for c in range(n):
            rank_mu = sum(w0[i] * y[i][r] * y[i][c] for i in range(population))
            cov[r, c] = keep * state["cov"][r, c] + k.c_1 * p_c[r] * p_c[c] + k.c_mu * rank_mu
    return h, {"mean": mean, "sigma": sigma, "p_sigma": p_sigma, "p_c": p_c, "cov": cov}


@pytest.mark.parametrize("h_sigma", [1, 0])
def test_one_tell_equals_the_equations_by_hand(h_sigma):
    es = run(CMAES(np.arange(4.0), sigma=0.3, population=7, seed=1), rotated_ellipsoid(4, 1), 12)
    if not h_sigma:  # a step-size path so long that the covariance path must wait
        es.p_sigma = es.p_sigma + 20.0
    before, x = es.state_dict(), es.ask()
    costs = rotated_ellipsoid(4, 1)(x)
    h, expected = by_hand(before, es.constants, x, costs)
    assert h == h_sigma
    es.tell(x, costs)
    after = es.state_dict()
    for name, value in expected.items():
        np.testing.assert_allclose(after[name], value, rtol=1e-11, atol=1e-13, err_msg=name)
    assert es.generation == 13


@pytest.mark.parametrize("part, enters", [(0.98, True), (1.02, False)])
def test_the_covariance_path_waits_during_long_steps(part, enters):
    # In the first generation ||p_sigma|| / sqrt(1 - (1 - c_sigma)^2) = sqrt(mu_eff) ||y_w||.
    es = CMAES(np.zeros(4), sigma=1.0, population=7)
    k, step = es.constants, np.array([1.0, 0, 0, 0])
    step *= part * (1.4 + 2 / 5) * k.chi_n / np.sqrt(k.mu_eff)
    es.tell(np.tile(step, (7, 1)), np.arange(7.0))
    assert bool(np.any(es.p_c)) == enters


def test_ties_stay_in_the_order_of_asking():
    es = CMAES(np.zeros(3), sigma=1.0, population=64)
    x = es.ask()
    es.tell(x, np.arange(64) % 2)  # the 32 even ones are the better, and equal
    np.testing.assert_allclose(es.mean, es.constants.weights[:32] @ x[::2], rtol=1e-12)


def test_mean_of_the_first_half_moves_towards_the_better():
    es = CMAES(np.zeros(3), sigma=4.0, population=4)
    x = np.array([[3.0, 0, 0], [0, 0, 0], [-9, 0, 0], [1, 0, 0]])
    es.tell(x, np.array([0.0, 5.0, 9.0, 1.0]))
    log = np.log(2.5) - np.log([1, 2])
    np.testing.assert_allclose(es.mean, [(3 * log[0] + 1 * log[1]) / log.sum(), 0, 0])


def constants_of_peers():
    """pycma's weights, c_1, c_mu, c_c and the step-size constants of `cmaes` (pycma's own CSA differs)."""
    cma, peer = pytest.importorskip("cma"), pytest.importorskip("cmaes")
    rows = {"versions": np.array(f"cma {cma.__version__}, cmaes {peer.__version__}")}
    for n, population in ((5, 8), (5, 64), (10, 10), (99, 17), (867, 64), (1088, 64)):
        sp = cma.CMAEvolutionStrategy(np.zeros(n), 0.1, {"popsize": population, "verbose": -9}).sp
        es = peer.CMA(mean=np.zeros(n), sigma=0.1, population_size=population)
        rows[f"weights_{n}_{population}"] = np.array(sp.weights)
        rows[f"rates_{n}_{population}"] = np.array(
            [sp.weights.mueff, sp.c1, sp.cmu, sp.cc, es._c_sigma, es._d_sigma, es._cc, es._chi_n]
        )
    return rows


def test_constants_equal_the_frozen_ones():
    checked = 0
    with np.load(FIXTURE, allow_pickle=False) as frozen:
        for name in (name for name in frozen.files if name.startswith("rates_")):
            n, population = map(int, name.split("_")[1:])
            k = Constants(n, population)
            ours = [k.mu_eff, k.c_1, k.c_mu, k.c_c, k.c_sigma, k.d_sigma, k.c_c, k.chi_n]
            np.testing.assert_allclose(ours, frozen[name], rtol=1e-12, err_msg=name)
            expected = frozen[f"weights_{n}_{population}"]
            np.testing.assert_allclose(k.weights, expected, rtol=1e-12, err_msg=name)
            checked += 1
    assert checked == 6


@pytest.mark.filterwarnings("ignore")
def test_frozen_constants_are_those_of_the_peers():
    fresh = constants_of_peers()
    with np.load(FIXTURE, allow_pickle=False) as frozen:
        for name in frozen.files:
            if name != "versions":
                np.testing.assert_allclose(fresh[name], frozen[name], rtol=1e-12, err_msg=name)


def test_default_population():
    found = [CMAES(np.zeros(n)).population for n in (1, 5, 10, 100)]
    assert found == [4, 8, 10, 17]  # 4 + floor(3 ln n)


def test_restored_mid_run_goes_on_to_the_bit(tmp_path):
    f = rotated_ellipsoid(6, 3)
    es = run(CMAES(np.ones(6), sigma=0.5, seed=3), f, 25)
    np.savez(tmp_path / "es.npz", **es.state_dict())
    other = CMAES(np.zeros(6), sigma=2.0, seed=99)
    with np.load(tmp_path / "es.npz", allow_pickle=False) as saved:
        other.load_state_dict(saved)
    np.testing.assert_array_equal(es.ask(), other.ask())
    run(es, f, 30), run(other, f, 30)
    for name, value in es.state_dict().items():
        np.testing.assert_array_equal(value, other.state_dict()[name], err_msg=name)
    assert es.stop() == other.stop() and other.generation == 55 and isinstance(other.sigma, float)


def test_a_saved_state_is_a_copy():
    f = rotated_ellipsoid(4, 0)
    es = run(CMAES(np.ones(4), seed=5), f, 3)
    saved = es.state_dict()
    kept = {name: value.copy() for name, value in saved.items()}
    restored = CMAES(np.ones(4))
    restored.load_state_dict(saved)
    run(es, f, 3), run(restored, f, 3)
    for name in kept:
        np.testing.assert_array_equal(saved[name], kept[name], err_msg=name)


def test_same_seed_same_run_other_seed_another():
    f = rotated_ellipsoid(5, 0)
    a, b, c = (run(CMAES(np.ones(5), seed=seed), f, 10).mean for seed in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)


def test_decomposition_is_exact_and_lazy(monkeypatch):
    es = CMAES(np.ones(12), sigma=0.5, population=6, seed=2)
    calls, eigh = [], np.linalg.eigh
    monkeypatch.setattr(np.linalg, "eigh", lambda c: calls.append(es.generation) or eigh(c))
    interval = es.constants.interval
    assert interval > 1
    f = rotated_ellipsoid(12, 2)
    for _ in range(10 * interval):
        run(es, f, 1)
        rebuilt = (es.axes * es.widths**2) @ es.axes.T
        if es.generation % interval == 0:
            np.testing.assert_allclose(rebuilt, es.cov, rtol=1e-10, atol=1e-12 * es.widths[-1] ** 2)
            np.testing.assert_allclose(es.axes.T @ es.axes, np.eye(12), atol=1e-12)
        else:
            assert not np.allclose(rebuilt, es.cov, rtol=1e-6)
    assert calls == list(range(interval, 10 * interval + 1, interval))


@pytest.mark.parametrize("n, expected", [(867, 25), (1088, 32)])
def test_interval_at_the_papers_sizes(n, expected):
    k = Constants(n, 64)
    assert k.interval == expected == int(1 / (n * (k.c_1 + k.c_mu)))


def test_samples_have_the_covariance():
    es = CMAES(np.ones(3), sigma=0.5, population=4000, seed=4)
    run(es, rotated_ellipsoid(3, 4, 100.0), 6)
    assert es.widths[-1] / es.widths[0] > 1.3  # not a sphere any more
    x = np.concatenate([es.ask() for _ in range(25)])  # 100,000
    wanted = es.sigma**2 * (es.axes * es.widths**2) @ es.axes.T
    np.testing.assert_allclose(np.cov(x.T), wanted, atol=0.02 * wanted.max())  # 4.5 standard errors
    np.testing.assert_allclose(x.mean(axis=0), es.mean, atol=5 * np.sqrt(wanted.max() / len(x)))


def test_sampling_is_one_matrix_product():
    class Counted(np.ndarray):
        products = 0

        def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
            Counted.products += ufunc is np.matmul
            return getattr(ufunc, method)(*(np.asarray(x) for x in inputs), **kwargs)

    es = CMAES(np.zeros(5), population=9)
    es.axes = es.axes.view(Counted)
    assert es.ask().shape == (9, 5) and Counted.products == 1


def test_negative_eigenvalues_are_lifted():
    es = CMAES(np.zeros(3))
    es.cov = np.diag([1.0, -1e-9, 4.0])
    es._decompose()
    assert es.widths.min() > 0 and np.isfinite(es.ask()).all()
    np.testing.assert_allclose(es.cov, np.diag([1.0, 4 * np.finfo(float).eps, 4.0]), atol=1e-17)
    assert "conditioncov" in es.stop()


@pytest.mark.parametrize(
    "transform", [np.exp, lambda c: -1 / (c + 1), lambda c: c**3 - 1e6, np.log]
)
def test_only_the_order_of_costs_counts(transform):
    f = rotated_ellipsoid(5, 1, 100.0)
    plain = run(CMAES(np.full(5, 0.1), seed=6), f, 20)
    other = run(CMAES(np.full(5, 0.1), seed=6), lambda x: transform(f(x)), 20)
    np.testing.assert_array_equal(plain.mean, other.mean)
    np.testing.assert_array_equal(plain.cov, other.cov)


def test_infinity_is_the_worst():
    f = rotated_ellipsoid(5, 1, 100.0)
    walls = run(CMAES(np.ones(5), seed=7), lambda x: np.where(x[:, 0] > 1.5, np.inf, f(x)), 60)
    assert walls.mean[0] < 1.5 and np.isfinite(walls.mean).all()
    assert f(walls.mean[None])[0] < f(np.ones((1, 5)))[0]


def stopped(es, f, limit=2000):
    for _ in range(limit):
        if es.stop():
            break
        run(es, f, 1)
    return es.stop()


def test_goes_on_at_first():
    assert CMAES(np.zeros(4)).stop() == {}
    assert run(CMAES(np.ones(4)), rotated_ellipsoid(4, 0), 5).stop() == {}


def test_stops_when_fitness_is_flat():
    es = CMAES(np.zeros(3))
    reasons = stopped(es, lambda x: np.full(len(x), 7.0))
    assert es.generation == es.window == 10 + int(np.ceil(90 / 7))
    assert set(reasons) == {"tolfun"} and "the best cost" in reasons["tolfun"]


def test_stops_when_the_best_is_always_the_same_though_the_rest_differ():
    reasons = stopped(
        CMAES(np.zeros(3)), lambda x: np.where(np.arange(len(x)) == 2, 0.0, 1 + x[:, 0] ** 2)
    )
    assert set(reasons) == {"tolfun"}


def test_stops_when_costs_hardly_differ():
    reasons = stopped(CMAES(np.ones(4)), lambda x: 1e-9 * (x**2).sum(axis=1))
    assert set(reasons) == {"tolfun"}


def test_stops_when_steps_are_tiny():
    reasons = stopped(CMAES(np.zeros(4), sigma=1.0), lambda x: (1e12 * np.abs(x)).sum(axis=1))
    assert set(reasons) == {"tolx"}


def test_stops_when_the_covariance_is_degenerate():
    reasons = stopped(
        CMAES(np.ones(3), sigma=1.0), lambda x: x[:, 0] ** 2 + 1e16 * (x[:, 1:] ** 2).sum(axis=1)
    )
    assert set(reasons) == {"conditioncov"}


def test_bad_tells_change_nothing():
    es = run(CMAES(np.zeros(3), population=6), rotated_ellipsoid(3, 0), 2)
    x, costs = es.ask(), np.arange(6.0)
    before = es.state_dict()
    for bad_x, bad_costs, sentence in (
        (x, np.where(np.isin(np.arange(6), [1, 4]), np.nan, costs), r"candidates \[1, 4\] are NaN"),
        (x, costs[:5], "one cost per candidate"),
        (x, costs[:, None], "one cost per candidate"),
        (x[:5], costs, r"candidates \(6, 3\) .* not \(5, 3\)"),
    ):
        with pytest.raises(ValueError, match=sentence):
            es.tell(bad_x, bad_costs)
    for name, value in es.state_dict().items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)


def test_tell_leaves_its_arguments_alone():
    es = CMAES(np.zeros(3), population=6)
    x, costs = es.ask(), np.arange(6.0)[::-1].copy()
    kept = x.copy(), costs.copy()
    es.tell(x, costs)
    np.testing.assert_array_equal(x, kept[0])
    np.testing.assert_array_equal(costs, kept[1])


if __name__ == "__main__":  # freeze the peers' constants again
    FIXTURE.parent.mkdir(exist_ok=True)
    np.savez(FIXTURE, **constants_of_peers())


@pytest.mark.parametrize("cost", [-np.inf, np.inf, 1.0])
def test_equal_costs_stop_even_where_they_are_infinite(cost):
    es = CMAES(np.zeros(3), population=10, seed=0)
    for _ in range(es.window):
        assert not es.stop()
        es.tell(es.ask(), np.full(10, cost))
    assert "tolfun" in es.stop()
