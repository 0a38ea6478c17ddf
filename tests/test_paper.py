"""The paper on its two pages learns, by looking, on three seeds; its gradients are those of its losses."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from wm_numpy import paper
from wm_numpy.core.gradcheck import TOLERANCE, check_vector


class AnotherGame(paper.World):
    """What a game shows is another game's."""

    def frames(self):
        return np.roll(super().frames(), 1, axis=0)


def learn(seed: int) -> dict[str, np.ndarray]:
    """Steps lived in each of many games, by who played; "shuffled": C shown another game's frames."""
    V, M, theta, lives = paper.main(seed)
    rng = np.random.default_rng(seed)
    z = np.zeros((paper.GAMES, paper.Z))
    world = AnotherGame(rng)
    lives["shuffled"], _ = paper.rollout(V, M, theta[None], z, world, paper.STEPS, rng)
    return lives


@pytest.fixture(scope="module")
def lives() -> list[dict[str, np.ndarray]]:
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        return list(pool.map(learn, range(3)))


def ahead(a: np.ndarray, b: np.ndarray) -> float:
    """How much longer a lives than b, in standard errors of the difference."""
    return (a.mean() - b.mean()) / np.sqrt(a.var() / len(a) + b.var() / len(b))


@pytest.mark.parametrize("seed", range(3))
def test_c_learns_in_the_dream_to_look_and_to_remember(lives, seed):
    found = lives[seed]
    c = found["C, z and h"]
    assert ahead(c, found["random"]) > 5
    assert ahead(c, found["C, blind"]) > 5
    assert ahead(c, found["C, z alone"]) > 5
    assert ahead(found["shuffled"], found["random"]) < 5


def test_a_blind_policy_is_no_better_than_chance(lives):
    assert abs(np.mean([ahead(x["C, blind"], x["random"]) for x in lives])) < 5


@pytest.mark.parametrize("name", ["V", "M"])
def test_the_gradient_of_the_whole_loss(name):
    rng = np.random.default_rng(0)
    if name == "V":
        shapes = dict(down1=(4, 4, 3, 2), down2=(7, 7, 2, 2 * paper.Z))
        model = paper.new(rng, **shapes, up1=(7, 7, 2, paper.Z), up2=(4, 4, 3, 2))
        data = [rng.random((3, 16, 16, 3))]
        loss = paper.loss_V
    else:
        I = paper.Z + paper.A + paper.H
        model = paper.new(rng, lstm=(I, 4 * paper.H), head=(paper.H, 1 + 3 * paper.K * paper.Z))
        z = rng.standard_normal((2, paper.STEPS, 3, paper.Z))
        data = [z, rng.standard_normal((*z.shape[1:3], 1)), rng.random(z.shape[1:3]) < 0.2]
        loss = paper.loss_M
    _, g = loss(model, *data, np.random.default_rng(1))
    for layer, arrays in model.items():
        for x, claimed in zip(arrays, g[layer], strict=True):
            start = x.ravel().copy()

            def value(w: np.ndarray, x=x) -> float:
                x[...] = w.reshape(x.shape)
                return float(loss(model, *data, np.random.default_rng(1))[0])

            error = check_vector(value, start, claimed.ravel(), rng)
            # where the loss's own rounding is above the tolerance, that is the limit
            assert error <= (1e-5 if error.hidden else TOLERANCE), (layer, str(error))
            x[...] = start.reshape(x.shape)


def test_it_imports_numpy_alone_and_draws_a_png(tmp_path):
    text = Path(paper.__file__).read_text()
    assert {
        line.split()[1] for line in text.splitlines() if line.startswith(("import", "from"))
    } == {"zlib", "numpy", "."}
    image = np.random.default_rng(0).random((4, 6, 3))
    paper.png(tmp_path / "x.png", image)
    pygame = pytest.importorskip("pygame")
    read = pygame.surfarray.array3d(pygame.image.load(str(tmp_path / "x.png"))).swapaxes(0, 1)
    np.testing.assert_array_equal(read, np.uint8(255 * image))


def test_two_pages():
    folder = Path(paper.__file__).parent
    lines = [(folder / name).read_text().splitlines() for name in ("plain.py", "paper.py")]
    assert sum(map(len, lines)) <= 380 and max(len(x) for x in sum(lines, [])) <= 100
