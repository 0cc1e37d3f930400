"""The folder of one run: its paths, its lock, its append-only logs.

runs/NAME/
├── settings.yaml     every setting, defaults included
├── manifest.json     versions, hardware, data hashes, seeds, command, status, results (manifest.py)
├── metrics.jsonl     a row a logged step or evaluation
├── samples.jsonl     a row an answered question, before, during and after training
├── checkpoints/      checkpoint-STEP (checkpoints.py)
├── adapter/ or model/  what was trained, with tokenizer and template
├── README.md         model card
└── report.html       curves and the before/after table
"""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypedDict, cast

import yaml

from fitune.console import json_text, log
from fitune.errors import RunError

SETTINGS, MANIFEST, METRICS, SAMPLES, LOCK = (
    "settings.yaml", "manifest.json", "metrics.jsonl", "samples.jsonl", "run.lock",
)  # fmt: skip


class Answered(TypedDict):
    """A held-out question and its answer, a row of samples.jsonl; row: its number in the data."""

    step: int
    moment: Literal["before", "during", "after"]
    row: int
    asked: str
    answer: str
    wanted: str
    stopped: bool


class Rollout(TypedDict):
    """An answer that was sampled in training; rewards: reward function → its value."""

    step: int
    moment: Literal["rollout"]
    row: int
    asked: str
    answer: str
    wanted: str
    stopped: bool
    reward: float
    rewards: dict[str, float]


class RunFolder:
    """One run's folder. `create` and `open` make it; the paths are plain attributes."""

    def __init__(self, path: Path):
        self.path = path
        self.settings = path / SETTINGS
        self.manifest = path / MANIFEST
        self.metrics = path / METRICS
        self.samples = path / SAMPLES
        self.checkpoints = path / "checkpoints"
        self.adapter = path / "adapter"
        self.model = path / "model"
        self.card = path / "README.md"
        self.report = path / "report.html"
        self._lock = path / LOCK

    @classmethod
    def create(cls, path: Path) -> RunFolder:
        """A folder for a new run.

        Raises:
            RunError: the folder holds a run, or anything else, or cannot be made.
        """
        run = cls(path)
        run.refuse_other()
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"cannot make the run folder {path}: {error}") from error
        return run

    def refuse_other(self) -> None:
        """Raise `RunError` when the place of a new run is taken."""
        path = self.path
        if path.exists() and not path.is_dir():
            raise RunError(f"{path} is a file, not a folder; choose another run.name")
        if self.manifest.exists():
            raise RunError(
                f"{path} holds another run; choose another run.name, or continue that run with "
                f"`fitune train --resume {path}`"
            )
        if path.is_dir() and any(entry.name != LOCK for entry in path.iterdir()):
            raise RunError(f"{path} is not empty and holds no run; choose another run.name")

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """The folder of a run that exists.

        Raises:
            RunError: there is none.
        """
        if not (path / MANIFEST).is_file() or not (path / SETTINGS).is_file():
            near = sorted(entry.parent.name for entry in path.parent.glob(f"*/{MANIFEST}"))
            known = f"; runs in {path.parent}: {', '.join(near)}" if near else ""
            raise RunError(f"{path} holds no run (no {MANIFEST} and {SETTINGS}){known}")
        return cls(path)

    def discard(self) -> None:
        """Remove a run that never logged anything."""
        if read_rows(self.metrics):
            raise RunError(f"{self.path} holds a run that has begun; it is not discarded")
        shutil.rmtree(self.path, ignore_errors=True)

    @contextmanager
    def locked(self) -> Generator[None, None, None]:
        """Hold the run against other processes; a lock left by a dead process is taken over.

        Raises:
            RunError: a living process writes this run.
        """
        while True:
            try:
                handle = os.open(self._lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
                break
            except FileExistsError:
                self._clear_stale_lock()
        os.write(handle, json.dumps({"pid": os.getpid(), "host": platform.node()}).encode())
        os.close(handle)
        try:
            yield
        finally:
            self._lock.unlink(missing_ok=True)

    def _clear_stale_lock(self) -> None:
        try:
            holder = json.loads(self._lock.read_text())
        except FileNotFoundError:
            return
        except ValueError:
            holder = {}
        pid, host = holder.get("pid"), holder.get("host")
        if host is not None and host != platform.node():
            raise RunError(
                f"{self.path} is being written by process {pid} on {host}; if that is over, delete {self._lock}"
            )
        if pid is not None and pid != os.getpid() and _alive(pid):
            raise RunError(f"{self.path} is being written by process {pid}; wait for it, or choose another run.name")
        if pid is not None:
            log(f"taking over {self.path} from process {pid}, which is gone")
        self._lock.unlink(missing_ok=True)

    def write_settings(self, settings: Mapping[str, object]) -> None:
        """Every setting of the run, defaults included."""
        self.settings.write_text(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True), encoding="utf-8")

    # ---- logs

    def log_metrics(self, row: Mapping[str, object]) -> None:
        """Append a row to metrics.jsonl, on the disk before this returns."""
        append_row(self.metrics, row)

    def log_samples(self, rows: Sequence[Mapping[str, object]]) -> None:
        """Append answered questions to samples.jsonl."""
        for row in rows:
            append_row(self.samples, row)

    def forget_after(self, step: int) -> None:
        """Drop the log rows of steps that a resumed run will take again."""
        for path in (self.metrics, self.samples):
            kept = [row for row in read_rows(path) if row.get("step", 0) <= step]
            draft = path.with_suffix(".draft")
            draft.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept), encoding="utf-8")
            os.replace(draft, path)


def append_row(path: Path, row: Mapping[str, object]) -> None:
    """Append one JSON line and flush it to the operating system."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json_text(row) + "\n")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSON Lines log; a last line cut short by a killed process is left out. Empty when there is no file."""
    if not path.is_file():
        return []
    rows: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def read_samples(path: Path) -> list[Answered | Rollout]:
    """Rows of samples.jsonl, as `read_rows`."""
    return cast(list[Answered | Rollout], read_rows(path))


def _alive(pid: int) -> bool:
    """Whether a process of this machine runs; one of another user counts."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
