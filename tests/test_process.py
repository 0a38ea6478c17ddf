"""Terminals, pipes and closed streams."""

import io
import os
import subprocess
import sys
from itertools import pairwise

import pytest

from tests.conftest import ROOT
from wm_numpy.training.log import Log


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_is_one_row_of_a_terminal(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", "40")
    now = iter(range(0, 1000, 10))
    monkeypatch.setattr("time.monotonic", lambda: next(now))
    log = Log()
    with log.progress("vae", 1, 50, "updates") as report:
        report(1, loss=1.0, reconstruction=0.123456, kl=32.0)
        report(2, loss=1.0)
        log.line("short")
        report(3, loss=1.0, reconstruction=0.123456, kl=32.0)
        report(50, loss=1.0, reconstruction=0.123456, kl=32.0)
    written = terminal.getvalue()
    assert "\x1b" not in written
    rows = written.split("\n")
    assert [row.rpartition("\r")[2].split()[0] for row in rows[:-1]] == ["short", "vae"]
    for row in rows:
        texts = row.split("\r")
        assert all(len(text) < 40 for text in texts[:-1])
        for before, after in pairwise(texts):
            assert len(after) >= len(before.rstrip())  # it hides what was there
    assert rows[-2].endswith("kl 32  (50 s)")  # the last word is whole


def test_lines_of_a_file_have_no_returns(capsys, monkeypatch):
    now = iter(range(0, 1000, 20))
    monkeypatch.setattr("time.monotonic", lambda: next(now))
    with Log().progress("vae", 1, 9, "updates") as report:
        report(1, loss=1.0)
        report(2, loss=0.123)
    out = capsys.readouterr().out
    assert "\r" not in out and out.count("\n") == 3


def test_no_standard_output(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    Log().line("nobody hears it")


CLOSED = """
import os, sys
from wm_numpy.system import process
process.open_streams()
with open(sys.argv[1], "w") as file:
    print("into nothing")
    print("into nothing", file=sys.stderr, flush=True)
    os.write(1, b"as an engine does")
    print(file.fileno(), sys.stdin.read() == "", file=file)
"""


@pytest.mark.skipif(os.name == "nt", reason="a shell's redirections")
def test_closed_streams_are_replaced(tmp_path):
    """A file that is opened later does not get their numbers, and what is printed."""
    command = 'exec "$0" -c "$1" "$2" <&- >&- 2>&-'
    argv = ["sh", "-c", command, sys.executable, CLOSED, tmp_path / "out"]
    done = subprocess.run(argv, cwd=ROOT)
    number, ended = (tmp_path / "out").read_text().split()
    assert done.returncode == 0 and int(number) > 2 and ended == "True"


def test_any_name_can_be_printed():
    code = "from wm_numpy.system import process; process.open_streams(); print('\\xdcberlauf')"
    env = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True)
    assert done.stdout.split() == [rb"\xdcberlauf"] and done.returncode == 0


@pytest.mark.skipif(os.name == "nt", reason="a broken pipe")
def test_who_stops_reading_gets_no_error():
    """As `| head` does."""
    read, write = os.pipe()
    os.close(read)
    argv = [sys.executable, ROOT / "run.py", "settings"]
    done = subprocess.run(argv, stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert done.returncode == 1 and done.stderr == b""
