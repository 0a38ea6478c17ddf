"""Can M's dream be trusted? M judged on real episodes of the collecting policy and of C that it never saw.

What the figures say, and how to read them:
- M step by step: likelihood per latent dimension beside that of a fixed Gaussian; recall and precision of the end;
  error of the reward; how much of the variance of the reward still to come the value explains; whether a step's
  advantage predicts, better than its bare reward, that more will come than expected.
- Open loop: recorded actions replayed in dreams that begin in a memory. M knows the world for as many steps as its
  error of z is below both baselines, and its reward is the true one, in sum and moment by moment. The actions fit the
  road and the fireballs that really came. Beyond the first frames a dream invents others, so that even a perfect M
  tells too little reward and too many ends there.
- Closed loop: C itself acts in the dream, from the same moments. Reward it is told beyond the true one is what it
  exploits. Then whole lives of the same policies in both worlds, distribution beside distribution.
- CarRacing: speed, angle to the road and distance from its middle, as a linear probe reads them off [z h].
- Doom: the fireballs, in view and out of it (sight.py).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np

from ..models.agent import Agent
from ..settings.config import SettingError
from ..settings.tasks import TASKS
from ..training.data import Records, advantage, encoded, frame_dtype, series_dtype, transitions
from ..training.episodes import blind_rollouts, real_rollouts
from ..training.experiment import collecting_policy, episode_seeds, score
from ..worlds.envs import fixed_policy, make_env, to_and_fro
from ..worlds.rollout import rollout
from ..worlds.world import Dream, RealWorld, weighted
from . import sight

HORIZONS = (5, 20, 50, 100, 200)  # steps into the dream
MOMENTS = 256  # replayed
DREAMS = 4  # of each moment
FRAMES = 12  # of a picture
SMOOTH = 5  # steps averaged in a point of its curves
BEFORE = 20  # steps before a moment; a baseline: their reward goes on
ROAD = 20 / 3  # from the middle of CarRacing's road to its edge, in its units


def table(agent: Agent, episodes: int, taus: Sequence[float]) -> Iterator[str]:
    """All figures as lines of text."""
    real = {}
    for name, policy in (("collecting", collecting_policy(agent.config)), ("C", None)):
        series = [in_latents(agent, episode) for episode in recorded(agent, policy, episodes)]
        real[name] = series
        who = "C" if policy is None else "the policy that collects data"
        loops = "open loop and C closed loop" if policy is None else "open loop"
        yield f"M on {episodes} held-out episodes of {who}"
        for figure, value in judge(agent, as_batches(series)).items():
            yield f"  {figure:24} {value:8.3f}"
        yield ""
        yield f"the same, {loops}, tau 1"
        yield from columns(open_loop(agent, series, closed=policy is None))
        yield ""
    if agent.config.task == "carracing":
        yield f"{'read off by a line, R2':24} {'z':>8} {'[z h]':>8}"
        yield from [f"  {fact:22} {z:8.3f} {zh:8.3f}" for fact, (z, zh) in probe(agent).items()]
        yield ""
    else:
        yield f"fireballs read off by a line, on {episodes} episodes of a policy that sees them all"
        for what, measure, told in sight.figures(agent, episodes):
            cells = "".join(f"{who:>14} {x:5.3f}" for who, x in told.items())
            yield f"  {what:36} {measure:4}{cells}"
        yield ""
    yield f"whole lives; reward: {TASKS[agent.config.task].reward}"
    quartiles = "a step: 25, 50, 75 %  steps: 25, 50, 75 %"
    yield f"{'policy':10} {'world':11} {'reward +- SD [95 % of the mean]':34} {quartiles}"
    for policy, world, returns, lengths in lives(agent, episodes, taus, real):
        mean = "{mean:.1f} +- {sd:.1f} [{ci95[0]:.1f}, {ci95[1]:.1f}]".format(**score(returns))
        pace = " ".join(f"{q:6.2f}" for q in np.quantile(returns / lengths, (0.25, 0.5, 0.75)))
        steps = " ".join(f"{q:6.0f}" for q in np.quantile(lengths, (0.25, 0.5, 0.75)))
        yield f"{policy:10} {world:11} {mean:34} {pace} {steps}"


def columns(rows: list[dict[str, float]]) -> list[str]:
    """Rows of figures by name as lines, under a line of the names."""
    width = {name: max(len(name), 7) for name in rows[0]} if rows else {}
    digits = {name: 0 if name in ("steps", "n") else 2 for name in width}
    lines = ["  ".join(f"{name:>{n}}" for name, n in width.items())]
    for row in rows:
        lines.append("  ".join(f"{row[k]:{n}.{digits[k]}f}" for k, n in width.items()))
    return lines


# --------------------------------------------------------------------------------------------- what really happened


def recorded(agent: Agent, make_policy: Callable | None, episodes: int) -> Iterator[np.ndarray]:
    """Real episodes of a policy that sees nothing, or of C if None, on seeds of their own -> records with frames.

    Their reward is what M's reward head learns, not the environment's score.
    """
    c = agent.config
    seeds = episode_seeds("check", episodes, 0, 98)
    with TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{i:06d}.npy" for i in range(episodes)]
        if make_policy is None:
            real_rollouts(agent, agent.theta[None], seeds, paths=paths)
        else:
            blind_rollouts(c.task, seeds, paths=paths, make_policy=make_policy, repeat=c.repeat)
        records = Records(Path(folder), frame_dtype(agent.m.action_size))
        for i in range(episodes):
            yield records.read(i)


def in_latents(agent: Agent, episode: np.ndarray) -> np.ndarray:
    """An episode's series, with the discounted returns if M has a value head."""
    c = agent.config
    dtype = series_dtype(c.vae.z_size, agent.m.action_size, c.mdnrnn.value_head)
    return encoded(episode, dtype, agent.v.encode, c.mdnrnn.gamma)


def as_batches(series: list[np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Every series a batch of one for M, z sampled."""
    rng = np.random.default_rng([0, 99])
    episodes = (transitions(s, rng, restart=True) for s in series)
    return [{name: x[None] for name, x in episode.items()} for episode in episodes]


# ----------------------------------------------------------------------------------------------------- step by step


def judge(agent: Agent, batches: list[dict[str, np.ndarray]]) -> dict[str, float]:
    """Figures of M on held-out episodes; those of heads that M lacks are left out.

    nll: nats per dim and step; gaussian: the same of one Gaussian per dim, fitted to these very z; recall and precision
    of done at a logit of 0; reward_error: root mean square; reward_sd: the same if the mean were predicted;
    value_r2: of the discounted returns; advantage_r: correlation of A[t] with what then came beyond V[t]; reward_r:
    that of the bare reward with it.
    """
    true = {name: np.concatenate([b[name][0] for b in batches]) for name in batches[0]}
    nll = [agent.m.loss_and_grad(b)[0]["z"] for b in batches]
    steps = [b["z_mask"].sum() for b in batches]
    z = true["z_next"][true["z_mask"] > 0]
    entropy = np.log(z.std(axis=0)) + 0.5 * np.log(2 * np.pi * np.e)  # (Z,), of a Gaussian
    figures = {"nll": float(np.average(nll, weights=steps)), "gaussian": float(entropy.mean())}
    outputs = [agent.m.outputs(b) for b in batches]
    told = {name: np.concatenate([out[name][0] for out in outputs]) for name in outputs[0]}
    if "done_logit" in told:
        said = told["done_logit"] > 0
        was = true["done"] > 0
        hits = float((said & was).sum())
        figures |= {"recall": hits / max(was.sum(), 1), "precision": hits / max(said.sum(), 1)}
    if "reward" in told:
        error = told["reward"] - true["reward"]
        figures["reward_error"] = float(np.sqrt(np.mean(error**2)))
        figures["reward_sd"] = float(true["reward"].std())
    if "value" in told:
        each = [advantages(agent, b, o["value"]) for b, o in zip(batches, outputs, strict=True)]
        value, came, a, now = (np.concatenate(parts) for parts in zip(*each, strict=True))
        figures["value_r2"] = r2(value, came)
        figures["advantage_r"] = correlation(a, came - value)
        figures["reward_r"] = correlation(now, came - value)
    return figures


def advantages(agent: Agent, batch: dict, value: np.ndarray) -> tuple[np.ndarray, ...]:
    """V, the return that came, A and the reward of the steps of an episode whose return is known, (n,) each.

    value (1, T): what M tells of the frames that the steps led to. The first step has no advantage: M tells no value
    of the first frame, before it has seen any.
    """
    value = value[0]
    reward = batch["reward"][0, 1:]
    done = batch["done"][0, 1:]
    a = advantage(reward, value, done, agent.config.mdnrnn.gamma)
    known = batch["value_mask"][0, :-1] > 0
    came = batch["value"][0, :-1]
    return value[:-1][known], came[known], a[known], reward[known]


def r2(told: np.ndarray, true: np.ndarray) -> float:
    """Share of the variance of `true` that `told` explains; 0: no better than the mean."""
    variance = np.var(true) if len(true) else 0
    return float(1 - np.mean((told - true) ** 2) / variance) if variance else np.nan


def correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson's; nan if one of them does not vary."""
    varies = len(x) > 1 and np.std(x) > 0 and np.std(y) > 0
    return float(np.corrcoef(x, y)[0, 1]) if varies else np.nan


def auc(odds: np.ndarray, came: np.ndarray) -> float:
    """How often the odds of what came are above those of what did not; nan if there is only one kind."""
    higher = np.sign(odds[came][:, None] - odds[~came])
    return float(0.5 + 0.5 * higher.mean()) if higher.size else np.nan


# -------------------------------------------------------------------------------------------- open and closed loop


class Moments(NamedTuple):
    """n moments of recorded episodes, the steps before and after them, and M's memory there."""

    latents: np.ndarray  # mu and logvar (2, n, Z)
    h: np.ndarray  # (n, H)
    c: np.ndarray
    before: np.ndarray  # (n,) mean reward of the steps before, BEFORE at most
    left: np.ndarray  # (n,) steps left in the episode
    ended: np.ndarray  # (n,) whether it ended, and was not cut
    steps: np.ndarray  # (L + 1, n) records from the moment on; zeros beyond the episode


def moments(agent: Agent, series: list[np.ndarray], n: int, seed: int = 0) -> Moments:
    """n moments drawn from all steps but the first of an episode, M led there from that episode's first frame."""
    rng = np.random.default_rng(seed)
    lengths = np.array([len(s) - 1 for s in series])
    which = rng.choice(len(series), n, p=(lengths - 1) / (lengths - 1).sum())
    at = rng.integers(1, lengths[which])
    longest = lengths.max() + max(HORIZONS) + 1
    padded = np.zeros((longest, len(series)), series[0].dtype)
    for i, s in enumerate(series):
        padded[: len(s), i] = s
    h, c = np.zeros((2, n, agent.config.mdnrnn.hidden), np.float32)
    state = agent.m.initial_state(len(series))
    for t in range(at.max()):
        restart = np.full(len(series), float(t == 0))
        state = agent.m.step(padded["mu"][t], padded["action"][t], state, restart)
        here = at == t + 1
        h[here] = state[0][which[here]]
        c[here] = state[1][which[here]]
    steps = padded[at + np.arange(max(HORIZONS) + 1)[:, None], which]
    reward = padded["reward"]
    before = [reward[max(0, t - BEFORE) : t, i].mean() for t, i in zip(at, which, strict=True)]
    ended = padded["done"][lengths[which] - 1, which]
    latents = np.stack([steps["mu"][0], steps["logvar"][0]])
    return Moments(latents, h, c, np.array(before), lengths[which] - at, ended, steps)


def replay(agent: Agent, m: Moments, act: Callable | None = None) -> tuple[np.ndarray, ...]:
    """DREAMS dreams from each moment under the recorded actions, or under `act`: features (n, F) -> actions (n, A).

    Dreams do not end here: rewards count by the odds that life goes on.

    Returns z (L, DREAMS, n, Z), and means over the dreams: the reward told so far, the odds of an end so far (L, n).
    """
    agent = replace(agent, memories=(m.latents, m.h, m.c))
    steps = max(HORIZONS)
    n = len(m.h)
    world = Dream(agent, n * DREAMS, horizon=steps, memories=1.0, ending=weighted)
    features, _ = world.reset(seed=np.arange(n * DREAMS))  # dream i begins in moment i % n
    z = []
    told = np.zeros((steps, n))
    ended = np.zeros((steps, n))
    for t in range(steps):
        action = np.tile(m.steps["action"][t], (DREAMS, 1)) if act is None else act(features)
        features, reward, *_ = world.step(action)
        z.append(features[:, : agent.config.vae.z_size].reshape(DREAMS, n, -1))
        told[t] = reward.reshape(DREAMS, n).mean(axis=0)
        ended[t] = 1 - world.survival.reshape(DREAMS, n).mean(axis=0)
    return np.stack(z), told.cumsum(axis=0), ended


def open_loop(agent: Agent, series: list[np.ndarray], closed=False, n=MOMENTS) -> list[dict]:
    """What M dreams under recorded actions beside what really happened, a row for every number of steps.

    n: moments that reach so far, or whose episode ended before. z: squared error per dim of the mean dream (less the
    dreams' own spread), of staying as it is, of the mean of all frames. reward: true, told, and how the told one
    correlates with the true over moments, beside the BEFORE steps' going on. end: the share that came, the mean of the
    odds told, and how often M tells an end that came from one that did not (AUC).
    closed: C acts in the dream, from the same moments; for episodes of C, where the record is the truth.
    """
    m = moments(agent, series, n)
    z, told, odds = replay(agent, m)
    if closed:
        _, told_c, odds_c = replay(agent, m, agent.controller())
    everything = np.concatenate([s["mu"][s["seen"]] for s in series]).mean(axis=0)
    true = m.steps["reward"].cumsum(axis=0)
    rows = []
    for k in HORIZONS:
        ended = m.ended & (m.left <= k)
        whole = (m.left >= k) | (ended & agent.config.mdnrnn.done_head)
        seen = m.steps["seen"][k]
        if whole.sum() < 2 or not seen.any():
            break
        mu = m.steps["mu"][k][seen]
        dreams = z[k - 1][:, seen]
        noise = dreams.var(axis=0, ddof=1).mean() / DREAMS
        row = {
            "steps": k,
            "n": int(whole.sum()),
            "z: M": float(np.mean((dreams.mean(axis=0) - mu) ** 2) - noise),
            "stays": float(np.mean((m.latents[0][seen] - mu) ** 2)),
            "mean": float(np.mean((everything - mu) ** 2)),
        }
        got = true[k - 1][whole]
        if agent.config.mdnrnn.reward_head or agent.config.mdnrnn.done_head:
            row |= {
                "reward: true": float(got.mean()),
                "told": float(told[k - 1][whole].mean()),
                "r": correlation(told[k - 1][whole], got),
                "r going on": correlation(m.before[whole], got),
            }
        if agent.config.mdnrnn.done_head:
            row |= {
                "end: true": float(ended[whole].mean()),
                "odds": float(odds[k - 1][whole].mean()),
                "AUC": auc(odds[k - 1][whole], ended[whole]),
            }
        if closed:
            row["C: told"] = float(told_c[k - 1][whole].mean())
            if agent.config.mdnrnn.done_head:
                row["C: end"] = float(odds_c[k - 1][whole].mean())
        rows.append(row)
    return rows


def lives(
    agent: Agent, episodes: int, taus: Sequence[float], real: dict[str, list[np.ndarray]]
) -> Iterator[tuple[str, str, np.ndarray, np.ndarray]]:
    """The same policies in reality and in dreams: where their lives differ, M is wrong about the world.

    The policies: the one that collects data; the first action held at -1, 0 and 1 (left, middle, right; the others
    at 0), or swinging between -1 and 1; and C. A dream can be right on M's own data and wrong where C leads it. What C
    does better than a policy that sees nothing, it owes to V and M.

    real: episodes of some of the policies, if already recorded.

    Yields policy, world, returns (E,), lengths (E,): reality first, then a dream at each temperature from first
    frames, as long as the task's episodes can be. A return is the sum of what M's reward head learns.
    """
    seeds = episode_seeds("check", episodes, 0, 98)
    first = np.eye(agent.m.action_size, dtype=np.float32)[0]
    policies = {"collecting": collecting_policy(agent.config)}
    for name, x in (("left", -1), ("middle", 0), ("right", 1)):
        policies[name] = partial(fixed_policy, x * first)
    policies["to and fro"] = partial(to_and_fro, first, steps=120 // agent.config.repeat)
    policies["C"] = None

    def actor(make_policy: Callable | None) -> Callable:
        if make_policy is None:
            return agent.controller()
        each = [make_policy(np.random.default_rng([0, i])) for i in range(episodes)]
        return lambda features: np.stack([policy() for policy in each])

    for name, policy in policies.items():
        played = real.get(name) or recorded(agent, policy, episodes)
        rewards = [episode["reward"][:-1] for episode in played]
        returns = np.array([r.sum() for r in rewards])
        yield name, "reality", returns, np.array([len(r) for r in rewards])
        for tau in taus:
            world = Dream.as_evolved(agent, episodes, tau=tau, horizon=0, memories=0)
            yield name, f"dream {tau:g}", *rollout(world, actor(policy), seeds)


# ------------------------------------------------------------------------------------ what [z h] knows; a picture


def probe(agent: Agent, episodes: int = 16) -> dict[str, tuple[float, float]]:
    """CarRacing's own facts read by linear probes off z and off [z h] -> R2 of both by name.

    Fitted on half of the episodes of C, judged on the other half; only on the road and along it, since an angle jumps
    from pi to -pi where the car has turned round.
    """
    c = agent.config
    world = RealWorld(agent, [make_env(c.task, repeat=c.repeat) for _ in range(episodes)])
    act = agent.controller()
    seen = []
    facts = []
    owner = []
    with closing(world):
        features, _ = world.reset(seed=episode_seeds("check", episodes, 0, 97))
        while len(world.rows):
            owner.append(world.rows)
            ones = np.ones((len(world.rows), 1))
            seen.append(np.concatenate([world.z, world.state[0], ones], axis=1))
            facts += [world.envs[row].game.truth() for row in world.rows]
            features, *_ = world.advance(act(features))
    seen = np.concatenate(seen)
    owner = np.concatenate(owner)
    names = list(facts[0])
    facts = np.array([list(f.values()) for f in facts])
    on_road = np.abs(facts[:, names.index("distance")]) < ROAD
    along = np.abs(facts[:, names.index("angle")]) < np.pi / 2
    mine = on_road & along & (owner % 2 == 0)
    other = on_road & along & (owner % 2 == 1)
    found = []
    z_and_1 = np.delete(seen, np.s_[c.vae.z_size : -1], axis=1)
    for x in (z_and_1, seen):
        normal = x[mine].T @ x[mine] + np.eye(x.shape[1])  # ridge
        told = x[other] @ np.linalg.solve(normal, x[mine].T @ facts[mine])
        found.append([r2(*column) for column in zip(told.T, facts[other].T, strict=True)])
    return dict(zip(names, zip(*found, strict=True), strict=True))


def draw(agent: Agent, path: Path, episodes: int = 8) -> None:
    """The worst of some real episodes of C as PNG: frames, V's view, and below them value and advantage."""
    from . import pictures

    if not agent.config.mdnrnn.value_head:
        raise SettingError("this M tells no values: train one with --set mdnrnn.value_head=true")
    episode = min(recorded(agent, None, episodes), key=lambda e: e["reward"].sum())
    series = in_latents(agent, episode)
    (batch,) = as_batches([series])
    value = agent.m.outputs(batch)["value"][0]  # of frames 1 ... T
    a = advantage(batch["reward"][0, 1:], value, batch["done"][0, 1:], agent.config.mdnrnn.gamma)
    steps = len(value)
    period = agent.config.repeat / TASKS[agent.config.task].fps  # seconds
    times = ((np.arange(FRAMES) + 0.5) / FRAMES * steps).astype(int)
    views = np.round(agent.v.decode(series["mu"][times]) * 255).astype(np.uint8)
    rows = {"reality": episode["frame"][times], "V's view": views}
    strip = pictures.strips(rows, [f"{t * period:.1f} s" for t in times])
    seconds = np.arange(1, steps + 1) * period
    values = {"value told": (seconds, value)}
    known = np.isfinite(series["value"][1:])
    if known.any():
        values["what came"] = seconds[known], series["value"][1:][known]
    rewards = {"reward": batch["reward"][0, 1:], f"advantage (means of {SMOOTH} steps)": a}
    for name, x in rewards.items():
        rewards[name] = seconds[1:], np.convolve(x, np.ones(SMOOTH) / SMOOTH, "same")
    panels = [("", "seconds", values)], [("", "seconds", rewards)]
    below = [pictures.curves(p, strip.get_width(), pictures.NAME) for p in panels]
    pictures.save(pictures.stacked(strip, *below), path)
