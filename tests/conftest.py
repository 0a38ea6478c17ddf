"""What the tests share: tiny configurations, tiny agents, and one finished tiny run per task."""

import os
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # so that plain `pytest` finds the package and run.py from any folder

import wm_numpy  # noqa: E402, F401, I001  before numpy: it sets the threads of BLAS

import numpy as np  # noqa: E402
import pytest  # noqa: E402

from wm_numpy.system import threads  # noqa: E402
from wm_numpy.models import agent as agents  # noqa: E402
from wm_numpy.settings import config  # noqa: E402
from wm_numpy.models.agent import Agent  # noqa: E402
from wm_numpy.training.experiment import STAGES, Experiment  # noqa: E402

os.environ["PYGAME_HIDE_SUPPORT_PROMPT"] = "1"

TINY = [
    "collect.episodes=2", "vae.updates=3", "vae.batch=12", "mdnrnn.hidden=8", "mdnrnn.mixtures=2",
    "mdnrnn.updates=6", "mdnrnn.batch=4", "mdnrnn.window=16", "evolve.population=6",
    "evolve.generations=3", "evolve.horizon=20", "evolve.check_every=0", "evaluate.episodes=2",
]  # fmt: skip


def tiny_config(task: str = "doom", *settings: str) -> config.Config:
    """Every stage in about a second."""
    return config.resolve(task, "smoke", [*TINY, "repeat=1", *settings])


def tiny_agent(task: str = "doom", *settings: str, seed: int = 0) -> Agent:
    """An agent with random weights."""
    rng, c = np.random.default_rng(seed), tiny_config(task, "vae.z_size=6", *settings)
    m = agents.new_mdnrnn(c, rng)
    starts = rng.standard_normal((2, 5, 6)).astype(np.float32)
    return Agent(c, agents.new_vae(c, rng), m, rng.standard_normal(agents.theta_size(c)), starts)


@pytest.fixture(scope="session")
def doom_run(tmp_path_factory) -> Path:
    """The folder of a finished run; not to be changed, see `copy_of`."""
    folder = tmp_path_factory.mktemp("runs") / "doom"
    Experiment(tiny_config(), folder).run()
    return folder


@pytest.fixture(scope="session")
def car_run(tmp_path_factory) -> Path:
    """The folder of a run that is finished but for its evaluation; not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / "carracing"
    Experiment(tiny_config("carracing", "collect.episodes=1"), folder).run(STAGES[:-1])
    return folder


@pytest.fixture
def copy_of(tmp_path):
    """A copy of a run folder, to be changed."""
    return lambda folder: Path(shutil.copytree(folder, tmp_path / "copy"))


@pytest.fixture
def workers():
    """Sets the number of workers for one test."""
    before = threads.workers()
    yield threads.set_workers
    threads.set_workers(before)
