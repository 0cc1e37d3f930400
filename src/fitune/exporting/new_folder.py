"""Where an export goes: a new folder that appears whole or not at all, on a disk that has room for it."""

from __future__ import annotations

import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from fitune.errors import RunError
from fitune.runs.disk_faults import scratch_beside, storage_error
from fitune.runs.disk_space import size

SLACK_BYTES = 64 * 2**20  # tokenizer, configs, report


def refuse_taken(out: Path) -> None:
    """Raises RunError when something is there already: nothing is written over."""
    if out.exists():
        raise RunError(f"{out} already exists; choose another --out, or remove it")


@contextmanager
def new_folder(out: Path) -> Generator[Path, None, None]:
    """A folder to write into, beside `out`; it becomes `out` at the end, and vanishes when anything fails.

    Raises:
        RunError: `out` is taken or cannot be made.
    """
    refuse_taken(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with scratch_beside(out) as scratch:
            whole = scratch / out.name
            whole.mkdir()
            yield whole
            refuse_taken(out)
            whole.rename(out)
    except Exception as error:
        told = storage_error(error, out.parent, "Nothing was left behind and nothing is lost", "export again")
        if told is None:
            raise
        raise told from error


def require_space(folder: Path, needed_bytes: int) -> None:
    """Raises RunError when the disk of `folder` (or of its nearest parent that exists) has less than is needed."""
    while not folder.exists():
        folder = folder.parent
    free, wanted = shutil.disk_usage(folder).free, needed_bytes + SLACK_BYTES
    if free < wanted:
        raise RunError(
            f"no space for the export: {folder} has {size(free)} free and {size(wanted)} are needed; free some, "
            "or name a folder on another disk with --out"
        )
