"""How far a stage has come: lines for people, log.jsonl for programs."""

import json
import shutil
import sys
import time
from contextlib import contextmanager
from pathlib import Path

from ..system.files import writing


class Log:
    """Progress for people, with rate and time left; log.jsonl for programs, one object per record."""

    def __init__(self, folder: Path | None = None):
        self.path = folder and folder / "log.jsonl"
        self.terminal = sys.stdout is not None and sys.stdout.isatty()
        self.place = ""  # before every line of progress: "3 of 7  "
        self._shown = 0  # characters of the line that the next one replaces
        if self.path and self.path.exists() and not self.path.read_bytes().endswith(b"\n"):
            self.path.open("a").write("\n")  # a kill cut the last line short

    def line(self, text: str, replaced: bool = False) -> None:
        """Print a line; one to be replaced by the next is cut to the width of the terminal."""
        if replaced:
            text = text[: shutil.get_terminal_size().columns - 1]
        back = "\r" if self._shown else ""
        print(f"{back}{text:{self._shown}}", end="" if replaced else "\n", flush=True)
        self._shown = len(text) if replaced else 0

    def record(self, **values) -> None:
        """Append to log.jsonl; the time is added."""
        if self.path:
            with writing(self.path), open(self.path, "a") as file:
                file.write(json.dumps({"time": round(time.time(), 1)} | values) + "\n")

    @contextmanager
    def progress(self, stage: str, round_: int, total: int, unit: str):
        """Yield `report(done, **figures)`, which prints twice a second on a terminal, every 15 s elsewhere."""
        start = time.monotonic()
        shown = recorded = 0.0
        text = ""
        first = None

        def report(done: int, /, **figures) -> None:
            nonlocal shown, recorded, text, first
            now = time.monotonic()
            last = done >= total
            first = first or (done, now)  # the pace of a resumed stage counts from here
            pace = _pace(done - first[0], total - done, now - first[1], unit)
            told = "  ".join(f"{name} {x:.4g}" for name, x in figures.items())
            text = f"{self.place}{stage:9} {done:,}/{total:,} {unit}  {pace}{told}"
            if now - shown > (0.5 if self.terminal else 15) and not last:
                self.line(text, replaced=self.terminal)
                shown = now
            if figures and (now - recorded > 1 or last or "check" in figures):
                self.record(stage=stage, round=round_, step=done, **figures)
                recorded = now

        yield report
        if text:
            self.line(f"{text.rstrip()}  ({time.monotonic() - start:.0f} s)")


def _pace(done: int, left: int, seconds: float, unit: str) -> str:
    """Rate and time left, once something is done."""
    if not done:
        return ""
    each = max(seconds, 1e-9) / done
    rate = f"{1 / each:.1f} {unit}/s"
    if each > 1:
        rate = f"{each:.1f} s per {unit.removesuffix('s')}"
    return f"{rate}  {left * each:.0f} s left  "
