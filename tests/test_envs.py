"""The real environments: equal to gymnasium's where they must be, reproducible, tidy."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from wm_numpy.envs import doom, environment, picture, policies
from wm_numpy.envs.environment import Environment, EnvironmentDied
from wm_numpy.envs.policies import random_policy
from wm_numpy.settings.tasks import TaskError, find, known

both = pytest.mark.parametrize("task", known())


@pytest.fixture(autouse=True)
def nothing_in_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DISPLAY", raising=False)
    yield
    assert os.listdir(tmp_path) == []


@pytest.fixture
def make():
    made = []

    def make(task, **arguments):
        made.append(Environment(task, **arguments))
        return made[-1]

    yield make
    for env in made:
        env.close()


def engines(pid: int | str = "self") -> list[int]:
    """Process ids of the children of a process, all of its threads together."""
    tasks = f"/proc/{pid}/task"
    return [
        int(c) for t in pathlib.Path(tasks).iterdir() for c in (t / "children").read_text().split()
    ]


def environ() -> dict[str, str]:
    """For a Python that is started in another folder."""
    return {**os.environ, "PYTHONPATH": str(pathlib.Path(environment.__file__).parents[2])}


linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


# ------------------------------------------------------------------------------------------------------- both


@both
@pytest.mark.filterwarnings("ignore:builtin type")  # swig's
@pytest.mark.filterwarnings("error:.*WARN.*:UserWarning")
def test_gymnasium_accepts_it(task):
    env = gym.make(f"wm_numpy/{find(task).face}", render_mode="rgb_array", max_steps=30)
    check_env(env.unwrapped)
    assert env.unwrapped.render().shape[0] >= 400
    env.close()


@both
def test_a_seed_decides_everything(make, task):
    def episode(env, seed, steps=60):
        policy = random_policy(task, np.random.default_rng(seed))
        frames, rewards = [env.reset(seed=seed)[0]], []
        for _ in range(steps):
            frame, reward, terminated, _, _ = env.step(policy())
            frames.append(frame)
            rewards.append(reward)
            if terminated:
                break
        return np.array(frames), np.array(rewards)

    env = make(task)
    first, rewards = episode(env, 1)
    episode(env, 2)  # what happened before does not matter
    again, rewards_again = episode(env, 1)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(rewards, rewards_again)
    fresh, _ = episode(make(task), 1)
    np.testing.assert_array_equal(first, fresh)
    other, _ = episode(env, None)  # and without a seed the game is another
    assert other.shape != first.shape or (other != first).any()


@both
def test_an_action_that_lasts_is_one_frame_after_the_other(make, task):
    """The rewards of its frames are summed, the last of them is seen, an end stops it."""
    slow, fast = make(task, repeat=4, max_steps=202), make(task, max_steps=202)
    slow.reset(seed=3), fast.reset(seed=3)
    policy, over = random_policy(task, np.random.default_rng(0), hold=10), False
    while not over:
        action = policy()
        frame, reward, terminated, truncated, info = slow.step(action)
        total, tiles = 0.0, 0
        for _ in range(4):
            one, more, end, cut, its = fast.step(action)
            total, tiles = total + more, tiles + its.get("reward", more)
            if end or cut:
                break
        assert np.array_equal(frame, one) or (task == "doom" and end)
        assert reward == pytest.approx(total) and info.get("reward", reward) == pytest.approx(tiles)
        assert (terminated, truncated) == (end, cut)
        over = terminated or truncated
    assert slow.frames == 202 if truncated else slow.frames > 50


@both
@pytest.mark.parametrize("action", [np.nan, [np.nan], [[0.0]], 0.5, [0.1, 0.2], [0, np.inf, 0]])
def test_actions_that_cannot_be_are_refused(make, task, action):
    env = make(task)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=f"an action of {task}"):
        env.step(action)


@both
def test_limit(make, task):
    assert make(task).max_steps == {"carracing": 1000, "doom": 2100}[task]
    env = make(task, max_steps=5)
    for _ in range(2):
        env.reset(seed=0)
        ends = [env.step(np.zeros(find(task).actions, np.float32))[2:4] for _ in range(5)]
        assert ends == [(False, False)] * 4 + [(False, True)]


@both
def test_no_step_before_a_beginning_nor_after_an_end(make, task):
    env = make(task, max_steps=2)
    action = np.zeros(env.action_space.shape, np.float32)
    for _ in range(2):
        with pytest.raises(gym.error.ResetNeeded, match="call reset before step"):
            env.step(action)
        env.reset(seed=1)
        assert not env.step(action)[3] and env.step(action)[3]


@both
def test_actions_that_are_none(make, task):
    """With a NaN for gas CarRacing paid +992 and a lap in two steps."""
    env = make(task)
    env.reset(seed=4)
    right = np.zeros(env.action_space.shape)
    for wrong in (right + np.nan, right - np.inf, 0.5, right[:0], np.zeros(4), right[None]):
        sentence = rf"action of {task} is \({len(right)},\) finite numbers"
        with pytest.raises(ValueError, match=sentence):
            env.step(wrong)
    assert abs(env.step(right.tolist())[1]) < 10


@both
def test_batches_of_gymnasium(task):
    """And what is registered can be written down."""
    envs = gym.make_vec(f"wm_numpy/{find(task).face}", num_envs=2)
    frames, _ = envs.reset(seed=3)
    assert frames.shape == (2, 64, 64, 3)
    assert envs.step(envs.action_space.sample())[1].shape == (2,)
    envs.close()
    spec = gym.spec(f"wm_numpy/{find(task).face}")
    assert gym.envs.registration.EnvSpec.from_json(spec.to_json()) == spec


def test_names():
    assert known() == ["carracing", "doom"]
    for task in known():
        env = Environment(task)
        assert env.task.name == task and env.action_space.shape == (find(task).actions,)
        env.close()
    with pytest.raises(TaskError, match="carracing, doom"):
        Environment("pong")
    with pytest.raises(ValueError, match="carracing, doom"):
        random_policy("pong", np.random.default_rng(0))


@pytest.mark.parametrize(
    ("task", "module"), [("carracing", "Box2D"), ("carracing", "pygame"), ("doom", "vizdoom")]
)
def test_a_missing_package_is_named_with_its_mend(task, module):
    code = (
        f"import sys; sys.modules[{module!r}] = None\n"
        f"from wm_numpy.envs import environment\n"
        f"try: environment.Environment({task!r})\n"
        f"except ImportError as error:\n"
        f"    assert 'pip install' in str(error) and {module!r} in str(error)\n"
        f"else: raise SystemExit('made without {module}')"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=environ())


@pytest.mark.parametrize("size", [(84, 96), (100, 160), (200, 320)])
def test_resizing(size):
    resize = picture.resizer(*size)
    assert (resize(np.full((*size, 3), 200, np.uint8)) == 200).all()
    # A slope stays the same slope, each colour for itself, up to rounding and half an old pixel.
    y, x = np.meshgrid(np.linspace(0, 250, size[0]), np.linspace(0, 250, size[1]), indexing="ij")
    small = resize(np.stack([y, x, 250 - x], -1).astype(np.uint8)).astype(float)
    middle = (np.arange(64) + 0.5) / 64 * 250
    np.testing.assert_allclose(small[..., 0], np.broadcast_to(middle[:, None], (64, 64)), atol=4)
    np.testing.assert_allclose(small[..., 1], np.broadcast_to(middle, (64, 64)), atol=4)
    np.testing.assert_allclose(small[..., 2], np.broadcast_to(250 - middle, (64, 64)), atol=4)


@both
@pytest.mark.parametrize(
    "argument, sentence",
    [
        ({"repeat": 0}, "repeat = 0 is out of range: 1 to 100"),
        ({"repeat": -1}, "repeat = -1"),
        ({"repeat": 1.5}, "repeat takes int"),
        ({"max_steps": 0}, "max_steps = 0 is out of range: at least 1"),
        ({"max_steps": -5}, "max_steps = -5"),
    ],
)
def test_numbers_that_cannot_be_are_refused(task, argument, sentence):
    with pytest.raises(ValueError, match=sentence):
        Environment(task, **argument)
    with pytest.raises(ValueError, match=sentence):
        gym.make(f"wm_numpy/{find(task).face}", **argument)


# -------------------------------------------------------------------------------------------------------- car


@pytest.mark.parametrize(("seed", "drive"), [(6, "straight"), (1, "walk"), (2, "walk")])
def test_car_equals_gymnasium(make, seed, drive):
    ours, theirs = make("carracing"), gym.make("CarRacing-v3").unwrapped
    ours.reset(seed=seed)
    frame, _ = theirs.reset(seed=seed)
    np.testing.assert_array_equal(ours.crop, frame[:84])
    policy = random_policy("carracing", np.random.default_rng(seed), hold=10)
    for _ in range(200 if drive == "straight" else 120):
        action = policy() if drive == "walk" else np.array([0, 1, -1], np.float32)
        steer, gas, brake = action.astype(np.float64)
        _, reward, terminated, _, info = ours.step(action)
        controls = np.array([steer, (gas + 1) / 2, max(brake, 0)])
        frame, their_reward, their_end, _, their_info = theirs.step(controls)
        np.testing.assert_array_equal(ours.crop, frame[:84])
        tiles = info.pop("reward")
        assert (reward, terminated, info) == (their_reward, their_end, their_info)
        assert terminated or reward == pytest.approx(1000 * tiles / len(theirs.track) - 0.1)
        if terminated:
            break
    assert terminated == (drive == "straight")  # straight on leads off the field
    assert not terminated or reward == -100
    theirs.close()


@pytest.mark.parametrize(
    ("action", "steer", "gas", "brake"),
    [((0.5, 1, -1), -0.5, 1, 0), ((-1, -1, 0.5), 1, 0, 0.5), ((0, 0, 0), 0, 0.5, 0)],
)
def test_car_action_map(make, action, steer, gas, brake):
    env = make("carracing")
    env.reset(seed=0)
    for _ in range(12):  # gas rises by 0.1 a step at most
        env.step(np.array(action, np.float32))
    front, rear = env.game.car.wheels[0], env.game.car.wheels[2]
    assert front.steer == pytest.approx(steer)  # gymnasium's wheels count the other way round
    assert rear.gas == pytest.approx(gas)
    assert front.brake == pytest.approx(brake)


def test_broken_physics(make):
    env = make("carracing")
    env.reset(seed=0)

    def broken(*_):
        raise AssertionError("IsLocked() == false")

    env.game.step = broken
    with pytest.raises(EnvironmentDied, match="IsLocked"):
        env.step(np.zeros(3, np.float32))


# ------------------------------------------------------------------------------------------------------- Doom


def test_doom_equals_gymnasium(make, tmp_path):
    import vizdoom
    import vizdoom.gymnasium_wrapper

    ours = make("doom")
    arguments = {
        "screen_resolution": vizdoom.ScreenResolution.RES_160X120,
        "doom_config_path": os.devnull,
    }
    theirs = gym.make("VizdoomTakeCover-v1", **arguments).unwrapped
    ours.reset(seed=4)
    state, _ = theirs.reset(seed=4)
    np.testing.assert_array_equal(ours.game.screen, state["screen"])
    policy, terminated, steps = random_policy("doom", np.random.default_rng(4), hold=10), False, 0
    while not terminated:
        action = policy()
        button = int(action[0] > 1 / 3) + 2 * int(action[0] < -1 / 3)  # stay, right, left
        last = ours.game.screen
        frame, reward, terminated, _, _ = ours.step(action)
        state, their_reward, their_end, _, _ = theirs.step(button)
        assert (reward, terminated) == (their_reward, their_end) and reward == 1
        steps += 1
        if not terminated:
            np.testing.assert_array_equal(ours.game.screen, state["screen"])
    assert state["screen"].max() == 0  # ViZDoom's black
    np.testing.assert_array_equal(frame, ours._resize(last[:100]))  # ours: the last one visible
    assert frame.max() > 100 and steps > 30
    theirs.close()
    os.rmdir(tmp_path / "_vizdoom")  # theirs


@pytest.mark.parametrize(
    ("a", "buttons"), [(-1, [1, 0]), (-0.3, [0, 0]), (0.3, [0, 0]), (0.4, [0, 1])]
)
def test_doom_action_map(make, a, buttons):
    env = make("doom")
    env.reset(seed=0)
    env.step(np.array([a], np.float32))
    assert env.game.doom.get_last_action() == buttons


@linux
def test_a_killed_engine_is_reported(make):
    before = engines()
    env = make("doom")
    env.reset(seed=0)
    (engine,) = set(engines()) - set(before)
    os.kill(engine, signal.SIGKILL)
    with pytest.raises(EnvironmentDied, match="make a new environment"):
        for _ in range(10):
            env.step(np.zeros(1, np.float32))
    with pytest.raises(EnvironmentDied):
        env.reset()


@linux
def test_no_engine_outlives_a_killed_process():
    code = (
        "import time; from wm_numpy.envs.environment import Environment\n"
        "env = Environment('doom'); env.reset(); print(flush=True); time.sleep(60)"
    )
    python = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environ())
    python.stdout.readline()
    (engine,) = engines(python.pid)
    python.kill()
    python.communicate()
    for _ in range(50):
        stat = pathlib.Path(f"/proc/{engine}/stat")
        if not stat.exists() or stat.read_text().split()[2] == "Z":
            break
        time.sleep(0.1)
    else:
        pytest.fail("the engine goes on")


@pytest.mark.skipif(sys.platform != "linux", reason="the launcher is for Linux")
@pytest.mark.parametrize("alive", [True, False])
def test_no_engine_starts_for_a_parent_that_is_gone(tmp_path, alive):
    """A process may die between the fork and the launcher's asking to be killed with it."""
    parent, echo = str(os.getpid() if alive else os.getppid()), shutil.which("echo")
    command = [sys.executable, "-c", doom._LAUNCH, parent, tmp_path, echo, "started"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout == ("started\n" if alive else "")


@linux
@pytest.mark.parametrize("elsewhere", [True, False])
def test_a_temporary_folder_without_programs(tmp_path_factory, elsewhere):
    """Where nothing can be run in it the engine starts from another, and where there is none a sentence says so."""
    folder = tmp_path_factory.mktemp("noexec")
    mount = f"mount -t tmpfs -o noexec none {folder}"
    if (
        shutil.which("unshare") is None
        or subprocess.run(["unshare", "-m", "sh", "-c", mount]).returncode
    ):
        pytest.skip("may not mount")
    code = "from wm_numpy.envs import environment; environment.Environment('doom').reset(seed=1); print('runs')"
    if not elsewhere:
        mount += f" && mount -t tmpfs -o noexec none /dev/shm && export HOME={folder}"
    command = f'{mount} && TMPDIR={folder} exec "$0" -c "{code}"'
    unshared = ["unshare", "-m", "sh", "-c", command, sys.executable]
    done = subprocess.run(unshared, capture_output=True, text=True, env=environ())
    if elsewhere:
        assert (done.returncode, done.stdout) == (0, "runs\n"), done.stderr
    else:
        assert done.returncode == 1 and "set TMPDIR to a folder where one can" in done.stderr


# --------------------------------------------------------------------------------------------------- policies


def test_brownian_policy():
    actions = []
    for seed in range(300):
        policy = random_policy("carracing", np.random.default_rng(seed), hold=10)
        actions.append([policy() for _ in range(50)])
    actions = np.array(actions)  # (episode, step, 3)
    assert actions.dtype == np.float32 and np.abs(actions).max() == 1
    assert actions[:, 0].std() == pytest.approx(1 / np.sqrt(3), rel=0.05)  # uniform at first
    inside = (np.abs(actions[:, :-1]) < 0.4).all(-1)  # where no clipping comes between
    assert np.diff(actions, axis=1)[inside].std() == pytest.approx(np.sqrt(1 / 50), rel=0.05)
    assert abs(actions.mean()) < 0.05


def test_held_policy():
    policy = random_policy("doom", np.random.default_rng(0), hold=10)
    actions = np.array([policy() for _ in range(6000)])
    assert actions.shape == (6000, 1) and actions.dtype == np.float32
    starts = np.flatnonzero(np.diff(actions[:, 0], prepend=np.nan) != 0)
    held = np.diff(starts)
    assert set(held) == set(range(1, 11)) and held.mean() == pytest.approx(5.5, rel=0.05)
    assert actions[starts].std() == pytest.approx(1 / np.sqrt(3), rel=0.05)
    assert abs(actions[starts].mean()) < 0.06


def test_the_random_policy_of_the_table_is_uniform_at_every_step():
    for task, size in (("doom", 1), ("carracing", 3)):
        policy = random_policy(task, np.random.default_rng(0))
        actions = np.array([policy() for _ in range(20_000)])
        assert actions.shape == (20_000, size)
        assert actions.std() == pytest.approx(1 / np.sqrt(3), rel=0.03)
        assert abs(np.corrcoef(actions[:-1, 0], actions[1:, 0])[0, 1]) < 0.02
    held = random_policy("doom", np.random.default_rng(0), hold=60)
    changes = np.diff([held()[0] for _ in range(6000)]) != 0
    assert np.mean(changes) == pytest.approx(1 / 30.5, rel=0.2)
    rngs = map(np.random.default_rng, range(200))
    longer = [random_policy("doom", rng, hold=2, long_hold=60) for rng in rngs]
    actions = np.array([[policy()[0] for _ in range(300)] for policy in longer])
    changes = np.mean(np.diff(actions) != 0, axis=1)
    assert 70 < np.sum(changes < 0.1) < 130 and 70 < np.sum(changes > 0.5) < 130


def test_the_blind_baseline_alternates():
    first = set()
    for i in range(8):
        policy = policies.blind_baseline("carracing", np.random.default_rng(i), repeat=20)
        steering, gas, brake = np.array([policy() for _ in range(15)]).T
        first.add(steering[0])
        assert np.array_equal(steering, steering[0] * np.repeat([1, -1, 1], [3, 6, 6]))
        assert not gas.any() and not brake.any()
    assert first == {-1, 1}
