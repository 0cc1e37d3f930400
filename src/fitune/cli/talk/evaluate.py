"""`fitune evaluate`: measure a run or a model on a data file."""

from __future__ import annotations

import click

from fitune.cli.options.shared import DEVICE, FOLDER, print_json


@click.command()
@click.argument("target")
@click.option("--data", required=True, help="A data file, hub:NAME, or a demo task.")
@click.option("--rows", type=click.IntRange(1), help="Measure the first N rows only.")
@click.option("--system", default=None, help="System prompt for rows that have none.")
@click.option("--base", is_flag=True, help="Measure the base model, with the adapter switched off.")
@click.option(
    "--max-new-tokens",
    default=128,
    show_default=True,
    type=click.IntRange(1),
    help="Maximum length of a generated answer in tokens.",
)
@FOLDER
@DEVICE
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with every row.")
def evaluate(
    target: str,
    data: str,
    rows: int | None,
    system: str | None,
    base: bool,
    max_new_tokens: int,
    folder: str,
    device: str,
    as_json: bool,
) -> None:
    """Measure TARGET (a run, an adapter folder or a model) on a data file: loss, exact match, word accuracy, chrF.

    \b
    fitune evaluate demo --data held_out.jsonl
    fitune evaluate demo --data held_out.jsonl --base --json
    """
    from contextlib import nullcontext

    from fitune.console import stdout_console
    from fitune.data.read.sources import DataOptions
    from fitune.evaluation.evaluate import evaluate as measure
    from fitune.evaluation.inference_model import open_target

    opened = open_target(target, folder, device)
    with opened.without_adapter() if base else nullcontext():
        found = measure(opened, data, DataOptions(system=system), rows, max_new_tokens)
    if as_json:
        print_json(found.to_dict())
        return
    from rich.table import Table

    table = Table("prompt", "answer", "reference", "word accuracy")
    for row in found.rows[:20]:
        table.add_row(row["asked"], row["answer"], row["wanted"], f"{row['word_accuracy']:.0%}")
    if found.rows:
        stdout_console().print(table)
    for name, value in found.metrics.items():
        stdout_console().print(f"{name:15} {value:.4f}" if isinstance(value, float) else f"{name:15} {value}")
