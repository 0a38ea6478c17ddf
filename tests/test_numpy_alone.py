"""The algorithm runs where nothing but NumPy is installed: V, M and C, their training, and dreams."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NUMPY_ALONE = [
    "system.threads system.files system.process",
    "core.arrays core.ops core.conv core.lstm core.mixture core.adam core.gradcheck lab.cases",
    "models.cmaes models.vae models.mdnrnn models.controller models.agent settings.config",
    "settings.tasks worlds.world worlds.rollout training.episodes training.data training.loops training.parallel",
]
BLOCK = """
import sys

class OnlyNumPy:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in {*sys.stdlib_module_names, "numpy", "wm_numpy"}:
            raise ModuleNotFoundError(f"{name} is not NumPy", name=name)

sys.meta_path.insert(0, OnlyNumPy())
"""


def run(code: str) -> str:
    """What it prints in a Python that has NumPy and nothing else."""
    done = subprocess.run(
        [sys.executable, "-c", BLOCK + code], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_other_packages_are_out_of_reach():
    with pytest.raises(AssertionError, match="gymnasium is not NumPy"):
        run("import wm_numpy.envs.faces")


def test_every_file_of_the_algorithm_is_imported():
    names = " ".join(NUMPY_ALONE).split()
    assert run(f"import {', '.join(f'wm_numpy.{n}' for n in names)}; print('done')") == "done\n"


def test_the_examples_of_the_readme_run():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (checks,) = [block for block in blocks if "check_pair" in block]
    (dreams,) = [block for block in blocks if "Agent.load" in block]
    assert run(checks + dreams + "print(features.shape)").endswith("(16, 576)\n")


def test_v_m_and_c_learn(tmp_path):
    code = """
from pathlib import Path
import numpy as np
from wm_numpy.models.agent import Agent, new_mdnrnn, new_vae, theta_size
from wm_numpy.models.cmaes import CMAES
from wm_numpy.settings.config import resolve
from wm_numpy.worlds.rollout import dream_rollouts
from wm_numpy.training.loops import evolve, fit

config = resolve("doom", "smoke", ["vae.z_size=3", "evolve.horizon=5"])
rng = np.random.default_rng(0)
v, m = new_vae(config, rng), new_mdnrnn(config, rng)
frames, noise = rng.random((2, 64, 64, 3)), rng.standard_normal((2, 3))
windows = {name: rng.standard_normal((2, 4, 3)) for name in ("z", "z_next")}
windows |= {"action": np.zeros((2, 4, 1)), "done": np.zeros((2, 4))}
state, losses = Path(sys.argv[1]), []
report = lambda done, /, **figures: losses.append(figures)
fit(v.params, lambda update: v.loss_and_grad(frames, noise), 2, config.vae, state / "v.npz", report)
fit(m.params, lambda update: m.loss_and_grad(windows), 2, config.mdnrnn, state / "m.npz", report)
agent = Agent(config, v, m, np.zeros(theta_size(config)), np.zeros((2, 1, 3), np.float32))
fitness = lambda thetas, generation: dream_rollouts(agent, thetas, np.arange(2))[0]
evolve(CMAES(agent.theta, 0.1, 4), fitness, 2, state / "c.npz", report, None, 0)
print(len(losses))
"""
    assert run(code.replace("sys.argv[1]", repr(str(tmp_path)))) == "6\n"
