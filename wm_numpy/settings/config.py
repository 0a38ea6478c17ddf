"""Every setting of a run in one place: frozen dataclasses, each field with its help, and presets by name.

The defaults are the paper's CarRacing experiment and, where the paper is silent, the authors' code.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, is_dataclass, replace
from difflib import get_close_matches
from operator import attrgetter

from .tasks import TaskError, find


class SettingError(ValueError):
    """An unknown setting, or a value that it cannot have."""


def setting(default, help: str, low: float | None = None, high: float = math.inf, choices=()):
    """A dataclass field with its help text and its range, both ends included."""
    metadata = {"help": help, "low": low, "high": high, "choices": choices}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class CollectConfig:
    """Episodes for V and M to learn from: random ones in round 1, later the agent's own, with noise."""

    episodes: int = setting(10_000, "episodes of the first round", 1)
    later_episodes: int = setting(0, "episodes of each later round; 0: as in the first", 0)
    min_length: int = setting(1, "an episode of fewer steps is replaced by another", 1)
    hold: int = setting(10, "a random action of Doom is held for at most this many steps", 1)
    long_hold: int = setting(0, "the same in about every other episode; 0: as in the rest", 0)
    noise: float = setting(0.3, "std of the smooth noise on the agent's actions, later rounds", 0)
    spread: float = setting(0.0, "std of noise on C's parameters in every third later episode", 0)


@dataclass(frozen=True)
class Training:
    """What training V and training M have in common."""

    batch: int = setting(100, "frames (V) or windows (M) per update", 1)
    epochs: int = setting(1, "passes over the data, if updates is 0", 1)
    updates: int = setting(0, "updates of the first round; 0: by epochs", 0)
    later_updates: int = setting(0, "updates of each later round; 0: as in the first", 0)
    learning_rate: float = setting(1e-4, "Adam's, at the start", 0)
    later_rate: float = setting(0.0, "the same in later rounds; 0: as in the first", 0)
    final_rate: float = setting(0.0, "what the learning rate falls to", 0)
    decay: float = setting(1.0, "each update multiplies its excess over final_rate by this", 0, 1)
    cosine: bool = setting(False, "instead it falls to final_rate by half a cosine")
    fair: bool = setting(False, "a batch draws from all rounds equally, not from all frames")


@dataclass(frozen=True)
class VAEConfig(Training):
    """V and its training."""

    z_size: int = setting(32, "latent dimensions", 1)
    kl_tolerance: float = setting(0.5, "free nats per latent dimension, all of them together", 0)
    kl_weight: float = setting(1.0, "weight of the KL; twice the pixel variance V allows for", 0)
    foreground: float = setting(0.0, "a pixel counts 1 + this * (distance from mean frame)^2", 0)
    rounds: int = setting(0, "rounds in which V learns; later ones only encode; 0: all", 0)
    start: str = setting("glorot", "initial weights; he: larger ones", choices=("glorot", "he"))


@dataclass(frozen=True)
class MDNRNNConfig(Training):
    """M and its training."""

    hidden: int = setting(256, "LSTM units", 1)
    mixtures: int = setting(5, "Gaussians per latent dimension", 1)
    restart_input: bool = setting(False, "the restart flag is an input too (Doom)")
    done_head: bool = setting(False, "predict the end of the episode")
    reward_head: bool = setting(False, "predict the expected reward")
    value_head: bool = setting(False, "predict the value: the discounted reward still to come")
    done_weight: float = setting(10.0, "weight of a step that ends an episode, in the done loss", 0)
    reward_weight: float = setting(1.0, "weight of the reward loss", 0)
    value_weight: float = setting(1.0, "weight of the value loss", 0)
    gamma: float = setting(0.95, "discount of the value, per step", 0, 1)
    window: int = setting(1000, "steps per window", 2)
    epochs: int = setting(20, "passes over all steps, if updates is 0", 1)
    learning_rate: float = setting(1e-3, "Adam's, at the start", 0)
    final_rate: float = setting(1e-5, "what the learning rate falls to", 0)
    clip: float = setting(1.0, "every entry of the gradient is clipped to +-clip", 0)


@dataclass(frozen=True)
class EvolveConfig:
    """C and CMA-ES."""

    world: str = setting("real", "where C is evolved", choices=("real", "dream"))
    features: str = setting("zh", "what C sees: z, [z h] or [z c h]", choices=("z", "zh", "zch"))
    bias: bool = setting(True, "C has a bias")
    hidden: int = setting(0, "tanh units between C's features and its action; 0: C is linear", 0)
    population: int = setting(64, "candidates per generation", 4)
    episodes: int = setting(16, "episodes per candidate", 1)
    generations: int = setting(200, "generations of the first round", 1)
    later_generations: int = setting(0, "generations of each later round; 0: as in the first", 0)
    real_generations: int = setting(0, "generations in reality after the last round", 0)
    real_episodes: int = setting(4, "episodes per candidate there", 1)
    sigma: float = setting(0.1, "initial step size of CMA-ES", 1e-9)
    later_sigma: float = setting(0.0, "the same in later rounds; 0: as in the first", 0)
    real_sigma: float = setting(0.0, "the same in reality; 0: as in the last round", 0)
    shrink: float = setting(1.0, "a later round's C begins from the last one's times this", 0, 1)
    tau: float = setting(1.0, "temperature of the dream", 1e-3)
    memories: float = setting(0.0, "share of dreams that begin at any recorded moment", 0, 1)
    horizon: int = setting(0, "steps after which a dream is cut; 0: the task's limit", 0)
    bootstrap: bool = setting(False, "a dream cut at its horizon also pays the value M sees there")
    done_odds: float = setting(0.0, "the end is drawn, its odds times this; 0: at logit > 0", 0)
    survival: bool = setting(False, "no dream ends; rewards count by the chance to be alive")
    enough: float = setting(0.0, "a dream's return counts up to this; 0: all of it", 0)
    penalty: float = setting(0.01, "fitness = mean return - penalty * mean(w^2) (authors' code)", 0)
    check_every: int = setting(25, "generations between checks of the mean in reality; 0: none", 0)
    real_check_every: int = setting(0, "the same in reality, and one before; 0: as above", 0)
    check_episodes: int = setting(100, "episodes of a check; the agent of the best is kept", 1)
    real_check_episodes: int = setting(0, "the same in reality; 0: as above", 0)
    finalists: int = setting(0, "agents of so many rounds play it out; 0: the last is kept", 0)


@dataclass(frozen=True)
class EvaluateConfig:
    """The scores that are reported, on seeds used for nothing else."""

    episodes: int = setting(100, "real episodes of the random policy and of the agent", 2)


@dataclass(frozen=True)
class Config:
    """A run: everything that decides its result, together with the seed."""

    task: str = setting("", "the environment")
    preset: str = setting("quick", "where the numbers come from")
    seed: int = setting(0, "of everything random", 0, 2**31 - 1)
    rounds: int = setting(1, "how often to collect and train V, M, C; older data is kept", 1)
    repeat: int = setting(1, "frames an action lasts: one step; only its last is drawn", 1, 100)
    collect: CollectConfig = CollectConfig()
    vae: VAEConfig = VAEConfig()
    mdnrnn: MDNRNNConfig = MDNRNNConfig()
    evolve: EvolveConfig = EvolveConfig()
    evaluate: EvaluateConfig = EvaluateConfig()

    def __post_init__(self):
        if self.evolve.bootstrap and not self.mdnrnn.value_head:
            raise SettingError("evolve.bootstrap needs M's values: set mdnrnn.value_head=true too")
        if self.evolve.finalists and not (self.evolve.check_every and self.vae.rounds):
            what = "evolve.finalists are chosen by checks, of rounds with one V"
            mend = "set evolve.check_every and vae.rounds, or evolve.finalists=0"
            raise SettingError(f"{what}: {mend}")

    @property
    def max_steps(self) -> int:
        """Steps of the longest episode."""
        return -(-find(self.task).max_steps // self.repeat)


# What a preset changes, as `--set` would: the paper's Doom, then less data and fewer updates for both tasks.
_DOOM = """
    collect.min_length=100 vae.z_size=64 vae.epochs=10
    mdnrnn.hidden=512 mdnrnn.restart_input=true mdnrnn.done_head=true
    mdnrnn.window=500 mdnrnn.epochs=400 mdnrnn.decay=0.99999
    evolve.world=dream evolve.features=zch evolve.bias=false evolve.tau=1.15"""
# CarRacing is learnt in the dream here; the paper's is not.
_CAR = "mdnrnn.reward_head=true evolve.world=dream evolve.horizon=300"
_SMOKE = """
    vae.batch=32 vae.updates=20 mdnrnn.hidden=32 mdnrnn.window=32 mdnrnn.batch=8 mdnrnn.updates=30
    evolve.population=8 evolve.episodes=2 evolve.generations=3 evolve.horizon=60
    evolve.check_every=2 evolve.check_episodes=2 evaluate.episodes=4"""
# A decision every 4 tics, a V that shows fireballs; no dream ends, but M's odds of dying count three times:
# the dream of a young M is too kind to learn from.
_DOOM_QUICK = """
    repeat=4 collect.episodes=800 collect.hold=12 collect.long_hold=40 collect.min_length=25
    vae.start=he vae.kl_weight=0.1 vae.kl_tolerance=1 vae.foreground=150
    vae.batch=16 vae.updates=2000 vae.learning_rate=7e-4 vae.cosine=true
    mdnrnn.hidden=256 mdnrnn.restart_input=false mdnrnn.done_weight=1
    mdnrnn.batch=16 mdnrnn.window=64
    mdnrnn.updates=2000 mdnrnn.learning_rate=2e-3 mdnrnn.cosine=true
    evolve.tau=1 evolve.memories=0.5 evolve.horizon=150 evolve.survival=true evolve.done_odds=3
    evolve.episodes=8 evolve.generations=20 evolve.check_every=5 evolve.check_episodes=48
    evaluate.episodes=50"""
# A second round, of the agent's own episodes, brings it to where running to and fro is; more rounds leave it there.
_DOOM_LAPTOP = """
    rounds=2 collect.later_episodes=200
    vae.later_updates=500 vae.later_rate=3e-4
    mdnrnn.later_updates=1000 mdnrnn.later_rate=1e-3
    evolve.later_generations=20 evaluate.episodes=100"""
# A decision every 4 frames, a better start for V, which learns from the random data alone, as the paper's; dreams of
# 100 steps from any recorded moment; no data but its own. 10 generations at first: 20 or 30 in a dream of random data
# only find where it is wrong.
_CAR_DREAM = """
    repeat=4
    vae.start=he vae.kl_weight=0.1 vae.kl_tolerance=1 vae.batch=32
    vae.learning_rate=1e-3 vae.final_rate=1e-6 vae.cosine=true vae.rounds=1
    mdnrnn.reward_weight=0.25 mdnrnn.batch=32 mdnrnn.window=48 mdnrnn.fair=true
    mdnrnn.learning_rate=2e-3 mdnrnn.later_rate=1e-3 mdnrnn.cosine=true
    evolve.memories=1 evolve.horizon=100 evolve.episodes=24 evolve.sigma=0.1 evolve.later_sigma=0.05
    evolve.generations=10 evolve.later_generations=20
    collect.later_episodes=48 collect.noise=0.3 collect.spread=0.05"""
# Many small rounds: at this sigma a round's dream rises no more after 20 generations, and C needs new data. Each takes
# a fifth off C's weights: evolution is in part a random walk, and where they have grown, tanh is saturated and
# selection blind. A dream has no finish: it would pay for more speed than the 130 tiles in 100 decisions that a lap
# takes. The last round's agent may be a poor one: it and the best four play it out.
# In reality a candidate at a sigma of 0.05, half of C's weights, is often a lost car; two tracks are too few to tell.
_CAR_LAPTOP = """
    rounds=23 collect.episodes=500
    vae.updates=4000
    mdnrnn.updates=2500 mdnrnn.later_updates=750
    mdnrnn.value_head=true mdnrnn.value_weight=0.003
    evolve.shrink=0.8 evolve.enough=130 evolve.finalists=4
    evolve.check_every=20 evolve.check_episodes=24
    evolve.real_episodes=4 evolve.real_sigma=0.03
    evolve.real_check_every=5 evolve.real_check_episodes=96"""
# For a world that nobody has tuned: both heads, decisions every other frame, small things count, data of its own.
_WORLD = """
    repeat=2 rounds=3 collect.episodes=400 collect.later_episodes=100 collect.hold=8 collect.long_hold=24
    vae.start=he vae.kl_weight=0.1 vae.kl_tolerance=1 vae.foreground=150
    vae.batch=16 vae.updates=2000 vae.learning_rate=7e-4 vae.cosine=true vae.rounds=1
    mdnrnn.done_head=true mdnrnn.reward_head=true mdnrnn.done_weight=1
    mdnrnn.batch=16 mdnrnn.window=64 mdnrnn.fair=true
    mdnrnn.updates=1500 mdnrnn.later_updates=700
    mdnrnn.learning_rate=2e-3 mdnrnn.later_rate=1e-3 mdnrnn.cosine=true
    evolve.world=dream evolve.memories=0.5 evolve.horizon=100 evolve.survival=true evolve.done_odds=1
    evolve.episodes=16 evolve.generations=15 evolve.check_every=5 evolve.check_episodes=32
    evaluate.episodes=50"""
PRESETS: dict[str, dict[str, list[str]]] = {
    "doom": {
        "paper": [_DOOM],
        "laptop": [_DOOM, _DOOM_QUICK, _DOOM_LAPTOP],
        "quick": [_DOOM, _DOOM_QUICK],
        "smoke": [_DOOM, _SMOKE, "collect.episodes=4 collect.min_length=1"],
    },
    "carracing": {
        "paper": [],
        "laptop": [_CAR, _CAR_DREAM, _CAR_LAPTOP],
        # The paper's own experiment from there: C evolves on in the real environment.
        "reality": [_CAR, _CAR_DREAM, _CAR_LAPTOP, "evolve.real_generations=20"],
        "quick": [
            _CAR, _CAR_DREAM,
            "rounds=3 collect.episodes=250",
            "vae.updates=1500",
            "mdnrnn.updates=1500 mdnrnn.later_updates=700",
            "evolve.check_every=10 evolve.check_episodes=16 evaluate.episodes=50",
        ],
        "smoke": [_CAR, _SMOKE, "collect.episodes=2 repeat=4"],
    },
    "world": {
        "quick": [_WORLD],
        "smoke": [_WORLD, _SMOKE, "rounds=1 collect.episodes=4"],
    },
}  # fmt: skip

_SECTIONS = {f.name: f.default for f in fields(Config) if is_dataclass(f.default)}
# The fields by name, such as "evolve.tau".
SETTINGS = {f.name: f for f in fields(Config) if f.name not in _SECTIONS}
SETTINGS |= {f"{name}.{f.name}": f for name, section in _SECTIONS.items() for f in fields(section)}


def resolve(task: str, preset: str = "quick", settings: Iterable = (), seed: int = 0) -> Config:
    """The configuration of a preset, changed by settings such as "rounds=2"; SettingError says what is wrong."""
    try:
        world = find(task)
    except TaskError as error:
        raise SettingError(str(error)) from error
    presets = PRESETS.get(world.name, PRESETS["world"])
    if preset not in presets:
        raise SettingError(f"unknown preset {preset!r}: choose from {', '.join(presets)}")
    changes = pairs([*" ".join(presets[preset]).split(), *world.settings.split(), *settings])
    return from_flat({"task": world.name, "preset": preset, "seed": seed} | changes)


def pairs(settings: Iterable[str]) -> dict[str, str]:
    """["evolve.tau=1.15", ...] -> {"evolve.tau": "1.15", ...}."""
    values = {}
    for text in settings:
        key, equals, value = text.partition("=")
        if not equals:
            raise SettingError(f"--set takes KEY=VALUE, such as evolve.tau=1.15, not {text!r}")
        if key in ("task", "preset", "seed"):
            raise SettingError(f"--set cannot change {key}: it has an argument of its own")
        values[key] = value
    return values


def from_flat(values: dict) -> Config:
    """A Config from {"evolve.tau": 1.15, ...}, values or their text; what is missing has its default."""
    sections: dict[str, dict] = {"": {}}
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        sections.setdefault(section, {})[name] = _parsed(key, value)
    own = sections.pop("")
    changed = {name: replace(_SECTIONS[name], **values) for name, values in sections.items()}
    return Config(**own, **changed)


def flat(config: Config) -> dict:
    """{"evolve.tau": 1.15, ...}: what from_flat takes."""
    return {key: attrgetter(key)(config) for key in SETTINGS}


def help_text() -> str:
    """One line per setting: name, the paper's CarRacing value, comment."""
    helps = {f"{key}={f.default}": f.metadata["help"] for key, f in SETTINGS.items()}
    return "\n".join(f"  {name:32} {text}" for name, text in helps.items())


def _parsed(key: str, value):
    """`value`, which may be text, as the setting's type and within its range."""
    if key not in SETTINGS:
        near = [k for k in SETTINGS if k.endswith(f".{key}")]
        near = near or get_close_matches(key, SETTINGS, n=1)
        mend = "`python run.py settings` lists them all"
        if near:
            mend = f"did you mean {' or '.join(near)}? {mend}"
        raise SettingError(f"unknown setting {key!r}: {mend}")
    kind = type(SETTINGS[key].default)
    limits = SETTINGS[key].metadata
    try:
        flags = {"true": True, "1": True, "false": False, "0": False}
        value = flags[str(value).lower()] if kind is bool else kind(str(value))
    except (ValueError, KeyError):
        raise SettingError(f"{key} takes {kind.__name__}, not {value!r}") from None
    if limits["choices"] and value not in limits["choices"]:
        raise SettingError(f"{key} is one of {', '.join(limits['choices'])}, not {value!r}")
    low = limits["low"]
    high = limits["high"]
    inside = low is None or (low <= value <= high and value < math.inf)  # False for nan
    if not inside:
        allowed = f"at least {low}" if high == math.inf else f"{low} to {high}"
        raise SettingError(f"{key} = {value} is out of range: {allowed}")
    return value
