"""Templates → HTML. Everything is escaped unless a function of `fitune.web` made it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Any

from jinja2 import ChainableUndefined, Environment, PackageLoader
from markupsafe import Markup, escape
from starlette.requests import Request
from starlette.responses import HTMLResponse

from fitune.config.values import shown
from fitune.sizes import size_in
from fitune.studio.starting.settings_form import text_of
from fitune.web.charts import sparkline
from fitune.web.figures import clock, number
from fitune.web.tables import marked

THEMES = ("auto", "light", "dark")
STATES = {
    "running": ("running", "●"),
    "starting": ("starting", "●"),
    "queued": ("queued", "○"),
    "finished": ("finished", "✓"),
    "interrupted": ("interrupted", "❚❚"),
    "halted": ("halted", "!"),
    "failed": ("failed", "✕"),
    "dead": ("dead: process gone", "✕"),
    "elsewhere": ("running on another machine", "●"),
    "damaged": ("damaged", "!"),
}


@cache
def environment() -> Environment:
    """The templates of `studio/templates`."""
    made = Environment(
        loader=PackageLoader("fitune.studio"), autoescape=True, undefined=ChainableUndefined, trim_blocks=True
    )
    filters: dict[str, Any] = made.filters
    filters.update(
        number=_number, clock=clock, when=when, size=_size, plain_json=_plain_json,
        marked=_marked,
        spark=_spark, code=_code,
    )  # fmt: skip
    names: dict[str, Any] = made.globals
    names.update(STATES=STATES, shown=shown, text_of=text_of)
    return made


def render(template: str, **values: object) -> str:
    """A template as text."""
    return environment().get_template(template).render(**values)


def page(request: Request, template: str, status: int = 200, **values: object) -> HTMLResponse:
    """A whole page in the reader's theme."""
    theme = request.cookies.get("fitune-theme", "auto")
    return HTMLResponse(
        render(template, theme=theme if theme in THEMES else "auto", path=request.url.path, **values), status
    )


def when(text: str) -> str:
    """``2026-11-29T08:55:29Z`` as ``29 Nov 2026, 08:55``, in UTC as it is stored."""
    try:
        return datetime.fromisoformat(text).astimezone(UTC).strftime("%-d %b %Y, %H:%M")
    except ValueError:
        return text


def _number(value: object) -> str:
    return number(value) if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def _size(value: float) -> str:
    return size_in(value, value)


def _marked(answer: str, wanted: str) -> Markup:
    return Markup(marked(answer, wanted))


def _spark(ys: Sequence[float], label: str) -> Markup:
    return Markup(sparkline(ys, label))


def _code(text: str) -> Markup:
    """Words between backticks as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _plain_json(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
