"""Where fitune talks: `say` and progress go to stderr, results to stdout, so that `--json` stays clean.

Colours are off when the stream is not a terminal or NO_COLOR is set (rich decides both).
"""

from __future__ import annotations

from functools import cache

from rich.console import Console


@cache
def talk() -> Console:
    """Console for progress, notes and warnings: stderr."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


@cache
def results() -> Console:
    """Console for what the user asked for: stdout."""
    return Console(highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """One line about what fitune decided or does."""
    talk().print(text, markup=False)


def warn(text: str) -> None:
    """One line about something that may be wrong, and what to do."""
    talk().print(f"warning: {text}", style="yellow", markup=False)
