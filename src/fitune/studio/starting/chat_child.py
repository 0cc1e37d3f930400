"""The model that a page talks to: `fitune chat RUN --json` as a child, started with the first question, ended when idle.

In: a run's folder and questions. Out: the child's lines as they come. One child at a time: its model fills the memory.
"""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Any

from fitune.studio.starting.child_command import command, last_error

IDLE_SECONDS = 600.0
LINE_BYTES = 1 << 22


class ChatChild:
    """One conversation at a time; another run's ends it."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None
        self._target = ""
        self._lock = asyncio.Lock()
        self._idle: asyncio.TimerHandle | None = None

    async def ask(self, target: str, requests: list[dict[str, Any]]) -> AsyncGenerator[dict[str, Any], None]:
        """The child's lines for some requests, one after the other, each with its request's side.

        A reader that goes away ends the answer in hand; the conversation stays.
        """
        async with self._lock:
            if self._idle is not None:
                self._idle.cancel()
            process, began = await self._started(target)
            try:
                if began and (failed := await self._first_word(process)):
                    yield failed
                    return
                for request in requests:
                    async for line in self._answers(process, request):
                        yield {**line, "side": request.get("side", "adapter")}
            finally:
                loop = asyncio.get_running_loop()
                self._idle = loop.call_later(IDLE_SECONDS, self.end)

    async def _started(self, target: str) -> tuple[asyncio.subprocess.Process, bool]:
        """(the child of a target, whether it was started just now)."""
        if self._process is not None and self._process.returncode is None and self._target == target:
            return self._process, False
        self.end()
        self._target = target
        self._process = await asyncio.create_subprocess_exec(
            *command(["chat", target, "--json", "--max-new-tokens", "256"]),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=LINE_BYTES,
        )
        return self._process, True

    async def _first_word(self, process: asyncio.subprocess.Process) -> dict[str, Any] | None:
        """Wait until the model is loaded; the error where it cannot be."""
        assert process.stdout is not None and process.stderr is not None
        if await process.stdout.readline():
            self._drain = asyncio.get_running_loop().create_task(_read_away(process.stderr))
            return None
        said = await process.stderr.read()
        return {"error": last_error(said) or "the model could not be loaded"}

    async def _answers(
        self, process: asyncio.subprocess.Process, request: dict[str, Any]
    ) -> AsyncGenerator[dict[str, Any], None]:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps(request).encode() + b"\n")
        await process.stdin.drain()
        ended = False
        try:
            while line := await process.stdout.readline():
                told = json.loads(line)
                ended = "piece" not in told
                yield told
                if ended:
                    return
            ended = True
            yield {"error": "the model's process has ended; ask again to start it anew"}
        finally:
            if not ended:
                await self._interrupt(process)

    @staticmethod
    async def _interrupt(process: asyncio.subprocess.Process) -> None:
        """End the answer in hand and read up to its end."""
        assert process.stdout is not None
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGINT)
        while (line := await process.stdout.readline()) and "piece" in json.loads(line):
            pass

    def end(self) -> None:
        """End the child, where there is one."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
        self._process = None

    async def close(self) -> None:
        """The server closes: end the child and wait for its end."""
        process = self._process
        if self._idle is not None:
            self._idle.cancel()
        self.end()
        if process is not None:
            await process.wait()


async def _read_away(stream: asyncio.StreamReader) -> None:
    """Read what nobody wants, so that its writer never waits."""
    while await stream.read(1 << 16):
        pass
