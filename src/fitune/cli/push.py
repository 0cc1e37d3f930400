"""`fitune push`: a result to the Hugging Face Hub."""

from __future__ import annotations

import sys

import click

from fitune.cli.options.shared import FOLDER, JSON, print_json


@click.command()
@click.argument("target")
@click.option(
    "--to", "repo", required=True, metavar="ORG/NAME", help="The repository on the hub; made if it is not there."
)
@click.option("--public", is_flag=True, help="Let everybody see a new repository. It is private otherwise.")
@click.option("--license", "licence", help="For the card, such as apache-2.0: what the base's licence allows.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@FOLDER
@JSON
def push(target: str, repo: str, public: bool, licence: str | None, yes: bool, folder: str, as_json: bool) -> None:
    """Push TARGET, a run's name or folder or an exported folder, to the Hugging Face Hub.

    \b
    hf auth login
    fitune push demo --to me/pig-latin
    fitune export demo --to gguf --type q8_0 --out gguf && fitune push gguf --to me/pig-latin-gguf

    Weights, tokenizer, template and the model card are sent; checkpoints and data are not. A push that broke off is
    continued by the same command.
    """
    from fitune.console import log
    from fitune.errors import ModelError
    from fitune.exporting.push import pack
    from fitune.exporting.push import push as send
    from fitune.sizes import size_in

    parcel = pack(target, folder)
    log(
        f"{parcel.folder} → {repo} ({'public' if public else 'private'}), {size_in(parcel.total_bytes, parcel.total_bytes)}:"
    )
    for name, size in parcel.files:
        log(f"  {name}  {size_in(size, parcel.total_bytes)}")
    if not yes:
        if not sys.stdin.isatty():
            raise ModelError("nothing was sent: without a terminal to ask at, --yes is needed")
        click.confirm("push?", abort=True, err=True)
    url = send(parcel, repo, not public, licence)
    if as_json:
        print_json({"url": url, "files": [name for name, _ in parcel.files], "bytes": parcel.total_bytes})
    else:
        click.echo(url)
