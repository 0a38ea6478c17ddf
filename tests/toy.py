"""A world that is learnt in seconds: a green square at the bottom must dodge the red ones that fall, with a tail.

Where a red one comes down has nothing to do with where the green one is, and all places are equally dangerous: at the
walls, too, because a red one may come down half, or all, out of sight. So every policy that does not look lives
equally long, whatever it does; who lives longer has seen what is coming.

    python -m tests.toy [SEED]  # the paper's procedure in this world, and what came of it
"""

import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from wm_numpy.models.agent import Agent
from wm_numpy.settings.config import Config, resolve
from wm_numpy.system.files import write
from wm_numpy.training.data import Recorder, Records, SeriesBatches, encoded, series_dtype
from wm_numpy.training.experiment import Experiment
from wm_numpy.worlds.rollout import rollout
from wm_numpy.worlds.world import RealWorld

SIDE = 16  # of a square, in pixels
FALL = 16  # pixels a step: the heights are 0, 16, 32 and 48, beside the green one
SPEED = 12  # pixels a step, at an action of 1 or -1
WALL, GROUND = 64 - SIDE, 3 * FALL
LIMIT = 60  # steps
# Mean life without eyes: every 4 steps, first at step 3, the square hits with this chance.
BLIND = 4 / (2 * SIDE / (WALL + 2 * SIDE)) - 1

# An action of one number and an end to be foreseen: to the settings this is Doom, only smaller.
SETTINGS = """
    collect.episodes=200
    vae.z_size=8 vae.start=he vae.kl_weight=0.1
    vae.batch=16 vae.updates=120 vae.learning_rate=1e-3 vae.schedule=cosine
    mdnrnn.hidden=48 mdnrnn.window=32 mdnrnn.done_weight=1
    mdnrnn.batch=16 mdnrnn.updates=500 mdnrnn.learning_rate=5e-3 mdnrnn.schedule=cosine
    evolve.features=zh evolve.bias=true evolve.tau=1
    evolve.horizon=30 evolve.ending=weighted
    evolve.population=16 evolve.episodes=16 evolve.generations=20
    evolve.sigma=0.5 evolve.check_every=0"""


class Falling:
    """A reward of 1 for every step, until a red square hits the green one. The action (1,) moves it left or right."""

    shows_end = True  # the frame after the end is a frame like others

    def reset(self, *, seed: int):
        """-> frame (64, 64, 3) uint8, {}."""
        self.rng = np.random.default_rng(seed)
        self.green = self.rng.uniform(0, WALL)
        self.steps = 0
        self._drop()
        return self._frame(), {}

    def step(self, action: np.ndarray):
        """-> frame, reward, terminated, truncated, {}."""
        self.steps += 1
        self.green = float(np.clip(self.green + SPEED * action[0], 0, WALL))
        if self.height == GROUND:
            self._drop()
        else:
            self.height += FALL
        hit = self.height == GROUND and abs(self.green - self.red) < SIDE
        return self._frame(), 1.0, hit, self.steps == LIMIT and not hit, {}

    def _drop(self) -> None:
        self.red = self.rng.uniform(-SIDE, WALL + SIDE)
        self.height = 0

    def _frame(self) -> np.ndarray:
        frame = np.full((64, 64, 3), 128, np.uint8)
        red, green = round(self.red), round(self.green)
        frame[: self.height + SIDE, max(0, red) : max(0, red + SIDE)] = 255, 0, 0
        frame[GROUND:, green : green + SIDE] = 0, 255, 0
        return frame

    @property
    def unwrapped(self):
        """What is below wrappers: itself."""
        return self


def configuration(seed: int) -> Config:
    """Sizes that fit this world."""
    return resolve("doom", "paper", SETTINGS.split(), seed)


def collect(folder: Path, episodes: int, seed: int) -> None:
    """Record episodes of random play."""
    rng = np.random.default_rng([seed, episodes])
    env = Recorder(Falling())
    env.keep = True
    for i in range(episodes):
        env.reset(seed=int(rng.integers(2**31)))
        over = False
        while not over:
            if not env._steps or rng.random() < 0.3:  # else the last action goes on
                action = rng.uniform(-1, 1, 1).astype(np.float32)
            _, _, terminated, truncated, _ = env.step(action)
            over = terminated or truncated
        env.save(folder / f"{i:06d}.npy")


def learn(folder: Path, seed: int) -> Agent:
    """The paper's procedure in a run folder: random episodes, V, their series, M, and C in M's dream."""
    experiment = Experiment(configuration(seed), folder)
    collect(folder / "episodes", 200, seed)
    experiment.run(["vae", "encode", "mdnrnn", "evolve"])
    return Agent.load(folder)


def learn_shuffled(folder: Path, agent: Agent, parent: Path) -> Agent:
    """The same V and C, and an M that learns from the parent's series with their moments in random order."""
    experiment = Experiment(agent.config, folder)
    write(folder / "vae.npz", {"weights": agent.v.params.flat, "round": np.array(1)})
    _shuffle(parent / "series" / "1", folder / "series" / "1")
    experiment.run(["mdnrnn"])
    return Agent.load(folder, theta=agent.theta)


def held_out(agent: Agent, folder: Path, shuffled: bool = False) -> dict[str, np.ndarray]:
    """A batch for M of episodes that it never saw; shuffled: V's view of their moments in random order."""
    collect(folder / "episodes", 60, seed=agent.config.seed + 1)
    dtype = series_dtype(agent.config.vae.z_size, 1)
    for path in sorted((folder / "episodes").iterdir()):
        write(folder / "series" / path.name, encoded(np.load(path), dtype, agent.v.encode))
    if shuffled:
        _shuffle(folder / "series", folder / "shuffled")
    series = Records(folder / ("shuffled" if shuffled else "series"), dtype)
    return SeriesBatches(series, batch=32, window=32, seed=(0,))(0)


def _shuffle(source: Path, target: Path) -> None:
    """Series whose mu and logvar belong to other moments of the same episode; actions and ends stay in order."""
    rng = np.random.default_rng(0)
    for path in sorted(source.iterdir()):
        series = np.load(path)
        order = rng.permutation(len(series))
        for name in ("mu", "logvar"):
            series[name] = series[name][order]
        write(target / path.name, series)


def knowledge(agent: Agent, batch: dict[str, np.ndarray]) -> tuple[float, float]:
    """Nats per latent dim of the next z: by M, and by one Gaussian per dim, fitted to these very z."""
    z = batch["z_next"].reshape(-1, agent.config.vae.z_size)
    gaussian = np.mean(np.log(z.std(axis=0)) + 0.5 * np.log(2 * np.pi * np.e))
    return agent.m.loss_and_grad(batch)[0]["z"], float(gaussian)


def lives(agent: Agent, act: Callable) -> np.ndarray:
    """How long 50 episodes of the real toy last (50,); act: features (50, F) -> actions (50, 1)."""
    world = RealWorld(agent, [Falling() for _ in range(50)])
    return rollout(world, act, seeds=np.arange(1000, 1050))[1]


def policies(agent: Agent) -> dict[str, Callable]:
    """C, C that is shown what another episode shows, and random actions."""
    rng, controller = np.random.default_rng(0), agent.controller()
    return {
        "C": controller,
        "C, shown another's": lambda features: controller(rng.permutation(features)),
        "random": lambda features: rng.uniform(-1, 1, (len(features), 1)),
    }


def main() -> None:
    """Learn, and print what the tests look at."""
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    with TemporaryDirectory() as name:
        folder = Path(name)
        agent = learn(folder / "run", seed)
        shuffled = learn_shuffled(folder / "control", agent, folder / "run")
        m, gaussian = knowledge(agent, held_out(agent, folder))
        print(f"nats of the next z: M {m:.2f}, a Gaussian {gaussian:.2f}")
        batch = held_out(agent, folder, shuffled=True)
        print("in random order: M {:.2f}, a Gaussian {:.2f}".format(*knowledge(shuffled, batch)))
        for policy, act in policies(agent).items():
            lengths = lives(agent, act)
            error = lengths.std(ddof=1) / np.sqrt(len(lengths))
            print(f"{policy:20} lives {lengths.mean():5.1f} +- {error:.1f} steps (standard error)")
        print(f"{'whoever is blind':20} lives {BLIND:5.1f}")


if __name__ == "__main__":
    main()
