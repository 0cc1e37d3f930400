"""Where an export goes: a new folder that appears whole or not at all, on a disk that has room for it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from fitune.errors import RunError
from fitune.runs.disk_faults import storage_error
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
        scratch = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}-"))
    except OSError as error:
        raise RunError(f"cannot make {out}: {error.strerror or error}") from error
    try:
        whole = scratch / out.name
        whole.mkdir()
        yield whole
        refuse_taken(out)
        whole.rename(out)
    except Exception as error:
        told = storage_error(error, scratch, "Nothing was left behind, what is exported is untouched", "export again")
        if told is None:
            raise
        raise type(told)(str(told).replace(str(scratch), str(out), 1)) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


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
