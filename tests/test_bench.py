"""The benchmark: the shape of its records, and that it compares like with like."""

import json
import sys

import numpy as np
import pytest

from tests import bench
from wm_numpy.models import agent
from wm_numpy.models.vae import VAE
from wm_numpy.settings import config

KEYS = ["name", "ours", "peer", "peer_name", "unit", "ratio", "gemm_fraction"]


def test_rows_without_their_peers(monkeypatch, tmp_path, capsys):
    """Two cheap rows, once each, on a machine that has neither PyTorch nor pycma."""
    for module in ("torch", "cma"):
        monkeypatch.setitem(sys.modules, module, None)
    measure = bench.measure
    monkeypatch.setattr(bench, "measure", lambda names: measure(names, repetitions=1))
    bench.main(tmp_path / "bench.json", only=["cma_867", "dream_64"])
    cma, dream = json.loads((tmp_path / "bench.json").read_text())
    assert list(cma) == list(dream) == KEYS
    assert cma["name"] == "cma_867" and dream["name"] == "dream_64"
    for row in (cma, dream):
        assert row["ours"] > 0 and row["peer"] is row["peer_name"] is row["ratio"] is None
    assert cma["gemm_fraction"] is None
    assert 0 < dream["gemm_fraction"] < 2  # 2: others may have been busy
    printed = capsys.readouterr().out
    assert "dream_64" in printed and "not installed" in printed


def test_sides_take_turns_and_medians_are_compared(monkeypatch):
    turns = []

    class Steady:
        """Ours does 7 units per second and the peer 2; the first repetition, and one later, are disturbed."""

        def __init__(self, side):
            self.side = side

        def rate(self, name, k):
            turns.append((self.side, k))
            return 1e9 if k in (0, 2) else {"ours": 7.0, "peer": 2.0}[self.side]

        def close(self):
            turns.append(("closed", self.side))

    monkeypatch.setattr(bench, "Side", Steady)
    monkeypatch.setitem(bench.MODULES, "pycma", "numpy")  # as if it were installed
    (row,) = bench.measure(["cma_867"], repetitions=3)
    values = ("cma_867", 7.0, 2.0, "pycma", "generations/s", 3.5, None)
    assert row == dict(zip(KEYS, values, strict=True))
    expected = [(side, k) for k in range(4) for side in ("ours", "peer")]
    assert turns == [*expected, ("closed", "ours"), ("closed", "peer")]


def test_the_sides_do_the_same_episode():
    steps = {bare: bench.one_env("carracing", bare, 1, 40)(3) for bare in (False, True)}
    assert steps == {False: 40, True: 40}
    steps = [bench.one_env("doom", bare, 1, 2100)(3) for bare in (False, True)]
    assert steps[0] == steps[1] > 40


def test_an_error_in_the_process_comes_back():
    side = bench.Side("ours")
    try:
        with pytest.raises(RuntimeError, match="nothing: KeyError"):
            side.rate("nothing", 0)
        assert side.rate("sgemm", 0) > 0
    finally:
        side.close()


def test_an_unknown_row_is_a_usage_error():
    with pytest.raises(config.SettingError, match="unknown row 'v_dream'"):
        bench.main(only=["v_dream"])


# --------------------------------------------------------------------------------------------- like with like


def norm(*arrays) -> float:
    """Of all of them together; in double precision, for a sum of millions of squares."""
    return float(np.sqrt(sum(np.square(np.asarray(a, np.float64)).sum() for a in arrays)))


@pytest.mark.parametrize("z_size", [32, 64])
def test_v_equals_the_peers(z_size):
    torch = pytest.importorskip("torch")
    from tests import peer

    rng = np.random.default_rng(0)
    ours = VAE(config.VAEConfig(z_size=z_size), rng)
    ours.params.flat[:] += 0.01 * rng.standard_normal(ours.params.size)  # biases, too
    theirs = peer.load_v(peer.V(z_size), ours.params)
    assert sum(p.numel() for p in theirs.parameters()) == ours.params.size
    frames, noise = bench.v_data(5), rng.standard_normal((5, z_size), np.float32)
    loss, gradient = ours.loss_and_grad(frames, noise)
    their_loss = theirs.loss(torch.from_numpy(frames), torch.from_numpy(noise))
    assert loss["loss"] == pytest.approx(their_loss.item(), rel=1e-5)
    their_loss.backward()
    assert norm(gradient) == pytest.approx(norm(*(p.grad for p in theirs.parameters())), rel=1e-5)


@pytest.mark.parametrize("c", [bench.CAR, bench.DOOM])
def test_m_equals_the_peers(monkeypatch, c):
    pytest.importorskip("torch")
    from tests import peer

    monkeypatch.setattr(bench, "BATCH", 4)
    rng = np.random.default_rng(0)
    ours = agent.new_mdnrnn(c, rng)
    ours.params.flat[:] += 0.01 * rng.standard_normal(ours.params.size)
    theirs = peer.load_m(peer.M(c), ours.params)
    assert sum(p.numel() for p in theirs.trained()) == ours.params.size
    batch = bench.m_data(c, 30)
    if c.mdnrnn.done_weight:
        batch["done"][0, 5] = 1
    loss, gradient = ours.loss_and_grad(batch)
    their_loss = theirs.loss(*peer.m_batch(batch))
    assert loss["loss"] == pytest.approx(their_loss.item(), rel=1e-5)
    their_loss.backward()
    assert norm(gradient) == pytest.approx(norm(*(p.grad for p in theirs.trained())), rel=1e-5)


def test_the_peers_sampler_draws_from_the_same_mixture():
    """Means and variances of many draws at one state against the mixture's own, at temperature tau."""
    torch = pytest.importorskip("torch")
    from tests import peer

    rng, tau = np.random.default_rng(0), 1.15
    ours = agent.new_mdnrnn(bench.CAR, rng)
    ours.params.flat[:] += 0.2 * rng.standard_normal(ours.params.size)
    h = np.tile(rng.uniform(-0.5, 0.5, (1, 256)).astype(np.float32), (20_000, 1))
    y = ours.predict(h[:1].astype(np.float32))
    weight = np.exp(y.logmix / tau) / np.exp(y.logmix / tau).sum(0)  # (K, Z, 1)
    mean = (weight * y.mean).sum(0)[:, 0]
    variance = (weight * (y.mean**2 + tau * np.exp(2 * y.logstd))).sum(0)[:, 0] - mean**2
    torch.manual_seed(0)
    with torch.inference_mode():
        z = peer.load_m(peer.M(bench.CAR), ours.params).sample(torch.from_numpy(h), tau).numpy()
    assert np.abs(z.mean(0) - mean).max() < 6 * np.sqrt(variance.max() / len(z))
    np.testing.assert_allclose(z.var(0), variance, rtol=0.15)
