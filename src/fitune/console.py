"""Where fitune talks: `log` and progress go to stderr, results to stdout, so that `--json` stays clean.

Colours are off when the stream is not a terminal or NO_COLOR is set (rich decides both). What comes out of data, models
and answers may hold escape sequences that move the cursor, rename the window or answer for the user: no control
character reaches the terminal but line breaks and tabs (`printable`).
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import TYPE_CHECKING, Any, TextIO, TypeAlias, cast

from fitune.distributed import ranks

if TYPE_CHECKING:
    from rich.console import Console

Tell: TypeAlias = Callable[[str, int, int], None]
"""Shows what is going on: (what, how many are done, of how many)."""
QUIET_SECONDS = 10.0  # between two lines of progress where there is no terminal
_showing: list[Tell] = []


# C0, DEL and C1, apart from tab and line feed → a visible sign.
VISIBLE = {
    **{code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\t\n"},
    0x7F: "\u2421",
    **dict.fromkeys(range(128, 160), "�"),
}


def printable(text: str) -> str:
    """Text that a terminal shows as it is: a sign for each control character, ``␛`` for ESC, and none for a surrogate."""
    return text.translate(VISIBLE).encode("utf-8", "replace").decode("utf-8")


NOT_SHOWN = re.compile("[\x7f-\x9f\ud800-\udfff]")


@cache
def stderr_console() -> Console:
    """Console for progress, notes and warnings: stderr; on rank 0 alone where several processes train together."""
    quiet = not ranks.is_first()
    return _plain_console(file=cast(TextIO, _LastingStderr()), highlight=False, soft_wrap=True, quiet=quiet)


@cache
def stdout_console() -> Console:
    """Console for what the user asked for: stdout."""
    return _plain_console(highlight=False, soft_wrap=True)


def _plain_console(**options: Any) -> Console:
    """A console whose text is `printable`, whatever it is made of."""
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment

    class PlainConsole(Console):
        def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
            for segment in super().render(renderable, options):
                yield segment if segment.control else segment._replace(text=printable(segment.text))

    return PlainConsole(**options)


class _LastingStderr:
    """stderr of the moment; that it is gone (its terminal closed, its reader ended) stops nobody's work."""

    def write(self, text: str) -> int:
        # RuntimeError: a signal arrived in the middle of another write.
        with suppress(OSError, RuntimeError):
            sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, RuntimeError):
            sys.stderr.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)


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
    with teller() as tell:
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
def teller() -> Generator[Tell]:
    """What tells (label, done, all) of long work: a bar on a terminal, a line now and then elsewhere."""
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
    """A value as JSON; numbers that JSON does not have (NaN, infinities) are null, unknown objects text.

    DEL, C1 controls and lone surrogates, which JSON allows and terminals or UTF-8 do not, are escaped.
    """
    text = json.dumps(_finite(value), ensure_ascii=False, indent=indent, default=str, allow_nan=False)
    return NOT_SHOWN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _finite(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in cast("dict[object, object]", value).items()}
    return [_finite(one) for one in cast("list[object]", value)] if isinstance(value, list | tuple) else value


def in_notebook() -> bool:
    """Whether this Python runs the cells of a notebook."""
    shell = sys.modules.get("IPython")
    return shell is not None and type(shell.get_ipython()).__name__ == "ZMQInteractiveShell"


def be_quiet_in_a_notebook() -> None:
    """Keep the bars and notices of libraries out of a notebook's cells; elsewhere nothing changes."""
    if in_notebook():
        hush_libraries()


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
