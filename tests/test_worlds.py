"""Dream and reality behind one interface, and the rollout that cannot tell them apart."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from tests.conftest import tiny_agent
from wm_numpy.envs.faces import DreamEnv
from wm_numpy.envs.faces import VectorDream as Dream
from wm_numpy.envs.faces import VectorReality as RealWorld
from wm_numpy.system import threads
from wm_numpy.system.files import DataError
from wm_numpy.worlds import rollout as rollouts
from wm_numpy.worlds.rollout import dream_rollouts, rollout

Z, H = 6, 8


class Toy(gym.Env):
    """Frames filled with 10 + steps; the seed is the episode's length; reward = seed + steps."""

    observation_space = gym.spaces.Box(0, 255, (64, 64, 3), np.uint8)

    def __init__(self, actions: int, ends: bool = True):
        self.action_space = gym.spaces.Box(-1, 1, (actions,), np.float32)
        self.ends, self.closed = ends, False

    def reset(self, *, seed=None, options=None):
        self.length, self.t, self.actions = seed, 0, []
        return self._frame(), {}

    def step(self, action):
        assert self.t < self.length, "stepped after its end"
        self.t += 1
        self.actions.append(action)
        over = self.t == self.length
        return self._frame(), self.length + self.t, over and self.ends, over and not self.ends, {}

    def _frame(self):
        return np.full((64, 64, 3), 10 + self.t, np.uint8)

    def close(self):
        self.closed = True


class StubV:
    """z = the grey of the frame, in every dimension, without noise; remembers what it saw."""

    def __init__(self, logvar: float = -100.0):
        self.seen, self.logvar = [], logvar

    def encode(self, frames):
        grey = frames[:, 0, 0, 0].astype(np.float32)
        self.seen.append(grey.tolist())
        mu = np.repeat(grey[:, None], Z, axis=1)
        return mu, np.full(mu.shape, self.logvar, np.float32)


def recorded(m):
    """M whose steps are remembered."""
    calls = []
    step = m.step

    def noted(*args):
        calls.append([np.copy(a) if isinstance(a, np.ndarray) else a for a in args])
        return step(*args)

    m.step = noted
    return calls


def make(kind: str, n: int, task: str = "doom", *settings: str, ends: bool = True):
    """A world of n; all its dreams end by the limit of 20 steps."""
    agent = tiny_agent(task, *settings)
    if kind == "dream":
        return Dream.as_evolved(agent, n)
    agent.v = StubV()
    return RealWorld(agent, [Toy(agent.m.action_size, ends) for _ in range(n)])


def some_actions(world, seed: int = 0):
    rng = np.random.default_rng(seed)
    while True:
        yield rng.uniform(-1, 1, world.action_space.shape).astype(np.float32)


both = pytest.mark.parametrize("kind", ["dream", "real"])

# ------------------------------------------------------------------------------------------- one interface


@both
@pytest.mark.parametrize("task, actions", [("doom", 1), ("carracing", 3)])
def test_spaces_and_shapes(kind, task, actions):
    world = make(kind, 4, task)
    assert isinstance(world, gym.vector.VectorEnv) and world.num_envs == 4
    assert world.metadata["autoreset_mode"] == gym.vector.AutoresetMode.DISABLED
    assert world.action_space.shape == (4, actions)
    assert world.single_action_space.shape == (actions,)
    features, info = world.reset(seed=[5, 6, 7, 8])
    assert features in world.observation_space and features[0] in world.single_observation_space
    assert info == {}
    features, reward, terminated, truncated, info = world.step(next(some_actions(world)))
    assert features in world.observation_space and info == {}
    assert reward.shape == terminated.shape == truncated.shape == (4,)
    assert reward.dtype == np.float64 and terminated.dtype == truncated.dtype == bool


@pytest.mark.parametrize("features", ["z", "zh", "zch"])
def test_the_two_worlds_have_the_same_spaces(features):
    settings = f"evolve.features={features}"
    dream, real = (make(kind, 3, "carracing", settings) for kind in ("dream", "real"))
    for name in ("observation_space", "action_space"):
        assert getattr(dream, name) == getattr(real, name)
        assert getattr(dream, f"single_{name}") == getattr(real, f"single_{name}")
    assert dream.single_observation_space.shape == (Z + H * (len(features) - 1),)


@both
def test_seeds(kind):
    world = make(kind, 3)
    for wrong in ([1, 2], [1, 2, 3, 4], [[1, 2, 3]]):
        with pytest.raises(ValueError, match="seeds were given for 3 environments"):
            world.reset(seed=wrong)
    one, _ = world.reset(seed=4)
    many, _ = world.reset(seed=[4, 5, 6])
    assert np.array_equal(one, many)  # one seed is the first of as many
    assert world.reset()[0].shape == one.shape


@both
@pytest.mark.parametrize("features", ["z", "zh", "zch"])
def test_features_are_what_c_is_said_to_see(kind, features):
    world = make(kind, 3, "doom", f"evolve.features={features}")
    first, _ = world.reset(seed=[8, 9, 10])
    assert np.array_equal(first[:, :Z], world.z) and not first[:, Z:].any()  # h[0] = c[0] = 0
    actions = some_actions(world)
    for _ in range(3):
        seen = world.step(next(actions))[0]
        if len(world.rows) < 3:
            break
        h, c = world.state
        parts = {"z": world.z, "h": h, "c": c}
        assert np.array_equal(seen, np.concatenate([parts[f] for f in features], axis=1))
        assert features == "z" or np.abs(h).max() > 0
    seen[:] = 7
    assert not (world._features == 7).any()  # a caller has a copy


@both
def test_what_has_ended_stands_still(kind):
    world = make(kind, 8, "doom", "evolve.horizon=12")
    calls = recorded(world.m)
    features, _ = world.reset(seed=[1, 2, 3, 4, 5, 6, 7, 12])
    over, kept, stood = np.zeros(8, bool), features.copy(), 0
    for actions in some_actions(world):
        alive, before = int((~over).sum()), len(calls)
        features, reward, terminated, truncated, _ = world.advance(actions)
        assert len(calls) - before == 1 and len(calls[-1][0]) == alive  # and costs nothing
        assert np.array_equal(features[over], kept[over])
        assert not reward[over].any() and not terminated[over].any() and not truncated[over].any()
        stood += over.sum()
        over |= terminated | truncated
        kept = features.copy()
        if over.all():
            break
    assert stood > 16
    features, _ = world.reset(seed=[8] * 8)  # and all rise again
    assert len(world.rows) == 8 and not np.array_equal(features, kept)


@both
def test_an_end_does_not_disturb_the_others(kind):
    """The state of each row follows it when others have gone."""
    world = make(kind, 5)
    states = {}
    world.reset(seed=[2, 9, 4, 9, 3])
    z, h = world.z.copy(), np.zeros((5, H), np.float32)
    c = h.copy()
    for actions, _ in zip(some_actions(world), range(8), strict=False):
        rows = world.rows.copy()
        if not len(rows):
            break
        restart = np.full(len(rows), float(not states))
        expected = world.m.step(z[rows], actions[rows], (h[rows], c[rows]), restart)
        features, *_ = world.advance(actions)
        assert np.allclose(features[rows, Z : Z + H], expected[1], atol=1e-6)  # zch
        assert np.allclose(features[rows, Z + H :], expected[0], atol=1e-6)
        z[rows], (h[rows], c[rows]) = features[rows, :Z], expected
        states[len(states)] = rows
    assert len({len(rows) for rows in states.values()}) > 1


@both
def test_restart_flag_is_one_at_the_first_step_alone(kind):
    world = make(kind, 2)
    calls = recorded(world.m)
    for _ in range(2):
        calls.clear()
        world.reset(seed=[9, 9])
        for actions, _ in zip(some_actions(world), range(3), strict=False):
            world.step(actions)
        assert calls[0][3].tolist() == [1, 1]
        assert all(call[3] is None or not np.any(call[3]) for call in calls[1:]) and len(calls) >= 2


# ------------------------------------------------------------------------------- Gymnasium's contract


@both
def test_no_step_before_a_beginning_nor_after_an_end(kind):
    """A loop that forgets to reset does not go on for ever."""
    world = make(kind, 3, "doom", "evolve.horizon=4")
    actions = some_actions(world)
    for play in (world.step, world.advance):
        with pytest.raises(gym.error.ResetNeeded, match="reset before step"):
            play(next(actions))
    world.reset(seed=[4, 4, 2])
    while len(world.rows) == 3:
        world.step(next(actions))
    ended = min({0, 1, 2} - set(world.rows))
    with pytest.raises(gym.error.ResetNeeded, match=rf"environments \[{ended}"):
        world.step(next(actions))
    while len(world.rows):
        world.advance(next(actions))
    for play in (world.step, world.advance):
        with pytest.raises(gym.error.ResetNeeded):
            play(next(actions))


@both
def test_a_part_begins_anew(kind):
    """The masked ones, by their own seeds, and the others go on as if nothing had happened."""
    actions = [np.full((4, 1), np.sin(t), np.float32) for t in range(12)]

    def begun(seeds):
        world = make(kind, 4, "doom", "evolve.horizon=9")
        if kind == "dream":
            world.m.params["done.w"][...], world.m.params["done.b"][...] = 0, -1  # nobody dies
        else:
            world.agent.v = StubV(logvar=np.log(0.25))
        return world, [world.reset(seed=seeds)[0]]

    world, mixed = begun([9, 9, 9, 9])
    calls = recorded(world.m)
    mixed += [world.step(a)[0] for a in actions[:5]]
    mask = np.array([False, True, False, True])
    features, info = world.reset(seed=[1, 9, 1, 8], options={"reset_mask": mask})
    assert info == {} and np.array_equal(features[~mask], mixed[-1][~mask]) and len(world.rows) == 4
    assert not features[mask][:, Z:].any()  # h = c = 0
    mixed[-1][mask] = features[mask]
    ends = []
    for a in actions[5:]:
        features, _, terminated, truncated, _ = world.advance(a)
        mixed.append(features)
        ends.append((terminated | truncated).tolist())
    # M hears of it
    assert calls[5][3].sum() == 2 and not any(np.any(call[3]) for call in calls[1:5] + calls[6:])
    through = begun([9, 9, 9, 9])
    through[1].extend(through[0].step(a)[0] for a in actions[:9])
    anew = begun([8, 9, 8, 9])
    anew[1].extend(anew[0].step(a)[0] for a in actions[5:])
    assert np.allclose([x[~mask] for x in mixed[:10]], [x[~mask] for x in through[1]], atol=1e-5)
    assert np.allclose([x[mask] for x in mixed[5:]], [x[[1, 0]] for x in anew[1]], atol=1e-5)
    assert ends[3] == (~mask).tolist()  # after nine steps, not of the world but of their own
    assert kind == "real" or not np.any(ends[4:])


def test_the_odds_of_survival_begin_anew():
    world = make("dream", 3, "doom", "evolve.ending=weighted")

    def rewards():
        world.reset(seed=5)
        return [world.step(np.zeros((3, 1)))[1] for _ in range(4)]

    first = rewards()
    assert np.array_equal(first, rewards()) and (first[0] > first[3]).all()


@both
def test_masks_that_gymnasium_refuses(kind):
    world = make(kind, 3)
    world.reset(seed=1)
    for mask, error in (
        ([True, False, True], TypeError),
        (np.array([1, 0, 1]), TypeError),
        (np.array([True, False]), ValueError),
        (np.zeros(3, bool), ValueError),
    ):
        with pytest.raises(error, match="reset_mask"):
            world.reset(options={"reset_mask": mask})
    assert len(world.rows) == 3


@both
def test_what_follows_a_seed_is_reproducible(kind):
    """reset(seed=42), reset(), ... are the same episodes every time, a part's too, and all different."""

    def starts(seed):
        world = make(kind, 2)
        if kind == "real":
            world.agent.v = StubV(logvar=np.log(0.25))
            for env in world.envs:
                env.reset = lambda seed, env=env: Toy.reset(env, seed=5)
        masked = {"reset_mask": np.array([False, True])}
        resets = [world.reset(seed=seed), world.reset()]
        resets += [world.reset(options=masked), world.reset(seed=[None, 3])]
        return np.stack([features for features, _ in resets])

    one, two, other = starts(42), starts(42), starts(43)
    assert np.array_equal(one, two) and not np.array_equal(one, other)
    assert not np.array_equal(one[0], one[1]) and np.array_equal(one[2, 0], one[1, 0])
    assert not np.array_equal(one[2, 1], one[1, 1]) and np.array_equal(one[3, 1], other[3, 1])


@both
@pytest.mark.parametrize("task", ["doom", "carracing"])
def test_actions_that_are_none(kind, task):
    world = make(kind, 2, task)
    world.reset(seed=[9, 9])
    right = np.zeros(world.action_space.shape)
    not_numbers = (right + np.nan, right + np.inf)
    for wrong in (*not_numbers, right[0], right[:, :0], right[:1], 0.0, np.zeros((2, 4))):
        with pytest.raises(ValueError, match=r"finite numbers of shape \(2, \d\)"):
            world.step(wrong)
    world.step(right.tolist())


@pytest.mark.parametrize(
    "argument, named",
    [
        ({"tau": 0}, "evolve.tau"),
        ({"tau": -1}, "evolve.tau"),
        ({"tau": np.nan}, "evolve.tau"),
        ({"tau": np.inf}, "evolve.tau"),
        ({"tau": "hot"}, "evolve.tau takes float"),
        ({"horizon": -5}, "evolve.horizon"),
        ({"horizon": 2.5}, "evolve.horizon takes int"),
        ({"memories": 1.5}, "evolve.memories"),
        ({"memories": 1.0}, "recorded moments"),
        ({"odds": 0}, "odds"),
        ({"odds": -1}, "odds"),
    ],
)
def test_dreams_that_cannot_be(argument, named):
    for make_dream in (Dream, Dream.as_evolved):
        with pytest.raises(ValueError, match=named):
            make_dream(tiny_agent(), 2, **argument)


@pytest.mark.parametrize("number", [0, -1])
def test_a_world_of_none_is_refused(number):
    with pytest.raises(ValueError, match=f"num_envs = {number} is out of range"):
        Dream(tiny_agent(), number)


@both
def test_seeds_that_are_none(kind):
    world = make(kind, 2)
    for wrong in (2**63, 2**64, 2**70, -1, [3, 2**63], 2**63 - 1):
        with pytest.raises(ValueError, match="whole numbers from 0 to"):
            world.reset(seed=wrong)
    with pytest.raises(TypeError, match="integer"):
        world.reset(seed=1.5)
    world.reset(seed=[np.int64(5), 2**31])
    if kind == "dream":
        world.reset(seed=[2**63 - 1, None])


def test_a_dream_goes_on_from_a_moment_of_another_world():
    agent = tiny_agent()
    agent.m.params["done.w"][...], agent.m.params["done.b"][...] = 0, -1  # nobody dies
    first = Dream.as_evolved(agent, 1)
    first.reset(seed=3)
    features = [first.step(np.ones((1, 1)))[0] for _ in range(4)][-1]
    second = Dream.as_evolved(agent, 1, start=first.moment)
    assert np.array_equal(second.reset(seed=9)[0], features) and second.steps == 4
    calls = recorded(agent.m)
    for _ in range(16):
        truncated = second.step(np.ones((1, 1)))[3]
    assert truncated.all() and not np.any(
        calls[0][3]
    )  # 20 steps in all; M is not told of a beginning


def test_a_batch_of_dreams_by_name(doom_run):
    name = "wm_numpy/Dream-v0"
    world = gym.make_vec(name, num_envs=3, run=str(doom_run), tau=0.7)
    assert isinstance(world.unwrapped, Dream) and world.num_envs == 3 and world.unwrapped.tau == 0.7
    features, _ = world.reset(seed=1)
    assert features in world.observation_space
    assert gym.envs.registration.EnvSpec.from_json(world.spec.to_json()).kwargs["tau"] == 0.7
    single = gym.make(name, run=str(doom_run))
    assert gym.envs.registration.EnvSpec.from_json(single.spec.to_json()).id == name
    one, _ = world.unwrapped.reset(seed=[7, 8, 9])
    seeds = iter([8])
    single.unwrapped.world._seeds = lambda seed: np.array([next(seeds)])
    assert np.array_equal(single.reset()[0], one[1])


def test_one_dream_raises_what_gymnasium_raises(doom_run):
    env = DreamEnv(str(doom_run), horizon=3)
    with pytest.raises(gym.error.ResetNeeded):
        env.step(np.zeros(1))
    env.reset(seed=1)
    for wrong in (0.5, np.zeros(2), [np.nan]):
        with pytest.raises(ValueError, match="finite numbers of shape"):
            env.step(wrong)
    while not any(env.step(np.zeros(1))[2:4]):
        pass
    with pytest.raises(gym.error.ResetNeeded):
        env.step(np.zeros(1))


@both
def test_actions_are_clipped(kind):
    a, b = make(kind, 2), make(kind, 2)
    a.reset(seed=[9, 9]), b.reset(seed=[9, 9])
    assert np.array_equal(a.step(np.full((2, 1), 5.0))[0], b.step(np.full((2, 1), 1.0))[0])


# -------------------------------------------------------------------------------------------------- dreams


def test_a_seed_decides_a_dream():
    world, actions = make("dream", 4), np.random.default_rng(1).uniform(-1, 1, (10, 4, 1))

    world.m.params["done.w"][...], world.m.params["done.b"][...] = 0, -1  # nobody dies

    def play(seed):
        return [world.reset(seed=seed)[0], *(x for a in actions for x in world.step(a)[:4])]

    first, other, again = play(3), play(4), play(3)
    assert all(np.array_equal(x, y) for x, y in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])


def test_dreams_begin_at_recorded_first_frames():
    agent = tiny_agent()
    agent.initial_latents[1] = -100  # no noise
    z = Dream.as_evolved(agent, 7).reset(seed=10)[0][:, :Z]
    assert np.allclose(z, agent.initial_latents[0][np.arange(10, 17) % 5])
    agent.initial_latents[1] = np.log(4)
    world = Dream.as_evolved(agent, 4000)
    z = world.reset(seed=np.arange(4000) * 5)[0][:, :Z]  # all from the first start
    assert np.allclose(z.std(axis=0), 2, atol=0.15) and np.allclose(
        z.mean(axis=0), agent.initial_latents[0, 0], atol=0.15
    )


@pytest.mark.parametrize(
    "horizon, given, limit", [(20, None, 20), (20, 7, 7), (0, None, 2100), (20, 0, 2100)]
)
def test_step_limit(horizon, given, limit):
    agent = tiny_agent("doom", f"evolve.horizon={horizon}")
    agent.m.params["done.w"][...], agent.m.params["done.b"][...] = 0, -1  # nobody dies
    world = Dream.as_evolved(agent, 2, horizon=given)
    assert world.limit == limit
    returns, lengths = rollout(world, lambda f: np.zeros((2, 1)), np.arange(2))
    assert lengths.tolist() == returns.tolist() == [limit] * 2
    world.reset(seed=1)
    for _ in range(limit):
        *_, terminated, truncated, _ = world.step(np.zeros((2, 1)))
    assert truncated.all() and not terminated.any()


def test_death_at_the_limit_is_death():
    agent = tiny_agent("doom", "evolve.horizon=1")
    agent.m.params["done.w"][...], agent.m.params["done.b"][...] = 0, 1
    world = Dream.as_evolved(agent, 2)
    world.reset(seed=1)
    *_, terminated, truncated, _ = world.step(np.zeros((2, 1)))
    assert terminated.all() and not truncated.any()


@pytest.mark.parametrize("task, actions", [("doom", 1), ("carracing", 3)])
def test_a_dream_is_m_stepped_by_hand(task, actions):
    """(z, action, h) -> h', and from its head z', reward, done of that very step."""
    agent = tiny_agent(task)
    if task == "doom":
        agent.m.params["done.b"][...] = -0.3  # an end, but not at once
    world, m = Dream.as_evolved(agent, 1, tau=0.7), agent.m
    low, high = world.reward_range
    normal = np.random.default_rng([8, 0]).standard_normal((16, 1, Z), np.float32)
    uniform = np.random.default_rng([8, 1]).random((16, 1, Z + 1), np.float32)
    features, _ = world.reset(seed=8)
    mu, logvar = agent.initial_latents[:, [8 % 5]]
    z = mu + np.exp(logvar / 2) * normal[0]
    state, restart = (np.zeros((1, H), np.float32),) * 2, np.ones(1)
    assert np.array_equal(features[:, :Z], z)
    for t, action in zip(range(1, 16), some_actions(world), strict=False):
        features, reward, terminated, truncated, _ = world.step(action)
        state = m.step(z, action, state, restart)
        z, expected_reward, done_logit = m.dream(state[0], 0.7, uniform[t][:, 1:], normal[t])
        expected_reward = 1 if expected_reward is None else np.clip(expected_reward, low, high)
        done = done_logit is not None and done_logit[0] > 0
        restart = np.zeros(1)
        assert np.array_equal(features[:, :Z], z) and np.array_equal(features[:, -H:], state[0])
        assert reward == expected_reward and terminated == done and not truncated
        if done:
            break
    assert t > 1


@both
def test_an_episode_hangs_on_its_own_seed_alone(kind):
    """Whatever else is in the batch, and wherever in it: noise of 40 steps, drawn in blocks."""

    def play(seeds):
        world = make(kind, len(seeds))
        if kind == "real":
            world.agent.v = StubV(logvar=np.log(0.25))
        world.limit = 40
        features = [world.reset(seed=seeds)[0]]
        for t in range(40):
            actions = np.full((len(seeds), 1), np.sin(t))
            features.append(world.advance(actions)[0] if len(world.rows) else features[-1])
        return np.stack(features, axis=1)  # (n, T, F)

    alone, among = play([41]), play([50, 41, 43, 41, 7])
    assert np.allclose(alone[0], among[1], atol=1e-4) and np.array_equal(among[1], among[3])
    assert not np.allclose(among[1], among[2], atol=0.1)
    assert np.ptp(alone[0, :, 0] - np.arange(41), axis=0) > 0.1  # there was noise


def test_dreams_begin_in_recorded_moments():
    agent = tiny_agent("doom", "evolve.memories=1")
    with pytest.raises(ValueError, match="recorded moments"):
        Dream.as_evolved(agent, 3)
    rng = np.random.default_rng(0)
    z = np.stack([rng.standard_normal((9, Z)), np.full((9, Z), -100)]).astype(np.float32)
    agent.memories = z, *rng.standard_normal((2, 9, H)).astype(np.float32)
    world = Dream.as_evolved(agent, 4)
    calls = recorded(world.m)
    features, _ = world.reset(seed=[3, 12, 30, 5])
    which = [3, 3, 3, 5]
    remembered = np.concatenate([z[0], agent.memories[2], agent.memories[1]], axis=1)
    assert np.allclose(features, remembered[which])
    world.step(np.zeros((4, 1)))
    assert not np.any(calls[0][3])  # M goes on, its state is kept
    half = Dream.as_evolved(agent, 4000, memories=0.5)
    half.reset(seed=np.arange(4000))
    assert abs(half.fresh.mean() - 0.5) < 0.03
    assert not half._features[half.fresh, Z:].any() and half._features[~half.fresh, Z:].all()
    assert Dream.as_evolved(agent, 3, memories=0).reset(seed=1)[0][:, Z:].any() == 0


def test_rewards_of_a_dream_count_by_the_odds_that_it_goes_on():
    agent = tiny_agent("doom", "evolve.ending=weighted", "evolve.odds=2")
    agent.m.params["done.w"][...], agent.m.params["done.b"][...] = 0, np.log(0.125)
    world = Dream.as_evolved(agent, 3, horizon=30)  # at odds of 1 to 4 it ends: a chance of 1/5
    returns, lengths = rollout(world, lambda f: np.zeros((3, 1)), np.arange(3))
    assert np.allclose(returns, sum(0.8**t for t in range(1, 31))) and lengths.tolist() == [30] * 3


def test_a_dream_pays_no_more_than_the_world_can():
    agent = tiny_agent("carracing", "repeat=4")
    for bias, most in ((100.0, 3.0), (-5.0, 0.0)):
        agent.m.params["reward.b"][...] = bias
        world = Dream.as_evolved(agent, 2)
        world.reset(seed=1)
        assert world.step(np.zeros((2, 3)))[1].tolist() == [most] * 2
    doom = Dream.as_evolved(tiny_agent("doom", "repeat=4"), 2, horizon=0)
    doom.reset(seed=1)
    assert doom.step(np.zeros((2, 1)))[1].tolist() == [4, 4] and doom.limit == 525


def test_temperature_widens_the_dream():
    agent = tiny_agent("carracing")

    def spread(tau):
        world = Dream.as_evolved(agent, 500, tau=tau)
        world.reset(seed=np.zeros(500, int))
        return world.step(np.zeros((500, 3)))[0][:, :Z].std()

    assert 0 < spread(0.01) < spread(1.0) < spread(3.0)
    assert Dream.as_evolved(agent, 1).tau == agent.config.evolve.tau


# ------------------------------------------------------------------------------------------------ reality


def test_m_is_stepped_with_what_came_before_the_new_frame():
    """h[t+1] = M(z[t], action[t], h[t]), z[t] of the frame that action[t] was chosen at."""
    world = make("real", 2)
    calls = recorded(world.m)
    features, _ = world.reset(seed=[4, 4])
    given = []
    for t, actions in zip(range(3), some_actions(world), strict=False):
        assert np.allclose(features[:, :Z], 10 + t)
        features, *_ = world.step(actions)
        given.append(actions)
    assert [call[0][0, 0] for call in calls] == [10, 11, 12]
    assert np.array_equal([call[1] for call in calls], given)
    assert np.array_equal(np.stack(world.envs[1].actions), np.stack(given)[:, 1])


@pytest.mark.parametrize("ends, last", [(True, []), (False, [12])])
def test_the_frame_after_an_end_is_not_looked_at(ends, last):
    world = make("real", 2, ends=ends)
    world.reset(seed=[2, 3])
    for actions, _ in zip(some_actions(world), range(3), strict=False):
        features, *_ = world.advance(actions)
    expected = [[10, 10], [11, 11], [*last, 12], *([[13]] if not ends else [])]
    assert world.agent.v.seen == expected
    assert np.allclose(features[:, 0], [11, 12] if ends else [12, 13])


def test_z_is_sampled_when_acting_too():
    world = make("real", 2)
    world.agent.v = StubV(logvar=np.log(0.25))
    a, b = (world.reset(seed=[4, seed])[0][:, :Z] for seed in (4, 5))
    assert 0.2 < (a - 10).std() < 0.9 and not np.array_equal(a, b)
    assert np.array_equal(world.reset(seed=[4, 4])[0][:, :Z], a)


def test_close_closes_the_environments():
    world = make("real", 2)
    world.close()
    assert all(env.closed for env in world.envs)


# ------------------------------------------------------------------------------------------------- rollout


class Countdown(gym.vector.VectorEnv):
    """Row i ends after seed i steps; its reward is 1, then 2, ..."""

    def __init__(self, n: int):
        self.num_envs = n

    def reset(self, *, seed=None, options=None):
        self.left, self.t = np.array(seed), 0
        return np.zeros((self.num_envs, 2)), {}

    def advance(self, actions):
        self.t += 1
        alive = self.left > 0
        self.left = self.left - alive
        over, cut = alive & (self.left == 0), np.arange(self.num_envs) % 2 == 1
        features = np.full((self.num_envs, 2), self.t)
        return features, np.where(alive, self.t, 0.0), over & ~cut, over & cut, {}


def test_returns_and_lengths():
    seen = []
    act = lambda features: seen.append(features.copy())  # noqa: E731
    returns, lengths = rollout(Countdown(4), act, np.array([3, 1, 5, 2]))
    assert lengths.tolist() == [3, 1, 5, 2] and returns.tolist() == [6, 1, 15, 3]
    assert [f[0, 0] for f in seen] == [0, 1, 2, 3, 4]  # an action for every frame but the last


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("hidden", [0, 5])
def test_each_candidate_is_the_papers_controller(bias, hidden):
    agent = tiny_agent("carracing", f"evolve.hidden={hidden}", f"evolve.bias={bias}")
    rng = np.random.default_rng(0)
    thetas = rng.standard_normal((3, len(agent.theta)))
    features = rng.standard_normal((3, 4, 6 + 8))  # (P, E, F)
    actions = agent.controller(thetas)(features.reshape(12, -1).astype(np.float32))
    for theta, seen, action in zip(thetas, features, actions.reshape(3, 4, 3), strict=True):
        theta = list(theta)
        x = seen
        for outputs in ([hidden] if hidden else []) + [3]:
            w = np.array([[theta.pop(0) for _ in range(outputs)] for _ in range(x.shape[1])])
            b = np.array([theta.pop(0) for _ in range(outputs)]) if bias else 0
            x = np.tanh(x @ w + b)
        assert not theta
        np.testing.assert_allclose(action, x, atol=1e-5)


@both
def test_rollout_cannot_tell_the_worlds_apart(kind):
    world = make(kind, 6)
    agent = world.agent
    act = agent.controller(np.stack([agent.theta, -agent.theta]))
    returns, lengths = rollout(world, act, np.arange(3, 9))
    assert returns.shape == lengths.shape == (6,) and (lengths >= 1).all() and (lengths <= 20).all()
    if kind == "real":
        n = np.arange(3, 9)
        assert lengths.tolist() == n.tolist()
        assert returns.tolist() == (n * n + n * (n + 1) / 2).tolist()
    else:
        assert np.array_equal(returns, lengths)  # 1 per step survived


def test_dreams_are_the_same_on_any_number_of_threads(workers, monkeypatch):
    monkeypatch.setattr(rollouts, "CHUNK", 8)
    agent = tiny_agent("carracing", "repeat=100")  # rewards of 0 to 75 are not cut
    agent.m.params["reward.b"][...] = 20
    vectors = np.random.default_rng(0).standard_normal((7, len(agent.theta)))
    seeds = np.array([3, 1, 4])
    results = []
    for n in (1, 2, 3):
        workers(n)
        results.append(dream_rollouts(agent, vectors, seeds))
    assert results[0][0].shape == (7, 3) and len(np.unique(results[0][0])) == 21
    for other in results[1:]:
        assert all(np.array_equal(x, y) for x, y in zip(results[0], other, strict=True))


def test_equal_candidates_meet_equal_dreams(monkeypatch):
    """Luck is the same for all, whatever chunk they are in and whoever is beside them."""
    agent = tiny_agent("carracing", "repeat=100")  # rewards of 0 to 75 are not cut
    agent.m.params["reward.b"][...] = 20
    one, others = agent.theta, np.random.default_rng(0).standard_normal((5, len(agent.theta)))
    seeds = np.array([3, 1, 4, 1])
    for chunk in (256, 8):
        monkeypatch.setattr(rollouts, "CHUNK", chunk)
        thetas = np.stack([one, *others[:3], one, *others[3:], one])
        returns, _ = dream_rollouts(agent, thetas, seeds)
        assert np.allclose(returns[[4, 7]], returns[0], rtol=1e-4)
        assert np.allclose(returns[:, 1], returns[:, 3], rtol=1e-4)
        assert len(np.unique(returns[0].round(2))) == 3 and np.ptp(returns[:, 0]) > 1


def test_each_candidate_has_its_own_returns(monkeypatch):
    """The order of candidates and of chunks: a row is the same as when its chunk is played alone."""
    monkeypatch.setattr(rollouts, "CHUNK", 6)
    monkeypatch.setattr(rollouts, "FEW", 1)
    agent = tiny_agent("carracing", "repeat=100")  # rewards of 0 to 75 are not cut
    agent.m.params["reward.b"][...] = 20
    vectors = np.random.default_rng(0).standard_normal((5, len(agent.theta)))
    seeds = np.array([3, 1, 4])
    together, _ = dream_rollouts(agent, vectors, seeds)
    for chunk in threads.cut(5, 2):
        # two chunks at least: this one twice
        alone, _ = dream_rollouts(agent, np.tile(vectors[chunk], (2, 1)), seeds)
        assert np.array_equal(alone, np.tile(together[chunk], (2, 1)))


# ------------------------------------------------------------------------------------------ for gymnasium


@pytest.mark.filterwarnings("ignore:.*observation space (min|max)imum.*")
@pytest.mark.parametrize("run", ["doom_run", "car_run"])
def test_gymnasium_accepts_the_dream(run, request):
    folder = request.getfixturevalue(run)
    env = gym.make(
        "wm_numpy/Dream-v0", run=str(folder), tau=0.9, horizon=15, render_mode="rgb_array"
    )
    check_env(env.unwrapped)
    assert env.unwrapped.world.tau == 0.9
    features, _ = env.reset(seed=3)
    assert np.array_equal(features, env.reset(seed=3)[0])
    assert not np.array_equal(features, env.reset(seed=4)[0])
    picture, steps, over = env.render(), 0, False
    assert picture.shape == (64, 64, 3) and picture.dtype == np.uint8 and picture.std() > 0
    while not over:
        _, _, terminated, truncated, _ = env.step(env.action_space.sample())
        steps, over = steps + 1, terminated or truncated
    assert steps == 15 or terminated
    assert gym.make("wm_numpy/Dream-v0", run=str(folder)).unwrapped.render() is None


def test_a_dream_for_others_ends():
    """C of the shipped Doom agent was evolved in dreams that never end; another learner has to see death."""
    world = gym.make_vec("wm_numpy/Dream-v0", num_envs=8, run="doom").unwrapped
    world.reset(seed=0)
    for _ in range(60):
        alive = len(world.rows)
        _, reward, terminated, _, _ = world.advance(np.zeros((8, 1), np.float32))
        assert reward.sum() == pytest.approx(4 * alive)  # whole: 4 frames a decision
        if terminated.any():
            return
    pytest.fail("nobody died")


def test_the_dream_of_no_run():
    with pytest.raises(DataError, match="not a run folder"):
        gym.make("wm_numpy/Dream-v0", run="nowhere")


def test_a_dream_ends_by_the_odds_of_its_configuration():
    ends = {}
    for odds in ("1e-9", "1e30"):
        settings = "evolve.ending=drawn", f"evolve.odds={odds}"
        world = Dream.as_evolved(tiny_agent("doom", *settings), 20)
        world.reset(seed=0)
        ends[odds] = world.step(np.zeros((20, 1), np.float32))[2]
    assert ends["1e30"].all() and not ends["1e-9"].any()
