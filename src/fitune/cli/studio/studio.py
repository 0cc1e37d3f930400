"""`fitune studio`: a page on this machine that shows runs and starts them."""

from __future__ import annotations

import os
import socket
import sys
import webbrowser
from importlib.util import find_spec
from pathlib import Path

import click

PASSWORD = "FITUNE_STUDIO_PASSWORD"
HERE = ("127.0.0.1", "localhost", "::1")


@click.command()
@click.option("--folder", default="runs", show_default=True, help="Folder of all runs.")
@click.option("--data", "data_folder", default="data", show_default=True, help="Folder that dropped files go to.")
@click.option(
    "--open",
    "opened",
    multiple=True,
    type=click.Path(exists=True, file_okay=False),
    help="Another folder whose data and models the page may read; may be repeated.  [default: the current folder alone]",
)
@click.option("--port", default=8765, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; others want a password.")
@click.option("--browser", is_flag=True, help="Open the page in the browser.")
def studio(folder: str, data_folder: str, opened: tuple[str, ...], port: int, host: str, browser: bool) -> None:
    """Show runs in the browser: their curves and answers as they come, new runs, data, results, and what fits.

    \b
    fitune studio
    fitune studio --folder /data/runs --open /data/sets

    The page only reads run folders. A run that is started from it is a `fitune train` process of its own, which goes on
    when page and server are closed. The address that is printed holds a token: whoever has it may do what you may.
    """
    from fitune.console import log, warn
    from fitune.errors import MissingExtra

    missing = [package for package in ("starlette", "uvicorn", "jinja2") if find_spec(package) is None]
    if missing:
        raise MissingExtra(
            f"the studio needs {' and '.join(missing)}; from the clone: uv pip install '.[studio]', "
            f"or pip install {' '.join(missing)}"
        )
    from fitune.studio.access import Access
    from fitune.studio.confine import Folders
    from fitune.studio.server import serve

    password = _password(host) if host not in HERE else None
    root, here = Path(folder).resolve(), Path.cwd().resolve()
    data = Path(data_folder).resolve()
    folders = Folders(runs=root, data=data, opened=(here, root, data, *(Path(one).resolve() for one in opened)))
    listener = _listen(host, port)
    access = Access(host=host, port=listener.getsockname()[1], password=password)
    if password is not None:
        warn(
            f"listening on {host}: everyone who reaches this machine and has the password may start runs and read the "
            "opened folders, and the connection is not encrypted; a tunnel is safer: "
            f"ssh -L {access.port}:127.0.0.1:{access.port} THIS-MACHINE"
        )
    log(f"the studio is at {access.address}")
    log("Ctrl-C closes it; runs go on")
    if browser:
        webbrowser.open(access.address)
    serve(folders, access, listener)


def _password(host: str) -> str:
    """From the environment, or asked for."""
    given = os.environ.get(PASSWORD, "")
    if not given and sys.stdin.isatty():
        given = str(click.prompt(f"Password for the studio on {host}", hide_input=True, confirmation_prompt=True))
    if len(given) < 8:
        raise click.UsageError(
            f"--host {host} lets other machines in, so it wants a password of 8 characters or more: set {PASSWORD}"
        )
    return given


def _listen(host: str, port: int) -> socket.socket:
    """A socket that is bound.

    Raises:
        RunError: the port is taken, or the address is not this machine's.
    """
    from fitune.errors import RunError

    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        made = socket.socket(family, kind, protocol)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen(128)  # whoever opens the address that is printed next waits for the server, and is not refused
    except OSError as error:
        raise RunError(
            f"cannot listen on port {port} of {host}: {error.strerror}; is a studio open there already? "
            "--port 0 takes a free one"
        ) from error
    return made
