"""Speed of the hot paths beside PyTorch, pycma and the bare environments: `python run.py bench`.

Each side lives in a process of its own and is told over a pipe to do one repetition, in turns: ours, peer, ours ...
In one process their threads would take each other's cores. Both have all cores: our BLAS one thread with Python
threads over the batch, the peers' OpenMP and BLAS as many threads as cores, waiting as by default: they spin for
some milliseconds, which is best for PyTorch, and sleep when the next turn begins.

A row is a rate, the median of its repetitions. gemm_fraction is how much of the machine's peak in single-precision
matrix products, measured just before on all cores, the row's own products reach in the whole time of the row.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import wm_numpy  # noqa: F401  before numpy: it sets the threads of BLAS

# isort: split
import numpy as np

from wm_numpy.core.adam import Adam
from wm_numpy.envs.environment import Environment
from wm_numpy.envs.policies import random_policy
from wm_numpy.lab import plots
from wm_numpy.models import agent as agents
from wm_numpy.models.cmaes import CMAES
from wm_numpy.models.vae import VAE
from wm_numpy.settings import config
from wm_numpy.settings.tasks import find
from wm_numpy.system import files, threads
from wm_numpy.training import data, parallel
from wm_numpy.training.episodes import GROUP, real_rollouts
from wm_numpy.worlds.ahead import LookAhead
from wm_numpy.worlds.rollout import dream_rollouts
from wm_numpy.worlds.world import Dream

BATCH, POPULATION = 100, 64
CAR, DOOM = config.resolve("carracing", "paper"), config.resolve("doom", "paper")
MODULES = {"PyTorch": "torch", "pycma": "cma", "gymnasium": "gymnasium"}
PAUSE = 0.1  # seconds between turns, in which the threads of the other side go to sleep
Repeat = Callable[[int], int]  # does repetition k -> units of work done; only this is timed

# --------------------------------------------------------------------------------------------------------- V and M


def v_data(n: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, 64, 64, 3), np.uint8)


def v_ours(mode: str, n: int, calls: int) -> Repeat:
    """`calls` times: an update, or the encoding or decoding of n images."""
    rng, frames = np.random.default_rng(0), v_data(n)
    v = VAE(config.VAEConfig(), rng)
    adam, z = Adam(v.params.size), rng.standard_normal((n, 32), np.float32)

    def train() -> None:
        _, gradient = v.loss_and_grad(frames, rng.standard_normal((n, 32), np.float32))
        adam.step(v.params.flat, gradient, 1e-4)

    once = {"train": train, "encode": lambda: v.encode(frames), "decode": lambda: v.decode(z)}[mode]
    return lambda k: n * len([once() for _ in range(calls)])


def m_data(c: config.Config, steps: int) -> dict[str, np.ndarray]:
    """A batch in which every window begins an episode and no other does: what PyTorch's LSTM can be given whole."""
    rng = np.random.default_rng(0)
    z = rng.standard_normal((BATCH, steps + 1, c.vae.z_size), np.float32)
    action = rng.uniform(-1, 1, (BATCH, steps, find(c.task).actions)).astype(np.float32)
    batch = {"z": z[:, :-1], "z_next": z[:, 1:], "action": action}
    if c.mdnrnn.done_weight:
        batch["done"] = (rng.random((BATCH, steps)) < 0.005).astype(np.float32)
        batch["restart"] = np.tile(np.eye(1, steps, dtype=np.float32), (BATCH, 1))
    return batch


def m_ours(c: config.Config, steps: int) -> Repeat:
    """An update: mixture loss, done loss where there is the head, clipping by value, Adam."""
    m, batch = agents.new_mdnrnn(c, np.random.default_rng(0)), m_data(c, steps)
    adam = Adam(m.params.size, clip=1.0)

    def update(k: int) -> int:
        adam.step(m.params.flat, m.loss_and_grad(batch)[1], 1e-3)
        return BATCH * steps

    return update


# ------------------------------------------------------------------------------------------ the dream, and evolution


def dream_config(task: str, steps: int) -> config.Config:
    return config.resolve(task, "paper", ["evolve.tau=1.15", f"evolve.horizon={steps}"])


def new_agent(c: config.Config) -> agents.Agent:
    """Weights at random, in whose dreams nobody dies, and a C whose action is the same whatever it sees."""
    rng = np.random.default_rng(0)
    v, m = agents.new_vae(c, rng), agents.new_mdnrnn(c, rng)
    if c.mdnrnn.done_weight:
        m.params["done.b"][...] = -1e9
    vector, bias = np.zeros(agents.theta_size(c)), IDLE[c.task]
    if c.evolve.bias:
        vector[-len(bias) :] = bias
    return agents.Agent(c, v, m, vector, rng.standard_normal((2, 100, c.vae.z_size), np.float32))


def dream_ours(task: str, episodes: int, steps: int) -> Repeat:
    """population x episodes dreams, C included, in chunks over the threads as evolution runs them."""
    agent = new_agent(dream_config(task, steps))
    vectors = 0.1 * np.random.default_rng(1).standard_normal((POPULATION, agent.theta.size))
    return lambda k: int(dream_rollouts(agent, vectors, np.arange(episodes) + k)[1].sum())


def ahead_ours(games: int, decisions: int) -> Repeat:
    """Decisions of so many games at once by an agent that looks ahead, on one thread; its world is a dream."""
    agent = new_agent(config.resolve("doom", "laptop"))
    world = Dream.as_evolved(agent, games, memories=0.0)

    def repeat(k: int) -> int:
        features, _ = world.reset(seed=k * games)
        act = LookAhead(world, agent.controller(), np.arange(games))
        for _ in range(decisions):
            features = world.advance(act(features))[0]
        return games * decisions

    return repeat


def cma_ours(n: int) -> Repeat:
    """Whole cycles, from one decomposition of the covariance to the next."""
    es = CMAES(np.zeros(n), 0.1, POPULATION)
    return partial(_generations, es, es.constants.interval)


def cma_peer(n: int) -> Repeat:
    import cma

    options = {"popsize": POPULATION, "verbose": -9, "verb_log": 0}
    es = cma.CMAEvolutionStrategy(n * [0], 0.1, options)
    cycle = int(np.ceil(es.sm.lazy_update_gap))
    return partial(_generations, es, cycle * -(-24 // cycle))


def _generations(es, generations: int, k: int) -> int:
    for _ in range(generations):
        x = np.asarray(es.ask())
        es.tell(x, np.square(x - 1).sum(axis=1))
    return generations


# ----------------------------------------------------------------------------------------------------- environments

# Driving in a circle, and standing still; before the tanh.
IDLE = {"carracing": (0.2, -0.4, 0.0), "doom": (0.0,)}


def bare_env(task: str):
    """Gymnasium's own environment, out of its wrappers; Doom at our resolution."""
    import gymnasium as gym

    if task == "carracing":
        return gym.make("CarRacing-v3").unwrapped
    import vizdoom.gymnasium_wrapper

    os.chdir(tempfile.gettempdir())  # the engine leaves a folder where it is started
    size = vizdoom.ScreenResolution.RES_160X120
    return gym.make(
        "VizdoomTakeCover-v1", screen_resolution=size, doom_config_path=os.devnull
    ).unwrapped


def bare_action(action: np.ndarray):
    """Our action as the bare environment takes it."""
    if len(action) == 1:
        return int(action[0] > 1 / 3) + 2 * int(action[0] < -1 / 3)  # stay, right, left
    return np.array([action[0], (action[1] + 1) / 2, max(action[2], 0)], np.float64)


def play(env, seed: int, actions: Sequence) -> int:
    """An episode, its reset included, cut when the actions are used up -> steps."""
    env.reset(seed=seed)
    for step, action in enumerate(actions, 1):  # noqa: B007
        _, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            break
    return step


def one_env(task: str, bare: bool, episodes: int, limit: int) -> Repeat:
    """Episodes of the random policy in one environment, the same on both sides."""
    env = bare_env(task) if bare else Environment(task)
    convert = bare_action if bare else lambda action: action

    def repeat(k: int) -> int:
        seeds = range(k * episodes, (k + 1) * episodes)
        policies = [(seed, random_policy(task, np.random.default_rng(seed))) for seed in seeds]
        return sum(
            play(env, seed, [convert(policy()) for _ in range(limit)]) for seed, policy in policies
        )

    return repeat


def real_ours(task: str, groups: int) -> Repeat:
    """A population in the real world, V, M and C included; the processes start anew, as in every generation."""
    agent = new_agent(config.resolve(task, "paper"))
    vectors = np.tile(agent.theta, (groups * threads.workers(), 1))
    return lambda k: int(real_rollouts(agent, vectors, np.arange(GROUP) + k * GROUP)[1].sum())


def real_peer(task: str, groups: int) -> Repeat:
    """The very same episodes of the bare environment, one after another in as many processes."""
    jobs = groups * threads.workers()

    def repeat(k: int) -> int:
        work = [(task, range(k * GROUP, (k + 1) * GROUP))] * jobs
        return sum(steps for _, steps in parallel.processes(_bare_group, work))

    return repeat


_bare: dict = {}  # inside a worker process: its environment


def _bare_group(task: str, seeds: Sequence[int]) -> int:
    if task not in _bare:
        _bare[task] = bare_env(task)
    action = bare_action(np.tanh(np.array(IDLE[task], np.float32)))
    return sum(play(_bare[task], seed, [action] * find(task).max_steps) for seed in seeds)


# --------------------------------------------------------------------------------------------------------- the rows


@dataclass(frozen=True)
class Row:
    """A hot path: how either side makes its Repeat, and FLOP of matrix products per unit of work."""

    unit: str
    ours: Callable[[], Repeat]
    peer: Callable[[], Repeat] | None = None
    peer_name: str = ""
    flop: float | None = None
    repetitions: int = 7


def torch_row(unit: str, ours: Callable, macs: float, *args) -> Row:
    def peer() -> Repeat:
        from tests import peer

        return getattr(peer, ours.__name__.replace("ours", "peer"))(*args)

    return Row(unit, partial(ours, *args), peer, "PyTorch", 2 * macs)


def m_macs(c: config.Config) -> int:
    """Multiply-adds of one step: one for each weight."""
    return sum(w.size for name, w in agents.new_mdnrnn(c).params.items() if name.endswith(".w"))


# Multiply-adds per image, layer by layer
CONV1 = 31**2 * 48 * 32
ENCODER = CONV1 + 14**2 * 512 * 64 + 6**2 * 1024 * 128 + 2**2 * 2048 * 256 + 2 * 1024 * 32
DECODER = 32 * 1024 + 1024 * 3200 + 5**2 * 128 * 1600 + 13**2 * 64 * 1152 + 30**2 * 32 * 108
TRAIN = 3 * (ENCODER + DECODER) - CONV1  # the gradient of the image itself is not needed

ROWS = {
    "v_train": torch_row("images/s", v_ours, TRAIN, "train", BATCH, 1),
    "v_encode_100": torch_row("images/s", v_ours, ENCODER, "encode", 100, 10),
    "v_encode_16": torch_row("images/s", v_ours, ENCODER, "encode", 16, 40),
    "v_decode_100": torch_row("images/s", v_ours, DECODER, "decode", 100, 5),
    "m_train_256": torch_row("steps/s", m_ours, 3 * m_macs(CAR), CAR, 250),
    "m_train_512": torch_row("steps/s", m_ours, 3 * m_macs(DOOM), DOOM, 125),
    "dream_256": torch_row("steps/s", dream_ours, m_macs(CAR) + 867, "carracing", 16, 30),
    "dream_512": torch_row("steps/s", dream_ours, m_macs(DOOM) + 1088, "doom", 16, 15),
    "dream_64": torch_row("steps/s", dream_ours, m_macs(CAR) + 867, "carracing", 1, 300),
    **{
        f"look_ahead_{n}": Row("decisions/s", partial(ahead_ours, n, 64 // n), repetitions=5)
        for n in (1, 16)
    },
    **{
        f"cma_{n}": Row(
            "generations/s", partial(cma_ours, n), partial(cma_peer, n), "pycma", repetitions=3
        )
        for n in (867, 1088)
    },
    **{
        name: Row(
            "steps/s", *(partial(one_env, task, bare, *size) for bare in (False, True)), "gymnasium"
        )
        for name, task, *size in (
            ("car_env", "carracing", 1, 300),
            ("doom_env", "doom", 8, find("doom").max_steps),
        )
    },
    **{
        f"real_rollout_{name}": Row(
            "steps/s", partial(real_ours, *how), partial(real_peer, *how), "gymnasium", None, 3
        )
        for name, *how in (("car", "carracing", 1), ("doom", "doom", 16))
    },
}


def sgemm() -> Repeat:
    """The peak: a product of 1024 x 1024 on every thread."""
    a = np.full((threads.workers(), 1024, 1024), 0.5, np.float32)
    out = np.empty_like(a)

    def repeat(k: int) -> int:
        threads.run(lambda i: np.matmul(a[i], a[i], out=out[i]), range(len(a)))
        return 2 * 1024**3 * len(a)

    return repeat


# ---------------------------------------------------------------------------------------------- two sides, in turns


class Side:
    """A process that does repetitions of one side, "ours" or "peer", when told."""

    def __init__(self, side: str):
        context = multiprocessing.get_context("spawn")
        blas = 1 if side == "ours" else threads.workers()
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, side, threads.workers()))
        before = dict(os.environ)
        for library in ("OMP", "OPENBLAS", "MKL"):  # set before NumPy and PyTorch are imported
            os.environ[f"{library}_NUM_THREADS"] = str(blas)
        self.process.start()
        os.environ.clear(), os.environ.update(before)
        theirs.close()

    def rate(self, name: str, k: int) -> float:
        """Units of work per second in repetition k of a row."""
        time.sleep(PAUSE)
        self.pipe.send((name, k))
        rate, error = self.pipe.recv()
        if error:
            raise RuntimeError(f"{name}: {error}")
        return rate

    def close(self) -> None:
        self.pipe.close()
        self.process.join()


def _serve(pipe, side: str, workers: int) -> None:
    """In the process: (row, k) comes in, (units per second, error) goes out, until the pipe is closed."""
    threads.set_workers(workers)
    made: tuple[str, Repeat] = ("", sgemm())
    with suppress(EOFError, KeyboardInterrupt):
        while True:
            name, k = pipe.recv()
            try:
                if made[0] != name:
                    made = name, sgemm() if name == "sgemm" else getattr(ROWS[name], side)()
                start = time.perf_counter()
                units = made[1](k)
                pipe.send((units / (time.perf_counter() - start), None))
            except Exception as error:
                pipe.send((None, f"{type(error).__name__}: {error}"))


def measure(names: Sequence[str], repetitions: int | None = None) -> Iterator[dict]:
    """The rows of the table, one after the other; what is not installed, or has no products, is None."""
    ours, peer = Side("ours"), Side("peer")
    try:
        for name in names:
            row = ROWS[name]
            peak = max(ours.rate("sgemm", k) for k in range(10)) if row.flop else None
            alone = not row.peer or not importlib.util.find_spec(MODULES[row.peer_name])
            sides = [ours] if alone else [ours, peer]
            turns = range(1 + (repetitions or row.repetitions))  # the first one warms up
            rates = [[side.rate(name, k) for side in sides] for k in turns]
            mine, theirs = [*(median(r) for r in zip(*rates[1:], strict=True)), None][:2]
            yield {
                "name": name,
                "ours": mine,
                "peer": theirs,
                "peer_name": row.peer_name if theirs else None,
                "unit": row.unit,
                "ratio": mine / theirs if theirs else None,
                "gemm_fraction": mine * row.flop / peak if row.flop else None,
            }
    finally:
        ours.close(), peer.close()


# ---------------------------------------------------------------------------------------------------------- scaling


def _rate(repeat: Repeat, repetitions: int) -> float:
    rates = []
    for k in range(1 + repetitions):
        start = time.perf_counter()
        rates.append(repeat(k) / (time.perf_counter() - start))
    return median(rates[1:])


def thread_scaling(n: int) -> float:
    """V's training on n threads."""
    most = threads.workers()
    threads.set_workers(n)
    try:
        return _rate(v_ours("train", BATCH, 1), 5)
    finally:
        threads.set_workers(most)


def dream_scaling(n: int) -> float:
    """n dreams, the population's 64 times as many episodes."""
    return _rate(dream_ours("carracing", n // POPULATION, 20), 3)


def data_scaling(n: int, steps: int = 500) -> float:
    """Memory that drawing V's batches from n episodes takes. The files are holes: 61 GB for 10,000, none of it real."""
    dtype = data.frame_dtype(3)
    descr = np.lib.format.dtype_to_descr(dtype)
    header = {"descr": descr, "fortran_order": False, "shape": (steps + 1,)}
    with tempfile.TemporaryDirectory() as folder:
        for i in range(n):
            with open(Path(folder, f"{i:06d}.npy"), "wb") as file:
                np.lib.format.write_array_header_1_0(file, header)
                file.truncate(file.tell() + (steps + 1) * dtype.itemsize)
        ((_, used),) = parallel.processes(_memory_of_batches, [(folder,)])  # in a fresh process
    return used


def _memory_of_batches(folder: str) -> float:
    def peak() -> int:  # KB of this process; Linux alone tells
        return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])

    base = peak()
    batches = data.FrameBatches(data.Records(Path(folder), data.frame_dtype(3)), BATCH, (0,))
    for update in range(36):
        batches(update)
    return (peak() - base) / 1024


def cma_scaling(n: int) -> float:
    """A generation with its share of the decomposition, the two timed apart: a cycle of the largest takes minutes."""
    es = CMAES(np.zeros(n), 0.1, POPULATION)
    x = np.random.default_rng(0).standard_normal((n, 2 * n))
    es.cov = x @ x.T / (2 * n)  # a covariance with no two eigenvalues equal
    start = time.perf_counter()
    es._decompose()
    share = (time.perf_counter() - start) / es.constants.interval
    es.decomposed = 10  # none is due in the next ten generations
    return 1e3 * (share + 1 / _rate(partial(_generations, es, 2), 4))


SCALING = (  # what, its x axis and the values there, its y axis
    (thread_scaling, "threads", lambda: range(1, threads.workers() + 1), "images/s"),
    (dream_scaling, "dreams", lambda: (64, 256, 1024, 4096, 16_384), "steps/s"),
    (data_scaling, "episodes", lambda: (10, 100, 1000, 10_000), "MB"),
    (cma_scaling, "parameters", lambda: (100, 300, 1000, 2000, 4000), "ms per generation"),
)


def scale() -> list[dict]:
    """Print a table, draw runs/scaling.svg -> the same as records."""
    records, panels = [], []
    for function, x_name, values, unit in SCALING:
        name, xs, ys = function.__name__.removesuffix("_scaling"), list(values()), []
        for x in xs:
            ys.append(function(x))
            print(f"{name:8}{x:>8,} {x_name:12}{ys[-1]:>12,.1f} {unit}", flush=True)
        records.append({"name": name, "x": xs, "x_name": x_name, "y": ys, "unit": unit})
        axis = (x_name, xs) if x_name == "threads" else (f"log10 of {x_name}", np.log10(xs))
        panels.append(plots.chart(name, axis[0], unit, [plots.Line("", axis[1], ys)]))
    files.write(Path("runs/scaling.svg"), plots.beside(panels, columns=2).encode())
    print("runs/scaling.svg")
    return records


def main(
    json_path: Path | None = None, scaling: bool = False, only: Sequence[str] | None = None
) -> None:
    """Print the rows, all or `only` some; with `scaling` print those tables instead. Write JSON where a path is given.

    Raises:
        config.SettingError: there is no such row.
    """
    if unknown := [name for name in only or () if name not in ROWS]:
        raise config.SettingError(f"unknown row {unknown[0]!r}: choose from {', '.join(ROWS)}")
    records = scale() if scaling else []
    if not scaling:
        cores = f"{threads.workers()} cores"
        print(f"{'':18}{'ours':>11}{'peer':>11}  {'unit':14}{'ratio':>6}  of peak  peer, {cores}")
        for r in measure(only or list(ROWS)):
            forms = {"ours": ",.1f", "peer": ",.1f", "ratio": ".2f", "gemm_fraction": ".0%"}
            a, b, c, d = (
                "-" if r[key] is None else format(r[key], form) for key, form in forms.items()
            )
            peer = r["peer_name"] or "not installed"
            print(f"{r['name']:18}{a:>11}{b:>11}  {r['unit']:14}{c:>6}  {d:>7}  {peer}", flush=True)
            records.append(r)
    if json_path is not None:
        files.write(json_path, records)
