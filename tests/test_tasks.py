"""A world of one's own: found by its name, made from its declaration, and what happens where it is a poor one."""

import ast
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

from tests.conftest import ROOT, TINY, tiny_config
from wm_numpy.envs import unknown
from wm_numpy.envs.environment import Environment, EnvironmentFailed, made
from wm_numpy.envs.picture import resizer
from wm_numpy.envs.policies import blind_baseline, random_policy
from wm_numpy.envs.unknown import completed, examined, suggested
from wm_numpy.models import agent as agents
from wm_numpy.models.agent import Agent
from wm_numpy.settings import tasks
from wm_numpy.settings.config import SettingError, help_text, resolve
from wm_numpy.settings.tasks import Task, TaskError, find, known
from wm_numpy.training.data import Records, frame_dtype
from wm_numpy.training.experiment import STAGES, Experiment
from wm_numpy.training.loops import RunError
from wm_numpy.training.runfolder import RunFolder
from wm_numpy.worlds.world import Dream, RealWorld

CATCH = f"{ROOT}/tests/catch.py:CATCH"
PACKAGE = ROOT / "wm_numpy"


# ------------------------------------------------------------------------------------------------- by name


def test_no_other_file_knows_a_world_by_its_name():
    """Those that declare one, its drawing, and the file on what its pictures hide."""
    own = {"doom.py", "carracing.py", "car.py", "fireballs.py"}
    for path in PACKAGE.glob("**/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = {getattr(node, a, None) for a in ("id", "attr", "name", "module", "value")}
            names = {x.rpartition(".")[2].lower() for x in names if isinstance(x, str)}
            assert path.name in own or not names & {"doom", "carracing", "takecover"}, path


def write(folder: Path, text: str, name: str = "mine.py") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def test_a_file_and_a_name_in_it(tmp_path, monkeypatch):
    """A declaration, or a bare environment; what lies beside the file can be imported; the path is kept whole."""
    write(tmp_path, "SIDE = 70", "its_size.py")
    text = "\n".join([
        "from its_size import SIDE", "import numpy as np", "from gymnasium import Env, spaces",
        "from wm_numpy.settings.tasks import Task",
        "class Bare(Env):", "    action_space = spaces.Discrete(2)",
        "    observation_space = spaces.Box(0, 255, (SIDE, SIDE, 3), np.uint8)",
        "    def reset(self, **kwargs): return np.zeros((SIDE, SIDE, 3), np.uint8), {}",
        "    def step(self, action): return self.reset()[0], 1.0, False, False, {}",
        "T = Task(make=Bare, title='Nothing', max_steps=9)",
    ])  # fmt: skip
    path = write(tmp_path, text)
    monkeypatch.chdir(tmp_path)
    bare, task = find("mine.py:Bare"), find("mine.py:T")
    assert bare.name == f"{path}:Bare" and bare.title == bare.folder == "Bare"
    assert (bare.size, bare.actions, bare.discrete, bare.max_steps) == ((70, 70), 2, True, 1000)
    assert (task.title, task.max_steps, task.fps) == ("Nothing", 9, 30)
    assert resolve("mine.py:T", "smoke").task == f"{path}:T"
    assert find(f"{path}:T") == task


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("x = 1\ny = x / 0\n", r"mine.py cannot be imported, line 2: ZeroDivisionError"),
        ("x = 1\n\ny = = 2\n", r"mine.py cannot be imported, line 3: SyntaxError"),
        ("import not_there_at_all\n", r"line 1: ModuleNotFoundError: .*not_there_at_all"),
        ("x = 1\n", "mine.py declares no CATCH"),
        ("CATCHE = 1\n", r"mine.py declares no CATCH: did you mean CATCHE\?"),
        ("from wm_numpy.settings.tasks import Task\nCATCH = Task(max_steps=3)\n", "line 2.*make"),
        (None, "mine.py is missing on .*: put it back, or name the new place"),
    ],
)
def test_a_file_that_declares_nothing(tmp_path, text, sentence):
    if text is not None:
        write(tmp_path, text)
    with pytest.raises(TaskError, match=sentence):
        find(f"{tmp_path}/mine.py:CATCH")
    with pytest.raises(SettingError, match=sentence):
        resolve(f"{tmp_path}/mine.py:CATCH", "smoke")


@pytest.mark.parametrize(
    "name, sentence",
    [
        ("pong", "choose from carracing, doom, or name a world of your own"),
        ("mine.py", r"mine.py lacks the name of a world in that file, as in FILE.py:NAME"),
        ("gym:Nothing-v0", "gym:Nothing-v0: .*doesn't exist"),
        ("gym:gymnasium:Nothing-v0", "gym:gymnasium:Nothing-v0: .*doesn't exist"),
    ],
)
def test_worlds_that_are_not_there(name, sentence):
    with pytest.raises(TaskError, match=sentence):
        find(name)


def test_an_id_of_gymnasium():
    """A picture that is drawn by render, made smaller; the limit is the environment's own."""
    task = find("gym:CartPole-v1")
    assert (task.actions, task.discrete, task.picture, task.max_steps) == (2, True, "render", 500)
    env = Environment("gym:CartPole-v1", repeat=2)
    frame, _ = env.reset(seed=1)
    assert frame.shape == (64, 64, 3) and frame.std() > 5 and env.crop.shape == (400, 600, 3)
    total, over = 0, False
    while not over:
        _, reward, terminated, truncated, info = env.step(np.array([-1, 1]))
        assert info["reward"] == reward
        total, over = total + reward, terminated or truncated
    env.close()
    theirs = gym.make("CartPole-v1")
    theirs.reset(seed=1)
    steps = 1
    while not theirs.step(1)[2]:
        steps += 1
    assert total == steps
    assert find("gym:gymnasium.envs.classic_control:CartPole-v1").actions == 2


# ------------------------------------------------------------------------------------------- the adaptor


class Game(gym.Env):
    """Pictures of 70 x 80 whose grey is the step; what is asked of it goes wrong."""

    action_space = gym.spaces.Discrete(3)
    observation_space = gym.spaces.Box(0, 255, (70, 80, 3), np.uint8)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.actions = 0, []
        return self.picture(), {}

    def step(self, action):
        self.t += 1
        self.actions.append(action)
        return self.picture(), self.reward(), self.over(), False, {}

    def picture(self):
        return np.full((70, 80, 3), self.t, np.uint8)

    def reward(self):
        return 1.0

    def over(self):
        return False


def declared(game: type, **facts) -> Task:
    return completed(Task(make=game, name="mine.py:GAME", **facts))


def fails(sentence: str, game: type, steps: int = 3, **facts) -> None:
    with pytest.raises((EnvironmentFailed, TaskError), match="mine.py:GAME.*" + sentence):
        env = Environment(declared(game, **facts))
        env.reset(seed=1)
        for _ in range(steps):
            env.step(np.zeros(env.action_space.shape))


def of(**parts) -> type:
    """A Game with other parts."""
    return type("Mine", (Game,), parts)


def test_a_game_that_never_ends_is_cut():
    env = Environment(declared(Game, max_steps=5), repeat=2)
    env.reset(seed=1)
    ends = [env.step(np.eye(3)[2])[2:4] for _ in range(3)]
    assert ends == [(False, False), (False, False), (False, True)] and env.game.actions == [2] * 5
    assert declared(Game).max_steps == 1000


def test_a_game_that_ends_at_once():
    env = Environment(declared(of(over=lambda self: True)), repeat=4)
    for _ in range(2):
        env.reset(seed=1)
        _, reward, terminated, _, _ = env.step(np.zeros(3))
        assert terminated and reward == 1 and env.frames == 4 and env.game.t == 1
        with pytest.raises(gym.error.ResetNeeded):
            env.step(np.zeros(3))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, bool, np.uint8])
@pytest.mark.parametrize("shape", [(70, 80, 3), (70, 80, 1), (70, 80)])
def test_pictures_of_other_types_are_the_same_picture(dtype, shape):
    unit = np.dtype(dtype).kind in "fb"
    values = np.ones if unit else lambda *args: 255 * np.ones(*args)
    game = of(picture=lambda self: values(shape, dtype))
    frame, _ = Environment(declared(game, picture="observation")).reset(seed=1)
    assert frame.dtype == np.uint8 and (frame == 255).all()


@pytest.mark.parametrize(
    "parts, sentence",
    [
        ({"reward": lambda self: np.nan}, "step.*the reward is nan"),
        ({"reward": lambda self: None}, "step.*TypeError"),
        ({"reward": lambda self: 1 / (2 - self.t)}, r"ZeroDivisionError.*test_tasks.py, line \d+"),
        ({"picture": lambda self: np.full((70, 80, 3), np.nan)}, "0 to 1, not nan"),
        ({"picture": lambda self: np.full((70, 80, 3), 300)}, "0 to 255, not 300"),
        ({"picture": lambda self: np.zeros((3, 70, 80), np.uint8)}, r"height.*\(3, 70, 80\)"),
        ({"picture": lambda self: np.zeros((70 + self.t, 80), np.uint8)}, r"\(71, 80\) now"),
        ({"picture": lambda self: "you are in a maze"}, "height, width.*declare `picture`"),
        ({"picture": lambda self: {"camera": 1}}, "height, width"),
        ({"reset": lambda self, **how: 1 / 0}, "reset: ZeroDivisionError"),
        ({"__init__": lambda self: 1 / 0}, "make: ZeroDivisionError"),
        ({"observation_space": gym.spaces.Text(9)}, "observation is no picture.*render_mode"),
        ({"action_space": gym.spaces.Dict(a=gym.spaces.Discrete(2))}, "Box, with bounds, or Disc"),
        ({"action_space": gym.spaces.MultiDiscrete([2, 2])}, "declare a function `act`"),
        ({"action_space": gym.spaces.Box(-np.inf, np.inf, (2,))}, "Box, with bounds"),
        ({"possible_agents": ["a", "b"]}, "several agents"),
    ],
)
def test_a_poor_game_is_named_in_one_sentence(parts, sentence):
    fails(sentence, of(**parts))


def test_what_step_returns():
    env = Environment(declared(Game))
    env.reset(seed=1)
    env.game.step = lambda action: (np.zeros((70, 80, 3), np.uint8), 0, False, {})
    with pytest.raises(EnvironmentFailed, match=r"it returns \(picture, reward, terminated"):
        env.step(np.zeros(env.task.actions))


@pytest.mark.parametrize("old, wrong", [("rest=(0, 1, 0)", "rest=(0, 1)"), ('"stay", ', "")])
def test_words_of_every_action(tmp_path, old, wrong):
    own = write(tmp_path, (ROOT / "tests" / "catch.py").read_text().replace(old, wrong))
    sentence = r"declares 2 (rest|labels): there are 3 numbers in an action"
    with pytest.raises(TaskError, match=sentence):
        find(f"{own}:CATCH")


def test_settings_of_a_world_of_ones_own():
    """Those of its usual preset are shown, with the reasons; a world that is none is refused."""
    assert help_text(CATCH) == help_text(CATCH, "quick") != help_text(CATCH, "smoke")
    assert "quick" in help_text(CATCH).splitlines()[0]
    with pytest.raises(TaskError, match="unknown task 'chess'"):
        help_text("chess")


def test_a_declaration_that_cannot_be():
    for facts, sentence in (
        ({"max_steps": 0}, "max_steps = 0"),
        ({"actions": -1}, "actions = -1"),
        ({"picture": "film"}, '"observation" or "render"'),
        ({"act": lambda a: 0}, "declare actions"),
    ):
        with pytest.raises(ValueError, match=sentence):
            declared(Game, **facts)


def test_actions_of_every_kind():
    box = gym.spaces.Box(np.array([0.0, -2]), np.array([10.0, 2]))
    for game, given, action in (
        (of(action_space=gym.spaces.Discrete(3, start=5)), [0, 0.2, 0.1], 6),
        (of(action_space=box), [-0.5, 1], [2.5, 2]),
        (of(action_space=gym.spaces.MultiDiscrete([2, 2])), [-1, 1], [0, 1]),
    ):
        own = {"act": lambda a: [int(x > 0) for x in a], "actions": 2} if action == [0, 1] else {}
        env = Environment(declared(game, **own))
        env.reset(seed=1)
        env.step(np.array(given))
        assert np.array_equal(env.game.actions, [action])


def test_a_picture_is_cropped_and_what_lies_outside_not_seen():
    grey = lambda self: np.pad(np.full((60, 64, 3), 9, np.uint8), ((10, 0), (0, 16), (0, 0)))  # noqa: E731
    env = Environment(declared(of(picture=grey), crop=(slice(10, None), slice(64))))
    assert (env.reset(seed=1)[0] == 9).all() and env.crop.shape == (60, 64, 3)


@pytest.mark.parametrize("size", [(400, 600), (256, 300), (40, 50), (500, 64)])
def test_pictures_of_any_size_become_small(size):
    """A slope stays the same slope, up to rounding and an old pixel; and a spot is not lost between the new ones."""
    y, x = np.meshgrid(*(np.linspace(0, 250, n) for n in size), indexing="ij")
    small = resizer(*size)(np.stack([y, x, 250 - x], -1).astype(np.uint8)).astype(float)
    middle = (np.arange(64) + 0.5) / 64 * 250
    tolerance = 4 + 250 / min(size)
    np.testing.assert_allclose(
        small[..., 0], np.broadcast_to(middle[:, None], (64, 64)), atol=tolerance
    )
    np.testing.assert_allclose(small[..., 1], np.broadcast_to(middle, (64, 64)), atol=tolerance)
    side = max(2, -(-max(size) // 64))
    for at in range(0, min(size) - side, 7):
        frame = np.zeros((*size, 3), np.uint8)
        frame[at : at + side, at : at + side] = 255
        assert resizer(*size)(frame).max() > 25


def test_a_world_that_ignores_its_seed_is_told_of(monkeypatch):
    luck = np.random.default_rng()
    careless = of(picture=lambda self: luck.integers(0, 255, (70, 80, 3)).astype(np.uint8))
    monkeypatch.setattr(unknown, "_random_play", lambda name: (9, 1.0, 0))
    for game, told in ((careless, True), (Game, False)):
        lines = list(examined(replace(declared(game), name="mine.py:GAME")))
        assert any("mine.py:GAME ignores its seed" in line for line in lines) == told
        assert len(lines) == len(set(lines))
    odd = of(reward=lambda self: "1")
    assert any("check_env" in line for line in examined(declared(odd)))
    assert all(not list(examined(find(name))) for name in known())


def test_a_world_that_truncates_by_itself_is_told_of(tmp_path):
    """M does not learn such an end; at the declared limit it need not."""
    text = (ROOT / "tests" / "catch.py").read_text()
    end = "self.left == 0, False, {}"
    assert end in text
    text = text.replace(end, "False, self.left == 0, {}")
    text += "\nSHORT = Task(make=Catch, max_steps=14 * 28)\n"
    path = write(tmp_path, text)
    told = list(examined(find(f"{path}:CATCH")))
    assert any("truncates an episode after 392 frames, though it may last 1,000" in x for x in told)
    assert not [x for x in examined(find(f"{path}:SHORT")) if "truncates" in x]


def test_a_run_continues_where_its_world_moved_to(tmp_path):
    """The same name in another file, once the old one is gone; finalists of before are read, too."""
    text = (ROOT / "tests" / "catch.py").read_text()
    changes = "evolve.finalists=1", "evolve.check_every=9", "evolve.check_episodes=2"
    old, new = write(tmp_path, text), write(tmp_path, text, "new.py")
    Experiment(tiny_config(f"{old}:CATCH", *changes), tmp_path / "run").run(STAGES[:-1])
    (tmp_path / "run" / "selected.npz").unlink()
    config = tiny_config(f"{new}:CATCH", *changes)
    with pytest.raises(RunError, match="another run"):
        Experiment(config, tmp_path / "run")
    Path(old).unlink()
    tasks._found.cache_clear()
    tasks._brought.clear()
    Experiment(config, tmp_path / "run").run()
    tasks._brought.clear()
    assert Agent.load(tmp_path / "run").config.task == f"{new}:CATCH"


def test_what_random_play_asks_for(tmp_path):
    """Large rewards weigh less, where they are small nothing is changed; of short episodes there are more."""
    asked = [suggested(find(f"gym:{name}"), 400) for name in ("Pendulum-v1", "CartPole-v1")]
    assert asked[0] == ["mdnrnn.reward_weight=1e-1", "collect.episodes=400"]
    assert asked[1][0] == "mdnrnn.reward_weight=1e-0"
    assert 1200 < int(asked[1][1].removeprefix("collect.episodes=")) <= 2000
    text = "\n".join([
        "import gymnasium as gym, numpy as np",
        "class Long(gym.Env):",
        "    action_space = gym.spaces.Discrete(2)",
        "    observation_space = gym.spaces.Box(0, 255, (64, 64, 3), np.uint8)",
        "    def reset(self, seed=None, options=None):",
        "        self.t = 0",
        "        return np.zeros((64, 64, 3), np.uint8), {}",
        "    def step(self, action):",
        "        self.t += 1",
        "        end = self.t == 500",
        "        return np.zeros((64, 64, 3), np.uint8), -100.0 * end, end, False, {}",
    ])  # fmt: skip
    long = find(f"{write(tmp_path, text)}:Long")
    assert suggested(long, 400)[0].endswith("1e-2")  # what comes at the end counts
    config = resolve("gym:CartPole-v1")
    run = RunFolder(config, tmp_path / "run")
    assert run.disk_needed() < 1.5e9  # not 2,000 episodes of 500 frames
    assert resolve("gym:Pendulum-v1").mdnrnn.reward_weight == 0.1
    assert resolve("gym:Pendulum-v1", "quick", ["mdnrnn.reward_weight=3"]).mdnrnn.reward_weight == 3


# ------------------------------------------------------------------------------ discrete actions, to M


def catch_agent(seed: int = 0) -> Agent:
    rng, c = np.random.default_rng(seed), tiny_config(CATCH, "vae.z_size=6")
    m = agents.new_mdnrnn(c, rng)
    starts = rng.standard_normal((2, 5, 6)).astype(np.float32)
    return Agent(c, agents.new_vae(c, rng), m, rng.standard_normal(agents.theta_size(c)), starts)


@pytest.mark.parametrize("kind", ["dream", "real"])
def test_m_hears_the_action_that_was_taken(kind):
    agent = catch_agent()
    world = Dream(agent, 2)
    if kind == "real":
        world = RealWorld(agent, [Environment(CATCH, repeat=2) for _ in range(2)])
    heard, step = [], agent.m.step
    agent.m.step = lambda z, action, *args: (heard.append(action), step(z, action, *args))[1]
    world.reset(seed=3)
    world.advance(np.array([[-0.9, -0.5, -0.8], [0.2, 0.1, 0.3]]))
    assert heard[0].tolist() == [[0, 1, 0], [0, 0, 1]]


def test_blind_policies_of_discrete_actions():
    policy = random_policy(CATCH, np.random.default_rng(0), hold=3)
    actions = np.array([policy() for _ in range(3000)])
    assert set(map(tuple, actions)) == set(map(tuple, np.eye(3)))
    assert np.allclose(actions.mean(axis=0), 1 / 3, atol=0.05)
    policy = blind_baseline(CATCH, np.random.default_rng(0), repeat=20)
    sides = [int(policy().argmax()) for _ in range(7)]
    assert sides in ([2, 0, 0, 0, 2, 2, 2], [0, 2, 2, 2, 0, 0, 0])


# ------------------------------------------------------------------------------------------------ whole runs


def command(folder: Path, *argv: str) -> str:
    """What a command prints, in a process of its own and in another folder."""
    argv = [sys.executable, str(ROOT / "run.py"), *map(str, argv)]
    done = subprocess.run(argv, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_world_of_ones_own_from_its_file_to_its_report(tmp_path):
    """It resumes; other commands take the run from elsewhere; actions are recorded as they were taken."""
    (tmp_path / "elsewhere").mkdir()
    source = (ROOT / "tests" / "catch.py").read_text()
    (tmp_path / "game.py").write_text(source.replace("14, 0", "2, 0"))
    tiny = [part for setting in TINY for part in ("--set", setting)]
    train = ["train", "game.py:CATCH", "--preset", "smoke", "--out", "run", *tiny]
    command(tmp_path, *train, "--stage", "collect")
    told = command(tmp_path, *train)
    assert (
        "random policy" in told
        and "blind baseline" in told
        and "None" not in told
        and "paper" not in told.partition("real episodes")[2]
    )
    assert {"results.json", "report.html"} <= set(os.listdir(tmp_path / "run"))
    records = Records(tmp_path / "run" / "episodes", frame_dtype(3)).read(0)
    assert set(map(tuple, records["action"][:-1])) <= set(map(tuple, np.eye(3)))
    assert records["reward"].max() <= 1 and records["done"][-2] and records["seen"].all()
    run, out = tmp_path / "run", tmp_path / "elsewhere" / "small"
    told = command(tmp_path / "elsewhere", "evaluate", run, "--episodes", "2")
    command(tmp_path / "elsewhere", "export", run, out)
    assert told == command(tmp_path / "elsewhere", "evaluate", out, "--episodes", "2") or told
    assert find(f"{tmp_path}/game.py:CATCH").actions == agents.Agent.load(out).m.action_size
    (tmp_path / "game.py").rename(tmp_path / "gone.py")
    argv = [sys.executable, str(ROOT / "run.py"), "evaluate", str(run)]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and f"{tmp_path}/game.py is missing" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_an_error_in_a_worker_arrives_as_one_sentence(tmp_path):
    source = (ROOT / "tests" / "catch.py").read_text()
    broken = source.replace("self.y += 3", "self.y += 3 + 0 // (self.left - 2)")
    (tmp_path / "game.py").write_text(source)
    config = tiny_config(f"{tmp_path}/game.py:CATCH")
    (tmp_path / "game.py").write_text(broken)  # which this process does not read again
    with pytest.raises(
        EnvironmentFailed, match=r"game.py:CATCH fails in step: .*game.py, line \d+"
    ):
        Experiment(config, tmp_path / "run").run(["collect"])


def test_made_without_a_package():
    def make():
        raise ImportError("No module named 'chess'", name="chess")

    with pytest.raises(ImportError, match="mine.py:GAME misses a package .*chess"):
        made(Task(make=make, name="mine.py:GAME"))
