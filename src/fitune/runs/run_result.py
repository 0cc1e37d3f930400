"""What a run left, as an object that shows itself: a line in a terminal, a table in a notebook."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path
from signal import SIGINT
from typing import TYPE_CHECKING

from fitune.runs.end_of_run import held_out_rows
from fitune.runs.run_folder import METRICS, read_rows
from fitune.signals import exit_status

if TYPE_CHECKING:
    from pandas import DataFrame

ROWS = 5


@dataclass(frozen=True, repr=False)
class RunResult:
    """What a run left. ``status`` is finished or interrupted (then ``signal`` is the number of what interrupted it);
    ``saved`` the adapter's or model's folder; ``exports`` the copies that the settings asked for."""

    folder: Path
    status: str
    steps: int
    saved: Path | None = None
    best_step: int | None = None
    before: dict[str, float] | None = None
    after: dict[str, float] | None = None
    exports: tuple[Path, ...] = ()
    signal: int | None = None

    @property
    def exit_code(self) -> int:
        """For the command line, as shells expect it: 130 after Ctrl-C, 143 after SIGTERM."""
        return exit_status(self.signal or SIGINT) if self.status == "interrupted" else 0

    def metrics(self) -> DataFrame:
        """Every logged row as a data frame: step, kind (train or eval), loss, learning_rate and so on."""
        import pandas

        return pandas.DataFrame(read_rows(self.folder / METRICS))

    def scores(self) -> dict[str, tuple[float, float]]:
        """Metric → its value before and after training."""
        before, after = self.before or {}, self.after or {}
        return {name: (before[name], value) for name, value in after.items() if name in before}

    def __repr__(self) -> str:
        scores = ", ".join(f"{name} {first:.3g} → {then:.3g}" for name, (first, then) in self.scores().items())
        steps = f"{self.steps:,} {'step' if self.steps == 1 else 'steps'}"
        return f"RunResult({self.folder}: {self.status}, {steps}{'; ' + scores if scores else ''})"

    def _repr_html_(self) -> str:
        cells = "".join(
            f"<tr><td>{escape(name.replace('_', ' '))}</td><td>{first:.4g}</td><td>{then:.4g}</td></tr>"
            for name, (first, then) in self.scores().items()
        )
        scores = f"<table><tr><th>metric<th>before<th>after</tr>{cells}</table>" if cells else ""
        lines = "".join(
            "<tr>"
            + "".join(f"<td>{escape(text)}</td>" for text in (row.prompt, row.before, row.after, row.reference))
            + "</tr>"
            for row in held_out_rows(self.folder)[:ROWS]
        )
        rows = f"<table><tr><th>prompt<th>before<th>after<th>reference</tr>{lines}</table>" if lines else ""
        where = f"{self.status}, {self.steps:,} steps, in <code>{escape(str(self.folder))}</code>"
        head = f"<p><b>{escape(self.folder.name)}</b>: {where}</p>"
        return head + scores + rows
