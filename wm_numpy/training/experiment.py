"""The paper's procedure, round after round: every stage looks at what the run folder holds, so that a run resumes."""

from collections.abc import Iterable
from pathlib import Path

from ..models.agent import load_config, run_folder
from ..settings.config import SettingError, flat, from_flat
from ..system.files import alone, read_arrays, write
from . import stages
from .loops import RunError
from .runfolder import RunFolder

STAGES = tuple(stages.STAGES)


class Experiment(RunFolder):
    """A run folder, made if missing, and how it is filled."""

    def run(self, names: Iterable[str] = STAGES) -> None:
        """Run these stages of every round that are not complete yet; one process at a time."""
        with alone(self.folder):
            write(self.folder / "config.json", flat(self.config))
            if "collect" in names:
                self.require_space()
            rounds = range(1, self.config.rounds + 1)
            jobs = [(name, r) for r in rounds for name in names if stages.due(self.config, name, r)]
            left = [not stages.complete(self, *job) for job in jobs]
            done = left.index(True) if any(left) else len(jobs)
            told = [f"{name}, round {r}" if len(rounds) > 1 else name for name, r in jobs]
            for _, (name, r) in zip(self.log.stages(told, done), jobs[done:], strict=True):
                if r > 1 and self.round_of("controller.npz") < r - 1:
                    return  # a round needs the agent of the one before
                if not stages.complete(self, name, r):
                    stages.STAGES[name][0](self, r)


def branch(run: str | Path, folder: Path, settings: dict) -> Experiment:
    """A run with the V and M of another, to evolve and evaluate C under other settings.

    `run`: what agent.run_folder takes; `settings`: what differs, {"evolve.tau": 1.0, ...}. If they change M, it is
    trained again, on the series of that run.
    """
    parent = run_folder(run)
    before = load_config(parent).phase("first")
    alone = {"rounds": 1, "evolve.finalists": 0}
    config = from_flat(flat(before) | alone | settings)
    of_series = ("vae.", "collect.", "repeat", "mdnrnn.gamma", "mdnrnn.value_weight")
    for key in settings:  # refuse what would be written down, and ignored
        changed = key.startswith(of_series) and flat(config)[key] != flat(before)[key]
        if changed or key in alone or key.startswith(("later.", "real.")):
            why = f"only C, or M on the series of {run}, is trained"
            raise SettingError(f"{key} cannot be changed here, where {why}: `train` another run")
    experiment = Experiment(config, folder)
    shared = ["vae.npz", "mdnrnn.npz"] if config.mdnrnn == before.mdnrnn else ["vae.npz"]
    for name in shared:
        if not (folder / name).exists():
            write(folder / name, read_arrays(parent / name))
    link = experiment.series(1)
    if len(shared) == 1 and not link.exists():
        series = list(parent.glob("series/[0-9]*"))
        if not series:
            raise RunError(f"{parent} has no series to train M on: name a run folder of `train`")
        link.parent.mkdir(exist_ok=True)
        link.unlink(missing_ok=True)  # to series that are gone
        link.symlink_to(series[0].resolve())
    return experiment
