"""Every setting of a run: frozen dataclasses, each field with its help; and how presets are read.

The defaults are the paper's CarRacing experiment and, where the paper is silent, the authors' code. A run has phases:
its first round; `later` rounds, with the agent's own episodes; and `real`, where C evolves on in reality after the
last. A setting may differ in a phase, as in `later.mdnrnn.updates=750`. The code that trains sees one phase at a time:
`Config.phase` gives it as a plain Config.
"""

import math
from collections.abc import Iterable
from dataclasses import Field, dataclass, field, fields, is_dataclass, replace
from difflib import get_close_matches
from operator import attrgetter
from pathlib import Path
from typing import ClassVar

from .tasks import TaskError, find, known, suggested

PRESETS = Path(__file__).parent / "presets"  # TASK-NAME.txt


class SettingError(ValueError):
    """An unknown setting, or a value that it cannot have."""


def setting(default, help: str, low: float | None = None, high: float = math.inf, choices=()):
    """A dataclass field with its help text, and the range (both ends included) or the choices of its values."""
    metadata = {"help": help, "low": low, "high": high, "choices": choices}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class CollectConfig:
    """Episodes to train V and M on: random ones in the first round, later the agent's own, with noise."""

    episodes: int = setting(10_000, "episodes of a round", 1)
    min_length: int = setting(1, "a random episode of fewer steps is replaced by another", 1)
    hold: int = setting(10, "a random action is held for at most this many steps", 1)
    long_hold: int = setting(0, "the same in about every other episode; 0: as in the rest", 0)
    swing: int = setting(0, "a third of episodes alternate opposite actions, each up to this", 0)
    more: int = setting(0, "further random episodes, for M alone; no frames are kept", 0)
    noise: float = setting(0.3, "std of the smooth noise on the agent's actions", 0)
    spread: float = setting(0.0, "std of noise on C's parameters in every third own episode", 0)


@dataclass(frozen=True)
class Training:
    """What training V and training M have in common."""

    batch: int = setting(100, "frames (V) or windows (M) per update", 1)
    epochs: int = setting(1, "passes over the data, if updates is 0", 1)
    updates: int = setting(0, "updates of a round; 0: by epochs", 0)
    learning_rate: float = setting(1e-4, "Adam's, at the start; 0: nothing is learnt", 0)
    final_rate: float = setting(0.0, "what the learning rate falls to", 0)
    clip: ClassVar[float | None] = None  # every entry of a gradient is clipped to +-clip
    falls = "how it falls: by half a cosine, or by a factor per update, such as 0.99999"
    schedule: str = setting("constant", falls, 0, 1, choices=("constant", "cosine"))


@dataclass(frozen=True)
class VAEConfig(Training):
    """V and its training."""

    z_size: int = setting(32, "latent dimensions", 1)
    kl_tolerance: float = setting(0.5, "free nats per latent dimension, summed over all", 0)
    kl_weight: float = setting(1.0, "weight of the KL: twice the pixel variance V assumes", 0)
    foreground: float = setting(0.0, "a pixel counts 1 + this * (distance from mean frame)^2", 0)
    starts = "initial weights; he: larger ones; clear: and less noise of z"
    start: str = setting("glorot", starts, choices=("glorot", "he", "clear"))
    noise_warmup: int = setting(0, "first updates of a round, over which the noise of z grows", 0)


@dataclass(frozen=True)
class MDNRNNConfig(Training):
    """M and its training."""

    hidden: int = setting(256, "LSTM units", 1)
    mixtures: int = setting(5, "Gaussians per latent dimension", 1)
    restart_input: bool = setting(False, "the restart flag is an input too (Doom)")
    done_weight: float = setting(0.0, "M predicts ends, an end weighs this much; 0: it does not", 0)
    reward_weight: float = setting(0.0, "M predicts rewards, their loss weighs this; 0: not", 0)
    value_weight: float = setting(0.0, "and the discounted reward to come, the value", 0)
    window: int = setting(1000, "steps per window", 2)
    clip: ClassVar[float | None] = 1.0  # authors' code
    gamma: ClassVar[float] = 0.95  # the value's discount, per step
    fair: bool = setting(False, "a batch draws from all rounds equally, not from all steps")
    epochs: int = setting(20, "passes over all steps, if updates is 0", 1)
    learning_rate: float = setting(1e-3, "Adam's, at the start; 0: nothing is learnt", 0)
    final_rate: float = setting(1e-5, "what the learning rate falls to", 0)


@dataclass(frozen=True)
class EvolveConfig:
    """C and CMA-ES."""

    world: str = setting("real", "where C is evolved", choices=("real", "dream"))
    features: str = setting("zh", "what C sees: z, [z h] or [z c h]", choices=("z", "zh", "zch"))
    bias: bool = setting(True, "C has a bias")
    hidden: int = setting(0, "tanh units between C's features and its action; 0: C is linear", 0)
    population: int = setting(64, "candidates per generation", 4)
    episodes: int = setting(16, "episodes per candidate", 1)
    generations: int = setting(200, "generations of a round", 1)
    sigma: float = setting(0.1, "initial step size of CMA-ES", 1e-9)
    shrink: float = setting(1.0, "a later round's C starts from the last one times this", 0, 1)
    tau: float = setting(1.0, "temperature of the dream", 1e-3)
    memories: float = setting(0.0, "share of dreams that begin at any recorded moment", 0, 1)
    horizon: int = setting(0, "steps after which a dream is cut; 0: the task's limit", 0)
    ends = "how a dream ends: where M's odds exceed 1; by chance; never, but rewards count less"
    ending: str = setting("cutoff", ends, choices=("cutoff", "drawn", "weighted"))
    odds: float = setting(1.0, "M's odds of an end are multiplied by this", 1e-9)
    enough: float = setting(0.0, "a dream's return counts up to this; 0: all of it", 0)
    penalty: float = setting(0.01, "fitness = mean return - penalty * mean(w^2) (authors' code)", 0)
    check_every: int = setting(25, "generations between checks of the mean in reality; 0: none", 0)
    check_episodes: int = setting(100, "episodes of a check; the agent of the best is kept", 1)
    finalists: int = setting(0, "the best N rounds and the last compete in new games; 0: last", 0)


@dataclass(frozen=True)
class AheadConfig:
    """Looking ahead in M before each action; the paper's agent does not."""

    horizon: int = setting(0, "steps dreamt before each action; 0: it does not look ahead", 0)
    samples: int = setting(6, "dreams of each plan", 1)
    margin: float = setting(0.1, "how much better a plan must be, per step of the horizon", 0)
    go_on: bool = setting(False, "without a better plan: the last action again, not C's")


@dataclass(frozen=True)
class EvaluateConfig:
    """The scores that are reported, on held-out seeds."""

    episodes: int = setting(100, "real episodes of the random policy and of the agent", 2)


@dataclass(frozen=True)
class Config:
    """Everything that decides the result of a run. phases: what differs in them, {"later.mdnrnn.updates": 750}."""

    task: str = setting("", "the environment")
    preset: str = setting("quick", "where the numbers come from")
    seed: int = setting(0, "of everything random", 0, 2**31 - 1)
    rounds: int = setting(1, "how often to collect and train V, M, C; older data is kept", 1)
    repeat: int = setting(1, "frames an action lasts, one step; only the last is drawn", 1, 100)
    collect: CollectConfig = CollectConfig()
    vae: VAEConfig = VAEConfig()
    mdnrnn: MDNRNNConfig = MDNRNNConfig()
    evolve: EvolveConfig = EvolveConfig()
    ahead: AheadConfig = AheadConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    phases: dict[str, object] = field(default_factory=dict)

    @property
    def max_steps(self) -> int:
        """Steps of the longest episode."""
        return -(-find(self.task).max_steps // self.repeat)

    @property
    def ends_in_reality(self) -> bool:
        """Whether C evolves on in reality after the last round."""
        return "real.evolve.generations" in self.phases

    def phase(self, phase: int | str) -> "Config":
        """What holds in a round, counted from 1, or in "first", "later" or "real", which continues the last."""
        layers = []
        if phase == "later" or (isinstance(phase, int) and phase > 1):
            layers = ["later."]
        elif phase == "real":
            layers = ["later."] * (self.rounds > 1) + ["real."]
        values = flat(replace(self, phases={}))
        for layer in layers:
            own = {key: v for key, v in self.phases.items() if key.startswith(layer)}
            values |= {key.removeprefix(layer): v for key, v in own.items()}
        if phase == "real":
            values["evolve.world"] = "real"
        return _built(values)


_SECTIONS = {f.name: f.default for f in fields(Config) if is_dataclass(f.default)}
_FIELDS = {f.name: f for f in fields(Config) if f.name not in (*_SECTIONS, "phases")}
_FIELDS |= {f"{name}.{f.name}": f for name, section in _SECTIONS.items() for f in fields(section)}
ARGUMENTS = ("task", "preset", "seed")  # of the command line
SETTINGS = {key: f for key, f in _FIELDS.items() if key not in ARGUMENTS}  # such as "evolve.tau"

# What cannot differ in later rounds; and all that can differ when C evolves on in reality.
SAME = (
    "rounds", "repeat", "collect.min_length", "collect.hold", "collect.long_hold", "vae.z_size",
    "vae.start", "mdnrnn.hidden", "mdnrnn.mixtures", "mdnrnn.restart_input", "mdnrnn.fair",
    "evolve.features", "evolve.bias", "evolve.hidden", "evolve.finalists",
    "evaluate.episodes", "collect.swing", *(f"ahead.{f.name}" for f in fields(AheadConfig)),
)  # fmt: skip
REAL = (
    "evolve.population", "evolve.episodes", "evolve.generations", "evolve.sigma", "evolve.penalty",
    "evolve.check_every", "evolve.check_episodes",
)  # fmt: skip


def preset_names(task: str) -> list[str]:
    """The presets of a task; one without files of its own has those of `world`."""
    names = sorted(path.stem.partition("-")[::2] for path in PRESETS.glob("*.txt"))
    own = [name for world, name in names if world == task]
    return own or [name for world, name in names if world == "world"]


def read_preset(task: str, name: str) -> tuple[str, dict[str, str], dict[str, str]]:
    """What a preset is for, its settings, and their reasons, by name; SettingError: there is none."""
    if name not in preset_names(task):
        raise SettingError(f"unknown preset {name!r}: choose from {', '.join(preset_names(task))}")
    path = PRESETS / f"{task}-{name}.txt"
    path = path if path.exists() else PRESETS / f"world-{name}.txt"
    lines = [line.partition("#")[::2] for line in path.read_text(encoding="utf-8").splitlines()]
    about = " ".join(comment.strip() for text, comment in lines if not text)
    values = pairs(text.strip() for text, _ in lines if text)
    reasons = {key.partition("=")[0]: why.strip() for key, why in lines if key and why}
    return about.strip(), values, reasons


def resolve(task: str, preset: str = "quick", settings: Iterable = (), seed: int = 0) -> Config:
    """The configuration of a preset, changed by settings such as "rounds=2"; SettingError says what is wrong."""
    try:
        world = find(task)
    except TaskError as error:
        raise SettingError(str(error)) from error
    _, own, _ = read_preset(world.name, preset)
    own |= {"task": world.name, "preset": preset, "seed": seed}
    more = suggested(world, int(own.get("collect.episodes", 0)))
    return from_flat(own | pairs([*more, *world.settings.split(), *settings]))


def pairs(settings: Iterable[str]) -> dict[str, str]:
    """["evolve.tau=1.15", ...] -> {"evolve.tau": "1.15", ...}."""
    values = {}
    for text in settings:
        key, equals, value = text.partition("=")
        if not equals:
            raise SettingError(f"--set takes KEY=VALUE, such as evolve.tau=1.15, not {text!r}")
        if key in ARGUMENTS:
            raise SettingError(f"--set cannot change {key}: it has an argument of its own")
        values[key] = value
    return values


def from_flat(values: dict) -> Config:
    """A Config from {"evolve.tau": 1.15, ...}, values or their text; what is missing has its default."""
    config = _built(values)
    first, later = config.phase("first"), config.phase("later")
    for key in ("mdnrnn.done_weight", "mdnrnn.reward_weight", "mdnrnn.value_weight"):
        if bool(flat(first)[key]) != bool(flat(later)[key]):
            raise SettingError(f"later.{key}: 0 in all rounds or in none, M being one network")
    m, v_learns_on = config.mdnrnn, config.rounds > 1 and later.vae.learning_rate
    if config.ahead.horizon and not (m.done_weight or m.reward_weight):
        fault = "ahead.horizon needs M to foretell the end or the reward"
        mend = "set mdnrnn.done_weight or mdnrnn.reward_weight, or ahead.horizon=0"
        raise SettingError(f"{fault}: {mend}")
    if v_learns_on and (first.collect.more or later.collect.more):
        fault = "collect.more keeps no frames that a later V could encode"
        raise SettingError(f"{fault}: set later.vae.learning_rate=0, or collect.more=0")
    unchecked = config.rounds > 1 and not (first.evolve.check_every and later.evolve.check_every)
    if config.evolve.finalists and (unchecked or v_learns_on):
        fault = "evolve.finalists are chosen by checks, of rounds with one V"
        mend = "set evolve.check_every and later.vae.learning_rate=0, or evolve.finalists=0"
        raise SettingError(f"{fault}: {mend}")
    return config


def flat(config: Config) -> dict:
    """{"evolve.tau": 1.15, ...}: what from_flat takes."""
    return {key: attrgetter(key)(config) for key in _FIELDS} | config.phases


def help_text(task: str, preset: str | None = None) -> str:
    """A line per setting: its name, the paper's value, the preset's if that differs, its help; then the reason.

    preset: that of a world of one's own is quick, unless another is named.
    """
    if find(task).name not in known():
        preset = preset or "quick"
    paper = resolve(task, "paper") if "paper" in preset_names(task) else Config()
    papers, chosen = flat(paper), flat(resolve(task, preset)) if preset else {}
    reasons = read_preset(task, preset)[2] if preset else {}
    rows = [("", "paper", preset or "", "")]
    for key in dict.fromkeys([*SETTINGS, *(key for key in chosen if key not in ARGUMENTS)]):
        usual, own = str(papers.get(key, "")), str(chosen.get(key, ""))
        text = SETTINGS[key].metadata["help"] if key in SETTINGS else ""
        rows.append((key, usual, own if own != usual else "", text))
        if key in reasons:
            rows.append(("", "", "", f"-> {reasons[key]}"))
    line = "  {:29} {:9} {:9} {}" if preset else "  {:29} {:9} {}{}"
    return "\n".join(line.format(*row).rstrip() for row in rows)


def _built(values: dict) -> Config:
    parsed = {key: _parsed(key, value) for key, value in values.items()}
    own = {name: {} for name in ("", *_SECTIONS)}
    for key in parsed.keys() & _FIELDS.keys():
        section, _, name = key.rpartition(".")
        own[section][name] = parsed.pop(key)
    sections = {name: replace(default, **own[name]) for name, default in _SECTIONS.items()}
    return Config(**own[""], **sections, phases=parsed)


def _parsed(key: str, value):
    """`value`, which may be text, as the setting's type and within its range."""
    phase, _, name = key.partition(".")
    if phase not in ("later", "real"):
        phase, name = "", key
    known = SETTINGS if phase else _FIELDS
    if name not in known:
        near = [k for k in SETTINGS if k.endswith(f".{name}")]
        near = near or get_close_matches(name, SETTINGS, n=1)
        mend = "`python run.py settings` lists them all"
        if near:
            before = key.removesuffix(name)
            mend = f"did you mean {' or '.join(before + k for k in near)}? {mend}"
        raise SettingError(f"unknown setting {key!r}: {mend}")
    if phase == "later" and name in SAME:
        raise SettingError(f"{key} cannot be: {name} is the same in all rounds")
    if phase == "real" and name not in REAL:
        raise SettingError(f"{key} cannot be: C alone evolves in reality, by its {', '.join(REAL)}")
    return _converted(key, str(value), known[name])


def _converted(key: str, text: str, setting: Field):
    """The text as a value of the setting's type and within its range, or one of its choices."""
    kind = type(setting.default)
    low, high, choices = (setting.metadata[name] for name in ("low", "high", "choices"))
    if text in choices:
        return text
    span = f"at least {low}" if high == math.inf else f"{low} to {high}"
    try:
        if choices and low is None:
            raise ValueError
        flags = {"true": True, "1": True, "false": False, "0": False}
        value = flags[text.lower()] if kind is bool else kind(text)
        inside = low is None or (low <= float(value) <= high and float(value) < math.inf)
    except (ValueError, KeyError):
        wanted = kind.__name__
        if choices:
            wanted = f"one of {', '.join([*choices, *[span] * (low is not None)])}"
        raise SettingError(f"{key} takes {wanted}, not {text!r}") from None
    if not inside:  # nan, too
        raise SettingError(f"{key} = {value} is out of range: {span}")
    return value
