"""What a run reports: its table in words, learning curves, the lecture's page, moving pictures."""

import json
import re
import shutil
import struct
import subprocess
import zlib
from base64 import b64decode
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest

from tests.browser import CHROMIUM
from tests.conftest import tiny_agent
from wm_numpy.lab import film, lecture, pictures, plots, report
from wm_numpy.models.agent import run_folder
from wm_numpy.settings.tasks import find
from wm_numpy.training.log import Log
from wm_numpy.worlds.world import Dream, mortal

# ------------------------------------------------------------------------------------------------------ in words


def results_of(tmp_path, mean: float, preset: str = "quick", sd: float = 50.0):
    """A finished run of Doom by its files alone, of one score."""
    random = {"mean": 230.0, "sd": 120.0, "ci95": [200.0, 260.0], "episodes": 50}
    agent = random | {"mean": mean, "sd": sd}
    results = {"round": 1, "task": "doom", "preset": preset, "random": random, "agent": agent}
    (tmp_path / "results.json").write_text(json.dumps(results))
    shutil.copy(run_folder("doom") / "config.json", tmp_path)
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace('"laptop"', f'"{preset}"'))
    return tmp_path


def test_the_end_says_whether_it_is_good(tmp_path, monkeypatch):
    doom = replace(find("doom"), expected={"quick": (596, 502, 658)})
    monkeypatch.setattr(report, "find", lambda name: doom)
    told = report.table(results_of(tmp_path, 600.0))
    (blind,) = [line for line in told.splitlines() if line.startswith("blind baseline")]
    assert blind.split()[2:] == ["879.0", "514.0"]
    assert "The agent is better than the random policy." in told
    assert "worse than the blind baseline" in told and "not solved" in told
    assert "596, 502, 658" in told and "as expected" in told
    next_ = told.split("next:")[1]
    assert f"play {tmp_path} " in next_ and "--preset laptop" in next_ and "report" in next_
    assert "than expected" in report.table(results_of(tmp_path, 300.0))
    assert "as good as the random policy" in report.table(results_of(tmp_path, 231.0))
    solved = report.table(results_of(tmp_path, 1000.0, "paper", 600.0))
    assert ": solved" in solved and "have scored" not in solved and "--preset" not in solved


def test_a_world_without_scores_to_compare_with(tmp_path, monkeypatch):
    plain = replace(
        find("doom"), blind="", paper="", expected={}, solved_at=None, table2={}, authors={}
    )
    monkeypatch.setattr(report, "find", lambda name: plain)
    folder = results_of(tmp_path, 600.0)
    assert list(report.compared(folder)) == ["random policy", "agent"]
    told = report.table(folder)
    assert "better than the random policy" in told and "solved" not in told


def test_sweeps_of_a_run(tmp_path):
    """By temperature; the newest of two wins, unfinished ones are left out."""
    for name, tau, mean in (("a-sweep", 0.5, 1.0), ("a-sweep-1", 0.5, 2.0), ("a-sweep", 1.0, 3.0)):
        folder = tmp_path / name / f"tau-{tau}"
        folder.mkdir(parents=True)
        results = {"task": "doom", "dream": {"tau": tau, "mean": mean}, "agent": {}}
        (folder / "results.json").write_text(json.dumps(results))
    (tmp_path / "a-sweep" / "tau-2").mkdir()
    (tmp_path / "a-sweep" / "tau-2" / "results.json").write_text('{"task": "doom", "random": {}}')
    found = report.sweeps(tmp_path / "a")
    assert {tau: r["dream"]["mean"] for tau, r in found.items()} == {0.5: 2.0, 1.0: 3.0}


# --------------------------------------------------------------------------------------------------- the lecture


def test_a_run_and_its_games_as_one_page(doom_run, copy_of, monkeypatch):
    """Every section of the template, with no placeholder left, pictures inside, XML that is well formed."""
    monkeypatch.setattr(film, "SECONDS", 0.4)
    folder = copy_of(doom_run)
    lecture.write_page(folder, folder)
    page = (folder / "report.html").read_text()
    ids = re.findall(r'<section id="(\w+)"', page)
    assert ids == ["scores", "sizes", "dream", "reconstructions", "traversals", "curves"]
    lecture.write_page(folder, folder, games=2)
    page = (folder / "report.html").read_text()
    more = ["verdict", "temperature", "lives", "followed", "ablations", "facts"]
    assert re.findall(r'<section id="(\w+)"', page) == ids + more
    assert not re.search(r"\$\w|None|nan<", page) and "http" not in page.replace(
        "http://www.w3", ""
    )
    for drawing in re.findall(r"(?s)<div>(<svg.*?</svg>)\s*(?:<pre|</div>)", page):
        ElementTree.fromstring(drawing)
    sources = re.findall(r'src="([^"]+)"', page)
    width, height = struct.unpack(">II", b64decode(sources[0].split(",")[1])[16:24])
    assert len(sources) >= 3 * lecture.COLUMNS + 2 * lecture.COLUMNS + 8 * 7 and (
        width,
        height,
    ) == (64, 64)
    for words in (
        "VAE",
        "LSTM of 8 units",
        "4,446,915 parameters",
        "2 Gaussians",
        "blind baseline",
    ):
        assert words in page
    ElementTree.parse(folder / "curves.svg")


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium")
def test_the_page_in_a_browser(doom_run, copy_of, tmp_path, monkeypatch):
    """It opens from the disk without a network, and prints as a PDF of more than one page."""
    monkeypatch.setattr(film, "SECONDS", 0.2)
    folder = copy_of(doom_run)
    lecture.write_page(folder, folder)
    pdf = tmp_path / "page.pdf"
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--proxy-server=http://127.0.0.1:9",
    ]
    flags += [
        "--disable-background-networking",
        f"--user-data-dir={tmp_path / 'profile'}",
        f"--print-to-pdf={pdf}",
    ]
    subprocess.run(
        [CHROMIUM, *flags, (folder / "report.html").as_uri()],
        check=True,
        timeout=60,
        capture_output=True,
    )
    assert len(re.findall(rb"/Type /Page\b", pdf.read_bytes())) > 1


def test_ablations_silence_what_they_say(monkeypatch):
    """The thetas that play: whole, without the weights of z, without those of M's memory."""
    played = []

    def real_rollouts(agent, thetas, seeds):
        played.extend(thetas)
        return np.ones((len(thetas), len(seeds))), None

    monkeypatch.setattr(lecture, "real_rollouts", real_rollouts)
    agent = tiny_agent("carracing")  # [z h], a bias
    rows = lecture.ablations(agent, 2)
    assert list(rows) == [
        "C as it is",
        "z silenced",
        "M's memory silenced",
    ]
    whole, blind, forgets = played
    assert np.array_equal(whole, agent.theta)
    assert not blind[: 6 * 3].any() and np.array_equal(blind[6 * 3 :], whole[6 * 3 :])
    assert np.array_equal(forgets[: 6 * 3], whole[: 6 * 3]) and not forgets[6 * 3 : -3].any()
    assert np.array_equal(forgets[-3:], whole[-3:])


def test_traversals_show_what_changes_most():
    agent = tiny_agent()
    seen = []
    agent.v.decode = lambda z: (
        seen.append(z) or np.tile(z[:, 2, None, None, None] / 100 + 0.5, (1, 64, 64, 3))
    )
    drawn = lecture.traversals(agent)
    assert re.search(r"<th>(z\[\d\])", drawn)[1] == "z[2]" and "<td>-3<td>-2" in drawn
    z = next(z for z in seen if len(z) == 7)  # (7, 6): one number moves, the others stay
    assert z[:, 2].tolist() == [-3, -2, -1, 0, 1, 2, 3]
    assert not np.delete(np.diff(z, axis=0), 2, axis=1).any()


def test_curves_name_what_they_compare_with(tmp_path):
    """The authors' log as far as the run has come, in the panels of reality alone; rounds after one another."""
    results_of(tmp_path, 600.0)
    log = Log(tmp_path)
    log.record(stage="vae", round=1, step=9, reconstruction=3.0)
    for generation in (1, 12):
        log.record(
            stage="evolve", round=1, step=generation, fitness=300.0 + generation, check=200.0
        )
    log.record(stage="adapt", round=1, step=5, fitness=500.0)
    v, dream, real, adapted = lecture.curves(tmp_path, find("doom"))
    assert "V: reconstruction" in v and "updates" in v
    assert "the authors" not in dream and "blind baseline" not in dream
    for words in (
        ">C<",
        "blind baseline 879",
        "random policy 230",
        "agent 1092",
        "the authors&#x27; log",
    ):
        assert words in real
    assert "candidates" in adapted and "evolved on" in adapted
    for round_, step in ((2, 3), (3, 1)):
        log.record(stage="evolve", round=round_, step=step)
    rows = [r for r in report.read_log(tmp_path / "log.jsonl") if r["stage"] == "evolve"]
    assert [r["at"] for r in rows] == [1, 12, 15, 16]


def test_a_chart_is_where_its_numbers_are():
    """A line from corner to corner, its smooth twin, and a level in the middle."""
    x = np.arange(11.0)
    drawn = plots.chart("title", "x", "y", [plots.Line("a", x, x, smooth=3)], {"half": 5.0})
    lines = re.findall(r'points="([^"]+)" fill="none" stroke="#1f6fb4"', drawn)
    raw, smooth = (np.array([p.split(",") for p in points.split()], float) for points in lines)
    assert (np.diff(raw[:, 0]) > 0).all() and (np.diff(raw[:, 1]) < 0).all()
    np.testing.assert_allclose(smooth[1:-1], raw[1:-1], atol=0.2)
    (level,) = re.findall(r'points="([^"]+)"[^>]+stroke-dasharray', drawn)
    assert float(level.split()[0].split(",")[1]) == pytest.approx(raw[5, 1], abs=0.2)
    bars = plots.bars({"a": (2.0, 1.0, 3.0), "b": (-1.0, -1.0, -1.0), "c": (np.nan,) * 3})
    widths = [float(w) for w in re.findall(r'width="([\d.]+)" height="18', bars)]
    assert len(widths) == 2 and widths[0] == pytest.approx(2 * widths[1], rel=0.01)


# ------------------------------------------------------------------------------------------------ moving pictures


def frames_of(png: bytes) -> list[np.ndarray]:
    """The frames of an animated PNG, each read by pygame as a PNG of its own; every checksum holds."""
    import io

    import pygame

    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    chunks, at = [], 8
    while at < len(png):
        (n,) = struct.unpack_from(">I", png, at)
        body = png[at + 4 : at + 8 + n]
        assert struct.unpack_from(">I", png, at + 8 + n)[0] == zlib.crc32(body)
        chunks.append((body[:4], body[4:]))
        at += 12 + n
    kinds = b" ".join(kind for kind, _ in chunks)
    assert re.fullmatch(rb"IHDR acTL fcTL IDAT( fcTL fdAT)* IEND", kinds)
    numbers = [struct.unpack(">I", x[:4])[0] for kind, x in chunks if kind in (b"fcTL", b"fdAT")]
    assert numbers == list(range(len(numbers)))
    assert chunks[1][1] == struct.pack(">II", kinds.count(b"fcTL"), 0)  # frames; for ever
    header, frames = png[:33], []
    for kind, data in chunks:
        if kind in (b"IDAT", b"fdAT"):
            body = b"IDAT" + data[4 * (kind == b"fdAT") :]
            body = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
            end = struct.pack(">I", 0) + b"IEND" + struct.pack(">I", zlib.crc32(b"IEND"))
            image = pygame.image.load(io.BytesIO(header + body + end))
            frames.append(pygame.surfarray.array3d(image).swapaxes(0, 1))
    return frames


def test_an_animation_holds_its_pictures():
    rng = np.random.default_rng(0)
    moments = [[*rng.integers(0, 256, (2, 6, 5, 3), dtype=np.uint8)] for _ in range(3)]
    shown = frames_of(pictures.animation(moments, fps=20, scale=2))
    assert len(shown) == 3
    for (a, b), frame in zip(moments, shown, strict=True):
        assert frame.shape == (12, 2 * 5 * 2 + pictures.GAP, 3)
        assert np.array_equal(frame[::2, :10:2], a & 0xFC) and np.array_equal(
            frame[1::2, 1:10:2], a & 0xFC
        )
        assert np.array_equal(frame[::2, 10 + pictures.GAP :: 2], b & 0xFC)
        assert (frame[:, 10 : 10 + pictures.GAP] == 255).all()


def test_an_animation_may_leave_pixels_as_they_were():
    """A fourth channel of 0: PNG's colour type 6, and frames that are laid over those before."""
    frames = np.random.default_rng(0).integers(0, 256, (2, 6, 5, 4), dtype=np.uint8)
    frames[..., 3] = 255
    frames[1, 2:, :, 3] = 0
    made = pictures.png(frames, fps=5)
    assert made[25] == 6 and b"\x00\x64\x01\xf4\x00\x01" in made  # 100/500 s, none cleared, over
    for shown, frame in zip(frames_of(made), frames, strict=True):
        assert np.array_equal(shown[:2], frame[:2, :, :3])


@pytest.mark.parametrize("task", ["doom", "carracing"])
def test_a_film(task, monkeypatch):
    """The dream begins at the very moment that reality has come to; an animation shows at most 12 pictures a second."""
    monkeypatch.setattr(film, "SECONDS", 0.3)
    monkeypatch.setattr(film, "find", lambda name: replace(find(name), strip_from=5))
    agent = tiny_agent(task)
    moments = film.film(agent, seed=1)
    assert len(moments) == int(0.3 / film.period(agent))
    assert list(moments[0]) == ["reality", "V's view", "dream"]
    assert all(picture.shape == (64, 64, 3) for moment in moments for picture in moment.values())
    np.testing.assert_array_equal(moments[0]["V's view"], moments[0]["dream"])
    assert not np.array_equal(moments[-1]["V's view"], moments[-1]["dream"])
    shown = frames_of(film.animated(agent, moments))
    assert len(shown) == {"doom": 4, "carracing": 4}[task] and shown[0].shape == (
        192,
        3 * 192 + 2 * 4,
        3,
    )


def test_dreams_that_only_discount_come_to_an_end():
    """C may be evolved where an end is but a discount; who plays must be able to die."""
    agent = tiny_agent("doom", "evolve.ending=weighted")
    agent.m.params["done.b"][...] = 3.0  # nearly every step
    for ends, over in ((False, ""), (True, "died")):
        life = film.Life(Dream.as_evolved(mortal(agent) if ends else agent, 1, horizon=0), 0)
        for _ in range(10):
            if not life.over:
                life.step(np.zeros((1, 1), np.float32))
        assert life.over == over
