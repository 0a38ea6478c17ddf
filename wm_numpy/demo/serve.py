"""One page, and one WebSocket (RFC 6455) per visitor: what a demo in a browser needs, from the standard library.

A request may do what the page does and nothing else: GET /, GET /socket, then messages as short as the page's.
Anything else gets a 4xx, or 503 when all places are taken, and ends that one connection.
"""

import struct
import sys
from base64 import b64encode
from collections.abc import Callable
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import socket
from threading import BoundedSemaphore

PLACES = 8  # visitors at a time
LONGEST = 125  # bytes of a message from the page: the longest whose length is one byte
PATIENCE = 10  # seconds that a visitor has to finish a request or a message, or to take one
GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # of every WebSocket, RFC 6455
TEXT, BINARY, CLOSE = 1, 2, 8  # kinds of frames


class Closed(Exception):
    """The visitor has gone, or was sent away."""


class WebSocket:
    """The server's side of one: text comes, bytes go. For one thread."""

    def __init__(self, connection: socket):
        self._connection = connection

    def send(self, data: bytes, kind: int = BINARY) -> None:
        """One frame of at most 65,535 bytes."""
        n = len(data)
        short = bytes([0x80 | kind, min(n, 126)])
        self._connection.settimeout(PATIENCE)
        try:
            self._connection.sendall((short if n < 126 else short + struct.pack(">H", n)) + data)
        except OSError as error:
            raise Closed from error

    def receive(self, seconds: float) -> str | None:
        """The next message; None: within so many seconds none began."""
        head = self._read(2, seconds)
        if head is None:
            return None
        kind = head[0] & 15
        n = head[1] & 127
        if head[0] & 0xF0 != 0x80 or not head[1] & 0x80 or n > LONGEST or kind not in (TEXT, CLOSE):
            self.refuse("not a message of the page")  # in pieces, not masked, long, binary
        mask = self._read(4)
        data = bytes(byte ^ mask[i % 4] for i, byte in enumerate(self._read(n)))
        if kind == CLOSE:
            self.close(data[:2])
        try:
            return data.decode()
        except ValueError:
            self.refuse("not text")

    def refuse(self, reason: str) -> None:
        """Send the visitor away: 1008, against the rules."""
        self.close(struct.pack(">H", 1008) + reason.encode())

    def close(self, data: bytes = b"") -> None:
        """Say the last word, a code and a reason, and end."""
        self.send(data, CLOSE)
        raise Closed

    def _read(self, n: int, seconds: float | None = None) -> bytes | None:
        """n bytes; None: the first of them did not come within `seconds`."""
        data = b""
        patience = PATIENCE if seconds is None else max(seconds, 1e-4)  # 0 would not wait at all
        self._connection.settimeout(patience)
        while len(data) < n:
            try:
                more = self._connection.recv(n - len(data))
            except OSError as error:
                if isinstance(error, TimeoutError) and seconds is not None and not data:
                    return None
                raise Closed from error
            if not more:
                raise Closed
            data += more
            self._connection.settimeout(PATIENCE)
        return data


class _Handler(BaseHTTPRequestHandler):
    """A request."""

    protocol_version = "HTTP/1.1"
    timeout = PATIENCE
    rbufsize = 0  # no buffer: the WebSocket reads on after the request

    def do_GET(self):
        path = self.path.partition("?")[0]
        if self.headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in self.headers:
            self.send_error(413)
        elif path == "/":
            headers = {"Content-Type": "text/html; charset=utf-8", "Cache-Control": "no-store"}
            self._answer(200, headers, self.server.page)
        elif path == "/socket":
            self._socket()
        else:
            self.send_error(404)

    def _socket(self):
        origin = self.headers.get("Origin")
        key = self.headers.get("Sec-WebSocket-Key", "")
        if self.headers.get("Upgrade", "").lower() != "websocket" or not key:
            return self.send_error(400)
        if origin is not None and origin.partition("://")[2] != self.headers.get("Host"):
            return self.send_error(403)  # some other site's page
        if not self.server.places.acquire(blocking=False):
            return self.send_error(503)
        try:
            accept = b64encode(sha1((key + GUID).encode()).digest()).decode()
            headers = {"Upgrade": "websocket", "Connection": "Upgrade"}
            self._answer(101, headers | {"Sec-WebSocket-Accept": accept})
            self.server.visit(WebSocket(self.connection))
        except Closed:
            pass
        finally:
            self.server.places.release()

    def _answer(self, code: int, headers: dict[str, str], body: bytes = b""):
        self.send_response(code)
        if code >= 200:
            headers |= {"Content-Length": str(len(body)), "Connection": "close"}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True

    def send_error(self, code, message=None, explain=None):
        code = {501: 405, 505: 400}.get(code, code)  # a method other than GET; another version
        super().send_error(code, message, explain)
        self.close_connection = True

    def log_message(self, *args):
        pass


class Server(ThreadingHTTPServer):
    """`page` for everybody, visit(WebSocket) for PLACES visitors at a time, on threads."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, host: str, port: int, page: bytes, visit: Callable[[WebSocket], None]):
        self.page = page
        self.visit = visit
        self.places = BoundedSemaphore(PLACES)
        super().__init__((host, port), _Handler)

    def handle_error(self, request, client_address):
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):  # one who has gone needs no word
            print(f"a visitor was lost: {type(error).__name__}: {error}", file=sys.stderr)
