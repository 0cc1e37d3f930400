"""What commands share: the runs folder, `--json`, and a plain table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import click

FOLDER = click.option(
    "--runs", "--folder", "folder", default="runs", show_default=True, help="Folder of all runs; --folder until 0.3.0."
)
Cell = TypeVar("Cell")

JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
THINKING = click.option(
    "--thinking",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "on", "off"]),
    help="Ask for reasoning or for none; auto asks as the model was trained.",
)
DEVICE = click.option("--device", default="auto", show_default=True, type=click.Choice(["auto", "cpu", "cuda", "mps"]))
TEMPERATURE = click.option(
    "--temperature", default=0.0, show_default=True, type=click.FloatRange(0), help="0 is greedy decoding."
)
TOP_P = click.option(
    "--top-p",
    default=1.0,
    show_default=True,
    type=click.FloatRange(0, 1, min_open=True),
    help="Sample from the most likely tokens up to this total probability.",
)
SEED = click.option("--seed", type=click.IntRange(0), help="Random seed for sampling.")


def print_json(value: object) -> None:
    """A value as indented JSON, for scripts."""
    from fitune.console import json_text

    click.echo(json_text(value, indent=2))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Cell]], cell: Callable[[Cell], str]) -> None:
    """Rows under their columns, without lines; ``cell`` says a value in words."""
    from rich.table import Table
    from rich.text import Text

    from fitune.console import stdout_console

    table = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(Text(cell(value)) for value in row))
    stdout_console().print(table)
