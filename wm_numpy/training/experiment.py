"""The paper's procedure, round after round: every stage looks at what the run folder holds, so that a run resumes."""

from collections.abc import Iterable
from pathlib import Path

from ..models.agent import load_config, run_folder
from ..settings.config import SettingError, flat, from_flat
from ..system.files import locked, read_arrays, write
from . import stages
from .loops import RunError
from .runfolder import RunFolder

STAGES = tuple(stages.STAGES)


class Experiment(RunFolder):
    """A run folder, made if missing, and how it is filled."""

    def run(self, names: Iterable[str] = STAGES) -> None:
        """Run these stages of every round, as far as they are not complete; one process at a time."""
        with locked(self.folder):
            write(self.folder / "config.json", flat(self.config))
            if "collect" in names:
                self.require_space()
            rounds = range(1, self.config.rounds + 1)
            jobs = [(name, r) for r in rounds for name in names if stages.due(self.config, name, r)]
            done = [stages.complete(self, *job) for job in jobs]
            begin = done.index(False) if False in done else len(jobs)
            if 0 < begin < len(jobs):
                name, r = jobs[begin]
                place = f"{name}, round {r}" if len(rounds) > 1 else name
                self.log.line(f"{begin} of {len(jobs)} stages are done: resumes with {place}")
            for i, (name, r) in enumerate(jobs[begin:], begin + 1):
                if r > 1 and self.round_of("controller.npz") < r - 1:
                    return  # a round needs the agent of the one before
                if not stages.complete(self, name, r):
                    self.log.place = f"{i} of {len(jobs)}  "
                    stages.STAGES[name][0](self, r)


def branch(run: str | Path, folder: Path, settings: dict) -> Experiment:
    """A run with the V and M of another, to evolve and evaluate C under other settings.

    `run`: a run folder, or the name of shipped weights; `settings`: what differs, {"evolve.tau": 1.0, ...}. If they
    change M, it is trained again, on the series of that run.
    """
    parent = run_folder(run)
    before = load_config(parent).phase("first")
    fixed = {"rounds": 1, "evolve.finalists": 0}
    config = from_flat(flat(before) | fixed | settings)
    of_series = ("vae.", "collect.", "repeat", "mdnrnn.value_weight")
    for key in settings:  # refuse what would be written down, and ignored
        changed = key.startswith(of_series) and flat(config)[key] != flat(before)[key]
        if changed or key in fixed or key.startswith(("later.", "real.")):
            why = f"only C, or M on the series of {run}, is trained"
            raise SettingError(f"{key} cannot be changed here, where {why}: `train` another run")
    experiment = Experiment(config, folder)
    same_m = config.mdnrnn == before.mdnrnn
    for name in ["vae.npz", *["mdnrnn.npz"] * same_m]:
        if not (folder / name).exists():
            write(folder / name, read_arrays(parent / name))
    link = experiment.series(1)
    if not same_m and not link.exists():
        series = list(parent.glob("series/[0-9]*"))
        if not series:
            raise RunError(f"{parent} has no series to train M on: name a run folder of `train`")
        link.parent.mkdir(exist_ok=True)
        link.unlink(missing_ok=True)  # a link whose target is gone
        link.symlink_to(series[0].resolve())
    return experiment
