"""What a process of its own needs: streams that can be written to, and an end at the first Ctrl-C."""

import multiprocessing
import os
import signal
import sys
import time

from . import leftovers

STOPS = signal.SIGINT, signal.SIGTERM


def open_streams() -> None:
    """Replace standard streams that are closed, whose numbers other files would get; print any text on all."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
            os.set_inheritable(number, True)
            setattr(sys, name, os.fdopen(number, "w" if number else "r"))
        getattr(sys, name).reconfigure(errors="backslashreplace")


def stop_on_signals(quiet: bool) -> None:
    """Ctrl-C, and SIGTERM, become a KeyboardInterrupt, after a word if not `quiet`; a second one ends the process.

    For a process of its own: whoever has set a handler, or ignores the signal as nohup does, is left alone.
    """

    def stop(number, frame):
        for each in STOPS:
            signal.signal(each, end)
        if not quiet:
            print("\nstopping ...", end="", file=sys.stderr, flush=True)
        raise KeyboardInterrupt

    def end(number, frame):
        for each in STOPS:
            signal.signal(each, signal.SIG_DFL)
        for child in multiprocessing.active_children():
            child.kill()
        time.sleep(0.1)
        leftovers.sweep(own=True)
        os.kill(os.getpid(), number)

    sys.warnoptions.append("ignore:resource_tracker")  # its complaint of a process that was ended
    for number in STOPS:
        if signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL):
            signal.signal(number, stop)
