"""Every number of a run, in one place: frozen dataclasses whose comments are their help, and presets by name.

The defaults are the paper's CarRacing experiment and, where the paper is silent, the authors' code.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, is_dataclass, replace
from difflib import get_close_matches
from operator import attrgetter

from .tasks import TASKS


class SettingError(ValueError):
    """A setting that does not exist or whose value cannot be."""


def setting(default, help: str, low: float | None = None, high: float = math.inf, choices: tuple = ()):
    """A dataclass field with its help text and its range, both inclusive."""
    return field(default=default, metadata={"help": help, "low": low, "high": high, "choices": choices})


@dataclass(frozen=True)
class CollectConfig:
    """Episodes for V and M to learn from: random ones in round 1, the agent's own with noise after that."""

    episodes: int = setting(10_000, "episodes of the first round", 1)
    later_episodes: int = setting(0, "episodes of every later round; 0: as many as in the first", 0)
    min_length: int = setting(1, "shorter episodes (in steps) are not kept but replaced by another", 1)
    hold: int = setting(10, "steps for which a random action of Doom is held, at most", 1)
    long_hold: int = setting(0, "the same, in every other episode or so; 0: as in the others", 0)
    noise: float = setting(0.3, "std of the smooth noise on the agent's actions, later rounds", 0)
    spread: float = setting(0.0, "std of the noise on C's parameters, in every third episode of later rounds", 0)


@dataclass(frozen=True)
class Training:
    """What training V and training M have in common."""

    batch: int = setting(100, "frames of V, windows of M, per update", 1)
    epochs: int = setting(1, "passes over the data, when updates is 0", 1)
    updates: int = setting(0, "updates of the first round; 0: by epochs", 0)
    later_updates: int = setting(0, "updates of every later round; 0: as many as in the first", 0)
    learning_rate: float = setting(1e-4, "Adam's, at the start", 0)
    later_rate: float = setting(0.0, "the same in later rounds; 0: as in the first", 0)
    final_rate: float = setting(0.0, "where the learning rate falls to", 0)
    decay: float = setting(1.0, "its excess over the final rate is multiplied by this at every update", 0, 1)
    cosine: bool = setting(False, "instead it falls to the final rate by half a cosine over the updates")
    fair: bool = setting(False, "every round's data have an equal share in a batch, not every frame's")


@dataclass(frozen=True)
class VAEConfig(Training):
    """V and its training."""

    z_size: int = setting(32, "latent dimensions", 1)
    kl_tolerance: float = setting(
        0.5, "nats per latent dimension: a sample whose KL is below their sum gets no pressure", 0
    )
    kl_weight: float = setting(1.0, "weight of the KL: twice the variance of a pixel that V allows for", 0)
    foreground: float = setting(
        0.0, "a pixel's error counts 1 + this times its squared distance from the mean frame", 0
    )
    rounds: int = setting(0, "rounds in which V learns; later ones keep it and encode new episodes alone; 0: all", 0)
    start: str = setting("glorot", "initial weights: the authors', or larger ones", choices=("glorot", "he"))


@dataclass(frozen=True)
class MDNRNNConfig(Training):
    """M and its training."""

    hidden: int = setting(256, "LSTM units", 1)
    mixtures: int = setting(5, "Gaussians per latent dimension", 1)
    restart_input: bool = setting(False, "the restart flag is an input too (Doom)")
    done_head: bool = setting(False, "predict the end of the episode")
    reward_head: bool = setting(False, "predict the expected reward")
    value_head: bool = setting(False, "predict the value: the discounted reward still to come")
    done_weight: float = setting(10.0, "weight of the steps that end an episode in the done loss", 0)
    reward_weight: float = setting(1.0, "weight of the reward loss", 0)
    value_weight: float = setting(1.0, "weight of the value loss", 0)
    gamma: float = setting(0.95, "discount of the value, per step", 0, 1)
    window: int = setting(1000, "steps per window", 2)
    epochs: int = setting(20, "passes over all steps, when updates is 0", 1)
    learning_rate: float = setting(1e-3, "Adam's, at the start", 0)
    final_rate: float = setting(1e-5, "where the learning rate falls to", 0)
    clip: float = setting(1.0, "every entry of the gradient is clipped to +-clip", 0)


@dataclass(frozen=True)
class EvolveConfig:
    """C and CMA-ES."""

    world: str = setting("real", "where C is evolved", choices=("real", "dream"))
    features: str = setting("zh", "what C sees: z, [z h] or [z c h]", choices=("z", "zh", "zch"))
    bias: bool = setting(True, "C has a bias")
    population: int = setting(64, "candidates per generation", 4)
    episodes: int = setting(16, "episodes per candidate", 1)
    generations: int = setting(200, "generations of the first round", 1)
    later_generations: int = setting(0, "generations of every later round; 0: as many as in the first", 0)
    real_generations: int = setting(0, "generations in the real environment after the last round", 0)
    real_episodes: int = setting(4, "episodes per candidate there", 1)
    sigma: float = setting(0.1, "CMA-ES' first step size", 1e-9)
    later_sigma: float = setting(0.0, "the same in later rounds; 0: as in the first", 0)
    tau: float = setting(1.0, "temperature of the dream", 1e-3)
    memories: float = setting(0.0, "share of the dreams that begin in a recorded moment, not a first frame", 0, 1)
    horizon: int = setting(0, "steps after which a dream is cut; 0: the task's limit", 0)
    bootstrap: bool = setting(False, "a dream that its horizon cuts pays the value of where it led, too")
    done_odds: float = setting(0.0, "how a dream ends: 0: at a done logit above 0; more: drawn, odds times this", 0)
    survival: bool = setting(False, "a dream does not end, its rewards count by the odds that it still goes on")
    worst: float = setting(1.0, "fitness is the mean over this share of a candidate's episodes, the worst", 1e-6, 1)
    penalty: float = setting(0.01, "fitness = mean return - penalty * mean(w^2) (authors' code)", 0)
    check_every: int = setting(25, "generations between checks of the mean in the real environment; 0: never", 0)
    check_episodes: int = setting(100, "episodes of a check; the best check is the agent that is kept", 1)


@dataclass(frozen=True)
class EvaluateConfig:
    """The scores that are reported, on seeds used for nothing else."""

    episodes: int = setting(100, "real episodes of the random policy and of the agent", 2)


@dataclass(frozen=True)
class Config:
    """A run: everything that decides its result, together with the seed."""

    task: str = setting("doom", "the environment", choices=tuple(TASKS))
    preset: str = setting("quick", "where the numbers come from")
    seed: int = setting(0, "of everything random", 0, 2**31 - 1)
    rounds: int = setting(1, "collect, V, M, C, again and again, older data kept", 1)
    repeat: int = setting(1, "frames that an action lasts: one step; those between are not drawn", 1, 100)
    collect: CollectConfig = CollectConfig()
    vae: VAEConfig = VAEConfig()
    mdnrnn: MDNRNNConfig = MDNRNNConfig()
    evolve: EvolveConfig = EvolveConfig()
    evaluate: EvaluateConfig = EvaluateConfig()

    def __post_init__(self):
        if self.evolve.bootstrap and not self.mdnrnn.value_head:
            raise SettingError("evolve.bootstrap asks M for values: set mdnrnn.value_head=true as well")

    @property
    def max_steps(self) -> int:
        """Steps of the longest episode."""
        return -(-TASKS[self.task].max_steps // self.repeat)


# What a preset changes, as `--set` would: the paper's Doom, then smaller data and fewer updates for both tasks.
_DOOM = """
    collect.min_length=100 vae.z_size=64 vae.epochs=10
    mdnrnn.hidden=512 mdnrnn.restart_input=true mdnrnn.done_head=true
    mdnrnn.window=500 mdnrnn.epochs=400 mdnrnn.decay=0.99999
    evolve.world=dream evolve.features=zch evolve.bias=false evolve.tau=1.15"""
_CAR = "mdnrnn.reward_head=true evolve.world=dream evolve.horizon=300"  # driven in the dream; the paper's is not
_SMOKE = """
    vae.batch=32 vae.updates=20 mdnrnn.hidden=32 mdnrnn.window=32 mdnrnn.batch=8 mdnrnn.updates=30
    evolve.population=8 evolve.episodes=2 evolve.generations=3 evolve.horizon=60
    evolve.check_every=2 evolve.check_episodes=2 evaluate.episodes=4"""
_QUICK = """
    vae.batch=32 vae.updates=1500 vae.learning_rate=1e-3
    mdnrnn.hidden=256 mdnrnn.batch=16 mdnrnn.window=64 mdnrnn.updates=2400 mdnrnn.learning_rate=2e-3 mdnrnn.decay=0.999
    evolve.episodes=4 evolve.generations=16 evolve.check_every=4 evolve.check_episodes=16
    evaluate.episodes=50"""
_LAPTOP = """
    vae.batch=64 vae.updates=12500 vae.learning_rate=1e-3 vae.decay=0.99978
    mdnrnn.batch=64 mdnrnn.window=100 mdnrnn.updates=3500 mdnrnn.decay=0.9992
    evolve.generations=60 evolve.check_every=10 evolve.check_episodes=64"""
# An evolved agent of Doom dies running into fireballs out of sight. Actions held for 10 steps hardly ever show that.
_DOOM_LAPTOP = """
    collect.episodes=5000 collect.long_hold=60 mdnrnn.updates=4500 mdnrnn.decay=0.9994 evolve.check_every=5"""
# A decision every 4 frames, V from a better start, dreams of 100 steps that begin in recorded moments, own data alone.
_CAR_DREAM = """
    repeat=4
    vae.start=he vae.kl_weight=0.1 vae.kl_tolerance=1 vae.batch=32 vae.learning_rate=1e-3 vae.later_rate=3e-4
    vae.final_rate=1e-6 vae.cosine=true vae.fair=true
    mdnrnn.reward_weight=0.25 mdnrnn.batch=32 mdnrnn.window=48 mdnrnn.learning_rate=2e-3 mdnrnn.later_rate=1e-3
    mdnrnn.cosine=true
    evolve.memories=1 evolve.horizon=100 evolve.episodes=24 evolve.sigma=0.1 evolve.later_sigma=0.05
    evolve.check_every=20 evolve.check_episodes=24
    collect.noise=0.3 collect.spread=0.05"""
PRESETS: dict[str, dict[str, list[str]]] = {
    "doom": {
        "paper": [_DOOM],
        "laptop": [_DOOM, _LAPTOP, _DOOM_LAPTOP],
        # A young M dreams too kind a world, and only heat makes it hard enough to learn from: tau 2.
        "quick": [_DOOM, _QUICK, "collect.episodes=200 collect.hold=60 evolve.tau=2 evolve.episodes=8"],
        "smoke": [_DOOM, _SMOKE, "collect.episodes=4 collect.min_length=1"],
    },
    "carracing": {
        "paper": [],
        "laptop": [
            _CAR, _CAR_DREAM,
            "rounds=6 collect.episodes=500 collect.later_episodes=96 vae.updates=4000 vae.later_updates=700",
            "mdnrnn.updates=2500 mdnrnn.later_updates=1500 mdnrnn.fair=true",
            "mdnrnn.value_head=true mdnrnn.value_weight=0.003 evolve.generations=60 evolve.later_generations=40",
        ],
        "quick": [
            _CAR, _CAR_DREAM,
            "collect.episodes=500 collect.later_episodes=96 vae.updates=2000 vae.later_updates=500",
            # 10 generations: 20 and 30 in a dream of random data alone only find where it is wrong
            "mdnrnn.updates=2500 mdnrnn.later_updates=1500 evolve.generations=10 evolve.later_generations=20",
            "evolve.worst=0.5 evolve.check_every=10 evaluate.episodes=50",
        ],
        "smoke": [_CAR, _SMOKE, "collect.episodes=2 repeat=4"],
    },
}  # fmt: skip

SETTINGS = {f.name: f for f in fields(Config) if not is_dataclass(f.default)}  # the fields by name, "evolve.tau"
SETTINGS |= {f"{s.name}.{f.name}": f for s in fields(Config) if is_dataclass(s.default) for f in fields(s.default)}


def resolve(task: str, preset: str = "quick", settings: Iterable[str] = (), seed: int = 0) -> Config:
    """The configuration of a preset, changed by settings such as "rounds=2"; SettingError says what cannot be."""
    if task not in PRESETS:
        raise SettingError(f"unknown task {task!r}: choose from {', '.join(TASKS)}")
    if preset not in PRESETS[task]:
        raise SettingError(f"unknown preset {preset!r}: choose from {', '.join(PRESETS[task])}")
    changes = pairs([*" ".join(PRESETS[task][preset]).split(), *settings])
    return from_flat({"task": task, "preset": preset, "seed": seed} | changes)


def pairs(settings: Iterable[str]) -> dict[str, str]:
    """["evolve.tau=1.15", ...] -> {"evolve.tau": "1.15", ...}."""
    values = {}
    for text in settings:
        key, equals, value = text.partition("=")
        if not equals:
            raise SettingError(f"--set takes KEY=VALUE, such as evolve.tau=1.15, not {text!r}")
        if key in ("task", "preset", "seed"):
            raise SettingError(f"{key} is not for --set: it has a place of its own on the command line")
        values[key] = value
    return values


def from_flat(values: dict) -> Config:
    """A Config from {"evolve.tau": 1.15, ...}, values or their text; what is not named has its default."""
    sections: dict[str, dict] = {"": {}}
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        sections.setdefault(section, {})[name] = _parsed(key, value)
    own = sections.pop("")
    return Config(**own, **{name: replace(getattr(Config, name), **s) for name, s in sections.items()})


def flat(config: Config) -> dict:
    """{"evolve.tau": 1.15, ...}: what from_flat takes."""
    return {key: attrgetter(key)(config) for key in SETTINGS}


def help_text() -> str:
    """One line per setting: name, the paper's CarRacing value, comment."""
    return "\n".join(f"  {f'{key}={f.default}':32} {f.metadata['help']}" for key, f in SETTINGS.items())


def _parsed(key: str, value):
    """`value`, which may be text, as the setting's own kind and within its range."""
    if key not in SETTINGS:
        near = [k for k in SETTINGS if k.endswith(f".{key}")] or get_close_matches(key, SETTINGS, n=1)
        guess = f"did you mean {' or '.join(near)}? " if near else ""
        raise SettingError(f"unknown setting {key!r}: {guess}`python run.py settings` lists them all")
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
    if low is not None and not (low <= value <= high and value < math.inf):  # "not": nan compares false with everything
        allowed = f"at least {low}" if high == math.inf else f"{low} to {high}"
        raise SettingError(f"{key} = {value} is out of range: {allowed}")
    return value
