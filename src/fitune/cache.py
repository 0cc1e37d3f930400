"""Where fitune keeps what it can make again: built-in models, traces of plans, tokens of rows."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """FITUNE_CACHE, or fitune below the user's cache folder."""
    if named := os.environ.get("FITUNE_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fitune"
