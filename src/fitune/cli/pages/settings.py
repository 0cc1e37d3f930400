"""`fitune settings`: the pages generated from the settings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

if TYPE_CHECKING:
    from fitune.config.foreign.translate import Translated


@click.group()
def settings() -> None:
    """Every setting written out, and recipes out of other tools' configs.

    \b
    fitune settings example > run.yaml          then delete what stays as it is
    fitune settings import axolotl.yaml > run.yaml
    """


@settings.command()
def schema() -> None:
    """JSON schema for editors.

    \b
    fitune settings schema > settings.schema.json
    """
    from fitune.cli.pages.docs import schema_text

    click.echo(schema_text(), nl=False)


@settings.command()
def reference() -> None:
    """Reference page (Markdown).

    \b
    fitune settings reference
    """
    from fitune.cli.pages.docs import reference_text

    click.echo(reference_text(), nl=False)


@settings.command()
def example() -> None:
    """Commented YAML file with every setting at its default.

    \b
    fitune settings example > run.yaml
    """
    from fitune.cli.pages.docs import example_text

    click.echo(example_text(), nl=False)


@settings.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--from",
    "tool",
    type=click.Choice(["LLaMA-Factory", "axolotl", "TRL", "Unsloth"], case_sensitive=False),
    help="The tool that the file is for.  [default: told by its keys]",
)
@click.option("--out", type=click.Path(path_type=Path), help="The recipe to write.  [default: standard output]")
def import_command(file: Path, tool: str | None, out: Path | None) -> None:
    """Turn a config of LLaMA-Factory, axolotl, TRL or Unsloth (YAML or JSON) into a recipe.

    \b
    fitune settings import llama3_lora_sft.yaml > run.yaml
    fitune data check run.yaml
    fitune train run.yaml

    What has no counterpart is listed, and stands as a comment at the end of the recipe. Batch sizes are those of one
    device.
    """
    from fitune.config.foreign.translate import missing, translate
    from fitune.console import log, warn
    from fitune.errors import SettingsError

    found = translate(file, tool)
    text = _recipe(found, file)
    if out is None:
        click.echo(text, nl=False)
    elif out.exists():
        raise SettingsError([f"{out} exists already; name another file or delete it"])
    else:
        out.write_text(text, encoding="utf-8")
    log(f"{file}, read as {found.tool}: {len(found.settings)} settings" + (f" in {out}" if out else ""))
    for key, why in found.left_out.items():
        warn(f"{key}: {why}")
    for fault in missing(found.settings):
        warn(f"the recipe cannot run yet: {fault}")


def _recipe(found: Translated, file: Path) -> str:
    """The YAML of a translated config."""
    import yaml

    nested: dict[str, object] = {}
    for key, value in found.settings.items():
        section, _, name = key.rpartition(".")
        place = cast("dict[str, object]", nested.setdefault(section, {})) if section else nested
        place[name] = value
    left_out = "".join(f"# {key}: {why}\n" for key, why in found.left_out.items())
    body = yaml.safe_dump(nested, sort_keys=False, allow_unicode=True)
    return f"# {file.name} of {found.tool}, as a recipe of fitune\n{body}" + (
        f"\n# without a counterpart:\n{left_out}" if left_out else ""
    )
