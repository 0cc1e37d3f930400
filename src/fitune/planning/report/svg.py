"""A plan as a picture: one SVG without outside parts, and an HTML page around it with the same figures as tables.

In: a `View`. Out: text. Colours and names are the terminal's (view.py); dark backgrounds are followed.
"""

from __future__ import annotations

from html import escape
from textwrap import wrap

from fitune.planning.report.plan_report import FREE, View, facts, figures, layers, scale, verdict
from fitune.sizes import size_in

WIDTH, LEFT, BAR = 960, 24, 912  # px: whole picture, left margin, bar
SANS = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"
STYLE = f"""
.plan text {{ font: 14px {SANS}; fill: #1f2328 }}
.plan .head {{ font-size: 20px; font-weight: 600 }}
.plan .dim {{ fill: #59636e }} .plan .number {{ text-anchor: end; font-variant-numeric: tabular-nums }}
.plan .good {{ fill: #1a7f37 }} .plan .bad {{ fill: #cf222e }}
.plan .paper {{ fill: #ffffff }} .plan .free {{ fill: {FREE} }}
.plan .ruler {{ stroke: #59636e; stroke-width: 1.5 }} .plan .limit {{ stroke: #1f2328; stroke-width: 2 }}
@media (prefers-color-scheme: dark) {{
 .plan text {{ fill: #e6edf3 }} .plan .dim {{ fill: #9198a1 }} .plan .good {{ fill: #3fb950 }}
 .plan .bad {{ fill: #f85149 }} .plan .paper {{ fill: #0d1117 }} .plan .free {{ fill: #262c33 }}
 .plan .ruler {{ stroke: #9198a1 }} .plan .limit {{ stroke: #e6edf3 }}
}}"""


class _Sheet:
    """Lines of an SVG, from top to bottom."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.y = 16.0

    def text(self, x: float, content: str, kind: str = "", y: float | None = None) -> None:
        at = self.y if y is None else y
        self.parts.append(f'<text x="{x:.1f}" y="{at:.1f}" class="{kind}">{escape(content)}</text>')

    def box(self, x: float, width: float, height: float, colour: str = "", kind: str = "", title: str = "") -> None:
        look = f'fill="{colour}"' if colour else f'class="{kind}"'
        hover = f"<title>{escape(title)}</title>" if title else ""
        self.parts.append(
            f'<rect x="{x:.1f}" y="{self.y:.1f}" width="{width:.1f}" height="{height}" {look}>{hover}</rect>'
        )

    def line(self, x1: float, y1: float, x2: float, y2: float, kind: str = "ruler") -> None:
        self.parts.append(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>')


def svg(view: View) -> str:
    """The picture: bar of the peak against the card, the three figures, the parts, the phases."""
    sheet = _Sheet()
    kind = "" if view.card is None or not view.plan.traced else " good" if view.plan.fits else " bad"
    for line in wrap(verdict(view), 88):
        sheet.y += 22
        sheet.text(LEFT, line, f"head{kind}")
    for line in wrap(f"{view.model}: {view.question}", 125):
        sheet.y += 22
        sheet.text(LEFT, line, "dim")
    _bar(sheet, view)
    _figures(sheet, view)
    _legend(sheet, view)
    _phases(sheet, view)
    height = int(sheet.y + 24)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="plan" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
        f'role="img" aria-label="{escape(verdict(view), quote=True)}">\n<style>{STYLE}\n</style>\n'
        f'<rect width="{WIDTH}" height="{height}" class="paper"/>\n' + "\n".join(sheet.parts) + "\n</svg>\n"
    )


def _bar(sheet: _Sheet, view: View) -> None:
    whole, done, height = scale(view), 0, 44
    sheet.y += 34
    if view.usable_bytes is not None:
        x = LEFT + BAR * view.usable_bytes / whole
        sheet.text(x, f"{view.card}: {size_in(view.usable_bytes, whole)} usable", "dim number")
    sheet.y += 8
    sheet.box(LEFT, BAR, height, kind="free")
    for layer in layers(view.plan, view.context_bytes):
        x, width = LEFT + BAR * done / whole, BAR * layer.num_bytes / whole
        gap = 1 if width > 3 else 0  # neighbours of like colours stay apart
        sheet.box(x, width - gap, height, layer.colour, title=f"{layer.name}: {size_in(layer.num_bytes, whole)}")
        done += layer.num_bytes
    if view.usable_bytes is not None:
        x = LEFT + BAR * view.usable_bytes / whole
        sheet.line(x, sheet.y - 5, x, sheet.y + height + 5, "limit")
    sheet.y += height


def _figures(sheet: _Sheet, view: View) -> None:
    """Three rulers below the bar, one for each figure."""
    plan, whole = view.plan, scale(view)
    sizes = (plan.allocated_peak_bytes, plan.reserved_peak_bytes, plan.smi_peak_bytes)
    for (name, size, about), num_bytes in zip(figures(view), sizes, strict=True):
        sheet.y += 14
        end = LEFT + BAR * num_bytes / whole
        sheet.line(LEFT, sheet.y, end, sheet.y)
        sheet.line(end, sheet.y - 4, end, sheet.y + 4)
        sheet.y += 18
        sheet.text(LEFT, f"{name} {size}")
        sheet.text(LEFT + 190, about, "dim")


def _legend(sheet: _Sheet, view: View) -> None:
    shown, whole = layers(view.plan, view.context_bytes), scale(view)
    sheet.y += 34
    sheet.text(LEFT, f"the peak: {view.plan.moment}")
    half = -(-len(shown) // 2)
    top = sheet.y
    for place, layer in enumerate(shown):
        x = LEFT + (place // half) * (BAR / 2 + 12)
        sheet.y = top + 12 + 24 * (place % half)
        sheet.box(x, 14, 14, layer.colour)
        y = sheet.y + 12
        sheet.text(x + 24, layer.name, y=y)
        sheet.text(x + 320, size_in(layer.num_bytes, whole), "number", y)
        sheet.text(x + 390, f"{layer.num_bytes / view.plan.smi_peak_bytes:.1%}", "number dim", y)
    sheet.y = top + 12 + 24 * half


def _phases(sheet: _Sheet, view: View) -> None:
    """Reserved (pale) and allocated (strong) of each phase."""
    whole = scale(view)
    sheet.y += 26
    sheet.text(LEFT, "phases: reserved, and within it allocated")
    sheet.y += 10
    room = BAR - 330
    for name, phase in view.plan.phases.items():
        reserved, allocated = float(phase["reserved_bytes"]), float(phase["allocated_bytes"])
        sheet.box(LEFT + 120, room, 14, kind="free")
        sheet.box(LEFT + 120, room * reserved / whole, 14, "#9fc3e6")
        sheet.box(LEFT + 120, room * allocated / whole, 14, "#1f5fa8")
        sheet.text(LEFT, name, y=sheet.y + 12)
        sheet.text(LEFT + BAR - 104, size_in(reserved, whole), "number dim", sheet.y + 12)
        sheet.text(LEFT + BAR, size_in(allocated, whole), "number", sheet.y + 12)
        sheet.y += 22
    for line in facts(view):
        sheet.y += 20
        sheet.text(LEFT, line)


def html(view: View, command: str) -> str:
    """A page that opens anywhere: the picture, the same figures as tables, the notes, the command that made it.

    Args:
        command: the words of the command line.
    """
    whole = scale(view)
    parts = "".join(
        f"<tr><td>{escape(layer.name)}</td><td>{size_in(layer.num_bytes, whole)}</td><td>{layer.num_bytes:,}</td>"
        f"<td>{escape(layer.about)}</td></tr>"
        for layer in layers(view.plan, view.context_bytes)
    )
    phases = "".join(
        f"<tr><td>{escape(name)}</td>"
        + "".join(
            f"<td>{size_in(float(phase[key]), whole)}</td>"
            for key in ("allocated_bytes", "reserved_bytes", "smi_bytes")
        )
        + f"<td>{escape(str(phase['moment']))}</td></tr>"
        for name, phase in view.plan.phases.items()
    )
    notes = "".join(f"<li>{escape(note)}</li>" for note in (*view.notes, *view.plan.notes))
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{escape(view.model)}: memory plan</title>
<style>
:root {{ color-scheme: light dark }}
body {{ font: 15px/1.5 {SANS}; max-width: 960px; margin: 1rem auto; padding: 0 1rem }}
svg {{ width: 100%; height: auto }}
table {{ border-collapse: collapse; margin: 1rem 0 }}
th, td {{ padding: .2rem 1rem .2rem 0; text-align: left; border-bottom: 1px solid #8884; vertical-align: top }}
td {{ font-variant-numeric: tabular-nums }}
code {{ overflow-wrap: anywhere }}
</style>
{svg(view)}
<h2>Parts of the peak</h2>
<table><tr><th>part<th>size<th>bytes<th>what it is</tr>{parts}</table>
<h2>Phases</h2>
<table><tr><th>phase<th>allocated<th>reserved<th>nvidia-smi<th>highest at</tr>{phases}</table>
{f"<h2>Notes</h2><ul>{notes}</ul>" if notes else ""}
<p><code>{escape(command)}</code></p>
</html>
"""
