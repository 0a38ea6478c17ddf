"""Run folders of older versions: refused with a sentence, and read once they are converted."""

import json

import numpy as np
import pytest

from tests import convert
from wm_numpy.models.agent import Agent
from wm_numpy.settings.config import flat, resolve
from wm_numpy.system import files
from wm_numpy.system.files import DataError

OLD = {"task": "carracing", "preset": "laptop", "seed": 1, "rounds": 23, "repeat": 4}
OLD |= {"vae.updates": 4000, "vae.decay": 0.9, "vae.cosine": True, "vae.rounds": 1}
OLD |= {"vae.later_updates": 350, "vae.later_rate": 3e-4, "vae.fair": True, "vae.kl_floor": 1.0}
OLD |= {"mdnrnn.reward_head": True, "mdnrnn.value_head": True, "mdnrnn.done_head": False}
OLD |= {"mdnrnn.done_weight": 10.0, "mdnrnn.reward_weight": 0.25, "mdnrnn.later_updates": 750}
OLD |= {"evolve.survival": True, "evolve.done_odds": 3.0, "evolve.later_sigma": 0.05}
OLD |= {"evolve.real_generations": 20, "evolve.real_sigma": 0.03, "evolve.bootstrap": False}


def test_settings_of_an_older_version():
    new = convert.settings(OLD)
    assert new["vae.schedule"] == "cosine" and new["mdnrnn.schedule"] == "constant"
    assert new["vae.kl_tolerance"] == 1 and new["later.vae.learning_rate"] == 0
    weights = [new[f"mdnrnn.{head}_weight"] for head in ("done", "reward", "value")]
    assert weights == [0, 0.25, 1] and new["later.mdnrnn.updates"] == 750
    assert (new["evolve.ending"], new["evolve.odds"]) == ("weighted", 3)
    phases = {k: v for k, v in new.items() if k.startswith("real.")}
    assert phases == {
        "real.evolve.generations": 20, "real.evolve.episodes": 4, "real.evolve.sigma": 0.03
    }  # fmt: skip
    assert "later.vae.updates" not in new and new["later.evolve.sigma"] == 0.05
    assert convert.settings({**OLD, "evolve.real_generations": 0}).keys() == new.keys() - phases


@pytest.mark.parametrize(
    "lost",
    [{"evolve.bootstrap": True}, {"mdnrnn.clip": 2}, {"vae.rounds": 2}, {"mdnrnn.gamma": 0.9}],
)
def test_what_cannot_be_said_any_more_is_refused(lost):
    with pytest.raises(ValueError, match=f"{next(iter(lost))} is no setting any more"):
        convert.settings(OLD | lost)


def test_settings_with_todays_names_are_kept():
    now = flat(resolve("carracing", "laptop"))
    assert convert.settings(now | {"mdnrnn.gamma": 0.95}) == now == convert.settings(now)
    with pytest.raises(ValueError, match="mdnrnn.gamma is no setting any more"):
        convert.settings(now | {"mdnrnn.gamma": 0.9})


def test_an_older_folder(doom_run, copy_of):
    folder = copy_of(doom_run)
    agent = Agent.load(folder)
    path = folder / "config.json"
    values = json.loads(path.read_text())
    older = {k: v for k, v in values.items() if not k.endswith((".schedule", ".ending", ".odds"))}
    older |= {"mdnrnn.done_head": True, "mdnrnn.decay": 0.99999, "vae.cosine": False}
    files.write(path, older)
    arrays = files.read_arrays(folder / "controller.npz")
    arrays["vector"] = arrays.pop("theta")
    files.write(folder / "controller.npz", arrays)
    with pytest.raises(DataError, match="of another version.*tests.convert"):
        Agent.load(folder)
    convert.convert(folder)
    assert json.loads(path.read_text()) == values
    assert np.array_equal(Agent.load(folder).theta, agent.theta)
    assert resolve("doom", "smoke").mdnrnn.schedule == "0.99999"
