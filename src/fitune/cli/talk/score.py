"""`fitune score`: a reward model scores the answers of a file."""

from __future__ import annotations

import click

from fitune.cli.options.shared import DEVICE, FOLDER, print_json


@click.command()
@click.argument("run")
@click.option("--data", required=True, help="A data file, hub:NAME, or a demo task: pairs, or rows with answers.")
@click.option("--rows", type=click.IntRange(1), help="Score the first N rows only.")
@click.option("--system", default=None, help="System prompt for rows that have none.")
@click.option(
    "--seed", default=42, show_default=True, help="Seed for the rows of a demo task; training uses train.seed."
)
@FOLDER
@DEVICE
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with every row.")
def score(
    run: str, data: str, rows: int | None, system: str | None, seed: int, folder: str, device: str, as_json: bool
) -> None:
    """Score DATA with the reward model of RUN (method reward), by name or folder.

    \b
    fitune score my-reward --data answers.jsonl
    fitune score my-reward --data pairs.jsonl --json

    Rows with an answer get its reward. Pairs (chosen, rejected) get both rewards; accuracy is the share of pairs whose
    chosen answer has the higher one, and length_correlation tells how strongly rewards follow length.
    """
    from fitune.console import stdout_console
    from fitune.data.read.sources import DataOptions
    from fitune.evaluation.inference_model import open_target
    from fitune.evaluation.reward_scores import open_reward_model
    from fitune.evaluation.reward_scores import score as judge

    model = open_reward_model(open_target(run, folder, device, for_reward=True))
    found = judge(model, data, DataOptions(system=system, seed=seed), rows)
    if as_json:
        print_json(found.to_dict())
        return
    from rich.table import Table

    pairs = "margin" in found.rows[0]
    names = ("asked", "chosen", "rejected", "margin") if pairs else ("asked", "answer", "reward")
    heads = ("prompt", *names[1:])
    table = Table(*heads)
    for row in found.rows[:20]:
        values = [dict(row).get(name) for name in names]
        table.add_row(*(f"{value:.3f}" if isinstance(value, float) else str(value) for value in values))
    stdout_console().print(table)
    for name, value in found.metrics.items():
        stdout_console().print(f"{name:20} {value:.4f}" if isinstance(value, float) else f"{name:20} {value}")
