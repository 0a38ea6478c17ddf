"""V: the variational autoencoder that turns a 64x64x3 frame into Z numbers (the paper, 2.1 and A.1).

    encoder  convolutions 4x4, stride 2, ReLU: sides 64 -> 31 -> 14 -> 6 -> 2, channels 32-64-128-256;
             then two linear layers, mu and logvar
    decoder  a linear layer to 1024, no ReLU, then transposed convolutions 5x5, 5x5, 6x6, 6x6, stride 2, ReLU
             and at last a sigmoid: sides 1 -> 5 -> 13 -> 30 -> 64, channels 128-64-32-3

The loss is the squared error summed over the pixels, plus the KL divergence, both averaged over the batch. With a
KL weight of 1 the error is -log p of a Gaussian with variance 1/2 in every pixel: V ignores objects a few pixels wide.
`kl_weight` is twice the variance that is meant (beta-VAE, Higgins et al. 2017).

Letters: N frames, of a batch or a piece of it; Z latent dims; kernels (K, K, I, O), I on the larger image's side.
"""

import math

import numpy as np

from ..core import ops as core
from ..core.arrays import Params
from ..core.conv import conv_backward, conv_forward, conv_transpose_backward, conv_transpose_forward
from ..core.ops import linear_backward, linear_forward, relu_backward, relu_forward
from ..settings.config import VAEConfig
from ..system import threads

PIECE = 50  # frames for one thread at a time; fixed, so that no result depends on the threads
OUTPUTS = 400  # outputs of deconv1, likewise
CONVS = ("conv1", "conv2", "conv3", "conv4")  # each before a ReLU
DECONVS = ("deconv2", "deconv3", "deconv4")  # each after a ReLU


class VAE:
    """V, its loss and its gradient, with the latents and the KL floor of `config`.

    rng draws the initial weights; None leaves zeros, to be filled from a file. dtype: float64 to check gradients.
    """

    def __init__(self, config: VAEConfig, rng: np.random.Generator | None = None, dtype=np.float32):
        self.config = config
        Z = config.z_size
        weights = {
            "conv1": (4, 4, 3, 32), "conv2": (4, 4, 32, 64),
            "conv3": (4, 4, 64, 128), "conv4": (4, 4, 128, 256),
            "mu": (1024, Z), "logvar": (1024, Z), "dense": (Z, 1024),
            "deconv1": (5, 5, 128, 1024), "deconv2": (5, 5, 64, 128),
            "deconv3": (6, 6, 32, 64), "deconv4": (6, 6, 3, 32),
        }  # fmt: skip
        shapes = {}
        for name, shape in weights.items():
            *_, I, O = shape
            shapes[name + ".w"] = shape
            shapes[name + ".b"] = (I,) if name.startswith("deconv") else (O,)
        self.params = Params(shapes, dtype=dtype)
        self.mean_frame = None  # (64, 64, 3), floats in [0, 1]: see centre
        if rng is not None:
            for name, shape in weights.items():
                self.params[name + ".w"][...] = self._initial(name, shape, rng)
            if config.start == "clear":
                self.params["logvar.b"][...] = -1  # a noise of 0.6, the prior's being 1

    def _initial(self, name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
        """Initial weights: Glorot's, TensorFlow's default and so the authors', or LeCun's, half of He's variance."""
        *kernel, I, O = shape
        taps = math.prod(kernel)
        if self.config.start == "glorot" or name in ("mu", "logvar"):
            limit = math.sqrt(6 / (taps * (I + O)))
            return rng.uniform(-limit, limit, shape)
        fan_in = taps * I
        if name == "deconv1":
            fan_in = O  # the input of a transposed layer; an output pixel meets one tap here
        elif name.startswith("deconv"):
            fan_in = taps * O / 4  # a quarter of the taps, which overlap at stride 2
        return rng.standard_normal(shape) / math.sqrt(fan_in)

    def centre(self, frames: np.ndarray) -> None:
        """Keep the mean of frames (N, 64, 64, 3) uint8: the foreground is what differs from it.

        Unless the start is "glorot", conv1 is set to give zero for the mean colour: V learns faster from there.
        """
        self.mean_frame = frames.mean(axis=0, dtype=np.float32) / np.float32(255)
        if self.config.start != "glorot":
            colour = self.mean_frame.mean(axis=(0, 1))
            w = self.params["conv1.w"]  # (4, 4, 3, 32)
            self.params["conv1.b"][...] = -(w * colour[:, None]).sum(axis=(0, 1, 2))

    # ---------------------------------------------------------------------------------------------- inference

    def encode(self, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Frames (N, 64, 64, 3), uint8 or floats in [0, 1] -> mu, logvar (N, Z). ValueError: other frames."""
        _check(frames)
        pieces = threads.cut(len(frames), PIECE)
        codes = threads.run(lambda s: self._encode(self._load(frames[s]))[0], pieces)
        mu, logvar = zip(*codes, strict=True)
        return np.concatenate(mu), np.concatenate(logvar)

    def decode(self, z: np.ndarray) -> np.ndarray:
        """z (N, Z) -> frames (N, 64, 64, 3), floats in [0, 1]."""
        z = z.astype(self.params.flat.dtype, copy=False)
        pieces = threads.cut(len(z), PIECE)
        return np.concatenate(threads.run(lambda s: self._decode(z[s])[0], pieces))

    def _load(self, frames: np.ndarray) -> np.ndarray:
        """Frames as encode takes them -> floats in [0, 1]."""
        dtype = self.params.flat.dtype
        if frames.dtype == np.uint8:
            return np.divide(frames, 255, dtype=dtype)
        return frames.astype(dtype, copy=False)

    # ----------------------------------------------------------------------------------------------- training

    def loss_and_grad(
        self, frames: np.ndarray, noise: np.ndarray
    ) -> tuple[dict[str, float], np.ndarray]:
        """The losses of frames (N, 64, 64, 3), uint8 or floats in [0, 1], and the gradient, like params.flat.

        noise (N, Z), standard normal: z = mu + exp(logvar / 2) noise. loss = reconstruction + kl_weight * kl, each
        summed over pixels or dims and averaged over frames. With a foreground, loss has the error weighted by it, and
        `reconstruction` is still the plain one.
        """
        _check(frames)
        n = len(frames)
        p = self.params
        if noise.shape != (n, self.config.z_size):
            raise ValueError(f"noise {noise.shape} is not of shape {(n, self.config.z_size)}")
        noise = noise.astype(p.flat.dtype, copy=False)
        cut = threads.cut(n, PIECE)
        pieces = threads.run(lambda s: self._piece(frames[s], noise[s], n), cut)
        losses, parts, rows = zip(*pieces, strict=True)
        error, reconstruction, kl = (float(sum(shares)) for shares in zip(*losses, strict=True))
        loss = error + self.config.kl_weight * kl
        grads = Params(p.shapes, np.empty_like(p.flat))
        for name in parts[0]:
            grads[name][...] = sum(part[name] for part in parts)  # in the order of the pieces
        h, da = (np.concatenate(parts) for parts in zip(*rows, strict=True))
        self._deconv1_gradient(h, da, grads)
        return dict(loss=loss, reconstruction=reconstruction, kl=kl), grads.flat

    def _piece(self, frames: np.ndarray, noise: np.ndarray, n: int) -> tuple:
        """A piece of a batch of n frames -> its shares of weighted error, error, KL; its gradients; deconv1's h, da."""
        x = self._load(frames)  # (N, 64, 64, 3)
        weight = 1 / n  # for means over the batch
        if self.config.foreground:
            distance = np.mean((x - self.mean_frame) ** 2, axis=3, keepdims=True)
            weight = (1 + self.config.foreground * distance) / n
        floor = self.config.kl_tolerance * self.config.z_size
        g = {}

        (mu, logvar), encode_cache = self._encode(x)  # (N, Z)
        z, sample_cache = core.reparameterize_forward(mu, logvar, noise)
        y, decode_cache = self._decode(z)  # (N, 64, 64, 3)
        error, error_cache = core.squared_error_forward(y, x, weight)
        kl, kl_cache = core.gaussian_kl_forward(mu, logvar, floor)

        dkl = self.config.kl_weight * len(x) / n  # kl is a mean over the piece
        dmu_kl, dlogvar_kl = core.gaussian_kl_backward(dkl, kl_cache)
        (dy,) = core.squared_error_backward(1, error_cache)
        dz, rows = self._decode_backward(dy, decode_cache, g)
        dmu, dlogvar = core.reparameterize_backward(dz, sample_cache)
        self._encode_backward(dmu + dmu_kl, dlogvar + dlogvar_kl, encode_cache, g)

        plain = error if np.ndim(weight) == 0 else core.squared_error_forward(y, x, 1 / n)[0]
        return (error, plain, kl * len(x) / n), g, rows

    def _deconv1_gradient(self, h: np.ndarray, da: np.ndarray, grads: Params) -> None:
        """Put deconv1's gradient into grads, from its input h (N, 1024) and its output's gradient da (N, 3200).

        The layer holds three quarters of all weights. So its gradient is computed once for the batch, cut along the
        outputs, and not once per piece: that saves a tenth of an update.
        """
        w, b = _on_one_pixel(self.params)
        dw, _ = _on_one_pixel(grads)
        db = np.empty_like(b)

        def outputs(s: slice) -> None:
            _, dw[:, s], db[s] = linear_backward(da[:, s], (h, w[:, s]), need_dx=False)

        threads.run(outputs, threads.cut(len(db), OUTPUTS))
        grads["deconv1.b"][...] = db.reshape(25, 128).sum(axis=0)

    # --------------------------------------------------------------------------------------- the two networks

    def _encode(self, x: np.ndarray) -> tuple[tuple[np.ndarray, np.ndarray], tuple]:
        """Frames (N, 64, 64, 3) -> (mu, logvar), each (N, Z)."""
        p = self.params
        layers = []
        for name in CONVS:  # -> (N, 31, 31, 32), (N, 14, 14, 64), (N, 6, 6, 128), (N, 2, 2, 256)
            x, conv = conv_forward(x, p[name + ".w"], p[name + ".b"])
            x, relu = relu_forward(x)
            layers.append((conv, relu))
        x = x.reshape(-1, 1024)
        mu, mu_cache = linear_forward(x, p["mu.w"], p["mu.b"])
        logvar, logvar_cache = linear_forward(x, p["logvar.w"], p["logvar.b"])
        return (mu, logvar), (layers, mu_cache, logvar_cache)

    def _encode_backward(self, dmu: np.ndarray, dlogvar: np.ndarray, cache: tuple, g: dict) -> None:
        """Put the encoder's gradients into g, from dmu and dlogvar (N, Z)."""
        layers, mu_cache, logvar_cache = cache
        dx_logvar, g["logvar.w"], g["logvar.b"] = linear_backward(dlogvar, logvar_cache)
        dx_mu, g["mu.w"], g["mu.b"] = linear_backward(dmu, mu_cache)
        dx = (dx_mu + dx_logvar).reshape(-1, 2, 2, 256)
        for name, (conv, relu) in zip(CONVS[::-1], layers[::-1], strict=True):
            (dx,) = relu_backward(dx, relu)
            need_dx = name != "conv1"
            dx, g[name + ".w"], g[name + ".b"] = conv_backward(dx, conv, need_dx)

    def _decode(self, z: np.ndarray) -> tuple[np.ndarray, tuple]:
        """z (N, Z) -> y (N, 64, 64, 3), in (0, 1)."""
        p = self.params
        x, dense = linear_forward(z, p["dense.w"], p["dense.b"])  # (N, 1024)
        x, deconv1 = linear_forward(x, *_on_one_pixel(p))  # (N, 5 * 5 * 128)
        x = x.reshape(-1, 5, 5, 128)
        layers = []
        for name in DECONVS:  # -> (N, 13, 13, 64), (N, 30, 30, 32), (N, 64, 64, 3)
            x, relu = relu_forward(x)
            x, deconv = conv_transpose_forward(x, p[name + ".w"], p[name + ".b"])
            layers.append((relu, deconv))
        y, sigmoid = core.sigmoid_forward(x)
        return y, (dense, deconv1, layers, sigmoid)

    def _decode_backward(self, dy: np.ndarray, cache: tuple, g: dict) -> tuple[np.ndarray, tuple]:
        """dy (N, 64, 64, 3) -> dz (N, Z), and deconv1's (h, da); puts the decoder's other gradients into g."""
        dense, deconv1, layers, sigmoid = cache
        (dx,) = core.sigmoid_backward(dy, sigmoid)
        for name, (relu, deconv) in zip(DECONVS[::-1], layers[::-1], strict=True):
            dx, g[name + ".w"], g[name + ".b"] = conv_transpose_backward(dx, deconv)
            (dx,) = relu_backward(dx, relu)
        da = dx.reshape(-1, 5 * 5 * 128)
        dh, _, _ = linear_backward(da, deconv1, need_dw=False)
        dz, g["dense.w"], g["dense.b"] = linear_backward(dh, dense)
        h, _ = deconv1
        return dz, (h, da)


def _check(frames: np.ndarray) -> None:
    """ValueError unless V can take these frames."""
    if frames.shape[1:] != (64, 64, 3):
        raise ValueError(f"V sees frames of shape (N, 64, 64, 3), not {frames.shape}")
    if frames.dtype != np.uint8 and frames.dtype.kind != "f":
        raise ValueError(f"V sees frames as uint8 or as floats in [0, 1], not as {frames.dtype}")


def _on_one_pixel(params: Params) -> tuple[np.ndarray, np.ndarray]:
    """deconv1 as the linear layer it is on an image of one pixel -> w (1024, 5*5*128), a view, b (5*5*128,)."""
    return params["deconv1.w"].reshape(-1, 1024).T, np.tile(params["deconv1.b"], 25)
