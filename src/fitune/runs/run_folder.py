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

import errno
import fcntl
import json
import os
import platform
import shutil
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict, cast

import yaml

from fitune.console import json_text, log, warn
from fitune.distributed import ranks
from fitune.errors import RunError
from fitune.runs import manifest as manifests
from fitune.runs.checkpoints import newest_complete
from fitune.runs.disk_faults import process_alive, storage_error, write_whole

SETTINGS, MANIFEST, METRICS, SAMPLES, LOCK = (
    "settings.yaml", "manifest.json", "metrics.jsonl", "samples.jsonl", "run.lock",
)  # fmt: skip
# Held by the lock file for the last words of a run whose disk is full: its manifest.
RESERVE_BYTES = 64 * 2**10


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


@dataclass(frozen=True)
class Writer:
    """The process that holds a run; started: as `_start_of`."""

    pid: int
    host: str
    started: int | None

    @property
    def elsewhere(self) -> bool:
        return self.host != platform.node()

    @property
    def alive(self) -> bool:
        """Whether it runs still; known of this machine's processes only."""
        return process_alive(self.pid) and self.started in (None, _start_of(self.pid))


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
            raise RunError(
                f"cannot make the run folder {path}: {error.strerror or error}; set run.folder to another place"
            ) from error
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
        """Hold the run against other processes; a lock left by a dead process is taken over. Rank 0 does for its run.

        Raises:
            RunError: a living process writes this run.
            StorageError: the folder cannot be written.
        """
        if not ranks.is_first():
            yield
            return
        me = {"pid": os.getpid(), "host": platform.node(), "started": _start_of(os.getpid())}
        try:
            with _alone(self.path):
                self._clear_stale_lock()
                self._lock.write_text(json.dumps(me).ljust(RESERVE_BYTES))
        except OSError as error:
            self._lock.unlink(missing_ok=True)
            raise self.storage_error(error) or error from error
        try:
            yield
        finally:
            with suppress(OSError):
                self._lock.unlink(missing_ok=True)

    def writer(self) -> Writer | None:
        """Who holds the run: a living process of this machine, or one of another machine, alive or not."""
        try:
            holder = json.loads(self._lock.read_text())
            found = Writer(int(holder["pid"]), str(holder["host"]), holder.get("started"))
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return found if found.elsewhere or found.alive else None

    def status(self) -> str:
        """The manifest's status; a run that says "running" and whose process is gone is "dead"."""
        said = manifests.read(self.manifest).get("status")
        return "dead" if said == "running" and self.writer() is None else str(said)

    def note_end(self, status: str, **values: object) -> None:
        """Write down how the run ended, also on a full disk: the lock file gives back its reserve for it.

        Where nothing can be written at all, the manifest goes on saying "running", which `status` reads as dead.
        """
        if not ranks.is_first():
            return
        try:
            held = self._lock.read_text().rstrip()
            os.truncate(self._lock, len(held))
        except OSError:
            pass
        try:
            manifests.update(self.manifest, status=status, ended=manifests.now(), **values)
        except OSError as error:
            warn(f"{self.manifest} could not be written: {error.strerror or error}; it still says how the run began")

    def storage_error(self, error: BaseException) -> RunError | None:
        """The sentence for an error that a full, read-only or broken disk caused; None for any other error."""
        last = newest_complete(self.checkpoints)
        safe = f"{last.name} is safe" if last else "no checkpoint was written yet"
        begun = self.manifest.is_file()
        go_on = f"continue with: fitune train --resume {self.path}" if begun else "start the run again"
        return storage_error(error, self.path, safe, go_on)

    def _clear_stale_lock(self) -> None:
        held = self._lock.exists()
        by = self.writer()
        if by is not None and by.elsewhere:
            raise RunError(
                f"{self.path} is being written by process {by.pid} on {by.host}; if that is over, delete {self._lock}"
            )
        if by is not None and by.pid != os.getpid():
            raise RunError(f"{self.path} is being written by process {by.pid}; wait for it, or choose another run.name")
        if held:
            log(f"taking over {self.path} from a process that is gone")
            self._lock.unlink(missing_ok=True)

    def write_settings(self, settings: Mapping[str, object]) -> None:
        """Every setting of the run, defaults included."""
        write_whole(self.settings, yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))

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
            write_whole(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept))


def append_row(path: Path, row: Mapping[str, object]) -> None:
    """Append one JSON line and flush it to the operating system; rank 0 of several processes does."""
    if not ranks.is_first():
        return
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


def _start_of(pid: int) -> int | None:
    """When a process started, in clock ticks since the machine did: with it a number that is used again is told apart.

    None where the system does not say (proc(5), field 22 of stat).
    """
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None


@contextmanager
def _alone(folder: Path) -> Generator[None, None, None]:
    """No other process of this machine reads or makes the folder's lock meanwhile."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EINVAL):
                raise
        yield
    finally:
        os.close(handle)
