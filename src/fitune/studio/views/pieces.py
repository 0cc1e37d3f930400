"""What the screens share: a piece of a page for its script, a whole page for a browser without."""

from __future__ import annotations

from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from fitune.studio.templating import page


def piece_of(request: Request, title: str, html: str) -> Response:
    """HTML for the script that asked; a page around it when the browser itself did."""
    if request.headers.get("sec-fetch-mode") == "navigate":
        return page(request, "plain.html", title=title, piece=Markup(html))
    return HTMLResponse(html)
