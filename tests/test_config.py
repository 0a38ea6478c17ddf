"""Settings: what is refused, what comes back from a file, and the paper's numbers."""

import dataclasses
import json

import pytest

from wm_numpy.models import agent
from wm_numpy.settings import config
from wm_numpy.settings.config import SettingError, flat, from_flat, resolve
from wm_numpy.settings.tasks import known


@pytest.mark.parametrize(
    "task, preset, settings, named",
    [
        ("chess", "quick", [], "'chess'"),
        ("doom", "huge", [], "'huge'"),
        ("doom", "quick", ["evolve.tua=1"], "'evolve.tua'"),
        ("doom", "quick", ["evolve=1"], "'evolve'"),
        ("doom", "quick", ["evolve.tau.x=1"], "'evolve.tau.x'"),
        ("doom", "quick", ["tau=1"], "'tau'"),
        ("doom", "quick", ["=1"], "''"),
        ("doom", "quick", ["evolve.tau"], "KEY=VALUE"),
        ("doom", "quick", ["seed=1"], "seed"),
        ("doom", "quick", ["preset=smoke"], "preset"),
        ("doom", "quick", ["evolve.tau=warm"], "takes float"),
        ("doom", "quick", ["rounds=1.5"], "takes int"),
        ("doom", "quick", ["rounds="], "takes int"),
        ("doom", "quick", ["evolve.bias=yes"], "takes bool"),
        ("doom", "quick", ["evolve.world=mars"], "real, dream"),
        ("doom", "quick", ["rounds=0"], "out of range"),
        ("doom", "quick", ["mdnrnn.schedule=1.1"], "0 to 1"),
        ("doom", "quick", ["mdnrnn.schedule=slow"], "one of constant, cosine, 0 to 1"),
        ("doom", "quick", ["later.evolve.tua=1"], "did you mean later.evolve.tau?"),
        ("doom", "quick", ["first.evolve.tau=1"], "'first.evolve.tau'"),
        ("doom", "quick", ["later.seed=1"], "'later.seed'"),
        ("doom", "quick", ["later.evolve.tau=-1"], "later.evolve.tau = -1.0 is out of range"),
        ("doom", "quick", ["later.vae.z_size=9"], "vae.z_size is the same in all rounds"),
        ("doom", "quick", ["later.mdnrnn.hidden=9"], "mdnrnn.hidden is the same in all rounds"),
        ("doom", "quick", ["later.evolve.features=z"], "evolve.features is the same"),
        ("doom", "quick", ["later.repeat=2"], "repeat is the same in all rounds"),
        ("doom", "quick", ["real.repeat=2"], "C alone evolves"),
        ("doom", "quick", ["real.vae.updates=2"], "C alone evolves"),
        ("doom", "quick", ["real.evolve.tau=2"], "C alone evolves"),
        ("doom", "quick", ["real.evolve.sigma=0"], "real.evolve.sigma = 0.0 is out of range"),
        ("doom", "quick", ["later.mdnrnn.done_weight=0"], "later.mdnrnn.done_weight"),
        ("doom", "quick", ["evolve.tau=nan"], "out of range"),
        ("doom", "quick", ["evolve.tau=inf"], "out of range"),
        ("doom", "quick", ["evolve.tau=-1"], "out of range"),
    ],
)
def test_what_cannot_be_is_refused_and_named(task, preset, settings, named):
    with pytest.raises(SettingError) as error:
        resolve(task, preset, settings)
    assert named in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("setting", ["evolve.check_every=0", "later.vae.learning_rate=1e-4"])
def test_no_finalists_without_checks_or_with_a_v_that_learns_on(setting):
    with pytest.raises(SettingError, match="finalists=0"):
        resolve("carracing", "laptop", [setting])
    assert resolve("carracing", "laptop", [setting, "evolve.finalists=0"]).evolve.finalists == 0


@pytest.mark.parametrize("seed", [-1, 2**31])
def test_seed_has_a_range(seed):
    with pytest.raises(SettingError, match="seed"):
        resolve("doom", seed=seed)


def test_settings_are_parsed_as_their_field():
    settings = ["evolve.tau=2", "evolve.bias=true", "rounds=3", "evolve.features=z"]
    c = resolve("doom", "smoke", settings, seed=7)
    assert (c.evolve.tau, c.evolve.bias, c.evolve.features) == (2.0, True, "z")
    assert (c.rounds, c.seed) == (3, 7)
    assert type(c.evolve.tau) is float and c.preset == "smoke" and c.task == "doom"
    assert resolve("doom", "smoke", ["rounds=2", "rounds=3"]).rounds == 3  # the last one counts
    with pytest.raises(dataclasses.FrozenInstanceError):
        c.rounds = 4


ALL = [(task, preset) for task in known() for preset in config.preset_names(task)]


@pytest.mark.parametrize("task, preset", ALL)
def test_round_trip(task, preset):
    settings = ["evolve.tau=0.123456789", "evolve.bias=false", "later.vae.learning_rate=0"]
    settings += ["rounds=3", "later.mdnrnn.updates=7", "real.evolve.generations=2"]
    c = resolve(task, preset, settings, seed=5)
    assert flat(c)["later.mdnrnn.updates"] == 7
    assert from_flat(flat(c)) == c and from_flat(json.loads(json.dumps(flat(c)))) == c
    sections = {key.split(".")[0] for key in flat(c) if "." in key}
    assert sections == {"collect", "vae", "mdnrnn", "evolve", "ahead", "evaluate", "later", "real"}


def test_a_phase_is_a_plain_configuration():
    settings = ["rounds=3", "evolve.sigma=0.1", "later.evolve.sigma=0.05", "later.mdnrnn.updates=7"]
    settings += ["evolve.episodes=5", "real.evolve.generations=2", "real.evolve.episodes=9"]
    c = resolve("carracing", "smoke", settings)
    first, second, third, real = (c.phase(phase) for phase in (1, 2, 3, "real"))
    assert first == c.phase("first") and second == third == c.phase("later")
    assert not any(phase.phases for phase in (first, second, real)) and second.phase(1) == second
    sigmas = [phase.evolve.sigma for phase in (c, first, second, real)]
    assert sigmas == [0.1, 0.1, 0.05, 0.05]  # reality goes on from the last round
    assert (first.mdnrnn.updates, second.mdnrnn.updates) == (30, 7)
    assert [phase.evolve.episodes for phase in (first, second, real)] == [5, 5, 9]
    assert [phase.evolve.world for phase in (second, real)] == ["dream", "real"]
    assert c.ends_in_reality and not resolve("carracing", "smoke").ends_in_reality
    alone = resolve("carracing", "smoke", [*settings, "rounds=1"])
    assert alone.phase("real").evolve.sigma == 0.1


# --------------------------------------------------------------------------------------------- presets


def test_presets_are_flat_files_with_reasons():
    assert set(config.preset_names("doom")) == {"smoke", "quick", "laptop", "paper"}
    assert set(config.preset_names("carracing")) == {
        "smoke", "quick", "laptop", "paper", "reality"
    }  # fmt: skip
    for task, name in ALL:
        text = (config.PRESETS / f"{task}-{name}.txt").read_text()
        keys = [line.partition("=")[0] for line in text.splitlines() if line[:1].isalpha()]
        assert len(keys) == len(set(keys))  # nothing is overwritten
        about, settings, _ = config.read_preset(task, name)
        assert list(settings) == keys and len(about) > 20
    about, settings, reasons = config.read_preset("doom", "quick")
    assert settings["vae.foreground"] == "150" and "fireballs" in reasons["vae.foreground"]
    assert "minutes on 2 cores" in about


def test_every_setting_serves_a_preset_or_is_an_ablation_of_the_paper():
    presets = (*ALL, ("gym:CartPole-v1", "quick"))
    used = {key for task, name in presets for key in config.read_preset(task, name)[1]}
    used = {key.removeprefix("later.").removeprefix("real.") for key in used}
    ablations, same = {"evolve.hidden"}, {"evolve.penalty"}  # the latter as the authors' code
    assert set(config.SETTINGS) - used == ablations | same
    assert len(config.SETTINGS) <= 60


def test_help_has_a_line_for_every_setting():
    head, *lines = config.help_text("carracing").splitlines()
    assert [line.split()[0] for line in lines] == list(config.SETTINGS)
    assert all(len(line.split(None, 2)[2]) > 3 for line in lines)
    head, *lines = config.help_text("doom", "laptop").splitlines()
    assert head.split() == ["paper", "laptop"]
    rows = {line.split()[0]: line.split(None, 3)[1:] for line in lines}
    reason = lines[next(i for i, line in enumerate(lines) if "vae.foreground" in line) + 1]
    assert rows["evolve.tau"][:2] == ["1.15", "1.0"] and rows["evolve.bias"][0] == "False"
    assert reason.strip() == "-> what moves counts more: V shows fireballs of two pixels"
    assert rows["later.mdnrnn.updates"] == ["3000"]


PAPER = {  # CarRacing, Doom: the paper, and the authors' code where it is silent
    "collect.episodes": (10_000, 10_000),
    "vae.z_size": (32, 64),
    "vae.kl_tolerance": (0.5, 0.5),
    "vae.kl_weight": (1, 1),
    "vae.batch": (100, 100),
    "vae.learning_rate": (1e-4, 1e-4),
    "vae.epochs": (1, 10),
    "vae.updates": (0, 0),
    "mdnrnn.hidden": (256, 512),
    "mdnrnn.mixtures": (5, 5),
    "mdnrnn.restart_input": (False, True),
    "mdnrnn.done_weight": (0, 10),
    "mdnrnn.reward_weight": (0, 0),
    "mdnrnn.batch": (100, 100),
    "mdnrnn.window": (1000, 500),
    "mdnrnn.epochs": (20, 400),
    "mdnrnn.updates": (0, 0),
    "mdnrnn.learning_rate": (1e-3, 1e-3),
    "mdnrnn.final_rate": (1e-5, 1e-5),
    "mdnrnn.schedule": ("constant", "0.99999"),
    "evolve.world": ("real", "dream"),
    "evolve.features": ("zh", "zch"),
    "evolve.bias": (True, False),
    "evolve.hidden": (0, 0),
    "evolve.population": (64, 64),
    "evolve.episodes": (16, 16),
    "evolve.sigma": (0.1, 0.1),
    "evolve.penalty": (0.01, 0.01),
    "evolve.check_every": (25, 25),
    "evolve.horizon": (0, 0),
    "evaluate.episodes": (100, 100),
    "rounds": (1, 1),
    "repeat": (1, 1),
    "vae.start": ("glorot", "glorot"),
    "vae.foreground": (0, 0),
    "mdnrnn.value_weight": (0, 0),
    "evolve.memories": (0, 0),
    "evolve.enough": (0, 0),
    "evolve.ending": ("cutoff", "cutoff"),
}


@pytest.mark.parametrize("which, task", [(0, "carracing"), (1, "doom")])
def test_paper_preset_is_the_papers(which, task):
    have = flat(resolve(task, "paper"))
    assert {k: have[k] for k in PAPER} == {k: v[which] for k, v in PAPER.items()}
    assert task != "doom" or have["evolve.tau"] == 1.15  # the best of the paper's table 2


@pytest.mark.parametrize(
    "task, v, m, c", [("carracing", 4_348_547, 422_368, 867), ("doom", 4_446_915, 1_678_785, 1_088)]
)
def test_parameter_counts_are_the_papers(task, v, m, c):
    paper = resolve(task, "paper")
    assert agent.new_vae(paper).params.size == v
    assert agent.new_mdnrnn(paper).params.size == m
    assert agent.theta_size(paper) == c


@pytest.mark.parametrize("hidden, size", [(0, 99), (40, 1443)])
def test_parameter_counts_of_the_ablations_are_the_papers(hidden, size):
    settings = ["evolve.features=z", f"evolve.hidden={hidden}"]
    assert agent.theta_size(resolve("carracing", "paper", settings)) == size
