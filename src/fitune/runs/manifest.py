"""manifest.json: what a run was made with, and what became of it.

`Manifest` has its keys. Times are ISO 8601 in UTC. Written whole and moved into place, so a reader never sees half of it.
"""

from __future__ import annotations

import hashlib
import json
import platform
import shlex
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Required, TypedDict

from fitune.console import json_text
from fitune.distributed import ranks
from fitune.errors import RunError
from fitune.runs.disk_faults import write_whole

PACKAGES = ("fitune", "torch", "transformers", "peft", "accelerate", "datasets", "bitsandbytes", "tokenizers")


class Origin(TypedDict, total=False):
    """Another adapter that a run stands on, and the SHA-256 of its weights."""

    adapter: str
    sha256: Required[str]


class ModelFacts(TypedDict, total=False):
    """The base, and what a resumed run must find unchanged."""

    kind: str
    name: str
    revision: str | None
    fingerprint: str
    template_hash: str
    precision: str
    template_date: str
    """The day that the chat template writes as today's."""
    continues: Origin
    merged: list[Origin]


class DataFacts(TypedDict, total=False):
    """What the run trains on and is measured on."""

    train: str
    eval: str | None
    exclude: Required[list[str]]
    train_rows: int
    eval_rows: int
    test_rows: int
    """`eval_rows` before 0.2.0."""
    hashes: dict[str, str]
    left_out: list[str]
    """Rows of the training data that are not trained, and why."""


Change = TypedDict("Change", {"was": object, "is": object})
"""A setting that the fit ladder changed."""


class GivenUp(TypedDict):
    """A step of the fit ladder."""

    name: str
    saves_bytes: int
    quality: str


class LadderFacts(TypedDict, total=False):
    """What was given up so that the run fits."""

    changes: dict[str, Change]
    steps: list[GivenUp]


class StepDown(TypedDict):
    """Memory ran out: where, and how passes went on."""

    at: str
    to: str


class PeakBytes(TypedDict, total=False):
    """Peak memory in bytes: allocated and reserved on a GPU, growth of the process on a CPU."""

    allocated_bytes: int
    reserved_bytes: int
    resident_growth_bytes: int


class MemoryFacts(TypedDict, total=False):
    """How much memory was planned, taken and given up."""

    ladder: LadderFacts
    step_downs: list[StepDown]
    predicted: PeakBytes
    measured: PeakBytes


class Results(TypedDict, total=False):
    """What came out: metrics on the held-out rows before and after, the step whose weights are kept."""

    before: dict[str, float]
    after: dict[str, float] | None
    steps: int
    best_step: int
    final_loss: float | None
    steps_without_signal: int


class Parameters(TypedDict):
    """How many parameters are trained."""

    trained: int
    total: int
    share: float


class Resumed(TypedDict):
    """When a run was resumed, and from which step."""

    at: str
    from_step: int


class Manifest(TypedDict, total=False):
    """What fitune reads of a manifest; `status` is running, finished, interrupted, halted or failed."""

    status: Required[str]
    started: str
    ended: str | None
    error: str | None
    command: str
    method: str
    tuning: str
    versions: dict[str, str]
    hardware: dict[str, object]
    model: ModelFacts
    data: Required[DataFacts]
    seeds: dict[str, int]
    parameters: Parameters
    training: dict[str, object]
    results: Results
    memory: MemoryFacts
    resumed: list[Resumed]


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def versions() -> dict[str, str]:
    """Versions of Python, the system and the packages that decide the numbers."""
    found = {"python": platform.python_version(), "system": platform.platform()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def command_line() -> str:
    """How this process was started, fit to paste into a shell."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def read(path: Path) -> Manifest:
    """The manifest at ``path``.

    Raises:
        RunError: it is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunError(f"{path} is missing; {path.parent} holds no run") from error
    except ValueError as error:
        raise RunError(f"{path} is damaged: {error}") from error


def write(path: Path, manifest: Mapping[str, object]) -> None:
    """Replace the manifest in one move; rank 0 of several processes does."""
    if ranks.is_first():
        write_whole(path, json_text(manifest, indent=2) + "\n")


def update(path: Path, **values: object) -> Manifest:
    """Set top-level keys, merging dicts one level deep; returns the whole."""
    manifest: dict[str, object] = {**read(path)}
    for key, value in values.items():
        old = manifest.get(key)
        manifest[key] = {**old, **value} if isinstance(old, dict) and isinstance(value, dict) else value
    write(path, manifest)
    return read(path)


def append(path: Path, section: str, key: str, value: object) -> None:
    """Append to the list ``section.key``."""
    held = read(path).get(section, {}).get(key, [])
    update(path, **{section: {key: [*held, value]}})


def folder_fingerprint(path: Path) -> str:
    """SHA-256 over a model folder: contents of its small files, names and sizes of the large ones.

    Sizes stand for the contents of the weights: hashing tens of gigabytes would cost more than it tells.
    """
    digest = hashlib.sha256()
    files = [path] if path.is_file() else sorted(entry for entry in path.rglob("*") if entry.is_file())
    for file in files:
        name = file.name if path.is_file() else file.relative_to(path).as_posix()
        size = file.stat().st_size
        digest.update(f"{name}\0{size}\0".encode())
        if size <= 4 * 2**20:
            digest.update(file.read_bytes())
    return digest.hexdigest()
