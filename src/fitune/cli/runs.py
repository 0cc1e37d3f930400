"""`fitune runs`: list, show and compare runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from fitune.cli.options.shared import FOLDER, JSON, print_json, print_table

if TYPE_CHECKING:
    from fitune.runs.compare import Damaged, MemoryFigure, Summary


NARROW = 110  # characters of a line


@click.group()
def runs() -> None:
    """List, show and compare runs.

    \b
    fitune runs list
    fitune runs compare demo demo-rank-32
    """


@runs.command("list")
@FOLDER
@JSON
def list_command(folder: str, as_json: bool) -> None:
    """List runs, newest first: state, method, model, steps, the score before and after, the day.

    \b
    fitune runs list

    A run whose process is gone without a word is dead; `fitune train --resume RUN` continues it.
    """
    from fitune.console import log, stdout_console
    from fitune.runs.compare import list_runs

    found = list_runs(folder)
    if as_json:
        print_json(found)
    elif not found:
        log(f"no runs in {folder}; `fitune demo` makes the first")
    else:
        columns = ("name", "status", "method", "model", "data", "steps", "before → after", "started")
        rows = [_line(run) for run in found]
        if stdout_console().width < NARROW:  # the data's name is the first to go
            columns, rows = (*columns[:4], *columns[5:]), [[*row[:4], *row[5:]] for row in rows]
        print_table(columns, rows, _cell)


def _line(run: Summary | Damaged) -> list[object]:
    """A run's cells; a damaged one has only its name, its state and why."""
    if run["status"] == "damaged":
        return [run["name"], "damaged", "", run.get("error"), "", "", "", ""]
    from fitune.runs.run_folder import RunFolder

    found = cast("Summary", run)
    steps = "" if found["steps"] is None else f"{found['step']}/{found['steps']}"
    return [
        found["name"],
        RunFolder(Path(found["path"])).status(),
        found["method"],
        Path(found["model"] or "").name,
        Path(found["data"] or "").name,
        steps,
        _score(found),
        (found["started"] or "")[:16].replace("T", " "),
    ]


def _score(run: Summary) -> str:
    """The first metric that was measured before and after, else the loss of the last logged step."""
    before, after = run["before"] or {}, run["after"] or {}
    for name in ("reward", "accuracy", "word_accuracy", "loss"):
        if name in before and name in after:
            return f"{name.replace('_', ' ')} {before[name]:.3g} → {after[name]:.3g}"
    return "" if run["loss"] is None else f"loss of the last step {run['loss']:.3g}"


@runs.command()
@click.argument("run")
@FOLDER
@JSON
def show(run: str, folder: str, as_json: bool) -> None:
    """Show one run: settings, results, memory, checkpoints.

    \b
    fitune runs show demo
    """
    from fitune.runs.compare import find_run, flat, show_run

    found = show_run(find_run(run, folder))
    if as_json:
        print_json(found)
        return
    summary = {name: value for name, value in found["summary"].items() if name != "memory"}
    facts = {**flat(summary), **_in_words(found["summary"]["memory"]), "checkpoints": found["checkpoints"]}
    print_table(("", run), [[name, value] for name, value in facts.items()], _cell)


@runs.command()
@click.argument("names", nargs=-1, required=True, metavar="RUN RUN...")
@FOLDER
@JSON
def compare(names: tuple[str, ...], folder: str, as_json: bool) -> None:
    """What differs between runs: settings, versions, data, results.

    \b
    fitune runs compare demo demo-rank-32
    """
    from fitune.runs.compare import compare_runs, find_run

    if len(names) < 2:
        raise click.UsageError("name two runs or more; `fitune runs list` shows them")
    found = compare_runs([Path(find_run(name, folder)) for name in names])
    if as_json:
        print_json(found)
        return
    rows: list[list[object]] = []
    for part in ("settings", "versions", "data", "results"):
        rows += [[f"{part}: {name}", *values] for name, values in found[part].items()]
    last = [losses[-1][1] if losses else None for losses in found["losses"]]
    print_table(("", *found["names"]), [*rows, ["last training loss", *last]], _cell)


def _in_words(memory: dict[str, MemoryFigure]) -> dict[str, str]:
    """``peak allocated``: ``11.31 GiB measured, 11.23 GiB predicted (+0.7%)``."""
    from fitune.sizes import size_in

    found = {}
    for name, one in memory.items():
        whole = max(one["measured"], one.get("predicted", 0))
        words = f"{size_in(one['measured'], whole)} measured"
        if "predicted" in one and "difference" in one:
            words += f", {size_in(one['predicted'], whole)} predicted ({one['difference']:+.1%})"
        found[f"peak {name.removesuffix('_bytes').replace('_', ' ')}"] = words
    return found


def _cell(value: object) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
