"""Mixing and matching the remedies: one plan for each combination, side by side.

In: a config, a function from changed settings to a scenario, a card. Out: `Cell`s, and their table.
Cells that are not in the cache are traced in processes of their own.
"""

from __future__ import annotations

import math
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING

from fitune.errors import NotTraced, PlanError
from fitune.models.quantization import rungs_below
from fitune.ops.optimizers.adamw import ADAMW
from fitune.planning import trace_cache
from fitune.planning.closed_form import untraced_plan
from fitune.planning.predict import Card, Plan, predict
from fitune.planning.report.plan_report import UNFUSED
from fitune.planning.scenario import Scenario
from fitune.sizes import size_in

if TYPE_CHECKING:
    from rich.console import Console

    from fitune.planning.gpus.catalogue import Gpu

# Axis → what it is called → the settings that make it. Every combination is a cell.
AXES: dict[str, dict[str, dict[str, object]]] = {
    "weights": {
        "fp32": {"model.precision": "fp32", "model.quantization": "none"},
        "bf16": {"model.precision": "bf16", "model.quantization": "none"},
        **{name: {"model.precision": "bf16", "model.quantization": name} for name in rungs_below(math.inf)},
    },
    "tuning": {"full": {"train.tuning": "full"}, "lora": {"train.tuning": "lora"}},
    "optimizer": {name: {"train.optimizer": name} for name in (ADAMW.name, ADAMW.lighter)},
    # packed: fitune's own way, which never holds the square of scores; eager: padded, and holds it.
    "attention": {
        "packed": {"data.packing": "auto", "model.attention": "auto"},
        "eager": {"data.packing": "off", "model.attention": "eager"},
    },
    "checkpointing": {
        "off": {"train.gradient_checkpointing": False},
        "on": {"train.gradient_checkpointing": True},
    },
}
COLUMNS = ("attention", "checkpointing")
PROCESSES = 2


@dataclass(frozen=True)
class Cell:
    """One combination: its plan, or why there is none."""

    names: dict[str, str]
    """Axis → the value in this cell."""
    scenario: Scenario | None = None
    plan: Plan | None = None
    why: str = ""

    def to_dict(self) -> dict[str, object]:
        """Plain values, for JSON."""
        figures = ("allocated_peak_bytes", "reserved_peak_bytes", "smi_peak_bytes", "fits", "seconds_per_step")
        found = {name: getattr(self.plan, name) for name in figures} if self.plan else {"impossible": self.why}
        return {**self.names, **found}


def cells(ask: Callable[[dict[str, object]], Scenario]) -> list[Cell]:
    """Every combination as a question; impossible ones say why.

    Args:
        ask: changed settings (dotted names) → scenario; an error says why there is none.
    """
    found: list[Cell] = []
    for chosen in product(*AXES.values()):
        names = dict(zip(AXES, chosen, strict=True))
        changes = {key: value for axis, name in names.items() for key, value in AXES[axis][name].items()}
        try:
            found.append(Cell(names, ask(changes)))
        except (PlanError, ValueError) as error:
            found.append(Cell(names, why=_in_short(error)))
    return found


def fill(
    asked: list[Cell], config: dict[str, object], gpu: Card | Gpu, expandable: bool, processes: int = PROCESSES
) -> Iterator[tuple[int, Cell]]:
    """(place, cell with its plan) as they come; what the cache holds comes first.

    Args:
        config: the model's config as a dict.
        processes: how many trace side by side; 1 traces here.
    """
    waiting: list[int] = []
    for place, cell in enumerate(asked):
        if cell.scenario is None:
            yield place, cell
        elif processes == 1 or _is_cached(config, cell.scenario, gpu):
            yield place, _planned(cell, config, gpu, expandable)
        else:
            waiting.append(place)
    if not waiting:
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(processes, len(waiting)), context, initializer=_quiet_worker) as pool:
        futures = {pool.submit(_planned, asked[place], config, gpu, expandable): place for place in waiting}
        for future in as_completed(futures):
            yield futures[future], future.result()


def _planned(cell: Cell, config: dict[str, object], gpu: Card | Gpu, expandable: bool) -> Cell:
    assert cell.scenario is not None
    try:
        return replace(cell, plan=predict(config, cell.scenario, gpu, expandable, only_plans=True))
    except NotTraced as error:
        return replace(cell, plan=untraced_plan(config, cell.scenario, gpu, str(error)))
    except PlanError as error:
        return replace(cell, why=_in_short(error))


def _is_cached(config: dict[str, object], scenario: Scenario, gpu: Card | Gpu) -> bool:
    key = trace_cache.content_key(config, scenario, (gpu.capability[0], gpu.capability[1]))
    return (trace_cache.folder() / f"{key}.json.gz").exists()


def _quiet_worker() -> None:
    """Runs in a new process, before torch is imported there: meta tensors need no threads."""
    os.environ["OMP_NUM_THREADS"] = "1"
    from fitune.console import hush_libraries

    hush_libraries()


def _in_short(error: Exception) -> str:
    """The reason without its remedy."""
    lines = [line.removeprefix("  - ") for line in str(error).splitlines()]
    text = lines[-1] if lines else type(error).__name__
    return text.partition(";")[0]


def fastest(done: list[Cell]) -> Cell | None:
    """The cell that fits and takes the least time; None without times or without a fit."""
    timed = {
        place: cell.plan.seconds_per_step
        for place, cell in enumerate(done)
        if cell.plan and cell.plan.fits and cell.plan.seconds_per_step is not None
    }
    return done[min(timed, key=timed.__getitem__)] if timed else None


def print_grid(console: Console, done: list[Cell], card: str | None) -> None:
    """Rows: weights, tuning, optimizer. Columns: attention and checkpointing. Peak allocated in each cell."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    rows: dict[tuple[str, ...], list[Cell]] = {}
    for cell in done:
        rows.setdefault(tuple(name for axis, name in cell.names.items() if axis not in COLUMNS), []).append(cell)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for axis in AXES:
        if axis not in COLUMNS:
            table.add_column(axis, no_wrap=True)
    for cell in next(iter(rows.values())):
        head = f"{cell.names['attention']}\ncheckp. {cell.names['checkpointing']}"
        table.add_column(head, justify="right", no_wrap=True)
    whole = max((cell.plan.smi_peak_bytes for cell in done if cell.plan), default=0)
    best, before = fastest(done), None
    reasons: list[str] = []
    for names, row in rows.items():
        shown: list[Text] = []
        for cell in row:
            if cell.plan is None:
                if cell.why not in reasons:
                    reasons.append(cell.why)
                shown.append(Text(f"– {reasons.index(cell.why) + 1}", style="dim"))
                continue
            mark = "" if card is None else "  " if cell.plan.fits else " ×"
            style = "bold green" if cell is best else "red" if mark == " ×" else ""
            shown.append(Text(size_in(cell.plan.allocated_peak_bytes, whole) + mark, style=style))
        if before not in (None, names[0]):
            table.add_section()
        table.add_row(*names, *shown)
        before = names[0]
    told = f"; × does not fit {card}, where reserved memory and the context count too" if card else ""
    console.print(Text(f"peak allocated{told}"))
    console.print(table, soft_wrap=False)
    for number, reason in enumerate(reasons, 1):
        console.print(Text(f"– {number}: {reason}"))
    if any(cell.scenario and cell.scenario.quantized for cell in done):
        console.print(Text(f"quantized: {UNFUSED}"), soft_wrap=False)
    for note in dict.fromkeys(cell.plan.notes[0] for cell in done if cell.plan and not cell.plan.traced):
        console.print(Text(note, style="yellow"))
    if best is not None and best.plan is not None:
        what = ", ".join(f"{axis} {name}" for axis, name in best.names.items())
        console.print(Text(f"fastest that fits: {what}: about {best.plan.seconds_per_step:.2g} s a step (an estimate)"))
