"""`fitune plan`: the memory of a run on a card, before any weights are downloaded."""

from __future__ import annotations

import shlex
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

import click

from fitune.api.plan_question import PlanOptions, PlanQuestion, ask
from fitune.cli.options.flags import SettingsCommand
from fitune.cli.options.shared import JSON, print_json
from fitune.cli.plan.ladder_answer import DOES_NOT_FIT, answer_ladder, what_fits
from fitune.cli.plan.shown import Shown

if TYPE_CHECKING:
    from fitune.planning.predict import Plan
    from fitune.planning.report.plan_report import View
    from fitune.planning.scenario import Scenario

# --max: how far the search goes at most, and in which steps, where nothing else bounds it.
MOST_ROWS, MOST_TOKENS, LENGTH_STEP = 4096, 2**20, 64
ENDS = {
    "seq-len": "the model has no more positions",
    "batch": "larger ones were not tried",
    "rank": "a rank above the model's width adds nothing",
}


@click.command(cls=SettingsCommand, options_metavar="[OPTIONS] [--SECTION.SETTING VALUE]...")
@click.argument("words", nargs=-1, metavar="[MODEL] [RECIPE.yaml]")
@click.option("--data", "data_file", metavar="FILE", help="Rows to train on; the plan takes their longest batch.")
@click.option("--seq-len", type=click.IntRange(1), metavar="TOKENS", help="Length of the rows, instead of --data.")
@click.option(
    "--gpu", "gpu_name", metavar="NAME", help='A card, for example "RTX 4090"; list shows all.  [default: the one here]'
)
@click.option("--budget", metavar="SIZE", help="Plan for this much memory instead, for example 16GiB.")
@click.option("--grid", "as_grid", is_flag=True, help="Every combination of memory-saving settings, side by side.")
@click.option(
    "--max",
    "most",
    type=click.Choice(["seq-len", "batch", "rank", "model"]),
    help="The largest that fits; for model, name several.",
)
@click.option(
    "--ladder", is_flag=True, help="The fastest configuration that fits, and the cost of each memory-saving step."
)
@click.option("--explain", is_flag=True, help="Show the textbook formula next to the traced figure.")
@JSON
@click.option("--svg", "svg_file", type=click.Path(dir_okay=False), help="Write a diagram (SVG).")
@click.option(
    "--html", "html_file", type=click.Path(dir_okay=False), help="Write an HTML page with diagram and tables."
)
@click.option(
    "--gpus", type=click.IntRange(1), default=1, metavar="N", help="Plan one of so many ranks that share each step."
)
@click.option("--strategy", type=click.Choice(["ddp", "fsdp2"]), help="Short for --parallel.strategy.")
@click.option("--expandable-segments", is_flag=True, help="PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True.")
@click.pass_context
def plan(
    ctx: click.Context, words: tuple[str, ...], most: str | None, as_grid: bool, **given: Unpack[PlanOptions]
) -> None:
    """Predict the memory of a run, without a GPU and without weights.

    \b
    fitune plan Qwen/Qwen2.5-7B --gpu "RTX 4090" --seq-len 2048
    fitune plan my-model/config.json --budget 16GiB --train.gradient_checkpointing
    fitune plan recipes/pig-latin.yaml --gpu T4
    fitune plan Qwen/Qwen2.5-7B --gpu "RTX 4090" --max seq-len
    fitune plan Qwen/Qwen2.5-7B --gpu "RTX 4090" --ladder

    MODEL is a hub id, a folder, a config.json, a GGUF file or a built-in name. All settings of `fitune train` are
    accepted, so the plan is that of the run itself. Exit status: 0 if it fits, 3 if it does not, 1 on an error.
    """
    if given["gpu_name"] == "list":
        _list_cards(given["as_json"])
        return
    models = [word for word in words if not word.endswith((".yaml", ".yml"))]
    recipes = [word for word in words if word.endswith((".yaml", ".yml"))]
    pictures = given["svg_file"] or given["html_file"]
    if as_grid + bool(most) + given["ladder"] + given["explain"] > 1:
        raise click.UsageError("--grid, --max, --ladder and --explain cannot be combined with each other")
    if pictures and (most or (given["as_json"] and (as_grid or given["ladder"]))):
        raise click.UsageError("--svg and --html cannot be combined with --max, nor with --json of a grid or a ladder")
    shown = Shown(shlex.join(["fitune", *sys.argv[1:]]), given["svg_file"], given["html_file"])
    if len(recipes) > 1 or (len(models) > 1 and most != "model"):
        raise click.UsageError("name one model and one recipe; several models need --max model")
    if given["gpus"] > 1 and (as_grid or most or given["ladder"]):
        raise click.UsageError("--gpus cannot be combined with --grid, --max or --ladder")
    short = {"parallel.strategy": given["strategy"]} if given["strategy"] else {}
    asked = ask(models[0] if models else None, recipes, {**ctx.meta["settings"], **short}, given)
    if most == "model":
        status = _answer_models(asked, models or [asked.config.name], given["as_json"])
    elif most:
        status = _answer_most(asked, most, given["as_json"])
    elif given["ladder"]:
        status = answer_ladder(asked, given["as_json"], shown)
    elif as_grid:
        status = _answer_grid(asked, given["as_json"], shown)
    else:
        status = _answer(asked, given)
    ctx.exit(status)


def _list_cards(as_json: bool) -> None:
    """The catalogue."""
    from fitune.console import stdout_console
    from fitune.planning.gpus.catalogue import catalogue
    from fitune.planning.report.terminal import print_cards

    if as_json:
        rows = [asdict(card) for card in catalogue().values()]
        print_json(rows)
    else:
        print_cards(stdout_console(), list(catalogue().values()))


def _answer(asked: PlanQuestion, given: PlanOptions) -> int:
    """One plan."""
    from fitune.console import log, stdout_console
    from fitune.planning.report.plan_report import as_dict
    from fitune.planning.report.svg import html, svg
    from fitune.planning.report.terminal import print_plan

    scenario = asked.scenario(_share_of_batch(asked, given["gpus"]))
    made = asked.plan(scenario)
    if given["gpus"] > 1 and asked.settings.parallel.strategy == "fsdp2" and made.traced:
        from fitune.planning.rank_share import plan_of_rank

        room = asked.gpu.usable_bytes if asked.card else None
        made = plan_of_rank(made, asked.config.values, scenario, given["gpus"], room)
    view = replace(asked.view(scenario, made), expandable_segments=asked.expandable)
    explained = None
    if given["explain"]:
        from fitune.planning.closed_form import closed_form

        explained = closed_form(asked.config.values, scenario)
    if given["svg_file"]:
        Path(given["svg_file"]).write_text(svg(view), encoding="utf-8")
    if given["html_file"]:
        page = html(view, shlex.join(["fitune", *sys.argv[1:]]))
        Path(given["html_file"]).write_text(page, encoding="utf-8")
    if given["as_json"]:
        found = {**as_dict(view), "scenario": scenario.to_dict(), "config_from": asked.config.origin}
        print_json(found | ({"closed_form": explained} if explained else {}))
    else:
        print_plan(stdout_console(), view)
        if explained is not None:
            from fitune.planning.closed_form import explain

            stdout_console().print()
            stdout_console().print(explain(made, explained))
        if asked.card is not None and made.traced and not made.fits:
            what_fits(asked, stdout_console())
    for file in (given["svg_file"], given["html_file"]):
        if file:
            log(f"wrote {file}")
    return 0 if asked.card is None or made.fits else DOES_NOT_FIT


def _share_of_batch(asked: PlanQuestion, gpus: int) -> dict[str, object]:
    """The settings' changes for the rows of a step that one of several ranks takes."""
    if gpus == 1:
        return {}
    rows = -(-asked.settings.train.batch_size // gpus)
    micro = max(size for size in range(1, rows + 1) if rows % size == 0 and size <= asked.settings.train.micro_rows)
    return {"train.batch_size": rows, "train.micro_batch_size": micro}


def _answer_most(asked: PlanQuestion, what: str, as_json: bool) -> int:
    """The largest length, batch or rank that fits."""
    from fitune.console import log, stdout_console
    from fitune.planning.report.plan_report import verdict
    from fitune.planning.report.terminal import print_plan
    from fitune.planning.search.max_fit import largest
    from fitune.sizes import size_in

    if asked.card is None:
        raise click.UsageError("--max needs a card: --gpu NAME or --budget SIZE")
    settings, config = asked.settings, asked.config
    width = config.width
    start, ceiling, step, unit = {
        "seq-len": (asked.tokens, config.context_tokens or MOST_TOKENS, LENGTH_STEP, "tokens a row"),
        "batch": (settings.train.micro_rows, MOST_ROWS, 1, "rows a forward pass"),
        "rank": (settings.lora.rank, width, 1, "rank"),
    }[what]

    def scenario_at(value: int) -> Scenario:
        if what == "seq-len":
            return asked.scenario(tokens=value)
        if what == "rank":
            return asked.scenario({"lora.rank": value})
        return asked.scenario({"train.micro_batch_size": value, "train.batch_size": value})

    def plan_at(value: int) -> Plan:
        made = asked.plan(scenario_at(value))
        log(f"{value:,} {unit}: {size_in(made.smi_peak_bytes, asked.gpu.usable_bytes)}")
        return made

    limit = largest(plan_at, asked.gpu.usable_bytes, ceiling, start, step)
    if as_json:
        found = {
            "max": what,
            "value": limit.value,
            "plan": limit.plan.to_dict(),
            "too_large": limit.too_large,
            "too_large_plan": limit.too_large_plan.to_dict() if limit.too_large_plan else None,
        }
        print_json(found)
    elif limit.value is None:
        view = asked.view(scenario_at(limit.too_large or step), limit.plan)
        stdout_console().print(f"no {what} fits: even {limit.too_large:,} {unit}", markup=False)
        print_plan(stdout_console(), view)
    else:
        stdout_console().print(
            f"the largest {what} on {asked.card}: {limit.value:,} {unit}", markup=False, style="bold green"
        )
        if limit.too_large is not None and limit.too_large_plan is not None:
            over = verdict(asked.view(scenario_at(limit.too_large), limit.too_large_plan))
            stdout_console().print(f"{limit.too_large:,}: {over}", markup=False)
        else:
            stdout_console().print(f"the search ended there: {ENDS[what]}", markup=False)
        stdout_console().print()
        print_plan(stdout_console(), asked.view(scenario_at(limit.value), limit.plan))
    return 0 if limit.value is not None else DOES_NOT_FIT


def _answer_models(asked: PlanQuestion, names: list[str], as_json: bool) -> int:
    """Which of several models fit, largest first."""
    from fitune.console import log, stdout_console
    from fitune.errors import ModelError, PlanError
    from fitune.planning.model_config import config_of
    from fitune.planning.report.terminal import print_models

    if asked.card is None:
        raise click.UsageError("--max needs a card: --gpu NAME or --budget SIZE")
    found: list[View] = []
    failed: dict[str, str] = {}
    for name in names:
        try:
            one = replace(asked, config=config_of(name, asked.settings.model.revision))
            scenario = one.scenario()
            found.append(one.view(scenario, one.plan(scenario)))
        except (ModelError, PlanError) as error:
            failed[name] = str(error)
    found.sort(key=lambda view: -view.plan.total_parameters)
    if as_json:
        rows = [{"model": view.model, **view.plan.to_dict()} for view in found]
        print_json({"card": asked.card, "models": rows, "failed": failed})
    else:
        print_models(stdout_console(), found, asked.card)
        for name, error in failed.items():
            log(f"{name}: {error}")
    if not found:
        return 1
    return 0 if any(view.plan.fits for view in found) else DOES_NOT_FIT


def _answer_grid(asked: PlanQuestion, as_json: bool, shown: Shown) -> int:
    """Every combination of the remedies."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from fitune.console import stderr_console
    from fitune.planning.gpus.step_time import with_time
    from fitune.planning.search.grid import cells, fill, print_grid

    done = cells(asked.scenario)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(
        *columns, console=stderr_console(), transient=True, disable=not stderr_console().is_terminal
    ) as progress:
        task = progress.add_task(f"planning {asked.config.name}", total=len(done))
        for place, cell in fill(done, asked.config.values, asked.gpu, asked.expandable):
            timed = with_time(cell.plan, cell.scenario, asked.gpu) if cell.plan and cell.scenario else None
            done[place] = replace(cell, plan=timed)
            progress.advance(task)
    if as_json:
        rows = [cell.to_dict() for cell in done]
        print_json({"model": asked.config.name, "card": asked.card, "cells": rows})
    else:
        with shown.console() as console:
            console.print(asked.heading(), markup=False)
            print_grid(console, done, asked.card)
    return 0 if asked.card is None or any(cell.plan and cell.plan.fits for cell in done) else DOES_NOT_FIT
