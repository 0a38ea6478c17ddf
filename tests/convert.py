"""Take a run folder of an older version to this one: python -m tests.convert FOLDER

Its config.json gets today's names of settings (`later_updates` is `later.mdnrnn.updates` now), its arrays theirs. What
today's settings cannot say is refused, and nothing is changed.
"""

import json
import sys
from pathlib import Path

import numpy as np

from wm_numpy.core.arrays import Params
from wm_numpy.models.agent import new_mdnrnn, new_vae
from wm_numpy.settings.config import flat, from_flat
from wm_numpy.system.files import write

GONE = {"later_size", "vae.warmup", "mdnrnn.warmup", "evolve.chunk", "evolve.worst"}
LATER = {"collect.later_episodes": "later.collect.episodes"}
LATER |= {"vae.later_updates": "later.vae.updates", "vae.later_rate": "later.vae.learning_rate"}
LATER |= {"mdnrnn.later_updates": "later.mdnrnn.updates"}
LATER |= {"mdnrnn.later_rate": "later.mdnrnn.learning_rate"}
LATER |= {"evolve.later_generations": "later.evolve.generations"}
LATER |= {"evolve.later_sigma": "later.evolve.sigma"}
REAL = ("generations", "episodes", "sigma", "check_every", "check_episodes")
ARRAYS = {"starts": "initial_latents", "vector": "theta"}


def settings(old: dict) -> dict:
    """config.json of an older version -> of this one; ValueError: it says what cannot be said any more."""
    new = {key: value for key, value in old.items() if key not in GONE}
    gamma = new.pop("mdnrnn.gamma", 0.95)
    if "vae.schedule" in new and gamma == 0.95:
        return flat(from_flat(new))  # the others have today's names
    if "vae.kl_floor" in new:
        new["vae.kl_tolerance"] = new.pop("vae.kl_floor")
    v_rounds = new.pop("vae.rounds", 0)
    later = {name: value for key, name in LATER.items() if (value := new.pop(key, 0))}
    real = {f"real.evolve.{name}": new.pop(f"evolve.real_{name}", 0) for name in REAL}
    if real["real.evolve.generations"]:
        real["real.evolve.episodes"] = real["real.evolve.episodes"] or 4
        later |= {name: value for name, value in real.items() if value}
    for section in ("vae", "mdnrnn"):
        cosine, decay = new.pop(f"{section}.cosine", False), new.pop(f"{section}.decay", 1)
        new[f"{section}.schedule"] = (
            "cosine" if cosine else "constant" if decay == 1 else str(decay)
        )
        updates = later.get(f"later.{section}.updates")
        if not cosine and decay != 1 and updates:  # it fell as far in a shorter round
            factor = decay ** (new[f"{section}.updates"] / updates)
            later[f"later.{section}.schedule"] = str(factor)
    for name, weight in (("done", 10.0), ("reward", 1.0), ("value", 1.0)):
        weight = new.get(f"mdnrnn.{name}_weight", weight)
        new[f"mdnrnn.{name}_weight"] = weight if new.pop(f"mdnrnn.{name}_head", False) else 0.0
    odds, weighted = new.pop("evolve.done_odds", 0), new.pop("evolve.survival", False)
    new["evolve.ending"] = "weighted" if weighted else "drawn" if odds else "cutoff"
    new["evolve.odds"] = odds or 1.0
    if v_rounds:
        later = {key: value for key, value in later.items() if not key.startswith("later.vae.")}
        later["later.vae.learning_rate"] = 0.0
    fair = new.pop("vae.fair", False) and not v_rounds and new["rounds"] > 1
    for name, lost in {
        "evolve.bootstrap": new.pop("evolve.bootstrap", False),
        "mdnrnn.clip": new.pop("mdnrnn.clip", 1) != 1,
        "mdnrnn.gamma": gamma != 0.95,
        "vae.fair": fair,
        "vae.rounds": v_rounds > 1,
    }.items():
        if lost:
            raise ValueError(f"{name} is no setting any more: use the version that made this run")
    return flat(from_flat(new | later))


def weights(old: np.ndarray, params: Params) -> np.ndarray:
    """`params` of older files, with even-sized kernels in squares of 2 x 2 taps, other axes in deconv1 and mixture."""
    new = Params(params.shapes, np.empty_like(old))
    for (name, w), was in zip(new.items(), Params(params.shapes, old).values(), strict=True):
        if name == "deconv1.w":
            w = w.transpose(3, 0, 1, 2)
        elif name == "mixture.w":
            w = w.T
        elif w.ndim == 4 and len(w) % 2 == 0:
            size, _, c, o = w.shape
            w = w.reshape(size // 2, 2, size // 2, 2, c, o).transpose(0, 2, 1, 3, 4, 5)
        w[...] = was.reshape(w.shape)
    return new.flat


def convert(folder: Path) -> None:
    """Rewrite a run folder, its finalists included."""
    for path in sorted(folder.rglob("config.json")):
        values = settings(json.loads(path.read_text()))
        config = from_flat(values)
        models = {"vae.npz": new_vae(config), "mdnrnn.npz": new_mdnrnn(config)}
        for file in sorted(path.parent.glob("*.npz")):
            if file.name.endswith(".state.npz"):
                continue
            arrays = {ARRAYS.get(k, k): x for k, x in np.load(file, allow_pickle=False).items()}
            if "params" in arrays:
                arrays["weights"] = weights(arrays.pop("params"), models[file.name].params)
                write(file, arrays)
            elif arrays.keys() != np.load(file, allow_pickle=False).keys():
                write(file, arrays)
        write(path, values)  # the last: what was killed can be repeated


if __name__ == "__main__":
    for name in sys.argv[1:]:
        convert(Path(name))
