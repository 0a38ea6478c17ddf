"""The paper's procedure, round after round: every stage looks at what the run folder holds, so that a run resumes."""

from collections.abc import Iterable
from pathlib import Path

from ..core.files import alone, read_arrays, write
from ..models.agent import load_config, run_folder
from ..settings.config import SettingError, flat, from_flat
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
            for round_ in range(1, self.config.rounds + 1):
                for name in names:
                    stage, result = stages.STAGES[name]
                    complete = result and self.round_of(result) >= round_
                    due = name not in stages.LAST or round_ == self.config.rounds
                    if due and not complete:
                        stage(self, round_)
                if self.round_of("controller.npz") < round_:
                    return  # the next round needs this one's agent


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
