"""The demo: the page in a real browser, its orders and requests that no browser sends by hand."""

import json
import socket
import tempfile
import threading
import time
import zlib
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from tests.browser import CHROMIUM, Browser, Client
from wm_numpy.core import files
from wm_numpy.demo import play, serve
from wm_numpy.lab import film
from wm_numpy.models.agent import Agent
from wm_numpy.worlds.world import Dream

CLOSED = b"\x03\xf0"  # 1008, against the rules
UPGRADE = b"Upgrade: websocket\r\nSec-WebSocket-Key: x\r\n"


@contextmanager
def served(run):
    """The port of a server of this run."""
    with play.server(run) as server:
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

    def __init__(self, port: int):
        self.client = Client("127.0.0.1", port, "/socket")
        assert self.client.status == 101, self.client.answer
        self.hello, _ = self.message()

    def message(self) -> tuple[dict, bytes]:
        kind, raw = self.client.receive()
        assert kind == 2, raw
        head, pictures = zlib.decompress(raw).split(b"\n", 1)
        return json.loads(head), pictures

    def order(self, **orders) -> None:
        self.client.send(json.dumps(orders))

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
        return [self.until(lambda m, t=t: m["steps"] == t) for t in range(1, steps + 1)]

    def close(self) -> None:
        self.client.connection.close()


@pytest.fixture
def page(port):
    page = Page(port)
    yield page
    page.close()


# ------------------------------------------------------------------------------------------------- what is played


def test_a_dream_is_sent_step_by_step(page):
    assert page.hello["task"] == "doom" and page.hello["actions"] == 1
    assert page.hello["known"]["agent"]["mean"] > 0
    facts, raw = page.until(lambda m: m["steps"] == 3)
    assert facts["world"] == "dream" and facts["who"] == "C" and 0 <= facts["end"] <= 1
    assert 0 < facts["certainty"] <= 1
    assert facts["pictures"] == [["dream", 64, 64]] and len(raw) == 64 * 64 * 3
    assert len(facts["z"]) == 64 and len(facts["C"]) == 1


def test_seed_and_keys_make_the_dream(page):
    first = page.life(seed=3, who="C", world="dream")
    again = page.life(seed=3, who="C", world="dream")
    other = page.life(seed=4, who="C", world="dream")
    assert [raw for _, raw in first] == [raw for _, raw in again]
    assert [raw for _, raw in first] != [raw for _, raw in other]
    left, right = (page.life(seed=3, who="you", action=[x], world="dream") for x in (-1, 1))
    assert left[0][1] != right[0][1] and left[0][0]["who"] == "you"


def test_the_temperature_changes_while_a_dream_runs(page):
    page.life(seed=1, tau=1.5, world="dream")
    page.order(tau=0.1, step=1)
    cold, _ = page.until(lambda m: m["tau"] == 0.1 and m["steps"] == 6)
    page.order(tau=3, step=1)
    hot, _ = page.until(lambda m: m["tau"] == 3)
    assert cold["certainty"] > 1.5 * hot["certainty"]  # of the likeliest component


def test_a_slow_page_is_waited_for(port):
    """It gets a few pictures that it has not asked for, and no more until it says that it got them."""
    page = Page(port)
    page.order(world="dream", seed=0)
    page.client.connection.settimeout(1)
    with pytest.raises(TimeoutError):
        while True:
            last, _ = page.message()
    assert play.AHEAD <= last["n"] <= play.AHEAD + 2
    page.order(got=last["n"])
    page.client.connection.settimeout(10)
    assert page.message()[0]["n"] == last["n"] + 1
    page.close()


def test_a_recorded_episode_is_followed_and_dreamt_on(page):
    (steps,) = page.hello["recorded"]
    page.order(pause=1, seed=1, world="recorded")
    page.order(at=5)
    facts, raw = page.until(lambda m: m["world"] == "recorded" and m["steps"] == 5)
    page.order(at=2)
    page.until(lambda m: m["steps"] == 2)
    page.order(at=5)
    # backwards and forwards: the same moment
    assert page.until(lambda m: m["steps"] == 5)[1] == raw
    page.order(seed=1, world="here")
    here, same = page.until(lambda m: m["world"] == "here")
    assert here["steps"] == 0 and here["z"] == facts["z"] and same == raw
    page.order(step=1)
    assert page.until(lambda m: m["steps"] == 1)[0]["world"] == "here"
    page.order(seed=1, world="recorded")
    page.order(at=10**6)
    end, _ = page.until(lambda m: m["world"] == "recorded" and m["over"])
    assert end["steps"] == steps
    page.order(world="here")
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
        page.order(who="blind", seed=2, world="reality")
        facts, raw = page.until(lambda m: m.get("world") == "reality" and m["steps"] == 6)
        (reality, height, width), (view, *size) = facts["pictures"]
        assert (reality, view, size) == ("reality", "V's view", [64, 64])
        assert facts["who"] == "blind"
        assert len(raw) == 3 * (height * width + 64 * 64)
        assert np.frombuffer(raw, np.uint8)[: 3 * height * width].std() > 5
        page.order(seed=2, world="here")
        assert page.until(lambda m: m["world"] == "here" and m["steps"] == 2)
        page.close()


def test_a_world_that_cannot_be_had(page, monkeypatch):
    def make_env(task, repeat):
        raise ImportError("run `pip install vizdoom`")

    monkeypatch.setattr(play, "make_env", make_env)
    page.order(world="reality")
    assert page.until(lambda m: "says" in m)[0] == {"says": "run `pip install vizdoom`"}
    assert page.until(lambda m: "n" in m)[0]["world"] == "dream"  # which goes on


# -------------------------------------------------------------------------------------- what a browser would not send


def answer(port: int, request: bytes) -> bytes:
    """To a raw request, until the server closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(request)
        parts = []
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


@pytest.mark.parametrize(
    "request_, code",
    [
        (b"GET / HTTP/1.1\r\n\r\n", 200),
        (b"GET /?seed=nan&tau=x HTTP/1.1\r\n\r\n", 200),  # a matter of the page's
        (b"GET /../../etc/passwd HTTP/1.1\r\n\r\n", 404),
        (b"GET //play.py HTTP/1.1\r\n\r\n", 404),
        (b"GET /%2e%2e/run.py HTTP/1.1\r\n\r\n", 404),
        (b"GET http://elsewhere/ HTTP/1.1\r\n\r\n", 404),
        (b"GET /socket HTTP/1.1\r\n\r\n", 400),
        (b"GET /socket HTTP/1.1\r\nUpgrade: websocket\r\n\r\n", 400),
        (b"GET /socket HTTP/1.1\r\n" + UPGRADE + b"Origin: http://e.org\r\n\r\n", 403),
        (b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\n", 405),
        (b"DELETE /socket HTTP/1.1\r\n\r\n", 405),
        (b"GET / HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n", 413),
        (b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 413),
        (b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\n" + b"".join(b"a%d: 1\r\n" % i for i in range(200)) + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\na: " + b"x" * 70_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/9.9\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),  # a TLS handshake
    ],
)
def test_requests(port, request_, code, capfd):
    got = answer(port, request_)
    if got.startswith(b"HTTP/"):
        assert int(got.split()[1]) == code
    else:
        assert int(got.split(b"Error code: ")[1].split(b"<")[0]) == code
    assert b"Traceback" not in got and capfd.readouterr() == ("", "")


def test_a_huge_body(port, capfd):
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n")
        with pytest.raises(OSError):  # not all of it is taken
            for _ in range(1000):
                connection.sendall(bytes(100_000))
    assert answer(port, b"GET / HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 200")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "order",
    [
        "", "7", "[]", "{", "null", "{}}", "[" * 120, '{"fly": 1}', '{"pause": 2}', '{"got": -1}',
        '{"at": -1}', '{"at": "x"}', '{"tau": 0}', '{"tau": "hot"}', '{"tau": NaN}',
        '{"tau": 1e400}', '{"tau": true}', '{"who": "me"}', '{"who": {}}', '{"world": "../etc"}',
        '{"world": []}', '{"seed": -1}', '{"seed": 2147483648}', '{"seed": []}', '{"action": [2]}',
        '{"action": []}', '{"action": [0, 0]}', '{"action": 1}', '{"action": [[1]]}',
        '{"action": null}',
    ],
)  # fmt: skip
def test_orders_that_the_page_does_not_give(page, order, capfd):
    page.client.send(order)
    while (received := page.client.receive())[0] != 8:
        pass
    assert received[1].startswith(CLOSED) and capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "frame, code",
    [
        (b"\x81\x02{}", CLOSED),  # not masked
        (b"\x01\x82\0\0\0\0{}", CLOSED),  # the first of several
        (b"\x82\x82\0\0\0\0{}", CLOSED),  # binary
        (b"\x89\x80\0\0\0\0", CLOSED),  # a ping
        (b"\x81\xfe\xff\xff\0\0\0\0", CLOSED),  # 65,535 bytes
        (b"\x81\xff" + b"\xff" * 12, CLOSED),  # 2^64 - 1
        (b"\x81\x81\0\0\0\0\xff", CLOSED),  # not UTF-8
        (b"\xff\xff\xff\xff", CLOSED),
        (b"\x88\x82\0\0\0\0\x03\xe8", b"\x03\xe8"),  # the end, which is answered
    ],
)
def test_frames_that_a_browser_does_not_send(page, frame, code, capfd):
    page.client.connection.sendall(frame)
    while (received := page.client.receive())[0] != 8:
        pass
    assert received[1].startswith(code) and capfd.readouterr() == ("", "")


def test_a_hundred_connections(port, capfd):
    """Those beyond the places are told so, silent ones cost nobody anything, and who leaves makes room."""
    silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(100)]
    clients = [Client("127.0.0.1", port, "/socket") for _ in range(serve.PLACES + 5)]
    assert [client.status for client in clients] == [101] * serve.PLACES + [503] * 5
    assert answer(port, b"GET / HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 200")
    for connection in [*silent, *(client.connection for client in clients)]:
        connection.close()
    for _ in range(100):  # a place is free when the last step is done
        if (client := Client("127.0.0.1", port, "/socket")).status == 101:
            break
        time.sleep(0.05)
    assert client.status == 101 and client.receive()[0] == 2
    client.connection.close()
    assert "Traceback" not in capfd.readouterr().err


def test_a_port_that_is_taken(port, doom_run):
    with pytest.raises(files.DataError, match="choose another by --port"):
        play.server(doom_run, port=port)


# -------------------------------------------------------------------------------------------------- in a browser


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_the_page_in_a_browser(tmp_path):
    """Opened and played as by one who reads nothing: from the address to a death, and then all the page can do."""
    with served("doom") as port, tempfile.TemporaryDirectory() as profile:
        browser = Browser(Path(profile), f"http://127.0.0.1:{port}/?seed=5")
        try:
            browser.wait("last && last.steps > 10")
            assert "dream" in browser.script("$('card').innerText")
            assert browser.script("last.who") == "C"
            browser.key("keyDown", "ArrowLeft")
            # it clears the stage
            browser.wait("last.who == 'you' && $('card').className == '' && last.steps > 5")
            assert browser.script("last.seed") == 5 and browser.script("sent") == "-1"
            light = browser.script(
                "shown[0].context.getImageData(0, 0, 64, 64).data.reduce((sum, x) => sum + x, 0)"
            )
            assert 64 * 64 * (255 + 3 * 20) < light < 64 * 64 * (255 + 3 * 200)
            browser.wait("last.over", 90)  # who runs to a wall and stays does not live long
            browser.key("keyUp", "ArrowLeft")
            assert browser.script("last.total") < 1000
            said = f"You lived {browser.script('score(last.total)')} steps"
            assert said in browser.script("$('card').innerText")
            assert browser.script("lives['dream 1.15|you']") == [browser.script("last.total")]
            assert browser.script("document.querySelectorAll('.dead').length") == 1

            browser.press("Space")
            browser.wait("last.steps > 3 && !last.over && last.seed != 5")
            browser.press("Tab")
            browser.wait("last.who == 'C'")
            browser.script("$('tau').value = 0.1; $('tau').dispatchEvent(new Event('input'))")
            browser.wait("last.tau == 0.1 && $('says').innerText.includes('cheat')")
            browser.press("NumpadAdd")
            browser.wait("last.tau == 0.15 && $('heat').innerText.includes('0.15')")
            browser.press("KeyP")
            time.sleep(0.5)  # what was on its way comes
            step = browser.script("last.steps")
            browser.press("KeyN")
            browser.wait(f"last.steps == {step + 1}")
            browser.press("KeyP")
            browser.script("document.querySelector('[data-world=recorded]').click()")
            browser.wait("last.world == 'recorded'")
            browser.script("$('at').value = 200; $('at').dispatchEvent(new Event('input'))")
            browser.wait("last.steps == 200 && paused")
            browser.press("KeyF")
            browser.wait("last.world == 'here' && last.who == 'you' && last.steps > 3")
            assert browser.complaints == []
        finally:
            browser.close()
