"""M, the memory: an LSTM with a mixture density head, P(z', reward, done | z, action, h) (paper section 2.2).

Time, stated once: T+1 frames, T actions. action[t] is chosen at frame[t] from (z[t], h[t]), h[0] = 0;
h[t+1] = M(z[t], action[t], h[t]), whose head predicts z[t+1], reward[t] and done[t] of that very step.

Letters: B batch, T time, Z latent, A action, H hidden, K mixtures, n rows.
"""

import threading
from typing import NamedTuple

import numpy as np

from . import parallel
from .config import MDNRNNConfig
from .core import (
    Params,
    bce_with_logits_backward,
    bce_with_logits_forward,
    linear_backward,
    linear_forward,
    squared_error_backward,
    squared_error_forward,
)
from .lstm import lstm_backward, lstm_forward
from .mdn import mixture_nll_backward, mixture_nll_forward, sample_mixture

PIECE = 50  # sequences that one thread works on at a time; fixed, so that no result depends on the threads
ROWS = 256  # states whose mixtures are made at a time: they stay in cache, and never lie there for all steps
OUTPUTS = ("done_logit", "reward", "value")
_local = threading.local()


class Prediction(NamedTuple):
    """What the head says of n states; None where M has no such head."""

    logmix: np.ndarray  # (K, Z, n), not normalised
    mean: np.ndarray  # (K, Z, n)
    logstd: np.ndarray  # (K, Z, n)
    done_logit: np.ndarray | None  # (n,)
    reward: np.ndarray | None  # (n,)
    value: np.ndarray | None  # (n,)


class MDNRNN:
    """M and its gradient: units, mixtures and heads of `config`, for latents (Z,) and actions (A,).

    rng draws the initial weights; None leaves zeros, to be filled from a checkpoint. dtype: float64 checks gradients.
    """

    def __init__(
        self,
        config: MDNRNNConfig,
        z_size: int,
        action_size: int,
        rng: np.random.Generator | None = None,
        dtype=np.float32,
    ):
        self.config, self.z_size, self.action_size = config, z_size, action_size
        I, H, mixture = z_size + action_size + config.restart_input, config.hidden, 3 * config.mixtures * z_size
        shapes = {"lstm.w": (I + H, 4 * H), "lstm.b": (4 * H,), "mixture.w": (mixture, H), "mixture.b": (mixture,)}
        self._scalars = [name for name in ("done", "reward", "value") if getattr(config, name + "_head")]
        for name in self._scalars:
            shapes |= {name + ".w": (H, 1), name + ".b": (1,)}
        self.params = Params(shapes, dtype=dtype)
        if rng is not None:
            for name, w in self.params.items():  # Glorot uniform, each gate a layer by itself; zero biases
                if name.endswith(".w"):
                    limit = np.sqrt(6 / ((I + 2 * H) if name == "lstm.w" else sum(w.shape)))
                    w[...] = rng.uniform(-limit, limit, w.shape)

    # ----------------------------------------------------------------------------------- acting and dreaming

    def initial_state(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """-> h, c (n, H): zeros."""
        h, c = np.zeros((2, n, self.config.hidden), self.params.flat.dtype)
        return h, c

    def step(
        self, z: np.ndarray, action: np.ndarray, state: tuple, restart: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """z (n, Z), action (n, A), state (h, c) -> the next state.

        restart (n,): 1 at an episode's first step, as in the data M learns from; zeroes the state. None: 0.
        """
        restart = None if restart is None else np.asarray(restart)[None]  # (1, n)
        (h, c), _ = self._run(z[None], action[None], restart, state)
        return h[0].copy(), c.copy()  # they lie in this thread's memory

    def predict(self, h: np.ndarray) -> Prediction:
        """The head at h (n, H)."""
        p = self.params
        y = p["mixture.w"] @ h.T  # (3KZ, n)
        y += p["mixture.b"][:, None]
        scalars = {name: linear_forward(h, p[name + ".w"], p[name + ".b"])[0][:, 0] for name in self._scalars}
        mixture = y.reshape(3, self.config.mixtures, self.z_size, len(h))
        return Prediction(*mixture, *(scalars.get(name) for name in ("done", "reward", "value")))

    def dream(
        self, h: np.ndarray, tau: float, uniform: np.ndarray, normal: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
        """h (n, H) after a step -> what came of that step: z_next (n, Z), reward (n,), done_logit (n,).

        z_next is drawn at temperature tau by the randomness that is given: uniform in [0, 1) and standard normal,
        (n, Z) each. reward is the expected one. Reward and done_logit are None where M has no such head.
        """
        y = self.predict(h)
        uniform, normal = np.ascontiguousarray(uniform.T), np.ascontiguousarray(normal.T)  # (Z, n)
        z = sample_mixture(y.logmix, y.mean, y.logstd, tau, uniform, normal)
        return np.ascontiguousarray(z.T), y.reward, y.done_logit

    def _run(self, z, action, restart, state):
        """The LSTM over z (T, n, Z), action (T, n, A), restart (T, n) or None -> (h, c_last), cache."""
        x = [z, action]
        if self.config.restart_input:
            x.append(np.zeros((*z.shape[:2], 1)) if restart is None else restart[:, :, None])
        x = np.concatenate(x, axis=2, dtype=self.params.flat.dtype)  # (T, n, I)
        memory = _local.__dict__.setdefault("memory", {})
        return lstm_forward(x, *state, self.params["lstm.w"], self.params["lstm.b"], restart, memory)

    # ---------------------------------------------------------------------------------------------- training

    def loss_and_grad(self, batch: dict[str, np.ndarray]) -> tuple[dict[str, float], np.ndarray]:
        """The loss of a batch of sequences, each from a zero state, and its gradient.

        Args:
            batch: z, z_next (B, T, Z), action (B, T, A), and (B, T) each: done, reward, value, where M has the
                head; restart, 1 at an episode's first step; z_mask and value_mask, 0 where there is no z_next or no
                value. The masks may be left out, and restart without restart_input.

        Returns:
            dict of loss = z + done + reward + value, those that M has: z in nats, mean over dims and steps; the
            others weighted, means over steps. And the gradient, flat like params.flat.
        """
        B, T = batch["z"].shape[:2]
        steps = {name: max(1.0, float(np.sum(batch.get(name, B * T)))) for name in ("z_mask", "value_mask")}
        scale = {
            "z": 1 / (steps["z_mask"] * self.z_size),
            "done": 1 / (B * T),
            "reward": self.config.reward_weight / (B * T),
            "value": self.config.value_weight / steps["value_mask"],
        }
        scale = {name: scale[name] for name in ("z", *self._scalars)}
        size = max(1, min(PIECE, -(-B // 2)))  # two pieces at least
        pieces = [{k: v[i : i + size] for k, v in batch.items()} for i in range(0, B, size)]
        parts, grads = zip(*parallel.threads(lambda piece: self._piece(piece, scale), pieces), strict=True)
        losses = {name: float(sum(part[name] for part in parts)) for name in scale}
        for more in grads[1:]:
            np.add(grads[0], more, out=grads[0])
        return dict(loss=sum(losses.values()), **losses), grads[0]

    def _piece(self, batch: dict[str, np.ndarray], scale: dict[str, float]) -> tuple[dict[str, float], np.ndarray]:
        """Some sequences' share of the loss and of its gradient."""
        p, grads = self.params, Params(self.params.shapes, np.zeros_like(self.params.flat))
        (h, c), cache = self._run_batch(batch)
        h2 = h.reshape(-1, h.shape[2])  # (T b, H)
        dh2 = np.zeros_like(h2)
        flat = {k: v.swapaxes(0, 1).reshape(len(h2), -1).astype(h.dtype, copy=False) for k, v in batch.items()}
        losses = dict.fromkeys(scale, 0.0)

        weight = flat.get("z_mask", np.ones((len(h2), 1), h.dtype))[:, 0] * scale["z"]
        for i in range(0, len(h2), ROWS):
            rows = slice(i, i + ROWS)
            y = self.predict(h2[rows])
            target = np.ascontiguousarray(flat["z_next"][rows].T)  # (Z, n)
            loss, mixture_cache = mixture_nll_forward(y.logmix, y.mean, y.logstd, target, weight[rows])
            losses["z"] += loss
            dy = np.concatenate(mixture_nll_backward(1, mixture_cache)).reshape(-1, target.shape[1])  # (3KZ, n)
            np.matmul(dy.T, p["mixture.w"], out=dh2[rows])  # y = w h.T + b
            grads["mixture.w"][...] += dy @ h2[rows]
            grads["mixture.b"][...] += dy.sum(axis=1)

        for name in self._scalars:
            y, linear_cache = linear_forward(h2, p[name + ".w"], p[name + ".b"])  # (T b, 1)
            if name == "done":
                weight = scale[name] * (1 + (self.config.done_weight - 1) * flat[name])
                losses[name], loss_cache = bce_with_logits_forward(y, flat[name], weight)
                (dy,) = bce_with_logits_backward(1, loss_cache)
            else:
                weight = scale[name] * flat.get(name + "_mask", 1.0)
                losses[name], loss_cache = squared_error_forward(y, flat[name], weight)
                (dy,) = squared_error_backward(1, loss_cache)
            dh, grads[name + ".w"][...], grads[name + ".b"][...] = linear_backward(dy, linear_cache)
            dh2 += dh

        dstates = dh2.reshape(h.shape), np.zeros_like(c)
        _, _, _, grads["lstm.w"][...], grads["lstm.b"][...] = lstm_backward(dstates, cache, need_dx=False)
        return losses, grads.flat

    def outputs(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """done_logit, reward, value (B, T) of every step, those that M has heads for: to be judged."""
        (h, _), _ = self._run_batch(batch)
        y = self.predict(h.reshape(-1, h.shape[2]))._asdict()
        return {name: y[name].reshape(h.shape[:2]).T for name in OUTPUTS if y[name] is not None}

    def _run_batch(self, batch: dict[str, np.ndarray]):
        """_run over whole sequences from a zero state."""
        z, action = batch["z"].swapaxes(0, 1), batch["action"].swapaxes(0, 1)  # (T, B, ...)
        restart = batch["restart"].T if "restart" in batch else None
        return self._run(z, action, restart, self.initial_state(z.shape[1]))
