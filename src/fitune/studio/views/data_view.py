"""Data: a file is named or dropped, checked by `fitune data check`, and shown token by token."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from fitune.studio.confine import Folders, Refused, is_plain_name
from fitune.studio.session import Studio
from fitune.studio.starting.child_command import Superseded
from fitune.studio.starting.settings_form import outside
from fitune.studio.templating import page, render
from fitune.studio.views.new_run import DATA_ENDINGS, data_files, read_form
from fitune.studio.views.pieces import piece_of
from fitune.web.charts import histogram

SETTINGS = ("model.name", "data.columns", "data.max_length", "data.form", "data.loss_on", "method")
ROWS = 5
MOST_BYTES = 8 << 30


def routes(studio: Studio) -> list[Route]:
    """Addresses of this screen."""

    async def shown(request: Request) -> Response:
        values = dict(request.query_params)
        return page(request, "data.html", values=values, files=data_files(studio), folder=studio.folders.data)

    async def check(request: Request) -> Response:
        given = await read_form(request)
        return piece_of(request, "Data", await checked(studio, given))

    async def take(request: Request) -> Response:
        path = await taken(studio.folders, request)
        here = Path.cwd()
        return JSONResponse({"name": str(path.relative_to(here)) if path.is_relative_to(here) else str(path)})

    return [
        Route("/data", shown),
        Route("/data/check", check, methods=["POST"]),
        Route("/data/files/{name}", take, methods=["PUT"]),
    ]


async def checked(studio: Studio, given: dict[str, str]) -> str:
    """The check of a source and its first rows, as HTML."""
    source = given.get("source", "").strip()
    if not source:
        return render("data/check.html", error="Name a file, hub:NAME, or demo:pig-latin.", report=None)
    if source.endswith((".yaml", ".yml")):
        return render("data/check.html", error=f"{source} is a recipe; name the file of rows itself.", report=None)
    for key, sentence in outside({"data.train": source, "model.name": given.get("model.name", "")}, studio.folders):
        return render("data/check.html", error=f"{key} {sentence}", report=None)
    words = [f"--{key}={given[key].strip()}" for key in SETTINGS if given.get(key, "").strip()]
    try:
        answer = await studio.children.ask("data", ["data", "check", "--json", *words, "--", source])
        if not isinstance(answer.value, dict) or not answer.value.get("ok"):
            told = answer.value.get("error") if isinstance(answer.value, dict) else None
            return render("data/check.html", error=str(told or answer.error), report=None)
        rows = await studio.children.ask("data", ["data", "show", "--json", f"--rows={ROWS}", *words, "--", source])
    except Superseded:
        return ""
    report = answer.value["train"]
    return render(
        "data/check.html",
        error="",
        report=report,
        histogram=Markup(_histogram(report)),
        rows=[_row(row) for row in rows.value] if isinstance(rows.value, list) else [],
        source=source,
    )


async def taken(folders: Folders, request: Request) -> Path:
    """Write a dropped file into the data folder.

    Raises:
        Refused: a name that is no plain file name of data, one that is taken, or a folder that cannot be written.
    """
    name = request.path_params["name"]
    if not is_plain_name(name) or not name.removesuffix(".gz").endswith(DATA_ENDINGS):
        raise Refused(f'"{name[:80]}" is no data file; its name ends with {" ".join(DATA_ENDINGS)}', 400)
    path = folders.data / name
    draft = folders.data / f".{name}.part"
    try:
        folders.data.mkdir(parents=True, exist_ok=True)
        if path.exists():
            raise Refused(f"{path} is there already; rename the file, or name that one", 409)
        size = 0
        with draft.open("xb") as file:
            async for piece in request.stream():
                size += len(piece)
                if size > MOST_BYTES:
                    raise Refused("the file is larger than 8 GiB; put it into a folder that is opened instead", 413)
                file.write(piece)
        draft.rename(path)
    except OSError as error:
        raise Refused(f"{path} cannot be written: {error.strerror}", 403) from error
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
    return path


def _histogram(report: dict[str, Any]) -> str:
    lengths = report.get("lengths")
    if not lengths:
        return ""
    limit = report.get("max_length")
    shown = limit if limit is not None and limit <= 4 * report["longest"] else None
    return histogram(lengths["edges"], lengths["rows"], "Lengths of rows, in tokens", shown)


def _row(row: dict[str, Any]) -> dict[str, Any]:
    """A row's tokens as runs of one label, with the place where the answer begins."""
    tokens = row["tokens"]
    first = next((place for place, one in enumerate(tokens) if one["trained"]), len(tokens))
    return {
        "number": row["row"],
        "side": row.get("side", ""),
        "tokens": [{"text": _visible(one["text"]), "trained": one["trained"], "id": one["id"]} for one in tokens],
        "first": first,
        "trained": sum(one["trained"] for one in tokens),
    }


def _visible(text: str) -> str:
    return text.replace(" ", "·").replace("\n", "↵").replace("\t", "⇥")
