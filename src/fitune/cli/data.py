"""`fitune data`: show and check a dataset as training will see it; split one; make one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from fitune.api.data_source import refuse_unreadable, renderer_of, settings_of_data
from fitune.cli.generate_rows import generate_rows, judge_rows
from fitune.cli.options.flags import SettingsCommand
from fitune.cli.options.shared import JSON, print_json

if TYPE_CHECKING:
    from fitune.config.sections import Settings
    from fitune.data.read.sources import DataOptions


@click.group()
def data() -> None:
    """Show, check, split, make, generate and judge datasets.

    \b
    fitune data check my.jsonl
    """


data.add_command(generate_rows)
data.add_command(judge_rows)


@data.command(cls=SettingsCommand)
@click.argument("source", metavar="FILE|RECIPE.yaml")
@click.option("--rows", type=click.IntRange(1), default=3, show_default=True, help="Number of rows.")
@click.option("--tokens", is_flag=True, help="Show where each token ends.")
@JSON
@click.pass_context
def show(ctx: click.Context, source: str, rows: int, tokens: bool, as_json: bool) -> None:
    """Show rows as the model will read them, with what is trained marked: on green, or in ⟦ ⟧ without colour.

    \b
    fitune data show my.jsonl --model.name HuggingFaceTB/SmolLM2-360M-Instruct
    """
    from fitune.console import stdout_console
    from fitune.data.prepare import rows_to_show
    from fitune.data.render.show import LEGEND, PLAIN_LEGEND, label_rows, show_row

    settings = settings_of_data(source, ctx.meta["settings"])
    refuse_unreadable(settings)
    renderer, _ = renderer_of(settings)
    shown = rows_to_show(settings.data.train, renderer, _options(settings), rows)
    if as_json:
        found = [
            {"row": row.row_number, **({"side": side} if side else {}), "tokens": label_rows(row, renderer.tokenizer)}
            for side, row in shown
        ]
        print_json(found)
        return
    colour = stdout_console().color_system is not None
    stdout_console().print(LEGEND if colour else PLAIN_LEGEND, style="dim", markup=False)
    for side, row in shown:
        if side:
            stdout_console().print(f"{side}:", markup=False)
        stdout_console().print(show_row(row, renderer.tokenizer, colour, tokens))
        stdout_console().print()


@data.command(cls=SettingsCommand)
@click.argument("source", metavar="FILE|RECIPE.yaml")
@JSON
@click.pass_context
def check(ctx: click.Context, source: str, as_json: bool) -> None:
    """Check a dataset: what would be trained on, and what is wrong with it. Every training starts with this check.

    \b
    fitune data check my.jsonl --data.max_length 1024
    fitune data check pairs.jsonl

    A file with the columns chosen and rejected is checked as preference pairs, one with completion and label as judged
    answers.
    """
    from fitune.console import stdout_console
    from fitune.errors import DataError

    settings = settings_of_data(source, ctx.meta["settings"])
    try:
        refuse_unreadable(settings)
        from fitune.training.setup import read_data

        renderer, config = renderer_of(settings)
        prepared = read_data(settings, config, renderer, exclude=())
    except DataError as error:
        if as_json:
            print_json({"ok": False, "error": str(error)})
        raise
    sides = {
        "train": (prepared.train_report, prepared.train_read),
        "eval": (prepared.eval_report, prepared.eval_read),
    }
    if as_json:
        from fitune.data.reports.counting import histogram
        from fitune.training.plan_scenario import row_sizes

        found: dict[str, dict[str, object]] = {
            name: {**report.to_dict(), **({"read": read.to_dict()} if read else {})}
            for name, (report, read) in sides.items()
            if report
        }
        found["train"]["lengths"] = histogram([tokens for tokens, _ in row_sizes(settings, prepared.train)])
        print_json({"ok": True, **found})
        return
    for name, (report, read) in sides.items():
        if report is not None:
            stdout_console().print(f"{name}: {report.name}", markup=False)
            for line in [*(read.lines() if read else ()), *report.lines()]:
                stdout_console().print(f"  {line}", markup=False)


@data.command()
@click.argument("file", type=click.Path())
@click.option("--test", "share", type=float, default=0.1, show_default=True, help="Share of the rows to hold out.")
@click.option("--seed", type=int, default=1, show_default=True, help="Seed for the split.")
@click.option("--out-train", type=click.Path(), help="File of the training rows.  [default: FILE.train.jsonl]")
@click.option("--out-test", type=click.Path(), help="File of the held-out rows.  [default: FILE.test.jsonl]")
def split(file: str, share: float, seed: int, out_train: str | None, out_test: str | None) -> None:
    """Split a file in two; identical rows stay on the same side.

    \b
    fitune data split my.jsonl --test 0.1 --seed 1
    """
    from fitune.console import log
    from fitune.data.read.sources import split_file

    path = Path(file)
    first = Path(out_train) if out_train else path.with_name(f"{path.stem}.train.jsonl")
    second = Path(out_test) if out_test else path.with_name(f"{path.stem}.test.jsonl")
    counts = split_file(path, share, seed, first, second)
    log(f"{counts[0]:,} rows in {first}, {counts[1]:,} in {second}")


@data.command()
@click.argument("task", type=click.Choice(["pig-latin", "pig-latin-pairs", "yoda"]))
@click.option("--from", "sentences", type=click.Path(), help="Pig Latin: a .txt file, one sentence a line.")
@click.option("--out", type=click.Path(), required=True, help="The .jsonl file to write.")
@click.option("--rows", type=click.IntRange(1), default=1000, show_default=True, help="yoda: how many sentences.")
@click.option("--hub", is_flag=True, help="yoda: take the 720 sentences of a dataset on the hub instead.")
@click.option(
    "--seed", type=int, default=1, show_default=True, help="Seed for mistakes (pig-latin-pairs), sentences (yoda)."
)
def make(task: str, sentences: str | None, out: str, rows: int, hub: bool, seed: int) -> None:
    """Make the data of a demo task.

    \b
    fitune data make pig-latin --from sentences.txt --out pig.jsonl
    fitune data make pig-latin-pairs --out pairs.jsonl
    fitune data make yoda --out yoda.jsonl

    Pig Latin without --from translates the Harvard sentences; its pairs hold the right translation (chosen) and one
    with mistakes in a few words (rejected). Yoda's sentences are generated and turned round by a rule.
    """
    from importlib.resources import files

    from fitune.console import log
    from fitune.data.demo_files import make_pig_latin, make_pig_latin_pairs, make_yoda, read_sentences, take_hub_yoda

    if task == "yoda":
        if sentences:
            raise click.UsageError("--from is for pig-latin; yoda makes its own sentences")
        count = take_hub_yoda(Path(out)) if hub else make_yoda(Path(out), rows, seed)
    else:
        source = sentences or str(files("fitune.data") / "harvard_sentences.txt")
        lines = read_sentences(source)
        count = (
            make_pig_latin(lines, Path(out)) if task == "pig-latin" else make_pig_latin_pairs(lines, Path(out), seed)
        )
    log(f"{count:,} rows in {out}")


def _options(settings: Settings) -> DataOptions:
    from fitune.data.read.sources import DataOptions
    from fitune.methods.registry import METHODS

    return DataOptions(
        reads=METHODS[settings.method].reads, form=settings.data.form, columns=settings.data.columns, system=settings.data.system,
        loss_on=settings.data.loss_on, response_template=settings.data.response_template, bad_rows=settings.data.bad_rows,
        hub_split=settings.data.hub_split, seed=settings.train.seed,
    )  # fmt: skip
