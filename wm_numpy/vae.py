"""V: the variational autoencoder that turns a 64x64x3 frame into Z numbers (the paper, 2.1 and A.1).

    encoder  convolutions 4x4, stride 2, ReLU: sides 64 -> 31 -> 14 -> 6 -> 2, channels 32-64-128-256;
             then two linear layers, mu and logvar
    decoder  a linear layer to 1024, no ReLU, then transposed convolutions 5x5, 5x5, 6x6, 6x6, stride 2, ReLU
             and at last a sigmoid: sides 1 -> 5 -> 13 -> 30 -> 64, channels 128-64-32-3

The loss is the squared error summed over the pixels, plus the KL divergence, both averaged over the batch. To add the
KL as it is means that a pixel may be off by a variance of 1/2 (the error is then a Gaussian's -log p), so that what is
a few pixels small is hardly worth its nats. `kl_weight` is twice the variance meant (beta-VAE, Higgins et al. 2017).

Images are held space-to-depth (conv.py), the frame as (32, 32, 12); an odd side is cut or padded to even.

Letters: N frames, M frames of one piece, Z latent dims.
"""

from collections.abc import Iterator

import numpy as np

from . import conv, core, parallel
from .config import VAEConfig

TRAIN_PIECE, INFER_PIECE = 50, 16  # frames at a time for one thread: few enough for the caches
WIDE_PIECE = 128  # rows of the wide layer's weights at a time for one thread


class VAE:
    """V, its loss and its gradient, with the latents and the KL floor of `config`.

    rng draws the initial weights; None leaves zeros, to be filled from a checkpoint. dtype: float64 checks gradients.
    """

    def __init__(self, config: VAEConfig, rng: np.random.Generator | None = None, dtype=np.float32):
        self.config = config
        z = config.z_size
        kernels = {  # (K, K, C, O), C on the side of the larger image
            "conv1": (4, 4, 3, 32), "conv2": (4, 4, 32, 64), "conv3": (4, 4, 64, 128), "conv4": (4, 4, 128, 256),
            "mu": (1024, z), "logvar": (1024, z), "dense": (z, 1024),
            "deconv1": (5, 5, 128, 1024), "deconv2": (5, 5, 64, 128),
            "deconv3": (6, 6, 32, 64), "deconv4": (6, 6, 3, 32),
        }  # fmt: skip
        shapes = {}
        for name, kernel in kernels.items():
            shapes[name + ".w"] = _stored_shape(name, kernel)
            shapes[name + ".b"] = kernel[2:3] if name.startswith("deconv") else kernel[-1:]
        self.params = core.Params(shapes, dtype=dtype)
        for name, kernel in kernels.items() if rng is not None else ():  # all biases zero
            w, taps = self.params[name + ".w"], np.prod(kernel[:-2])
            if config.start == "glorot" or name in ("mu", "logvar"):  # TensorFlow's default, and so the authors'
                limit = np.sqrt(6 / (taps * sum(kernel[-2:])))
                w[...] = rng.uniform(-limit, limit, w.shape)
            else:  # variance 1 / fan-in, half of He's; a transposed layer's output meets a quarter of the taps
                fan = {"deconv1": 1024}.get(name, taps * kernel[-1] / 4 if "deconv" in name else taps * kernel[-2])
                w[...] = rng.standard_normal(w.shape) / np.sqrt(fan)

    def centre(self, colour: np.ndarray) -> None:
        """Make conv1 answer zero to a frame of this one colour (3,), in [0, 1]: V learns faster from there."""
        w = self.params["conv1.w"].reshape(-1, 3, 32)  # (taps, C, O)
        self.params["conv1.b"][...] = -(w * colour[:, None]).sum(axis=(0, 1))

    # ---------------------------------------------------------------------------------------------- inference

    def encode(self, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Frames (N, 64, 64, 3), uint8 or floats in [0, 1] -> mu, logvar (N, Z)."""
        pieces = _pieces(len(frames), INFER_PIECE)
        codes = parallel.threads(lambda s: self._encode(self._load(frames[s]))[0], pieces)
        return np.concatenate([mu for mu, _ in codes]), np.concatenate([logvar for _, logvar in codes])

    def decode(self, z: np.ndarray) -> np.ndarray:
        """z (N, Z) -> frames (N, 64, 64, 3), floats in [0, 1]."""
        p, z = self.params, z.astype(self.params.flat.dtype, copy=False)
        h, _ = core.linear_forward(z, p["dense.w"], p["dense.b"])  # (N, 1024)
        a, _ = _wide_forward(h, p["deconv1.w"], p["deconv1.b"])  # (N, 5*5*128)
        frames = np.empty((len(z), 64, 64, 3), a.dtype)

        def piece(s: slice) -> None:
            frames[s] = conv.depth_to_space(self._decode(a[s])[0], 64, 64)

        parallel.threads(piece, _pieces(len(z), INFER_PIECE))
        return frames

    # ----------------------------------------------------------------------------------------------- training

    def loss_and_grad(
        self, frames: np.ndarray, noise: np.ndarray, weight: np.ndarray | None = None
    ) -> tuple[dict[str, float], np.ndarray]:
        """The loss of a batch and its gradient.

        The batch is cut into pieces, except for the decoder's first layer: every piece would need its own
        gradient of 3.3 million weights, three quarters of all. So the pieces meet there, on the way forward
        and on the way back, which saves a tenth of an update.

        Args:
            frames: (N, 64, 64, 3), uint8 or floats in [0, 1].
            noise: (N, Z), standard normal: z = mu + exp(logvar / 2) noise.
            weight: (N, 64, 64), of every pixel's squared error in the loss; None: 1.

        Returns:
            dict of loss = reconstruction + kl_weight * kl, each summed over pixels or dims and averaged over
            frames; and the gradient of loss, flat like params.flat. With a weight the loss is of the weighted
            error; `reconstruction` always tells the plain one.
        """
        p, noise = self.params, noise.astype(self.params.flat.dtype, copy=False)
        grads = core.Params(p.shapes, np.empty_like(p.flat))
        pieces = _pieces(len(frames), TRAIN_PIECE)
        weights = [None if weight is None else weight[s] for s in pieces]
        jobs = [self._piece(frames[s], noise[s], w, len(frames)) for s, w in zip(pieces, weights, strict=True)]

        def resume(rows: np.ndarray | None) -> list:  # every piece gets its rows and runs on to its next yield
            sent = [None if rows is None else rows[s] for s in pieces]
            return parallel.threads(lambda i: jobs[i].send(sent[i]), range(len(jobs)))

        h = np.concatenate(resume(None))  # (N, 1024)
        a, cache = _wide_forward(h, p["deconv1.w"], p["deconv1.b"])  # (N, 5*5*128)
        da = np.concatenate(resume(a))  # (N, 5*5*128)
        dh, _, grads["deconv1.b"][...] = _wide_backward(da, cache, dw=grads["deconv1.w"])
        errors, plain, kls, parts = zip(*resume(dh), strict=True)

        for name in parts[0]:
            grads[name][...] = sum(part[name] for part in parts)  # in the order of the pieces
        error, kl = float(sum(errors)), float(sum(kls))
        loss = error + self.config.kl_weight * kl
        return dict(loss=loss, reconstruction=float(sum(plain)), kl=kl), grads.flat

    def _piece(self, frames: np.ndarray, noise: np.ndarray, weight: np.ndarray | None, n: int) -> Iterator:
        """One piece of a batch of n: yields h for a, da for dh, and at last its losses and gradients."""
        p, g = self.params, {}
        x = self._load(frames)  # (M, 32, 32, 12)
        (mu, logvar), encoder_cache = self._encode(x)  # (M, Z)
        kl, kl_cache = core.gaussian_kl_forward(mu, logvar, self.config.kl_tolerance * self.config.z_size)
        z, z_cache = core.reparameterize_forward(mu, logvar, noise)  # (M, Z)
        h, dense_cache = core.linear_forward(z, p["dense.w"], p["dense.b"])  # (M, 1024)
        a = yield h
        y, decoder_cache = self._decode(a)  # (M, 32, 32, 12)
        plain, error_cache = core.squared_error_forward(y, x, 1 / n)
        error = plain
        if weight is not None:
            weight = conv.space_to_depth(np.repeat(weight[..., None], 3, axis=3).astype(x.dtype)) / n
            error, error_cache = core.squared_error_forward(y, x, weight)

        (dy,) = core.squared_error_backward(1, error_cache)
        da = self._decode_backward(dy, decoder_cache, g)
        dh = yield da
        dz, g["dense.w"], g["dense.b"] = core.linear_backward(dh, dense_cache)
        dmu, dlogvar = core.reparameterize_backward(dz, z_cache)
        share = self.config.kl_weight * len(x) / n  # kl is a mean over the piece
        dmu_kl, dlogvar_kl = core.gaussian_kl_backward(share, kl_cache)
        self._encode_backward(dmu + dmu_kl, dlogvar + dlogvar_kl, encoder_cache, g)
        yield error, plain, kl * len(x) / n, g

    # --------------------------------------------------------------------------------------- the two networks

    def _load(self, frames: np.ndarray) -> np.ndarray:
        """(M, 64, 64, 3) -> (M, 32, 32, 12), floats in [0, 1]."""
        x, dtype = conv.space_to_depth(frames), self.params.flat.dtype
        return np.divide(x, 255, dtype=dtype) if x.dtype == np.uint8 else x.astype(dtype, copy=False)

    def _encode(self, x: np.ndarray):
        """(M, 32, 32, 12) -> (mu, logvar), each (M, Z)."""
        p, caches = self.params, []
        for name in ("conv1", "conv2", "conv3", "conv4"):
            y, conv_cache = conv.conv_forward(x, p[name + ".w"], p[name + ".b"])  # sides 31, 14, 6, 2
            x, relu_cache = core.relu_forward(conv.space_to_depth(y))  # sides 15, 7, 3, 1
            caches.append((name, conv_cache, y.shape[1:3], relu_cache))
        x = x.reshape(len(x), 1024)
        mu, mu_cache = core.linear_forward(x, p["mu.w"], p["mu.b"])
        logvar, logvar_cache = core.linear_forward(x, p["logvar.w"], p["logvar.b"])
        return (mu, logvar), (caches, mu_cache, logvar_cache)

    def _encode_backward(self, dmu: np.ndarray, dlogvar: np.ndarray, cache, g: dict) -> None:
        """Adds the encoder's gradients to g."""
        caches, mu_cache, logvar_cache = cache
        dx, g["logvar.w"], g["logvar.b"] = core.linear_backward(dlogvar, logvar_cache)
        dx_mu, g["mu.w"], g["mu.b"] = core.linear_backward(dmu, mu_cache)
        dx = (dx + dx_mu).reshape(len(dx), 1, 1, 1024)
        for name, conv_cache, sides, relu_cache in reversed(caches):
            (dx,) = core.relu_backward(dx, relu_cache)
            dy = conv.depth_to_space(dx, *sides)
            dx, g[name + ".w"], g[name + ".b"] = conv.conv_backward(dy, conv_cache, need_dx=name != "conv1")

    def _decode(self, a: np.ndarray):
        """(M, 5*5*128), the first layer before its ReLU -> y (M, 32, 32, 12), in (0, 1)."""
        p = self.params
        x, cache1 = core.relu_forward(a.reshape(-1, 5, 5, 128))
        y, cache2 = conv.conv_transpose_forward(x, conv.fold_kernel(p["deconv2.w"]), p["deconv2.b"])  # (M, 7, 7, 4*64)
        x, cache3 = core.relu_forward(conv.depth_to_space(y, 13, 13))  # (M, 13, 13, 64)
        y, cache4 = conv.conv_transpose_forward(x, p["deconv3.w"], p["deconv3.b"])  # (M, 15, 15, 4*32)
        x, cache5 = core.relu_forward(conv.depth_to_space(y, 30, 30))  # (M, 30, 30, 32)
        y, cache6 = conv.conv_transpose_forward(x, p["deconv4.w"], p["deconv4.b"])  # (M, 32, 32, 4*3)
        y, cache7 = core.sigmoid_forward(y)
        return y, (cache1, cache2, cache3, cache4, cache5, cache6, cache7)

    def _decode_backward(self, dy: np.ndarray, cache, g: dict) -> np.ndarray:
        """-> da (M, 5*5*128); adds the decoder's gradients to g."""
        cache1, cache2, cache3, cache4, cache5, cache6, cache7 = cache
        (dy,) = core.sigmoid_backward(dy, cache7)
        dx, g["deconv4.w"], g["deconv4.b"] = conv.conv_transpose_backward(dy, cache6)
        (dx,) = core.relu_backward(dx, cache5)
        dx, g["deconv3.w"], g["deconv3.b"] = conv.conv_transpose_backward(conv.space_to_depth(dx, 15, 15), cache4)
        (dx,) = core.relu_backward(dx, cache3)
        dx, dw, g["deconv2.b"] = conv.conv_transpose_backward(conv.space_to_depth(dx, 7, 7), cache2)
        g["deconv2.w"] = conv.unfold_kernel(dw, 5)
        (da,) = core.relu_backward(dx, cache1)
        return da.reshape(len(da), -1)


# ---------------------------------------------------------------------------------- the decoder's first layer
# On a single pixel a transposed convolution is a linear layer, here of 1024 x 3200 weights. It is cut along
# the weights instead of the batch: every thread owns some, reads them once, and no gradients need summing.


def _wide_forward(h: np.ndarray, w: np.ndarray, b: np.ndarray):
    """h (N, I), w (I, 25*128), b (128,) -> a (N, 25*128)."""
    a = np.empty((len(h), w.shape[1]), h.dtype)

    def piece(columns: slice) -> None:
        a[:, columns] = h @ w[:, columns] + np.tile(b, w.shape[1] // len(b))[columns]

    parallel.threads(piece, _pieces(w.shape[1], 3 * WIDE_PIECE))
    return a, (h, w, b)


def _wide_backward(da: np.ndarray, cache, dw: np.ndarray):
    """-> dh (N, I), dw (I, 25*128), written into the array given, db (128,)."""
    h, w, b = cache
    dh = np.empty_like(h)

    def piece(rows: slice) -> None:
        dh[:, rows] = da @ w[rows].T
        np.matmul(h[:, rows].T, da, out=dw[rows])

    parallel.threads(piece, _pieces(len(w), WIDE_PIECE))
    return dh, dw, da.reshape(-1, len(b)).sum(axis=0)


def _pieces(n: int, size: int) -> list[slice]:
    """Cut n into an even number of nearly equal pieces of at most `size`: as many for each of two threads."""
    count = max(1, -(-n // size))
    count += count % 2 if n > 1 else 0
    edges = [n * i // count for i in range(count + 1)]
    return [slice(a, b) for a, b in zip(edges[:-1], edges[1:], strict=True)]


def _stored_shape(name: str, kernel: tuple[int, ...]) -> tuple[int, ...]:
    """Kernels of even size are stored as fold_kernel makes them, deconv1 as the linear layer that it is."""
    if name == "deconv1":
        return (1024, 5 * 5 * 128)
    if len(kernel) == 2 or kernel[0] % 2:
        return kernel
    size, _, c, o = kernel
    return (size // 2, size // 2, 4 * c, o)
