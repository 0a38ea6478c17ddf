"""M, the memory: an LSTM with a mixture density head, P(z', reward, done | z, action, h) (paper section 2.2).

Time, stated once: T+1 frames, T actions. action[t] is chosen at frame[t] from (z[t], h[t]), h[0] = 0;
h[t+1] = M(z[t], action[t], h[t]), whose head predicts z[t+1], reward[t] and done[t] of that very step.

Letters: B batch, b sequences of a piece of it, T time, Z latent, A action, H hidden, K mixtures, n rows.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ..core import ops
from ..core.arrays import Array, Params
from ..core.lstm import lstm_backward, lstm_forward
from ..core.mixture import mixture_nll_backward, mixture_nll_forward, sample_mixture
from ..core.ops import linear_backward, linear_forward
from ..settings.config import MDNRNNConfig
from ..system import threads

PIECE = 50  # sequences for one thread at a time; fixed, so that no result depends on the threads
ROWS = 256  # states whose mixtures are computed at a time, so that they stay in cache
HEADS = ("done", "reward", "value")  # optional, one number each


class Prediction(NamedTuple):
    """The head's outputs for n states; None where M has no such head."""

    logmix: Array  # (K, Z, n), not normalised
    mean: Array  # (K, Z, n)
    logstd: Array  # (K, Z, n)
    done_logit: Array | None  # (n,)
    reward: Array | None  # (n,), expected
    value: Array | None  # (n,), the return still to come, expected


class MDNRNN:
    """M and its gradient: units, mixtures and heads of `config`, for latents (Z,) and actions (A,).

    rng draws the initial weights; None leaves zeros, to be filled from a file. dtype: float64 to check gradients.
    """

    def __init__(
        self, config: MDNRNNConfig, z_size: int, action_size: int, rng=None, dtype=np.float32
    ):
        self.config = config
        self.z_size = z_size
        self.action_size = action_size
        self.heads = [name for name in HEADS if getattr(config, name + "_weight")]
        I = z_size + action_size + config.restart_input
        H = config.hidden
        mixture = 3 * config.mixtures * z_size
        shapes = {"lstm.w": (I + H, 4 * H), "lstm.b": (4 * H,)}
        shapes |= {"mixture.w": (H, mixture), "mixture.b": (mixture,)}
        for name in self.heads:
            shapes |= {name + ".w": (H, 1), name + ".b": (1,)}
        self.params = Params(shapes, dtype=dtype)
        for name, w in self.params.items():
            if rng is not None and name.endswith(".w"):  # Glorot uniform, a gate being a layer
                fans = I + 2 * H if name == "lstm.w" else sum(w.shape)
                limit = np.sqrt(6 / fans)
                w[...] = rng.uniform(-limit, limit, w.shape)

    # ----------------------------------------------------------------------------------- acting and dreaming

    def initial_state(self, n: int) -> tuple[Array, Array]:
        """-> h, c (n, H): zeros."""
        return tuple(np.zeros((2, n, self.config.hidden), self.params.flat.dtype))

    def step(
        self, z: Array, action: Array, state: tuple, restart: Array | None = None
    ) -> tuple[Array, Array]:
        """z (n, Z), action (n, A), state (h, c) -> the next state.

        restart (n,): 1 at an episode's first step, as in M's training data; it zeroes the state. None: 0.
        """
        restart = None if restart is None else np.asarray(restart)[None]  # (1, n)
        (h, c), _ = self._run(z[None], action[None], restart, state)
        return h[0].copy(), c.copy()  # they lie in this thread's scratch space

    def follow(self, z: Array, action: Array, restart: Array) -> Iterator[tuple]:
        """Recorded steps, z (T, n, Z), action (T, n, A), restart (T, n) -> M's state after each, from zeros."""
        state = self.initial_state(z.shape[1])
        for z_t, action_t, restart_t in zip(z, action, restart, strict=True):
            state = self.step(z_t, action_t, state, restart_t)
            yield state

    def predict(self, h: Array) -> Prediction:
        """The head at h (n, H)."""
        mixture, _ = self._mixture(h)
        ys = {name: self._linear(name, h)[0][:, 0] for name in self.heads}
        return Prediction(*mixture, *(ys.get(name) for name in HEADS))

    def dream(
        self, h: Array, tau: float, uniform: Array, normal: Array
    ) -> tuple[Array, Array | None, Array | None]:
        """h (n, H) after a step -> its outcome: z_next (n, Z), expected reward (n,), done_logit (n,).

        z_next is sampled at temperature tau; `uniform` in [0, 1) and `normal`, (n, Z) each, are its random numbers.
        reward and done_logit are None where M has no such head.
        """
        y = self.predict(h)
        uniform, normal = (np.ascontiguousarray(x.T) for x in (uniform, normal))  # (Z, n)
        z = sample_mixture(y.logmix, y.mean, y.logstd, tau, uniform, normal)
        return np.ascontiguousarray(z.T), y.reward, y.done_logit

    def _linear(self, name: str, h: Array, order: str = "C") -> tuple[Array, tuple]:
        """A layer of the head at h (n, H)."""
        return linear_forward(h, self.params[name + ".w"], self.params[name + ".b"], order)

    def _mixture(self, h: Array) -> tuple[Array, tuple]:
        """logmix, mean, logstd (3, K, Z, n) at h (n, H), n contiguous, as mixture.py likes them."""
        y, cache = self._linear("mixture", h, order="F")  # (n, 3KZ)
        return y.T.reshape(3, self.config.mixtures, self.z_size, len(h)), cache

    def _run(self, z, action, restart, state) -> tuple:
        """The LSTM over z (T, n, Z), action (T, n, A), restart (T, n) or None -> (h, c_last), cache."""
        x = [z, action]
        if self.config.restart_input:
            x.append(np.zeros((*z.shape[:2], 1)) if restart is None else restart[:, :, None])
        p = self.params
        x = np.concatenate(x, axis=2, dtype=p.flat.dtype)  # (T, n, I)
        return lstm_forward(x, *state, p["lstm.w"], p["lstm.b"], restart, reuse=True)

    # ---------------------------------------------------------------------------------------------- training

    def loss_and_grad(self, batch: dict[str, Array]) -> tuple[dict[str, float], Array]:
        """The losses of a batch of sequences, each from a zero state, and the gradient of their sum, like params.flat.

        batch: z, z_next (B, T, Z), action (B, T, A), and (B, T) each: done, reward, value, where M has the head.
        Optional, (B, T) each: restart, 1 at an episode's first step; z_mask and value_mask, 0 where there is no z_next
        or no value. Losses: loss = z + done + reward + value, those that M has; z is in nats, a mean over dims and
        steps, the others are weighted means over steps.
        """
        B, T = batch["z"].shape[:2]
        for name, x in batch.items():
            if x.shape[:2] != (B, T):
                raise ValueError(f"{name} {x.shape} and z {batch['z'].shape} differ in (B, T)")
        masks = {name: np.ones((B, T)) for name in ("z_mask", "value_mask")}
        batch = masks | batch
        z_steps, value_steps = (max(1.0, float(np.sum(batch[name]))) for name in masks)
        steps = max(1.0, B * T)
        scale = {  # what a step weighs in each loss
            "z": 1 / z_steps / self.z_size,
            "done": 1 / steps,
            "reward": self.config.reward_weight / steps,
            "value": self.config.value_weight / value_steps,
        }
        pieces = [{name: x[s] for name, x in batch.items()} for s in threads.cut(B, PIECE)]
        results = threads.run(lambda piece: self._piece(piece, scale), pieces)
        parts, grads = zip(*results, strict=True)
        losses = {name: float(sum(part[name] for part in parts)) for name in parts[0]}
        for more in grads[1:]:
            np.add(grads[0], more, out=grads[0])
        return dict(loss=sum(losses.values()), **losses), grads[0]

    def _piece(self, batch: dict, scale: dict[str, float]) -> tuple[dict[str, float], Array]:
        """What b sequences contribute to the losses and to the gradient."""
        grads = Params(self.params.shapes, np.zeros_like(self.params.flat))
        z, action = (batch[name].swapaxes(0, 1) for name in ("z", "action"))  # (T, b, ...)
        restart = batch["restart"].T if "restart" in batch else None
        start = self.initial_state(z.shape[1])
        (h, c), lstm_cache = self._run(z, action, restart, start)  # (T, b, H), (b, H)
        rows = h.reshape(-1, h.shape[2])  # (T b, H)
        targets = {}  # (T b, Z) or (T b, 1)
        for name in ("z_next", "z_mask", "value_mask", *self.heads):
            x = batch[name].swapaxes(0, 1)
            shape = (len(rows), *(x.shape[2:] or [1]))
            targets[name] = x.reshape(shape).astype(h.dtype, copy=False)

        losses = {"z": 0.0}
        dh = np.empty_like(rows)
        weight = scale["z"] * targets["z_mask"][:, 0]  # (T b,)
        for first in range(0, len(rows), ROWS):
            s = slice(first, first + ROWS)
            loss, dh[s] = self._mixture_loss(rows[s], targets["z_next"][s], weight[s], grads)
            losses["z"] += loss
        for name in self.heads:
            losses[name], dh_head = self._head_loss(name, rows, targets, scale[name], grads)
            dh += dh_head

        dstates = dh.reshape(h.shape), np.zeros_like(c)
        _, _, _, dw, db = lstm_backward(dstates, lstm_cache, need_dx=False)
        grads["lstm.w"][...] = dw
        grads["lstm.b"][...] = db
        return losses, grads.flat

    def _mixture_loss(self, h: Array, z_next: Array, weight: Array, grads: Params) -> tuple:
        """h (n, H), z_next (n, Z), weight (n,) -> the loss of z, dh; adds the layer's gradient to grads."""
        mixture, linear_cache = self._mixture(h)  # (3, K, Z, n)
        target = np.ascontiguousarray(z_next.T)  # (Z, n)
        loss, nll_cache = mixture_nll_forward(*mixture, target, weight)
        dmixture = np.concatenate(mixture_nll_backward(1, nll_cache))  # (3K, Z, n)
        dy = dmixture.reshape(-1, len(h)).T  # (n, 3KZ)
        dh, dw, db = linear_backward(dy, linear_cache)
        grads["mixture.w"][...] += dw
        grads["mixture.b"][...] += db
        return loss, dh

    def _head_loss(self, name: str, h: Array, targets: dict, scale: float, grads: Params) -> tuple:
        """The loss of done, reward or value at h (n, H), dh; puts the layer's gradient into grads."""
        target = targets[name]
        y, linear_cache = self._linear(name, h)  # (n, 1)
        if name == "done":
            weight = scale * (1 + (self.config.done_weight - 1) * target)
            loss, loss_cache = ops.bce_with_logits_forward(y, target, weight)
            (dy,) = ops.bce_with_logits_backward(1, loss_cache)
        else:
            weight = scale * targets["value_mask"] if name == "value" else scale
            loss, loss_cache = ops.squared_error_forward(y, target, weight)
            (dy,) = ops.squared_error_backward(1, loss_cache)
        dh, grads[name + ".w"][...], grads[name + ".b"][...] = linear_backward(dy, linear_cache)
        return loss, dh
