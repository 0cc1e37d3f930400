"""The ladder in `fitune plan`: the fastest configuration that fits, and with `--ladder` the price of each concession."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from fitune.api.plan_question import PlanQuestion
from fitune.cli.options.shared import print_json
from fitune.cli.plan.shown import Shown

if TYPE_CHECKING:
    from rich.console import Console

    from fitune.config.sections import Settings
    from fitune.data.packing.largest_pass import LargestPass
    from fitune.planning.predict import Plan
    from fitune.planning.scenario import Scenario
    from fitune.planning.search.ladder import Ladder

DOES_NOT_FIT = 3  # exit status, as of `fitune plan`


def answer_ladder(asked: PlanQuestion, as_json: bool, shown: Shown) -> int:
    """Search, show, and say how to train so."""
    from fitune.console import log
    from fitune.errors import DoesNotFit

    if asked.card is None:
        raise click.UsageError("--ladder needs a card: --gpu NAME or --budget SIZE")
    usable, margin = asked.gpu.usable_bytes, asked.settings.memory.margin
    try:
        found = _search(asked, log)
    except DoesNotFit as error:
        if as_json:
            print_json({"card": asked.card, "fits": False, "why": str(error)})
        else:
            with shown.console() as console:
                console.print(f"nothing fits {asked.card}: {error}", markup=False, style="bold red")
        return DOES_NOT_FIT
    if as_json:
        answer = {"card": asked.card, "fits": True, "usable_bytes": usable, "margin": margin, **found.to_dict()}
        print_json({**answer, "plan": found.plan.to_dict()})
        return 0
    with shown.console() as console:
        console.print(asked.heading(), markup=False)
        print_ladder(console, found, asked.card, usable, margin)
    return 0


def what_fits(asked: PlanQuestion, console: Console) -> None:
    """Below a plan that does not fit: the ladder's answer in a line, with the flags that train so."""
    from rich.text import Text

    from fitune.console import log, stderr_console
    from fitune.errors import DoesNotFit
    from fitune.planning.report.plan_report import seconds
    from fitune.sizes import size_in

    console.print()
    try:
        if stderr_console().is_terminal:
            with stderr_console().status("looking for the fastest configuration that fits") as status:
                found = _search(asked, lambda line: status.update(f"tried {line}"))
        else:
            log("looking for the fastest configuration that fits")
            found = _search(asked, lambda line: None)
    except DoesNotFit as error:
        console.print(Text(f"nothing that fitune may change makes it fit: {error}", style="bold red"))
        return
    needs = size_in(found.plan.smi_peak_bytes, asked.gpu.usable_bytes)
    time = found.plan.seconds_per_step
    about = "" if time is None else f", about {seconds(time)} a step (an estimate)"
    console.print(Text(f"fits {asked.card} with {_flags(found)}", style="bold green"))
    console.print(
        f"then it needs {needs}{about}. `fitune train` chooses this by itself; --ladder shows the price of each"
    )


def _flags(found: Ladder) -> str:
    from fitune.planning.search.ladder import shown

    return " ".join(f"--{key} {shown(value)}" for key, value in found.changes.items())


def _search(asked: PlanQuestion, told: Callable[[str], None]) -> Ladder:
    """The ladder climbed on the card less its margin; each plan is told in a line."""
    from fitune.sizes import size_in
    from fitune.training.autofit_search import Rows, search
    from fitune.training.plan_scenario import largest_pass_of, rows_of_length

    usable, margin = asked.gpu.usable_bytes, asked.settings.memory.margin
    small = replace(asked.gpu, usable_bytes=int(usable * (1 - margin)))

    def plan_of(scenario: Scenario) -> Plan:
        made = replace(asked, gpu=small).plan(scenario)
        fits = "fits" if made.fits else "does not fit"
        told(f"{_changed(scenario, asked)}: {size_in(made.smi_peak_bytes, usable)}, {fits}")
        return made

    def largest_of(settings: Settings) -> LargestPass:
        limit = settings.data.max_length if settings.data != asked.settings.data else None
        if asked.rows:
            return largest_pass_of(settings, [row for row in asked.rows if limit is None or row[0] <= limit])
        return rows_of_length(settings, min(asked.tokens, limit or asked.tokens))

    lengths = [length for length, _ in asked.rows] or [asked.tokens]
    bf16 = asked.gpu.capability >= (8, 0)
    # A base that is quantized on the disk is planned as its original, with a note; what fitune trains is the original.
    return search(asked.settings, Rows(lengths, largest_of), plan_of, bf16)


def print_ladder(console: Console, found: Ladder, card: str, usable_bytes: int, margin: float) -> None:
    """A row a step: what it needs, saves and costs; then the flags that train so."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from fitune.planning.report.plan_report import seconds
    from fitune.planning.search.ladder import time_factor
    from fitune.sizes import size_in

    whole = max(usable_bytes, found.asked.smi_peak_bytes)
    limit = size_in(usable_bytes * (1 - margin), whole)
    head = "fits as asked" if not found.steps else "fits with concessions, in the order of their price"
    console.print(Text(f"{card}: {head}; {limit} may be used (a margin of {margin:.0%} is kept)", style="bold green"))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name in ("", "needs", "saves", "time a step", "slower by"):
        table.add_column(name, justify="left" if not name else "right", no_wrap=bool(name))
    table.add_column("quality", overflow="fold")

    def row(name: str, plan: Plan, before: Plan | None, quality: str) -> None:
        saved = size_in(before.smi_peak_bytes - plan.smi_peak_bytes, whole) if before else ""
        factor = time_factor(before, plan) if before else None
        time = "" if plan.seconds_per_step is None else seconds(plan.seconds_per_step)
        style = "bold" if plan is found.plan else ""
        needs = size_in(plan.smi_peak_bytes, whole)
        table.add_row(name, needs, saved, time, "" if factor is None else f"{factor:.2f}×", quality, style=style)

    row("as asked", found.asked, None, "")
    before = found.asked
    for step in found.steps:
        row(f"+ {step.name}", step.plan, before, step.quality)
        before = step.plan
    console.print(table, soft_wrap=False)
    if found.changes:
        console.print(Text(f"`fitune train` chooses this by itself on such a card; elsewhere: {_flags(found)}"))


def _changed(scenario: Scenario, asked: PlanQuestion) -> str:
    """What differs from the run as asked, in a few words."""
    from fitune.planning.report.plan_report import describe

    plain = asked.scenario()
    if scenario == plain:
        return "as asked"
    rows = "row" if scenario.batch == 1 else "rows"
    size = f"{scenario.batch} {rows} of {scenario.seq_len:,} tokens in each of {scenario.accumulation} micro-batches"
    parts = [part for part in describe(scenario).split(";")[0].split(", ") if part not in describe(plain)]
    return ", ".join([size, *parts])
