"""How long a chat template may take: templates come with models, and some loop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager

from fitune.errors import DataError

TICK_SECONDS = 0.5


class TemplateTooSlow(DataError):
    """A chat template that does not end in time."""


@contextmanager
def looked_at(look: Callable[[], None], seconds: float = TICK_SECONDS) -> Generator[None, None, None]:
    """Calls ``look`` again and again while the block runs; what it raises comes out of the block.

    Not in threads, nor on systems without such a clock, nor inside another such block.
    """
    busy = hasattr(signal, "getitimer") and signal.getitimer(signal.ITIMER_REAL)[0] > 0
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer") or busy:
        yield
        return
    before = signal.signal(signal.SIGALRM, lambda *_: look())
    signal.setitimer(
        signal.ITIMER_REAL, seconds, min(seconds, TICK_SECONDS)
    )  # and again, should somebody catch the first
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
