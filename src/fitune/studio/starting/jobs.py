"""Runs that were asked for on the page: started, queued, stopped, resumed; each a process of its own.

In: a name and a recipe. Out: processes that the server does not hold, and what is known of one before its run folder is
there. What is asked of a running one is a signal, as from a terminal.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Literal

from fitune.runs.run_folder import MANIFEST, RunFolder
from fitune.studio.confine import Refused
from fitune.studio.reading.run_list import Entry
from fitune.studio.starting import runner
from fitune.studio.starting.child_command import command

Wish = Literal["stop", "keep", "end"]
SIGNALS = {"stop": signal.SIGINT, "keep": signal.SIGUSR1, "end": signal.SIGKILL}


class Jobs:
    """The jobs of one folder of runs; their files are below its own folder."""

    def __init__(self, runs: Path, own: Path):
        self.runs, self.own = runs, own
        self._asked: dict[str, str] = {}

    def start(self, name: str, recipe: str, queued: bool) -> None:
        """Train a recipe as a new run, now or when those before it have ended.

        Raises:
            Refused: the name is taken, or the folder cannot be written.
        """
        if (self.runs / name).exists() or (self.get(name) is not None and self.state(name) in ("queued", "starting")):
            raise Refused(f'there is a run "{name}" already; choose another run.name', 409)
        path = self.own / "recipes" / f"{name}.yaml"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(recipe, encoding="utf-8")
            log = self.log(name)
            log.parent.mkdir(parents=True, exist_ok=True)
            log.write_bytes(b"")
        except OSError as error:
            raise Refused(f"{self.runs} cannot be written: {error.strerror}; nothing was started", 403) from error
        self._begin(name, ["train", str(path)], queued)

    def resume(self, name: str) -> None:
        """Go on with a run, by its own settings."""
        self._begin(name, ["train", "--resume", str(self.runs / name)], queued=False)

    def _begin(self, name: str, words: list[str], queued: bool) -> None:
        """Write the job and start its runner, which goes on without the server."""
        job: dict[str, Any] = {
            "name": _file(name),
            "run": name,
            "command": command(words),
            "cwd": str(Path.cwd()),
            "state": "queued" if queued else "starting",
            "asked": time.time(),
        }
        try:
            runner.write(self.own, job)
        except OSError as error:
            raise Refused(f"{self.own} cannot be written: {error.strerror}; nothing was started", 403) from error
        self._asked.pop(name, None)
        subprocess.run(
            [sys.executable, "-m", "fitune.studio.starting.runner", str(self.own), job["name"]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=True,
        )

    def ask(self, name: str, wish: Wish) -> None:
        """Stop a run with a checkpoint, finish it where it is, or end it at once.

        Raises:
            Refused: no process of this machine trains it.
        """
        pid = self._process(name)
        if pid is None:
            job = self.get(name)
            if job is not None and self.state(name) == "queued":
                self.forget(name)
                return
            raise Refused(f'no process of this machine trains "{name}"', 409)
        os.kill(pid, SIGNALS[wish])
        self._asked[name] = wish

    def asked(self, name: str) -> str:
        """What was asked of a run, "" for nothing."""
        return self._asked.get(name, "")

    def forget(self, name: str) -> None:
        """Take a queued or ended job off the list."""
        (self.own / "jobs" / f"{_file(name)}.json").unlink(missing_ok=True)

    def get(self, name: str) -> dict[str, Any] | None:
        """The job of a run; None when the studio did not start it."""
        return runner.read(self.own, _file(name))

    def state(self, name: str) -> str:
        """queued, starting, ended, or dead: its process ended and nobody noted how."""
        job = self.get(name) or {}
        if job.get("state") == "running" and not _is_there(job.get("pid")):
            return "dead"
        if job.get("state") == "starting" and time.time() - float(job["asked"]) > 60:
            return "dead"
        return "starting" if job.get("state") == "running" else str(job.get("state", ""))

    def log(self, name: str) -> Path:
        """What a job has written."""
        return self.own / "logs" / f"{_file(name)}.log"

    def waiting(self) -> list[Entry]:
        """Jobs without a run folder yet, or that ended before there was one."""
        found: list[Entry] = []
        for path in sorted((self.own / "jobs").glob("*.json")):
            job = runner.read(self.own, path.stem)
            if job is not None and not (self.runs / str(job.get("run"))).joinpath(MANIFEST).exists():
                found.append(self.entry(str(job.get("run"))))
        return found

    def entry(self, name: str) -> Entry:
        """A job in a line."""
        job, state = self.get(name) or {}, self.state(name)
        error = self._last_error(name) if state in ("ended", "dead") else ""
        asked = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(float(job.get("asked", 0))))
        return Entry(name=name, state="failed" if state == "ended" else state, started=asked, error=error)

    def _last_error(self, name: str) -> str:
        """The error that a job ended with, from its log."""
        try:
            text = self.log(name).read_text(encoding="utf-8", errors="replace")[-8000:]
        except OSError:
            return ""
        errors = re.findall(r"^(?:error: |\w*Error: )(.*(?:\n  - .*)*)", text, re.MULTILINE)
        return errors[-1] if errors else (text.strip().splitlines() or [""])[-1]

    def _process(self, name: str) -> int | None:
        """The process that trains a run: the one that holds its lock, or that was started for it."""
        writer = RunFolder(self.runs / name).writer()
        if writer is not None:
            return None if writer.elsewhere else writer.pid
        job = self.get(name) or {}
        pid = job.get("pid")
        return pid if job.get("state") == "running" and _is_there(pid) else None


def _file(name: str) -> str:
    return name.replace("/", " ")


def _is_there(pid: object) -> bool:
    """Whether a process of ours runs that is a fitune; numbers are used again."""
    if not isinstance(pid, int):
        return False
    try:
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return stat[0] not in "ZX" and b"fitune" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, IndexError):
        return False
