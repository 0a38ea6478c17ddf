"""Settings: what is refused, what comes back from a file, and the paper's numbers."""

import dataclasses
import json

import pytest

from wm_numpy.models import agent
from wm_numpy.settings import config
from wm_numpy.settings.config import Config, SettingError, flat, from_flat, resolve


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
        ("doom", "quick", ["mdnrnn.decay=1.1"], "0 to 1"),
        ("doom", "quick", ["evolve.tau=nan"], "out of range"),
        ("doom", "quick", ["evolve.tau=inf"], "out of range"),
        ("doom", "quick", ["evolve.tau=-1"], "out of range"),
    ],
)
def test_what_cannot_be_is_refused_and_named(task, preset, settings, named):
    with pytest.raises(SettingError) as error:
        resolve(task, preset, settings)
    assert named in str(error.value) and "\n" not in str(error.value)


def test_no_bootstrap_without_a_value():
    with pytest.raises(SettingError, match="value_head=true"):
        resolve("carracing", "smoke", ["evolve.bootstrap=true"])
    settings = ["evolve.bootstrap=true", "mdnrnn.value_head=true"]
    assert resolve("carracing", "smoke", settings).evolve.bootstrap


@pytest.mark.parametrize("setting", ["evolve.check_every=0", "vae.rounds=0"])
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


@pytest.mark.parametrize("task", ["doom", "carracing"])
@pytest.mark.parametrize("preset", ["smoke", "quick", "laptop", "paper"])
def test_round_trip(task, preset):
    c = resolve(task, preset, ["evolve.tau=0.123456789", "evolve.bias=false"], seed=5)
    assert from_flat(flat(c)) == c and from_flat(json.loads(json.dumps(flat(c)))) == c
    sections = {key.split(".")[0] for key in flat(c) if "." in key}
    assert sections == {"collect", "vae", "mdnrnn", "evolve", "evaluate"}


def test_help_has_a_line_for_every_setting():
    lines = config.help_text().splitlines()
    assert [line.split("=")[0].strip() for line in lines] == list(flat(Config()))
    assert all(len(line.split(None, 1)[1]) > 3 for line in lines)


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
    "mdnrnn.done_head": (False, True),
    "mdnrnn.reward_head": (False, False),
    "mdnrnn.done_weight": (10, 10),
    "mdnrnn.batch": (100, 100),
    "mdnrnn.window": (1000, 500),
    "mdnrnn.epochs": (20, 400),
    "mdnrnn.updates": (0, 0),
    "mdnrnn.learning_rate": (1e-3, 1e-3),
    "mdnrnn.final_rate": (1e-5, 1e-5),
    "mdnrnn.decay": (1.0, 0.99999),
    "mdnrnn.clip": (1, 1),
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
    "mdnrnn.value_head": (False, False),
    "evolve.memories": (0, 0),
    "evolve.enough": (0, 0),
    "evolve.bootstrap": (False, False),
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
