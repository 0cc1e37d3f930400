"""The one stylesheet, as text: linked by the studio, put into files that stand alone."""

from __future__ import annotations

from functools import cache
from importlib.resources import files


@cache
def stylesheet() -> str:
    """style.css."""
    return (files("fitune.web") / "style.css").read_text(encoding="utf-8")
