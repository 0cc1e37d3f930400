"""New run: the form, its faults as it is filled in, its memory, and the start."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote

from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from fitune.config.fields import all_fields
from fitune.errors import FituneError
from fitune.models.builtin import BUILTIN
from fitune.planning.gpus.catalogue import catalogue
from fitune.runs.compare import read_settings
from fitune.runs.run_folder import RunFolder
from fitune.studio.confine import Refused
from fitune.studio.session import Studio
from fitune.studio.starting.child_command import Superseded
from fitune.studio.starting.jobs import Wish
from fitune.studio.starting.settings_form import COMMON, FIRST, Filled, changed, fill, groups, methods
from fitune.studio.templating import page, render
from fitune.studio.views.pieces import piece_of
from fitune.studio.views.plan_pieces import ladder_values, plan_values

MOST_FORM_BYTES = 1 << 20
DATA_ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".txt")
MOST_FILES = 60


def routes(studio: Studio) -> list[Route]:
    """Addresses of this screen."""

    async def form(request: Request) -> Response:
        values = {key: text for key, text in request.query_params.items() if key in all_fields()}
        if source := request.query_params.get("from"):
            stored = _stored(studio, source)
            values = {**stored, **values}
        return _form_page(request, studio, values)

    async def send(request: Request) -> Response:
        given = await read_form(request)
        filled = fill(given, studio.folders)
        wish = given.get("do", "check")
        if wish not in ("start", "queue") or filled.faults:
            return _form_page(request, studio, given, filled, 422 if filled.faults else 200)
        studio.jobs.start(filled.name, filled.recipe, queued=wish == "queue")
        return RedirectResponse(f"/runs/{quote(filled.name)}", 303)

    async def check(request: Request) -> Response:
        filled = fill(await read_form(request), studio.folders)
        return JSONResponse(
            {"faults": filled.faults, "recipe": filled.recipe, "command": filled.command, "name": filled.name}
        )

    async def plan(request: Request) -> Response:
        given = await read_form(request)
        filled = fill(given, studio.folders)
        if set(filled.faults) - {"run.name"}:
            told = "; ".join(f"{key} {one}" for key, some in filled.faults.items() for one in some)
            piece = render("new/memory.html", error=f"The memory is planned once the form has no faults. {told}")
        else:
            piece = await planned(studio, filled, given)
        return piece_of(request, "Memory", piece)

    async def ask(request: Request) -> Response:
        name, wish = request.path_params["run"], (await read_form(request)).get("wish", "")
        studio.folders.place(name)
        if wish == "resume":
            studio.folders.run(name)
            studio.jobs.resume(name)
        elif wish == "forget":
            studio.jobs.forget(name)
            return RedirectResponse("/runs", 303)
        elif wish in ("stop", "keep", "end"):
            wished: Wish = wish
            studio.jobs.ask(name, wished)
        else:
            raise Refused("a run can be stopped, finished where it is, ended or resumed", 400)
        return RedirectResponse(f"/runs/{quote(name)}", 303)

    return [
        Route("/new", form),
        Route("/new", send, methods=["POST"]),
        Route("/new/check", check, methods=["POST"]),
        Route("/new/plan", plan, methods=["POST"]),
        Route("/ask/{run:path}", ask, methods=["POST"]),
    ]


async def planned(studio: Studio, filled: Filled, given: dict[str, str]) -> str:
    """The memory of a filled-in form as HTML, by `fitune plan`; for ``ladder`` what would make it fit."""
    words = [f"--{key}={text}" for key, text in filled.values.items() if key != "run.name"]
    card = card_words(given)
    ladder = given.get("ladder") == "1"
    try:
        answer = await studio.children.ask(
            "plan", ["plan", "--json", *card, *(["--ladder"] if ladder else []), *words], keep=True
        )
    except Superseded:
        return ""
    if not isinstance(answer.value, dict):
        return render("new/memory.html", error=answer.error)
    if ladder:
        return render("new/ladder.html", error="", **ladder_values(answer.value))
    return render("new/memory.html", error="", **plan_values(answer.value))


def card_words(given: dict[str, str]) -> list[str]:
    """The card or budget that a form names, as words of `fitune plan`.

    Raises:
        Refused: no such card.
    """
    name, budget = given.get("gpu", ""), given.get("budget", "").strip()
    if budget:
        return [f"--budget={budget}"]
    if name and name not in catalogue():
        raise Refused(f'there is no card "{name[:60]}" in the catalogue', 400)
    return [f"--gpu={name}"] if name else []


async def read_form(request: Request) -> dict[str, str]:
    """The fields of a form that was sent; of a name that is there twice the last.

    Raises:
        Refused: more than a form holds.
    """
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MOST_FORM_BYTES:
            raise Refused("the form is larger than 1 MiB", 413)
    return dict(parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=1000))


def data_files(studio: Studio) -> list[str]:
    """Files of rows in the data folder and the current one, to choose from."""
    here = Path.cwd()
    found: list[str] = []
    for folder in dict.fromkeys((studio.folders.data, *studio.folders.opened)):
        if folder == studio.folders.runs:
            continue
        try:
            paths = sorted(path for path in folder.iterdir() if path.name.removesuffix(".gz").endswith(DATA_ENDINGS))
        except OSError:
            continue
        found += [str(path.relative_to(here)) if path.is_relative_to(here) else str(path) for path in paths]
    return found[:MOST_FILES]


def _form_page(
    request: Request, studio: Studio, values: dict[str, str], filled: Filled | None = None, status: int = 200
) -> Response:
    fields = all_fields()
    models = list(dict.fromkeys([*BUILTIN, *(one.model for one in studio.entries() if one.model)]))
    shown: dict[str, Any] = {
        "values": values,
        "filled": filled or fill(values, studio.folders),
        "checked": filled is not None,
        "first": [fields[key] for key in FIRST],
        "common": [fields[key] for key in COMMON],
        "groups": groups(),
        "methods": methods(),
        "models": models,
        "files": data_files(studio),
        "cards": list(catalogue()),
        "busy": any(one.state in ("running", "starting", "queued") for one in studio.entries()),
    }
    return page(request, "new.html", status, **shown)


def _stored(studio: Studio, name: str) -> dict[str, str]:
    try:
        return changed(read_settings(RunFolder(studio.folders.run(name))))
    except (FituneError, OSError, UnicodeDecodeError) as error:
        raise Refused(f"the settings of {name} cannot be read: {error}") from error
