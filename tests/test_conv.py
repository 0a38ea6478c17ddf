"""Convolutions: the plain form against the fast one, gradients, adjointness, views, and PyTorch's word for it."""

import re
from pathlib import Path

import numpy as np
import pytest

from tests.fixtures import make_vae
from wm_numpy import plain
from wm_numpy.core import conv
from wm_numpy.core.conv import (
    conv_backward,
    conv_forward,
    conv_transpose_backward,
    conv_transpose_forward,
)
from wm_numpy.core.gradcheck import TOLERANCE, check_pair

FIXTURE = Path(__file__).parent / "fixtures" / "vae.npz"
KERNELS = [2, 3, 4, 5, 6]


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def inputs(rng, K, sides=(7, 8), transposed=False):
    """x, w, b with 3 channels on the larger side and 5 on the smaller."""
    channels = 5 if transposed else 3
    x, w = rng.standard_normal((4, *sides, channels)), rng.standard_normal((K, K, 3, 5))
    return x, w, rng.standard_normal(3 if transposed else 5)


@pytest.mark.parametrize("sides", [(6, 6), (7, 8), (9, 6)])  # a row or column left over, or none
@pytest.mark.parametrize("block", [1, 500, conv.BLOCK])  # an image at a time, some, all at once
@pytest.mark.parametrize("K", KERNELS)
def test_forward_and_backward_are_those_of_plain(rng, monkeypatch, K, block, sides):
    monkeypatch.setattr(conv, "BLOCK", block)
    for op in ("conv", "conv_transpose"):
        args = inputs(rng, K, sides, transposed=op == "conv_transpose")
        results = []
        for module in (conv, plain):
            y, cache = getattr(module, f"{op}_forward")(*args)
            dy = np.random.default_rng(8).standard_normal(y.shape)
            results.append((y, *getattr(module, f"{op}_backward")(dy, cache)))
        for fast, definition in zip(*results, strict=True):
            np.testing.assert_allclose(fast, definition, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("K", KERNELS)
def test_gradient(rng, K):
    args = inputs(rng, K)
    assert check_pair(conv_forward, conv_backward, *args, rng=rng) < TOLERANCE
    args = inputs(rng, K, (3, 1), transposed=True)
    pair = conv_transpose_forward, conv_transpose_backward
    assert check_pair(*pair, *args, rng=rng) < TOLERANCE


def test_input_gradient_may_be_left_out(rng):
    y, cache = conv_forward(*inputs(rng, 4))
    _, dw, db = conv_backward(y, cache)
    none, dw2, db2 = conv_backward(y, cache, need_dx=False)
    assert none is None
    assert (dw == dw2).all()
    assert (db == db2).all()


@pytest.mark.parametrize("K", KERNELS)
def test_transposed_convolution_is_the_transpose_of_convolution(rng, K):
    w = rng.standard_normal((K, K, 3, 5))
    x = rng.standard_normal((4, 6 + K, 8 + K, 3))
    y = rng.standard_normal((4, 4, 5, 5))
    left = np.vdot(conv_forward(x, w, np.zeros(5))[0], y)
    right = np.vdot(x, conv_transpose_forward(y, w, np.zeros(3))[0])
    assert left == pytest.approx(right, rel=1e-12)


VIEWS = {
    "channels first, transposed": lambda x: x.transpose(0, 3, 1, 2).copy().transpose(0, 2, 3, 1),
    "Fortran order": np.asfortranarray,
    "a slice of channels": lambda x: np.concatenate([x, x], axis=3)[..., : x.shape[3]],
    "every other pixel": lambda x: np.repeat(np.repeat(x, 2, axis=1), 2, axis=2)[:, ::2, ::2],
    "flipped": lambda x: np.ascontiguousarray(x[:, ::-1, ::-1, ::-1])[:, ::-1, ::-1, ::-1],
    "broadcast": lambda x: np.broadcast_to(x[:1], x.shape),
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("which", range(4))  # x, w, b, dy
def test_views_are_as_good_as_copies(rng, view, transposed, which):
    forward, backward = conv_forward, conv_backward
    if transposed:
        forward, backward = conv_transpose_forward, conv_transpose_backward
    arrays = list(inputs(rng, 5, transposed=transposed))
    arrays.append(rng.standard_normal(forward(*arrays)[0].shape))
    if arrays[which].ndim == 4:
        arrays[which] = VIEWS[view](arrays[which])
    else:
        arrays[which] = np.repeat(arrays[which], 2)[::2]
    assert not (arrays[which].flags.c_contiguous and arrays[which].flags.owndata)
    copies = [np.array(a, order="C") for a in arrays]

    def everything(x, w, b, dy):
        y, cache = forward(x, w, b)
        return y, *backward(dy, cache)

    for got, want in zip(everything(*arrays), everything(*copies), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "name, change", [("x", (4, 7, 8, 4)), ("w", (4, 5, 3, 5)), ("b", (10,)), ("x", (4, 7, 3, 3))]
)
def test_shapes_that_do_not_fit_are_refused(rng, name, change):
    args = dict(zip("xwb", inputs(rng, 4), strict=True)) | {name: np.zeros(change)}
    shapes = "".join(".*" + re.escape(f"{key} {a.shape}") for key, a in args.items())
    with pytest.raises(ValueError, match=shapes):
        conv_forward(**args)


def test_a_bias_of_another_layer_is_refused(rng):
    x, w, _ = inputs(rng, 4, transposed=True)
    with pytest.raises(ValueError, match=r"b \(6,\)"):
        conv_transpose_forward(x, w, np.zeros(6))
    x, w, b = inputs(rng, 4)
    with pytest.raises(ValueError, match="uint8"):
        conv_forward(x.astype(np.uint8), w, b)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", make_vae.CONVS)
def test_against_pytorch(name, dtype):
    """Values and all gradients, from the frozen fixture."""
    _, shape, channels = make_vae.CONVS[name]
    x = make_vae.numbers(shape, 3).astype(dtype)
    b = make_vae.numbers((channels,), 5).astype(dtype)
    with np.load(FIXTURE, allow_pickle=False) as f:
        want = {key: f[f"{name}.{key}"] for key in ("y", "dx", "dw", "db")}
    dy = make_vae.numbers(want["y"].shape, 6).astype(dtype)
    w = make_vae.numbers(want["dw"].shape, 4).astype(dtype)
    transposed = name.startswith("deconv")
    y, cache = (conv_transpose_forward if transposed else conv_forward)(x, w, b)
    dx, dw, db = (conv_transpose_backward if transposed else conv_backward)(dy, cache)
    got = {"y": y, "dx": dx, "dw": dw, "db": db}
    for key, value in want.items():
        assert got[key].dtype == dtype
        tolerance = 1e-12 if dtype == np.float64 else 5e-5
        np.testing.assert_allclose(got[key], value, rtol=0, atol=tolerance, err_msg=key)


def test_buffer_size_of_numpy_is_put_back(rng):
    before = 8192
    np.setbufsize(before)
    conv_transpose_forward(*inputs(rng, 4, transposed=True))
    assert np.getbufsize() == before
