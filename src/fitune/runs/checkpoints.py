"""Checkpoints of a run: which of them are whole, which is the newest, which may go.

A checkpoint is a folder ``checkpoint-STEP``. It counts once ``complete.json`` is in it: written last, it lists every
file with its size and SHA-256, so a folder left half-written by a killed process, cut short or damaged later, is never
resumed from. Knows nothing of what the files hold.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MARK = "complete.json"
CARRIED = "carried.json"
STATE = "trainer_state.json"


def step_of(folder: Path) -> int:
    """The step in a checkpoint's name, −1 for another folder."""
    found = re.fullmatch(r"checkpoint-(\d+)", folder.name)
    return int(found[1]) if found else -1


def all_checkpoints(root: Path) -> list[Path]:
    """Checkpoint folders by step, whole or not."""
    if not root.is_dir():
        return []
    return sorted((path for path in root.iterdir() if path.is_dir() and step_of(path) >= 0), key=step_of)


def complete_checkpoints(root: Path) -> list[Path]:
    """Checkpoint folders that were written to the end, by step."""
    return [folder for folder in all_checkpoints(root) if is_complete(folder)]


def newest_complete(root: Path) -> Path | None:
    """The whole checkpoint of the highest step."""
    return next(reversed(complete_checkpoints(root)), None)


def is_complete(folder: Path) -> bool:
    """Whether every file that the checkpoint's mark lists is there, with its size.

    Quick, and blind to a changed byte: `damaged_file` reads them all.
    """
    try:
        sizes = _mark(folder)["bytes"]
        return STATE in sizes and all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def damaged_file(folder: Path) -> str | None:
    """The first file of a complete checkpoint that is not what was written, None when all are.

    Marks written before 0.2.0 hold sizes alone: then sizes are what is compared.
    """
    if not is_complete(folder):
        return MARK
    digests = _mark(folder).get("sha256", {})
    return next((name for name, digest in digests.items() if _sha256(folder / name) != digest), None)


def mark_complete(folder: Path) -> None:
    """Flush every file of the checkpoint to the disk, then write its mark in one move."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != MARK]
    for path in files:
        _flush(path)
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
    digests = {name: _sha256(folder / name) for name in sizes}
    draft = folder / f"{MARK}.draft"
    draft.write_text(json.dumps({"step": step_of(folder), "bytes": sizes, "sha256": digests}, indent=1))
    _flush(draft)
    os.replace(draft, folder / MARK)
    _flush(folder)


def unmark(folder: Path) -> None:
    """Take the mark away, before the folder is written again or removed."""
    (folder / MARK).unlink(missing_ok=True)


def write_extra_state(folder: Path, values: Mapping[str, object]) -> None:
    """Keep beside a checkpoint what the run's log must carry over a resume."""
    (folder / CARRIED).write_text(json.dumps(values))


def read_extra_state(folder: Path) -> dict[str, Any]:
    path = folder / CARRIED
    return json.loads(path.read_text()) if path.is_file() else {}


def drop_old(root: Path, keep: int, best_step: int | None) -> None:
    """Remove all but the newest ``keep`` whole checkpoints; the best one stays and counts among them.

    With ``keep`` 1 the newest stays beside the best: without it there would be nothing to resume from.
    """
    whole = complete_checkpoints(root)
    if not whole:
        return
    best = [folder for folder in whole if step_of(folder) == best_step]
    others = [folder for folder in whole if folder not in best]
    spared = {*best, *others[max(0, len(others) - (keep - len(best))) :], whole[-1]}
    for folder in all_checkpoints(root):
        if folder not in spared and step_of(folder) < step_of(whole[-1]):
            unmark(folder)
            shutil.rmtree(folder, ignore_errors=True)


def drop_incomplete(root: Path) -> list[Path]:
    """Remove checkpoints that were never finished; returns them."""
    broken = [folder for folder in all_checkpoints(root) if not is_complete(folder)]
    for folder in broken:
        shutil.rmtree(folder, ignore_errors=True)
    return broken


def _mark(folder: Path) -> dict[str, Any]:
    return json.loads((folder / MARK).read_text())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """Have the operating system write a file or folder out, so that the mark never precedes what it vouches for."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
