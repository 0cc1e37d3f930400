"""`fitune serve`: a model behind an OpenAI-compatible address."""

from __future__ import annotations

import click

from fitune.cli.options.shared import DEVICE, THINKING

LOCAL = ("127.0.0.1", "localhost", "::1")


@click.command()
@click.argument("target")
@click.option(
    "--adapter",
    "adapters",
    multiple=True,
    metavar="NAME=RUN",
    help="Another adapter over the same base, asked for by NAME in the model field. May be given more than once.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; elsewhere needs a key.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one.")
@click.option(
    "--api-key",
    envvar="FITUNE_API_KEY",
    help="Clients must send this key. Better in the environment: FITUNE_API_KEY.",
)
@click.option(
    "--batch",
    default=8,
    show_default=True,
    type=click.IntRange(1),
    help="Answers generated together. 1 gives the very tokens of `fitune chat`, whatever else is asked.",
)
@click.option(
    "--max-new-tokens",
    default=1024,
    show_default=True,
    type=click.IntRange(1),
    help="Limit of an answer whose request names none.",
)
@THINKING
@DEVICE
def serve(
    target: str,
    adapters: tuple[str, ...],
    host: str,
    port: int,
    api_key: str | None,
    batch: int,
    max_new_tokens: int,
    thinking: str,
    device: str,
) -> None:
    """Serve TARGET, a run's name or folder, an adapter folder, or a model, to OpenAI clients.

    \b
    fitune serve demo
    fitune serve demo --adapter yoda=runs/yoda --port 9000
    curl http://127.0.0.1:8000/v1/models

    Chat template, end tokens and thinking are those of the training. For many users at once, export the merged model and
    serve it with vLLM (docs/serve.md).
    """
    from fitune.errors import SettingsError
    from fitune.serving.run_server import ServerOptions, run_server

    named = dict(_split(adapter) for adapter in adapters)
    if len(named) < len(adapters):
        raise SettingsError(["--adapter gives a name twice; names have to differ"])
    if host not in LOCAL and not api_key:
        raise SettingsError([f"--host {host} is reached by other machines: set a key with FITUNE_API_KEY or --api-key"])
    run_server(
        target,
        named,
        ServerOptions(
            host=host, port=port, api_key=api_key, batch=batch, max_new_tokens=max_new_tokens,
            thinking=thinking, device=device,
        ),
    )  # fmt: skip


def _split(adapter: str) -> tuple[str, str]:
    from fitune.errors import SettingsError

    name, equals, place = adapter.partition("=")
    if not (name and equals and place):
        raise SettingsError([f"--adapter is {adapter}; write NAME=RUN, for example yoda=runs/yoda"])
    return name, place
