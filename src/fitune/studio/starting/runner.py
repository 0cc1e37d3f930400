"""`python -m fitune.studio.starting.runner FOLDER NAME`: the process that starts a run of the studio, and waits for it.

In: FOLDER/jobs/NAME.json. Out: the same file with the run's process and its exit status, and FOLDER/logs/NAME.log.
A queued job waits until no other runner of the folder works; the oldest goes first. Imports the standard library only: it
lives as long as the run does, and longer than the server.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

LOCK = "queue.lock"


def main(folder: Path, name: str) -> None:
    """Run one job: this one, or when it is queued the oldest that is, when its turn comes."""
    with (folder / LOCK).open("w") as lock:
        job = read(folder, name)
        if job is None:
            return
        if job["state"] == "queued":
            fcntl.flock(lock, fcntl.LOCK_EX)
            job = oldest_queued(folder)
        else:
            with suppress(OSError):  # others work: this one was asked to start beside them
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if job is not None:
            run(folder, job)


def run(folder: Path, job: dict[str, Any]) -> None:
    """Start the job's process with its output in its log, and note how it ended."""
    log = folder / "logs" / f"{job['name']}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    with log.open("ab") as output:
        process = subprocess.Popen(
            job["command"], stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=job["cwd"], env=environment
        )
    write(folder, job | {"state": "running", "pid": process.pid, "started": time.time()})
    status = process.wait()
    if read(folder, job["name"]) is not None:
        write(folder, job | {"state": "ended", "pid": process.pid, "exit": status})


def oldest_queued(folder: Path) -> dict[str, Any] | None:
    """The queued job that was asked for first."""
    jobs = [read(folder, path.stem) for path in (folder / "jobs").glob("*.json")]
    return min((job for job in jobs if job and job["state"] == "queued"), key=lambda job: job["asked"], default=None)


def read(folder: Path, name: str) -> dict[str, Any] | None:
    """A job, or None where there is none that can be read."""
    try:
        job = json.loads((folder / "jobs" / f"{name}.json").read_text(encoding="utf-8"))
        return job if isinstance(job, dict) and {"name", "command", "cwd", "state", "asked"} <= job.keys() else None
    except (OSError, ValueError):
        return None


def write(folder: Path, job: dict[str, Any]) -> None:
    """Replace a job's file in one move."""
    path = folder / "jobs" / f"{job['name']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(f".{os.getpid()}.draft")
    draft.write_text(json.dumps(job), encoding="utf-8")
    draft.replace(path)


if __name__ == "__main__":
    if os.fork() == 0:  # whoever started it waits for the parent alone; the child belongs to the system
        os.setsid()
        main(Path(sys.argv[1]), sys.argv[2])
