"""How far a stage has come: lines for people, log.jsonl for programs."""

import json
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..system.files import named


class Log:
    """Progress for people, with rate and time left; log.jsonl for programs, one object per record."""

    def __init__(self, folder: Path | None = None):
        self.path = folder and folder / "log.jsonl"
        self.terminal = sys.stdout is not None and sys.stdout.isatty()
        self.place = ""  # "3 of 7  "
        self._shown = 0  # characters of a line that the next one replaces
        if self.path and self.path.exists() and not self.path.read_bytes().endswith(b"\n"):
            self.path.open("a").write("\n")  # a kill cut the last line short

    def line(self, text: str, end: str = "\n") -> None:
        """A line for people; with another end it is cut to the terminal's width, and the next line replaces it."""
        if end != "\n":
            text = text[: shutil.get_terminal_size().columns - 1]
        back = "\r" if self._shown else ""
        print(f"{back}{text:{self._shown}}", end=end, flush=True)
        self._shown = 0 if end == "\n" else len(text)

    def record(self, **values) -> None:
        """A line of log.jsonl; the time is added."""
        if self.path:
            with named(self.path), open(self.path, "a") as file:
                file.write(json.dumps({"time": round(time.time(), 1)} | values) + "\n")

    def stages(self, names: Sequence[str], done: int) -> Iterator[str]:
        """The stages that are left, in turn: says how many are done, and puts "3 of 7" before the progress of each."""
        count = len(names)
        if 0 < done < count:
            self.line(f"{done} of {count} stages are done: goes on with {names[done]}")
        for i, name in enumerate(names[done:], done + 1):
            self.place = f"{i} of {count}  "
            yield name
        self.place = ""

    @contextmanager
    def progress(self, stage: str, round_: int, total: int, unit: str):
        """Gives `report(done, **figures)`, which prints twice a second on a terminal, now and then in a log."""
        start = time.monotonic()
        shown = 0.0
        kept = 0.0
        text = ""
        pace = ""
        first = None

        def report(done: int, /, **figures) -> None:
            nonlocal shown, kept, text, pace, first
            now = time.monotonic()
            last = done >= total
            first = first or (done, now)  # a resumed stage's pace counts from here
            if done > first[0]:
                each = max(now - first[1], 1e-9) / (done - first[0])  # seconds
                speed = f"{1 / each:.1f} {unit}/s"
                if each > 1:
                    speed = f"{each:.1f} s per {unit.removesuffix('s')}"
                pace = f"{speed}  {(total - done) * each:.0f} s left  "
            told = "  ".join(f"{k} {v:.4g}" for k, v in figures.items())
            text = f"{self.place}{stage:9} {done:,}/{total:,} {unit}  {pace}{told}"
            if now - shown > (0.5 if self.terminal else 15) and not last:
                self.line(text, end="" if self.terminal else "\n")
                shown = now
            if figures and (now - kept > 1 or last or "check" in figures):
                self.record(stage=stage, round=round_, step=done, **figures)
                kept = now

        yield report
        if text:
            self.line(f"{text.rstrip()}  ({time.monotonic() - start:.0f} s)")
