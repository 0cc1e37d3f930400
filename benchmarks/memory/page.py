"""Rows with their predictions → docs/memory.md.

In: (row, prediction of the installed stack, prediction of the stack of late 2024 or None), versions, a date. Out: Markdown.
"""

from __future__ import annotations

import datetime
import statistics
from typing import Any

from published import ASSUMED, CARDS, Row

Case = tuple[Row, dict[str, Any], dict[str, Any] | None]
# Bars of the issue that asked for the plan: (table, kind) → median and worst error in percent.
BARS: dict[tuple[str, str], tuple[float | None, float]] = {
    ("RTX 4080", "allocated"): (1, 3),
    ("RTX 4080", "reserved"): (None, 10),
    ("OPT-350M 16-bit", "full fine-tuning"): (2, 5),
}


def page(cases: list[Case], stacks: list[str], date: datetime.date, cpu: list[dict[str, Any]]) -> str:
    """The whole page."""
    tables = dict.fromkeys(row.table for row, _, _ in cases)
    parts = [OPENING.format(date=date.isoformat(), now=stacks[0], then=stacks[1] if len(stacks) > 1 else "not run")]
    parts.append("## In short\n\n" + summary(cases, list(tables)))
    if cpu:
        parts.append(CPU + cpu_table(cpu))
    for name in tables:
        mine = [case for case in cases if case[0].table == name]
        parts.append(f"## {name}\n\n{ASSUMED.get(name, '').strip()}\n\n{table(mine)}")
    return "\n\n".join(part.strip() for part in parts) + "\n"


OPENING = """
# How exact the memory plan is

Made by `benchmarks/memory/compare.py` on {date}. No row below was measured by us on a GPU: none was available. The rows are
published measurements. Where a publication does not say how a run was configured, we had to assume something; the
assumptions are stated with each table. No constant of the plan is fitted to these rows: each has a source or a derivation in
the code (`src/fitune/planning/`).

The plan runs the code of the installed packages. The course's tables were measured with packages of late 2024, so they
are traced with those as well, which separates changes in the packages from errors of ours.

- installed: {now}
- late 2024: {then}

MB are 10⁶ bytes, as in the tables. Allocated is `torch.cuda.max_memory_allocated`, reserved `max_memory_reserved`.
"""
CPU = """## On a CPU

Growth of a process that trains the built-in model: VmHWM at the end minus VmRSS just before the base is loaded
(imports done, rows prepared), each in a fresh process. `benchmarks/memory/cpu.py`.

"""


def percent(predicted: float | None, measured: float | None) -> float | None:
    """Error of a prediction in percent."""
    return None if not predicted or not measured else 100 * (predicted / measured - 1)


def shown(value: float | None) -> str:
    """A signed percentage or nothing."""
    return "" if value is None else f"{value:+.1f} %"


def mb(answer: dict[str, Any] | None) -> str:
    """Allocated MB, or why there is none."""
    if not answer:
        return ""
    return f"{answer['allocated'] / 1e6:,.0f}" if "allocated" in answer else answer.get("error", "")[:60]


def errors(cases: list[Case]) -> dict[str, list[float]]:
    """Kind → errors in percent."""
    found: dict[str, list[float]] = {}
    for row, now, then in cases:
        kind = row.kind
        for name, value in (
            (kind, percent(now.get("allocated"), row.allocated_bytes)),
            (f"{kind}, stack of late 2024", percent((then or {}).get("allocated"), row.allocated_bytes)),
            ("reserved", percent(now.get("reserved"), row.reserved_bytes)),
        ):
            if value is not None:
                found.setdefault(name, []).append(value)
    return found


def summary(cases: list[Case], tables: list[str]) -> str:
    """Median and worst error of each table, beside the bar."""
    lines = ["| table | rows | number | median | worst | bar (median, worst) |", "|---|---|---|---|---|---|"]
    for name in tables:
        for kind, values in errors([case for case in cases if case[0].table == name]).items():
            sizes = [abs(value) for value in values]
            bar = BARS.get((name, kind.removesuffix(", stack of late 2024")))
            wanted = "" if bar is None else f"{'' if bar[0] is None else f'{bar[0]:g} %, '}{bar[1]:g} %"
            middle, worst = statistics.median(sizes), max(values, key=abs)
            lines.append(f"| {name} | {kind} | {len(sizes)} | {middle:.1f} % | {worst:+.1f} % | {wanted} |")
    return "\n".join(lines)


def table(cases: list[Case]) -> str:
    """A line a row."""
    has_old = any(then for _, _, then in cases)
    has_reserved = any(row.reserved_bytes for row, _, _ in cases)
    heads = ["row", "measured MB", "predicted MB", "error"]
    heads += ["late 2024: MB", "error"] if has_old else []
    heads += ["reserved: measured", "predicted", "error"] if has_reserved else []
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for row, now, then in cases:
        allocated = row.allocated_bytes
        measured = "out of memory" if allocated is None else f"{allocated / 1e6:,.0f}"
        cells = [row.label, measured, mb(now), shown(percent(now.get("allocated"), allocated)) or beyond(now)]
        if has_old:
            cells += [mb(then), shown(percent((then or {}).get("allocated"), allocated)) or beyond(then)]
        if has_reserved:
            both = (row.reserved_bytes, now.get("reserved"))
            cells += [f"{size / 1e6:,.0f}" if size else "" for size in both] + [shown(percent(both[1], both[0]))]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def beyond(answer: dict[str, Any] | None) -> str:
    """Of a row that ran out of memory: the cards that the plan says it does not fit."""
    if not answer or "reserved" not in answer:
        return ""
    small = [name for name, usable in CARDS.items() if answer["reserved"] > usable]
    return f"above {small[-1]}" if small else "fits all"


def cpu_table(rows: list[dict[str, Any]]) -> str:
    """A line a case."""
    lines = ["| case | measured MB | predicted MB | error |", "|---|---|---|---|"]
    for row in rows:
        sizes = [f"{row[name] / 1e6:,.0f}" for name in ("measured_bytes", "predicted_bytes")]
        lines.append(f"| {row['case']} | {' | '.join(sizes)} | {row['error_percent']:+.1f} % |")
    return "\n".join(lines)
