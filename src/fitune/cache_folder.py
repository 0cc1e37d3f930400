"""Where fitune keeps what it can make again: built-in models, traces of plans, tokens of rows."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any


def cache_folder() -> Path:
    """FITUNE_CACHE, or fitune below the user's cache folder."""
    if named := os.environ.get("FITUNE_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fitune"


def keep(path: Path, fill: Callable[[Any], None]) -> None:
    """Write a file of the cache whole or not at all; one that cannot be written is no fault.

    Args:
        fill: given the file, open for bytes.
    """
    part = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            fill(file)
        part.replace(path)
    except OSError:
        with suppress(OSError):
            part.unlink()
