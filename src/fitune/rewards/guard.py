"""Calling a reward that somebody else wrote: whatever it does wrong becomes one clear `RewardError`.

On a main thread the time limit is an alarm of the operating system, which also ends a regular expression that never
comes back; elsewhere (and where there is no such alarm) the reward runs in a thread that is given up.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, Protocol, TypeVar, cast, runtime_checkable

from fitune.errors import RewardError
from fitune.signals import Stopped

Result = TypeVar("Result")


@runtime_checkable
class _Array(Protocol):
    """What NumPy, torch and pandas have in common here."""

    def tolist(self) -> object: ...


class _TimeUp(BaseException):
    """No Exception, so that a reward that catches all exceptions does not catch this one."""


def call(
    name: str, reward: Callable[..., object], arguments: Mapping[str, Sequence[object]], seconds: float
) -> list[float]:
    """The reward's numbers for `arguments` (lists with one item an answer).

    Args:
        name: the reward as the user wrote it, for the error.
        seconds: limit of time for the whole call.

    Raises:
        RewardError: the reward raised, took too long, or returned what is not one finite number an answer.
    """
    began = time.monotonic()
    try:
        found = _within(seconds, lambda: reward(**arguments))
    except _TimeUp:
        spent = time.monotonic() - began
        raise RewardError(
            f"the reward {name} had not returned after {spent:.1f} s (rl.reward_seconds {seconds:g}); "
            "make it faster, or raise the limit"
        ) from None
    except Stopped:
        raise
    except (Exception, SystemExit) as error:
        raise RewardError(f"the reward {name} raised {type(error).__name__}: {error}; correct it and resume") from error
    return _checked(name, found, arguments)


def _checked(name: str, found: object, arguments: Mapping[str, Sequence[object]]) -> list[float]:
    """One finite number an answer, from whatever list, array or tensor came back."""
    answers = next(iter(arguments.values()))
    try:
        plain = found.tolist() if isinstance(found, _Array) else found
        values = list(cast(Iterable[Any], plain))
    except TypeError:
        raise RewardError(
            f"the reward {name} returned {found!r:.60}; return a list with one number per answer"
        ) from None
    if len(values) != len(answers):
        raise RewardError(
            f"the reward {name} returned {len(values)} numbers for {len(answers)} answers; return one for each"
        )
    for place, value in enumerate(values):
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise RewardError(
                f"the reward {name} gave {value!r:.40} for the answer {str(answers[place])!r:.80}; "
                "return a finite number for every answer"
            )
        values[place] = number
    return values


def _within(seconds: float, work: Callable[[], Result]) -> Result:
    """What `work` returns; `_TimeUp` when it takes longer."""
    alarm = hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()
    if alarm:
        with _alarm(seconds):
            return work()
    return _in_thread(seconds, work)


@contextmanager
def _alarm(seconds: float) -> Generator[None, None, None]:
    def ring(number: int, frame: FrameType | None) -> None:
        raise _TimeUp

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _in_thread(seconds: float, work: Callable[[], Result]) -> Result:
    results: list[Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:  # handed over to the caller
            errors.append(error)

    worker = threading.Thread(target=run, daemon=True)
    worker.start()
    worker.join(seconds)
    if worker.is_alive():
        raise _TimeUp
    if errors:
        raise errors[0]
    return results[0]
