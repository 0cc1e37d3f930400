"""Paths in files that are handed on: without the home folder, which names a person."""

from __future__ import annotations

import re
from pathlib import Path


def without_home(text: str) -> str:
    """The text with ``~`` for the home folder of whoever runs this; ``Path.expanduser`` leads back."""
    home = str(Path.home())
    return text if home == "/" else re.sub(rf"{re.escape(home)}(?![\w.-])", "~", text)
