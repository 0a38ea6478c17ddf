"""Convolutions: gradients, adjointness, and PyTorch's word for it."""

from pathlib import Path

import numpy as np
import pytest

from tests.fixtures import make_vae
from wm_numpy import conv
from wm_numpy.gradcheck import TOLERANCE, check_pair

FIXTURE = Path(__file__).parent / "fixtures" / "vae.npz"


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.mark.parametrize("block", [1, 500, conv.BLOCK])  # an image at a time, some, all at once
@pytest.mark.parametrize("k", [2, 3])
def test_gradients(rng, monkeypatch, k, block):
    monkeypatch.setattr(conv, "BLOCK", block)
    w = rng.standard_normal((k, k, 8, 3))  # k, k, 4C, O
    x, b = rng.standard_normal((5, 4, 6, 8)), rng.standard_normal(3)
    assert check_pair(conv.conv_forward, conv.conv_backward, x, w, b, rng=rng) < TOLERANCE
    x, b = rng.standard_normal((5, 4, 1, 3)), rng.standard_normal(2)
    assert check_pair(conv.conv_transpose_forward, conv.conv_transpose_backward, x, w, b, rng=rng) < TOLERANCE


def test_input_gradient_may_be_left_out(rng):
    x, w, b = rng.standard_normal((2, 4, 5, 8)), rng.standard_normal((2, 2, 8, 3)), rng.standard_normal(3)
    y, cache = conv.conv_forward(x, w, b)
    _, dw, db = conv.conv_backward(y, cache)
    none, dw2, db2 = conv.conv_backward(y, cache, need_dx=False)
    assert none is None
    assert (dw == dw2).all()
    assert (db == db2).all()


@pytest.mark.parametrize("k", [2, 3])
def test_deconvolution_is_the_transpose_of_convolution(rng, k):
    w = rng.standard_normal((k, k, 8, 3))
    x, y = rng.standard_normal((5, 6, 7, 8)), rng.standard_normal((5, 7 - k, 8 - k, 3))
    left = np.vdot(conv.conv_forward(x, w, np.zeros(3))[0], y)
    right = np.vdot(x, conv.conv_transpose_forward(y, w, np.zeros(2))[0])
    assert left == pytest.approx(right, rel=1e-12)


@pytest.mark.parametrize("sides", [(6, 8, 3, 4), (7, 9, 3, 4), (7, 9, 4, 5)])  # even, cut, padded
def test_layouts_are_each_others_transpose(rng, sides):
    ih, iw, h, w = sides
    image, x = rng.standard_normal((2, ih, iw, 3)), rng.standard_normal((2, h, w, 12))
    folded = conv.space_to_depth(image, h, w)
    assert folded.shape == x.shape
    assert np.vdot(folded, x) == pytest.approx(np.vdot(image, conv.depth_to_space(x, ih, iw)), rel=1e-12)
    back = conv.depth_to_space(folded, ih, iw)
    h, w = min(ih, 2 * h), min(iw, 2 * w)
    assert (back[:, :h, :w] == image[:, :h, :w]).all()
    assert not back[:, h:].any()
    assert folded[1, 1, 2, 7] == image[1, 3, 4, 1]  # channel (r, s, c) = (1, 0, 1)


def test_kernel_padding_is_not_a_parameter(rng):
    kernel = rng.standard_normal((5, 5, 2, 3))
    w = conv.fold_kernel(kernel)  # (3, 3, 8, 3)
    assert (conv.unfold_kernel(w, 5) == kernel).all()
    assert np.count_nonzero(w) == kernel.size
    assert w[1, 2, 4 + 0 + 1, 2] == kernel[3, 4, 1, 2]  # i, j = 1, 2; r, s, c = 1, 0, 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", make_vae.CONVS)
def test_against_pytorch(name, dtype):
    """Stride 2 over plain images, values and all gradients, from the frozen fixture."""
    size, shape, channels = make_vae.CONVS[name]
    x = make_vae.numbers(shape, 3).astype(dtype)
    b = make_vae.numbers((channels,), 5).astype(dtype)
    with np.load(FIXTURE, allow_pickle=False) as f:
        want = {key: f[f"{name}.{key}"] for key in ("y", "dx", "dw", "db")}
    dy = make_vae.numbers(want["y"].shape, 6).astype(dtype)
    w = conv.fold_kernel(make_vae.numbers(want["dw"].shape, 4).astype(dtype))
    if name == "conv4":
        y, cache = conv.conv_forward(conv.space_to_depth(x), w, b)
        dx, dw, db = conv.conv_backward(dy, cache)
        dx = conv.depth_to_space(dx, *shape[1:3])
    else:
        sides = want["y"].shape[1:3]
        y, cache = conv.conv_transpose_forward(x, w, b)
        y = conv.depth_to_space(y, *sides)
        dx, dw, db = conv.conv_transpose_backward(conv.space_to_depth(dy, *(-(-s // 2) for s in sides)), cache)
    got = {"y": y, "dx": dx, "dw": conv.unfold_kernel(dw, size), "db": db}
    for key, value in want.items():
        assert got[key].dtype == dtype
        np.testing.assert_allclose(got[key], value, rtol=0, atol=1e-12 if dtype == np.float64 else 5e-5, err_msg=key)


def test_buffer_size_of_numpy_is_put_back(rng):
    before = 8192
    np.setbufsize(before)
    conv.conv_transpose_forward(rng.standard_normal((2, 3, 3, 4)), rng.standard_normal((2, 2, 8, 4)), np.zeros(2))
    assert np.getbufsize() == before
