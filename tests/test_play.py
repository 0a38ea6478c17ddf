"""The demo: the page in a real browser, its orders and requests that no browser sends by hand, and moving pictures."""

import base64
import contextlib
import errno
import hashlib
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from contextlib import contextmanager, suppress
from http.client import HTTPConnection
from pathlib import Path

import numpy as np
import pytest

from tests.browser import CHROMIUM, Browser
from tests.conftest import ROOT, tiny_agent, tiny_config
from wm_numpy.demo import play, serve
from wm_numpy.lab import film
from wm_numpy.models.agent import Agent
from wm_numpy.settings import tasks
from wm_numpy.system import files
from wm_numpy.training.experiment import STAGES, Experiment
from wm_numpy.training.runfolder import export
from wm_numpy.worlds.ahead import LookAhead
from wm_numpy.worlds.world import Dream, mortal


@contextmanager
def served(run, host="127.0.0.1"):
    """The port of a server of this run."""
    with play.server(run, host) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def port():
    with served("doom") as port:
        yield port


class Page:
    """What the page does, without a browser."""

    def __init__(self, port: int, **orders):
        self.port = port
        self.stream = HTTPConnection("127.0.0.1", port, timeout=60)
        self.stream.request("POST", "/play", json.dumps([orders]), {"Visit": "new"})
        self.answer = self.stream.getresponse()
        self.status = self.answer.status
        self.connection = HTTPConnection("127.0.0.1", port, timeout=60)
        if self.status == 200:
            self.visit = self.answer.headers["Visit"]
            self.hello, _ = self.message()

    def message(self) -> tuple[dict, bytes]:
        for _ in range(100):
            if size := int.from_bytes(self.read(4), "big"):
                break  # no beat
        else:
            raise AssertionError("nothing but beats")
        head, pictures = zlib.decompress(self.read(size)).split(b"\n", 1)
        return json.loads(head), pictures

    def read(self, n: int) -> bytes:
        data = self.answer.read(n)
        if len(data) < n:
            raise EOFError("the stream has ended")
        return data

    def post(self, body: str | bytes) -> tuple[int, str]:
        self.connection.request("POST", "/order", body, {"Visit": self.visit})
        with self.connection.getresponse() as response:
            return response.status, response.read().decode()

    def order(self, **orders) -> None:
        assert self.post(json.dumps([orders])) == (204, "")

    def until(self, condition, most: int = 400) -> tuple[dict, bytes]:
        """The first message that meets it."""
        for _ in range(most):
            facts, raw = self.message()
            if "n" in facts:
                self.order(got=facts["n"])
            if condition(facts):
                return facts, raw
        raise AssertionError("never")

    def life(self, steps: int = 5, **orders) -> list[tuple[dict, bytes]]:
        """Orders, then so many single steps, paused."""
        self.order(pause=1)
        self.order(**orders)
        self.until(lambda m: m.get("steps") == 0 and m["seed"] == orders.get("seed", m["seed"]))
        for _ in range(steps):
            self.order(step=1)
        return [self.until(lambda m, t=t: m.get("steps") == t) for t in range(1, steps + 1)]

    def close(self) -> None:
        self.connection.close()
        self.answer.close()
        self.stream.close()


@pytest.fixture
def page(port):
    page = Page(port, world="dream")
    yield page
    page.close()


# ------------------------------------------------------------------------------------------------- what is played


def test_a_dream_is_sent_step_by_step(page):
    assert page.hello["z"] == 64 and page.hello["keys"] == {"left": [-1], "right": [1]}
    assert page.hello["known"]["agent"]["mean"] > 0
    facts, raw = page.until(lambda m: m["steps"] == 3)
    assert facts["world"] == "dream" and facts["player"] == "ahead" and 0 <= facts["end"] <= 1
    assert 0 < facts["certainty"] <= 1
    assert facts["pictures"] == [["dream", 64, 64]] and len(raw) == 64 * 64 * 3
    assert len(facts["z"]) == 64 and len(facts["C"]) == 1


def test_seed_and_keys_make_the_dream(page):
    first = page.life(seed=3, player="C", world="dream")
    again = page.life(seed=3, player="C", world="dream")
    other = page.life(seed=4, player="C", world="dream")
    assert [raw for _, raw in first] == [raw for _, raw in again]
    assert [raw for _, raw in first] != [raw for _, raw in other]
    left, right = (page.life(seed=3, player="you", action=[x], world="dream") for x in (-1, 1))
    assert left[0][1] != right[0][1] and left[0][0]["player"] == "you"


def test_the_temperature_changes_while_a_dream_runs(page):
    page.life(seed=1, tau=1.5, world="dream")
    page.order(tau=0.1, step=1)
    cold, _ = page.until(lambda m: m["tau"] == 0.1 and m["steps"] == 6)
    page.order(tau=3, step=1)
    hot, _ = page.until(lambda m: m["tau"] == 3)
    assert cold["certainty"] > 1.5 * hot["certainty"]  # of the likeliest component


def test_a_slow_page_is_waited_for(port):
    """It gets a few pictures that it has not asked for, then beats alone, until it says that it got them."""
    page = Page(port, world="dream", seed=0)
    facts = {"n": 0}
    while facts["n"] < play.IN_FLIGHT + 1:
        facts, _ = page.message()
    began = time.monotonic()
    assert page.read(12) == bytes(12)  # three beats
    assert 2 * serve.BEAT < time.monotonic() - began < 10 * serve.BEAT
    page.order(got=facts["n"])
    assert page.message()[0]["n"] == facts["n"] + 1
    page.close()


def test_a_recorded_episode_is_followed_and_dreamt_on(page):
    (steps,) = page.hello["recorded"]
    page.order(pause=1, seed=1, world="recorded", at=5)
    facts, raw = page.until(lambda m: m["world"] == "recorded" and m["steps"] == 5)
    page.order(at=2)
    page.until(lambda m: m["steps"] == 2)
    page.order(at=5)
    # backwards and forwards: the same moment
    assert page.until(lambda m: m["steps"] == 5)[1] == raw
    page.order(take=1, seed=1, world="here")
    here, same = page.until(lambda m: m["world"] == "here")
    assert here["steps"] == 0 and here["z"] == facts["z"] and same == raw
    page.order(step=1)
    assert page.until(lambda m: m["steps"] == 1)[0]["world"] == "here"
    page.order(seed=1, world="recorded")
    page.order(at=10**6)
    end, _ = page.until(lambda m: m["world"] == "recorded" and m["over"])
    assert end["steps"] == steps
    page.order(take=1, world="here")
    # after an end: from the last moment
    assert page.until(lambda m: m["world"] == "here")[0]["z"] == facts["z"]


def test_m_is_warmed_by_the_steps_before(doom_run):
    """Dreaming on from a recorded moment is M's own step from the state that the record leads to."""
    agent = Agent.load(doom_run)
    series = np.load(next(doom_run.glob("series/*/*.npy")))
    life = film.Life(film.Recorded(agent, series), 7)
    state, restart = agent.m.initial_state(1), np.ones(1)
    for t in range(4):
        z = life.features[:, : agent.config.vae.z_size]
        state = agent.m.step(z, series["action"][t : t + 1], state, restart if t == 0 else None)
        life.step(None)
    world = life.world
    np.testing.assert_allclose(world.state, state, rtol=1e-5, atol=1e-6)
    dream = film.Life(Dream.as_evolved(agent, 1, tau=1.0, start=world.moment), 3)
    np.testing.assert_array_equal(dream.features, life.features)
    cold = Dream.as_evolved(agent, 1, tau=1.0)
    cold.reset(seed=3)
    assert not np.allclose(cold.state, dream.world.state)


@pytest.mark.parametrize("task", ["doom", "car"])
def test_reality(task, request):
    with served(request.getfixturevalue(f"{task}_run")) as port:
        page = Page(port)
        page.order(player="blind", seed=2, world="reality")
        facts, raw = page.until(lambda m: m.get("world") == "reality" and m["steps"] == 6)
        (reality, height, width), (view, *size) = facts["pictures"]
        assert (reality, view, size) == ("reality", "V's view", [64, 64])
        assert facts["player"] == "blind"
        assert len(raw) == 3 * (height * width + 64 * 64)
        assert np.frombuffer(raw, np.uint8)[: 3 * height * width].std() > 5
        page.order(take=1, seed=2, world="here")
        assert page.until(lambda m: m.get("world") == "here" and m["steps"] == 2)
        page.close()


@pytest.fixture(scope="module")
def ahead():
    """An agent that looks ahead, in its page."""
    with served("doom") as port:
        page = Page(port)
        page.order(pause=1)
        yield page
        page.close()


@pytest.mark.parametrize("world", ["dream", "reality"])
def test_an_agent_that_looks_ahead_acts_as_when_it_is_evaluated(ahead, world):
    """Step by step the same life; beside each picture what M expects of every plan, before the action."""
    agent = mortal(Agent.load("doom"))
    seen = ahead.life(12, seed=7, player="ahead", tau=1.0, world=world)
    with contextlib.closing(film.Worlds(agent, None)) as worlds:
        life = film.Life(worlds.go(world, 7, 1.0), 7)
        act = LookAhead(life.world, agent.controller(), [7])
        for facts, _ in seen:
            life.step(act(life.features))
            np.testing.assert_allclose(facts["z"], life.features[0, :64], atol=6e-4)
            assert facts["player"] == "ahead" and facts["total"] == life.total
        act(life.features)
    first, worth, chosen, _ = act.decision
    assert facts["plans"] == first[0].tolist() and facts["chosen"] == chosen[0]
    np.testing.assert_allclose(facts["worth"], worth[0], atol=6e-3)
    assert ahead.hello["most"] * ahead.hello["ahead"]["horizon"] == 64 >= max(facts["worth"])


def test_looking_ahead_is_switched_off_and_its_dreams_are_shown_on_request(ahead):
    facts, raw = ahead.life(4, seed=7, player="ahead", world="dream")[-1]
    assert len(raw) == 3 * 64 * 64 and facts["strip"] == []
    ahead.order(strips=1, show=1)
    with_strips, more = ahead.until(lambda m: m.get("strip"))
    steps, plans = with_strips["strip"], with_strips["plans"]
    assert plans == facts["plans"] and with_strips["worth"] == facts["worth"]
    assert steps[0] == 1 and steps[-1] == 16 and len(plans) == 3
    pictures = np.frombuffer(more[len(raw) :], np.uint8).reshape(len(steps), 3, 64, 64, 3)
    now = np.frombuffer(raw, np.uint8).reshape(64, 64, 3)
    away = np.abs(pictures.astype(float) - now).mean(axis=(2, 3, 4))  # (S, K)
    assert away[0].max() < away[-1].max() and np.ptp(pictures[-1], axis=0).max() > 50
    ahead.order(strips=0, player="C", show=1)
    alone, _ = ahead.until(lambda m: m["player"] == "C")
    assert "plans" not in alone and alone["steps"] == 4
    assert len(ahead.life(3, seed=7, player="C", world="dream")) == 3
    ahead.order(player="ahead", show=1)
    assert ahead.until(lambda m: m["player"] == "ahead")[0]["plans"]


def test_one_goes_on_as_the_player_before(ahead):
    """The plan of what it would do anyway is the visitor's last action, after the keys changed hands."""
    for action in (-1, 1):
        ahead.life(2, seed=7, player="you", action=[action], world="dream")
        ahead.order(player="ahead", show=1)
        assert ahead.until(lambda m: m["player"] == "ahead")[0]["plans"][0] == [action]


def test_a_moment_of_the_real_game_is_shared(ahead):
    """Played again from its seed and actions, whoever gave them, the very same game and memory of M."""
    for player, action in (("C", 0), ("you", -1)):
        ahead.life(5, seed=11, player=player, action=[action], world="reality")
    ahead.order(player="ahead", show=1)
    ahead.until(lambda m: m["player"] == "ahead")
    for t in range(6, 20):
        ahead.order(step=1)
        facts, raw = ahead.until(lambda m, t=t: m["steps"] == t)
    ahead.order(share=1)
    moment = ahead.until(lambda m: "moment" in m)[0]["moment"]
    ahead.order(world="dream")
    ahead.order(replay=moment, seed=11, world="reality")
    again, same = ahead.until(lambda m: m["world"] == "reality")
    assert same == raw and again | {"n": 0} == facts | {"n": 0}
    ahead.order(replay=moment[:4], seed=11, world="reality")
    ahead.order(replay="AADAfw==", seed=11, world="reality")  # NaN
    for _ in range(2):
        assert "another world" in ahead.until(lambda m: "says" in m)[0]["says"]


def test_a_world_of_ones_own(monkeypatch, tmp_path):
    """It is played with the words and keys that it declares; nothing is known of it but that."""
    world = f"{Path(__file__).with_name('catch.py')}:CATCH"
    agent = tiny_agent(world, "evolve.memories=0")
    monkeypatch.setattr(play.Agent, "load", lambda run: agent)
    monkeypatch.setattr(play, "run_folder", lambda run: tmp_path)
    with served("catch") as port:
        page = Page(port, seed=1, world="opening")
        assert page.hello["labels"] == ["left", "stay", "right"]
        assert page.hello["rest"] == [0, 1, 0]
        assert page.hello["keys"]["right"] == page.hello["keys"]["3"] == [0, 0, 1]
        assert page.hello["recorded"] == [] and page.hello["known"]["agent"] == {}
        page.until(lambda m: m.get("world") == "here")
        page.order(player="you", action=[0, 0, 1], seed=1, world="reality")
        facts, raw = page.until(lambda m: m.get("world") == "reality" and m["steps"] > 5)
        assert facts["pictures"][0] == ["reality", 96, 96] and len(raw) == 3 * (96 * 96 + 64 * 64)
        page.close()


def test_a_world_that_cannot_be_had(page, monkeypatch):
    def missing(task, repeat):
        raise ImportError("run `pip install vizdoom`")

    monkeypatch.setattr(film, "Environment", missing)
    page.order(world="reality")
    assert page.until(lambda m: "busy" in m)
    assert page.until(lambda m: "says" in m)[0] == {"says": "run `pip install vizdoom`"}
    assert page.until(lambda m: "n" in m)[0]["world"] == "dream"  # which goes on


def test_a_dream_outlives_its_world(tmp_path):
    """Without the file of a world its agent dreams on; the game cannot be had, and the page says so."""
    path, small = tmp_path / "game.py", tmp_path / "small"
    path.write_text((ROOT / "tests" / "catch.py").read_text())
    name = f"{path}:CATCH"
    run = Experiment(tiny_config(name), tmp_path / "run")
    run.run(STAGES[: STAGES.index("evolve") + 1])
    export(run.folder, small)
    before = json.dumps(tasks.kept(tasks.find(name)))
    path.unlink()
    tasks._found.cache_clear()
    tasks._brought.clear()
    with pytest.raises(tasks.TaskError, match="missing"):
        tasks.find(name)
    agent = Agent.load(small)
    assert json.dumps(tasks.kept(tasks.find(name))) == before
    with served(small) as port:
        page = Page(port)
        page.life(2, player="C", world="dream")
        page.order(pause=0, world="reality")
        assert "game.py is missing" in page.until(lambda m: "says" in m)[0]["says"]
        assert page.until(lambda m: "n" in m)[0]["world"] == "dream"
        page.close()
    assert len(page.hello["labels"]) == agent.m.action_size
    (small / "world.json").write_text("{}")
    with pytest.raises(files.DataError, match=r"world.json is damaged"):
        Agent.load(small)


def test_z_is_held(page):
    """The picture is that of the new z at once, and the dream goes on from it."""
    facts, raw = page.life(3, seed=1, player="C", world="dream")[-1]
    z, i, far = facts["z"], 8, 3  # a fireball
    page.order(z=[*z[:i], far, *z[i + 1 :]])
    held, other = page.until(lambda m: m["n"] > facts["n"])
    assert held["z"] == [*z[:i], far, *z[i + 1 :]] and held["steps"] == 3
    change = np.frombuffer(other, np.uint8).astype(int) - np.frombuffer(raw, np.uint8)
    assert np.abs(change).max() > 100
    page.order(take=1, world="here")
    here, same = page.until(lambda m: m["world"] == "here")
    assert here["z"] == held["z"] and same == other
    page.order(z=z)
    assert page.until(lambda m: m["z"] == z)[0]["steps"] == 0


def test_z_is_held_in_reality_and_in_a_record(doom_run):
    with served(doom_run) as port:
        for world, pictures in (("recorded", 1), ("reality", 2)):
            page = Page(port, pause=1, world=world)
            facts, raw = page.until(lambda m, world=world: m.get("world") == world)
            page.order(z=[0.5] * len(facts["z"]))
            held, other = page.until(lambda m: m.get("z", [0])[0] == 0.5)
            assert len(held["pictures"]) == pictures and raw != other
            page.close()


def test_the_strongest_numbers_of_z(page):
    """Sorted by how much they change the picture; at the ends the picture is that of z with this one there."""
    agent = Agent.load("doom")
    facts, _ = page.life(2, seed=1, world="dream")[-1]
    page.order(ends=8)
    found, raw = page.until(lambda m: "ends" in m)
    assert len(found["ends"]) == len(set(found["ends"])) == 8 and len(raw) == 8 * 2 * 32 * 32 * 3
    small = np.frombuffer(raw, np.uint8).reshape(8, 2, 32, 32, 3).astype(float)
    change = np.square(small[:, 1] - small[:, 0]).mean(axis=(1, 2, 3))
    assert (np.diff(change) < 1).all() and change[0] > 2 * change[-1]
    z = np.array(facts["z"], np.float32)
    z[found["ends"][0]] = -3
    large = 255 * agent.v.decode(z[None])[0]
    shrunk = large.reshape(32, 2, 32, 2, 3).mean(axis=(1, 3))
    assert np.abs(small[0, 0] - shrunk).max() < 2
    page.order(ends=64)
    assert sorted(page.until(lambda m: "ends" in m)[0]["ends"]) == list(range(64))


def test_futures_spread_with_temperature(page):
    """Eight from one moment: all alike when cold, all different when hot, and cut after a while."""
    page.order(pause=1, seed=3, tau=1.0, world="opening")
    page.until(lambda m: m["world"] == "here")
    page.order(take=1)

    def spread(tau: float) -> float:
        page.order(tau=tau, seed=3, world="futures")
        page.until(lambda m: m["world"] == "futures" and m["steps"] == 0)
        for _ in range(20):
            page.order(step=1)
        facts, raw = page.until(lambda m: m["steps"] == 20)
        assert len(facts["pictures"]) == len(facts["alive"]) == 8
        return np.frombuffer(raw, np.uint8).reshape(8, -1).std(axis=0).mean()

    cold, hot = spread(0.1), spread(1.3)
    assert 2 * cold < hot
    page.order(pause=0)
    end, _ = page.until(lambda m: m["over"])
    assert end["steps"] <= int(film.FUTURE / page.hello["period"])


def test_the_mixture_of_the_least_certain_number(page):
    facts, _ = page.life(3, seed=1, tau=0.5, world="dream")[-1]
    number, weights, means, widths = facts["mixture"]
    assert 0 <= number < 64 and abs(sum(weights) - 1) < 0.01
    assert len(weights) == len(means) == len(widths) == 5 and min(widths) > 0


def test_a_moment_is_shared(port, page):
    facts, _ = page.life(4, seed=1, world="dream")[-1]
    page.order(share=1)
    moment = page.until(lambda m: "moment" in m)[0]["moment"]
    other = Page(port, pause=1, tau=1.0, moment=moment, world="here")
    there, _ = other.until(lambda m: m["world"] == "here")
    np.testing.assert_allclose(there["z"], facts["z"], atol=0.01)
    other.order(moment=moment[:400])
    assert "another model" in other.until(lambda m: "says" in m)[0]["says"]
    other.close()


def test_the_first_moment_is_one_worth_seeing(port):
    """M has been led there: it is no first frame."""
    page = Page(port, pause=1)
    page.order(seed=1, world="opening")
    facts, _ = page.until(lambda m: m.get("world") == "here")
    moment = Agent.load("doom").initial_latents[0]
    assert np.abs(moment - np.array(facts["z"])).max(axis=1).min() > 0.5
    page.close()


def test_what_fails_is_a_sentence_on_the_page(page, monkeypatch, capfd):
    """The server's own mistakes are a line on stderr, too; then one can begin again."""
    monkeypatch.setattr(play, "ends", lambda *args, **how: 1 / 0)
    page.order(ends=8)
    says = page.until(lambda m: "says" in m)[0]["says"]
    assert "The server made a mistake (ZeroDivisionError: division by zero)" in says
    assert capfd.readouterr() == ("", "play: ZeroDivisionError: division by zero\n")
    page.order(world="dream", seed=8)
    assert page.until(lambda m: m.get("seed") == 8 and m["steps"] == 2)


def test_episodes_that_training_has_moved(doom_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(doom_run, run)
    with served(run) as port:
        page = Page(port)
        (series,) = run.glob("series/*")
        series.rename(tmp_path / "moved")
        page.order(world="recorded")
        assert "has moved or is gone" in page.until(lambda m: "says" in m)[0]["says"]
        assert page.until(lambda m: "n" in m)[0]["world"] == "dream"
        page.close()


@pytest.mark.parametrize("mean", ['"\\"><img src=x onerror=alert(1)>"', "NaN", "[]", "{}"])
def test_results_that_are_not_numbers(doom_run, tmp_path, mean):
    run = tmp_path / "run"
    shutil.copytree(doom_run, run)
    results = '{"task": "doom", "agent": {"mean": 1.5, "episodes": 100}}'
    (run / "results.json").write_text(results.replace("1.5", mean))
    with pytest.raises(files.DataError, match="results.json is damaged .*agent"):
        play.server(run)


# -------------------------------------------------------------------------------------- what a browser would not send


def answer(port: int, request: bytes, host: str = "127.0.0.1") -> bytes:
    """To a raw request, until the server closes."""
    with socket.create_connection((host, port), timeout=20) as connection:
        connection.sendall(request)
        parts = []
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


def ask(line: str, *headers: str, host: str = "localhost", body: bytes = b"") -> bytes:
    return "\r\n".join([f"{line} HTTP/1.1", f"Host: {host}", *headers, "", ""]).encode() + body


CLOSE, VISIT, SIZE = "Connection: close", "Visit: new", "Content-Length: 2"


@pytest.mark.parametrize(
    "request_, code",
    [
        (ask("GET /", CLOSE), 200),
        (ask("GET /?seed=nan&tau=x", CLOSE), 200),  # a matter of the page's
        (ask("GET /", CLOSE, "Origin: http://localhost"), 200),
        (b"GET / HTTP/1.1\r\n\r\n", 403),  # no Host
        (ask("GET /", host="evil.com"), 403),
        (ask("GET /", host="localhost.evil.com"), 403),
        (ask("GET /", host="evil.com:8000", body=b""), 403),
        (ask("GET /", host="[::1"), 403),
        (ask("GET /", "Origin: http://evil.com"), 403),
        (ask("GET /../../etc/passwd"), 404),
        (ask("GET //play.py"), 404),
        (ask("GET /%2e%2e/run.py"), 404),
        (ask("GET http://elsewhere/"), 404),
        (ask("GET /play", VISIT), 404),
        (ask("POST /play", SIZE, body=b"[]"), 403),  # what any page may send
        (ask("POST /play", SIZE, VISIT, host="evil.com", body=b"[]"), 403),
        (ask("POST /play", SIZE, VISIT, "Origin: http://evil.com", body=b"[]"), 403),
        (ask("POST /play", SIZE, VISIT, "Origin: https://localhost", body=b"[]"), 403),
        (ask("POST /play", SIZE, VISIT, "Origin: null", body=b"[]"), 403),
        (ask("POST /play", SIZE, VISIT, "Origin: http://localhost:1", body=b"[]"), 403),
        (ask("POST /order", SIZE, VISIT, body=b"[]"), 410),
        (ask("POST /order", SIZE, VISIT, body=b"{}"), 400),
        (ask("POST /", SIZE, VISIT, body=b"[]"), 404),
        (ask("POST /order", VISIT), 413),
        (ask("POST /order", VISIT, "Content-Length: -1"), 413),
        (ask("POST /order", VISIT, "Content-Length: 99999"), 413),
        (ask("POST /order", VISIT, "Content-Length: " + "9" * 9000), 413),
        (ask("POST /order", VISIT, "Transfer-Encoding: chunked"), 413),
        (ask("OPTIONS /play", VISIT), 405),  # another site's page asks whether it may
        (ask("DELETE /"), 405),
        (ask("GET /", "Content-Length: 99999999999"), 413),
        (ask("GET /", "Transfer-Encoding: chunked"), 413),
        (ask("GET /" + "x" * 70_000), 414),
        (ask("GET /", *(f"a{i}: 1" for i in range(200))), 431),
        (ask("GET /", "a: " + "x" * 20_000), 431),
        (ask("GET /", *(f"a{i}: " + "x" * 65_000 for i in range(90))), 431),
        (b"GET / HTTP/9.9\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),  # a TLS handshake
    ],
)
def test_requests(port, request_, code, capfd):
    got = answer(port, request_)
    assert int(got.split()[1]) == code if got.startswith(b"HTTP/") else code == 400
    assert b"Traceback" not in got and capfd.readouterr() == ("", "")


def test_headers_are_read_no_further_than_needed(port):
    began = time.process_time()
    answer(port, ask("GET /", *(f"a{i}: " + "x" * 65_000 for i in range(90))))
    assert time.process_time() - began < 1


def test_a_huge_body(port, capfd):
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(ask("POST /order", VISIT, "Content-Length: 99999999"))
        with pytest.raises(OSError):  # not all of it is taken
            for _ in range(10**6):
                connection.sendall(bytes(100_000))
    assert answer(port, ask("GET /", CLOSE)).startswith(b"HTTP/1.1 200")
    assert capfd.readouterr() == ("", "")


def test_another_name_of_the_machine(doom_run, monkeypatch):
    """The address that was asked for, and the name given by --host; no other."""
    with served(doom_run, "0.0.0.0") as port:
        for host, code in (("127.0.0.2", 200), ("0.0.0.0", 200), ("dreams.lan", 403)):
            assert int(answer(port, ask("GET /", CLOSE, host=host), "127.0.0.2").split()[1]) == code
    real = socket.socket.bind
    monkeypatch.setattr(socket.socket, "bind", lambda self, at: real(self, ("127.0.0.1", at[1])))
    with served(doom_run, "Dreams.lan") as port:  # as if that were this machine's name
        for host, code in (("dreams.lan", 200), (f"DREAMS.lan:{port}", 200), ("evil.com", 403)):
            assert int(answer(port, ask("GET /", CLOSE, host=host)).split()[1]) == code


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_ipv6(doom_run):
    try:
        socket.socket(socket.AF_INET6).bind(("::1", 0))
    except OSError:
        pytest.skip("no IPv6 here")
    with served(doom_run, "::1") as port:
        got = answer(port, ask("GET /", CLOSE, host=f"[::1]:{port}"), "::1")
        assert got.startswith(b"HTTP/1.1 200")


def test_the_page_runs_its_own_script_alone(port):
    got = answer(port, ask("GET /", CLOSE))
    policy = got.split(b"Content-Security-Policy: ")[1].split(b"\r\n")[0]
    assert b"unsafe" not in policy and policy.startswith(b"default-src 'none';")
    page = got.split(b"\r\n\r\n", 1)[1]
    script = page.split(b"<script>")[1].split(b"</script>")[0]
    assert base64.b64encode(hashlib.sha256(script).digest()) in policy.split(b"script-src")[1]
    for word in (b"innerHTML", b"outerHTML", b"insertAdjacent", b"document.write", b" onclick="):
        assert word not in page
    assert not re.search(rb"(src|href)=\"(?!data:|https://(worldmodels|arxiv|github))", page)


@pytest.mark.parametrize(
    "order",
    [
        "", "7", "{}", "[7]", "[{", "null", "[{}", "[" * 9000, '[{"fly": 1}]', '[{"pause": 2}]',
        '[{"got": -1}]', '[{"at": -1}]', '[{"at": "x"}]', '[{"at": 1.5}]', '[{"tau": 0}]',
        '[{"tau": "hot"}]', '[{"tau": NaN}]', '[{"tau": 1e400}]', '[{"tau": true}]',
        '[{"player": "me"}]', '[{"player": {}}]', '[{"replay": 1}]',
        '[{"world": "../etc"}]', '[{"world": []}]',
        '[{"seed": -1}]', '[{"seed": 2147483648}]', '[{"seed": []}]', '[{"action": [2]}]',
        '[{"action": []}]', '[{"action": [0, 0]}]', '[{"action": 1}]', '[{"action": [[1]]}]',
        '[{"action": null}]', '[{"z": [1]}]', '[{"z": 1}]', '[{"moment": "?"}]',
        '[{"moment": 1}]', '[{"tau": 1}, {"tau": 0}]', b"\xff\xfe",
    ],
)  # fmt: skip
def test_orders_that_the_page_does_not_give(page, order, capfd):
    status, says = page.post(order)
    assert status == 400 and says.startswith("This is no order of the page")
    assert page.until(lambda m: m.get("steps", 0) > 2)  # which plays on
    assert capfd.readouterr() == ("", "")


def test_slow_requests_have_one_deadline(port, monkeypatch, capfd):
    """A byte now and then keeps nobody's thread alive."""
    monkeypatch.setattr(serve, "PATIENCE", 1.5)
    before = threading.active_count()
    slow = [socket.create_connection(("127.0.0.1", port)) for _ in range(20)]
    bodies = [socket.create_connection(("127.0.0.1", port)) for _ in range(5)]
    for connection in bodies:
        connection.sendall(ask("POST /order", VISIT, "Content-Length: 5000"))
    began = time.monotonic()
    while time.monotonic() - began < 3:
        for connection in [*slow, *bodies]:
            with suppress(OSError):
                connection.sendall(b"G")
        time.sleep(0.3)
    assert threading.active_count() <= before
    for connection in [*slow, *bodies]:
        connection.close()
    assert capfd.readouterr() == ("", "")


def test_out_of_file_handles_the_server_waits(port, monkeypatch):
    """accept fails at once, again and again, while a visitor waits at the door."""
    tries = []

    def accept(self):
        tries.append(self)
        if len(tries) < 4:
            raise OSError(errno.EMFILE, "Too many open files")
        return real(self)

    real = socket.socket.accept
    monkeypatch.setattr(socket.socket, "accept", accept)
    began = time.monotonic()
    assert answer(port, ask("GET /", CLOSE)).startswith(b"HTTP/1.1 200")
    assert len(tries) == 4 and time.monotonic() - began > 0.25


def test_a_hundred_connections(port, capfd):
    """Those beyond the places are told so, silent ones cost nobody anything, and who leaves makes room."""
    silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(100)]
    pages = [Page(port) for _ in range(serve.PLACES + 5)]
    assert [page.status for page in pages] == [200] * serve.PLACES + [503] * 5
    assert "All 8 places are taken" in pages[-1].answer.read().decode()
    assert answer(port, ask("GET /", CLOSE)).startswith(b"HTTP/1.1 200")
    for connection in [*silent, *pages]:
        connection.close()
    for _ in range(100):  # a place is free when the server has noticed
        if (page := Page(port)).status == 200:
            break
        time.sleep(0.05)
    assert page.status == 200
    page.close()
    assert "Traceback" not in capfd.readouterr().err


def test_a_long_hello(doom_run, monkeypatch):
    """Lengths of many episodes are no reason to lose a visitor."""
    real = play.Records.__init__

    def init(self, *args):
        real(self, *args)
        self.steps = np.arange(50_000) * 7919 % 2100

    monkeypatch.setattr(play.Records, "__init__", init)
    with served(doom_run) as port:
        page = Page(port)
        assert len(page.hello["recorded"]) == 50_000
        page.close()


def test_a_port_that_is_taken(port, doom_run):
    with pytest.raises(files.DataError, match="choose another by --port"):
        play.server(doom_run, port=port)


# -------------------------------------------------------------------------------------------------- in a browser


LOADED = "!window.old && typeof last != 'undefined' && last && last.steps > 3"
IN_CHROMIUM = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")


@contextmanager
def browsing(run, path: str = "", **how):
    """A browser at the page of a run; nothing may be complained of."""
    with served(run) as port, tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Browser(Path(profile), f"http://127.0.0.1:{port}/{path}", **how)
        try:
            yield browser
            assert browser.complaints == []
        finally:
            browser.close()


def slide(browser: Browser, control: str, value: float) -> None:
    """What a hand on a slider does."""
    browser.script(
        f"$('{control}').value = {value}; $('{control}').dispatchEvent(new Event('input'))"
    )


@IN_CHROMIUM
def test_the_page_in_a_browser():
    """Opened and played as by one who reads nothing: from the address to a death, and then all the page can do."""
    with browsing("doom", "?seed=5") as browser:
        browser.wait("last && last.steps > 10")
        assert "every picture here is 64 numbers" in browser.script("$('card').innerText")
        assert browser.script("last.player") == "ahead"
        browser.key("keyDown", "ArrowLeft")
        # it clears the stage
        browser.wait("last.player == 'you' && $('card').className == '' && last.steps > 5")
        assert browser.script("last.seed") == 5 and browser.script("sent") == "-1"
        light = browser.script(
            "shown[0].context.getImageData(0, 0, 64, 64).data.reduce((sum, x) => sum + x, 0)"
        )
        assert 64 * 64 * (255 + 3 * 20) < light < 64 * 64 * (255 + 3 * 200)
        browser.wait(
            "last.over", 90
        )  # a player who runs to a wall and stays there does not live long
        browser.key("keyUp", "ArrowLeft")
        assert browser.script("last.total") < 1000
        card = browser.script("$('card').innerText")
        assert f"You: {browser.script('score(last.total)')} frames survived" in card
        assert "A fireball hit." in card and "random, real, mean of 100" in card
        assert browser.script("lives['dream 1.00|you']") == [browser.script("last.total")]
        assert browser.script("document.querySelectorAll('.dead').length") == 1

        browser.press("Space")
        browser.wait("last.steps > 3 && !last.over && last.seed != 5")
        browser.press("KeyK")
        browser.wait("last.player == 'ahead'")
        slide(browser, "tau", 0.1)
        browser.wait("last.tau == 0.1 && $('says').innerText.includes('2086')")
        browser.press("NumpadAdd")
        browser.wait("last.tau == 0.15 && $('degree').innerText.includes('0.15')")
        assert "dreamt" not in browser.script("$('says').innerText")  # nobody knows
        browser.press("KeyP")
        time.sleep(0.5)  # what was on its way comes
        step = browser.script("last.steps")
        browser.press("KeyN")
        browser.wait(f"last.steps == {step + 1}")
        browser.press("KeyP")
        browser.script("document.querySelector('[data-world=recorded]').click()")
        browser.wait("last.world == 'recorded'")
        slide(browser, "at", 200)
        browser.wait("last.steps == 200 && paused")
        browser.press("KeyF")
        browser.wait("last.world == 'here' && last.player == 'you' && last.steps > 3")


@IN_CHROMIUM
def test_hands_on_z_in_a_browser():
    """The strongest first; a drag stops the game and changes the picture; back, and from A to B."""
    with browsing("doom", "?seed=5") as browser:
        browser.wait("last && document.querySelectorAll('#hands input').length == 8")
        strongest = browser.script("document.querySelector('#hands input').id")
        number = int(strongest[1:])
        slide(browser, strongest, -3)
        browser.wait(f"paused && last.z[{number}] == -3")
        picture = "shown[0].now.join()"
        far, z = browser.script(picture), browser.script("before.join()")
        browser.script("$('A').click(); $('back').click()")
        browser.wait(f"last.z.join() == '{z}' && drawn")
        assert browser.script(picture) != far
        browser.script("$('B').click()")
        slide(browser, "blend", 0.5)
        browser.wait(f"Math.abs(last.z[{number}] - (before[{number}] - 3) / 2) < 0.01")
        slide(browser, "blend", 0)
        browser.wait(f"last.z[{number}] == -3")
        browser.script("$('all').click()")
        browser.wait("document.querySelectorAll('#hands input').length == 64")
        browser.script("$('on').click()")
        browser.wait("last.world == 'here' && last.steps > 3 && !paused")


@IN_CHROMIUM
def test_a_reload_goes_on_as_it_was():
    """Temperature, holder, world, open panels; and a shared moment is that moment."""
    with browsing("doom", "?seed=5") as browser:
        browser.wait("last && last.steps > 3")
        browser.script("give('blind'); change({ tau: 0.7 }); $('p-mind').open = false")
        browser.wait("location.search.includes('0.7')")
        browser.script("window.old = true; location.reload()")
        browser.wait(f"{LOADED} && last.tau == 0.7 && last.player == 'blind'")
        assert browser.script("$('p-mind').open") is False
        assert browser.script("$('p-z').open") is True
        browser.script(
            "pause(); window.copied = ''; copy = address => window.copied = address; share()"
        )
        link = browser.wait("copied")
        z = browser.script("last.z")
        browser.call("Page.navigate", url="about:blank")
        browser.call("Page.navigate", url=link)
        browser.wait(f"{LOADED} && last.world == 'here'")
        assert browser.script("[last.tau, last.world]") == [0.7, "here"]
        browser.script("pause(); order({ seed: 1, world: 'here' })")
        browser.wait("last.steps == 0 && last.seed == 1")
        np.testing.assert_allclose(browser.script("last.z"), z, atol=0.01)


@IN_CHROMIUM
def test_a_server_that_freezes_or_dies_is_told_of(tmp_path):
    command = [sys.executable, str(Path(__file__).parents[1] / "run.py"), "play", "doom"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        browser = None
        try:
            address = re.search("http://[^ ]*", server.stdout.readline()).group()
            browser = Browser(tmp_path, address)
            browser.wait("last && last.steps > 3")
            server.send_signal(signal.SIGSTOP)
            began = time.monotonic()
            browser.wait("$('trouble').textContent.includes('No word from the server')")
            assert time.monotonic() - began < 2.5
            server.send_signal(signal.SIGCONT)
            browser.wait("$('trouble').textContent == '' && !last.over")
            server.kill()
            began = time.monotonic()
            browser.wait("$('card').innerText.includes('The server has stopped')")
            assert time.monotonic() - began < 2
        finally:
            server.kill()
            if browser:
                browser.close()


@IN_CHROMIUM
def test_a_slow_line_is_told_of():
    """Within two seconds, and no longer than it is slow."""
    with browsing("doom", "?seed=5") as browser:
        browser.wait("last && last.steps > 3")
        slow = {"offline": False, "downloadThroughput": -1, "uploadThroughput": -1}
        browser.call("Network.enable")
        browser.call("Network.emulateNetworkConditions", latency=1500, **slow)
        began = time.monotonic()
        browser.wait("$('trouble').textContent.includes('A slow line: an order takes')")
        assert time.monotonic() - began < 2
        browser.call("Network.emulateNetworkConditions", latency=0, **slow)
        browser.wait("$('trouble').textContent == ''")


@IN_CHROMIUM
def test_looking_ahead_in_a_browser():
    """A bar for each plan, the chosen one marked; L switches it off and on; a button shows what it dreams."""
    with browsing("doom") as browser:
        browser.wait("last && last.steps > 3 && last.plans")
        assert "M drives, looking ahead" in browser.script("$('card').textContent")
        rows = "[...document.querySelectorAll('#plans .meter')].map(row => row.innerText)"
        names = [row.replace("▸", "").split()[0] for row in browser.script(rows)]
        assert names == ["left", "stay", "right"]
        marked = browser.script("document.querySelector('#plans .chosen').innerText")
        chosen = browser.script("called(last.plans[last.chosen])")
        assert marked.startswith(f"▸ {chosen}")
        browser.press("KeyL")
        browser.wait("last.player == 'C' && !last.plans && $('plans').children.length == 0")
        assert browser.script("$('look').ariaPressed") == "false"
        browser.wait("agent == 'C' && $('holder').innerText == 'C alone · dream'")
        browser.script("$('look').click()")
        browser.wait("last.player == 'ahead' && last.plans && $('look').ariaPressed == 'true'")
        browser.script("$('strips').click()")
        browser.wait("document.querySelectorAll('.strip').length == 3")
        browser.press("KeyP")
        browser.press("KeyK")
        browser.wait("last.player == 'you' && document.querySelectorAll('.strip').length == 0")
        browser.press("KeyK")
        browser.wait("last.player == 'ahead' && document.querySelectorAll('.strip').length == 3")
        browser.script("copy = address => window.copied = address; begin(4, 'reality', 'ahead')")
        browser.wait("last.world == 'reality' && last.steps > 8")
        browser.press("KeyP")
        time.sleep(0.5)  # what was on its way comes
        browser.script("share()")
        link = browser.wait("window.copied")
        steps = browser.script("last.steps")
        browser.call("Page.navigate", url="about:blank")
        browser.call("Page.navigate", url=link)
        browser.wait(
            f"typeof last != 'undefined' && last && last.world == 'reality' && last.steps >= {steps}"
        )
        assert browser.script("attract || fair") is False
        browser.script("pause(); window.copied = ''")


@IN_CHROMIUM
def test_keys_belong_to_the_control_in_focus():
    """Tab moves on, space and arrows act on the slider or button that has the focus, and no game key with them."""
    with browsing("doom", "?seed=5") as browser:
        browser.wait("last && last.steps > 3")
        seen = set()
        for _ in range(12):
            browser.press("Tab")
            seen.add(
                browser.script("document.activeElement.id || document.activeElement.innerText")
            )
        assert len(seen) > 9
        browser.script("$('tau').focus()")
        before = browser.script("last.tau")
        browser.press("ArrowLeft")
        browser.wait(f"Math.abs(last.tau - {before} + 0.05) < 0.001")
        assert browser.script("last.player") == "ahead"
        browser.script("$('pause').focus()")
        browser.press("Space")
        browser.wait("paused")
        assert browser.script("getComputedStyle($('pause')).outlineStyle") == "solid"


@IN_CHROMIUM
@pytest.mark.parametrize("size", [(1280, 800), (844, 390), (640, 400), (390, 844), (1920, 1080)])
@pytest.mark.parametrize("run", ["doom", "carracing"])
def test_the_whole_picture_is_on_the_screen(run, size):
    """On phones, at 200 % zoom, on large screens; nothing to scroll sideways, nothing small to hit."""
    width, height = size
    with browsing(run, width=width, height=height, mobile=min(size) < 500) as browser:
        browser.wait("last && document.querySelectorAll('#hands input').length == 8")
        box = browser.script(
            "{ const b = $('stage').getBoundingClientRect(); [b.left, b.top, b.right, b.bottom] }"
        )
        assert box[0] >= 0 and box[1] >= 0 and box[2] <= width and box[3] <= height
        assert box[2] - box[0] > 0.4 * min(width, height * 1.2)
        assert browser.script("document.documentElement.scrollWidth") <= width
        small = """[...document.querySelectorAll('button, input, summary, a')].filter(x => x.offsetParent
            && x.getBoundingClientRect().height < 43.9).map(x => x.outerHTML)"""
        assert browser.script(small) == []
        browser.script("begin(4, 'recorded', 'C')")
        browser.wait("last.world == 'recorded' && last.steps > 1")
        again = browser.script(
            "{ const b = $('stage').getBoundingClientRect(); [b.left, b.right, b.bottom - b.top] }"
        )
        assert again == [box[0], box[2], box[3] - box[1]]  # it does not jump


@pytest.fixture(scope="session")
def axe(tmp_path_factory) -> str:
    """The source of axe-core, from npm."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    folder = tmp_path_factory.mktemp("axe")
    command = ["npm", "install", "--prefix", folder, "--ignore-scripts", "axe-core@4.14.1"]
    if subprocess.run(command, capture_output=True, timeout=120).returncode:
        pytest.skip("npm cannot fetch axe-core")
    return (folder / "node_modules/axe-core/axe.min.js").read_text()


@IN_CHROMIUM
@pytest.mark.parametrize("colours", ["dark", "light"])
@pytest.mark.parametrize("size", [(1280, 800), (390, 844)])
def test_everybody_can_use_it(axe, colours, size):
    """No violation of WCAG 2.2 AA or of axe's best practices: invited, playing, paused, in futures, dead."""
    width, height = size
    with browsing("doom", width=width, height=height, mobile=width < 500) as browser:
        features = [{"name": "prefers-color-scheme", "value": colours}]
        features.append({"name": "prefers-reduced-motion", "value": "reduce"})
        browser.call("Emulation.setEmulatedMedia", features=features)
        browser.script(axe + "; 1")

        def check(moment: str) -> None:
            found = browser.script("axe.run().then(found => found.violations)")
            said = [
                (x["id"], x["nodes"][0]["html"], x["nodes"][0]["failureSummary"]) for x in found
            ]
            assert said == [], moment

        browser.wait("last && document.querySelectorAll('#hands input').length == 8")
        check("invited")
        browser.script("strips()")
        browser.wait("document.querySelectorAll('.strip').length == 3")
        check("looking ahead")
        browser.script("pause()")
        check("paused")
        browser.script("pause(); futures()")
        browser.wait("last.world == 'futures' && last.steps > 3")
        browser.script("pause()")
        check("futures")
        browser.script("pause(); begin(1, 'recorded', 'C')")
        browser.wait("last.world == 'recorded'")
        slide(browser, "at", 200)
        browser.wait("last.steps == 200")
        check("recorded")
        browser.script("last = { ...last, world: 'dream', over: 'died', player: 'you' }; died()")
        check("dead")
