"""A gradient-check case for every operation and every loss of the package, and for the whole losses of V and M.

`python run.py gradcheck` prints them as a table; the tests assert them, and that no `*_forward` is without one.
Sizes are small and differ from each other, so that no two axes can be mixed up; float64 throughout.
"""

import time
from collections.abc import Callable

import numpy as np

from ..core import conv, lstm, mixture, ops
from ..core.gradcheck import RelativeError, Rng, check_pair, check_vector
from ..models.mdnrnn import MDNRNN
from ..models.vae import VAE
from ..settings.config import MDNRNNConfig, VAEConfig

Case = Callable[[Rng], RelativeError]


def _pair(module, op: str, *shapes, constants: Callable = lambda rng: ()) -> tuple[str, Case]:
    """A case in element mode: random inputs of these shapes through op_forward and op_backward."""

    def case(rng: Rng) -> RelativeError:
        forward, backward = (getattr(module, f"{op}_{way}") for way in ("forward", "backward"))
        inputs = [rng.standard_normal(shape) for shape in shapes]
        return check_pair(forward, backward, *inputs, rng=rng, constants=constants(rng))

    return op, case


def _whole_v(rng: Rng) -> RelativeError:
    v = VAE(VAEConfig(z_size=5), rng, np.float64)
    frames, noise = rng.random((3, 64, 64, 3)), rng.standard_normal((3, 5))
    return _whole(v, lambda: v.loss_and_grad(frames, noise), rng, directions=4)


def _whole_m(rng: Rng) -> RelativeError:
    heads = {"done_weight": 10.0, "reward_weight": 1.0, "value_weight": 1.0}
    config = MDNRNNConfig(hidden=7, mixtures=4, restart_input=True, **heads)
    m = MDNRNN(config, 5, 2, rng, np.float64)
    sizes = {"z": (5,), "z_next": (5,), "action": (2,), "reward": (), "value": ()}
    batch = {name: rng.standard_normal((3, 6, *size)) for name, size in sizes.items()}
    for name in ("done", "restart", "z_mask", "value_mask"):
        batch[name] = (rng.random((3, 6)) < 0.4).astype(float)
    return _whole(m, lambda: m.loss_and_grad(batch), rng, directions=30)


def _whole(model, loss_and_grad: Callable, rng: Rng, directions: int) -> RelativeError:
    """A case in projection mode: the whole loss, along random directions of the whole parameter vector."""
    for name, b in model.params.items():
        if name.endswith("b"):
            b[...] = rng.uniform(-0.5, 0.5, b.shape)  # at zero, ReLUs sit exactly on their kink
    at = model.params.flat.copy()

    def loss(vector: np.ndarray) -> float:
        model.params.flat[:] = vector
        return loss_and_grad()[0]["loss"]

    return check_vector(loss, at, loss_and_grad()[1].copy(), rng, directions)


CASES: dict[str, Case] = dict([
    _pair(ops, "linear", (2, 3, 5), (2, 5, 7), (2, 7)),
    _pair(ops, "relu", (3, 5)),
    _pair(ops, "sigmoid", (3, 5)),
    _pair(ops, "reparameterize", (3, 5), (3, 5),
          constants=lambda rng: (rng.standard_normal((3, 5)),)),
    _pair(ops, "gaussian_kl", (3, 5), (3, 5), constants=lambda rng: (2.0,)),
    _pair(ops, "squared_error", (3, 5),
          constants=lambda rng: (rng.standard_normal((3, 5)), rng.random((3, 1)))),
    _pair(ops, "bce_with_logits", (3, 5),
          constants=lambda rng: (rng.random((3, 5)) < 0.5, rng.random((3, 1)))),
    _pair(conv, "conv", (2, 7, 8, 3), (4, 4, 3, 5), (5,)),
    _pair(conv, "conv_transpose", (2, 3, 4, 7), (5, 5, 3, 7), (3,)),
    _pair(lstm, "lstm", (3, 2, 5), (2, 7), (2, 7), (12, 28), (28,),
          constants=lambda rng: (rng.random((3, 2)) < 0.4,)),
    _pair(mixture, "mixture_nll", (4, 5, 3), (4, 5, 3), (4, 5, 3),
          constants=lambda rng: (rng.standard_normal((5, 3)), rng.random(3))),
    ("whole loss of V", _whole_v),
    ("whole loss of M", _whole_m),
])  # fmt: skip


def main() -> int:
    """Print the table -> 0 if all gradients are right, else 1."""
    wrong = []
    for name, case in CASES.items():
        start = time.perf_counter()
        error = case(np.random.default_rng(0))
        print(f"{name:15} {time.perf_counter() - start:4.1f} s  {error}", flush=True)
        if not error.ok:
            wrong.append(name)
    summary = f"{len(CASES) - len(wrong)} of {len(CASES)} gradients are right"
    print(f"{summary}; wrong: {', '.join(wrong)}" if wrong else summary)
    return bool(wrong)
