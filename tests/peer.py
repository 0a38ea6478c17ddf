"""V, M and the dream in PyTorch: the same sizes, losses and data as ours, written for speed on this processor.

What PyTorch is at its best with, found by trying: channels_last, the decoder's first layer as a product (half the
time of ConvTranspose2d on one pixel), the fused Adam, nn.LSTM over whole sequences, inference_mode. With
PLAIN_PEER=1 in the environment that layer and the sampler are PyTorch's own, as most would write them. Modules have
our order of gates and of head outputs, so weights go from one side to the other by `load_v` and `load_m`.

Letters: N frames, B batch, T time, Z latent, A action, H hidden, K mixtures, P population, F features.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests import bench
from wm_numpy.models import agent
from wm_numpy.settings.config import Config
from wm_numpy.settings.tasks import find
from wm_numpy.system import threads

PLAIN = os.environ.get("PLAIN_PEER") == "1"
HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


class V(nn.Module):
    """Frames (N, 64, 64, 3) uint8 -> mu, logvar (N, Z); z -> images (N, 3, 64, 64)."""

    def __init__(self, z_size: int, kl_tolerance: float = 0.5):
        super().__init__()
        self.floor = kl_tolerance * z_size
        down, up, kernels = (3, 32, 64, 128, 256), (1024, 128, 64, 32, 3), (5, 5, 6, 6)
        self.conv = nn.ModuleList(
            nn.Conv2d(i, o, 4, 2) for i, o in zip(down, down[1:], strict=False)
        )
        self.mu, self.logvar = nn.Linear(1024, z_size), nn.Linear(1024, z_size)
        self.dense = nn.Linear(z_size, 1024)
        self.deconv = nn.ModuleList(
            nn.ConvTranspose2d(i, o, k, 2) for i, o, k in zip(up, up[1:], kernels, strict=False)
        )
        self.to(memory_format=torch.channels_last)

    @staticmethod
    def load(frames: Tensor) -> Tensor:
        """(N, 64, 64, 3) uint8 -> (N, 3, 64, 64) floats, channels_last in memory: no copy but the cast."""
        return frames.permute(0, 3, 1, 2).to(torch.float32).div_(255)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for conv in self.conv:
            x = F.relu(conv(x))
        x = x.permute(0, 2, 3, 1).flatten(1)
        return self.mu(x), self.logvar(x)

    def decode(self, z: Tensor) -> Tensor:
        first, *rest, last = self.deconv
        x = self.dense(z)
        if PLAIN:
            x = F.relu(first(x[:, :, None, None].contiguous(memory_format=torch.channels_last)))
        else:
            weight = first.weight.permute(0, 2, 3, 1).reshape(1024, -1)  # (1024, 25 * 128), a view
            x = F.relu((x @ weight).view(-1, 5, 5, 128) + first.bias).permute(0, 3, 1, 2)
        for deconv in rest:
            x = F.relu(deconv(x))
        return torch.sigmoid(last(x))

    def loss(self, frames: Tensor, noise: Tensor) -> Tensor:
        """Squared error summed over pixels + KL with its floor, means over the batch."""
        x = self.load(frames)
        mu, logvar = self.encode(x)
        y = self.decode(mu + torch.exp(logvar / 2) * noise)
        kl = 0.5 * (mu * mu + logvar.exp() - 1 - logvar).sum(1)
        return F.mse_loss(y, x, reduction="sum") / len(x) + kl.clamp(min=self.floor).mean()


class M(nn.Module):
    """LSTM and head. nn.LSTM has two biases: the second is not trained but holds the forget bias, 1."""

    def __init__(self, c: Config):
        super().__init__()
        self.config, self.z_size, hidden = c.mdnrnn, c.vae.z_size, c.mdnrnn.hidden
        inputs = self.z_size + find(c.task).actions + c.mdnrnn.restart_input
        self.lstm = nn.LSTM(inputs, hidden)  # gates i, f, g, o
        self.mixture = nn.Linear(hidden, 3 * c.mdnrnn.mixtures * self.z_size)
        self.done = nn.Linear(hidden, 1) if c.mdnrnn.done_weight else None
        self.lstm.bias_hh_l0.requires_grad_(False).zero_()[hidden : 2 * hidden] = 1

    def trained(self) -> list[Tensor]:
        return [p for p in self.parameters() if p.requires_grad]

    def loss(self, x: Tensor, z_next: Tensor, done: Tensor | None) -> Tensor:
        """x (T, B, I), z_next (T, B, Z), done (T, B) -> mixture NLL + done, means over dims and steps.

        Whole sequences from a zero state: restarts inside them would need one step at a time, which is slower.
        """
        h = self.lstm(x)[0].flatten(0, 1)  # (TB, H)
        z_size, mixtures = self.z_size, self.config.mixtures
        logmix, mean, logstd = self.mixture(h).view(-1, 3, mixtures, z_size).unbind(1)  # (TB, K, Z)
        u = (z_next.reshape(-1, 1, z_size) - mean) * torch.exp(-logstd)
        nll = torch.logsumexp(logmix, 1) - torch.logsumexp(logmix - logstd - 0.5 * u * u, 1)
        loss = nll.mean() + HALF_LOG_2PI
        if self.done is not None:
            logit, more = self.done(h)[:, 0], torch.tensor(self.config.done_weight)
            loss = loss + F.binary_cross_entropy_with_logits(logit, done.flatten(), pos_weight=more)
        return loss

    def dream(
        self, weights: Tensor, bias: Tensor, z: Tensor, features: str, tau: float, steps: int
    ) -> Tensor:
        """z (P * E, Z), weights (P, F, A), bias (P, 1, A): all dreams at once, on all threads -> the last z."""
        h = c = torch.zeros(len(z), self.lstm.hidden_size)
        restart = torch.ones(len(z), 1)
        for _ in range(steps):
            seen = torch.cat([{"z": z, "h": h, "c": c}[part] for part in features], 1)  # (P E, F)
            rows = seen.view(len(weights), -1, seen.shape[1])  # (P, E, F)
            action = torch.tanh(torch.baddbmm(bias, rows, weights)).view(len(z), -1)
            x = torch.cat([z, action, restart] if self.config.restart_input else [z, action], 1)
            _, (h, c) = self.lstm(x[None], (h[None], c[None]))  # faster than nn.LSTMCell or by hand
            h, c, restart = h[0], c[0], torch.zeros_like(restart)
            z = self.sample(h, tau)
            if self.done is not None and (self.done(h) > 0).all():
                break
        return z

    def sample(self, h: Tensor, tau: float) -> Tensor:
        """h (n, H) -> z' (n, Z), a component per latent dim, by inverse CDF: 4 x faster than multinomial or Gumbel."""
        if PLAIN:
            y = self.mixture(h).view(-1, 3, self.config.mixtures, self.z_size)
            logmix, mean, logstd = y.unbind(1)  # (n, K, Z)
            mixture = torch.softmax(logmix / tau, 1).transpose(1, 2)
            categorical = torch.distributions.Categorical(mixture, validate_args=False)
            k = categorical.sample()[:, None]  # (n, 1, Z)
            std = logstd.gather(1, k).exp() * math.sqrt(tau)
            return (mean.gather(1, k) + std * torch.randn(k.shape))[:, 0]
        y = torch.addmm(self.mixture.bias[:, None], self.mixture.weight, h.T)  # (3KZ, n)
        logmix, mean, logstd = y.view(3, self.config.mixtures, self.z_size, len(h))
        cdf = torch.softmax(logmix / tau, 0).cumsum_(0)
        k = (torch.rand_like(mean[:1]) >= cdf[:-1]).sum(0, keepdim=True)  # (1, Z, n)
        noise = torch.randn_like(mean[:1])
        z = torch.addcmul(
            mean.gather(0, k), logstd.gather(0, k).exp_(), noise, value=math.sqrt(tau)
        )
        return z[0].T.contiguous()


class Trainer:
    """One update after another: gradient, clipping by value, fused Adam."""

    def __init__(self, params: list[Tensor], rate: float, clip: float | None = None):
        self.params, self.clip = params, clip
        self.adam = torch.optim.Adam(params, rate, fused=True)

    def update(self, loss: Tensor) -> None:
        self.adam.zero_grad()
        loss.backward()
        if self.clip is not None:
            nn.utils.clip_grad_value_(self.params, self.clip)
        self.adam.step()


# ----------------------------------------------------------- the peer's side of bench.py's rows, named like ours there


def v_peer(mode: str, n: int, calls: int) -> Callable[[int], int]:
    torch.set_num_threads(threads.workers())
    v, frames, z = V(32), torch.from_numpy(bench.v_data(n)), torch.randn(n, 32)
    trainer = Trainer(list(v.parameters()), 1e-4)
    once = {
        "train": lambda: trainer.update(v.loss(frames, torch.randn(n, 32))),
        "encode": torch.inference_mode()(lambda: v.encode(v.load(frames))),
        "decode": torch.inference_mode()(lambda: v.decode(z)),
    }[mode]
    return lambda k: n * len([once() for _ in range(calls)])


def m_peer(c: Config, steps: int) -> Callable[[int], int]:
    torch.set_num_threads(threads.workers())
    m, batch = M(c), m_batch(bench.m_data(c, steps))
    trainer = Trainer(m.trained(), 1e-3, clip=1.0)

    def update(k: int) -> int:
        trainer.update(m.loss(*batch))
        return bench.BATCH * steps

    return update


def dream_peer(task: str, episodes: int, steps: int) -> Callable[[int], int]:
    torch.set_num_threads(threads.workers())
    c = bench.dream_config(task, steps)
    m, n = M(c), bench.POPULATION * episodes
    weights = 0.1 * torch.randn(bench.POPULATION, agent.feature_size(c), find(task).actions)
    bias = torch.zeros(bench.POPULATION, 1, find(task).actions)

    @torch.inference_mode()
    def play(k: int) -> int:
        m.dream(weights, bias, torch.randn(n, c.vae.z_size), c.evolve.features, c.evolve.tau, steps)
        return n * steps

    return play


# ---------------------------------------------------------------- our data and weights, in the form of these modules


def m_batch(batch: dict) -> tuple[Tensor, Tensor, Tensor | None]:
    """A batch of MDNRNN.loss_and_grad -> the arguments of M.loss."""
    # (T, B, ...)
    b = {name: torch.tensor(x).transpose(0, 1).contiguous() for name, x in batch.items()}
    x = [b["z"], b["action"]] + ([b["restart"][:, :, None]] if "restart" in b else [])
    return torch.cat(x, 2), b["z_next"], b.get("done")


def load_v(v: V, params) -> V:
    """params: of wm_numpy's VAE."""

    def copy(layer: nn.Module, name: str) -> None:
        w = params[name + ".w"]
        w = w.T if w.ndim == 2 else w.transpose(3, 2, 0, 1)  # kernels (K, K, C, O) -> (O, C, K, K)
        layer.weight.data.copy_(torch.tensor(w))
        layer.bias.data.copy_(torch.tensor(params[name + ".b"]))

    for kind, layers in (("conv", v.conv), ("deconv", v.deconv)):
        for i, layer in enumerate(layers, 1):
            copy(layer, f"{kind}{i}")
    for name in ("mu", "logvar", "dense"):
        copy(getattr(v, name), name)
    return v


def load_m(m: M, params) -> M:
    """params: of wm_numpy's MDNRNN, gates i, f, o, g there and i, f, g, o here."""
    inputs = m.lstm.input_size

    def gates(x: Tensor) -> Tensor:
        i, f, o, g = x.chunk(4)
        return torch.cat([i, f, g, o])

    p = {name: torch.tensor(value) for name, value in params.items()}
    w = gates(p["lstm.w"].T)  # (4H, I + H)
    m.lstm.weight_ih_l0.data.copy_(w[:, :inputs])
    m.lstm.weight_hh_l0.data.copy_(w[:, inputs:])
    m.lstm.bias_ih_l0.data.copy_(gates(p["lstm.b"]))
    m.mixture.load_state_dict({"weight": p["mixture.w"].T, "bias": p["mixture.b"]})
    if m.done is not None:
        m.done.load_state_dict({"weight": p["done.w"].T, "bias": p["done.b"]})
    return m
