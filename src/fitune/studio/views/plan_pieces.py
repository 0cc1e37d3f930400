"""The JSON of `fitune plan` as HTML: the bar of one plan, a grid as a heat map, a ladder's concessions.

In: what the command printed. Out: what the templates read.
"""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from fitune.planning.report.plan_report import LOOKS, UNKNOWN, seconds
from fitune.sizes import size_in
from fitune.web.charts import Piece, stacked_bar

HEATS = 8  # classes h0 (little) to h7 (nearly full); hx does not fit


def plan_values(plan: dict[str, Any]) -> dict[str, Any]:
    """Bar, parts and facts of one plan."""
    usable, peak = plan.get("usable_bytes"), plan["smi_peak_bytes"]
    card = plan.get("card")
    limit = usable if card else None
    whole = max(peak, limit or 0)
    pieces = [_piece(name, size, whole) for name, size in plan["smi_parts"].items()]
    told = f"{card}: {size_in(limit, whole)} usable" if limit else ""
    step = plan.get("seconds_per_step")
    return {
        "plan": plan,
        "bar": Markup(stacked_bar(pieces, whole, plan["verdict"], limit, told)),
        "pieces": pieces,
        "step": None if step is None else seconds(step),
        "share": plan["trained_parameters"] / plan["total_parameters"] if plan.get("total_parameters") else None,
    }


def grid_values(found: dict[str, Any], usable: int | None) -> dict[str, Any]:
    """A grid as rows and columns: the first axes go down, the last two across."""
    cells: list[dict[str, Any]] = found["cells"]
    figures = {
        "allocated_peak_bytes",
        "reserved_peak_bytes",
        "smi_peak_bytes",
        "fits",
        "seconds_per_step",
        "impossible",
    }
    axes = [name for name in (cells[0] if cells else {}) if name not in figures]
    down, across = axes[:-2], axes[-2:]
    columns = list(dict.fromkeys(tuple(str(cell[axis]) for axis in across) for cell in cells))
    rows: dict[tuple[str, ...], dict[tuple[str, ...], dict[str, Any]]] = {}
    for cell in cells:
        row = tuple(str(cell[axis]) for axis in down)
        rows.setdefault(row, {})[tuple(str(cell[axis]) for axis in across)] = _shown(cell, usable)
    return {"axes": down, "columns": columns, "rows": rows, "card": found.get("card"), "model": found.get("model")}


def ladder_values(found: dict[str, Any]) -> dict[str, Any]:
    """A ladder's steps with sizes in words."""
    usable = found.get("usable_bytes") or 0
    steps = [
        {
            **step,
            "needs": size_in(step["smi_peak_bytes"], max(usable, step["smi_peak_bytes"])),
            "saves": size_in(step["saves_bytes"], max(usable, step["smi_peak_bytes"])),
        }
        for step in found.get("steps", [])
    ]
    asked = found.get("asked_smi_peak_bytes")
    return {"ladder": found, "steps": steps, "asked": size_in(asked, max(usable, asked)) if asked else ""}


UNITS = {"seq-len": "tokens a row", "batch": "rows a forward pass", "rank": ""}


def most_values(found: dict[str, Any]) -> dict[str, Any]:
    """The largest that fits, and the next that does not, with what each needs."""
    plan, over = found.get("plan") or {}, found.get("too_large_plan") or {}
    whole = max(plan.get("smi_peak_bytes", 0), over.get("smi_peak_bytes", 0))
    return {
        "what": found["max"],
        "unit": UNITS.get(found["max"], ""),
        "value": found.get("value"),
        "too_large": found.get("too_large"),
        "needs": size_in(plan["smi_peak_bytes"], whole) if plan else "",
        "over": size_in(over["smi_peak_bytes"], whole) if over else "",
    }


def _piece(name: str, size: float, whole: float) -> Piece:
    _, colour, about = LOOKS.get(name, UNKNOWN)
    return Piece(name, size, colour, f"{size_in(size, whole)}{f', {about}' if about else ''}")


def _shown(cell: dict[str, Any], usable: int | None) -> dict[str, Any]:
    """A cell's size, how full it makes the card, and its time."""
    if "impossible" in cell:
        return {"text": "–", "why": cell["impossible"], "heat": "none"}
    peak, time = cell["smi_peak_bytes"], cell.get("seconds_per_step")
    words = [f"{seconds(time)} a step"] if time else []
    heat = "none"
    if usable is not None:
        words.insert(0, "fits" if cell["fits"] else "does not fit")
        heat = str(min(HEATS - 1, int(peak / usable * HEATS))) if cell["fits"] else "x"
    return {"text": size_in(peak, max(usable or 0, peak)), "why": ", ".join(words), "heat": heat}
