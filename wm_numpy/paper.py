"""World Models (Ha & Schmidhuber 2018) in a toy world, on plain.py: python -m wm_numpy.paper"""

import zlib

import numpy as np

from . import plain

Z, H, K, A = 8, 48, 3, 1  # latent dims, hidden units, mixtures, actions
GAMES, STEPS = 600, 30  # games side by side; B of them in a batch


class World:  # a star falls, hides behind clouds, and lands: remember where, and be elsewhere
    def __init__(self, rng, n=GAMES):
        self.rng, self.height, self.film = rng, 12, []
        self.star, self.me = rng.uniform(-4, 16, n), rng.uniform(0, 12, n)

    def step(self, action):  # (n, 1) in [-1, 1] -> done (n,): hit; the game goes on
        self.me = np.clip(self.me + 2 * action[:, 0], 0, 12)
        if self.height == 0:
            self.star = self.rng.uniform(-4, 16, len(self.star))
        self.height = (self.height - 3) % 15  # 12, 9, 6, 3, 0, and again
        return (self.height == 0) & (abs(self.star - self.me) < 4)

    def light(self, x, y, rgb):  # a spot at x (n,), y; how far its red, green and blue spread
        side = np.arange(16)[:, None] - 1.5
        across, down = (np.exp(-((side - p) ** 2) / rgb) for p in (x[:, None, None], y))
        return across[:, None] * down[:, None]

    def frames(self):  # -> (n, 16, 16, 3) in [0, 1]; at heights 3 and 6 the star is behind clouds
        star = self.light(self.star, 12 - self.height, [9, 3, 1]) * (self.height not in (3, 6))
        self.film.append(np.maximum(star, self.light(self.me, 12, [1, 3, 9])))
        return self.film[-1]


def new(rng, **shapes):  # name -> [w, b]: weights of variance 1 / inputs, biases 0
    w = {name: rng.standard_normal(s) / np.sqrt(np.prod(s[:-1])) for name, s in shapes.items()}
    return {k: [w[k], np.zeros(s[2] if "up" in k else s[-1])] for k, s in shapes.items()}


def train(model, loss_and_gradients, data, updates, rate, rng):  # Adam; its rate falls to 0
    moments = {(k, i): (0, 0) for k in model for i in (0, 1)}
    for t, falling in enumerate(np.linspace(rate, 0, updates, endpoint=False)):
        loss, g = loss_and_gradients(model, *data, rng)
        for (k, i), (m, v) in moments.items():
            model[k][i], *moments[k, i] = plain.adam(model[k][i], g[k][i], m, v, t + 1, falling)
    print(f"{loss_and_gradients.__name__} {loss:6.3f} after {updates} updates")


def encode(V, x):  # V: frames (B, 16, 16, 3) -> mu, logvar (B, Z)
    x, down1 = plain.conv_forward(x, *V["down1"])  # (B, 7, 7, 16)
    x, relu = plain.relu_forward(x)
    x, down2 = plain.conv_forward(x, *V["down2"])  # (B, 1, 1, 2 Z)
    return *np.split(x[:, 0, 0], 2, axis=1), (down1, relu, down2)


def decode(V, z):  # z (B, Z) -> frames (B, 16, 16, 3)
    x, up1 = plain.conv_transpose_forward(z[:, None, None], *V["up1"])  # (B, 7, 7, 16)
    x, relu = plain.relu_forward(x)
    x, up2 = plain.conv_transpose_forward(x, *V["up2"])  # (B, 16, 16, 3)
    y, sigmoid = plain.sigmoid_forward(x)
    return y, (up1, relu, up2, sigmoid)


def loss_V(V, frames, rng, beta=0.02):  # squared error + beta KL
    x, g = frames[rng.integers(len(frames), size=64)], {}
    mu, logvar, (down1, relu1, down2) = encode(V, x)
    z, sample = plain.reparameterize_forward(mu, logvar, rng.standard_normal(mu.shape))
    y, (up1, relu2, up2, sigmoid) = decode(V, z)
    error, squares = plain.squared_error_forward(y, x, 1 / len(x))
    kl, gaussian = plain.gaussian_kl_forward(mu, logvar)

    (dx,) = plain.sigmoid_backward(*plain.squared_error_backward(1, squares), sigmoid)
    dx, *g["up2"] = plain.conv_transpose_backward(dx, up2)
    dz, *g["up1"] = plain.conv_transpose_backward(*plain.relu_backward(dx, relu2), up1)
    dmu, dlogvar = plain.reparameterize_backward(dz[:, 0, 0], sample)
    dmu_kl, dlogvar_kl = plain.gaussian_kl_backward(beta, gaussian)
    dx = np.concatenate([dmu + dmu_kl, dlogvar + dlogvar_kl], axis=1)[:, None, None]
    dx, *g["down2"] = plain.conv_backward(dx, down2)
    _, *g["down1"] = plain.conv_backward(*plain.relu_backward(dx, relu1), down1)
    return error + beta * kl, g


def predict(M, h):  # M's head: h (B, H) -> logmix, mean, logstd (3, K, Z, B), logit of done (B,)
    y, head = plain.linear_forward(h, *M["head"])
    return y[:, 1:].T.reshape(3, K, Z, -1), y[:, 0], head


# action[t] is chosen from z[t], h[t]; h[t+1] = M(z[t], action[t], h[t]) predicts z[t+1], done[t]
def loss_M(M, z, action, done, rng, B=40):  # all (steps, games, ...); z is mu and std, stacked
    some = rng.integers(action.shape[1], size=B)
    z = z[0][:, some] + z[1][:, some] * rng.standard_normal((STEPS, B, Z))
    h, c, hs, steps = np.zeros((B, H)), np.zeros((B, H)), [], []
    for x in np.concatenate([z, action[:, some]], axis=2)[:-1]:
        (h, c), step = plain.lstm_step_forward(x, h, c, *M["lstm"])
        hs, steps = [*hs, h], [*steps, step]
    mixture, logit, head = predict(M, np.concatenate(hs))
    next_z = z[1:].reshape(-1, Z).T
    nll, density = plain.mixture_nll_forward(*mixture, next_z, 1 / next_z.size)
    bce, entropy = plain.bce_with_logits_forward(logit, done[:-1, some].ravel(), 1 / logit.size)

    dmixture = np.reshape(plain.mixture_nll_backward(1, density), (-1, logit.size))
    dy = np.vstack([*plain.bce_with_logits_backward(1, entropy), dmixture]).T
    dhs, *dhead = plain.linear_backward(dy, head)
    dh = dc = dw = db = 0
    for dh_t, step in zip(dhs.reshape(-1, B, H)[::-1], steps[::-1], strict=True):
        _, dh, dc, dw_t, db_t = plain.lstm_step_backward((dh + dh_t, dc), step)
        dw, db = dw + dw_t, db + db_t
    return nll + bce, {"head": dhead, "lstm": [dw, db]}


def rollout(V, M, theta, z, world, steps, rng):  # C of P candidates; world None: M's dream
    h, c, film, alive, life = np.zeros((len(z), H)), np.zeros((len(z), H)), [], 1, 0
    for _ in range(steps):
        if world:
            mu, logvar, _ = encode(V, world.frames())
            z, _ = plain.reparameterize_forward(mu, logvar, rng.standard_normal(mu.shape))
        film.append(z)
        x = np.concatenate([np.ones((len(z), 1)), z, h], axis=1)[:, : theta.shape[1]]  # C's view
        x = x.reshape(len(theta), -1, theta.shape[1])  # (P, E, size)
        action = np.tanh(x @ theta[:, :, None]).reshape(-1, A)  # equation 1
        (h, c), _ = plain.lstm_step_forward(np.concatenate([z, action], axis=1), h, c, *M["lstm"])
        if world:
            done = world.step(action)
        else:  # the same luck for all candidates; the probability of death is less noisy than death
            mixture, logit, _ = predict(M, h)
            luck = rng.random((Z, x.shape[1])), rng.standard_normal((Z, x.shape[1]))
            z = plain.sample_mixture(*mixture, 1.0, *np.tile(luck, len(theta))).T
            done = plain.sigmoid(logit)
        alive = alive * (1 - done)
        life = life + alive
    return life, film


def main(seed=0, generations=120, P=24, E=16):
    rng = np.random.default_rng(seed)
    world, action, film = World(rng), rng.uniform(-1, 1, (GAMES, A)), []
    for _ in range(STEPS):  # collect, with a random policy that holds each action for a while
        action = np.where(rng.random((GAMES, 1)) < 0.3, rng.uniform(-1, 1, (GAMES, A)), action)
        film.append((world.frames(), action, world.step(action)))
    frames, action, done = (np.stack(x) for x in zip(*film, strict=True))
    lives = {"random": np.cumprod(1 - done, axis=0).sum(axis=0)}

    V = new(rng, down1=(4, 4, 3, 16), down2=(7, 7, 16, 2 * Z), up1=(7, 7, 16, Z), up2=(4, 4, 3, 16))
    train(V, loss_V, [frames.reshape(-1, 16, 16, 3)], 600, 5e-3, rng)
    mu, logvar, _ = encode(V, frames.reshape(-1, 16, 16, 3))
    z = np.stack([mu, np.exp(logvar / 2)]).reshape(2, STEPS, GAMES, Z)
    M = new(rng, lstm=(Z + A + H, 4 * H), head=(H, 1 + 3 * K * Z))
    train(M, loss_M, [z, action, done], 800, 2e-2, rng)

    for name, size in {"blind": 1, "z alone": 1 + Z, "z and h": 1 + Z + H}.items():
        cma = plain.CMAES(np.zeros(size), 0.2, P, rng)
        for _ in range(generations):
            theta, starts = cma.ask(), z[0, 0, rng.integers(GAMES, size=E)]
            life, _ = rollout(V, M, theta, np.tile(starts, (P, 1)), None, STEPS, rng)
            cma.tell(theta, -life.reshape(P, E).mean(axis=1))
        print(f"C, {name}: {life.mean():.1f} of {STEPS} steps in the dream")
        lives[f"C, {name}"], _ = rollout(V, M, cma.mean[None], z[0, 0], World(rng), STEPS, rng)
    return V, M, cma.mean, lives


def png(path, image):  # (rows, columns, 3) in [0, 1]
    lines = np.insert(np.uint8(255 * image).reshape(len(image), -1), 0, 0, axis=1)  # filter 0
    head = np.array(image.shape[1::-1], ">u4").tobytes() + bytes([8, 2, 0, 0, 0])
    parts = b"IHDR" + head, b"IDAT" + zlib.compress(lines.tobytes()), b"IEND"
    parts = [(len(p) - 4).to_bytes(4, "big") + p + zlib.crc32(p).to_bytes(4, "big") for p in parts]
    np.frombuffer(b"\x89PNG\r\n\x1a\n" + b"".join(parts), np.uint8).tofile(path)


if __name__ == "__main__":
    V, M, theta, lives = main()
    for name, life in lives.items():
        print(f"{name:12} {life.mean():4.1f} +- {life.std() / GAMES**0.5:.1f} of {STEPS} steps")
    world = World(np.random.default_rng(7), 1)
    _, seen = rollout(V, M, theta[None], np.zeros((1, Z)), world, 16, world.rng)
    _, dreamt = rollout(V, M, theta[None], seen[0], None, 16, world.rng)
    rows = np.stack(world.film)[:, 0], *(decode(V, np.concatenate(z))[0] for z in (seen, dreamt))
    strip = np.pad(rows, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)), constant_values=0.3)
    png("paper.png", np.hstack(np.hstack(strip)).repeat(4, axis=0).repeat(4, axis=1))
    print("paper.png: reality, what V sees of it, and M's dream from the same start")
