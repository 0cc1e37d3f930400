"""Signals that ask a program to end: SIGTERM (Slurm, Docker, systemd, shutdown) and SIGHUP (the terminal is closed).

Python ends at once on both and cleans nothing up. Here they raise `Stopped`, so that files half-written are removed and
a run notes how it ended; in training they count as Ctrl-C. A signal that the caller ignores (nohup) stays ignored.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType

ENDING = (signal.SIGTERM, signal.SIGHUP)


class Stopped(SystemExit):
    """The process was asked to end; its exit status is 128 and the number of the signal, as shells say it."""

    def __init__(self, number: int):
        super().__init__(exit_status(number))
        self.number = number


def exit_status(number: int) -> int:
    """130 after SIGINT, 143 after SIGTERM, 129 after SIGHUP."""
    return 128 + number


@contextmanager
def handled(numbers: tuple[signal.Signals, ...], heard: Callable[[int], None]) -> Generator[None, None, None]:
    """Call ``heard`` with the number of each such signal; outside the main thread nothing changes."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        here = {number: signal.getsignal(number) for number in numbers}
        before = {number: handler for number, handler in here.items() if handler not in (signal.SIG_IGN, None)}

    def handle(number: int, frame: FrameType | None) -> None:
        heard(number)

    for number in before:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def raise_stopped(number: int) -> None:
    """End what is being done, clean up, and leave: `KeyboardInterrupt` for SIGINT, `Stopped` for the others."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise Stopped(number)
