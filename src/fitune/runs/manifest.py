"""manifest.json: what a run was made with, and what became of it.

Keys: fitune, status (running, finished, interrupted, halted, failed), started, ended, command, method, tuning,
versions, hardware, model, data, seeds, parameters {trained, total, share}, training {steps, ...derived values},
results {before, after, best_step, ...}, memory {room, ladder, step_downs, predicted, measured, comparison},
resumed [{at, from_step}], error.
Times are ISO 8601 in UTC. Written whole and moved into place, so a reader never sees half of it.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from fitune.errors import RunError

PACKAGES = ("fitune", "torch", "transformers", "peft", "accelerate", "datasets", "bitsandbytes", "tokenizers")


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


def read(path: Path) -> dict[str, Any]:
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


def write(path: Path, manifest: dict[str, Any]) -> None:
    """Replace the manifest in one move."""
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(draft, path)


def update(path: Path, **values: Any) -> dict[str, Any]:
    """Set top-level keys, merging dicts one level deep; returns the whole."""
    manifest = read(path)
    for key, value in values.items():
        old = manifest.get(key)
        manifest[key] = {**old, **value} if isinstance(old, dict) and isinstance(value, dict) else value
    write(path, manifest)
    return manifest


def append(path: Path, section: str, key: str, value: Any) -> None:
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
