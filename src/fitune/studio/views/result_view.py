"""Result: scores and answers before and after, chat with base and adapter side by side, next tokens, exports."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from fitune.answer_metrics import word_similarity
from fitune.exporting.forms import EXPORT_FORMS
from fitune.exporting.gguf.gguf_types import GGUF_TYPES
from fitune.runs.run_folder import SAMPLES, RunFolder
from fitune.studio.confine import Refused
from fitune.studio.reading.answers import answered
from fitune.studio.reading.run_page import RunPage
from fitune.studio.session import Studio
from fitune.studio.starting.child_command import Superseded
from fitune.studio.templating import page, render
from fitune.studio.views.new_run import read_form
from fitune.studio.views.pieces import piece_of

MOST_TEXT = 20_000
SIDES = {"both": ("base", "adapter"), "base": ("base",), "adapter": ("adapter",)}


def routes(studio: Studio) -> list[Route]:
    """Addresses of this screen."""

    async def result(request: Request) -> Response:
        name = request.path_params["run"]
        if studio.chain(name) is not None:
            return RedirectResponse(f"/runs/{quote(name)}", 303)
        return page(request, "result.html", **result_values(studio.run_page(name)))

    async def chat(request: Request) -> Response:
        path, given = studio.folders.run(request.path_params["run"]), await read_form(request)
        requests = chat_requests(given)
        if request.headers.get("sec-fetch-mode") == "navigate":
            lines = [line async for line in studio.chat.ask(str(path), requests)]
            said = [
                {"side": one["side"], "text": one.get("text") or one.get("error", "")}
                for one in lines
                if "piece" not in one
            ]
            return piece_of(request, "Chat", render("result/said.html", asked=given.get("text", ""), said=said))

        async def lines_of() -> AsyncGenerator[str, None]:
            async for line in studio.chat.ask(str(path), requests):
                yield json.dumps(line) + "\n"

        return StreamingResponse(lines_of(), media_type="application/x-ndjson")

    async def tokens(request: Request) -> Response:
        path, given = studio.folders.run(request.path_params["run"]), await read_form(request)
        text = _text(given)
        asked: list[dict[str, Any]] = [
            {"text": text, "side": side, "top": 5, "raw": given.get("raw") == "1"} for side in SIDES[_side(given)]
        ]
        lines = [line async for line in studio.chat.ask(str(path), asked)]
        return piece_of(request, "Next tokens", render("result/tokens.html", text=text, views=lines))

    async def export(request: Request) -> Response:
        path, given = studio.folders.run(request.path_params["run"]), await read_form(request)
        form, kind = given.get("form", ""), given.get("type", "f16")
        if form not in EXPORT_FORMS or kind not in GGUF_TYPES:
            raise Refused("there is no such form or type of export", 400)
        words = ["export", str(path), f"--to={form}", "--json"]
        if EXPORT_FORMS[form].takes_gguf_type:
            words.append(f"--type={kind}")
        try:
            answer = await studio.children.ask("export", words)
        except Superseded as error:
            raise Refused("another export was asked for, and this one was ended", 409) from error
        found = answer.value if isinstance(answer.value, dict) else None
        return piece_of(request, "Export", render("result/export.html", error=answer.error, found=found))

    return [
        Route("/result/{run:path}", result),
        Route("/chat/{run:path}", chat, methods=["POST"]),
        Route("/tokens/{run:path}", tokens, methods=["POST"]),
        Route("/export/{run:path}", export, methods=["POST"]),
    ]


def result_values(shown: RunPage) -> dict[str, Any]:
    """What the page tells of a run's end."""
    facts = shown.manifest()
    results = facts.get("results", {})
    before, after = results.get("before") or {}, results.get("after") or {}
    run = RunFolder(shown.path)
    return {
        "name": shown.name,
        "run": shown.entry(),
        "facts": facts,
        "before": before,
        "after": after,
        "metrics": [
            name
            for name in dict.fromkeys([*after, *before])
            if isinstance(after.get(name, before.get(name)), int | float)
        ],
        "rows": by_likeness(answered(shown.path / SAMPLES)),
        "has_adapter": run.adapter.is_dir(),
        "has_model": run.model.is_dir(),
        "forms": list(EXPORT_FORMS.values()),
        "types": list(GGUF_TYPES),
        "exports": exports(shown.path / "export"),
    }


def by_likeness(rows: list[Any]) -> list[dict[str, Any]]:
    """Answers from the worst to the best, by the share of words that stand where they are wanted."""
    told = [
        {"row": row, "share": word_similarity(row.now, row.wanted) if row.wanted else None} for row in rows if row.now
    ]
    return sorted(told, key=lambda one: -1 if one["share"] is None else one["share"])


def exports(folder: Path) -> list[dict[str, Any]]:
    """The copies that were made, each with its fidelity report."""
    found: list[dict[str, Any]] = []
    for path in sorted(folder.glob("*/fidelity.json")):
        try:
            report = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            report = {}
        found.append({"folder": path.parent, "report": report if isinstance(report, dict) else {}})
    return found


def chat_requests(given: dict[str, str]) -> list[dict[str, Any]]:
    """A sent form as requests of `fitune chat --json`."""
    if given.get("clear") == "1":
        return [{"clear": True}]
    request: dict[str, Any] = {"text": _text(given)}
    if given.get("system", "").strip():
        request["system"] = given["system"]
    return [{**request, "side": side} for side in SIDES[_side(given)]]


def _text(given: dict[str, str]) -> str:
    text = given.get("text", "").strip()
    if not text or len(text) > MOST_TEXT:
        raise Refused(f"write a message of 1 to {MOST_TEXT:,} characters", 400)
    return text


def _side(given: dict[str, str]) -> str:
    side = given.get("side", "both")
    if side not in SIDES:
        raise Refused("a side is base, adapter or both", 400)
    return side
