"""The agent: V, M and C together, in a run folder or among the package's own weights.

config.json, and world.json if the world is one's own; vae.npz: weights; mdnrnn.npz: weights, initial_latents, memory_z,
memory_h, memory_c; controller.npz: theta
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..core.arrays import Params
from ..settings.config import Config, flat, from_flat
from ..settings.tasks import bring, find, kept
from ..system.files import DataError, read_arrays, write
from .controller import Controller, controller_size
from .mdnrnn import MDNRNN
from .vae import VAE

SHIPPED = Path(__file__).parents[1] / "weights"


@dataclass
class Agent:
    """V, M and C, and the moments that its dreams begin with."""

    config: Config  # of the last round: no phases
    v: VAE
    m: MDNRNN
    theta: np.ndarray  # C's parameters, (n,)
    initial_latents: np.ndarray  # mu and logvar of recorded first frames, (2, N, Z)
    # recorded moments: (mu, logvar) (2, N, Z), h (N, H), c (N, H)
    memories: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None

    @classmethod
    def load(cls, run: str | Path, theta: np.ndarray | None = None, adapted=True) -> "Agent":
        """The agent of a run folder, or of the weights of that name that come with the package.

        theta: a C to use instead of its own. adapted: C after it also evolved in the real environment, if it did.
        DataError: there is no such run, or it is not finished, or damaged.
        """
        folder = run_folder(run)
        config = load_config(folder)
        v = new_vae(config)
        m = new_mdnrnn(config)
        z = config.vae.z_size
        h = config.mdnrnn.hidden
        try:
            sight = read_weights(folder / "vae.npz", v.params)
            saved = read_weights(folder / "mdnrnn.npz", m.params, initial_latents=(2, -1, z))
            if theta is None:
                path = folder / "adapted.npz"
                if not (adapted and path.exists()):
                    path = folder / "controller.npz"
                control = read_arrays(path, theta=(theta_size(config),))
                theta = control["theta"]
                rounds = [int(arrays.get("round", 1)) for arrays in (sight, saved, control)]
                if config.rounds > 1 and len(set(rounds)) > 1:
                    fault = "V, M and C are of rounds {}, {} and {}".format(*rounds)
                    raise DataError(f"{folder} is mid-round, {fault}: `train` resumes it")
        except FileNotFoundError as error:
            fault = f"{error.filename} is missing, the run is not finished"
            raise DataError(f"{fault}: `train` resumes it") from None
        memories = None
        if "memory_z" in saved:
            shapes = {"memory_z": (2, -1, z), "memory_h": (-1, h), "memory_c": (-1, h)}
            arrays = read_arrays(folder / "mdnrnn.npz", **shapes)
            memories = tuple(arrays[name].astype(np.float32) for name in shapes)
        latents = saved["initial_latents"].astype(np.float32)
        return cls(config.phase(config.rounds), v, m, theta.astype(np.float64), latents, memories)

    def controller(self, thetas: np.ndarray | None = None) -> Controller:
        """C with its own parameters, or with those of a population (P, n)."""
        thetas = self.theta if thetas is None else thetas
        return Controller(thetas, _sizes(self.config), self.config.evolve.bias)


def new_vae(config: Config, rng: np.random.Generator | None = None) -> VAE:
    """V of a configuration, with weights drawn from rng, or zeros."""
    return VAE(config.vae, rng)


def new_mdnrnn(config: Config, rng: np.random.Generator | None = None) -> MDNRNN:
    """M of a configuration, with weights drawn from rng, or zeros."""
    return MDNRNN(config.mdnrnn, config.vae.z_size, find(config.task).actions, rng)


def feature_size(config: Config) -> int:
    """F, the size of what C sees: z, [z h] or [z c h]."""
    return config.vae.z_size + (len(config.evolve.features) - 1) * config.mdnrnn.hidden


def theta_size(config: Config) -> int:
    """Parameters of C."""
    return controller_size(_sizes(config), config.evolve.bias)


def _sizes(config: Config) -> list[int]:
    """The sizes of C's layers: features, hidden units if any, action."""
    hidden = [config.evolve.hidden] if config.evolve.hidden else []
    return [feature_size(config), *hidden, find(config.task).actions]


def run_folder(run: str | Path) -> Path:
    """The folder of a run, or of weights of that name that come with the package; DataError: neither exists."""
    for folder in (Path(run), SHIPPED / str(run)):
        if (folder / "config.json").is_file():
            return folder
    shipped = ", ".join(sorted(f.parent.name for f in SHIPPED.glob("*/config.json")))
    fault = f"{run} is not a run folder: it has no config.json"
    raise DataError(f"{fault}; weights come with the package for {shipped}")


def load_config(folder: Path) -> Config:
    """The configuration that made a run, and what that keeps of its world."""
    path = folder / "config.json"
    try:
        config = from_flat(json.loads(path.read_text()))
        if (folder / "world.json").exists():
            path = folder / "world.json"
            bring(config.task, json.loads(path.read_text()))
        return config
    except (ValueError, AttributeError) as error:
        mend = "`python -m tests.convert` takes a folder of an older version to this one"
        raise DataError(f"{path} is damaged or of another version ({error}): {mend}") from None


def save_config(folder: Path, config: Config) -> None:
    """Write what load_config reads."""
    if facts := kept(find(config.task)):
        write(folder / "world.json", facts)
    write(folder / "config.json", flat(config))


def read_weights(path: Path, params: Params, **shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Read the weights of vae.npz or mdnrnn.npz into params -> all arrays of the file; shapes as in read_arrays."""
    arrays = read_arrays(path, weights=params.flat.shape, **shapes)
    params.flat[:] = arrays["weights"]
    return arrays
