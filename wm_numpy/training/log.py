"""How far a stage has come: lines for people, log.jsonl for programs."""

import json
import sys
import time
from contextlib import contextmanager
from pathlib import Path


class Log:
    """Progress for people, with rate and time left; log.jsonl for programs, one object per record."""

    def __init__(self, folder: Path | None = None):
        self.path = folder and folder / "log.jsonl"
        self.terminal = sys.stdout.isatty()
        if self.path and self.path.exists() and not self.path.read_bytes().endswith(b"\n"):
            self.path.open("a").write("\n")  # a kill cut the last line short

    def line(self, text: str, end: str = "\n") -> None:
        """A line for people."""
        print(f"\r\033[K{text}" if self.terminal else text, end=end, flush=True)

    def record(self, **values) -> None:
        """A line of log.jsonl; the time is added."""
        if self.path:
            with open(self.path, "a") as file:
                file.write(json.dumps({"time": round(time.time(), 1)} | values) + "\n")

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
            text = f"{stage:9} {done:,}/{total:,} {unit}  {pace}{told}"
            if now - shown > (0.5 if self.terminal else 15) and not last:
                self.line(text, end="" if self.terminal else "\n")
                shown = now
            if figures and (now - kept > 1 or last or "check" in figures):
                self.record(stage=stage, round=round_, step=done, **figures)
                kept = now

        yield report
        if text:
            self.line(f"{text.rstrip()}  ({time.monotonic() - start:.0f} s)")
