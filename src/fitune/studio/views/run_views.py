"""Runs: the list, one run as it is live, its events, parts of its charts, several compared."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from fitune.errors import FituneError
from fitune.runs.compare import differing, flat, read_settings
from fitune.runs.run_folder import SAMPLES, RunFolder
from fitune.studio.confine import Refused
from fitune.studio.reading.answers import answered
from fitune.studio.reading.run_page import RunPage, chart_of, ordered_keys, title_of
from fitune.studio.session import Studio
from fitune.studio.templating import page, render
from fitune.web.charts import line_chart

SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_BETWEEN_SIGNS = 15.0
MOST_COMPARED = 8


def routes(studio: Studio) -> list[Route]:
    """Addresses of this screen."""

    async def home(request: Request) -> Response:
        return RedirectResponse("/runs", 303)

    async def listed(request: Request) -> Response:
        return page(request, "runs.html", runs=studio.entries(), folder=studio.folders.runs)

    async def list_events(request: Request) -> Response:
        return _events(ListEvents(studio))

    async def one(request: Request) -> Response:
        name = request.path_params["run"]
        if (chain := studio.chain(name)) is not None:
            return page(request, "chain.html", run=chain)
        shown = studio.run_page(name)
        values = shown.values()
        pieces = {piece: Markup(html) for piece, html in shown.pieces_of(values).items()}
        return page(request, "run.html", name=name, lines=shown.index.lines, pieces=pieces, **values)

    async def settings(request: Request) -> Response:
        name = request.path_params["run"]
        shown = studio.run_page(name)
        try:
            stored = RunFolder(shown.path).settings.read_text(encoding="utf-8")
        except OSError as error:
            stored = f"settings.yaml cannot be read: {error.strerror}"
        return page(request, "settings.html", name=name, run=shown.entry(), stored=stored, facts=flat(shown.manifest()))

    async def events(request: Request) -> Response:
        return _events(RunEvents(studio, request.path_params["run"]))

    async def chart(request: Request) -> Response:
        shown = studio.run_page(request.path_params["run"])
        kind, _, name = request.query_params.get("key", "").partition(":")
        try:
            low, high = float(request.query_params["from"]), float(request.query_params["to"])
        except (KeyError, ValueError) as error:
            raise Refused("from and to are steps", 400) from error
        if (kind, name) not in shown.index.shown:
            raise Refused(f'the run logs no "{name[:80]}"')
        return HTMLResponse(chart_of(shown.index, (kind, name), low, high))

    async def compare(request: Request) -> Response:
        names = list(dict.fromkeys(request.query_params.getlist("run")))[:MOST_COMPARED]
        pages = [studio.run_page(name) for name in names]
        return page(request, "compare.html", names=names, **compared(pages))

    return [
        Route("/", home),
        Route("/runs", listed),
        Route("/list-events", list_events),
        Route("/runs/{run:path}", one),
        Route("/settings/{run:path}", settings),
        Route("/events/{run:path}", events),
        Route("/chart/{run:path}", chart),
        Route("/compare", compare),
    ]


def compared(pages: list[RunPage]) -> dict[str, Any]:
    """Curves over each other, the settings that differ, answers side by side."""
    keys = list(dict.fromkeys(key for one in pages for key in ordered_keys(one.index)))
    charts = [
        line_chart([one.index.line(key, one.name) for one in pages], title_of(key), key=f"{key[0]}:{key[1]}")
        for key in keys
    ]
    prompts: dict[str, dict[str, Any]] = {}
    for one in pages:
        for row in answered(one.path / SAMPLES):
            held = prompts.setdefault(row.asked, {"asked": row.asked, "wanted": row.wanted, "answers": {}})
            held["answers"][one.name] = row.now or row.before
    return {
        "entries": [one.entry() for one in pages],
        "charts": Markup("".join(charts)),
        "settings": differing([_flat_settings(one.path) for one in pages]),
        "prompts": [one for one in prompts.values() if len(one["answers"]) > 1 or len(pages) == 1],
    }


def _flat_settings(path: Path) -> dict[str, object]:
    try:
        return flat(read_settings(RunFolder(path)))
    except (FituneError, OSError, UnicodeDecodeError):
        return {}


class RunEvents:
    """The pieces of a run's page, sent again as they change; an event's number is that of the last line it tells of."""

    def __init__(self, studio: Studio, name: str):
        self.studio, self.name = studio, name
        studio.folders.run(name)  # refused before the stream begins

    def look(self) -> tuple[object, str]:
        """(what differs when something changed, the number of lines read)."""
        shown = self.studio.run_page(self.name)
        return shown.stamp(), str(shown.index.lines)

    def pieces(self) -> dict[str, str]:
        """Id → HTML."""
        return self.studio.run_page(self.name).pieces()


class ListEvents:
    """The table of all runs, sent again when a run changed."""

    def __init__(self, studio: Studio):
        self.studio = studio

    def look(self) -> tuple[object, str]:
        """(what differs when something changed, a number without a meaning)."""
        return tuple(self.studio.entries()), "0"

    def pieces(self) -> dict[str, str]:
        """Id → HTML."""
        return {"run-table": render("run_table.html", runs=self.studio.entries(), folder=self.studio.folders.runs)}


def _events(source: RunEvents | ListEvents) -> Response:
    return StreamingResponse(_stream(source), media_type="text/event-stream", headers={"cache-control": "no-store"})


async def _stream(source: RunEvents | ListEvents) -> AsyncIterator[str]:
    """Server-sent events: all pieces at first, for a page that was away or is older than its run; then those that changed."""
    before: object = None
    sent: dict[str, str] = {}
    quiet = 0.0
    yield "retry: 1000\n\n"
    while True:
        try:
            stamp, number = source.look()
            if stamp != before:
                changed = {name: html for name, html in source.pieces().items() if sent.get(name) != _digest(html)}
                sent |= {name: _digest(html) for name, html in changed.items()}
                if changed:
                    yield f"id: {number}\nevent: pieces\ndata: {json.dumps(changed)}\n\n"
                    quiet = 0.0
                before = stamp
        except Refused:
            yield "event: gone\ndata: {}\n\n"
            return
        if quiet >= SECONDS_BETWEEN_SIGNS:
            yield ": here\n\n"
            quiet = 0.0
        await asyncio.sleep(SECONDS_BETWEEN_LOOKS)
        quiet += SECONDS_BETWEEN_LOOKS


def _digest(html: str) -> str:
    return hashlib.sha256(html.encode()).hexdigest()
