"""Where fitune talks: `log` and progress go to stderr, results to stdout, so that `--json` stays clean.

Colours are off when the stream is not a terminal or NO_COLOR is set (rich decides both).
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, TypeAlias, cast

if TYPE_CHECKING:
    from rich.console import Console

Tell: TypeAlias = Callable[[str, int, int], None]
"""Shows what is going on: (what, how many are done, of how many)."""
QUIET_SECONDS = 10.0  # between two lines of progress where there is no terminal
_showing: list[Tell] = []


@cache
def stderr_console() -> Console:
    """Console for progress, notes and warnings: stderr."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


@cache
def stdout_console() -> Console:
    """Console for what the user asked for: stdout."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=True)


def log(text: str) -> None:
    """One line about what fitune decided or does."""
    stderr_console().print(text, markup=False)


def warn(text: str) -> None:
    """One line about something that may be wrong, and what to do."""
    stderr_console().print(f"warning: {text}", style="yellow", markup=False)


def follow(steps: range, label: str) -> Iterator[int]:
    """The starts of batches out of ``range(0, total, batch)``, each told as ``label 8 of 20``; no label tells nothing.

    It is told in the bar that is on the screen, else in one of its own on a terminal, else in a line now and then.
    """
    if not label:
        yield from steps
        return
    with _teller() as tell:
        for start in steps:
            tell(label, start, steps.stop)
            yield start
        tell(label, steps.stop, steps.stop)


@contextmanager
def progress_in(tell: Tell) -> Generator[None]:
    """Until it ends, `follow` tells ``tell``: a terminal shows one live bar at a time."""
    _showing.append(tell)
    try:
        yield
    finally:
        _showing.remove(tell)


@contextmanager
def _teller() -> Generator[Tell]:
    if _showing:
        yield _showing[-1]
    elif not stderr_console().is_terminal:
        yield _in_lines()
    else:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = TextColumn("{task.description}"), BarColumn(bar_width=24), TimeRemainingColumn()
        with Progress(*columns, console=stderr_console(), transient=True) as bar:
            task = bar.add_task("", total=None)
            yield lambda label, done, total: bar.update(
                task, description=f"{label} {done:,} of {total:,}", completed=done, total=total
            )


def _in_lines() -> Tell:
    said = time.monotonic()

    def tell(label: str, done: int, total: int) -> None:
        nonlocal said
        if 0 < done < total and time.monotonic() - said > QUIET_SECONDS:
            said = time.monotonic()
            log(f"{label} {done:,} of {total:,}")

    return tell


def json_text(value: object, indent: int | None = None) -> str:
    """A value as JSON; numbers that JSON does not have (NaN, infinities) are null, unknown objects text."""
    return json.dumps(_finite(value), ensure_ascii=False, indent=indent, default=str, allow_nan=False)


def _finite(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in cast("dict[object, object]", value).items()}
    return [_finite(one) for one in cast("list[object]", value)] if isinstance(value, list | tuple) else value


def hush_libraries() -> None:
    """Quieten what libraries say for themselves: fitune says what matters, and a pipe is no place for their bars.

    Called by the command line before a command imports them; a program that uses fitune decides for itself.
    """
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # misses an optional CPU kernel at every import
    # transformers deprecates a property that PEFT 0.21 still reads; gone when PEFT reads the new one.
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("TQDM_DISABLE", "1")
