"""What the user types in `fitune chat`: line editing, history across sessions, completion, messages of several lines.

In: a terminal, or lines on standard input. Out: messages. Python's readline does the editing; without it (Windows) lines
are read as they come.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from fitune.cache_folder import cache_folder

HISTORY_LINES = 2000
CONTINUES, BLOCK = "\\", '"""'
CYAN, PLAIN = "\033[36m", "\033[0m"


def messages(commands: Sequence[str], on_interrupt: Callable[[], None]) -> Iterator[str]:
    """Each message that is typed or piped in, without the blanks around it; ends with the input.

    A line that ends with a backslash goes on in the next one; lines between two \"\"\" are one message.

    Args:
        commands: words that Tab completes at the beginning of a line.
        on_interrupt: called for a Ctrl-C at the prompt.
    """
    interactive = sys.stdin.isatty()
    keep = _edited(commands) if interactive else (lambda: None)
    read = _typed if interactive else _piped
    try:
        while True:
            try:
                message = _whole(read)
            except EOFError:
                return
            except KeyboardInterrupt:
                on_interrupt()
                continue
            if message:
                yield message
    finally:
        keep()


def _whole(read: Callable[[str], str]) -> str:
    """One message, of as many lines as it has."""
    line = read("you: ")
    if line.strip().startswith(BLOCK):
        lines = [line.strip().removeprefix(BLOCK)]
        while not lines[-1].rstrip().endswith(BLOCK):
            lines.append(read("...  "))
        lines[-1] = lines[-1].rstrip().removesuffix(BLOCK)
        return "\n".join(lines).strip()
    lines = [line]
    while lines[-1].endswith(CONTINUES):
        lines[-1] = lines[-1].removesuffix(CONTINUES)
        lines.append(read("...  "))
    return "\n".join(lines).strip()


def _typed(prompt: str) -> str:
    if sys.stdout.isatty():
        # \001 and \002 tell readline that what lies between them takes no room on the line.
        prompt = f"\001{CYAN}\002{prompt}\001{PLAIN}\002"
    return input(prompt)


def _piped(prompt: str) -> str:
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.rstrip("\n")


def history_file() -> Path:
    """Where the lines of earlier chats are kept."""
    return cache_folder() / "chat_history"


def _edited(commands: Sequence[str]) -> Callable[[], None]:
    """Switch line editing on; what is returned keeps the history."""
    try:
        import readline
    except ImportError:
        return lambda: None
    path = history_file()
    with suppress(OSError):
        readline.read_history_file(path)
    readline.set_history_length(HISTORY_LINES)
    readline.set_completer_delims(" ")
    readline.set_completer(
        lambda text, state: ([one for one in commands if one.startswith(text)] + [""])[state] or None
    )
    readline.parse_and_bind("tab: complete")

    def keep() -> None:
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            readline.write_history_file(path)

    return keep
