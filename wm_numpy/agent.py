"""The agent: V, M and C together, as a run folder or the package's own weights hold them.

config.json   vae.npz: params   mdnrnn.npz: params, starts   controller.npz: vector
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .config import Config, flat, from_flat
from .controller import Controller, controller_size
from .data import DataError, read_arrays, write
from .envs import ENVIRONMENTS
from .mdnrnn import MDNRNN
from .vae import VAE

SHIPPED = Path(__file__).parent / "weights"
RENAMED = {"vae.kl_floor": "vae.kl_tolerance"}  # settings of older run folders


@dataclass
class Agent:
    """What acts."""

    config: Config
    v: VAE
    m: MDNRNN
    vector: np.ndarray  # C's parameters, (n,)
    starts: np.ndarray  # mu and logvar of recorded first frames, (2, N, Z): where dreams begin

    def controller(self, vectors: np.ndarray | None = None) -> Controller:
        """C with its own parameters, or with those of a population (P, n)."""
        vectors = self.vector if vectors is None else vectors
        return Controller(vectors, self.m.action_size, self.config.evolve.bias)


def new_vae(config: Config, rng: np.random.Generator | None = None) -> VAE:
    """V of a configuration; its weights are drawn from rng, or zero."""
    return VAE(config.vae, rng)


def new_mdnrnn(config: Config, rng: np.random.Generator | None = None) -> MDNRNN:
    """M of a configuration; its weights are drawn from rng, or zero."""
    return MDNRNN(config.mdnrnn, config.vae.z_size, ENVIRONMENTS[config.task].action_size, rng)


def feature_size(config: Config) -> int:
    """F, what C sees: z, [z h] or [z c h]."""
    return config.vae.z_size + (len(config.evolve.features) - 1) * config.mdnrnn.hidden


def vector_size(config: Config) -> int:
    """Parameters of C."""
    return controller_size(feature_size(config), ENVIRONMENTS[config.task].action_size, config.evolve.bias)


def run_folder(run: str | Path) -> Path:
    """The folder of a run, or of the weights that come with the package under that name; DataError: it is neither."""
    for folder in (Path(run), SHIPPED / str(run)):
        if (folder / "config.json").is_file():
            return folder
    shipped = ", ".join(sorted(f.parent.name for f in SHIPPED.glob("*/config.json")))
    raise DataError(f"{run} is not a run folder (it has no config.json); weights come with the package for: {shipped}")


def load_config(folder: Path) -> Config:
    """The configuration that made a run."""
    path = folder / "config.json"
    try:
        values = json.loads(path.read_text())
        return from_flat({RENAMED.get(key, key): value for key, value in values.items()})
    except (ValueError, AttributeError) as error:
        raise DataError(f"{path} is damaged or of another version ({error})") from None


def load(run: str | Path, vector: np.ndarray | None = None) -> Agent:
    """The agent of a run, its C replaced by `vector` where given; DataError: no such run, not finished, damaged."""
    folder = run_folder(run)
    config = load_config(folder)
    v, m = new_vae(config), new_mdnrnn(config)
    try:
        v.params.flat[:] = read_arrays(folder / "vae.npz", params=v.params.flat.shape)["params"]
        saved = read_arrays(folder / "mdnrnn.npz", params=m.params.flat.shape, starts=(2, -1, config.vae.z_size))
        m.params.flat[:] = saved["params"]
        if vector is None:
            vector = read_arrays(folder / "controller.npz", vector=(vector_size(config),))["vector"]
    except FileNotFoundError as error:
        raise DataError(f"{error.filename} is missing: the run is not finished, `train` goes on with it") from None
    return Agent(config, v, m, vector.astype(np.float64), saved["starts"].astype(np.float32))


def export(run: str | Path, folder: Path) -> None:
    """Write a run's weights in float16, what `load` reads in a third of the space, beside its configuration."""
    config, source = load(run).config, run_folder(run)  # `load` refuses what is damaged
    if folder.exists() and any(folder.iterdir()):
        raise DataError(f"{folder} is not empty: choose another folder")
    for name in ("vae.npz", "mdnrnn.npz", "controller.npz"):
        arrays = read_arrays(source / name)
        halves = {k: x.astype(np.float16) if x.dtype.kind == "f" else x for k, x in arrays.items()}
        if not all(np.isfinite(x).all() for x in halves.values()):
            raise DataError(f"{source / name} holds weights too large for float16")
        write(folder / name, halves)
    write(folder / "config.json", flat(config))
