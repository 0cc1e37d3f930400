"""Open a model, load its adapters, listen."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass

import uvicorn

from fitune.adapters.storage import title
from fitune.console import log
from fitune.errors import ModelError
from fitune.evaluation.inference_model import open_target
from fitune.serving.app import ServeOptions, make_app
from fitune.serving.engine import Engine, served_models


@dataclass(frozen=True)
class ServerOptions:
    """What `fitune serve` was asked for."""

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    batch: int = 8
    max_new_tokens: int = 1024
    thinking: str = "auto"
    device: str = "auto"


def run_server(target: str, adapters: Mapping[str, str], options: ServerOptions) -> None:
    """Serve until Ctrl-C or SIGTERM.

    Raises:
        ModelError: the model or an adapter cannot be opened, or the address is taken.
    """
    with _listen(options.host, options.port) as listener:
        _serve_on(listener, target, adapters, options)


def _serve_on(listener: socket.socket, target: str, adapters: Mapping[str, str], options: ServerOptions) -> None:
    opened = open_target(target, device=options.device, thinking=options.thinking)
    name = title(opened.adapter) if opened.adapter else opened.base_name
    models = served_models(opened, opened.base_name, name, adapters)
    engine = Engine(target=opened, models=models, batch_size=options.batch).start()
    host, port = listener.getsockname()[:2]
    log(f"serving {', '.join(models)} at http://{host}:{port}/v1")
    log("the key is " + ("asked for" if options.api_key else "not asked for; only this machine reaches the address"))
    app = make_app(engine, ServeOptions(options.api_key, options.max_new_tokens))
    uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=5)).run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    """A socket on the address, before the model is loaded: a taken port is known at once."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ModelError(
            f"{host}:{port} cannot be listened on: {error.strerror}; choose another with --port"
        ) from error
    return listener
