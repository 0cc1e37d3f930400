"""The application and its server.

In: folders and an `Access`. Out: a Starlette application; `serve` runs it until Ctrl-C.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from fitune.errors import FituneError
from fitune.studio.access import Access, Gate
from fitune.studio.confine import Folders, Refused
from fitune.studio.session import Studio
from fitune.studio.templating import THEMES, page
from fitune.studio.views import data_view, fit_view, new_run, result_view, run_views
from fitune.web.style import stylesheet

YEAR_SECONDS = 365 * 86400


def make_app(folders: Folders, access: Access) -> Starlette:
    """The studio behind its gate."""
    studio = Studio(folders)
    static = StaticFiles(directory=Path(__file__).parent / "static")

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncGenerator[None]:
        yield
        await studio.children.end_all()
        await studio.chat.close()

    return Starlette(
        lifespan=lifespan,
        routes=[
            *run_views.routes(studio),
            *new_run.routes(studio),
            *data_view.routes(studio),
            *result_view.routes(studio),
            *fit_view.routes(studio),
            Route("/style.css", _style),
            Route("/theme", _theme, methods=["POST"]),
            Mount("/static", static),
        ],
        middleware=[Middleware(Gate, access=access)],
        exception_handlers={Refused: _refused, FituneError: _refused, 404: _missing, 405: _missing},
    )


def serve(folders: Folders, access: Access, listener: socket.socket) -> None:
    """Answer requests on a bound socket until Ctrl-C. Open event streams are ended after two seconds."""
    import uvicorn

    config = uvicorn.Config(
        make_app(folders, access),
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=2,
    )
    uvicorn.Server(config).run(sockets=[listener])


async def _style(request: Request) -> Response:
    return Response(stylesheet(), media_type="text/css")


async def _theme(request: Request) -> Response:
    """Keep the theme that was chosen, and go back."""
    wanted = request.query_params.get("to", "auto")
    back = request.query_params.get("back", "/runs")
    response = RedirectResponse(back if back.startswith("/") and not back.startswith(("//", "/\\")) else "/runs", 303)
    response.set_cookie("fitune-theme", wanted if wanted in THEMES else "auto", samesite="strict", max_age=YEAR_SECONDS)
    return response


async def _refused(request: Request, error: Exception) -> Response:
    status = error.status if isinstance(error, Refused) else 400
    return page(request, "error.html", status, text=str(error))


async def _missing(request: Request, error: Exception) -> Response:
    if request.url.path.startswith("/static"):
        return PlainTextResponse("there is no such file", 404)
    return page(request, "error.html", 404, text="There is no such page.")
