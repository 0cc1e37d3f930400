"""Plans in the terminal: the verdict, the three figures, the parts of the peak as a table and a bar, the phases.

In: `View`s. Out: lines on a rich console. Knows nothing of how a plan was made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fitune.planning.report.plan_report import View, advice, facts, figures, layers, scale, verdict
from fitune.sizes import GIB, size_in

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from fitune.planning.gpus.catalogue import Gpu


def print_plan(console: Console, view: View) -> None:
    """The whole answer, verdict first."""
    from rich.table import Table
    from rich.text import Text

    good = view.plan.fits if view.card is not None and view.plan.traced else None
    style = {True: "bold green", False: "bold red", None: "bold"}[good]
    console.print(Text(verdict(view), style=style))
    for line in advice(view):
        console.print(Text(line))
    console.print(Text(f"{view.model}: {view.question}"))
    console.print()
    grid = Table.grid(padding=(0, 2))
    grid.add_column()
    grid.add_column(justify="right", no_wrap=True)
    grid.add_column(style="dim")
    for row in figures(view):
        grid.add_row(*row)
    console.print(grid, soft_wrap=False)
    console.print()
    console.print(Text(f"the peak: {view.plan.moment}"))
    console.print(bar(view, console.width - 2, coloured=console.color_system is not None))
    console.print(_parts_table(view, console), soft_wrap=False)
    console.print()
    console.print(_phase_table(view), soft_wrap=False)
    for line in facts(view):
        console.print(Text(line))
    for note in (*view.notes, *view.plan.notes):
        console.print(Text(f"note: {note}", style="yellow"), soft_wrap=False)


def print_models(console: Console, views: list[View], card: str) -> None:
    """Several models on one card, largest first."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    fitting = next((view for view in views if view.plan.fits), None)
    best = f"the largest that fits {card}: {fitting.model}" if fitting else f"none of these fits {card}"
    console.print(Text(best, style="bold green" if fitting else "bold red"))
    if views:
        console.print(Text(views[0].question))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("model", overflow="fold")
    for name in ("parameters", "allocated", "reserved", "nvidia-smi", "spare"):
        table.add_column(name, justify="right", no_wrap=True)
    whole = max((scale(view) for view in views), default=0)
    for view in views:
        plan = view.plan
        sizes = (plan.allocated_peak_bytes, plan.reserved_peak_bytes, plan.smi_peak_bytes, view.spare_bytes or 0)
        shown = [size_in(num_bytes, whole) for num_bytes in sizes]
        table.add_row(view.model, f"{plan.total_parameters / 1e9:.2f} B", *shown, style="" if plan.fits else "red")
    console.print(table, soft_wrap=False)


def print_cards(console: Console, cards: list[Gpu]) -> None:
    """The catalogue: what a process may use, and how fast the card is."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name in ("card", "GiB", "usable", "architecture", "GB/s", "TFLOP/s, 16-bit"):
        table.add_column(name, justify="left" if name in ("card", "architecture") else "right", no_wrap=True)
    for card in cards:
        table.add_row(
            card.name,
            f"{card.memory_bytes / GIB:.0f}",
            f"{card.usable_bytes / GIB:.2f}",
            f"{card.architecture} {card.capability[0]}.{card.capability[1]}",
            f"{(card.bandwidth_bytes_s or 0) / 1e9:,.0f}",
            f"{(card.matrix_flops or 0) / 1e12:,.0f}",
        )
    console.print(table, soft_wrap=False)


def bar(view: View, width: int, coloured: bool) -> Text:
    """One line of ``width`` cells, the card or the need being the whole; ``|`` marks where the card ends."""
    from rich.text import Text

    whole, text, done = scale(view), Text("  "), 0
    width = max(min(width, 100) - 1, 10)
    for layer in layers(view.plan, view.context_bytes):
        before, done = done, done + layer.num_bytes
        cells = round(done * width / whole) - round(before * width / whole)
        text.append(("█" if coloured else layer.letter) * cells, style=layer.colour if coloured else "")
    filled = round(done * width / whole)
    text.append(("░" if coloured else ".") * (width - filled), style="dim")
    if view.usable_bytes is not None:
        limit = 2 + round(view.usable_bytes * width / whole)
        end = text[limit:]
        text = text[:limit]
        text.append("|", style="bold")
        text.append_text(end)
    return text


def _parts_table(view: View, console: Console) -> Table:
    from rich.table import Table
    from rich.text import Text

    table, whole = Table.grid(padding=(0, 2)), scale(view)
    table.add_column()
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(style="dim")
    for layer in layers(view.plan, view.context_bytes):
        mark = Text("  ██", style=layer.colour) if console.color_system is not None else Text(f"  {layer.letter}")
        share = layer.num_bytes / view.plan.smi_peak_bytes
        table.add_row(mark, layer.name, size_in(layer.num_bytes, whole), f"{share:.1%}", layer.about)
    return table


def _phase_table(view: View) -> Table:
    from rich import box
    from rich.table import Table

    table, whole = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False), scale(view)
    for name in ("phase", "allocated", "reserved", "nvidia-smi", "highest at"):
        right = name in ("allocated", "reserved", "nvidia-smi")
        table.add_column(name, justify="right" if right else "left", no_wrap=name != "highest at")
    for name, phase in view.plan.phases.items():
        sizes = [size_in(float(phase[key]), whole) for key in ("allocated_bytes", "reserved_bytes", "smi_bytes")]
        # A phase in which nothing new appears has no moment of its own.
        _, _, where = str(phase["moment"]).partition(f"{name}, ")
        table.add_row(name, *sizes, where)
    return table
