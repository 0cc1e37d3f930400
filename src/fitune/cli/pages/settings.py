"""`fitune settings`: the pages generated from the settings."""

from __future__ import annotations

import click


@click.group()
def settings() -> None:
    """Every setting, written out.

    \b
    fitune settings example > run.yaml     then delete what stays as it is
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
