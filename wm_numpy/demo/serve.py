"""One page, pictures that stream to it, and its orders: what a demo in a browser needs, from the standard library.

GET / is the page. POST /play takes a place, and its answer never ends: messages, each 4 bytes of length (big-endian),
then the data; a length of 0 is a beat, sent when nothing else was for BEAT seconds. POST /order brings orders to it.

Only the page may ask: under a Host that is this server's own (against DNS rebinding), from its own Origin, with a
header `Visit`, which no other site's page can send unasked. Anything else gets a 4xx and ends that one connection.
"""

import io
import re
import sys
import time
from base64 import b64encode
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from http.client import HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import Empty, Full, Queue
from secrets import token_urlsafe
from socket import AF_INET6, SHUT_WR, SocketIO, socket
from urllib.parse import urlsplit

PLACES = 8  # visitors at a time
PATIENCE = 10  # seconds for a whole request, and for a visitor to take a message
BEAT = 0.5  # seconds: the page reports a silence of three of them
HEAD = 16_384  # bytes of a request before its body
LONGEST = 65_536  # bytes of orders
WAITING = 100  # orders that a visit has not come to yet


class Line:
    """Messages to one page, `orders` from it, which other threads put there."""

    def __init__(self, connection: socket):
        self._connection = connection
        self.orders = Queue(WAITING)
        self._sent = time.monotonic()

    def send(self, data: bytes) -> None:
        """ConnectionError: the page has gone, or does not take it."""
        self._connection.settimeout(PATIENCE)
        try:
            self._connection.sendall(len(data).to_bytes(4, "big") + data)
        except OSError as error:
            raise ConnectionError from error
        self._sent = time.monotonic()

    def beat(self) -> None:
        """Tell the page that the server is alive, unless it has just heard from it."""
        if time.monotonic() > self._sent + BEAT:
            self.send(b"")

    def receive(self, seconds: float) -> list | None:
        """The next orders; None: none came within so many seconds."""
        until = time.monotonic() + seconds
        while True:
            self.beat()
            with suppress(Empty):
                return self.orders.get(timeout=min(BEAT, max(until - time.monotonic(), 1e-4)))
            if time.monotonic() >= until:
                return None


class _Connection(SocketIO):
    """A connection's bytes, until a deadline."""

    def readinto(self, buffer):
        self._sock.settimeout(max(self.until - time.monotonic(), 1e-4))
        return super().readinto(buffer)


class _Request(io.BufferedReader):
    """A request, with one limit to all of its lines."""

    def readline(self, size=-1):
        line = super().readline(min(size, self.room + 1))
        self.room -= len(line)
        if self.room < 0:
            raise HTTPException(f"more than {HEAD} bytes of headers")
        return line


class _Handler(BaseHTTPRequestHandler):
    """A connection: one request after the other."""

    protocol_version = request_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    command = requestline = ""  # until the first line is read
    error_message_format = "%(explain)s\n"
    error_content_type = "text/plain; charset=utf-8"

    def setup(self):
        super().setup()
        self.rfile = _Request(_Connection(self.connection, "r"))

    def handle_one_request(self):
        self.rfile.room = HEAD
        self.rfile.raw.until = time.monotonic() + PATIENCE
        try:
            super().handle_one_request()
        except HTTPException as error:  # in the first line; parse_request answers those after it
            self.send_error(414, explain=str(error))

    def do_GET(self):
        size = self.headers.get("Content-Length", "0" if self.command == "GET" else "")
        most = LONGEST if self.command == "POST" else 0
        fits = size.isdecimal() and len(size) < 9 and int(size) <= most
        if not fits or "Transfer-Encoding" in self.headers:
            return self.send_error(413, explain="This is longer than an order of the page.")
        if not self._is_own():
            fault = "This server answers its own page alone"
            return self.send_error(403, explain=f"{fault}: open its address, or name it by --host.")
        match self.command, self.path.partition("?")[0]:
            case "GET", "/":
                self._answer(200, self.server.headers, self.server.page)
            case "POST", "/play" | "/order" as path:
                try:
                    orders = self.server.read(self.rfile.read(int(size)))
                except (ValueError, RecursionError) as error:
                    return self.send_error(400, explain=f"This is no order of the page: {error}")
                self._play(orders) if path == "/play" else self._order(orders)
            case _:
                self.send_error(404, explain="There is GET /, POST /play and POST /order.")

    do_POST = do_GET

    def _is_own(self) -> bool:
        """The request is this server's own page's, or for it."""
        host = self.headers.get("Host", "")
        known = self.server.names | {self.connection.getsockname()[0]}
        marked = self.command == "GET" or "Visit" in self.headers
        with suppress(ValueError):  # no address at all
            same = self.headers.get("Origin", f"http://{host}") == f"http://{host}"
            return urlsplit(f"//{host}").hostname in known and same and marked
        return False

    def _play(self, orders: list) -> None:
        if len(self.server.lines) >= PLACES:
            return self.send_error(503, explain=f"All {PLACES} places are taken: try again later.")
        visit = token_urlsafe()
        line = self.server.lines[visit] = Line(self.connection)
        try:
            self._answer(200, {"Connection": "close", "Visit": visit})
            self.server.visit(line, orders)
        except ConnectionError:  # as most visits end
            pass
        finally:
            del self.server.lines[visit]

    def _order(self, orders: list) -> None:
        try:
            self.server.lines[self.headers["Visit"]].orders.put_nowait(orders)
        except KeyError:
            self.send_error(410, explain="This visit is over: load the page again.")
        except Full:
            self.send_error(429, explain="The server does not keep up with the orders.")
        else:
            self._answer(204, {})

    def _answer(self, code: int, headers: dict[str, str], body: bytes = b""):
        self.send_response(code)
        for name, value in (headers | {"Cache-Control": "no-store"}).items():
            self.send_header(name, value)  # `Connection: close` sets close_connection
        self.end_headers()
        self.wfile.write(body)

    def send_error(self, code, message=None, explain=None):
        code = {501: 405, 505: 400}.get(code, code)  # an unknown method; another version
        super().send_error(code, message, explain)
        self.close_connection = True
        self.rfile.raw.until = time.monotonic() + 1
        with suppress(OSError):  # a connection closed with input unread would lose the answer
            self.connection.shutdown(SHUT_WR)
            while self.rfile.raw.read(65536):
                pass

    def log_message(self, *args):
        pass


class Server(ThreadingHTTPServer):
    """`page` for everybody, visit(line, orders) for some at a time; read(bytes) -> orders, or ValueError."""

    request_queue_size = 128

    def __init__(self, host: str, port: int, page: bytes, read: Callable, visit: Callable):
        self.address_family = AF_INET6 if ":" in host else self.address_family
        self.page, self.read, self.visit = page, read, visit
        self.headers = {
            "Content-Length": str(len(page)),
            "Content-Type": "text/html; charset=utf-8",
            "Content-Security-Policy": policy(page),
            "X-Content-Type-Options": "nosniff",
        }
        self.names = {"localhost", "127.0.0.1", "::1", host.lower()}
        self.lines: dict[str, Line] = {}  # by the token of a visit
        super().__init__((host, port), _Handler)

    def get_request(self):
        try:
            return super().get_request()
        except OSError:  # out of file handles: without a pause it would try again at once, for ever
            time.sleep(0.1)
            raise

    def handle_error(self, request, client_address):
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):  # client disconnected
            print(f"a visitor was lost: {type(error).__name__}: {error}", file=sys.stderr)


def policy(page: bytes) -> str:
    """A Content-Security-Policy under which only the page's own script and style run."""
    none = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    own = [
        f"{tag.decode()}-src 'sha256-{b64encode(sha256(inside).digest()).decode()}'"
        for tag, inside in re.findall(rb"<(script|style)>(.*?)</", page, re.DOTALL)
    ]
    return "; ".join([none, "connect-src 'self'", "img-src data: blob:", *own])
