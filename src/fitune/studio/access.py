"""Who may ask: a token or a password once, a cookie from then on; and what every answer carries.

In: an ASGI application. Out: the same behind three questions: is the request for this host (a name that was rebound to
127.0.0.1 is not), does a change come from this page (another site's form does not), and is the cookie there.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import secrets
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, urlencode, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",  # no-referrer would make browsers send `Origin: null` with the page's own forms
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}
SAFE = ("GET", "HEAD")
LOOPBACK = ("127.0.0.1", "localhost", "::1")
WRONG_PASSWORD_SECONDS = 1.0


@dataclass(frozen=True)
class Access:
    """What opens the studio. With a password, the token is none."""

    host: str
    port: int
    token: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    password: str | None = None
    session: str = field(default_factory=lambda: secrets.token_urlsafe(32))

    @property
    def cookie(self) -> str:
        """Cookies are shared between the ports of a machine, so the port is in the name."""
        return f"fitune-studio-{self.port}"

    @property
    def address(self) -> str:
        """What to open in a browser."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        query = "" if self.password else f"?token={self.token}"
        return f"http://{host}:{self.port}/{query}"

    def knows_host(self, header: str) -> bool:
        """Whether a Host header names this server: the address that it listens on, or one of this machine's as a number.

        Names other than localhost are refused: DNS may point them anywhere.
        """
        try:
            parts = urlsplit(f"//{header}")
            name, port = (parts.hostname or "").lower(), parts.port or 80
        except ValueError:
            return False
        if port != self.port:
            return False
        if name == self.host.lower() or (self.host in LOOPBACK and name in LOOPBACK):
            return True
        return self.host not in LOOPBACK and _is_address(name)

    def lets_in(self, cookie: str | None) -> bool:
        """Whether the cookie is the one that this server gave out."""
        return cookie is not None and hmac.compare_digest(cookie.encode(), self.session.encode())


class Gate:
    """The three questions in front of an application."""

    def __init__(self, app: ASGIApp, access: Access):
        self.app, self.access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                if "cache-control" not in headers:
                    headers["cache-control"] = "no-store"
            await send(message)

        refusal = await self._refusal(Request(scope, receive))
        await (refusal or self.app)(scope, receive, send_guarded)

    async def _refusal(self, request: Request) -> Response | None:
        headers = request.headers
        if not self.access.knows_host(headers.get("host", "")):
            return _plain(421, "This server answers to the address that `fitune studio` printed, and to no other name.")
        if request.method not in SAFE and not _is_own_page(headers):
            return _plain(403, "Changes are accepted from the studio's own page only.")
        if request.url.path == "/login":
            return await self._login(request)
        if self.access.lets_in(request.cookies.get(self.access.cookie)):
            return None if "token" not in request.query_params else _without_token(request)
        given = request.query_params.get("token", "")
        if self.access.password is None and hmac.compare_digest(given.encode(), self.access.token.encode()):
            return self._welcome(_without_token(request))
        if self.access.password is not None and request.method in SAFE:
            return RedirectResponse("/login", 303)
        return _plain(
            401, "Open the address that `fitune studio` printed in the terminal: it carries the token of this session."
        )

    async def _login(self, request: Request) -> Response:
        if self.access.password is None:
            return RedirectResponse("/", 303)
        if request.method in SAFE:
            return HTMLResponse(LOGIN.format(note=""))
        given = dict(parse_qsl((await request.body())[:4096].decode("utf-8", "replace"))).get("password", "")
        if hmac.compare_digest(given.encode(), self.access.password.encode()):
            return self._welcome(RedirectResponse("/", 303))
        await asyncio.sleep(WRONG_PASSWORD_SECONDS)
        return HTMLResponse(LOGIN.format(note='<p class="bad" role="alert">That is not the password.</p>'), 401)

    def _welcome(self, response: Response) -> Response:
        response.set_cookie(self.access.cookie, self.access.session, httponly=True, samesite="strict", path="/")
        return response


LOGIN = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>fitune studio</title>
<meta name="viewport" content="width=device-width, initial-scale=1"></head>
<body><main><h1>fitune studio</h1>{note}<form method="post" action="/login">
<label for="password">Password</label> <input id="password" name="password" type="password" autocomplete="current-password"
required autofocus> <button>Open</button></form></main></body></html>
"""


def _is_own_page(headers: Headers) -> bool:
    """Whether a request that changes something comes from this server's page: browsers say where from, always."""
    origin = headers.get("origin")
    return origin is not None and urlsplit(origin).netloc == headers.get("host") and origin.startswith("http://")


def _without_token(request: Request) -> Response:
    """The same address without the token, so that it does not stay in the history."""
    rest = [(name, value) for name, value in request.query_params.multi_items() if name != "token"]
    path = "/" + request.url.path.lstrip("/")
    return RedirectResponse(f"{path}?{urlencode(rest)}" if rest else path, 303)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _plain(status: int, text: str) -> Response:
    return Response(text + "\n", status, media_type="text/plain")
