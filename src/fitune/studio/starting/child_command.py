"""`fitune … --json` as a child process: what needs torch, or minutes, happens outside the server.

In: words of the command line. Out: what it printed, parsed, or its error in a sentence. At most one child of a kind: a newer
question ends the older one.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

MOST_SECONDS = 900.0
MOST_KEPT = 32


@dataclass(frozen=True)
class Answer:
    """What a command said. ``value`` is None where it printed no JSON; ``error`` is then its sentence."""

    value: Any
    error: str
    status: int


class Superseded(Exception):
    """A newer question of the same kind has come."""


class Children:
    """Children by kind, and the answers of the last questions."""

    def __init__(self) -> None:
        self._running: dict[str, asyncio.subprocess.Process] = {}
        self._kept: OrderedDict[tuple[str, ...], Answer] = OrderedDict()

    async def ask(self, kind: str, words: Sequence[str], keep: bool = False) -> Answer:
        """Run a command and wait for it.

        Args:
            kind: a child of the same kind that still runs is ended.
            keep: answer the same question from memory the next time.

        Raises:
            Superseded: a newer question of this kind came meanwhile.
        """
        key = tuple(words)
        if keep and key in self._kept:
            return self._kept[key]
        self.end(kind)
        process = await asyncio.create_subprocess_exec(
            *command(words),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        self._running[kind] = process
        try:
            out, err = await asyncio.wait_for(process.communicate(), MOST_SECONDS)
        except TimeoutError:
            self.end(kind)
            return Answer(None, f"it took longer than {MOST_SECONDS / 60:.0f} minutes and was ended", -1)
        finally:
            if process.returncode is None:
                process.kill()
        if self._running.get(kind) is not process:
            raise Superseded
        del self._running[kind]
        answer = _answer(out, err, process.returncode or 0)
        if keep and answer.value is not None:
            self._kept[key] = answer
            while len(self._kept) > MOST_KEPT:
                self._kept.popitem(last=False)
        return answer

    def end(self, kind: str) -> None:
        """End the child of a kind, where one runs."""
        process = self._running.pop(kind, None)
        if process is not None and process.returncode is None:
            process.kill()

    async def end_all(self) -> None:
        """The server closes: what was asked is of no use any more."""
        processes = list(self._running.values())
        for kind in list(self._running):
            self.end(kind)
        for process in processes:
            await process.wait()


def command(words: Sequence[str]) -> list[str]:
    """A command of the very fitune that serves."""
    return [sys.executable, "-m", "fitune.cli", *words]


def _answer(out: bytes, err: bytes, status: int) -> Answer:
    try:
        return Answer(json.loads(out), last_error(err), status)
    except ValueError:
        return Answer(None, last_error(err) or f"the command ended with status {status} and said nothing", status)


def last_error(err: bytes) -> str:
    """The sentence of fitune's error on stderr; else its last line."""
    lines = err.decode("utf-8", "replace").strip().splitlines()
    starts = [place for place, line in enumerate(lines) if line.lower().startswith("error: ")]
    if starts:
        return "\n".join(lines[starts[-1] :])[len("error: ") :]
    return lines[-1] if lines else ""
