"""A WebSocket's client side, and headless Chromium driven through it by the DevTools protocol."""

import base64
import json
import os
import shutil
import socket
import struct
import subprocess
import time
from pathlib import Path
from urllib.request import urlopen

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)


class Client:
    """The client's side of a WebSocket; nothing but what RFC 6455 asks for."""

    def __init__(self, host: str, port: int, path: str, **headers: str):
        self.connection = socket.create_connection((host, port), timeout=60)
        fields = {
            "Host": f"{host}:{port}", "Upgrade": "websocket", "Connection": "Upgrade",
            "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode(),
            "Sec-WebSocket-Version": "13",
        } | headers  # fmt: skip
        lines = [f"GET {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
        self.connection.sendall("\r\n".join([*lines, "", ""]).encode())
        self.answer = b""
        while not self.answer.endswith(b"\r\n\r\n"):
            self.answer += self.connection.recv(1) or self.connection.close() or b"\r\n\r\n"
        self.status = int(self.answer.split()[1])

    def send(self, data: bytes | str, kind: int = 1) -> None:
        data = data.encode() if isinstance(data, str) else data
        n, mask = len(data), os.urandom(4)
        size = struct.pack(">BQ", 255, n)
        if n <= 65_535:
            size = struct.pack(">BH", 254, n) if n > 125 else struct.pack(">B", 128 | n)
        masked = bytes(byte ^ mask[i % 4] for i, byte in enumerate(data))
        self.connection.sendall(bytes([128 | kind]) + size + mask + masked)

    def receive(self) -> tuple[int, bytes]:
        """-> kind (8: the end), data."""
        kind, n = self._read(2)
        n = int.from_bytes(self._read({126: 2, 127: 8}[n]), "big") if n > 125 else n
        data = self._read(n)
        return kind & 15, data + (self.receive()[1] if kind < 128 else b"")

    def _read(self, n: int) -> bytes:
        data = b""
        while len(data) < n:
            data += self.connection.recv(n - len(data)) or self._ended()
        return data

    def _ended(self):
        raise EOFError("the other side has ended")


class Browser:
    """A page in headless Chromium. `script` evaluates JavaScript, `press` and `touch` are what a person does."""

    def __init__(
        self, folder: Path, url: str, width: int = 1280, height: int = 800, mobile: bool = False
    ):
        command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"]
        command += ["--remote-debugging-port=0", f"--user-data-dir={folder}"]
        command += [f"--window-size={width},{height}", "about:blank"]
        silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, **silent)
        port = folder / "DevToolsActivePort"
        self.wait(lambda: port.exists() and "\n" in port.read_text())
        number = int(port.read_text().split()[0])

        def pages() -> list[dict]:
            targets = json.load(urlopen(f"http://127.0.0.1:{number}/json/list"))
            return [target for target in targets if target["type"] == "page"]

        self.wait(pages)
        (page,) = pages()
        self.client = Client("127.0.0.1", number, "/devtools/page/" + page["id"])
        self.count, self.complaints = 0, []
        self.call("Runtime.enable")
        self.call("Log.enable")
        size = {"width": width, "height": height, "deviceScaleFactor": 1}
        self.call("Emulation.setDeviceMetricsOverride", **size, mobile=mobile)
        if mobile:
            self.call("Emulation.setTouchEmulationEnabled", enabled=True)
        self.call("Page.navigate", url=url)
        self.wait("location.href != 'about:blank' && document.readyState == 'complete'")

    def call(self, method: str, **params) -> dict:
        self.count += 1
        self.client.send(json.dumps({"id": self.count, "method": method, "params": params}))
        while True:
            message = json.loads(self.client.receive()[1])
            if message.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.complaints.append(message["params"])
            if message.get("id") == self.count:
                return message.get("result", {})

    def script(self, expression: str):
        """Its value in the page; None while another page is on its way."""
        result = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in result, result
        return result.get("result", {}).get("value")

    def wait(self, condition, seconds: float = 30):
        """Until condition(), or an expression of the page, holds -> its value."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            value = self.script(condition) if isinstance(condition, str) else condition()
            if value:
                return value
            time.sleep(0.05)
        raise AssertionError(f"not within {seconds} s: {condition}")

    def key(self, kind: str, code: str) -> None:
        """kind: keyDown or keyUp; code: ArrowLeft, KeyP, Space."""
        name = {"Space": " ", "NumpadAdd": "+"}.get(code, code.removeprefix("Key"))
        # What a key does by itself, such as moving the focus, goes by these two.
        number = {"Tab": 9, "ArrowLeft": 37, "ArrowRight": 39, "Space": 32}.get(code, 0)
        text = {"text": " "} if code == "Space" and kind == "keyDown" else {}
        how = {"windowsVirtualKeyCode": number, **text}
        self.call("Input.dispatchKeyEvent", type=kind, code=code, key=name, **how)

    def press(self, code: str) -> None:
        self.key("keyDown", code)
        self.key("keyUp", code)

    def picture(self) -> bytes:
        """What is to be seen, as PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot")["data"])

    def screenshot(self, path: Path) -> None:
        path.write_bytes(self.picture())

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(10)
