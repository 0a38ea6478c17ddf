"""The agent: V, M and C together, as a run folder or the package's own weights hold them.

config.json   vae.npz: params   mdnrnn.npz: params, starts   controller.npz: vector
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import config as configuration
from .config import Config
from .controller import Controller, controller_size
from .data import DataError, read_arrays, write_arrays, write_text
from .envs import ENVIRONMENTS
from .mdnrnn import MDNRNN
from .vae import VAE

SHIPPED = Path(__file__).parent / "weights"


@dataclass
class Agent:
    """What acts.

    Attributes:
        config: of the run.
        v, m: the models.
        vector: C's parameters, (n,).
        starts: mu and logvar of recorded first frames, (2, N, Z): where dreams begin.
    """

    config: Config
    v: VAE
    m: MDNRNN
    vector: np.ndarray
    starts: np.ndarray

    def controller(self, vectors: np.ndarray | None = None) -> Controller:
        """C with its own parameters, or with those of a population (P, n)."""
        bias = self.config.evolve.bias
        return Controller(self.vector if vectors is None else vectors, self.m.action_size, bias)


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
    """The folder of a run, or of the weights that come with the package under that name.

    Raises:
        DataError: it is neither.
    """
    for folder in (Path(run), SHIPPED / str(run)):
        if (folder / "config.json").is_file():
            return folder
    shipped = sorted(f.name for f in SHIPPED.glob("*") if f.is_dir())
    known = f"; weights come with the package for: {', '.join(shipped)}" if shipped else ""
    raise DataError(f"{run} is not a run folder (it has no config.json){known}")


def load_config(folder: Path) -> Config:
    """The configuration that made a run."""
    path = folder / "config.json"
    try:
        return configuration.from_json(path.read_text())
    except (ValueError, AttributeError) as error:
        raise DataError(f"{path} is damaged or of another version ({error})") from None


def load_vector(path: Path, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A vector of an .npz, of this shape and finite."""
    stored = read_arrays(path, name)[name]
    if stored.shape != shape:
        raise DataError(f"{path} has {name} of shape {stored.shape}, this configuration {shape}: is it of another run?")
    if not np.isfinite(stored).all():
        raise DataError(f"{path} holds values that are not numbers: delete it and repeat the command that made it")
    return stored


def load_models(folder: Path, config: Config) -> tuple[VAE, MDNRNN, np.ndarray]:
    """V, M and the starts of dreams (2, N, Z), from vae.npz and mdnrnn.npz."""
    v, m, path = new_vae(config), new_mdnrnn(config), folder / "mdnrnn.npz"
    v.params.flat[:] = load_vector(folder / "vae.npz", "params", v.params.flat.shape)
    m.params.flat[:] = load_vector(path, "params", m.params.flat.shape)
    n = read_arrays(path, "starts")["starts"].shape[1:2]
    return v, m, load_vector(path, "starts", (2, *n, config.vae.z_size)).astype(np.float32)


def load(run: str | Path) -> Agent:
    """The agent of a finished run, or one that comes with the package.

    Raises:
        DataError: no such run, not finished, or a damaged file.
    """
    folder = run_folder(run)
    config = load_config(folder)
    try:
        v, m, starts = load_models(folder, config)
        vector = load_vector(folder / "controller.npz", "vector", (vector_size(config),)).astype(np.float64)
    except FileNotFoundError as error:
        raise DataError(f"{error.filename} is missing: the run is not finished, `train` goes on with it") from None
    return Agent(config, v, m, vector, starts)


def export(run: str | Path, folder: Path) -> None:
    """Write a run's weights in float16, what `load` reads in a third of the space, beside its configuration.

    Raises:
        DataError: as `load`; the folder is taken; or weights are beyond the range of float16.
    """
    load(run)  # refuses what is damaged
    if folder.exists() and any(folder.iterdir()):
        raise DataError(f"{folder} is not empty: choose another folder")
    source = run_folder(run)
    for name in ("vae.npz", "mdnrnn.npz", "controller.npz"):
        arrays = read_arrays(source / name)
        halves = {k: x.astype(np.float16) if x.dtype.kind == "f" else x for k, x in arrays.items()}
        if not all(np.isfinite(x).all() for x in halves.values()):
            raise DataError(f"{source / name} holds weights too large for float16")
        write_arrays(folder / name, halves)
    write_text(folder / "config.json", json.dumps(configuration.flat(load_config(source)), indent=1) + "\n")
